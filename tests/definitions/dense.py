"""Features in dense volumes, voxel by voxel. A volume [B, C, X, Y, Z] begins at voxel `lower`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsevox.testing import Voxel


def from_mask(mask: Tensor, lower: Sequence[int]) -> set[Voxel]:
    """The voxels where a mask [B, X, Y, Z] is True."""
    return {(b, *(x + low for x, low in zip(place, lower, strict=True))) for b, *place in torch.argwhere(mask).tolist()}


def cells(rows: Sequence[Voxel], lower: Sequence[int], size: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Batch item and place in a volume of this size of every row that lies in it."""
    places = {row: (b, *(x - low for x, low in zip(ijk, lower, strict=True))) for row, (b, *ijk) in enumerate(rows)}
    return {row: cell for row, cell in places.items() if all(0 <= x < n for x, n in zip(cell[1:], size, strict=True))}


def to_dense(feats: Tensor, rows: Sequence[Voxel], lower: Sequence[int], size: Sequence[int], items: int) -> Tensor:
    """A volume with the features of the voxels in it, 0 elsewhere."""
    volume = feats.new_zeros(items, feats.shape[1], *size)
    for row, (b, x, y, z) in cells(rows, lower, size).items():
        volume[b, :, x, y, z] = feats[row]
    return volume


def from_dense(volume: Tensor, rows: Sequence[Voxel], lower: Sequence[int]) -> Tensor:
    """[N, C]: the features of each voxel, 0 outside of the volume."""
    feats = volume.new_zeros(len(rows), volume.shape[1])
    for row, (b, x, y, z) in cells(rows, lower, volume.shape[2:]).items():
        feats[row] = volume[b, :, x, y, z]
    return feats
