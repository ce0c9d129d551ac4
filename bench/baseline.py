"""The voxel list: the usual representation of sparse voxels in plain PyTorch, implemented as well as we can.

A set of voxels is a sorted list of distinct int64 keys, one per voxel: the batch index above x, y, z with 18 bits each,
biased to be positive. A voxel is found by binary search. Neighbors differ by a constant, so keys need not be decoded.
Voxels at the limits of the range and batches beyond 511 are not handled.
N voxels, M other voxels.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

distinct: Callable[[Tensor], Tensor] = torch.unique  # sorts and removes duplicates

BIAS = 1 << 17
STEPS = (1 << 36, 1 << 18, 1)  # difference to the key of the neighbor along x, y, z
IJK = (1 << 54) - 1  # the bits below the batch index
BIASES = BIAS * sum(STEPS)
# Mask that keeps the lowest bit of an axis from moving into the next one when all three are halved at once.
HALVES = sum(((1 << 17) - 1) * step for step in STEPS)
TAPS = [x + y + z for x, y, z in itertools.product(*([-step, 0, step] for step in STEPS))]
CHILDREN = [x + y + z for x, y, z in itertools.product(*([0, step] for step in STEPS))]


class HasCoords(Protocol):
    """Anything with coordinates, such as a `sparsevox.Grid`."""

    @property
    def coords(self) -> Tensor:
        """Coordinates (b, i, j, k), integers [N, 4]."""


def pack(coords: Tensor) -> Tensor:
    """Pack coordinates [N, 4] into keys int64 [N], in the given order."""
    b, x, y, z = coords.long().unbind(1)
    return b << 54 | (x + BIAS) << 36 | (y + BIAS) << 18 | (z + BIAS)


def decode(keys: Tensor) -> Tensor:
    """Unpack keys into coordinates int32 [N, 4]."""
    axes = [(keys >> shift & (2 * BIAS - 1)) - BIAS for shift in (36, 18, 0)]
    return torch.stack([keys >> 54, *axes], 1).int()


def keys_of(grid: HasCoords) -> Tensor:
    """Compute the sorted keys of a grid, to compare results."""
    return pack(grid.coords).sort().values


def build(coords: Tensor) -> Tensor:
    """Build the list of voxels from coordinates [N, 4] in any order, with repetitions."""
    return distinct(pack(coords))


def build_by_sort(coords: Tensor) -> Tensor:
    """Build the list with `sort` and `unique_consecutive`, which is faster than `unique` on some machines."""
    keys: Tensor = torch.unique_consecutive(pack(coords).sort().values)
    return keys


def find(keys: Tensor, queries: Tensor) -> Tensor:
    """Look up the rows of the queried keys in a list: int64 [M], -1 where absent."""
    rows = torch.searchsorted(keys, queries).clamp_(max=len(keys) - 1)
    return torch.where(keys[rows] == queries, rows, -1)


def contains(keys: Tensor, queries: Tensor) -> Tensor:
    """Check which of the queried keys are in a list: bool [M]."""
    return torch.eq(keys[torch.searchsorted(keys, queries).clamp_(max=len(keys) - 1)], queries)


def coarsen(keys: Tensor) -> Tensor:
    """Compute the voxels floor(ijk / 2)."""
    return distinct((keys & ~IJK) | (keys >> 1 & HALVES) + BIASES // 2)


def subdivide(keys: Tensor) -> Tensor:
    """Compute the eight children of every voxel."""
    first = (keys & ~IJK) | ((keys & IJK) - BIASES) * 2 + BIASES
    return (first[:, None] + keys.new_tensor(CHILDREN)).flatten().sort().values


def dilate(keys: Tensor) -> Tensor:
    """Compute all voxels in the 3x3x3 box of any voxel: list all 27 of each and merge."""
    return distinct(keys[:, None] + keys.new_tensor(TAPS))


def dilate_by_axes(keys: Tensor) -> Tensor:
    """Dilate one axis at a time, 3 voxels each."""
    for step in reversed(STEPS):
        keys = distinct(keys[:, None] + keys.new_tensor([-step, 0, step]))
    return keys


def erode(keys: Tensor) -> Tensor:
    """Keep the voxels whose whole 3x3x3 box exists, one axis at a time, on fewer and fewer voxels."""
    for step in reversed(STEPS):
        keys = keys[contains(keys, keys - step) & contains(keys, keys + step)]
    return keys


def union(a: Tensor, b: Tensor) -> Tensor:
    """Compute the voxels in either list."""
    return distinct(torch.cat([a, b]))


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Compute the voxels in both lists."""
    return a[contains(b, a)]


def difference(a: Tensor, b: Tensor) -> Tensor:
    """Compute the voxels in the first list but not in the second."""
    return a[~contains(b, a)]


def prune(keys: Tensor, keep: Tensor) -> Tensor:
    """Keep the voxels where `keep`, bool [N], is True."""
    return keys[keep]


def crop(keys: Tensor, lower: tuple[int, int, int], upper: tuple[int, int, int]) -> Tensor:
    """Keep the voxels in a box, upper limits exclusive."""
    ijk = decode(keys)[:, 1:]
    return keys[((ijk >= ijk.new_tensor(lower)) & (ijk < ijk.new_tensor(upper))).all(1)]


def from_dense(mask: Tensor) -> Tensor:
    """List the voxels where `mask`, bool [B, X, Y, Z], is True. Its corner is voxel (0, 0, 0)."""
    return pack(mask.nonzero())


def neighbor_table(keys: Tensor) -> Tensor:
    """Look up the neighbor at every tap (dx slowest, dz fastest) with 26 searches: rows int32 [27, N], -1 if absent."""
    table = torch.empty(27, len(keys), dtype=torch.int32, device=keys.device)
    for tap, step in enumerate(TAPS):
        table[tap] = find(keys, keys + step) if step else torch.arange(len(keys), device=keys.device)
    return table


def neighbor_table_by_symmetry(keys: Tensor) -> Tensor:
    """Look up all neighbors with 13 searches: if n is the neighbor of r at a tap, r is that of n at the opposite."""
    rows = torch.arange(len(keys), dtype=torch.int32, device=keys.device)
    table = torch.full((27, len(keys)), -1, dtype=torch.int32, device=keys.device)
    table[13] = rows
    for tap in range(13):
        found = find(keys, keys + TAPS[tap])
        table[tap] = found
        exists = found >= 0
        table[26 - tap, found[exists]] = rows[exists]
    return table


def strided(keys: Tensor) -> Tensor:
    """Compute the output voxels of a 3x3x3 convolution of stride 2: halved coordinates, rounded up and down."""
    sums = [x + y + z for x, y, z in itertools.product(*([0, step] for step in STEPS))]
    return distinct(torch.cat([(keys & ~IJK) | (keys + s >> 1 & HALVES) + BIASES // 2 for s in sums]))


def strided_table(keys: Tensor, coarse: Tensor, steps: Sequence[int]) -> Tensor:
    """Look up the voxel 2 c + step for every coarse voxel c and step: rows int32 [K, M], -1 where absent."""
    first = (coarse & ~IJK) | ((coarse & IJK) - BIASES) * 2 + BIASES
    return torch.stack([find(keys, first + step).int() for step in steps])
