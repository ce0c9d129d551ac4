"""Dilation and erosion of sets of voxels by a set of offsets."""

from collections.abc import Collection, Iterable, Sequence
from itertools import product

from sparsevox.testing import Voxel

Offset = tuple[int, ...]


def box(lower: Sequence[int], upper: Sequence[int]) -> list[Offset]:
    """The offsets from `lower` to `upper`, inclusive."""
    return list(product(*(range(a, b + 1) for a, b in zip(lower, upper, strict=True))))


def dilate(voxels: Iterable[Voxel], offsets: Collection[Offset]) -> set[Voxel]:
    """Every voxel plus every offset."""
    return {(b, x + i, y + j, z + k) for b, x, y, z in voxels for i, j, k in offsets}


def erode(voxels: Iterable[Voxel], offsets: Collection[Offset]) -> set[Voxel]:
    """The places from which every offset leads to a voxel."""
    members = set(voxels)
    i, j, k = next(iter(offsets))
    candidates = {(b, x - i, y - j, z - k) for b, x, y, z in members}
    return {place for place in candidates if dilate([place], offsets) <= members}
