"""Kernel tables: which fine voxel each coarse voxel meets at each tap of a convolution.

N fine voxels, M coarse voxels, L bricks, R fine bricks around a coarse brick, K taps.
"""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from sparsevox import morton
from sparsevox.reference._around import Moves, bricks_around, fill, moves
from sparsevox.reference._runs import encode, lanes, search


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
        near = _fine_bricks(keys, coarse_keys, stride, axes)
    taps = kernel_size[0] * kernel_size[1] * kernel_size[2]
    out = torch.empty((taps, coarse_rows.shape[0]), dtype=torch.int32, device=keys.device)
    fill(out, lanes(coarse_masks), near, masks, rows.shape[0], axes)
    return out


def _fine_bricks(keys: Tensor, coarse_keys: Tensor, stride: Sequence[int], axes: Sequence[Moves]) -> Tensor:
    """Rows of the fine bricks that each coarse brick meets, -1 where there is none: int32 [R, L]."""
    corners = morton.decode(coarse_keys << 6) * torch.tensor([1, *stride], device=keys.device)
    near = []
    for steps in product(*(axis.steps for axis in axes)):
        wanted = corners + torch.tensor([0, *(4 * step for step in steps)], device=keys.device)
        index, found = search(keys, encode(wanted) >> 6)
        near.append(torch.where(found & morton.in_range(wanted), index, -1).int())
    return torch.stack(near)
