"""Neighbour tables: the rows of the 27 voxels around every voxel.

N voxels, L bricks. A tap t stands for the offset (t // 9 - 1, t // 3 % 3 - 1, t % 3 - 1).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsevox.kernels._bits import bit_at, items, local, rank, voxels
from sparsevox.kernels._launch import launch
from sparsevox.kernels.bricks import neighbor_bricks


@triton.jit(do_not_specialize=["n_bricks", "n_rows"])
def neighbor_kernel(masks_ptr, starts_ptr, bricks_ptr, neighbors_ptr, n_bricks, n_rows, BLOCK: tl.constexpr):
    """Row of each voxel's neighbour at each tap, or -1. No look-ups are left, only bits and popcounts."""
    brick = items(BLOCK)
    masks = tl.load(masks_ptr + brick, mask=brick < n_bricks, other=0)
    starts = tl.load(starts_ptr + brick, mask=brick < n_bricks, other=0)
    bit, occupied, row = voxels(masks, starts)
    for tap in range(27):
        tap = tl.cast(tap, tl.int64)
        x = local(bit, 0) + tap // 9 - 1
        y = local(bit, 1) + tap // 3 % 3 - 1
        z = local(bit, 2) + tap % 3 - 1
        place = ((x >> 2) + 1) * 9 + ((y >> 2) + 1) * 3 + (z >> 2) + 1
        near = tl.load(bricks_ptr + brick[:, None] * 27 + place, mask=occupied, other=-1).to(tl.int64)
        mask = tl.load(masks_ptr + near, mask=near >= 0, other=0)
        start = tl.load(starts_ptr + near, mask=near >= 0, other=0).to(tl.int64)
        target = bit_at(x & 3, y & 3, z & 3)
        neighbor = tl.where((mask >> target & 1) != 0, start + rank(mask, target), -1)
        tl.store(neighbors_ptr + tap * n_rows + row, neighbor, mask=occupied)


def neighbor_table(keys: Tensor, masks: Tensor, starts: Tensor, rows: Tensor, table: Tensor | None) -> Tensor:
    """Row of the neighbour of each voxel at each tap, -1 where there is none: int32 [27, N]."""
    n = keys.shape[0]
    # 108 bytes a brick, gone when this function returns.
    bricks = neighbor_bricks(keys, table)
    neighbors = torch.empty((27, rows.shape[0]), dtype=torch.int32, device=keys.device)
    launch(
        neighbor_kernel,
        n,
        *(masks, starts, bricks, neighbors, n, rows.shape[0]),
        block=8,
        lanes=64,
    )
    return neighbors
