"""Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762) of each batch item to its own keys."""

from itertools import pairwise

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, q_offsets: Tensor, k_offsets: Tensor, scale: float) -> Tensor:
    """softmax(scale * q k^T) v: [Q, H, E], of q [Q, H, D], k [K, H, D] and v [K, H, E]; 0 where an item has no keys."""
    items = [q.new_zeros(0, q.shape[1], v.shape[2])]
    for (a, b), (c, d) in zip(pairwise(q_offsets.tolist()), pairwise(k_offsets.tolist()), strict=True):
        scores = torch.einsum("ihd,jhd->hij", q[a:b], k[c:d]) * scale
        weights = scores.exp() / scores.exp().sum(2, keepdim=True)
        items.append(torch.einsum("hij,jhe->ihe", weights, v[c:d]))
    return torch.cat(items)
