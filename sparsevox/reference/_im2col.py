"""Convolution as one matrix product per block of output rows, where most taps have a voxel (im2col).

The rows of all taps of an output row are gathered next to each other, zeros where there is no voxel. That multiplies
by zero, but it needs neither a product per tap nor a sum of products. M output rows, C input and D output channels,
K taps, P pairs.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_SLOTS = 27 << 8  # (output row, tap) slots that are gathered together: they fit in the cache of a CPU core
CHUNK_ROWS = 1 << 16  # rows of the table that are transposed together
WASTE = 24  # multiplications by zero that cost as much as writing and adding up a product, about, per column


def pays_off(table: Tensor, pairs: int, channels: int, factor: Tensor) -> bool:
    """Whether im2col is faster than a product per tap: few taps lack a voxel, and rows are short.

    `factor` is what the gathered rows are multiplied by. It must be finite, since zeros times infinity are not zero.
    """
    few = (table.numel() - pairs) * channels <= WASTE * pairs
    return few and math.isfinite(factor.sum(dtype=torch.promote_types(factor.dtype, torch.float32)).item())


def conv(feats: Tensor, weight: Tensor, bias: Tensor | None, table: Tensor) -> Tensor:
    """Features [M, D], as `reference.conv.conv` computes them for one group."""
    exact = torch.promote_types(feats.dtype, torch.float32)
    # A product's order of additions depends on the strides of its matrices.
    matrix = weight.to(feats.dtype).to(exact).contiguous().flatten(0, 1)  # [K * C, D]
    offset = feats.new_zeros(weight.shape[2], dtype=exact) if bias is None else bias.to(exact)
    out = feats.new_empty((table.shape[1], weight.shape[2]))
    for (first, last), rows in _blocks(feats, table, exact):
        # Into a tensor of this dtype, so that autocast does not choose another one.
        result = out[first:last] if out.dtype == exact else out.new_empty((last - first, out.shape[1]), dtype=exact)
        torch.addmm(offset, rows, matrix, out=result)
        if out.dtype != exact:
            out[first:last] = result
    return out


def conv_weight(feats: Tensor, grads: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
    """Gradient [K, C, D] of the weight, as `reference.conv.conv_weight` computes it for one group."""
    exact = torch.promote_types(feats.dtype, torch.float32)
    taps, channels = table.shape[0], feats.shape[1]
    total = feats.new_zeros((taps * channels, grads.shape[1]), dtype=exact)
    for (first, last), rows in _blocks(feats, table, exact):
        total.addmm_(rows.t(), grads[first:last].to(exact).contiguous())
    return total.unflatten(0, (taps, channels)).to(dtype)


def _blocks(feats: Tensor, table: Tensor, dtype: torch.dtype) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """First and last output row, exclusive, of each block, and the input rows of all of its taps, [rows, K * C]."""
    (taps, count), channels = table.shape, feats.shape[1]
    padded = torch.cat([feats, feats.new_zeros(1, channels)])  # the last row stands for absent voxels
    block = max(1, BLOCK_SLOTS // taps)
    buffer = feats.new_empty((min(block, count) * taps, channels))
    for start in range(0, count, CHUNK_ROWS):
        part = table[:, start : start + CHUNK_ROWS]
        index = torch.where(part < 0, feats.shape[0], part).t().flatten()  # [rows * K]
        for number, sources in enumerate(index.split(block * taps)):
            rows = torch.index_select(padded, 0, sources, out=buffer[: sources.shape[0]])
            first = start + number * block
            size = sources.shape[0] // taps
            yield (first, first + size), rows.view(size, taps * channels).to(dtype)
