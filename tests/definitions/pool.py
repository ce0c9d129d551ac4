"""Pooling over windows and upsampling, voxel by voxel."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsevox.testing import Voxel
from tests.definitions.segment import REDUCTIONS
from tests.definitions.topology import parent

Windows = Sequence[Sequence[int]]


def child_rows(fine: Sequence[Voxel], coarse: Sequence[Voxel], factor: Sequence[int]) -> list[list[int]]:
    """The rows of the children of each coarse voxel. Children of absent voxels are in no window."""
    windows: dict[Voxel, list[int]] = {voxel: [] for voxel in coarse}
    for row, voxel in enumerate(fine):
        windows.get(parent(voxel, factor), []).append(row)
    return list(windows.values())


def pool(feats: Tensor, windows: Windows, reduce: str) -> Tensor:
    """[M, C]: the sum, mean or largest of the rows in each window; an empty window gives 0."""
    columns = feats.t().tolist()
    rows = [[REDUCTIONS[reduce]([c[row] for row in w]) if w else 0.0 for c in columns] for w in windows]
    return torch.tensor(rows, dtype=feats.dtype).reshape(len(windows), feats.shape[1])


def upsample(feats: Tensor, windows: Windows, count: int) -> Tensor:
    """[N, C]: each of `count` rows takes the features of the window that it is in, 0 if it is in none."""
    out = feats.new_zeros(count, feats.shape[1])
    for row, window in enumerate(windows):
        for child in window:
            out[child] = feats[row]
    return out
