"""Pooling through tables, its gradients, and the parents and children of voxels.

N input rows, M output rows, C channels, K taps.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from sparsevox.reference._runs import lanes, run_starts, true_indices


def child_ranges(
    keys: Tensor, masks: Tensor, starts: Tensor, rows: Tensor, coarse_rows: Tensor, level: int
) -> tuple[Tensor, Tensor]:
    """Parent of each voxel in the grid coarsened by 2^level, int32 [N]; first child of each parent, int32 [M + 1]."""
    lane = lanes(masks)
    # A brick is 2^2 voxels wide. As coordinates are biased by 2^17, equal high bits of codes mean equal floor(ijk /
    # 2^n).
    blocks = lane >> 3 * level if level <= 2 else (keys >> 3 * (level - 2))[lane >> 6]
    first = run_starts(blocks)
    opens = torch.zeros(rows.shape[0], dtype=torch.int32, device=keys.device).index_fill_(0, first, 1)
    ranges = torch.cat([first.int(), starts.new_tensor([rows.shape[0]])])
    return opens.cumsum(0, dtype=torch.int32).sub_(1), ranges


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
    exact = torch.promote_types(feats.dtype, torch.float32)
    values = feats / divisors[:, None].to(exact) if divisors is not None and before else feats
    if table.shape[0] == 1 and feats.shape[0]:
        out, absent = values.index_select(0, table[0].clamp(min=0)), true_indices(table[0] < 0)
        out.index_fill_(0, absent, 0)
    else:
        out = feats.new_zeros((table.shape[1], feats.shape[1]), dtype=exact)
        for rows, sources in _taps(table):
            out.index_add_(0, rows, values.index_select(0, sources).to(exact))
    if divisors is not None and not before:
        out = out / divisors[:, None].to(exact)
    return out.to(feats.dtype)


def max_table(feats: Tensor, table: Tensor, adjoint: Tensor | None) -> tuple[Tensor, Tensor]:
    """Largest element over taps, 0 where all are absent, and its row, the lowest of equals: two [M, C]. NaN wins."""
    out = feats.new_zeros((table.shape[1], feats.shape[1]))
    winners = torch.full(out.shape, -1, dtype=torch.int32, device=feats.device)
    for rows, sources in _taps(table):
        value, best = feats.index_select(0, sources), out.index_select(0, rows)
        winner, row = winners.index_select(0, rows), sources[:, None]
        same = (value == best) | (value.isnan() & best.isnan())
        larger = ~(value <= best) & ~best.isnan()
        better = (winner < 0) | larger | (same & (row < winner))
        out.index_copy_(0, rows, torch.where(better, value, best))
        winners.index_copy_(0, rows, torch.where(better, row, winner))
    return out, winners if adjoint is not None else winners[:0].clone()


def place_rows(values: Tensor, winners: Tensor, table: Tensor) -> Tensor:
    """Sum over taps of the values whose winner is the output row: [table.shape[1], C]."""
    exact = torch.promote_types(values.dtype, torch.float32)
    out = values.new_zeros((table.shape[1], values.shape[1]), dtype=exact)
    if table.shape[0] == 1 and table.shape[1]:  # every value has one winner: nothing collides
        out.scatter_add_(0, winners.clamp(min=0).long(), values.to(exact).masked_fill(winners < 0, 0))
        return out.to(values.dtype)
    for rows, sources in _taps(table):
        own = winners.index_select(0, sources) == rows[:, None]
        out.index_add_(0, rows, values.index_select(0, sources).to(exact).masked_fill_(~own, 0))
    return out.to(values.dtype)


def take_rows(feats: Tensor, winners: Tensor, table: Tensor) -> Tensor:
    """Element `feats[winners[m, c], c]`, 0 where there is no winner: [M, C]."""
    if feats.shape[0] == 0:
        return feats.new_zeros(winners.shape)
    return feats.gather(0, winners.clamp(min=0).long()).masked_fill_(winners < 0, 0)


def _taps(table: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Output and input rows of the pairs of each tap."""
    for sources in table:
        rows = true_indices(sources >= 0)
        yield rows, sources.index_select(0, rows)
