"""Completion: whole shapes from a part of one (section 4 of the paper).

The coarsest level is completed by its denoiser, from what was observed; finer levels are generated from it. At each
level, observed voxels are put in, and the shell of the result is closed.

M latent voxels, L latent channels. All grids of an observation hold one shape.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from sparsevox import Grid, SparseTensor, Voxels
from xcube.data.hierarchy import Box, build_hierarchy
from xcube.diffusion.objective import Noise
from xcube.diffusion.samplers import Hook, keep_known_latents
from xcube.geometry.normals import estimated_normals
from xcube.geometry.observation import inside_parts, states
from xcube.geometry.shell import certain_parts
from xcube.geometry.solids import Region, region_voxels, solid, surface
from xcube.networks.conditions import NO_FILL, Conditions
from xcube.pipeline.cascade import Cascade
from xcube.pipeline.inputs import full_box
from xcube.pipeline.level import Level
from xcube.pipeline.options import Sample, SampleOptions

Method = Literal["trained", "resampling"]
REPEATS = 4  # of each step, by default, to resample


@dataclass(frozen=True)
class Observation:
    """What is known of a shape, at each level, coarse to fine.

    full: Voxels that are known to exist, with attributes.
    empty: Voxels of space that are known not to be in the shell.
    inside: Those of them that lie inside of the shape.
    unknown: All other voxels of the box.
    """

    full: tuple[Voxels, ...]
    empty: tuple[Grid, ...]
    inside: tuple[Grid, ...]
    unknown: tuple[Grid, ...]


def observation(
    partial: Voxels,
    box: Box,
    *,
    known: Sequence[Region] = (),
    unknown: Sequence[Region] = (),
    sensor: Sequence[float] | None = None,
) -> Observation:
    """Describe a partial observation at all levels of a cascade.

    Args:
        partial: Observed voxels of the finest level, with normals.
        box: The box of the cascade, with its levels.
        known: Parts of space that were observed completely: there, no other voxels of the shell exist.
        unknown: Parts of space to generate: voxels there are left out, and all other space was observed completely.
        sensor: Position from which the voxels were seen, in world units: the space before them is empty.

    Raises:
        KeyError: If the voxels have no normals.
        ValueError: If no voxel is left, one is outside of the box, both known and unknown parts are given, or a part or
            the position is invalid.
    """
    if "normal" not in partial.attributes:
        raise KeyError("partial must have normals, got none")
    if known and unknown:
        raise ValueError(f"known must be empty if there are unknown parts, got {len(known)} and {len(unknown)}")
    # 1. The finest level.
    limits = [count // 2 + 1 for count in box.shape(len(box.levels) - 1)]
    space = _all_voxels(box, -1, partial.grid)
    to_generate = [region_voxels(f"unknown[{n}]", each, space, limits) for n, each in enumerate(unknown)]
    for part in to_generate:
        if not (part & space).num_voxels:
            raise ValueError(f"unknown must overlap the box {box.size} around the origin, got a part outside")
        partial = partial.prune(~part.contains(partial.grid.coords))
    if not partial.num_voxels:
        raise ValueError("partial must have voxels outside of the unknown parts, got none")
    levels = [*build_hierarchy(partial, box, outside="error")[:-1], partial]
    grid = partial.grid
    empty = Grid.empty(1, voxel_size=grid.voxel_size, origin=grid.origin, device=grid.device)
    for number, region in enumerate(known):
        empty = empty | region_voxels(f"known[{number}]", region, grid, limits)
    if to_generate:
        empty = space
        for part in to_generate:
            empty = empty - part
    if sensor is not None:
        empty = empty | seen_through(grid, sensor)
    rest = [space - grid - empty]
    # 2. Coarser levels. A coarse voxel is full if a finer one of its neighborhood (early dilation) is, and may be so if
    #    one of these is unknown.
    for number in reversed(range(len(box.levels) - 1)):
        rest.insert(0, box.coarser(rest[0], number))
    spaces = [_all_voxels(box, number, partial.grid) for number in range(len(box.levels))]
    free = [s - u - voxels.grid for s, u, voxels in zip(spaces, rest, levels, strict=True)]
    rest = [(u & s) - voxels.grid for s, u, voxels in zip(spaces, rest, levels, strict=True)]
    inner = [inside_parts(voxels, each) for voxels, each in zip(levels, free, strict=True)]
    # 3. The solid fraction of coarse voxels of which all finer ones are known.
    for number, (coarse, fine) in enumerate(pairwise(range(len(levels)))):
        ratio = box.levels[fine] // box.levels[coarse]
        filled = states(levels[coarse].grid, (ratio, ratio, ratio), levels[fine].grid | inner[fine]) > 0
        levels[number] = levels[coarse].with_attributes(fill=filled.float().mean(1))
    levels[-1] = levels[-1].with_attributes(fill=torch.ones(grid.num_voxels, device=grid.device))
    return Observation(tuple(levels), tuple(free), tuple(inner), tuple(rest))


def seen_through(grid: Grid, sensor: Sequence[float]) -> Grid:
    """The voxels on the lines from a position to the centers of voxels, without these voxels themselves.

    Raises:
        ValueError: If the position is not three finite numbers.
    """
    place = torch.tensor([float(x) for x in sensor], dtype=torch.float64, device=grid.device)
    if place.shape != (3,) or not bool(place.isfinite().all()):
        raise ValueError(f"sensor must be a position of three numbers, got {tuple(sensor)}")
    centers = grid.to_world(grid.ijk.double())  # [N, 3]
    lines = place - centers
    size = min(grid.voxel_size)
    steps = int((lines.norm(dim=1).max() / size).ceil()) * 2
    fractions = torch.linspace(0, 1, max(steps, 2), dtype=torch.float64, device=grid.device)[1:]
    found = Grid.empty(1, voxel_size=grid.voxel_size, origin=grid.origin, device=grid.device)
    reach = 2.0  # a box of edge 1 lies within this distance of the origin
    for part in fractions.split(64):
        at = centers[:, None] + part[None, :, None] * lines[:, None]  # [N, P, 3]
        at = at.reshape(-1, 3)
        at = at[(at.abs() < reach).all(1)]
        found = found | Grid.from_points(at, voxel_size=grid.voxel_size, origin=grid.origin)
    return found - grid


def completed(
    cascade: Cascade,
    observed: Observation,
    options: SampleOptions,
    numbers: Sequence[int],
    method: Method | None = None,
) -> Iterator[Sample]:
    """Generate whole shapes from an observation, one by one. Errors are raised by the call, not by iteration.

    Args:
        cascade: The networks.
        observed: The observation, with the levels of the cascade.
        options: Options of sampling.
        numbers: Number of each shape, on which its noise depends.
        method: How the coarsest level is completed: "trained", by a denoiser that takes observations; "resampling", by
            any denoiser, whose latents are replaced where they are known (`keep_known_latents`), with each step taken
            four times if the options do not say otherwise. By default "trained" where the denoiser can do it.

    Raises:
        ValueError: If the method is unknown, or the denoiser of the first level takes no observations, which "trained"
            needs; or options do not fit.
    """
    first = cascade.levels[0]
    can = bool(first.denoiser.config.observed)
    chosen: Method = method or ("trained" if can else "resampling")
    if chosen not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if chosen == "trained" and not can:
        raise ValueError("method must be 'resampling' for a denoiser that takes no observations, got 'trained'")
    begun = options.within(cascade.levels, 0, 1)
    if chosen == "trained":
        seen = states(full_box(first).grid, first.vae.config.factor, observed.full[0].grid, observed.empty[0])
        begun = replace(begun, conditions={0: partial(_with_observation, seen)})
    else:
        repeats = REPEATS if options.repeats is None else options.repeats
        keep = partial(_keep_known, first, observed, 0, options.seed)
        begun = replace(begun, hooks={0: keep}, repeats=repeats)
    coarsest = cascade.stream(numbers, begun, last=0)

    def generated() -> Iterator[Sample]:
        for start in range(0, len(numbers), options.batch_size):
            some = numbers[start : start + options.batch_size]
            found = [[_put_in(observed, 0, sample.finest)] for sample in islice(coarsest, len(some))]
            for level in range(1, len(cascade.levels)):
                keep = partial(_keep_known, cascade.levels[level], observed, level, options.seed)
                hooked = replace(options.within(cascade.levels, level, level + 1), hooks={level: keep})
                coarse = Voxels.stack([levels[-1] for levels in found])
                made = cascade.stream(some, hooked, shape=coarse, level=level, last=level)
                for levels, sample in zip(found, made, strict=True):
                    levels.append(joined_with_observation(observed, level, sample.finest))
            yield from (Sample(tuple(levels)) for levels in found)

    return generated()


def joined_with_observation(observed: Observation, level: int, generated: Voxels) -> Voxels:
    """The observed voxels of a level, and generated ones where nothing is known, as one closed shell.

    The solid of the result is that of the generated shape in unknown space. In known space it follows from the observed
    voxels and their normals.

    Args:
        observed: The observation.
        level: Number of the level.
        generated: Generated voxels of this level.
    """
    full, empty = observed.full[level], observed.empty[level]
    # 1. The solid: generated in unknown space, known elsewhere.
    whole = (solid(generated.grid) - empty) | full.grid | observed.inside[level]
    # 2. Its shell, with the rest of the generated shell, as far as it is connected with it.
    outer = surface(whole)
    every = outer | full.grid | (generated.grid - empty)
    chosen = torch.ones(every.num_voxels, dtype=torch.bool, device=every.device)
    connected = every.prune(certain_parts(every, chosen, outer.contains(every.coords)))
    # 3. Attributes.
    return _with_attributes(connected | full.grid, full, generated, whole)


def _put_in(observed: Observation, level: int, generated: Voxels) -> Voxels:
    """Generated voxels of a level without those that are known to be empty, and with the observed ones."""
    full = observed.full[level]
    grid = (generated.grid - observed.empty[level]) | full.grid
    return _with_attributes(grid, generated, full, grid)


def _with_attributes(grid: Grid, first: Voxels, second: Voxels, whole: Grid) -> Voxels:
    """A shell with the attributes of the first shape that has a voxel, and estimated ones in other voxels."""
    rows = [each.grid.index(grid.coords) for each in (first, second)]
    made: dict[str, Tensor] = {}
    for name in second.attributes.keys() | first.attributes.keys():
        has = [each for each in (first, second) if name in each.attributes]
        like = has[0].attributes[name]
        if name == "normal":
            value = estimated_normals(whole)[whole.index(grid.coords)].to(like.dtype)
        elif name == "fill":
            value = torch.full((grid.num_voxels,), NO_FILL, dtype=like.dtype, device=like.device)
        else:
            value = like[has[0].grid.nearest(grid.to_world(grid.ijk.double()))]
        for each, row in reversed(list(zip((first, second), rows, strict=True))):
            if name in each.attributes and each.num_voxels:
                picked = each.attributes[name][row.clamp(min=0)].to(value.dtype)
                value = torch.where((row >= 0).view(-1, *[1] * (value.ndim - 1)), picked, value)
        made[name] = value
    return Voxels(grid, made)


def _with_observation(seen: Tensor, conditions: Conditions, grid: Grid, shapes: Sequence[int]) -> Conditions:
    """Conditions with the same observation of each shape of a batch."""
    return replace(conditions, observed=seen.to(grid.device).repeat(grid.batch_size, 1))


def _keep_known(
    level: Level, observed: Observation, number: int, seed: int, grid: Grid, shapes: Sequence[int]
) -> Hook | None:
    """Make a hook that keeps latents whose voxels are all known, with those around them."""
    known = ~_reached(observed.unknown[number], level, grid)
    if not bool(known.any()):
        return None
    coords = grid.coords.clone()
    coords[:, 0] = 0  # all shapes have the same observation
    full = observed.full[number]
    with torch.no_grad():
        posterior = level.vae.encode(full.to(grid.device))
    rows = posterior.grid.index(coords)
    latents = posterior.mean[rows.clamp(min=0)] * level.latent_scale
    noise = Noise(seed, shapes, number)(grid, latents.shape[1])
    return keep_known_latents(level.objective, SparseTensor(grid, latents), known & (rows >= 0), noise)


def _reached(unknown: Grid, level: Level, grid: Grid) -> Tensor:
    """Whether each latent voxel [M] has an unknown voxel, or is next to one that has."""
    latent = unknown.coarsen(level.vae.config.factor)
    coords = grid.coords.clone()
    coords[:, 0] = 0
    margin = latent if level.vae.config.dense_neck is not None else latent.dilate(1)
    return margin.to(grid.device).contains(coords)


def _all_voxels(box: Box, level: int, like: Grid) -> Grid:
    """All voxels of the box at a level."""
    size = box.voxel_size(level)
    half = [count // 2 for count in box.shape(level % len(box.levels))]
    return Grid.full([-n for n in half], half, voxel_size=size, origin=size / 2, device=like.device)
