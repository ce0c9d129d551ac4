"""Convolution: gather, multiply, sum, block by block of output rows.

N input rows, M output rows, C input and D output channels, G groups, K taps, P pairs, T blocks of output rows.
Weights are [K, C / G, D]: output channel d sees the input channels of its group, d // (D / G).
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sparsevox.geometry import pair_block


def conv(
    feats: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gather: Sequence[Tensor],
    adjoint: Sequence[Tensor],
    pairs: Sequence[Tensor],
    symmetric: bool,
    groups: int,
) -> Tensor:
    """Features [M, D]: the sum over taps t of `feats[table[t]] @ weight[t]`, absent rows left out, plus the bias.

    `gather` holds the table, input rows and starts of the pairs, their order by output row and the bags.
    """
    table, src, starts, order, bags = gather
    dtype = _accumulator(feats.dtype)
    matrices = _by_group(weight.to(feats.dtype).to(dtype), groups)
    block = pair_block(table.shape[0])
    out = feats.new_empty((table.shape[1], weight.shape[2]))
    # Buffers that live as long as the call: fresh memory costs as much as the work.
    most = max((taps[-1] - taps[0] for _, taps in _blocks(starts, table.shape[0], block)), default=0)
    products = feats.new_empty((most, weight.shape[2]), dtype=dtype)
    rows = feats.new_empty((block, feats.shape[1]))
    for first, taps in _blocks(starts, table.shape[0], block):
        begin, end = taps[0], taps[-1]
        sources = src[begin:end].long()
        for tap, (a, b) in enumerate(pairwise(taps)):
            if a < b:
                torch.index_select(feats, 0, sources[a - begin : b - begin], out=rows[: b - a])
                _multiply(rows[: b - a].to(dtype), matrices[tap], products[a - begin : b - begin])
        last = min(first + block, table.shape[1])
        sums = _sum_bags(products[: end - begin], order[begin:end], bags[first : last + 1] - begin)
        out[first:last] = sums if bias is None else sums.add_(bias.to(dtype))
    return out


def conv_weight(
    feats: Tensor,
    grads: Tensor,
    gather: Sequence[Tensor],
    adjoint: Sequence[Tensor],
    pairs: Sequence[Tensor],
    symmetric: bool,
    groups: int,
    dtype: torch.dtype,
) -> Tensor:
    """Gradient [K, C / G, D] of the weight: the sum over pairs of `feats[src]^T @ grads[dst]`, tap by tap."""
    src, dst, starts = pairs
    taps, exact = gather[0].shape[0], _accumulator(feats.dtype)
    out = feats.new_zeros((taps, groups, feats.shape[1] // groups, grads.shape[1] // groups), dtype=exact)
    left_rows = feats.new_empty((pair_block(taps), feats.shape[1]))
    right_rows = grads.new_empty((pair_block(taps), grads.shape[1]))
    for _, edges in _blocks(starts, taps, pair_block(taps)):
        begin, end = edges[0], edges[-1]
        sources, targets = src[begin:end].long(), dst[begin:end].long()
        for tap, (a, b) in enumerate(pairwise(edges)):
            if a < b:
                pair = slice(a - begin, b - begin)
                left = torch.index_select(feats, 0, sources[pair], out=left_rows[: b - a]).to(exact)
                right = torch.index_select(grads, 0, targets[pair], out=right_rows[: b - a]).to(exact)
                if groups == 1:
                    out[tap, 0].addmm_(left.t(), right)
                else:
                    out[tap].baddbmm_(_split(left, groups).transpose(1, 2), _split(right, groups))
    return out.transpose(1, 2).flatten(2).to(dtype)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _blocks(starts: Tensor, taps: int, block: int) -> Iterator[tuple[int, list[int]]]:
    """First output row of each block, and where the pairs of each tap start; the last entry ends them."""
    edges = starts.tolist()
    for number in range((len(edges) - 1) // taps):
        yield number * block, edges[number * taps : (number + 1) * taps + 1]


def _by_group(weight: Tensor, groups: int) -> Tensor:
    """Matrices [K, G, C / G, D / G]."""
    return weight.unflatten(2, (groups, -1)).transpose(1, 2).contiguous()


def _split(rows: Tensor, groups: int) -> Tensor:
    """Rows [P, C] by group: [G, P, C / G]."""
    return rows.unflatten(1, (groups, -1)).transpose(0, 1)


def _multiply(rows: Tensor, matrices: Tensor, out: Tensor) -> None:
    """Write `rows` [P, C] times the matrix [C / G, D / G] of each group to `out` [P, D]."""
    groups = matrices.shape[0]
    if groups == 1:
        torch.mm(rows, matrices[0], out=out)
    elif matrices.shape[1] == 1:
        torch.mul(rows[:, :, None], matrices[:, 0], out=out.unflatten(1, (groups, -1)))
    else:
        out.copy_(torch.bmm(_split(rows, groups), matrices).transpose(0, 1).flatten(1))


def _sum_bags(products: Tensor, numbers: Tensor, bags: Tensor) -> Tensor:
    """Sum of the products of each output row, in the order of taps: [rows, D]."""
    return torch.nn.functional.embedding_bag(
        numbers, products, bags.to(numbers.dtype), mode="sum", include_last_offset=True
    )
