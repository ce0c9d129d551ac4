"""`xcube demo`: a dataset, a trained cascade, samples and a page about them, in one command."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparsevox.files import atomic_write
from xcube.commands.list_types import Names
from xcube.commands.sample import sample
from xcube.data import Source, build, file_sources
from xcube.data.engines import cores
from xcube.data.hierarchy import Box
from xcube.networks.pretrained import digest
from xcube.pipeline.options import SampleOptions
from xcube.procedural.shapes import procedural_sources
from xcube.training.jobs import TrainingJob
from xcube.training.presets import preset_box, read_preset

OPTIONS = "demo.json"
SHAPES = {"demo": 1400, "small": 6000}  # in the dataset, by preset
SAMPLES = 64
OTHER_MINUTES = 3.0  # for everything but training
OWN = "yours"  # prefix of the names of the user's meshes


def demo(
    out: Path = Path("demo"),
    minutes: float | None = None,
    mesh: list[Path] = [],  # noqa: B006  (read only; the command line makes lists)
    preset: str | None = None,
    seed: int = 0,
    restart: bool = False,
    quiet: bool = False,
) -> int:
    """Build a dataset, train a cascade and generate shapes, in 15 minutes on two CPU cores, without downloads.

    The dataset has procedural chairs, tables, sofas, lamps, airplanes, cars, beds and cabinets, and the meshes of
    --mesh. For each level, a VAE, a denoiser and, if the preset has one, a refiner are trained on it. The HTML page
    shows the first 16 of 64 generated shapes; the metrics are of all 64. The same command resumes after an
    interruption.

    Args:
        out: Output folder; open its index.html.
        minutes: Approximate time limit in minutes, about three of them for everything but training. Less time gives
            rougher shapes.
        mesh: Mesh files to add to the training data. The page shows the first eight, reconstructed and upsampled from
            their coarse voxels.
        preset: Cascade to train: "demo" (16^3 and 64^3 voxels), or "small" (32^3 and 128^3), the default on a GPU.
        seed: Random seed of the samples.
        restart: Start from scratch, even if the folder holds results.
        quiet: Hide the progress.
    """
    chosen = preset or ("small" if torch.cuda.is_available() else "demo")
    jobs = read_preset(chosen)
    _check(jobs, minutes, seed)
    box, log = preset_box(jobs), _logger(quiet)
    sources = _sources(SHAPES.get(chosen, SHAPES["demo"]), box, mesh)
    for source, path in _from_files(sources):
        _check_mesh(source, path)
    _prepare_folder(
        out, {"preset": chosen, "meshes": {source.name: digest(path) for source, path in _from_files(sources)}}, restart
    )
    data, runs, samples = out / "data", out / "runs", out / "samples"

    log(f"data: {len(sources):,} shapes of {' and '.join(f'{n}^3' for n in box.levels)}")
    _build(sources, data, box, restart, quiet)

    log(f"training: {', '.join(job.name for job in jobs)}")
    from xcube.training.cascade import train_all  # slow to import, like the modules below

    limit = None if minutes is None else max(minutes - OTHER_MINUTES, minutes / 2)
    trained = train_all(data, runs, chosen, limit, restart=restart, quiet=quiet)

    log(f"sampling: {SAMPLES} shapes")
    from xcube.commands.demo_page import write_demo_page
    from xcube.pipeline.checkpoint import fingerprint
    from xcube.pipeline.output import SETTINGS

    existing = _read_json(samples / SETTINGS) or {}
    wanted = {"model": fingerprint(runs), "seed": seed, "min_component": 0.0}
    outdated = wanted != {name: existing.get(name) for name in wanted}
    options = SampleOptions(seed=seed, quiet=quiet)
    sample(runs, samples, SAMPLES, _categories(jobs), options, restart=restart or outdated)

    log("metrics and pictures")
    write_demo_page(out, trained, _from_files(sources), chosen, quiet)
    log("done")
    sys.stdout.write(
        f"open {out / 'index.html'} in a browser, or view {out / 'gallery.png'}; meshes are in {samples}\n"
    )
    return 0


def _check(jobs: Sequence[TrainingJob], minutes: float | None, seed: int) -> None:
    """Raise errors that would otherwise come only after training."""
    levels = range(max(job.level for job in jobs) + 1)
    missing = {f"{kind}-{level}" for kind in ("vae", "denoiser") for level in levels} - {job.name for job in jobs}
    if missing or len(levels) < 2:
        problem = f"no {', '.join(sorted(missing))}" if missing else "one level"
        raise ValueError(f"preset must have a VAE and a denoiser for each of at least two levels, got {problem}")
    if endless := [job.name for job in jobs if job.train.minutes is None]:
        raise ValueError(f"preset must have train.minutes for every network, got {', '.join(endless)} without")
    if minutes is not None and not minutes > 0:
        raise ValueError(f"minutes must be positive, got {minutes}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")


def _check_mesh(source: Source, path: Path) -> None:
    try:
        source.load()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be used: {error}") from error


def _categories(jobs: Sequence[TrainingJob]) -> Names | None:
    """The categories of the coarsest denoiser, None if it has none."""
    first = next(job for job in jobs if job.name == "denoiser-0")
    return Names(first.options["categories"]) if "categories" in first.options else None


def _sources(count: int, box: Box, mesh: Sequence[Path]) -> list[Source]:
    """Procedural shapes, and mesh files, which all belong to the training split."""
    own = [replace(source, name=f"{OWN}/{source.name}", split="train") for source in file_sources(mesh)] if mesh else []
    return [*procedural_sources(count, box), *own]


def _from_files(sources: Sequence[Source]) -> list[tuple[Source, Path]]:
    """The sources that are files, with their files."""
    return [(source, source.path) for source in sources if source.path is not None]


def _prepare_folder(out: Path, options: dict[str, Any], restart: bool) -> None:
    """Create the folder, or check that it holds a demo with these options."""
    file = out / OPTIONS
    existing = _read_json(file)
    if existing is None and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"out must be a new or empty folder, or that of a demo, got {out}")
    if existing is not None and existing != options and not restart:
        raise ValueError(
            f"{out} holds a demo of {existing}, not of {options}; use another folder, or restart from scratch"
        )
    if restart:
        from xcube.training.run_folder import prepare_folder  # slow to import

        for run in (out / "runs").glob("*"):  # a call after an interruption must not resume them
            prepare_folder(run, restart=True)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as written:
        written.write((json.dumps(options, indent=2) + "\n").encode())


def _build(sources: Sequence[Source], data: Path, box: Box, restart: bool, quiet: bool) -> None:
    """Build the dataset, or its missing shapes.

    Raises:
        ValueError: If a mesh of the user cannot be used.
    """
    report = build(
        sources,
        data,
        box,
        attributes=("normal", "fill"),
        outside="rescale",
        source="xcube.procedural.shapes, and files",
        workers=cores(),
        overwrite=restart,
        progress=not quiet,
    )
    for skipped in report.skipped:
        raise ValueError(f"{skipped.path or skipped.name} cannot be used: {skipped.reason}: {skipped.detail}")


def _read_json(file: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None if the file is missing or invalid."""
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _logger(quiet: bool) -> Callable[[str], None]:
    """A function that prints a line with the time since now."""
    start = time.monotonic()

    def log(text: str) -> None:
        if not quiet:
            minutes, seconds = divmod(round(time.monotonic() - start), 60)
            sys.stdout.write(f"[{minutes:2}:{seconds:02}] {text}\n")
            sys.stdout.flush()

    return log
