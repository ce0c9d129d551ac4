"""Convolution on the CPU: gather rows, multiply by the weight of a tap, sum per output row, block by block.

N input rows, M output rows, C input and D output channels, G groups, K taps, P pairs, T blocks of output rows.
Weights are [K, C / G, D]: output channel d reads the input channels of its group, d // (D / G).
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sparsevox.plans import Bags, PairLists, pair_block


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

    `plan` holds the tensors of `Bags`.
    """
    table, sources, starts, order, row_starts = Bags(*plan)
    dtype = torch.promote_types(feats.dtype, torch.float32)
    matrices = _by_group(weight.to(feats.dtype).to(dtype), groups)  # [K, G, C / G, D / G]
    block = pair_block(table.shape[0])
    out = feats.new_empty((table.shape[1], weight.shape[2]))
    # Buffers that live as long as the call: fresh memory costs as much as the work.
    most = max((taps[-1] - taps[0] for _, taps in _blocks(starts, table.shape[0], block)), default=0)
    products = feats.new_empty((most, weight.shape[2]), dtype=dtype)
    rows = feats.new_empty((block, feats.shape[1]))
    for first, taps in _blocks(starts, table.shape[0], block):
        begin, end = taps[0], taps[-1]
        inputs = sources[begin:end].long()
        # 1. Gather the input rows of each tap and multiply them by its matrix.
        for tap, (a, b) in enumerate(pairwise(taps)):
            if a < b:
                torch.index_select(feats, 0, inputs[a - begin : b - begin], out=rows[: b - a])
                _multiply(rows[: b - a].to(dtype), matrices[tap], products[a - begin : b - begin])
        # 2. Sum the products of each output row, in the order of taps.
        last = min(first + block, table.shape[1])
        sums = _sum_bags(products[: end - begin], order[begin:end], row_starts[first : last + 1] - begin)
        out[first:last] = sums if bias is None else sums.add_(bias.to(dtype))
    return out


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
    taps, exact = plan[0].shape[0], torch.promote_types(feats.dtype, torch.float32)
    out = feats.new_zeros((taps, groups, feats.shape[1] // groups, grads.shape[1] // groups), dtype=exact)
    left_rows = feats.new_empty((pair_block(taps), feats.shape[1]))
    right_rows = grads.new_empty((pair_block(taps), grads.shape[1]))
    for _, edges in _blocks(starts, taps, pair_block(taps)):
        begin, end = edges[0], edges[-1]
        inputs, outputs = sources[begin:end].long(), targets[begin:end].long()
        for tap, (a, b) in enumerate(pairwise(edges)):
            if a < b:
                pair = slice(a - begin, b - begin)
                left = torch.index_select(feats, 0, inputs[pair], out=left_rows[: b - a]).to(exact)  # [pairs, C]
                right = torch.index_select(grads, 0, outputs[pair], out=right_rows[: b - a]).to(exact)  # [pairs, D]
                if groups == 1:
                    out[tap, 0].addmm_(left.t(), right)
                else:
                    out[tap].baddbmm_(_split(left, groups).transpose(1, 2), _split(right, groups))
    return out.transpose(1, 2).flatten(2).to(dtype)  # [K, G, C / G, D / G] -> [K, C / G, D]


def _blocks(starts: Tensor, taps: int, block: int) -> Iterator[tuple[int, list[int]]]:
    """First output row of each block, and where the pairs of each of its taps start; the last entry is their end."""
    edges = starts.tolist()
    for number in range((len(edges) - 1) // taps):
        yield number * block, edges[number * taps : (number + 1) * taps + 1]


def _by_group(weight: Tensor, groups: int) -> Tensor:
    """Matrices [K, G, C / G, D / G] of a weight [K, C / G, D]."""
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


def _sum_bags(products: Tensor, order: Tensor, row_starts: Tensor) -> Tensor:
    """Sum of the products of each output row, in the order of taps: [rows, D]."""
    return torch.nn.functional.embedding_bag(
        order, products, row_starts.to(order.dtype), mode="sum", include_last_offset=True
    )
