"""Dense volumes to bricks, and features to volumes and back.

B grids, N voxels, C channels, X Y Z voxels per axis.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsevox.morton import Bricks
from sparsevox.reference._runs import true_indices
from sparsevox.reference.bricks import build_bricks


def dense_bricks(mask: Tensor, lower: list[int]) -> Bricks:
    """Bricks of the True voxels of `mask` bool [B, X, Y, Z], whose first voxel has the coordinates `lower`."""
    coords = mask.nonzero() + torch.tensor([0, *lower], device=mask.device)
    return build_bricks(coords, mask.shape[0])


def scatter_dense(feats: Tensor, cells: Tensor, batch_size: int, size: Sequence[int]) -> Tensor:
    """Write rows [N, C] to the cells [N] of a volume [B, C, X, Y, Z] of 0; rows with cell -1 are dropped."""
    out = feats.new_zeros((batch_size, feats.shape[1], *size))
    kept = true_indices(cells >= 0)
    if kept.shape[0]:
        cells, rows = cells[kept], out.flatten(2).transpose(1, 2)
        rows[cells // rows.shape[1], cells % rows.shape[1]] = feats[kept]
    return out


def gather_dense(volume: Tensor, cells: Tensor) -> Tensor:
    """Read rows [N, C] from the cells [N] of a volume [B, C, X, Y, Z]; 0 where the cell is -1."""
    out = volume.new_zeros((cells.shape[0], volume.shape[1]))
    kept = true_indices(cells >= 0)
    if kept.shape[0]:
        cells, rows = cells[kept], volume.flatten(2).transpose(1, 2)
        out[kept] = rows[cells // rows.shape[1], cells % rows.shape[1]]
    return out
