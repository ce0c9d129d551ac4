"""Reductions of segments: of the rows from one offset to the next."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

REDUCTIONS: dict[str, Callable[[list[float]], float]] = {
    "sum": math.fsum,
    "mean": lambda numbers: math.fsum(numbers) / len(numbers),
    "max": max,
    "min": min,
}


def segment_reduce(feats: Tensor, offsets: Tensor, reduce: str) -> Tensor:
    """[S, C] float64: channel by channel; an empty segment gives 0. Sums are exact before they are rounded."""
    columns = feats.double().t().tolist()
    segments = list(pairwise(offsets.tolist()))
    rows = [[REDUCTIONS[reduce](column[a:b]) if a < b else 0.0 for column in columns] for a, b in segments]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(segments), feats.shape[1])
