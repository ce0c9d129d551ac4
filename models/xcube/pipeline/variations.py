"""Variants of a shape, and shapes between two others.

M latent voxels, L latent channels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from sparsevox import Grid, SparseTensor, Voxels, checks
from xcube.data.hierarchy import build_hierarchy
from xcube.diffusion.inversion import invert_flow
from xcube.diffusion.samplers import Hook
from xcube.pipeline.cascade import Cascade
from xcube.pipeline.inputs import check_cubes, full_box
from xcube.pipeline.options import Sample, SampleOptions, Start, shape_requests

Blend = Literal["noise", "latents"]


def variants(
    cascade: Cascade, shape: Voxels | Sample, strength: float, options: SampleOptions, numbers: Sequence[int]
) -> Iterator[Sample]:
    """Generate variants of a shape, and yield them one by one. Errors are raised by the call, not by iteration.

    The latents of its coarsest level get noise and are denoised again (SDEdit, Meng et al. 2022, arXiv:2108.01073); its
    finer levels are generated from the result.

    Args:
        cascade: The networks.
        shape: A sample, or voxels with attributes of the finest level.
        strength: Fraction of the sampling steps that are taken again, from 0 (none) to 1 (a new shape).
        options: Options of sampling.
        numbers: Number of each variant, on which its noise depends.

    Raises:
        KeyError: If the shape lacks an attribute that the VAE takes.
        TypeError: If `shape` is neither Voxels nor a Sample.
        ValueError: If `strength` is outside [0, 1], the shape cannot be used, or the latents of the first level do not
            fill a box.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in [0, 1], got {strength}")
    known = coarse_latents(cascade, shape)

    def start(grid: Grid, shapes: Sequence[int]) -> Start:
        return Start(_repeated(known, grid), strength)

    return cascade.stream(numbers, options.with_changes(starts={**options.starts, 0: start}))


def shapes_between(
    cascade: Cascade,
    first: Voxels | Sample,
    second: Voxels | Sample,
    count: int,
    options: SampleOptions,
    blend: Blend,
    number: int,
) -> Iterator[Sample]:
    """Generate shapes between two others, and yield them one by one. Errors are raised by the call, not by iteration.

    The finer levels of all of them are generated with the same noise.

    Args:
        cascade: The networks.
        first: A sample, or voxels with attributes of the finest level.
        second: Another one.
        count: Number of shapes, at least 2. The first and the last are the given ones, generated again.
        options: Options of sampling.
        blend: Interpolate on a great circle (Shoemake 1985) the "noise" from which the sampler makes the latents of the
            two (`invert_flow`), so that each shape between them is a sample; or their "latents".
        number: Number of the noise of the finer levels.

    Raises:
        KeyError: If a shape lacks an attribute that the VAE takes.
        TypeError: If a shape is neither Voxels nor a Sample, or `count` is not an integer.
        ValueError: If `count` is less than 2, `blend` is unknown, a shape cannot be used, the latents of the first
            level do not fill a box, or its denoiser does not predict a flow, which "noise" needs.
    """
    if checks.integer("count", count) < 2:
        raise ValueError(f"count must be at least 2, got {count}")
    if blend not in get_args(Blend):
        raise ValueError(f"blend must be one of {', '.join(get_args(Blend))}, got {blend!r}")
    if blend == "noise" and not cascade.levels[0].objective.is_flow:
        predicted = cascade.levels[0].diffusion.prediction
        raise ValueError(f"blend must be 'latents' for a denoiser that predicts {predicted}, no flow, got {blend!r}")
    ends = [coarse_latents(cascade, shape) for shape in (first, second)]
    cascade.stream([number] * count, options)  # raises errors of the options

    def generated() -> Iterator[Sample]:
        make = _coarse_from_noise if blend == "noise" else _coarse_from_latents
        coarse = make(cascade, ends[0], ends[1], torch.linspace(0, 1, count, dtype=torch.float64).tolist(), options)
        if len(cascade.levels) == 1:
            yield from (Sample((voxels,)) for voxels in coarse)
            return
        rest = options.within(cascade.levels, 1, len(cascade.levels))
        finer = cascade.stream([number] * count, rest, shape=Voxels.stack(coarse), level=1)
        yield from (Sample((voxels, *more.levels)) for voxels, more in zip(coarse, finer, strict=True))

    return generated()


def _coarse_from_latents(
    cascade: Cascade, first: Tensor, second: Tensor, weights: Sequence[float], options: SampleOptions
) -> list[Voxels]:
    """The coarsest level of shapes whose latents lie between two [M, L], with these weights of the second."""
    between = [on_great_circle(first, second, weight) for weight in weights]

    def start(grid: Grid, shapes: Sequence[int]) -> Start:
        return Start(SparseTensor(grid, torch.cat([between[shape] for shape in shapes]).to(grid.device)), 0.0)

    begun = replace(options.within(cascade.levels, 0, 1), starts={0: start}, hooks={})
    return [sample.finest for sample in cascade.stream(range(len(weights)), begun, last=0)]


def _coarse_from_noise(
    cascade: Cascade, first: Tensor, second: Tensor, weights: Sequence[float], options: SampleOptions
) -> list[Voxels]:
    """The coarsest level of samples whose noise lies between those of two latents [M, L]."""
    # 1. The noise from which the sampler makes the two latents.
    level, box = cascade.levels[0], full_box(cascade.levels[0])
    begun = replace(options.within(cascade.levels, 0, 1), starts={}, hooks={}, repeats=1)
    ends = begun.of_shapes((0, len(weights) - 1), len(weights))
    both = Voxels.stack([box, box]).to(cascade.device)
    requests = shape_requests([level], [0, 1], [box, box], ends, cascade.embed)
    sampler = ends.for_level(level)
    conditions, unconditional = cascade.conditions(0, sampler, ends, both, requests)
    noise = invert_flow(
        level.denoiser,
        SparseTensor(both.grid, torch.cat([first, second]).to(cascade.device)),
        diffusion=level.objective,
        sampler=sampler,
        conditions=conditions,
        unconditional=unconditional,
    )
    start, end = (each.feats.cpu() for each in noise.unbind())
    between = [on_great_circle(start, end, weight) for weight in weights]

    # 2. Samples from noise between them.
    def with_noise(grid: Grid, shapes: Sequence[int]) -> Hook:
        given = torch.cat([between[shape] for shape in shapes]).to(grid.device)
        is_first = iter([True])
        return lambda x, t: x.replace(given) if next(is_first, False) else x

    hooked = begun.with_hook(0, with_noise)
    return [sample.finest for sample in cascade.stream(range(len(weights)), hooked, last=0)]


def coarse_latents(cascade: Cascade, shape: Voxels | Sample) -> Tensor:
    """The latents of the coarsest level of a shape, scaled as those of its denoiser: [M, L], on the CPU.

    Raises:
        KeyError: If the shape lacks an attribute that the VAE takes.
        TypeError: If `shape` is neither Voxels nor a Sample.
        ValueError: If the shape cannot be used, or the latents of the first level do not fill a box.
    """
    level = cascade.levels[0]
    box = full_box(level)
    if isinstance(shape, Sample):
        coarse = shape.levels[0] if shape.first == 0 else None
        shape = shape.finest
    elif isinstance(shape, Voxels):
        coarse = None
    else:
        raise TypeError(f"shape must be Voxels or a Sample, got {type(shape).__name__}")
    if not shape.num_voxels:
        raise ValueError("shape must have voxels, got none")
    if coarse is None:
        check_cubes(cascade.voxel_sizes)
        fill = level.vae.config.fill
        coarse = build_hierarchy(shape.to("cpu"), cascade.box, fill=fill, crop=True)[0]
    with torch.no_grad():
        posterior = level.vae.encode(coarse.to(cascade.device))
    rows = posterior.grid.index(box.grid.coords.to(cascade.device))
    return (posterior.mean[rows] * level.latent_scale).cpu()


def _repeated(latents: Tensor, grid: Grid) -> SparseTensor:
    """The same latents [M, L] on each grid of a batch of full boxes."""
    return SparseTensor(grid, latents.to(grid.device).repeat(grid.batch_size, 1))


def on_great_circle(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Spherical linear interpolation of two tensors (Shoemake 1985), as vectors of all of their elements."""
    a, b = first.double(), second.double()
    cosine = ((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12)).clamp(-1, 1)
    angle = cosine.arccos()
    if float(angle.sin()) < 1e-6:  # on one line
        return torch.lerp(first, second, weight)
    made = (((1 - weight) * angle).sin() * a + (weight * angle).sin() * b) / angle.sin()
    return made.to(first.dtype)
