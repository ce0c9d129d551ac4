"""Group norm over the rows of each item of a batch: moments of chunks, statistics of items, normalized rows.

A chunk has up to CHUNK rows of one item. The chunks of item b are numbered from `offsets[b] // CHUNK + b` on: that
leaves enough numbers for every item, and the host need not count chunks. Numbers without rows are the last of an item.

N voxels, B grids, C channels, G groups, T chunks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsevox.kernels._launch import INTERPRETER_LANES, cdiv, launch
from sparsevox.kernels.segment import sum_ranges

CHUNK = tl.constexpr(512)
ROWS = tl.constexpr(32)  # rows that a program processes at once
COLUMNS = 32


@triton.jit
def find_chunk(number, offsets_ptr, batch_size):
    """Find the item of a chunk, its first row and the row after its last one, by binary search."""
    item = number * 0
    for step in tl.static_range(11):  # a batch has up to 2^10 items
        further = item + (1024 >> step)
        start = tl.load(offsets_ptr + further, mask=further < batch_size, other=0)
        item = tl.where((further < batch_size) & (start // CHUNK + further <= number), further, item)
    start = tl.load(offsets_ptr + item)
    first = start + (number - start // CHUNK - item) * CHUNK
    return item, first, tl.minimum(first + CHUNK, tl.load(offsets_ptr + item + 1))


@triton.jit(do_not_specialize=["n_pairs", "groups", "batch_size"])
def moments_kernel(
    feats_ptr,
    grads_ptr,
    offsets_ptr,
    means_ptr,
    out_parts_ptr,
    n_pairs,
    channels,
    groups,
    batch_size,
    GRADIENT: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write two numbers per chunk and channel. A program computes COLUMNS channels of one chunk; BLOCK is 1.

    They are the mean and the sum of squared deviations from it, float64; or, with GRADIENT, the sums of g and of
    g * (x - mean of its item).
    """
    exact: tl.constexpr = tl.float64 if feats_ptr.dtype.element_ty == tl.float64 else tl.float32
    wide: tl.constexpr = out_parts_ptr.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(channels, COLUMNS)
    number = program // blocks
    column = (program % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    wanted = column < channels
    item, first, last = find_chunk(number, offsets_ptr, batch_size)
    left = tl.zeros([COLUMNS], exact)
    right = tl.zeros([COLUMNS], exact)
    # 1. Take the mean of the chunk (of the item, for gradients).
    if GRADIENT:
        center = tl.load(means_ptr + item * groups + column // (channels // groups), mask=wanted, other=0)
    else:
        for start in range(0, last - first, ROWS):
            row = first + start + tl.arange(0, ROWS)
            met = (row < last)[:, None] & wanted[None, :]
            x = tl.load(feats_ptr + row[:, None] * channels + column[None, :], mask=met, other=0)
            left += tl.sum(x.to(exact), axis=0)
        length = tl.maximum(last - first, 1).to(wide)
        inverse = 1.0 / length  # a single division: on sm_80 it is a function call, which needs a stack
        center = left * inverse.to(exact)
        left = tl.zeros([COLUMNS], exact)
    # 2. Sum over the same rows again, which are still in the caches.
    for start in range(0, last - first, ROWS):
        row = first + start + tl.arange(0, ROWS)
        met = (row < last)[:, None] & wanted[None, :]
        place = row[:, None] * channels + column[None, :]
        x = tl.load(feats_ptr + place, mask=met, other=0).to(exact)
        other = tl.where(met, x - center[None, :], 0.0)
        g = other
        if GRADIENT:
            g = tl.load(grads_ptr + place, mask=met, other=0).to(exact)
        left += tl.sum(g, axis=0)
        right += tl.sum(g * other, axis=0)
    if GRADIENT:
        left = left.to(wide)
        right = right.to(wide)
    else:
        off = left.to(wide) * inverse  # rounding error of the mean, which matters if the mean is large
        left = center.to(wide) + off
        right = right.to(wide) - off * off * length
    out = number * 2 * channels + column
    tl.store(out_parts_ptr + out, left, mask=wanted)
    tl.store(out_parts_ptr + out + channels, right, mask=wanted)


@triton.jit(do_not_specialize=["n_pairs", "groups"])
def statistics_kernel(
    parts_ptr,
    offsets_ptr,
    out_means_ptr,
    out_variances_ptr,
    n_pairs,
    channels,
    groups,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute mean and variance of an item and group from the moments of its chunks; 0 and inf if empty. BLOCK is 1."""
    program = tl.program_id(0).to(tl.int64)
    item = program // groups
    wide = channels // groups
    start = tl.load(offsets_ptr + item)
    length = tl.load(offsets_ptr + item + 1) - start
    number = start // CHUNK + item
    chunks = tl.cdiv(length, CHUNK)
    size = tl.maximum(length * wide, 1).to(tl.float64)
    # 1. The mean is the weighted mean of the means of chunks.
    total = tl.zeros([ROWS, COLUMNS], tl.float64)
    for first in range(0, chunks, ROWS):
        chunk = first + tl.arange(0, ROWS)
        count = tl.minimum(length - chunk * CHUNK, CHUNK).to(tl.float64)
        for begin in range(0, wide, COLUMNS):
            column = begin + tl.arange(0, COLUMNS)
            met = (chunk < chunks)[:, None] & (column < wide)[None, :]
            place = (number + chunk)[:, None] * 2 * channels + ((program % groups) * wide + column)[None, :]
            total += tl.load(parts_ptr + place, mask=met, other=0) * count[:, None]
    mean = tl.sum(tl.sum(total, axis=1), axis=0) / size
    # 2. The variance has a part within chunks and a part between chunks.
    square = tl.zeros([ROWS, COLUMNS], tl.float64)
    for first in range(0, chunks, ROWS):
        chunk = first + tl.arange(0, ROWS)
        count = tl.minimum(length - chunk * CHUNK, CHUNK).to(tl.float64)
        for begin in range(0, wide, COLUMNS):
            column = begin + tl.arange(0, COLUMNS)
            met = (chunk < chunks)[:, None] & (column < wide)[None, :]
            place = (number + chunk)[:, None] * 2 * channels + ((program % groups) * wide + column)[None, :]
            apart = tl.load(parts_ptr + place, mask=met, other=0) - mean
            inner = tl.load(parts_ptr + place + channels, mask=met, other=0)
            square += tl.where(met, inner + apart * apart * count[:, None], 0.0)
    variance = tl.where(length > 0, tl.sum(tl.sum(square, axis=1), axis=0) / size, float("inf"))
    exact: tl.constexpr = out_means_ptr.dtype.element_ty
    tl.store(out_means_ptr + program, mean.to(exact))
    tl.store(out_variances_ptr + program, variance.to(exact))


@triton.jit(do_not_specialize=["n_pairs", "groups", "batch_size"])
def affine_kernel(
    feats_ptr,
    grads_ptr,
    offsets_ptr,
    means_ptr,
    slopes_ptr,
    shifts_ptr,
    factors_ptr,
    out_feats_ptr,
    n_pairs,
    channels,
    groups,
    batch_size,
    GRADIENT: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write rows `(x - mean) * slope + shift`, with GRADIENT plus `g * factor`; programs as in `moments_kernel`."""
    exact: tl.constexpr = means_ptr.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(channels, COLUMNS)
    column = (program % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    wanted = column < channels
    item, first, last = find_chunk(program // blocks, offsets_ptr, batch_size)
    own = item * channels + column
    mean = tl.load(means_ptr + item * groups + column // (channels // groups), mask=wanted, other=0)
    slope = tl.load(slopes_ptr + own, mask=wanted, other=0)
    shift = tl.load(shifts_ptr + own, mask=wanted, other=0)
    if GRADIENT:
        factor = tl.load(factors_ptr + own, mask=wanted, other=0)
    for start in range(0, last - first, ROWS):
        row = first + start + tl.arange(0, ROWS)
        met = (row < last)[:, None] & wanted[None, :]
        place = row[:, None] * channels + column[None, :]
        x = tl.load(feats_ptr + place, mask=met, other=0).to(exact)
        result = (x - mean[None, :]) * slope[None, :] + shift[None, :]
        if GRADIENT:
            result += tl.load(grads_ptr + place, mask=met, other=0).to(exact) * factor[None, :]
        tl.store(out_feats_ptr + place, result.to(out_feats_ptr.dtype.element_ty), mask=met)


def group_norm(
    feats: Tensor, offsets: Tensor, weight: Tensor | None, bias: Tensor | None, num_groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalized features [N, C], and mean and 1 / standard deviation [B, G], 0 in empty items."""
    feats, items, channels = feats.contiguous(), offsets.shape[0] - 1, feats.shape[1]
    exact = torch.float64 if feats.dtype == torch.float64 else torch.float32
    mean = torch.zeros((items, num_groups), dtype=exact, device=feats.device)
    variance = torch.full_like(mean, torch.inf)
    if channels:
        n = items * num_groups
        arguments = (_moments(feats, None, offsets, mean), offsets, mean, variance, n, channels, num_groups)
        launch(statistics_kernel, n, *arguments, COLUMNS=8, block=1, lanes=INTERPRETER_LANES)
    rstd = variance.add_(eps).rsqrt_()
    slope = rstd.repeat_interleave(channels // num_groups, 1)
    slope = slope if weight is None else (slope * weight).to(exact)
    shift = torch.zeros_like(slope) if bias is None else bias.to(exact).expand(slope.shape).contiguous()
    return _affine(feats, None, offsets, mean, slope, shift, slope), mean, rstd


def group_norm_backward(
    grad: Tensor, feats: Tensor, offsets: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the features [N, C], and of weight and bias [C] in the dtype of the statistics."""
    feats, grad, channels = feats.contiguous(), grad.contiguous(), feats.shape[1]
    wide = channels // mean.shape[1]
    items = torch.arange(offsets.shape[0], device=feats.device)
    ranges = (torch.div(offsets, CHUNK.value, rounding_mode="floor") + items).int()
    parts = _moments(feats, grad, offsets, mean)
    sums = sum_ranges(parts.flatten(1), ranges, None, None, None, 0)
    scale = rstd.repeat_interleave(wide, 1)
    total, product = sums[:, :channels], sums[:, channels:] * scale
    factor = scale if weight is None else (scale * weight).to(scale.dtype)
    # Means, over item and group, of the gradient of the normalized features and of its product with those features.
    size = offsets.diff()[:, None].clamp(min=1) * wide
    ours = torch.ones_like(total) if weight is None else weight.to(scale.dtype).expand_as(total)
    shift, slope = (
        ((part * ours).unflatten(1, (*mean.shape[1:], wide)).sum(2) / size * -rstd).repeat_interleave(wide, 1)
        for part in (total, product)
    )
    d_feats = _affine(feats, grad, offsets, mean, slope * scale, shift, factor)
    return d_feats, product.sum(0), total.sum(0)


def _moments(feats: Tensor, grad: Tensor | None, offsets: Tensor, mean: Tensor) -> Tensor:
    """Run `moments_kernel`: two numbers per chunk and channel, [T, 2, C]."""
    items, channels = offsets.shape[0] - 1, feats.shape[1]
    chunks = feats.shape[0] // CHUNK.value + items
    dtype = torch.float64 if grad is None else mean.dtype
    parts = torch.empty((chunks, 2, channels), dtype=dtype, device=feats.device)
    n = chunks * cdiv(channels, COLUMNS)
    arguments = (feats, feats if grad is None else grad, offsets, mean, parts, n, channels, mean.shape[1], items)
    flags = {"GRADIENT": grad is not None, "COLUMNS": COLUMNS}
    launch(moments_kernel, n, *arguments, block=1, lanes=INTERPRETER_LANES, **flags)
    return parts


def _affine(
    feats: Tensor, grad: Tensor | None, offsets: Tensor, mean: Tensor, slope: Tensor, shift: Tensor, factor: Tensor
) -> Tensor:
    """Rows [N, C]: `(feats - mean) * slope + shift`, plus `grad * factor` if there are gradients."""
    out = torch.empty_like(feats)
    items, channels = offsets.shape[0] - 1, feats.shape[1]
    n = (feats.shape[0] // CHUNK.value + items) * cdiv(channels, COLUMNS)
    arguments = (feats, feats if grad is None else grad, offsets, mean, slope, shift, factor, out, n)
    sizes = (channels, mean.shape[1], items)
    flags = {"GRADIENT": grad is not None, "COLUMNS": COLUMNS}
    launch(affine_kernel, n, *arguments, *sizes, block=1, lanes=INTERPRETER_LANES, **flags)
    return out
