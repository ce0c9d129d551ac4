"""Ranges of rows, reduced to one row each. Long ranges are cut in pieces, whose results are reduced in their turn.

How long ranges are only the device knows. But M ranges of N rows have at most N // PIECE + M pieces of PIECE rows: with
room for as many, the empty ones at the end, nothing waits. N input rows, M output rows, C channels.
"""

import torch
from torch import Tensor

from sparsevox.kernels._reduce import reduce_rows

DIRECT = 512  # rows that one lane may go through where ranges are known to be short
PIECE = 32  # rows of a piece


def sum_ranges(
    feats: Tensor,
    ranges: Tensor,
    children: Tensor | None,
    parents: Tensor | None,
    divisors: Tensor | None,
    longest: int,
) -> Tensor:
    """Sum of each range over its rows of `feats`, or those that `children` lists, over the divisor: [M, C]."""
    exact = torch.promote_types(feats.dtype, torch.float32)
    values, sources = feats, children
    for pieces, groups in _rounds(ranges, feats.shape[0], longest):
        values, _ = reduce_rows(values, "sum", ranges=pieces, sources=sources, dtype=exact)
        ranges, sources = groups, None
    return reduce_rows(values, "sum", ranges=ranges, sources=sources, divisors=divisors, dtype=feats.dtype)[0]


def extreme_ranges(
    feats: Tensor, ranges: Tensor, children: Tensor | None, parents: Tensor | None, largest: bool, longest: int
) -> tuple[Tensor, Tensor]:
    """Largest or smallest element of each range and its row, the first of equals; NaN wins: [M, C] and int32 [M, C]."""
    word, keep = "max" if largest else "min", parents is not None
    values, sources = feats, children
    winners: Tensor | None = None
    for pieces, groups in _rounds(ranges, feats.shape[0], longest):
        values, found = reduce_rows(values, word, ranges=pieces, sources=sources, keep_winners=keep)
        winners, ranges, sources = _trace(winners, found), groups, None
    values, found = reduce_rows(values, word, ranges=ranges, sources=sources, keep_winners=keep)
    return values, _trace(winners, found)


def _trace(winners: Tensor | None, found: Tensor) -> Tensor:
    """Rows of the features, where `found` are rows of the round before."""
    if winners is None or found.numel() == 0:
        return found
    return torch.where(found < 0, -1, winners.gather(0, found.clamp(min=0).long()))


def _rounds(ranges: Tensor, rows: int, longest: int) -> list[tuple[Tensor, Tensor]]:
    """Pieces and, for each range, its range of pieces, round by round, until ranges are short enough."""
    rounds: list[tuple[Tensor, Tensor]] = []
    longest = min(longest or rows, rows)
    if ranges.shape[0] == 1 or longest <= DIRECT:
        return rounds
    while longest > PIECE:
        pieces, groups = _cut(ranges, rows)
        rounds.append((pieces, groups))
        ranges, rows, longest = groups, pieces.shape[0] - 1, -(-longest // PIECE)
    return rounds


def _cut(ranges: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    counts = (ranges.diff().clamp(min=0) + PIECE - 1) // PIECE
    groups = torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
    number = torch.arange(rows // PIECE + counts.shape[0] + 1, device=ranges.device)
    owner = (torch.searchsorted(groups.long(), number, right=True) - 1).clamp(max=counts.shape[0] - 1)
    pieces = ranges[owner] + (number - groups[owner]) * PIECE
    return torch.minimum(pieces, ranges[owner + 1]).int(), groups
