"""Dilate and erode grids by the 3x3x3 box."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bench import baseline
from bench.baseline import build
from bench.contenders import batch_against_one, grid, ours, voxel_list
from bench.harness import Case, Contender, Wanted


def dilate(coords: Tensor) -> Sequence[Contender]:
    """Add all neighbors; the list does it at once and axis by axis."""
    keys = build(coords)
    return (
        ours(lambda g: g.dilate(1), grid(coords)),
        voxel_list(baseline.dilate, keys, name="voxel list, 27 at once"),
        voxel_list(baseline.dilate_by_axes, keys, name="voxel list, by axes"),
    )


def erode(coords: Tensor) -> Sequence[Contender]:
    """Keep the voxels that have all neighbors."""
    return ours(lambda g: g.erode(1), grid(coords)), voxel_list(baseline.erode, build(coords))


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """A shell of 100k and one of 1M voxels; a wall that survives its erosion; a batch of 64."""
    for size in (32, 48) if quick else (180, 565):
        yield Case("dilate", "shell", size, dilate, Wanted("ratio", ">=", 6))
    yield Case("dilate", "lidar", 64 if quick else 2048, dilate)
    yield Case("dilate", "scatter", 2000 if quick else 100_000, dilate)
    yield Case("erode", "thick_shell", 24 if quick else 330, erode)
    yield Case("erode", "block", 12 if quick else 100, erode)
    size, twice = 6 if quick else 44, Wanted("ratio", ">=", 0.5)
    yield Case("dilate", "batch", size, batch_against_one(lambda g: g.dilate(1)), twice)
