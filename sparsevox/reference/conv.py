"""Convolution on the CPU: gather rows, multiply by the weight of a tap, sum per output row, block by block.

N input rows, M output rows, C input and D output channels, G groups, K taps, P pairs, T blocks of output rows.
Weights are [K, C / G, D]: output channel d reads the input channels of its group, d // (D / G).
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sparsevox.plans import Bags, PairLists, pair_block
from sparsevox.reference import _im2col
from sparsevox.reference._narrow import NARROW, prefers_transposed, widen

# Elements of the rows of several taps that are gathered at once. Fewer fit in a smaller cache, but need more calls.
GATHERED = 1 << 19
# Elements of the products that are stored at once, unless that means fewer output channels than COLUMNS, for which the
# input rows would be gathered too often.
PRODUCTS = 3 << 21
COLUMNS = 128


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
    if groups == 1 and _im2col.pays_off(table, sources.shape[0], feats.shape[1], weight):
        return _im2col.conv(feats, weight, bias, table)
    (taps, count), block = table.shape, pair_block(table.shape[0])
    exact = torch.promote_types(feats.dtype, torch.float32)
    # A product's order of additions depends on the strides of its matrices.
    factors = weight.to(feats.dtype).to(exact).contiguous()
    offset = None if bias is None else bias.to(exact)
    out = feats.new_empty((count, weight.shape[2]))
    blocks = _blocks(starts, taps)
    longest = max((edges[-1] - edges[0] for edges in blocks), default=0)
    most = max(block, GATHERED // max(feats.shape[1], 1))
    # Buffers that several blocks share: fresh memory costs as much as the work.
    gathered = feats.new_empty((min(most, longest), feats.shape[1]))
    for columns in _columns(out.shape[1], longest, groups):
        part = factors[:, :, columns].contiguous()
        matrices = _by_group(widen(part) if groups == 1 else part, groups)
        products = feats.new_empty((longest, groups * matrices[0].shape[-1]), dtype=exact)
        for number, edges in enumerate(blocks):
            begin, end = edges[0], edges[-1]
            # 1. Gather the input rows of a few taps and multiply those of each tap by its matrix.
            for first, last in _batches(edges, most):
                pairs_of = slice(edges[first], edges[last])
                sizes = [b - a for a, b in pairwise(edges[first : last + 1])]
                inputs = _gather(feats, sources[pairs_of], gathered).to(exact).split(sizes)
                results = products[pairs_of.start - begin : pairs_of.stop - begin].split(sizes)
                for rows, matrix, result in zip(inputs, matrices[first:last], results, strict=True):
                    _multiply(rows, matrix, result)
            # 2. Sum the products of each output row, in the order of taps.
            first, last = number * block, min((number + 1) * block, count)
            bounds = row_starts[first + number : last + number + 1]
            sums = torch.nn.functional.embedding_bag(
                order[begin:end], products[: end - begin], bounds, mode="sum", include_last_offset=True
            )
            sums = sums[:, : part.shape[2]]
            out[first:last, columns] = sums if offset is None else sums.add_(offset[columns])
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
    if groups == 1 and _im2col.pays_off(plan[0], sources.shape[0], feats.shape[1], grads):
        return _im2col.conv_weight(feats, grads, plan[0], dtype)
    taps, exact = plan[0].shape[0], torch.promote_types(feats.dtype, torch.float32)
    block = pair_block(taps)
    transposed = groups == 1 and prefers_transposed(feats.shape[1], grads.shape[1])  # then the sums are [K, 1, D, C]
    shape = (feats.shape[1] // groups, grads.shape[1] // groups)
    out = feats.new_zeros((taps, groups, *(shape[::-1] if transposed else shape)), dtype=exact)
    sums = (out.squeeze(1) if groups == 1 else out).unbind(0)
    most = max(block, GATHERED // max(feats.shape[1], grads.shape[1], 1))
    left_rows = feats.new_empty((min(most, len(sources)), feats.shape[1]))
    right_rows = grads.new_empty((min(most, len(sources)), grads.shape[1]))
    for edges in _blocks(starts, taps):
        for first, last in _batches(edges, most):
            pairs_of = slice(edges[first], edges[last])
            sizes = [b - a for a, b in pairwise(edges[first : last + 1])]
            left = _gather(feats, sources[pairs_of], left_rows).to(exact).split(sizes)
            right = _gather(grads, targets[pairs_of], right_rows).to(exact).split(sizes)
            if transposed:
                left, right = right, left
            for inputs, outputs, total in zip(left, right, sums[first:last], strict=True):
                _add_products(inputs, outputs, total)
    if transposed:
        out = out.transpose(2, 3).contiguous()
    return out.transpose(1, 2).flatten(2).to(dtype)  # [K, G, C / G, D / G] -> [K, C / G, D]


def _blocks(starts: Tensor, taps: int) -> list[list[int]]:
    """Where the pairs of each tap start, and the end of the last: one list of K + 1 numbers per block."""
    edges = starts.tolist()
    return [edges[i : i + taps + 1] for i in range(0, len(edges) - 1, taps)]


def _columns(channels: int, pairs: int, groups: int) -> list[slice]:
    """Ranges of output channels whose products of all pairs are stored at once."""
    most = max(channels, 1) if groups > 1 else max(COLUMNS, PRODUCTS // max(pairs, 1) // NARROW * NARROW)
    return [slice(first, min(first + most, channels)) for first in range(0, channels, most)]


def _batches(edges: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Ranges of taps of a block: one tap, or consecutive ones with at most `most` pairs together."""
    first, taps = 0, len(edges) - 1
    for last in range(1, taps + 1):
        if last == taps or edges[last + 1] - edges[first] > most:
            if edges[first] < edges[last]:
                yield first, last
            first = last


def _gather(rows: Tensor, index: Tensor, out: Tensor) -> Tensor:
    """Copy `rows[index]` to the first rows of `out`, and return those."""
    return torch.index_select(rows, 0, index, out=out[: index.shape[0]])


def _by_group(weight: Tensor, groups: int) -> Sequence[Tensor]:
    """The K matrices of a weight [K, C / G, D]: [C, D], or [G, C / G, D / G] if there are several groups."""
    if groups > 1:
        weight = weight.unflatten(2, (groups, -1)).transpose(1, 2)
    return weight.unbind(0)


def _split(rows: Tensor, groups: int) -> Tensor:
    """Rows [P, C] by group: [G, P, C / G]."""
    return rows.unflatten(1, (groups, -1)).transpose(0, 1)


def _multiply(rows: Tensor, matrix: Tensor, out: Tensor) -> None:
    """Write `rows` [P, C] times a matrix of `_by_group` to `out` [P, D]."""
    if matrix.ndim == 2:
        torch.mm(rows, matrix, out=out)
    elif matrix.shape[1] == 1:
        torch.mul(rows[:, :, None], matrix[:, 0], out=out.unflatten(1, (matrix.shape[0], -1)))
    else:
        out.copy_(torch.bmm(_split(rows, matrix.shape[0]), matrix).transpose(0, 1).flatten(1))


def _add_products(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Add `left^T @ right` of rows [P, C] and [P, D] to `out`, a matrix as those of `_by_group`."""
    if out.ndim == 2:
        out.addmm_(left.t(), right)
    elif out.shape[1] == 1:
        out += (left[:, :, None] * right.unflatten(1, (out.shape[0], -1))).sum(0)[:, None]
    else:
        out.baddbmm_(_split(left, out.shape[0]).transpose(1, 2), _split(right, out.shape[0]))
