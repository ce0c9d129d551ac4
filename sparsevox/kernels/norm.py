"""Group norm over the rows of each item of a batch.

Large inputs take three kernels per direction: sums over chunks of rows, coefficients of each item and group, rows. An
input of at most FEW rows takes one, whose programs each compute one group of one item.

A chunk has up to CHUNK rows of one item. The chunks of item b are numbered from `offsets[b] // CHUNK + b` on: that
leaves enough numbers for every item, and the host need not count chunks. Numbers without rows are the last of an item.

N voxels, B grids, C channels, G groups, T chunks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsevox.kernels._launch import INTERPRETER_LANES, cdiv, launch

CHUNK = tl.constexpr(512)
ROWS = tl.constexpr(32)  # rows that a program processes at once
COLUMNS = 32
FEW = 1024
FEW_ROWS = tl.constexpr(128)  # rows that a program processes at once if there are few


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


@triton.jit
def tile(start, last, begin, wide, base, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Offsets of ROWS rows from `start` and COLUMNS channels of a group from `begin`, and which of them exist.

    The group has `wide` channels from `base` on; `stride` is the distance of rows.
    """
    row = start + tl.arange(0, ROWS)
    column = begin + tl.arange(0, COLUMNS)
    return row[:, None] * stride + (base + column)[None, :], (row < last)[:, None] & (column < wide)[None, :]


@triton.jit
def total_of(values):
    """Sum over both axes, float64."""
    return tl.sum(tl.sum(values.to(tl.float64), axis=1), axis=0)


@triton.jit
def inverse_of(size):
    """Compute 1 / size in float64, or 1 if the size is 0, by Newton's method: a division would be a function call."""
    size = tl.maximum(size, 1)
    exact = size.to(tl.float64)
    inverse = tl.div_rn(1.0, size.to(tl.float32)).to(tl.float64)
    for _ in tl.static_range(2):  # each doubles the number of digits
        inverse *= 2.0 - exact * inverse
    return inverse


@triton.jit
def weight_of(weight_ptr, column, wanted, exact: tl.constexpr, WEIGHT: tl.constexpr):
    """Load the weights of channels, 1 without WEIGHT."""
    if WEIGHT:
        return tl.load(weight_ptr + column, mask=wanted, other=0).to(exact)
    else:
        return tl.full(column.shape, 1, exact)


@triton.jit
def store_statistics(out_means_ptr, out_rstds_ptr, place, size, mean, variance, EPS: tl.constexpr):
    """Store mean and 1 / standard deviation (0 for no elements), and return them in the dtype of the outputs."""
    exact: tl.constexpr = out_means_ptr.dtype.element_ty
    rounded = mean.to(exact)
    variance = (variance + EPS).to(exact)
    # rsqrt is approximate, and so are division and square root of float32.
    rstd = 1.0 / tl.sqrt(variance) if exact == tl.float64 else tl.div_rn(1.0, tl.sqrt_rn(variance))
    rstd = tl.where(size > 0, rstd, 0.0)
    tl.store(out_means_ptr + place, rounded)
    tl.store(out_rstds_ptr + place, rstd)
    return rounded, rstd


@triton.jit
def store_sums(totals_ptr, products_ptr, weight_ptr, place, column, wanted, total, product, WEIGHT: tl.constexpr):
    """Store the sums of an item over g and over g * (normalized x), and return them multiplied by the weight."""
    exact: tl.constexpr = totals_ptr.dtype.element_ty
    tl.store(totals_ptr + place, total.to(exact), mask=wanted)
    tl.store(products_ptr + place, product.to(exact), mask=wanted)
    weight = weight_of(weight_ptr, column, wanted, tl.float64, WEIGHT)
    return total * weight, product * weight


@triton.jit(do_not_specialize=["groups", "batch_size"])
def moments_kernel(
    feats_ptr,
    grads_ptr,
    offsets_ptr,
    means_ptr,
    out_parts_ptr,
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
    blocks = tl.cdiv(channels, COLUMNS)
    number = (tl.program_id(0) // blocks).to(tl.int64)  # divided as 32 bits: 64 would be a function call
    column = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
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


@triton.jit(do_not_specialize=["groups"])
def statistics_kernel(
    parts_ptr,
    offsets_ptr,
    out_means_ptr,
    out_rstds_ptr,
    channels,
    groups,
    EPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute mean and 1 / standard deviation of an item and group from the moments of its chunks. BLOCK is 1."""
    program = tl.program_id(0).to(tl.int64)
    item = program // groups
    wide = channels // groups
    base = (program % groups) * wide
    start = tl.load(offsets_ptr + item)
    length = tl.load(offsets_ptr + item + 1) - start
    number = start // CHUNK + item
    end = number + tl.cdiv(length, CHUNK)
    inverse = inverse_of(length * wide)
    # 1. The mean is the weighted mean of the means of chunks.
    total = tl.zeros([ROWS, COLUMNS], tl.float64)
    for chunk in range(number, end, ROWS):
        count = tl.minimum(length - (chunk - number + tl.arange(0, ROWS)) * CHUNK, CHUNK).to(tl.float64)
        for begin in range(0, wide, COLUMNS):
            place, met = tile(chunk, end, begin, wide, base, 2 * channels, ROWS, COLUMNS)
            total += tl.load(parts_ptr + place, mask=met, other=0) * count[:, None]
    mean = total_of(total) * inverse
    # 2. The variance has a part within chunks and a part between chunks.
    square = tl.zeros([ROWS, COLUMNS], tl.float64)
    for chunk in range(number, end, ROWS):
        count = tl.minimum(length - (chunk - number + tl.arange(0, ROWS)) * CHUNK, CHUNK).to(tl.float64)
        for begin in range(0, wide, COLUMNS):
            place, met = tile(chunk, end, begin, wide, base, 2 * channels, ROWS, COLUMNS)
            apart = tl.load(parts_ptr + place, mask=met, other=0) - mean
            inner = tl.load(parts_ptr + place + channels, mask=met, other=0)
            square += tl.where(met, inner + apart * apart * count[:, None], 0.0)
    store_statistics(out_means_ptr, out_rstds_ptr, program, length * wide, mean, total_of(square) * inverse, EPS)


@triton.jit(do_not_specialize=["groups", "batch_size"])
def coefficients_kernel(
    parts_ptr,
    offsets_ptr,
    rstds_ptr,
    weight_ptr,
    out_totals_ptr,
    out_products_ptr,
    out_slopes_ptr,
    channels,
    groups,
    batch_size,
    WEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum the parts of `moments_kernel` over the chunks of an item and group. BLOCK is 1.

    Writes the sums [B, C] of g and of g * (normalized x), and slope and shift of the gradient of the features,
    [2, B, G].
    """
    program = tl.program_id(0).to(tl.int64)
    item = program // groups
    wide = channels // groups
    base = (program % groups) * wide
    start = tl.load(offsets_ptr + item)
    length = tl.load(offsets_ptr + item + 1) - start
    number = start // CHUNK + item
    end = number + tl.cdiv(length, CHUNK)
    rstd = tl.load(rstds_ptr + program).to(tl.float64)
    shift = tl.zeros([COLUMNS], tl.float64)
    slope = tl.zeros([COLUMNS], tl.float64)
    for begin in range(0, wide, COLUMNS):
        left = tl.zeros([ROWS, COLUMNS], tl.float64)
        right = tl.zeros([ROWS, COLUMNS], tl.float64)
        for chunk in range(number, end, ROWS):
            place, met = tile(chunk, end, begin, wide, base, 2 * channels, ROWS, COLUMNS)
            left += tl.load(parts_ptr + place, mask=met, other=0).to(tl.float64)
            right += tl.load(parts_ptr + place + channels, mask=met, other=0).to(tl.float64)
        column = base + begin + tl.arange(0, COLUMNS)
        wanted = column < base + wide
        total = tl.sum(left, axis=0)
        product = tl.sum(right, axis=0) * rstd
        place = item * channels + column
        a, b = store_sums(out_totals_ptr, out_products_ptr, weight_ptr, place, column, wanted, total, product, WEIGHT)
        shift += a
        slope += b
    exact: tl.constexpr = out_slopes_ptr.dtype.element_ty
    inverse = inverse_of(length * wide)
    factor = -rstd * inverse
    tl.store(out_slopes_ptr + program, (tl.sum(slope, axis=0) * factor * rstd).to(exact))
    tl.store(out_slopes_ptr + batch_size * groups + program, (tl.sum(shift, axis=0) * factor).to(exact))


@triton.jit(do_not_specialize=["groups", "batch_size"])
def affine_kernel(
    feats_ptr,
    grads_ptr,
    offsets_ptr,
    means_ptr,
    rstds_ptr,
    weight_ptr,
    bias_ptr,
    slopes_ptr,
    out_feats_ptr,
    channels,
    groups,
    batch_size,
    GRADIENT: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write rows `(x - mean) * factor + bias`, where factor is rstd * weight; programs as in `moments_kernel`.

    With GRADIENT, write `g * factor + (x - mean) * slope + shift`.
    """
    exact: tl.constexpr = means_ptr.dtype.element_ty
    blocks = tl.cdiv(channels, COLUMNS)
    number = (tl.program_id(0) // blocks).to(tl.int64)
    column = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    wanted = column < channels
    item, first, last = find_chunk(number, offsets_ptr, batch_size)
    own = item * groups + column // (channels // groups)
    mean = tl.load(means_ptr + own, mask=wanted, other=0)
    factor = tl.load(rstds_ptr + own, mask=wanted, other=0) * weight_of(weight_ptr, column, wanted, exact, WEIGHT)
    slope = factor
    shift = tl.zeros([COLUMNS], exact)
    if GRADIENT:
        slope = tl.load(slopes_ptr + own, mask=wanted, other=0)
        shift = tl.load(slopes_ptr + batch_size * groups + own, mask=wanted, other=0)
    elif BIAS:
        shift = tl.load(bias_ptr + column, mask=wanted, other=0).to(exact)
    for start in range(0, last - first, ROWS):
        row = first + start + tl.arange(0, ROWS)
        met = (row < last)[:, None] & wanted[None, :]
        place = row[:, None] * channels + column[None, :]
        x = tl.load(feats_ptr + place, mask=met, other=0).to(exact)
        result = (x - mean[None, :]) * slope[None, :] + shift[None, :]
        if GRADIENT:
            result += tl.load(grads_ptr + place, mask=met, other=0).to(exact) * factor[None, :]
        tl.store(out_feats_ptr + place, result.to(out_feats_ptr.dtype.element_ty), mask=met)


@triton.jit(do_not_specialize=["groups"])
def group_kernel(
    feats_ptr,
    offsets_ptr,
    weight_ptr,
    bias_ptr,
    out_means_ptr,
    out_rstds_ptr,
    out_feats_ptr,
    channels,
    groups,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    EPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Normalize one group of an item that has few rows. BLOCK is 1."""
    exact: tl.constexpr = out_means_ptr.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    item = program // groups
    wide = channels // groups
    base = (program % groups) * wide
    first = tl.load(offsets_ptr + item)
    last = tl.load(offsets_ptr + item + 1)
    inverse = inverse_of((last - first) * wide)
    # 1. Take the mean.
    left = tl.zeros([FEW_ROWS, COLUMNS], exact)
    for row in range(first, last, FEW_ROWS):
        for begin in range(0, wide, COLUMNS):
            place, met = tile(row, last, begin, wide, base, channels, FEW_ROWS, COLUMNS)
            left += tl.load(feats_ptr + place, mask=met, other=0).to(exact)
    center = (total_of(left) * inverse).to(exact)
    # 2. Take the variance, and the rounding error of the mean.
    left = tl.zeros([FEW_ROWS, COLUMNS], exact)
    right = tl.zeros([FEW_ROWS, COLUMNS], exact)
    for row in range(first, last, FEW_ROWS):
        for begin in range(0, wide, COLUMNS):
            place, met = tile(row, last, begin, wide, base, channels, FEW_ROWS, COLUMNS)
            x = tl.load(feats_ptr + place, mask=met, other=0).to(exact)
            apart = tl.where(met, x - center, 0.0)
            left += apart
            right += apart * apart
    off = total_of(left) * inverse
    variance = total_of(right) * inverse - off * off
    size = (last - first) * wide
    exact_mean = center.to(tl.float64) + off
    mean, rstd = store_statistics(out_means_ptr, out_rstds_ptr, program, size, exact_mean, variance, EPS)
    # 3. Write the rows.
    for begin in range(0, wide, COLUMNS):
        column = base + begin + tl.arange(0, COLUMNS)
        wanted = column < base + wide
        slope = rstd * weight_of(weight_ptr, column, wanted, exact, WEIGHT)
        shift = tl.zeros([COLUMNS], exact)
        if BIAS:
            shift = tl.load(bias_ptr + column, mask=wanted, other=0).to(exact)
        for row in range(first, last, FEW_ROWS):
            place, met = tile(row, last, begin, wide, base, channels, FEW_ROWS, COLUMNS)
            x = tl.load(feats_ptr + place, mask=met, other=0).to(exact)
            result = (x - mean) * slope[None, :] + shift[None, :]
            tl.store(out_feats_ptr + place, result.to(out_feats_ptr.dtype.element_ty), mask=met)


@triton.jit(do_not_specialize=["groups"])
def group_gradient_kernel(
    feats_ptr,
    grads_ptr,
    offsets_ptr,
    means_ptr,
    rstds_ptr,
    weight_ptr,
    out_totals_ptr,
    out_products_ptr,
    out_feats_ptr,
    channels,
    groups,
    WEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute the gradient of the features of one group of an item that has few rows, and its sums. BLOCK is 1."""
    exact: tl.constexpr = means_ptr.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    item = program // groups
    wide = channels // groups
    base = (program % groups) * wide
    first = tl.load(offsets_ptr + item)
    last = tl.load(offsets_ptr + item + 1)
    mean = tl.load(means_ptr + program)
    rstd = tl.load(rstds_ptr + program)
    # 1. Sum over the rows, and then over the channels.
    shift = tl.zeros([COLUMNS], tl.float64)
    slope = tl.zeros([COLUMNS], tl.float64)
    for begin in range(0, wide, COLUMNS):
        left = tl.zeros([FEW_ROWS, COLUMNS], exact)
        right = tl.zeros([FEW_ROWS, COLUMNS], exact)
        for row in range(first, last, FEW_ROWS):
            place, met = tile(row, last, begin, wide, base, channels, FEW_ROWS, COLUMNS)
            g = tl.load(grads_ptr + place, mask=met, other=0).to(exact)
            left += g
            right += g * (tl.load(feats_ptr + place, mask=met, other=0).to(exact) - mean)
        column = base + begin + tl.arange(0, COLUMNS)
        wanted = column < base + wide
        total = tl.sum(left.to(tl.float64), axis=0)
        product = tl.sum(right.to(tl.float64), axis=0) * rstd
        place = item * channels + column
        a, b = store_sums(out_totals_ptr, out_products_ptr, weight_ptr, place, column, wanted, total, product, WEIGHT)
        shift += a
        slope += b
    inverse = inverse_of((last - first) * wide)
    factor = -rstd * inverse
    slope_of = (tl.sum(slope, axis=0) * factor * rstd).to(exact)
    shift_of = (tl.sum(shift, axis=0) * factor).to(exact)
    # 2. Write the rows.
    for begin in range(0, wide, COLUMNS):
        column = base + begin + tl.arange(0, COLUMNS)
        weight = weight_of(weight_ptr, column, column < base + wide, exact, WEIGHT)
        for row in range(first, last, FEW_ROWS):
            place, met = tile(row, last, begin, wide, base, channels, FEW_ROWS, COLUMNS)
            x = tl.load(feats_ptr + place, mask=met, other=0).to(exact)
            g = tl.load(grads_ptr + place, mask=met, other=0).to(exact)
            result = (x - mean) * slope_of + shift_of + g * (rstd * weight)[None, :]
            tl.store(out_feats_ptr + place, result.to(out_feats_ptr.dtype.element_ty), mask=met)


def group_norm(
    feats: Tensor, offsets: Tensor, weight: Tensor | None, bias: Tensor | None, num_groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalized features [N, C], and mean and 1 / standard deviation [B, G], 0 in empty items."""
    feats = feats.contiguous()
    (rows, channels), items = feats.shape, offsets.shape[0] - 1
    exact = torch.float64 if feats.dtype == torch.float64 else torch.float32
    out = torch.empty_like(feats)
    mean, rstd = (feats.new_empty((items, num_groups), dtype=exact) for _ in range(2))
    affine = {"WEIGHT": weight is not None, "BIAS": bias is not None}
    # Arguments that a kernel does not read may be any tensor.
    w, b = (feats if parameter is None else parameter.contiguous() for parameter in (weight, bias))
    n = items * num_groups
    if rows <= FEW:
        launch(
            group_kernel,
            n,
            *(feats, offsets, w, b, mean, rstd, out),
            *(channels, num_groups),
            EPS=eps,
            COLUMNS=16,
            block=1,
            lanes=INTERPRETER_LANES,
            num_warps=8,
            **affine,
        )
        return out, mean, rstd
    parts = _moments(feats, None, offsets, mean)
    sizes = (channels, num_groups)
    launch(
        statistics_kernel, n, parts, offsets, mean, rstd, *sizes, EPS=eps, COLUMNS=8, block=1, lanes=INTERPRETER_LANES
    )
    _affine((feats, feats, offsets, mean, rstd, w, b, rstd, out), GRADIENT=False, **affine)
    return out, mean, rstd


def group_norm_backward(
    grad: Tensor, feats: Tensor, offsets: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the features [N, C], and of weight and bias [C] in the dtype of the statistics."""
    feats, grad = feats.contiguous(), grad.contiguous()
    (rows, channels), (items, num_groups) = feats.shape, mean.shape
    out = torch.empty_like(feats)
    totals, products = (mean.new_empty((items, channels)) for _ in range(2))
    has_weight = weight is not None
    w = feats if weight is None else weight.contiguous()
    n = items * num_groups
    if rows <= FEW:
        launch(
            group_gradient_kernel,
            n,
            *(feats, grad, offsets, mean, rstd, w, totals, products, out),
            *(channels, num_groups),
            WEIGHT=has_weight,
            COLUMNS=16,
            block=1,
            lanes=INTERPRETER_LANES,
            num_warps=8,
        )
    else:
        parts = _moments(feats, grad, offsets, mean)
        slopes = mean.new_empty((2, items, num_groups))
        launch(
            coefficients_kernel,
            n,
            *(parts, offsets, rstd, w, totals, products, slopes),
            *(channels, num_groups, items),
            WEIGHT=has_weight,
            COLUMNS=8,
            block=1,
            lanes=INTERPRETER_LANES,
        )
        _affine((feats, grad, offsets, mean, rstd, w, w, slopes, out), GRADIENT=True, WEIGHT=has_weight, BIAS=False)
    if items == 1:
        return out, products.view(channels), totals.view(channels)
    return out, products.sum(0), totals.sum(0)


def _moments(feats: Tensor, grad: Tensor | None, offsets: Tensor, mean: Tensor) -> Tensor:
    """Run `moments_kernel`: two numbers per chunk and channel, [T, 2, C]."""
    items, channels = offsets.shape[0] - 1, feats.shape[1]
    chunks = feats.shape[0] // CHUNK.value + items
    parts = mean.new_empty((chunks, 2, channels), dtype=torch.float64 if grad is None else mean.dtype)
    arguments = (feats, feats if grad is None else grad, offsets, mean, parts, channels, mean.shape[1], items)
    flags = {"GRADIENT": grad is not None, "COLUMNS": COLUMNS}
    n = chunks * cdiv(channels, COLUMNS)
    launch(moments_kernel, n, *arguments, block=1, lanes=INTERPRETER_LANES, **flags)
    return parts


def _affine(arrays: tuple[Tensor, ...], **flags: bool) -> None:
    """Run `affine_kernel` over all chunks."""
    feats, _, offsets, mean, *_ = arrays
    items, channels = offsets.shape[0] - 1, feats.shape[1]
    n = (feats.shape[0] // CHUNK.value + items) * cdiv(channels, COLUMNS)
    sizes = (channels, mean.shape[1], items)
    launch(affine_kernel, n, *arrays, *sizes, COLUMNS=COLUMNS, block=1, lanes=INTERPRETER_LANES, **flags)
