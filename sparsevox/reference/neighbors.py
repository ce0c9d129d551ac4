"""Kernel tables: which fine voxel each coarse voxel meets at each tap of a convolution.

N fine voxels, M coarse voxels, L bricks, R fine bricks around a coarse brick, K taps.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsevox.reference._around import bricks_around, fill, moves, near_bricks
from sparsevox.reference._runs import lanes


def kernel_table(
    keys: Tensor,
    masks: Tensor,
    starts: Tensor,
    rows: Tensor,
    table: Tensor | None,
    coarse_keys: Tensor,
    coarse_masks: Tensor,
    coarse_starts: Tensor,
    coarse_rows: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """Row of the fine voxel at each tap of each coarse voxel, -1 where there is none: int32 [K, M]."""
    geometry = zip(range(3), kernel_size, stride, dilation, padding, strict=True)
    axes = [moves(*axis, keys.device) for axis in geometry]
    one_grid = keys.data_ptr() == coarse_keys.data_ptr() and keys.shape == coarse_keys.shape
    adjacent = all({*axis.steps} <= {-1, 0, 1} and axis.steps != (-1, 1) for axis in axes)
    if one_grid and adjacent and tuple(stride) == (1, 1, 1):
        x, y, z = (slice(axis.steps[0] + 1, axis.steps[-1] + 2) for axis in axes)
        near = bricks_around(keys).view(3, 3, 3, keys.shape[0])[x, y, z].flatten(0, 2)
    else:
        near = near_bricks(keys, coarse_keys, tuple(stride), tuple(axis.steps for axis in axes))
    taps = kernel_size[0] * kernel_size[1] * kernel_size[2]
    out = torch.empty((taps, coarse_rows.shape[0]), dtype=torch.int32, device=keys.device)
    fill(out, lanes(coarse_masks), near, masks, rows.shape[0], axes)
    return out
