"""Convolution as one matrix product per block of output rows, where most taps have a voxel (im2col).

The rows of all taps of an output row are gathered next to each other, zeros where there is no voxel. That multiplies
by zero, but it needs neither a product per tap nor a sum of products. M output rows, C input and D output channels,
K taps, P pairs.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sparsevox.reference._narrow import prefers_transposed, widen

BLOCK_SLOTS = 27 << 8  # (output row, tap) slots that are gathered together: they fit in the cache of a CPU core
CHUNK_ROWS = 1 << 16  # rows of the table that are transposed together
FULL = 0.6  # least fraction of the slots that must have a voxel
WASTE = 13  # multiplications by zero that cost as much as writing and adding up a product, about, per column


def pays_off(table: Tensor, pairs: int, channels: int, factor: Tensor) -> bool:
    """Whether im2col is faster than a product per tap: few taps lack a voxel, and rows are short.

    `factor` is what the gathered rows are multiplied by. It must be finite, since zeros times infinity are not zero.
    """
    slots = table.numel()
    few = pairs >= FULL * slots and (slots - pairs) * channels <= WASTE * pairs
    return few and math.isfinite(factor.sum(dtype=torch.promote_types(factor.dtype, torch.float32)).item())


def conv(feats: Tensor, weight: Tensor, bias: Tensor | None, table: Tensor) -> Tensor:
    """Features [M, D], as `reference.conv.conv` computes them for one group."""
    exact = torch.promote_types(feats.dtype, torch.float32)
    # A product's order of additions depends on the strides of its matrices.
    matrix = widen(weight.to(feats.dtype).to(exact).contiguous()).flatten(0, 1)  # [K * C, D], or wider
    width, columns = weight.shape[2], matrix.shape[1]
    offset = feats.new_zeros(columns, dtype=exact)
    if bias is not None:
        offset[:width] = bias
    out = feats.new_empty((table.shape[1], width))
    direct = out.dtype == exact and columns == width
    for (first, last), rows in _blocks(feats, table, exact):
        # Into a tensor of this dtype, so that autocast does not choose another one.
        result = out[first:last] if direct else out.new_empty((last - first, columns), dtype=exact)
        torch.addmm(offset, rows, matrix, out=result)
        if not direct:
            out[first:last] = result[:, :width]
    return out


def conv_weight(feats: Tensor, grads: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
    """Gradient [K, C, D] of the weight, as `reference.conv.conv_weight` computes it for one group."""
    exact = torch.promote_types(feats.dtype, torch.float32)
    taps, channels = table.shape[0], feats.shape[1]
    transposed = prefers_transposed(channels, grads.shape[1])
    size = taps * channels, grads.shape[1]
    total = feats.new_zeros(size[::-1] if transposed else size, dtype=exact)
    for (first, last), rows in _blocks(feats, table, exact):
        left, right = rows, grads[first:last].to(exact).contiguous()
        if transposed:
            left, right = right, left
        total.addmm_(left.t(), right)
    if transposed:
        total = total.t().contiguous()
    return total.unflatten(0, (taps, channels)).to(dtype)


def _blocks(feats: Tensor, table: Tensor, dtype: torch.dtype) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """First and last output row, exclusive, of each block, and the input rows of all of its taps, [rows, K * C]."""
    (taps, count), channels = table.shape, feats.shape[1]
    padded = torch.cat([feats.new_zeros(1, channels), feats])  # the first row stands for absent voxels
    block = max(1, BLOCK_SLOTS // taps)
    buffer = feats.new_empty((min(block, count) * taps, channels))
    for start in range(0, count, CHUNK_ROWS):
        part = table[:, start : start + CHUNK_ROWS].t()  # [rows, K]
        index = torch.add(part, 1, out=table.new_empty(part.shape)).flatten()
        for number, sources in enumerate(index.split(block * taps)):
            rows = torch.index_select(padded, 0, sources, out=buffer[: sources.shape[0]])
            first = start + number * block
            size = sources.shape[0] // taps
            yield (first, first + size), rows.view(size, taps * channels).to(dtype)
