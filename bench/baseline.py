"""The voxel list: what a sparse-voxel library is without bricks, in plain torch, as good as people write it.

A set of voxels is a sorted list of distinct int64 keys, one per voxel: batch index above x, y, z with 18 bits each,
biased to be positive. A voxel is found by binary search. Neighbors are keys at a constant distance, so nothing has to
be decoded for them; voxels at the border of the range (and batches beyond 511) are not looked after.
N voxels, M other voxels.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

distinct: Callable[[Tensor], Tensor] = torch.unique  # sorts and removes duplicates

BIAS = 1 << 17
STEPS = (1 << 36, 1 << 18, 1)  # the distance of a neighbor along x, y, z
IJK = (1 << 54) - 1  # the bits below the batch index
BIASES = BIAS * sum(STEPS)
# No axis may hand its lowest bit to the next one when all three are halved at once.
HALVES = sum(((1 << 17) - 1) * step for step in STEPS)
TAPS = [x + y + z for x, y, z in itertools.product(*([-step, 0, step] for step in STEPS))]
CHILDREN = [x + y + z for x, y, z in itertools.product(*([0, step] for step in STEPS))]


class HasCoords(Protocol):
    """Anything that knows its voxels, such as a `sparsevox.Grid`."""

    @property
    def coords(self) -> Tensor:
        """Int [N, 4] = (b, i, j, k)."""


def pack(coords: Tensor) -> Tensor:
    """Keys int64 [N] of coordinates [N, 4], in the given order."""
    b, x, y, z = coords.long().unbind(1)
    return b << 54 | (x + BIAS) << 36 | (y + BIAS) << 18 | (z + BIAS)


def decode(keys: Tensor) -> Tensor:
    """Coordinates int32 [N, 4] of keys."""
    axes = [(keys >> shift & (2 * BIAS - 1)) - BIAS for shift in (36, 18, 0)]
    return torch.stack([keys >> 54, *axes], 1).int()


def keys_of(grid: HasCoords) -> Tensor:
    """The sorted keys of somebody else's voxels, to compare results with."""
    return pack(grid.coords).sort().values


def build(coords: Tensor) -> Tensor:
    """The list of the voxels that `coords` [N, 4] names, in any order and more than once."""
    return distinct(pack(coords))


def build_by_sort(coords: Tensor) -> Tensor:
    """The same with the two halves of `torch.unique` spelled out, which is faster on some machines."""
    keys: Tensor = torch.unique_consecutive(pack(coords).sort().values)
    return keys


def find(keys: Tensor, queries: Tensor) -> Tensor:
    """Rows int64 [M] of the queried keys in a list, -1 where absent."""
    rows = torch.searchsorted(keys, queries).clamp_(max=len(keys) - 1)
    return torch.where(keys[rows] == queries, rows, -1)


def contains(keys: Tensor, queries: Tensor) -> Tensor:
    """Whether a list has the queried keys: bool [M]."""
    return torch.eq(keys[torch.searchsorted(keys, queries).clamp_(max=len(keys) - 1)], queries)


def coarsen(keys: Tensor) -> Tensor:
    """The voxels floor(ijk / 2)."""
    return distinct((keys & ~IJK) | (keys >> 1 & HALVES) + BIASES // 2)


def subdivide(keys: Tensor) -> Tensor:
    """The eight children of every voxel."""
    first = (keys & ~IJK) | ((keys & IJK) - BIASES) * 2 + BIASES
    return (first[:, None] + keys.new_tensor(CHILDREN)).flatten().sort().values


def dilate(keys: Tensor) -> Tensor:
    """The voxels within the 3x3x3 box of any voxel: write down all 27 of each and merge."""
    return distinct(keys[:, None] + keys.new_tensor(TAPS))


def dilate_by_axes(keys: Tensor) -> Tensor:
    """The same axis by axis, 3 of each at a time."""
    for step in reversed(STEPS):
        keys = distinct(keys[:, None] + keys.new_tensor([-step, 0, step]))
    return keys


def erode(keys: Tensor) -> Tensor:
    """The voxels whose whole 3x3x3 box is there: axis by axis, on ever fewer voxels."""
    for step in reversed(STEPS):
        keys = keys[contains(keys, keys - step) & contains(keys, keys + step)]
    return keys


def union(a: Tensor, b: Tensor) -> Tensor:
    """The voxels of either list."""
    return distinct(torch.cat([a, b]))


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """The voxels of both lists."""
    return a[contains(b, a)]


def difference(a: Tensor, b: Tensor) -> Tensor:
    """The voxels of the first list that the second lacks."""
    return a[~contains(b, a)]


def prune(keys: Tensor, keep: Tensor) -> Tensor:
    """The voxels where `keep` [N] is True."""
    return keys[keep]


def crop(keys: Tensor, lower: tuple[int, int, int], upper: tuple[int, int, int]) -> Tensor:
    """The voxels inside a box, upper exclusive."""
    ijk = decode(keys)[:, 1:]
    return keys[((ijk >= ijk.new_tensor(lower)) & (ijk < ijk.new_tensor(upper))).all(1)]


def from_dense(mask: Tensor) -> Tensor:
    """The voxels where `mask` [B, X, Y, Z] is True; its corner is the voxel (0, 0, 0)."""
    return pack(mask.nonzero())


def neighbor_table(keys: Tensor) -> Tensor:
    """Row int32 [27, N] of the neighbor at every tap (dx slowest, dz fastest), -1 where absent: 26 searches."""
    table = torch.empty(27, len(keys), dtype=torch.int32, device=keys.device)
    for tap, step in enumerate(TAPS):
        table[tap] = find(keys, keys + step) if step else torch.arange(len(keys), device=keys.device)
    return table


def neighbor_table_by_symmetry(keys: Tensor) -> Tensor:
    """The same with 13 searches: if n is the neighbor of r at a tap, then r is the neighbor of n at the opposite."""
    rows = torch.arange(len(keys), dtype=torch.int32, device=keys.device)
    table = torch.full((27, len(keys)), -1, dtype=torch.int32, device=keys.device)
    table[13] = rows
    for tap in range(13):
        found = find(keys, keys + TAPS[tap])
        table[tap] = found
        there = found >= 0
        table[26 - tap, found[there]] = rows[there]
    return table


def strided(keys: Tensor) -> Tensor:
    """The voxels c of which a voxel 2 c - 1, 2 c or 2 c + 1 is there, on each axis: halves, rounded up and down."""
    sums = [x + y + z for x, y, z in itertools.product(*([0, step] for step in STEPS))]
    return distinct(torch.cat([(keys & ~IJK) | (keys + s >> 1 & HALVES) + BIASES // 2 for s in sums]))


def strided_table(keys: Tensor, coarse: Tensor, steps: Sequence[int]) -> Tensor:
    """Row int32 [K, M] of the voxel 2 c + step for every coarse voxel c and step, -1 where absent."""
    first = (coarse & ~IJK) | ((coarse & IJK) - BIASES) * 2 + BIASES
    return torch.stack([find(keys, first + step).int() for step in steps])
