"""Sparse convolution in plain PyTorch: for each kernel offset (tap), gather, multiply, scatter-add.

N fine voxels, M coarse voxels, K taps, C input channels, D output channels.
"""

from collections.abc import Sequence

from torch import Tensor

Pairs = Sequence[tuple[Tensor, Tensor]]  # input and output rows int64 of each tap


def pairs(table: Tensor) -> Pairs:
    """List the pairs of input and output rows of each tap, from a table [K, M] of input rows, -1 where absent."""
    found = []
    for rows in table:
        targets = (rows >= 0).nonzero().flatten()
        found.append((rows[targets].long(), targets))
    return found


def conv(feats: Tensor, weight: Tensor, the_pairs: Pairs, rows: int) -> Tensor:
    """Convolve features [N, C] with a weight [K, C, D]: [M, D]."""
    out = feats.new_zeros(rows, weight.shape[2])
    for matrix, (src, dst) in zip(weight, the_pairs, strict=True):
        out.index_add_(0, dst, feats.index_select(0, src) @ matrix)
    return out


def conv_within(feats: Tensor, weight: Tensor, the_pairs: Pairs) -> Tensor:
    """Convolve on a single grid (submanifold convolution), where the center tap needs no gather."""
    middle = len(weight) // 2
    out = feats @ weight[middle]
    for tap, (src, dst) in enumerate(the_pairs):
        if tap != middle:
            out.index_add_(0, dst, feats.index_select(0, src) @ weight[tap])
    return out
