"""Kernel tables: which fine voxel each coarse voxel meets at each tap of a convolution.

M coarse voxels, L coarse bricks, R fine bricks around a coarse brick, K taps.
"""

from collections.abc import Sequence
from itertools import product
from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsevox._readback import send
from sparsevox.kernels._bits import decode, encode, find_bricks, in_range, items, local, rank, voxels
from sparsevox.kernels._launch import launch
from sparsevox.kernels.bricks import MAX_BATCH, brick_table


@triton.jit(do_not_specialize=["n_pairs", "capacity", "places", "stride_x", "stride_y", "stride_z"])
def meet_kernel(
    keys_ptr,
    other_keys_ptr,
    table_ptr,
    steps_ptr,
    bricks_ptr,
    n_pairs,
    capacity,
    places,
    stride_x,
    stride_y,
    stride_z,
    BLOCK: tl.constexpr,
):
    """Look up the fine brick at each place around each coarse brick (`other_...`): its row or -1. One lane per pair."""
    i = items(BLOCK)
    active = i < n_pairs
    place = i % places
    b, x, y, z = decode(tl.load(other_keys_ptr + i // places, mask=active, other=0) << 6)
    x = x * stride_x + tl.load(steps_ptr + place * 3, mask=active, other=0) * 4
    y = y * stride_y + tl.load(steps_ptr + place * 3 + 1, mask=active, other=0) * 4
    z = z * stride_z + tl.load(steps_ptr + place * 3 + 2, mask=active, other=0) * 4
    wanted = active & in_range(b, x, y, z, MAX_BATCH)
    found = find_bricks(encode(b, x, y, z) >> 6, wanted, keys_ptr, table_ptr, capacity)
    tl.store(bricks_ptr + i, found, mask=active)


@triton.jit(do_not_specialize=["n_bricks", "n_rows", "places", "size_x", "size_y", "size_z"])
def kernel_table_kernel(
    masks_ptr,
    starts_ptr,
    other_masks_ptr,
    other_starts_ptr,
    bricks_ptr,
    moves_ptr,
    sources_ptr,
    n_bricks,
    n_rows,
    places,
    size_x,
    size_y,
    size_z,
    BLOCK: tl.constexpr,
):
    """Write the row of the fine voxel at each tap of each voxel of the coarse bricks (`other_...`), or -1.

    No hash look-ups are left, only bit tests and popcounts. `moves_ptr` holds a word for each axis, tap and position in
    a coarse brick; the sum of the three words of a tap and a voxel is place * 64 + bit of the fine voxel.
    """
    brick = items(BLOCK)
    masks = tl.load(other_masks_ptr + brick, mask=brick < n_bricks, other=0)
    starts = tl.load(other_starts_ptr + brick, mask=brick < n_bricks, other=0)
    bit, occupied, row = voxels(masks, starts)
    first = brick[:, None] * places
    tap = tl.cast(0, tl.int64)
    for i in range(size_x):
        x = tl.load(moves_ptr + i * 4 + local(bit, 0))
        for j in range(size_y):
            xy = x + tl.load(moves_ptr + (size_x + j) * 4 + local(bit, 1))
            for k in range(size_z):
                word = xy + tl.load(moves_ptr + (size_x + size_y + k) * 4 + local(bit, 2))
                near = tl.load(bricks_ptr + first + (word >> 6), mask=occupied, other=-1).to(tl.int64)
                mask = tl.load(masks_ptr + near, mask=near >= 0, other=0)
                start = tl.load(starts_ptr + near, mask=near >= 0, other=0).to(tl.int64)
                found = (mask >> (word & 63) & 1) != 0
                source = tl.where(found, start + rank(mask, word & 63), -1)
                tl.store(sources_ptr + tap * n_rows + row, source, mask=occupied)
                tap += 1


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
    table = brick_table(keys) if table is None else table
    n, device = coarse_keys.shape[0], keys.device
    steps, moves = _moves(kernel_size, stride, dilation, padding)
    # 4 * R bytes per coarse brick (108 for a 3x3x3 kernel in one grid), freed when this function returns.
    bricks = torch.empty((n, len(steps) // 3), dtype=torch.int32, device=device)
    launch(
        meet_kernel,
        bricks.numel(),
        *(keys, coarse_keys, table, send(steps, device), bricks, bricks.numel(), table.shape[0], bricks.shape[1]),
        *stride,
        block=64,
        num_warps=1,
    )
    out = torch.empty((prod(kernel_size), coarse_rows.shape[0]), dtype=torch.int32, device=device)
    launch(
        kernel_table_kernel,
        n,
        *(masks, starts, coarse_masks, coarse_starts, bricks, send(moves, device), out, n, out.shape[1]),
        bricks.shape[1],
        *kernel_size,
        block=8,
        lanes=64,
    )
    return out


def _moves(
    kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int], padding: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The places around a coarse brick, as steps (x, y, z) in fine bricks; and the words of `kernel_table_kernel`.

    The corner of a coarse brick at B is at the corner of the fine brick stride * B.
    """
    axes = [
        [s * position + tap * d - p for tap in range(k) for position in range(4)]
        for k, s, d, p in zip(kernel_size, stride, dilation, padding, strict=True)
    ]
    steps = [sorted({reached >> 2 for reached in axis}) for axis in axes]
    weights = (len(steps[1]) * len(steps[2]), len(steps[2]), 1)
    words = []
    for axis, reached in enumerate(axes):
        index = {step: i * weights[axis] for i, step in enumerate(steps[axis])}
        words += [index[r >> 2] << 6 | (r >> 1 & 1) << (5 - axis) | (r & 1) << (2 - axis) for r in reached]
    return [step for place in product(*steps) for step in place], words
