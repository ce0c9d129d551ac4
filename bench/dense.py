"""From a dense mask to a grid."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

import sparsevox as sv
from bench import baseline
from bench.contenders import ours, voxel_list
from bench.harness import Case, Contender


def from_dense(coords: Tensor) -> Sequence[Contender]:
    """The scene in its bounding box, a bool a voxel."""
    ijk = (coords[:, 1:] - coords[:, 1:].amin(0)).long()
    mask = torch.zeros(1, *(ijk.amax(0) + 1).tolist(), dtype=torch.bool, device=coords.device)
    mask[0, ijk[:, 0], ijk[:, 1], ijk[:, 2]] = True
    return ours(sv.Grid.from_dense, mask), voxel_list(baseline.from_dense, mask)


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """A volume that is almost empty and one that is full."""
    yield Case("from_dense", "shell", 32 if quick else 256, from_dense, dtype="bool")
    yield Case("from_dense", "block", 12 if quick else 128, from_dense, dtype="bool")
