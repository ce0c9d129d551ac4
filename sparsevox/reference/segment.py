"""Ranges of rows, each reduced to one row. Long ranges are cut into pieces, whose results are reduced in turn.

N input rows, M output rows, C channels.
"""

import torch
from torch import Tensor

from sparsevox.reference._runs import true_indices

SUM_PIECE = 64  # rows of one sum, at most
EXTREME_PIECE = 8  # steps of one loop over the rows of ranges, at most
BLOCK = 1 << 12  # ranges that are searched together: they fit in the cache of a CPU core


def sum_ranges(
    feats: Tensor,
    ranges: Tensor,
    children: Tensor | None,
    parents: Tensor | None,
    divisors: Tensor | None,
    longest: int,
) -> Tensor:
    """Sum of the rows of each range, or of those that `children` lists, divided by its divisor: [M, C]."""
    # The first bag must begin at 0, and the last one must end with the list.
    rows = _listed(feats, ranges, children)[int(ranges[0]) : int(ranges[-1])]
    ranges = ranges - ranges[0]
    sums = feats.to(torch.promote_types(feats.dtype, torch.float32))
    while True:
        pieces, groups = _cut(ranges, SUM_PIECE)
        sums = torch.nn.functional.embedding_bag(rows, sums, pieces, mode="sum", include_last_offset=True)
        if groups is None:
            break
        ranges, rows = groups, torch.arange(sums.shape[0], dtype=torch.int32, device=sums.device)
    return (sums if divisors is None else sums / divisors[:, None]).to(feats.dtype)


def extreme_ranges(
    feats: Tensor, ranges: Tensor, children: Tensor | None, parents: Tensor | None, largest: bool, longest: int
) -> tuple[Tensor, Tensor]:
    """Largest or smallest element [M, C] of each range, and its row int32 [M, C], the first of equals. NaN wins."""
    if parents is None:
        return _extremes(feats, ranges, children, largest), feats.new_empty((0, feats.shape[1]), dtype=torch.int32)
    rows, values, winners = _listed(feats, ranges, children), feats, None
    while True:
        pieces, groups = _cut(ranges, EXTREME_PIECE)
        values, found = _first_extremes(values, rows, pieces, largest)
        # Rows of the features; `found` are pieces of the previous round.
        known = found if winners is None else winners.gather(0, found.clamp(min=0).long())
        winners = torch.where(found < 0, -1, known)
        if groups is None:
            return values, winners
        ranges, rows = groups, torch.arange(values.shape[0], dtype=torch.int32, device=values.device)


def _listed(feats: Tensor, ranges: Tensor, children: Tensor | None) -> Tensor:
    return torch.arange(feats.shape[0], dtype=torch.int32, device=ranges.device) if children is None else children


def _cut(ranges: Tensor, length: int) -> tuple[Tensor, Tensor | None]:
    """Cut ranges into pieces of at most `length` rows: their bounds, and the ranges of pieces; None if none was cut."""
    lengths = ranges.diff()
    if lengths.numel() == 0 or lengths.max() <= length:
        return ranges, None
    counts = (lengths + length - 1) // length
    groups = torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
    owner = torch.repeat_interleave(counts)
    number = torch.arange(owner.shape[0], dtype=torch.int32, device=ranges.device) - groups[owner]
    return torch.cat([ranges[owner] + number * length, ranges[-1:]]), groups


def _extremes(feats: Tensor, ranges: Tensor, children: Tensor | None, largest: bool) -> Tensor:
    """The values without their rows."""
    if feats.numel() == 0 or ranges.shape[0] == 1:
        return feats.new_zeros((ranges.shape[0] - 1, feats.shape[1]))
    values, empty = feats if children is None else feats.index_select(0, children), ranges.diff() == 0
    groups: Tensor | None = ranges
    while groups is not None:
        pieces, groups = _cut(groups, SUM_PIECE)
        word = "max" if largest else "min"
        values = torch.segment_reduce(values, word, offsets=pieces.long(), axis=0, unsafe=True)
    return values.masked_fill_(empty[:, None], 0)


def _first_extremes(feats: Tensor, rows: Tensor, ranges: Tensor, largest: bool) -> tuple[Tensor, Tensor]:
    out = feats.new_zeros((ranges.shape[0] - 1, feats.shape[1]))
    winners = torch.full(out.shape, -1, dtype=torch.int32, device=feats.device)
    lengths = ranges.diff()
    for first in range(0, out.shape[0], BLOCK):
        some = true_indices(lengths[first : first + BLOCK] > 0) + first
        if some.shape[0]:
            values, places = _look_through(feats, rows, ranges[some], lengths[some], largest)
            out[some], winners[some] = values, places
    return out, winners


def _look_through(feats: Tensor, rows: Tensor, starts: Tensor, lengths: Tensor, largest: bool) -> tuple[Tensor, Tensor]:
    """Scan nonempty ranges step by step, in parallel; a range that has ended repeats its last row."""
    best = feats.index_select(0, rows[starts])
    winners = rows[starts][:, None].expand(best.shape).contiguous()
    for step in range(1, int(lengths.max())):
        row = rows[starts + (lengths - 1).clamp(max=step)]
        value = feats.index_select(0, row)
        # Neither worse nor equal: better, or NaN.
        better = ((value <= best) if largest else (value >= best)).logical_not_().logical_and_(best == best)
        torch.where(better, value, best, out=best)
        torch.where(better, row[:, None], winners, out=winners)
    return best, winners
