"""Ranges of rows, each reduced to one row. Long ranges are cut into pieces, whose results are reduced in turn.

Only the device knows the lengths of ranges. But M ranges of N rows have at most N // PIECE + M pieces of PIECE rows.
With room for that many pieces, empty ones at the end, the host need not wait. N input rows, M output rows, C channels.
"""

import torch
from torch import Tensor

from sparsevox.kernels._reduce import extreme_rows, reduce_rows

DIRECT = 512  # ranges known to have at most this many rows are not cut
PIECE = 32  # rows of a piece


def sum_ranges(
    feats: Tensor,
    ranges: Tensor,
    children: Tensor | None,
    parents: Tensor | None,
    divisors: Tensor | None,
    longest: int,
) -> Tensor:
    """Sum of the rows of each range, or of those that `children` lists, divided by its divisor: [M, C]."""
    exact = torch.promote_types(feats.dtype, torch.float32)
    values, sources = feats, children
    for pieces, groups in _rounds(ranges, feats.shape[0], longest):
        values = reduce_rows(values, "sum", ranges=pieces, sources=sources, dtype=exact)
        ranges, sources = groups, None
    return reduce_rows(values, "sum", ranges=ranges, sources=sources, divisors=divisors, dtype=feats.dtype)


def extreme_ranges(
    feats: Tensor, ranges: Tensor, children: Tensor | None, parents: Tensor | None, largest: bool, longest: int
) -> tuple[Tensor, Tensor]:
    """Largest or smallest element [M, C] of each range, and its row int32 [M, C], the first of equals. NaN wins."""
    word, keep = "max" if largest else "min", parents is not None
    values, sources = feats, children
    winners: Tensor | None = None
    for pieces, groups in _rounds(ranges, feats.shape[0], longest):
        values, found = extreme_rows(values, word, ranges=pieces, sources=sources, keep=keep)
        winners, ranges, sources = _trace(winners, found), groups, None
    values, found = extreme_rows(values, word, ranges=ranges, sources=sources, keep=keep)
    return values, _trace(winners, found)


def _trace(winners: Tensor | None, found: Tensor) -> Tensor:
    """Convert rows of the previous round to rows of the features."""
    if winners is None or found.numel() == 0:
        return found
    return torch.where(found < 0, -1, winners.gather(0, found.clamp(min=0).long()))


def _rounds(ranges: Tensor, rows: int, longest: int) -> list[tuple[Tensor, Tensor]]:
    """Pieces, and the range of pieces of each range, round by round, until ranges are short enough."""
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
