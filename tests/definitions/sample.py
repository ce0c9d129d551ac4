"""Samples at points, and splats from points onto voxels: loops over points and the eight voxels around each.

Positions are in voxels: voxel (i, j, k) has its center at (i, j, k).
"""

import math
from collections.abc import Sequence
from itertools import product

from torch import Tensor

from sparsevox.testing import Voxel

Place = Sequence[float]


def corners(rows: Sequence[Voxel], place: Place, item: int) -> list[tuple[int, float]]:
    """Row and trilinear weight of those of the eight voxels around a point that exist."""
    row, found = {voxel: n for n, voxel in enumerate(rows)}, []
    for ijk in product(*((math.floor(x), math.floor(x) + 1) for x in place)):
        weight = math.prod(1 - abs(x - i) for x, i in zip(place, ijk, strict=True))
        if (item, *ijk) in row:
            found.append((row[item, *ijk], weight))
    return found


def sample_trilinear(feats: Tensor, rows: Sequence[Voxel], places: Sequence[Place], items: Sequence[int]) -> Tensor:
    """[P, C]: the weighted sum over the voxels around each point. Absent voxels count as 0."""
    out = feats.new_zeros(len(places), feats.shape[1])
    for p, (place, item) in enumerate(zip(places, items, strict=True)):
        for row, weight in corners(rows, place, item):
            out[p] += weight * feats[row]
    return out


def splat_trilinear(values: Tensor, rows: Sequence[Voxel], places: Sequence[Place], items: Sequence[int]) -> Tensor:
    """[N, C]: each point adds its value, times the weight, to the voxels around it."""
    out = values.new_zeros(len(rows), values.shape[1])
    for value, place, item in zip(values, places, items, strict=True):
        for row, weight in corners(rows, place, item):
            out[row] += weight * value
    return out


def sample_nearest(feats: Tensor, rows: Sequence[Voxel], places: Sequence[Place], items: Sequence[int]) -> Tensor:
    """[P, C]: the features of the voxel whose box holds each point, 0 if it is absent."""
    out = feats.new_zeros(len(places), feats.shape[1])
    for p, (place, item) in enumerate(zip(places, items, strict=True)):
        voxel = (item, *(math.floor(x + 0.5) for x in place))
        if voxel in rows:
            out[p] = feats[rows.index(voxel)]
    return out
