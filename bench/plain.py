"""Convolution in plain torch, as people write it who have no library: tap by tap, gather, multiply, add.

N fine voxels, M coarse voxels, K taps, C input and D output channels.
"""

from collections.abc import Sequence

from torch import Tensor

Pairs = Sequence[tuple[Tensor, Tensor]]  # input and output rows int64 of each tap


def pairs(table: Tensor) -> Pairs:
    """The pairs of each tap of a table [K, M] of input rows, -1 where there is none."""
    found = []
    for rows in table:
        there = (rows >= 0).nonzero().flatten()
        found.append((rows[there].long(), there))
    return found


def conv(feats: Tensor, weight: Tensor, the_pairs: Pairs, rows: int) -> Tensor:
    """Features [M, D] of features [N, C] and a weight [K, C, D]."""
    out = feats.new_zeros(rows, weight.shape[2])
    for matrix, (src, dst) in zip(weight, the_pairs, strict=True):
        out.index_add_(0, dst, feats.index_select(0, src) @ matrix)
    return out


def conv_within(feats: Tensor, weight: Tensor, the_pairs: Pairs) -> Tensor:
    """The same in one grid, where the middle tap needs no gathering."""
    middle = len(weight) // 2
    out = feats @ weight[middle]
    for tap, (src, dst) in enumerate(the_pairs):
        if tap != middle:
            out.index_add_(0, dst, feats.index_select(0, src) @ weight[tap])
    return out
