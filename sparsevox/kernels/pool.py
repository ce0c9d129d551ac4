"""Pooling through tables, its gradients, and the parents and children of voxels.

N input rows, M output rows, C channels, K taps, L bricks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsevox.kernels._bits import items, octant_bytes, popcount, voxels
from sparsevox.kernels._launch import launch
from sparsevox.kernels._reduce import extreme_rows, reduce_rows


@triton.jit(do_not_specialize=["n_bricks", "level"])
def runs_kernel(keys_ptr, masks_ptr, counts_ptr, n_bricks, level, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """Count the coarse voxels that begin in each brick: its octants if HALF (level 1), else 1 if a block begins."""
    brick = items(BLOCK)
    active = brick < n_bricks
    if HALF:
        counts = popcount(octant_bytes(tl.load(masks_ptr + brick, mask=active, other=0)))
    else:
        shift = 3 * (tl.cast(level, tl.int64) - 2)
        block = tl.load(keys_ptr + brick, mask=active, other=0) >> shift
        last = tl.load(keys_ptr + brick - 1, mask=active & (brick > 0), other=0) >> shift
        counts = ((brick == 0) | (block != last)).to(tl.int64)
    tl.store(counts_ptr + brick, counts, mask=active)


@triton.jit(do_not_specialize=["n_bricks"])
def parents_kernel(
    masks_ptr,
    starts_ptr,
    counts_ptr,
    places_ptr,
    parents_ptr,
    ranges_ptr,
    n_bricks,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Parent of each voxel, and first voxel of each parent; `places_ptr` holds the running sum of `runs_kernel`."""
    brick = items(BLOCK)
    active = brick < n_bricks
    masks = tl.load(masks_ptr + brick, mask=active, other=0)
    starts = tl.load(starts_ptr + brick, mask=active, other=0)
    counts = tl.load(counts_ptr + brick, mask=active, other=0)
    places = tl.load(places_ptr + brick, mask=active, other=0)
    bit, occupied, row = voxels(masks, starts)
    if HALF:
        before = octant_bytes(masks)[:, None] & ((tl.full([1, 64], 1, tl.int64) << (bit >> 3)) - 1)
        parent = (places - counts)[:, None] + popcount(before)
        in_front = (masks[:, None] >> (bit & 56)) & ((tl.full([1, 64], 1, tl.int64) << (bit & 7)) - 1)
        opens = occupied & (in_front == 0)
    else:
        parent = (places - 1)[:, None] + bit * 0
        opens = occupied & (counts != 0)[:, None] & (row == starts[:, None])
    tl.store(parents_ptr + row, parent.to(tl.int32), mask=occupied)
    tl.store(ranges_ptr + parent, row.to(tl.int32), mask=opens)


def child_ranges(
    keys: Tensor, masks: Tensor, starts: Tensor, rows: Tensor, coarse_rows: Tensor, level: int
) -> tuple[Tensor, Tensor]:
    """Parent of each voxel in the grid coarsened by 2^level, int32 [N]; first child of each parent, int32 [M + 1]."""
    n, device = keys.shape[0], keys.device
    if level == 0:
        ranges = torch.arange(rows.shape[0] + 1, dtype=torch.int32, device=device)
        return ranges[:-1].clone(), ranges
    counts = torch.empty_like(keys)
    launch(runs_kernel, n, keys, masks, counts, n, level, HALF=level == 1, block=512)
    parents = torch.empty(rows.shape[0], dtype=torch.int32, device=device)
    ranges = torch.empty(coarse_rows.shape[0] + 1, dtype=torch.int32, device=device)
    arrays = (masks, starts, counts, counts.cumsum(0), parents, ranges)
    launch(parents_kernel, n, *arrays, n, HALF=level == 1, block=16, lanes=64)
    ranges[-1:].fill_(rows.shape[0])
    return parents, ranges


def sum_table(
    feats: Tensor,
    table: Tensor,
    adjoint: Tensor | None,
    children: Tensor | None,
    divisors: Tensor | None,
    before: bool,
    longest: int,
) -> Tensor:
    """Sum over taps of the rows in the table, [M, C]; `divisors` divide the input rows if `before`, else the sums."""
    values = feats
    if divisors is not None and before:  # once per row, not once per tap
        values, divisors = feats / divisors[:, None].to(torch.promote_types(feats.dtype, torch.float32)), None
    return reduce_rows(values, "sum", sources=table, divisors=divisors, dtype=feats.dtype)


def max_table(feats: Tensor, table: Tensor, adjoint: Tensor | None) -> tuple[Tensor, Tensor]:
    """Largest element over taps, 0 where all are absent, and its row, the lowest of equals: two [M, C]. NaN wins."""
    return extreme_rows(feats, "max", sources=table, keep=adjoint is not None)


def place_rows(values: Tensor, winners: Tensor, table: Tensor) -> Tensor:
    """Sum over taps of the values whose winner is the output row: [table.shape[1], C]."""
    return reduce_rows(values, "place", sources=table, winners=winners)
