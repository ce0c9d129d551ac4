"""Rows gathered, summed and multiplied along weighted (point, row) pairs.

N voxels, P points, C channels, T corners per point, K pairs.
"""

import torch
from torch import Tensor

from sparsevox.reference._runs import true_indices

BLOCK = 1 << 16  # corners whose features are gathered at once


def gather_rows(feats: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Values [P, C]: the sum over corners t of `weights[p, t] * feats[rows[p, t]]`, rows of -1 left out."""
    corners = rows.flatten()
    found = true_indices(corners >= 0)
    starts = torch.zeros(rows.shape[0] + 1, dtype=torch.int64, device=rows.device)
    torch.cumsum((rows >= 0).sum(1), 0, out=starts[1:])
    return _sum_bags(feats, corners[found].long(), starts, weights.flatten()[found])


def sum_rows(values: Tensor, rows: Tensor, weights: Tensor, count: int) -> Tensor:
    """Features [count, C]: the sum of `weights[p, t] * values[p]` over the pairs of each row, ordered by point."""
    ordered, order = torch.sort(rows.flatten(), stable=True)
    starts = torch.searchsorted(ordered, torch.arange(count + 1, dtype=torch.int32, device=rows.device))
    order = order[starts[0] :]
    return _sum_bags(values, order // rows.shape[1], starts - starts[0], weights.flatten()[order])


def dot_rows(feats: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """Weights [P, T]: the dot products of `values[p]` and `feats[rows[p, t]]`, 0 for rows of -1."""
    dtype = torch.float64 if feats.dtype == torch.float64 else torch.float32
    out = torch.zeros(rows.shape, dtype=dtype, device=rows.device)
    if feats.shape[0] == 0 or feats.shape[1] == 0:
        return out
    block = max(1, BLOCK // rows.shape[1])
    for first in range(0, rows.shape[0], block):
        part = rows[first : first + block]
        near = feats[part.clamp(min=0).flatten().long()].to(dtype).unflatten(0, part.shape)  # [block, T, C]
        products = torch.bmm(near, values[first : first + block, :, None].to(dtype)).squeeze(2)
        out[first : first + block] = products.masked_fill_(part < 0, 0)
    return out


def _sum_bags(feats: Tensor, numbers: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows: bag i sums the rows `numbers[k]`, int64 [K], for k from starts[i] to starts[i + 1]."""
    exact = feats.to(weights.dtype)
    return torch.nn.functional.embedding_bag(
        numbers, exact, starts, mode="sum", per_sample_weights=weights, include_last_offset=True
    ).to(feats.dtype)
