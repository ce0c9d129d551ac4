"""`xcube demo`: a cascade from nothing, in one command."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparsevox.files import atomic_write
from xcube.commands.options import MIN_COMPONENT, Names
from xcube.commands.sample import sample
from xcube.data import Source, build, file_sources
from xcube.data.engines import cores
from xcube.data.hierarchy import Box
from xcube.networks.pretrained import digest
from xcube.pipeline.options import SampleOptions
from xcube.procedural.shapes import procedural_sources
from xcube.training.jobs import Part, box_of_parts, read_preset

OPTIONS = "demo.json"
SHAPES = {"demo": 1400, "small": 6000}  # of the data set
SAMPLES = 64
GUIDANCE = 1.25  # where classes are asked for
OTHER = 3.0  # minutes for everything but training
OWN = "yours"  # how the names of the user's meshes begin


def demo(
    out: Path = Path("demo"),
    minutes: float | None = None,
    mesh: list[Path] = [],  # noqa: B006  (read only; the command line makes lists)
    preset: str | None = None,
    seed: int = 0,
    restart: bool = False,
    quiet: bool = False,
) -> int:
    """Make a data set, train a cascade on it, and make new shapes: 15 minutes on two cores, and nothing to download.

    The data set is of chairs, tables, sofas, lamps, airplanes and cars by rule, and of meshes of yours. On it a VAE, a
    denoiser and what repairs are trained for each level. Of 64 new shapes the first 16 are shown, the others are for
    metrics. The same command goes on after an interruption, and makes only what is missing.

    Args:
        out: folder of all of it; index.html shows it
        minutes: how long it may take, about; fewer make rougher shapes, and three are for all but training
        mesh: meshes of yours, to be learned from; the first eight are reconstructed, and made again from coarse voxels
        preset: demo, 16^3 and then 64^3; or small, 32^3 and then 128^3, which is taken where there is a GPU
        seed: of the new shapes
        restart: begin anew, whatever is in the folder
        quiet: show no progress
    """
    chosen = preset or ("small" if torch.cuda.is_available() else "demo")
    parts = read_preset(chosen)
    _check(parts, minutes, seed)
    box, say = box_of_parts(parts), _speaker(quiet)
    sources = _sources(SHAPES.get(chosen, SHAPES["demo"]), box, mesh)
    for source, path in _own(sources):
        _check_mesh(source, path)
    _begin(out, {"preset": chosen, "meshes": {source.name: digest(path) for source, path in _own(sources)}}, restart)
    data, runs, samples = out / "data", out / "runs", out / "samples"

    say(f"data: {len(sources):,} shapes of {' and '.join(f'{n}^3' for n in box.levels)}")
    _build(sources, data, box, restart, quiet)

    say(f"training: {', '.join(part.name for part in parts)}")
    from xcube.training.cascade import train_all  # slow to import, as what samples and paints

    limit = None if minutes is None else max(minutes - OTHER, minutes / 2)
    trained = train_all(data, runs, chosen, limit, restart=restart, quiet=quiet)

    say(f"sampling: {SAMPLES} shapes")
    from xcube.pipeline.checkpoint import fingerprint
    from xcube.pipeline.output import SETTINGS

    there = _read(samples / SETTINGS)
    wanted = {"model": fingerprint(runs), "seed": seed, "min_component": MIN_COMPONENT}
    anew = restart or wanted != {name: (there or {}).get(name) for name in wanted}
    asked = _categories(parts)
    weight = GUIDANCE if asked else 1.0
    # Noise on the way corrects the errors of a fine network that trained for minutes: flatter, and fewer loose parts.
    # The coarse one is a flow, which has its own sampler.
    options = SampleOptions(seed=seed, guidance=weight, sampler="ddpm", min_component=MIN_COMPONENT, quiet=quiet)
    sample(runs, samples, SAMPLES, asked, options, restart=anew)

    say("figures and pictures")
    from xcube.commands.demo_page import show

    show(out, trained, _own(sources), chosen, quiet)
    say("done")
    sys.stdout.write(f"open {out / 'index.html'}, or look at {out / 'gallery.png'}; meshes are in {samples}\n")
    return 0


def _check(parts: Sequence[Part], minutes: float | None, seed: int) -> None:
    """What would else be found out after training."""
    levels = range(max(part.level for part in parts) + 1)
    lacking = {f"{kind}-{level}" for kind in ("vae", "denoiser") for level in levels} - {part.name for part in parts}
    if lacking or len(levels) < 2:
        told = f"lack of {', '.join(sorted(lacking))}" if lacking else "one"
        raise ValueError(f"preset must have a VAE and a denoiser for each of two levels or more, got {told}")
    if endless := [part.name for part in parts if part.train.minutes is None]:
        raise ValueError(f"preset must have train.minutes in every part, got {', '.join(endless)} without")
    if minutes is not None and not minutes > 0:
        raise ValueError(f"minutes must be positive, got {minutes}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")


def _check_mesh(source: Source, path: Path) -> None:
    try:
        source.load()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be used: {error}") from error


def _categories(parts: Sequence[Part]) -> Names | None:
    """What the first denoiser can be asked for, all in turn; None if there is nothing."""
    first = next(part for part in parts if part.name == "denoiser-0")
    return Names(first.options["categories"]) if "categories" in first.options else None


def _sources(count: int, box: Box, mesh: Sequence[Path]) -> list[Source]:
    """Shapes by rule, and files, all of which are learned from."""
    own = [replace(source, name=f"{OWN}/{source.name}", split="train") for source in file_sources(mesh)] if mesh else []
    return [*procedural_sources(count, box), *own]


def _own(sources: Sequence[Source]) -> list[tuple[Source, Path]]:
    """Those of files, with their files."""
    return [(source, source.path) for source in sources if source.path is not None]


def _begin(out: Path, options: dict[str, Any], restart: bool) -> None:
    """Make the folder, or see that it is of a demo with these options."""
    file = out / OPTIONS
    there = _read(file)
    if there is None and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"out must be a new or empty folder, or that of a demo, got {out}")
    if there is not None and there != options and not restart:
        raise ValueError(
            f"{out} holds a demo of {there}, not of {options}; take another folder, or begin anew: restart"
        )
    if restart:
        from xcube.training.run_folder import prepare  # slow to import

        for run in (out / "runs").glob("*"):  # a call after an interruption must not take them for its own
            prepare(run, restart=True)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as written:
        written.write((json.dumps(options, indent=2) + "\n").encode())


def _build(sources: Sequence[Source], data: Path, box: Box, restart: bool, quiet: bool) -> None:
    """Build the data set, or what it lacks.

    Raises:
        ValueError: If a mesh of the user cannot be used.
    """
    report = build(
        sources,
        data,
        box,
        outside="rescale",
        source="xcube.procedural.shapes, and files",
        workers=cores(),
        overwrite=restart,
        progress=not quiet,
    )
    for skipped in report.skipped:
        raise ValueError(f"{skipped.path or skipped.name} cannot be used: {skipped.reason}: {skipped.detail}")


def _read(file: Path) -> dict[str, Any] | None:
    """A JSON file, None if there is none or it is none."""
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _speaker(quiet: bool) -> Callable[[str], None]:
    """What says, with the time since now, what is done next."""
    start = time.monotonic()

    def say(text: str) -> None:
        if not quiet:
            minutes, seconds = divmod(round(time.monotonic() - start), 60)
            sys.stdout.write(f"[{minutes:2}:{seconds:02}] {text}\n")
            sys.stdout.flush()

    return say
