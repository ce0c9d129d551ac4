"""Neighbour tables: who is whose neighbour in a 3x3x3 window."""

import torch
from torch import Tensor

from sparsevox.ops import _library
from sparsevox.ops.bricks import HasBricks, walking_table

_neighbor_table = _library.register(
    "neighbor_table(Tensor keys, Tensor masks, Tensor starts, Tensor rows, Tensor? table) -> Tensor",
    stem="neighbors",
    fake=lambda keys, masks, starts, rows, table: keys.new_empty((27, rows.shape[0]), dtype=torch.int32),
)


def neighbor_table(grid: HasBricks) -> Tensor:
    """Row of the neighbour of every voxel at each of the 27 taps.

    Returns:
        int32 [27, N], -1 where there is no voxel. Tap t is the offset (t // 9 - 1, t // 3 % 3 - 1, t % 3 - 1), so
        row 13 holds every voxel's own row, and row 26 - t is the inverse of row t.
    """
    bricks = grid.bricks
    result: Tensor = _neighbor_table(bricks.keys, bricks.masks, bricks.starts, bricks.rows, walking_table(grid))
    return result
