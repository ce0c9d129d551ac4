"""One kernel that reduces rows given by ranges, lists or tables, to sums, extremes or gradients of extremes.

N input rows, M output rows, C channels, K taps.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsevox.kernels._launch import cdiv, launch

NARROW = 8  # channels of a program if the tensor has no more
WIDE = 32  # channels of a program otherwise


@triton.jit(do_not_specialize=["n_rows", "n_others", "taps"])
def reduce_kernel(
    feats_ptr,
    sources_ptr,
    ranges_ptr,
    winners_ptr,
    divisors_ptr,
    out_feats_ptr,
    out_winners_ptr,
    n_rows,
    n_others,
    channels,
    taps,
    SOURCE: tl.constexpr,
    REDUCE: tl.constexpr,
    DIVIDE: tl.constexpr,
    WINNERS: tl.constexpr,
    UNROLL: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Reduce `n_others` input rows to `n_rows` output rows. A program computes COLUMNS channels of a block of rows.

    SOURCE gives the input rows of an output row: the "rows" of a range, the entries of a range of a "list", or a
    "table". REDUCE is "sum", "max", "min" or "place": the sum of the elements whose winner is the output row. DIVIDE
    divides each output row by its divisor. WINNERS writes the rows of extremes.
    """
    exact: tl.constexpr = tl.float64 if feats_ptr.dtype.element_ty == tl.float64 else tl.float32
    parts = tl.cdiv(channels, COLUMNS)
    out_row = (tl.program_id(0) // parts).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    active = out_row < n_rows
    column = tl.program_id(0) % parts * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    wanted = active[:, None] & (column < channels)
    if SOURCE == "table":
        first = out_row
        length = tl.where(active, taps, 0).to(tl.int64)
    else:
        first = tl.load(ranges_ptr + out_row, mask=active, other=0).to(tl.int64)
        length = tl.load(ranges_ptr + out_row + 1, mask=active, other=0).to(tl.int64) - first
    longest = tl.max(length, axis=0)
    total = tl.zeros([BLOCK, COLUMNS], exact)
    winner = tl.full([BLOCK, COLUMNS], -1, tl.int32)
    for start in range(0, longest, UNROLL):
        for ahead in tl.static_range(UNROLL):
            step = tl.cast(start, tl.int64) + ahead
            inside = active & (step < length)
            if SOURCE == "rows":
                row = first + step
            elif SOURCE == "list":
                row = tl.load(sources_ptr + first + step, mask=inside, other=-1).to(tl.int64)
            else:
                row = tl.load(sources_ptr + step * n_rows + first, mask=inside, other=-1).to(tl.int64)
            inside = inside & (row >= 0) & (row < n_others)
            met = wanted & inside[:, None]
            place = row[:, None] * channels + column
            value = tl.load(feats_ptr + place, mask=met, other=0).to(exact)
            if REDUCE == "sum" or REDUCE == "place":
                if REDUCE == "place":
                    mine = tl.load(winners_ptr + place, mask=met, other=-1) == out_row[:, None]
                    value = tl.where(mine, value, 0.0)
                total += value
            else:
                # Neither worse nor equal: better, or NaN. The first NaN stays.
                worse = value <= total if REDUCE == "max" else value >= total
                better = (winner < 0) | ((worse == 0) & (total == total))
                number = row.to(tl.int32)[:, None]
                if SOURCE == "table":  # rows come in any order
                    same = (value == total) | ((value != value) & (total != total))
                    better = better | (same & (number < winner))
                better = better & met
                total = tl.where(better, value, total)
                winner = tl.where(better, number, winner)
    if DIVIDE:
        divisor = tl.load(divisors_ptr + out_row, mask=active, other=1).to(exact)[:, None]
        # The division "/" of float32 is approximate on NVIDIA GPUs.
        total = tl.div_rn(total, divisor) if exact == tl.float32 else total / divisor
    place = out_row[:, None] * channels + column
    tl.store(out_feats_ptr + place, total.to(out_feats_ptr.dtype.element_ty), mask=wanted)
    if WINNERS:
        tl.store(out_winners_ptr + place, winner, mask=wanted)


def reduce_rows(
    feats: Tensor,
    reduce: str,
    *,
    ranges: Tensor | None = None,
    sources: Tensor | None = None,
    winners: Tensor | None = None,
    divisors: Tensor | None = None,
    out_winners: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the reduced rows [M, C], and write the winners to `out_winners`, int32 [M, C].

    With `ranges`, `sources` is None or a list int32; without them, it is a table int32 [K, M].
    """
    feats = feats.contiguous()
    channels = feats.shape[1]
    if ranges is not None:
        source, n, taps = "rows" if sources is None else "list", ranges.shape[0] - 1, 0
    else:
        assert sources is not None
        source, n, taps = "table", sources.shape[1], sources.shape[0]
    out = torch.empty((n, channels), dtype=dtype or feats.dtype, device=feats.device)
    columns = NARROW if channels <= NARROW else WIDE
    # Arguments that the kernel does not read may be any tensor.
    arrays = [feats if a is None else a.contiguous() for a in (sources, ranges, winners, divisors)]
    arrays += [out, out if out_winners is None else out_winners]
    launch(
        reduce_kernel,
        n,
        *(feats, *arrays),
        *(n, feats.shape[0], channels, taps),
        SOURCE=source,
        REDUCE=reduce,
        DIVIDE=divisors is not None,
        WINNERS=out_winners is not None,
        UNROLL=1 if taps == 1 else 4,
        COLUMNS=columns,
        block=32,
        lanes=columns,
        parts=cdiv(channels, columns),
    )
    return out


def extreme_rows(
    feats: Tensor, reduce: str, *, keep: bool, ranges: Tensor | None = None, sources: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the largest or smallest elements [M, C], and with `keep` the winners int32 [M, C], else [0, C]."""
    rows = (sources.shape[1] if sources is not None else 0) if ranges is None else ranges.shape[0] - 1
    winners = feats.new_empty((rows if keep else 0, feats.shape[1]), dtype=torch.int32)
    out = reduce_rows(feats, reduce, ranges=ranges, sources=sources, out_winners=winners if keep else None)
    return out, winners
