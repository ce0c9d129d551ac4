"""Dilation and erosion of grids by the 3x3x3 box."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bench import baseline
from bench.baseline import build
from bench.contenders import batch_against_one, grid, ours, voxel_list
from bench.harness import Case, Contender, Target


def dilate(coords: Tensor) -> Sequence[Contender]:
    """Compare dilation. The voxel list does it at once, and one axis at a time."""
    keys = build(coords)
    return (
        ours(lambda g: g.dilate(1), grid(coords)),
        voxel_list(baseline.dilate, keys, name="voxel list, 27 at once"),
        voxel_list(baseline.dilate_by_axes, keys, name="voxel list, axis by axis"),
    )


def erode(coords: Tensor) -> Sequence[Contender]:
    """Compare erosion."""
    return ours(lambda g: g.erode(1), grid(coords)), voxel_list(baseline.erode, build(coords))


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Yield shells of 100k and 1M voxels, a thick shell that survives erosion, and a batch of 64."""
    for size in (32, 48) if quick else (180, 565):
        yield Case("dilate", "shell", size, dilate, Target("ratio", ">=", 6))
    yield Case("dilate", "lidar", 64 if quick else 2048, dilate)
    yield Case("dilate", "scatter", 2000 if quick else 100_000, dilate)
    yield Case("erode", "thick_shell", 24 if quick else 330, erode)
    yield Case("erode", "block", 12 if quick else 100, erode)
    size, twice = 6 if quick else 44, Target("ratio", ">=", 0.5)
    yield Case("dilate", "batch", size, batch_against_one(lambda g: g.dilate(1)), twice)
