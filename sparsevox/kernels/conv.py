"""Convolution as an implicit GEMM: gathered rows times the weight of a tap, one tile of output rows after the other.

N input rows, M output rows, K taps, P pairs, T blocks of output rows. Tensors have C input and D output channels in G
groups; the flags C and D of kernels are the channels of one group.
"""

import os
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsevox.kernels._conv_configs import arch, conv_flags, split_blocks, weight_flags
from sparsevox.kernels._launch import cdiv, launch_programs
from sparsevox.plans import PairLists, RowPlan

# The interpreter would multiply the bits of bfloat16 as if they were integers.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def multiply_add(a, b, acc, PRECISION: tl.constexpr):
    """`acc + a @ b`."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit(do_not_specialize=["n_rows", "taps"])
def conv_kernel(
    feats_ptr,
    weight_ptr,
    bias_ptr,
    table_ptr,
    order_ptr,
    taps_ptr,
    lengths_ptr,
    out_feats_ptr,
    n_rows,
    taps,
    C: tl.constexpr,
    D: tl.constexpr,
    GROUPS: tl.constexpr,
    BIAS: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Compute ROWS output rows times COLUMNS output channels: of one group with tl.dot (DOT), else of all groups.

    One loop runs over the taps of the plan's tile and over the input channels, CHANNELS per step, without branches that
    would break the software pipeline. TILE rows share a list of taps.
    """
    exact: tl.constexpr = tl.float64 if feats_ptr.dtype.element_ty == tl.float64 else tl.float32
    wide: tl.constexpr = D if DOT else D * GROUPS
    d_tiles: tl.constexpr = (wide + COLUMNS - 1) // COLUMNS
    steps: tl.constexpr = (C + CHANNELS - 1) // CHANNELS
    programs: tl.constexpr = d_tiles * GROUPS if DOT else d_tiles
    # 1. Find the output rows and channels of this program. Programs that share rows have consecutive numbers.
    group = tl.program_id(0) % programs // d_tiles
    tile = (tl.program_id(0) // programs).to(tl.int64)
    place = tile * ROWS + tl.arange(0, ROWS)
    row = tl.load(order_ptr + place, mask=place < n_rows, other=0).to(tl.int64)
    plan = tile * ROWS // TILE
    length = tl.load(lengths_ptr + plan)
    d = tl.program_id(0) % d_tiles * COLUMNS + tl.arange(0, COLUMNS)
    out_channel = group * D + d
    acc = tl.zeros([ROWS, COLUMNS], exact)
    # 2. Gather the input rows of each tap and multiply them by its weight.
    for step in range(length * steps):
        tap = tl.load(taps_ptr + plan * taps + step // steps).to(tl.int64)
        source = tl.load(table_ptr + tap * n_rows + row, mask=place < n_rows, other=-1).to(tl.int64)
        present = (source >= 0)[:, None]
        weight_row = weight_ptr + tap * (C * D * GROUPS)
        if DOT:
            c = step % steps * CHANNELS + tl.arange(0, CHANNELS)
            a_mask = present
            if C % CHANNELS != 0:
                a_mask = present & (c < C)[None, :]
            # [ROWS, CHANNELS] times [CHANNELS, COLUMNS]
            a = tl.load(feats_ptr + source[:, None] * (C * GROUPS) + (group * C + c)[None, :], mask=a_mask, other=0.0)
            b_ptr = weight_row + c[:, None] * (D * GROUPS) + out_channel[None, :]
            if C % CHANNELS != 0 or D % COLUMNS != 0:
                b = tl.load(b_ptr, mask=(c < C)[:, None] & (d < D)[None, :], other=0.0)
            else:
                b = tl.load(b_ptr)
            acc = multiply_add(a, b, acc, PRECISION)
        else:
            c = step % steps
            inside = d < wide
            a_ptr = feats_ptr + source[:, None] * (C * GROUPS) + (d // D * C + c)[None, :]
            a = tl.load(a_ptr, mask=present & inside[None, :], other=0.0)
            b = tl.load(weight_row + c * (D * GROUPS) + d, mask=inside, other=0.0)
            acc += a.to(exact) * b.to(exact)[None, :]
    # 3. Add the bias and write the rows.
    if BIAS:
        acc += tl.load(bias_ptr + out_channel, mask=d < wide, other=0.0).to(exact)[None, :]
    out_ptr = out_feats_ptr + row[:, None] * (D * GROUPS) + out_channel[None, :]
    mask = (place < n_rows)[:, None] & (d < wide)[None, :]
    tl.store(out_ptr, acc.to(out_feats_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n_items", "taps", "length"])
def conv_weight_kernel(
    feats_ptr,
    grads_ptr,
    sources_ptr,
    targets_ptr,
    places_ptr,
    partials_ptr,
    n_items,
    taps,
    length,
    C: tl.constexpr,
    D: tl.constexpr,
    GROUPS: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    PAIRS: tl.constexpr,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute CHANNELS input times COLUMNS output channels of one tap, summed over the pairs of `length` blocks.

    `places_ptr` holds the start of the pairs of each of `n_items` blocks and each tap. Without DOT, CHANNELS is 1.
    """
    exact: tl.constexpr = tl.float64 if feats_ptr.dtype.element_ty == tl.float64 else tl.float32
    wide: tl.constexpr = D if DOT else D * GROUPS
    d_tiles: tl.constexpr = (wide + COLUMNS - 1) // COLUMNS
    c_tiles: tl.constexpr = (C + CHANNELS - 1) // CHANNELS
    programs: tl.constexpr = d_tiles * c_tiles * (GROUPS if DOT else 1)
    # 1. Find the tap, the blocks and the channels of this program. Taps of the same blocks run concurrently.
    tile = tl.program_id(0) % programs
    tap = (tl.program_id(0) // programs % taps).to(tl.int64)
    split = (tl.program_id(0) // programs // taps).to(tl.int64)
    group = tile // (d_tiles * c_tiles)
    c = tile // d_tiles % c_tiles * CHANNELS + tl.arange(0, CHANNELS)
    d = tile % d_tiles * COLUMNS + tl.arange(0, COLUMNS)
    channel, out_channel = group * C + c, group * D + d
    if DOT:
        acc = tl.zeros([CHANNELS, COLUMNS], exact)
    else:
        acc = tl.zeros([PAIRS, COLUMNS], exact)
        channel = d // D * C + tile // d_tiles
    # 2. Sum the outer products of all pairs.
    for block in range(split * length, tl.minimum((split + 1) * length, n_items)):
        first = tl.load(places_ptr + block * taps + tap)
        last = tl.load(places_ptr + block * taps + tap + 1)
        for start in range(first, last, PAIRS):
            pair = start + tl.arange(0, PAIRS)
            source = tl.load(sources_ptr + pair, mask=pair < last, other=0).to(tl.int64)
            target = tl.load(targets_ptr + pair, mask=pair < last, other=0).to(tl.int64)
            active = pair < last
            b_ptr = grads_ptr + target[:, None] * (D * GROUPS) + out_channel[None, :]
            b = tl.load(b_ptr, mask=active[:, None] & (d < wide)[None, :], other=0.0)
            if DOT:
                a_ptr = feats_ptr + source[None, :] * (C * GROUPS) + channel[:, None]
                a = tl.load(a_ptr, mask=active[None, :] & (c < C)[:, None], other=0.0)
                acc = multiply_add(a, b, acc, PRECISION)
            else:
                a_ptr = feats_ptr + source[:, None] * (C * GROUPS) + channel[None, :]
                a = tl.load(a_ptr, mask=active[:, None] & (d < wide)[None, :], other=0.0)
                acc += a.to(exact) * b.to(exact)
    # 3. Write the partial sum of these blocks.
    out_ptr = partials_ptr + (split * taps + tap) * (C * D * GROUPS)
    mask = (c < C)[:, None] & (d < wide)[None, :]
    if DOT == 0:
        acc = tl.sum(acc, axis=0)[None, :]
    tl.store(out_ptr + c[:, None] * (D * GROUPS) + out_channel[None, :], acc, mask=mask)


def conv(
    feats: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plan: Sequence[Tensor],
    adjoint: Sequence[Tensor],
    pairs: Sequence[Tensor],
    symmetric: bool,
    groups: int,
) -> Tensor:
    """Features [M, D]: the sum over taps t of `feats[table[t]] @ weight[t]`, absent rows left out, plus the bias.

    `plan` holds the tensors of `RowPlan`.
    """
    table, order, lists, lengths = RowPlan(*plan)
    (taps, c, wide), n = weight.shape, table.shape[1]
    out = feats.new_empty((n, wide))
    if c == 0:
        return out.zero_() if bias is None else out.copy_(bias)
    rows, d_tiles, flags = conv_flags(c, wide // groups, groups, feats.dtype, bias is not None, arch(feats.device))
    launch_programs(
        conv_kernel,
        cdiv(n, rows) * d_tiles,
        (
            *(feats.contiguous(), _packed(weight, feats.dtype), lengths if bias is None else bias.contiguous()),
            *(table, order, lists, lengths, out, n, taps),
        ),
        flags,
    )
    return out


def _packed(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in a dtype, contiguous: at most one copy."""
    if weight.dtype == dtype:
        return weight.contiguous()
    return weight.to(dtype, memory_format=torch.contiguous_format)


def conv_weight(
    feats: Tensor,
    grads: Tensor,
    plan: Sequence[Tensor],
    adjoint: Sequence[Tensor],
    pairs: Sequence[Tensor],
    symmetric: bool,
    groups: int,
    dtype: torch.dtype,
) -> Tensor:
    """Gradient [K, C / G, D] of the weight: the sum over pairs of `feats[source]^T @ grads[target]`, tap by tap.

    `pairs` holds the tensors of `PairLists`.
    """
    sources, targets, starts = PairLists(*pairs)
    taps, c, wide = plan[0].shape[0], feats.shape[1] // groups, grads.shape[1]
    # Not the rows of `plan`: in a second derivative the pairs are those of the other direction.
    blocks = (starts.shape[0] - 1) // taps
    length = split_blocks(blocks, taps, c, wide // groups, groups)
    exact = torch.float64 if feats.dtype == torch.float64 else torch.float32
    # Without blocks there are no pairs, and the sum is over no parts.
    partials = feats.new_empty((cdiv(blocks, length), taps, c, wide), dtype=exact)
    tiles, flags = weight_flags(c, wide // groups, groups, feats.dtype, arch(feats.device))
    launch_programs(
        conv_weight_kernel,
        partials.shape[0] * taps * tiles,
        (
            *(feats.contiguous(), grads.to(feats.dtype).contiguous(), sources, targets, starts, partials),
            *(blocks, taps, length),
        ),
        flags,
    )
    total = partials[0] if partials.shape[0] == 1 else partials.sum(0)
    return total if dtype == exact else total.to(dtype)
