"""Group normalization of each item of a batch over its own voxels (Wu and He 2018, arXiv:1803.08494)."""

from itertools import pairwise

import torch
from torch import Tensor


def group_norm(
    feats: Tensor, offsets: list[int], groups: int, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias: [N, C] float64, with statistics per item and group."""
    items = [feats[:0].double()]
    for a, b in pairwise(offsets):
        if a == b:
            continue
        normal = []
        for part in feats[a:b].double().chunk(groups, dim=1):  # [n, C / groups]
            variance, mean = torch.var_mean(part, correction=0)
            normal.append((part - mean) / (variance + eps).sqrt())
        items.append(torch.cat(normal, 1))
    normalized = torch.cat(items)
    scaled = normalized if weight is None else normalized * weight.double()
    return scaled if bias is None else scaled + bias.double()
