"""Partial observations of shapes, at all levels of a cascade.

All grids hold one shape. N voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from sparsevox import Grid, Voxels, checks
from xcube.data.hierarchy import Box, build_hierarchy
from xcube.geometry.observation import children, inside_parts, states
from xcube.geometry.solids import Region, region_voxels
from xcube.networks.conditions import NO_FILL


@dataclass(frozen=True)
class Observation:
    """The known voxels of a shape at each level, coarse to fine.

    full: Voxels that exist, with attributes.
    empty: Voxels of space that are not in the shell.
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
        ImportError: If scipy is not installed.
        KeyError: If the voxels have no normals.
        TypeError: If `partial` is not Voxels, or a part of space or the position is of another type.
        ValueError: If no voxel is left, one is outside of the box, both known and unknown parts are given, or a part or
            the position is invalid.
    """
    if not isinstance(partial, Voxels):
        raise TypeError(f"partial must be Voxels, got {type(partial).__name__}")
    if "normal" not in partial.attributes:
        raise KeyError("partial must have normals, got none")
    if known and unknown:
        raise ValueError(f"known must be empty if there are unknown parts, got {len(known)} and {len(unknown)}")
    count = len(box.levels)
    spaces = [_all_voxels(box, level, partial.grid) for level in range(count)]
    # 1. The finest level.
    observed = _parts("known", known, box, spaces[-1])
    for part in _parts("unknown", unknown, box, spaces[-1]):
        partial = partial.prune(~part.contains(partial.grid.coords))
        observed = [space - part for space in observed or [spaces[-1]]]
    if not partial.num_voxels:
        raise ValueError("partial must have voxels outside of the unknown parts, got none")
    levels = [*build_hierarchy(partial, box, crop=True)[:-1], partial]
    grid = partial.grid
    rest = spaces[-1] - grid
    for part in observed:
        rest = rest - part
    if sensor is not None:
        rest = rest - seen_through(grid, sensor, box)
    # 2. Coarser levels. A coarse voxel exists if a finer voxel that its level is computed from does, and may exist if
    #    one of those is unknown.
    unsure = [rest]
    for level in reversed(range(count - 1)):
        unsure.insert(0, box.coarser(unsure[0], level))
    free = [s - u - voxels.grid for s, u, voxels in zip(spaces, unsure, levels, strict=True)]
    unsure = [(u & s) - voxels.grid for s, u, voxels in zip(spaces, unsure, levels, strict=True)]
    inner = [inside_parts(voxels, each) for voxels, each in zip(levels, free, strict=True)]
    # 3. The solid fraction of coarse voxels, if all of their finer voxels are known.
    for coarse, fine in pairwise(range(count)):
        ratio = box.levels[fine] // box.levels[coarse]
        factor = (ratio, ratio, ratio)
        filled = states(levels[coarse].grid.coords, factor, levels[fine].grid | inner[fine]) > 0  # [N, finer voxels]
        within = children(levels[coarse].grid.coords, factor)
        open_to = unsure[fine].contains(within.view(-1, 4)).view(filled.shape).any(1)
        levels[coarse] = levels[coarse].with_attributes(fill=torch.where(open_to, NO_FILL, filled.float().mean(1)))
    return Observation(tuple(levels), tuple(free), tuple(inner), tuple(unsure))


def seen_through(grid: Grid, sensor: Sequence[float], box: Box) -> Grid:
    """The voxels of a box on the lines from a position to the centers of voxels, without these voxels themselves.

    The lines are sampled twice per voxel, so voxels that a line only touches at a corner may be missing.

    Args:
        grid: The voxels that are seen.
        sensor: The position, in world units. It may lie outside of the box.
        box: The box.

    Raises:
        TypeError: If the position is not a sequence of numbers.
        ValueError: If it is not three finite numbers.
    """
    place = torch.tensor(checks.float_triple("sensor", sensor), dtype=torch.float64, device=grid.device)
    if not bool(place.isfinite().all()):
        raise ValueError(f"sensor must be finite, got {tuple(sensor)}")
    # 1. The part of each line in the box: from a voxel to where the line leaves the box or reaches the sensor.
    centers = grid.to_world(grid.ijk.double())  # [N, 3]
    lines = place - centers
    half = torch.tensor(box.size, dtype=torch.float64, device=grid.device) / 2
    exits = ((half * lines.sign() - centers) / lines).nan_to_num(nan=1.0, posinf=1.0, neginf=1.0)
    lines = lines * exits.amin(1, keepdim=True).clamp(0, 1)
    # 2. Points on it, half a voxel apart at most.
    steps = max(2, 2 * int((lines.norm(dim=1).max() / min(grid.voxel_size)).ceil()))
    found = grid.prune(torch.zeros(grid.num_voxels, dtype=torch.bool, device=grid.device))
    for fractions in torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=grid.device)[1:].split(64):
        points = (centers[:, None] + fractions[None, :, None] * lines[:, None]).reshape(-1, 3)
        found = found | Grid.from_points(points, voxel_size=grid.voxel_size, origin=grid.origin)
    return found - grid


def _parts(name: str, regions: Sequence[Region], box: Box, space: Grid) -> list[Grid]:
    """The voxels of the finest level in parts of space, which must overlap the box."""
    limits = [count // 2 + 1 for count in box.shape(len(box.levels) - 1)]
    parts = [region_voxels(f"{name}[{number}]", region, space, limits) for number, region in enumerate(regions)]
    for number, part in enumerate(parts):
        if not (part & space).num_voxels:
            raise ValueError(f"{name}[{number}] must overlap the box {box.size} around the origin, got a part outside")
    return parts


def _all_voxels(box: Box, level: int, like: Grid) -> Grid:
    """All voxels of the box at a level."""
    size = box.voxel_size(level)
    half = [count // 2 for count in box.shape(level)]
    return Grid.full([-n for n in half], half, voxel_size=size, origin=size / 2, device=like.device)
