"""`xcube sample` and `xcube upsample`: new shapes."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from sparsevox import Voxels
from sparsevox.io import load_voxels
from xcube.commands.options import Names
from xcube.data.hierarchy import Box, build_hierarchy
from xcube.data.sources import load_shape
from xcube.networks.pretrained import digest

if TYPE_CHECKING:
    from xcube.pipeline.options import Sample
    from xcube.pipeline.output import SampleFolder
    from xcube.pipeline.pipeline import XCubePipeline

Kind = Literal["ddim", "ddpm", "dpm++"]
VOXELS = (".npz", ".npy")


def sample(
    model: Path,
    out: Path = Path("samples"),
    count: int = 16,
    seed: int = 0,
    steps: int = 50,
    text: str | None = None,
    category: Names | None = None,
    guidance: float = 1.0,
    sampler: Kind = "ddim",
    min_component: float = 0.0,
    batch_size: int = 16,
    budget: int = 500_000,
    device: str = "auto",
    restart: bool = False,
    quiet: bool = False,
) -> int:
    """Make new shapes with the networks of a folder: voxels, meshes, a picture and a page.

    Every shape is written as soon as it is finished. The same command goes on after an interruption, or with a larger
    count, and leaves finished shapes as they are.

    Args:
        model: folder of a pipeline, or one with the runs vae-0, denoiser-0, refiner-0, vae-1 and so on
        out: folder for the shapes
        count: how many shapes
        seed: of the noise; a shape follows from it and its number
        steps: of the sampler, at each level
        text: what the shapes should be, for models that read texts
        category: the same, for models that know classes; several, as chair,lamp, are taken in turn
        guidance: weight of text and category; 1 is none
        sampler: how to sample; networks that predict flows have their own way
        min_component: remove, at each level, loose parts of less than this share of a shape, as 0.01
        batch_size: shapes of a batch, at most
        budget: voxels of a batch, at most
        device: cpu, cuda, or auto, a GPU if there is one
        restart: begin anew, whatever shapes are in the folder
        quiet: show no progress bar
    """
    from xcube.diffusion.samplers import SamplerConfig
    from xcube.pipeline.checkpoint import fingerprint
    from xcube.pipeline.output import SampleFolder

    pipeline = _pipeline(model, count, device)
    chosen = SamplerConfig(sampler, steps=steps, guidance=guidance)
    told: dict[str, Any] = {"seed": seed, "text": text, "sampler": chosen, "min_component": min_component}
    split: dict[str, Any] = {"batch_size": batch_size, "budget": budget, "quiet": quiet}

    def make(numbers: Sequence[int]) -> Iterator["Sample"]:
        return pipeline.stream(numbers, category=_in_turn(category, numbers), **told, **split)

    make(range(len(category or [0])))  # errors come before the folder is made
    settings = {"model": fingerprint(model), "category": category} | told | {"sampler": asdict(chosen)}
    return _fill(SampleFolder(out, settings, restart=restart), count, make)


def upsample(
    file: Path,
    model: Path,
    level: int | None = None,
    out: Path = Path("upsampled"),
    count: int = 1,
    seed: int = 0,
    steps: int = 50,
    text: str | None = None,
    category: Names | None = None,
    guidance: float = 1.0,
    sampler: Kind = "ddim",
    min_component: float = 0.0,
    batch_size: int = 16,
    budget: int = 500_000,
    device: str = "auto",
    restart: bool = False,
    quiet: bool = False,
) -> int:
    """Make finer shapes out of coarse voxels with the networks of a folder: voxels, meshes, a picture and a page.

    Normals that a network needs are estimated where the voxels have none. The same command goes on after an
    interruption.

    Args:
        file: voxels of one shape, .npz or .npy; or a mesh or points, which are made as coarse as the level wants
        model: folder of a pipeline, or one with the runs vae-0, denoiser-0, refiner-0, vae-1 and so on
        level: which level makes the first finer voxels; for voxels the one that their size says, else 1
        out: folder for the shapes
        count: how many variants
        seed: of the noise; a variant follows from it and its number
        steps: of the sampler, at each level
        text: what the shapes should be, for models that read texts
        category: the same, for models that know classes; several, as chair,lamp, are taken in turn
        guidance: weight of text and category; 1 is none
        sampler: how to sample; networks that predict flows have their own way
        min_component: remove, at each level, loose parts of less than this share of a shape, as 0.01
        batch_size: shapes of a batch, at most
        budget: voxels of a batch, at most
        device: cpu, cuda, or auto, a GPU if there is one
        restart: begin anew, whatever shapes are in the folder
        quiet: show no progress bar
    """
    from xcube.diffusion.samplers import SamplerConfig
    from xcube.pipeline.checkpoint import fingerprint
    from xcube.pipeline.output import SampleFolder

    pipeline = _pipeline(model, count, device)
    voxels = _coarse(file, pipeline, level)
    chosen = SamplerConfig(sampler, steps=steps, guidance=guidance)
    told: dict[str, Any] = {"seed": seed, "text": text, "sampler": chosen, "min_component": min_component}
    split: dict[str, Any] = {"batch_size": batch_size, "budget": budget, "quiet": quiet}
    where: dict[str, Any] = {"begin": voxels, "level": level}

    def make(numbers: Sequence[int]) -> Iterator["Sample"]:
        return pipeline.stream(numbers, category=_in_turn(category, numbers), **where, **told, **split)

    make(range(len(category or [0])))
    settings = {"model": fingerprint(model), "file": digest(file), "level": level, "category": category} | told
    return _fill(SampleFolder(out, settings | {"sampler": asdict(chosen)}, restart=restart), count, make)


def _in_turn(category: Sequence[str] | None, numbers: Sequence[int]) -> list[str] | None:
    """The category of each shape, by its number."""
    return [category[number % len(category)] for number in numbers] if category else None


def _pipeline(model: Path, count: int, device: str) -> "XCubePipeline":
    """The pipeline of a folder on a device, after a look at what costs nothing."""
    from xcube.pipeline.pipeline import XCubePipeline  # its schedulers are slow to import, and other commands need none

    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # what torch raises where there is none
        raise ValueError(f"device must be one of this machine, got {device!r}: {error}") from error
    return XCubePipeline.from_pretrained(model).to(device)


def _coarse(file: Path, pipeline: "XCubePipeline", level: int | None) -> Voxels:
    """The shape of a file, as coarse as a level wants it."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file")
    if file.suffix.lower() in VOXELS:
        voxels = load_voxels(file)
        if voxels.batch_size != 1:
            raise ValueError(f"{file} must hold one shape, got {voxels.batch_size}")
        return voxels
    number = 1 if level is None else level
    if not 1 <= number < len(pipeline.stages):
        raise ValueError(f"level must lie in [1, {len(pipeline.stages)}) for a mesh or points, got {number}")
    return build_hierarchy(load_shape(file), Box(pipeline.resolutions, pipeline.size), outside="rescale")[number - 1]


def _fill(folder: "SampleFolder", count: int, make: Callable[[Sequence[int]], Iterator["Sample"]]) -> int:
    """Make the shapes of a folder that are missing, and pictures of all."""
    from xcube.pipeline.output import GALLERY, PAGE

    missing = folder.missing(count)
    if missing:
        (folder.path / PAGE).unlink(missing_ok=True)  # it shows fewer
        for number, made in zip(missing, make(missing), strict=True):
            folder.write(number, made)
    if missing or not (folder.path / PAGE).is_file():
        folder.show(count, folder.path.name)
    there = f", {count - len(missing)} were there already" if len(missing) < count else ""
    sys.stdout.write(f"{len(missing)} shapes made{there}\n")
    if (folder.path / PAGE).is_file():
        sys.stdout.write(f"look at {folder.path / GALLERY}, or open {folder.path / PAGE}\n")
    return 0
