"""`xcube demo --train`: a dataset, a trained cascade, samples and a page about them."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from xcube.commands.demo_folder import logger, other_samples, own_meshes, prepare_demo
from xcube.commands.demo_page import write_demo_page
from xcube.commands.list_types import Names
from xcube.commands.sample import sample
from xcube.data import Source, build
from xcube.data.axes import Up
from xcube.data.engines import cores
from xcube.data.hierarchy import Box
from xcube.networks.pretrained import digest
from xcube.pipeline.options import SampleOptions
from xcube.procedural.shapes import procedural_sources
from xcube.training.cascade import train_all
from xcube.training.jobs import TrainingJob
from xcube.training.presets import preset_box, read_preset
from xcube.training.run_folder import prepare_folder

SHAPES = {"demo": 1400, "small": 6000}  # in the dataset, by preset
SAMPLES = 64
OTHER_MINUTES = 3.0  # for everything but training


def train_demo(
    out: Path,
    minutes: float | None,
    mesh: Sequence[Path],
    up: Up,
    preset: str | None,
    seed: int,
    restart: bool,
    quiet: bool,
) -> int:
    """Build a dataset, train a cascade and generate shapes. The arguments are those of `xcube demo`."""
    chosen = preset or ("small" if torch.cuda.is_available() else "demo")
    jobs = read_preset(chosen)
    _check(jobs, minutes)
    box, log = preset_box(jobs), logger(quiet)
    own = own_meshes(mesh, up, box)
    sources = [*procedural_sources(SHAPES.get(chosen, SHAPES["demo"]), box), *(source for source, _ in own)]
    made_of: dict[str, Any] = {"preset": chosen, "meshes": {source.name: digest(path) for source, path in own}}
    prepare_demo(out, made_of | ({"up": up} if up != "z" else {}), restart)
    if restart:
        for run in (out / "runs").glob("*"):  # a call after an interruption must not resume them
            prepare_folder(run, restart=True)
    data, runs, samples = out / "data", out / "runs", out / "samples"

    log(f"data: {len(sources):,} shapes of {' and '.join(f'{n}^3' for n in box.levels)}")
    _build(sources, data, box, restart, quiet)

    log(f"training: {', '.join(job.name for job in jobs)}")
    limit = None if minutes is None else max(minutes - OTHER_MINUTES, minutes / 2)
    trained = train_all(data, runs, chosen, limit, restart=restart, quiet=quiet)

    log(f"sampling: {SAMPLES} shapes")
    again, options = restart or other_samples(samples, runs, seed), SampleOptions(seed=seed, quiet=quiet)
    sample(runs, out=samples, count=SAMPLES, category=_categories(jobs), options=options, restart=again)

    log("metrics and pictures")
    write_demo_page(out, trained, own, chosen, up, quiet)
    log("done")
    sys.stdout.write(
        f"open {out / 'index.html'} in a browser, or view {out / 'gallery.png'}; meshes are in {samples}\n"
    )
    return 0


def _check(jobs: Sequence[TrainingJob], minutes: float | None) -> None:
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


def _categories(jobs: Sequence[TrainingJob]) -> Names | None:
    """The categories of the coarsest denoiser, None if it has none."""
    first = next(job for job in jobs if job.name == "denoiser-0")
    return Names(first.options["categories"]) if "categories" in first.options else None


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
