"""Dilation and erosion by a box, one axis after the other, as shifts of the masks.

L bricks, B grids. All bounds lie within [-4, 4], so that a voxel moves by one brick at most.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsevox.kernels._bits import NONE, find_bricks, items, shift_mask, step_key
from sparsevox.kernels._finish import finish, merge_sorted, no_bad
from sparsevox.kernels._launch import launch
from sparsevox.kernels.bricks import brick_table
from sparsevox.morton import Bricks


@triton.jit(do_not_specialize=["n_pairs", "lower", "upper"])
def dilate_kernel(
    keys_ptr,
    masks_ptr,
    out_keys_ptr,
    out_masks_ptr,
    bad_ptr,
    n_pairs,
    lower,
    upper,
    AXIS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Three bricks for each one: the previous along the axis, its own place, the next. Key NONE where there is none."""
    i = items(BLOCK)
    keys = tl.load(keys_ptr + i, mask=i < n_pairs, other=NONE)
    masks = tl.load(masks_ptr + i, mask=i < n_pairs, other=0)
    previous, own, following = tl.zeros_like(masks), tl.zeros_like(masks), tl.zeros_like(masks)
    for shift in tl.static_range(-4, 5):
        moved = tl.where((shift >= lower) & (shift <= upper), masks, 0)
        stays, leaves = shift_mask(moved, AXIS, shift)
        own |= stays
        if shift < 0:
            previous |= leaves
        else:
            following |= leaves
    step = tl.full(keys.shape, 1, tl.int64)
    below, above = step_key(keys, -step, AXIS), step_key(keys, step, AXIS)
    beyond = ((previous != 0) & (below == NONE)) | ((following != 0) & (above == NONE))
    if tl.max(beyond.to(tl.int32), axis=0) > 0:
        tl.atomic_min(bad_ptr, tl.cast(-1, tl.int64), sem="relaxed")
    tl.store(out_keys_ptr + i * 3, tl.where(previous != 0, below, NONE), mask=i < n_pairs)
    tl.store(out_keys_ptr + i * 3 + 1, tl.where(own != 0, keys, NONE), mask=i < n_pairs)
    tl.store(out_keys_ptr + i * 3 + 2, tl.where(following != 0, above, NONE), mask=i < n_pairs)
    tl.store(out_masks_ptr + i * 3, previous, mask=i < n_pairs)
    tl.store(out_masks_ptr + i * 3 + 1, own, mask=i < n_pairs)
    tl.store(out_masks_ptr + i * 3 + 2, following, mask=i < n_pairs)


@triton.jit(do_not_specialize=["n_bricks", "capacity", "lower", "upper"])
def erode_kernel(
    keys_ptr,
    masks_ptr,
    table_ptr,
    out_masks_ptr,
    n_bricks,
    capacity,
    lower,
    upper,
    AXIS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Masks of the voxels x for which x + shift is a voxel, for all shifts along the axis."""
    i = items(BLOCK)
    active = i < n_bricks
    keys = tl.load(keys_ptr + i, mask=active, other=NONE)
    masks = tl.load(masks_ptr + i, mask=active, other=0)
    step = tl.full(keys.shape, 1, tl.int64)
    below = tl.where(lower < 0, step_key(keys, -step, AXIS), NONE)
    row = find_bricks(below, below != NONE, keys_ptr, table_ptr, capacity)
    previous = tl.load(masks_ptr + row, mask=row >= 0, other=0)
    above = tl.where(upper > 0, step_key(keys, step, AXIS), NONE)
    row = find_bricks(above, above != NONE, keys_ptr, table_ptr, capacity)
    following = tl.load(masks_ptr + row, mask=row >= 0, other=0)
    eroded = masks
    for shift in tl.static_range(-4, 5):
        # The voxel at x + shift has to arrive at x.
        stays, _ = shift_mask(masks, AXIS, -shift)
        _, arrives = shift_mask(previous if shift < 0 else following, AXIS, -shift)
        eroded &= tl.where((shift >= lower) & (shift <= upper), stays | arrives, -1)
    tl.store(out_masks_ptr + i, eroded, mask=active)


def dilate_bricks(keys: Tensor, masks: Tensor, offsets: Tensor, lower: list[int], upper: list[int]) -> Bricks:
    """Bricks of {a + s}: a voxel, s in the box from lower to upper inclusive."""
    bad = no_bad(keys.device)
    for axis in range(3):
        n = keys.shape[0]
        out_keys = torch.empty(3 * n, dtype=torch.int64, device=keys.device)
        out_masks = torch.empty_like(out_keys)
        arrays = (keys, masks, out_keys, out_masks, bad)
        launch(dilate_kernel, n, *arrays, n, lower[axis], upper[axis], AXIS=axis, block=256)
        keys, masks = out_keys, out_masks
    keys, order = torch.sort(keys)
    return finish(*merge_sorted(keys, masks[order]), offsets.shape[0] - 1, bad=bad)


def erode_bricks(
    keys: Tensor, masks: Tensor, offsets: Tensor, table: Tensor | None, lower: list[int], upper: list[int]
) -> Bricks:
    """Bricks of {x : x + s is a voxel for all s in the box}, lower <= 0 <= upper: no new brick can arise."""
    table = brick_table(keys) if table is None else table
    n = keys.shape[0]
    for axis in range(3):
        out_masks = torch.empty_like(masks)
        launch(
            erode_kernel,
            n,
            *(keys, masks, table, out_masks, n, table.shape[0], lower[axis], upper[axis]),
            AXIS=axis,
            block=64,
            num_warps=1,
        )
        masks = out_masks
    return finish(keys, masks, offsets.shape[0] - 1)
