"""`xcube demo`: new shapes from the weights in the package, or from networks that it trains."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from sparsevox import Grid, Mesh, Voxels
from sparsevox.io import to_mesh
from sparsevox.viz import render_row
from xcube.commands.demo_folder import OwnMesh, logger, own_meshes, prepare_demo, shell_lines
from xcube.commands.list_types import Names
from xcube.commands.sample import sample
from xcube.data.axes import Up
from xcube.pipeline.options import SampleOptions

TRAINED = "demo-trained"  # the output folder with --train
SAMPLES = 16
TILE = 400  # width of a shape in a picture, in pixels


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

    Both need no downloads and write meshes, a gallery and an HTML page. The same command resumes after an interruption.
    With the weights in the package it takes about a minute.

    With --train it takes 15 minutes on two CPU cores. The dataset has procedural chairs, tables, sofas, lamps,
    airplanes, cars, beds and cabinets. For each level, a VAE, a denoiser and, if the preset has one, a refiner are
    trained on it. The page shows the first 16 of 64 generated shapes; the metrics are of all 64.

    Args:
        out: Output folder, by default demo, or demo-trained with --train; open its index.html.
        mesh: Mesh files. Each is reconstructed by the VAEs, and two variants are made from its coarse voxels. With
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

        return train_demo(out or Path(TRAINED), minutes, mesh, up, preset, seed, restart, quiet)
    given = [name for name, value in {"minutes": minutes, "preset": preset}.items() if value is not None]
    if given:
        raise ValueError(f"--{given[0]} needs --train; without it nothing is trained")
    return _sample_demo(out or Path("demo"), own_meshes(mesh, up), seed, restart, quiet)


def _sample_demo(out: Path, own: Sequence[OwnMesh], seed: int, restart: bool, quiet: bool) -> int:
    """Generate shapes with the weights in the package."""
    from xcube.commands.report import PICTURES, draw_own_mesh, write_page  # slow to import, like the modules below
    from xcube.pipeline.checkpoint import fingerprint
    from xcube.pipeline.output import GALLERY, PAGE, SampleFolder
    from xcube.pipeline.packaged import packaged_model
    from xcube.pipeline.pipeline import XCubePipeline

    log = logger(quiet)
    model = fingerprint(packaged_model())
    prepare_demo(out, {"model": model, "seed": seed}, restart)
    log(f"sampling: {SAMPLES} shapes, seed {seed}")
    pipeline = XCubePipeline.from_pretrained().to("cuda" if torch.cuda.is_available() else "cpu")
    categories, folder = Names(pipeline.levels[0].categories), out / "samples"
    sample(None, folder, SAMPLES, categories, SampleOptions(seed=seed, quiet=quiet), restart=restart)
    shutil.copyfile(folder / GALLERY, out / GALLERY)
    (out / PICTURES).mkdir(exist_ok=True)
    samples = SampleFolder(folder)
    first = next(n for n in range(SAMPLES) if samples.levels(n)[-1].num_voxels)
    _draw_levels(samples.levels(first), out / PICTURES / "levels.png")
    if own:
        log(f"reconstructing: {len(own)} of your meshes, and making them again from their coarse voxels")
    meshes = [draw_own_mesh(pipeline, source, out) for source, _ in own]
    commands = _next_commands(folder / "levels" / "0" / samples.file(first).name)
    write_page(
        out / PAGE,
        title=f"XCube, {' and '.join(f'{n}^3' for n in pipeline.resolutions)} voxels",
        summary="Shapes generated from noise, level by level, with the weights in the package.",
        count=SAMPLES,
        pictured=True,
        levels=f"{samples.file(first).stem}, {categories[first % len(categories)]}",
        meshes=[
            (samples.file(n).stem, categories[n % len(categories)], f"samples/{samples.file(n).stem}.glb")
            for n in range(SAMPLES)
            if samples.file(n).with_suffix(".glb").is_file()
        ],
        own=meshes,
        commands=commands,
    )
    log("done")
    sys.stdout.write(f"open {out / PAGE} in a browser, or view {out / GALLERY}; meshes are in {folder}\n\nnext:\n")
    sys.stdout.write("".join(f"  {command}\n" for command in commands))
    return 0


def _draw_levels(levels: Sequence[Voxels], path: Path) -> None:
    """Write a picture of the levels of a shape, colored by their normals, and of its mesh."""
    from xcube.commands.report import size_title
    from xcube.pipeline.output import normal_colors

    mesh = to_mesh(levels[-1])
    row: list[Grid | Mesh] = [*(voxels.grid for voxels in levels), mesh]
    titles = [*map(size_title, levels), f"mesh of {len(mesh.faces):,} triangles"]
    render_row(row, path, titles=titles, colors=[*map(normal_colors, levels), None], width=TILE * len(row))


def _next_commands(coarse: Path) -> list[str]:
    """Commands for the next steps."""
    return shell_lines(
        ["sample", "--category", "chair", "--count", 4, "--out", "chairs"],
        ["sample", "--count", 64, "--seed", 1, "--out", "more"],
        ["upsample", coarse, "--count", 4, "--out", "finer"],
        ["demo", "--mesh", "chair.obj", "--out", "mine"],
        ["demo", "--train"],
    )
