"""Dilation and erosion by a box, axis by axis, as shifts of the masks.

L bricks, B grids. All bounds lie within [-4, 4], so that a voxel moves by at most one brick.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsevox.kernels._bits import NONE, find_bricks, items, step_key, step_mask
from sparsevox.kernels._finish import finish, merge_sorted, no_bad
from sparsevox.kernels._launch import launch
from sparsevox.kernels.bricks import brick_table
from sparsevox.morton import Bricks


@triton.jit
def move_up(previous, own, following, AXIS: tl.constexpr):
    """Move the voxels of three bricks in a line by one."""
    previous, into_own = step_mask(previous, AXIS, 1)
    own, into_following = step_mask(own, AXIS, 1)
    following, _ = step_mask(following, AXIS, 1)
    return previous, own | into_own, following | into_following


@triton.jit
def move_down(previous, own, following, AXIS: tl.constexpr):
    """Move the voxels of three bricks in a line by minus one."""
    previous, _ = step_mask(previous, AXIS, -1)
    own, into_previous = step_mask(own, AXIS, -1)
    following, into_own = step_mask(following, AXIS, -1)
    return previous | into_previous, own | into_own, following


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
    """Dilate each brick along an axis to three: the previous, the same, the next. Empty ones get the key NONE."""
    i = items(BLOCK)
    keys = tl.load(keys_ptr + i, mask=i < n_pairs, other=NONE)
    masks = tl.load(masks_ptr + i, mask=i < n_pairs, other=0)
    previous, own, following = tl.zeros_like(masks), masks, tl.zeros_like(masks)
    for _ in range(lower):
        previous, own, following = move_up(previous, own, following, AXIS)
    for _ in range(-lower):
        previous, own, following = move_down(previous, own, following, AXIS)
    for _ in range(upper - lower):
        previous_up, own_up, following_up = move_up(previous, own, following, AXIS)
        previous, own, following = previous | previous_up, own | own_up, following | following_up
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
    """Erode along an axis: keep the voxels x for which x + shift is a voxel, for all shifts."""
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
    # The voxel at x + shift must arrive at x, for all shifts.
    eroded, own = masks, masks
    for _ in range(upper):
        _, own, following = move_down(own, own, following, AXIS)
        eroded = eroded & own
    own = masks
    for _ in range(-lower):
        previous, own, _ = move_up(previous, own, own, AXIS)
        eroded = eroded & own
    tl.store(out_masks_ptr + i, eroded, mask=active)


def dilate_bricks(keys: Tensor, masks: Tensor, offsets: Tensor, lower: list[int], upper: list[int]) -> Bricks:
    """Bricks of {a + s}: a is a voxel, s is in the box from lower to upper inclusive."""
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
    """Bricks of {x : x + s is a voxel for all s in the box}. As lower <= 0 <= upper, there are no new bricks."""
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
