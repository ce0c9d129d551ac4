"""`xcube demo`: new shapes from the weights in the package, or from networks that it trains."""

from pathlib import Path

from xcube.data.axes import Up

SAMPLED, TRAINED = Path("demo"), Path("demo-trained")  # the output folders


def demo(
    out: Path | None = None,
    mesh: list[Path] = [],  # noqa: B006  (read only; the command line makes lists)
    up: Up = "z",
    seed: int = 0,
    train: bool = False,
    minutes: float | None = None,
    preset: str | None = None,
    restart: bool = False,
    quiet: bool = False,
) -> int:
    """Generate sixteen shapes with the weights in the package, or train a cascade from scratch with --train.

    Both write meshes, a gallery and an HTML page, and download nothing. The same command resumes after an interruption.
    With the weights in the package it takes about a minute on one CPU core.

    With --train it takes 15 minutes on two CPU cores. The dataset has procedural chairs, tables, sofas, lamps,
    airplanes, cars, beds and cabinets. For each level, a VAE, a denoiser and, if the preset has one, a refiner are
    trained on it. The page shows the first 16 of 64 generated shapes; the metrics are of all 64.

    Args:
        out: Output folder, by default demo, or demo-trained with --train; open its index.html.
        mesh: Mesh files. Each is reconstructed by the VAEs, and two variants are generated from its coarse voxels. With
            --train, they are also added to the training data, and the page shows the first eight.
        up: Axis that points up in the mesh files, "z" or "y"; the models know shapes that stand upright, with the front
            along x (z if y is up).
        seed: Random seed of the samples.
        train: Train a cascade from scratch instead of using the weights in the package.
        minutes: Approximate time limit in minutes, with --train; about three of them are for everything but training.
            Less time gives rougher shapes.
        preset: Cascade to train, with --train: "demo" (16^3 and 64^3 voxels), or "small" (32^3 and 128^3), the default
            on a GPU.
        restart: Start from scratch, even if the folder holds results.
        quiet: Hide the progress.
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if train:
        from xcube.commands.demo_training import train_demo  # slow to import

        return train_demo(out or TRAINED, minutes, mesh, up, preset, seed, restart, quiet)
    given = [name for name, value in {"minutes": minutes, "preset": preset}.items() if value is not None]
    if given:
        raise ValueError(f"--{given[0]} needs --train; without it nothing is trained")
    from xcube.commands.demo_samples import sample_demo  # slow to import

    return sample_demo(out or SAMPLED, mesh, up, seed, restart, quiet)
