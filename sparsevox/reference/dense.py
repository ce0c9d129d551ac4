"""Dense volumes, their voxels and their features. B grids, N voxels, C channels, X Y Z voxels an axis."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsevox.morton import Bricks
from sparsevox.reference._runs import true_indices
from sparsevox.reference.bricks import build_bricks


def dense_bricks(mask: Tensor, lower: list[int]) -> Bricks:
    """Bricks of the True voxels of `mask` bool [B, X, Y, Z], whose first voxel is `lower`."""
    coords = mask.nonzero() + torch.tensor([0, *lower], device=mask.device)
    return build_bricks(coords, mask.shape[0])


def scatter_dense(feats: Tensor, cells: Tensor, batch_size: int, size: Sequence[int]) -> Tensor:
    """Volume [B, C, X, Y, Z] of rows [N, C] whose elements of [B, X, Y, Z] are `cells`, -1 for none; 0 elsewhere."""
    out = feats.new_zeros((batch_size, feats.shape[1], *size))
    kept = true_indices(cells >= 0)
    if kept.shape[0]:
        cells, rows = cells[kept], out.flatten(2).transpose(1, 2)
        rows[cells // rows.shape[1], cells % rows.shape[1]] = feats[kept]
    return out


def gather_dense(volume: Tensor, cells: Tensor) -> Tensor:
    """Rows [N, C] of a volume [B, C, X, Y, Z] at elements of [B, X, Y, Z], 0 where that is -1."""
    out = volume.new_zeros((cells.shape[0], volume.shape[1]))
    kept = true_indices(cells >= 0)
    if kept.shape[0]:
        cells, rows = cells[kept], volume.flatten(2).transpose(1, 2)
        out[kept] = rows[cells // rows.shape[1], cells % rows.shape[1]]
    return out
