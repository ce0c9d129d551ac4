"""Rows gathered, summed and multiplied along weighted (point, row) pairs.

N voxels, P points, C channels, T corners per point.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsevox.kernels._bits import items
from sparsevox.kernels._launch import cdiv, launch
from sparsevox.kernels.segment import _cut, sum_ranges

NARROW = 8  # channels of a program if the tensor has no more
WIDE = 32  # channels of a program otherwise
MAX_PAIRS = (1 << 31) - 1  # their numbers are int32


@triton.jit(do_not_specialize=["n_pairs", "taps"])
def weighted_kernel(
    feats_ptr,
    sources_ptr,
    places_ptr,
    ranges_ptr,
    weights_ptr,
    out_feats_ptr,
    n_pairs,
    channels,
    taps,
    SUM: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute weighted sums of rows; an item is COLUMNS channels of one output row.

    An output row is a point, and sums the rows `sources` of its corners. With SUM, an output row is a range of
    `places`, a list of pairs, and sums the rows of their points.
    """
    exact: tl.constexpr = weights_ptr.dtype.element_ty
    i = items(BLOCK)
    active = i < n_pairs
    blocks = tl.cdiv(channels, COLUMNS)
    out_row = i // blocks
    column = ((i % blocks) * COLUMNS)[:, None] + tl.arange(0, COLUMNS)[None, :]
    wanted = active[:, None] & (column < channels)
    if SUM:
        first = tl.load(ranges_ptr + out_row, mask=active, other=0).to(tl.int64)
        length = tl.load(ranges_ptr + out_row + 1, mask=active, other=0).to(tl.int64) - first
    else:
        first = out_row * taps
        length = tl.where(active, taps, 0).to(tl.int64)
    longest = tl.max(length, axis=0)
    total = tl.zeros([BLOCK, COLUMNS], exact)
    for start in range(0, longest, 4):
        for ahead in tl.static_range(4):
            step = tl.cast(start, tl.int64) + ahead
            inside = active & (step < length)
            if SUM:
                pair = tl.load(places_ptr + first + step, mask=inside, other=0)
                row = pair // taps
            else:
                pair = first + step
                row = tl.load(sources_ptr + pair, mask=inside, other=-1).to(tl.int64)
                inside = inside & (row >= 0)
            weight = tl.load(weights_ptr + pair, mask=inside, other=0)
            value = tl.load(feats_ptr + row[:, None] * channels + column, mask=wanted & inside[:, None], other=0)
            total += weight[:, None] * value.to(exact)
    tl.store(
        out_feats_ptr + out_row[:, None] * channels + column, total.to(out_feats_ptr.dtype.element_ty), mask=wanted
    )


@triton.jit(do_not_specialize=["n_pairs", "taps"])
def dot_kernel(
    feats_ptr,
    sources_ptr,
    values_ptr,
    weights_ptr,
    n_pairs,
    channels,
    taps,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute the dot product of the value of the point and the features of the row, for every pair."""
    exact: tl.constexpr = weights_ptr.dtype.element_ty
    pair = items(BLOCK)
    row = tl.load(sources_ptr + pair, mask=pair < n_pairs, other=-1).to(tl.int64)
    total = tl.zeros([BLOCK, COLUMNS], exact)
    for start in range(0, channels, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        met = (row >= 0)[:, None] & (column < channels)
        feats = tl.load(feats_ptr + row[:, None] * channels + column, mask=met, other=0).to(exact)
        values = tl.load(values_ptr + (pair // taps)[:, None] * channels + column, mask=met, other=0).to(exact)
        total += feats * values
    tl.store(weights_ptr + pair, tl.sum(total, axis=1), mask=pair < n_pairs)


def gather_rows(feats: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Values [P, C]: the sum over corners t of `weights[p, t] * feats[rows[p, t]]`, rows of -1 left out."""
    feats, rows, weights = feats.contiguous(), rows.contiguous(), weights.contiguous()
    out = torch.empty((rows.shape[0], feats.shape[1]), dtype=feats.dtype, device=feats.device)
    _weighted(feats, rows, rows, rows, weights, out, rows.shape[1], False)
    return out


def sum_rows(values: Tensor, rows: Tensor, weights: Tensor, count: int) -> Tensor:
    """Features [count, C]: the sum of `weights[p, t] * values[p]` over the pairs of each row, ordered by point.

    The pairs of a row are cut into pieces. There is room for the largest possible number of pieces, so that the host
    need not wait for the length of the longest list.
    """
    if rows.numel() > MAX_PAIRS:
        raise ValueError(f"points must have at most {MAX_PAIRS} corners in total, got {rows.numel()}")
    values, weights = values.contiguous(), weights.contiguous()
    if rows.numel() == 0 or count == 0:
        return values.new_zeros((count, values.shape[1]))
    ordered, order = torch.sort(rows.flatten(), stable=True)
    numbers = torch.arange(count + 1, dtype=torch.int32, device=rows.device)
    pieces, groups = _cut(torch.searchsorted(ordered, numbers, out_int32=True), rows.numel())
    parts = torch.empty((pieces.shape[0] - 1, values.shape[1]), dtype=weights.dtype, device=values.device)
    _weighted(values, rows, order, pieces, weights, parts, rows.shape[1], True)
    return sum_ranges(parts, groups, None, None, None, 0).to(values.dtype)


def dot_rows(feats: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """Weights [P, T]: the dot products of `values[p]` and `feats[rows[p, t]]`, 0 for rows of -1."""
    feats, rows, values = feats.contiguous(), rows.contiguous(), values.contiguous()
    dtype = torch.float64 if feats.dtype == torch.float64 else torch.float32
    out = torch.empty(rows.shape, dtype=dtype, device=rows.device)
    columns = _columns(feats)
    arguments = (feats, rows, values, out, rows.numel(), feats.shape[1], rows.shape[1])
    launch(dot_kernel, rows.numel(), *arguments, COLUMNS=columns, block=32, lanes=columns)
    return out


def _weighted(
    feats: Tensor,
    sources: Tensor,
    places: Tensor,
    ranges: Tensor,
    weights: Tensor,
    out: Tensor,
    taps: int,
    summing: bool,
) -> None:
    """Write the weighted sums to `out`. Arguments that the kernel does not read may be any tensor."""
    columns, channels = _columns(feats), feats.shape[1]
    n = out.shape[0] * cdiv(channels, columns)
    arguments = (feats, sources, places, ranges, weights, out, n, channels, taps)
    launch(weighted_kernel, n, *arguments, SUM=summing, COLUMNS=columns, block=32, lanes=columns)


def _columns(feats: Tensor) -> int:
    return NARROW if feats.shape[1] <= NARROW else WIDE
