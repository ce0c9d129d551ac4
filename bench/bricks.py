"""Building grids, their memory, looking up voxels and reading the coordinates."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

import sparsevox as sv
from bench import baseline
from bench.contenders import batch_against_one, grid, ours, voxel_list
from bench.harness import Case, Contender, Target


def build(coords: Tensor) -> Sequence[Contender]:
    """Compare building an index from unsorted coordinates."""
    return (
        replace(ours(grid, coords), nbytes=_grid_bytes),
        replace(voxel_list(baseline.build, coords), nbytes=lambda keys: keys.nbytes),
        voxel_list(baseline.build_by_sort, coords, name="voxel list, sort"),
    )


def index(coords: Tensor) -> Sequence[Contender]:
    """Compare looking up all voxels and the places next to them, some of which are occupied, in random order."""
    g, keys = grid(coords), baseline.build(coords)
    queries = torch.cat([coords, coords + coords.new_tensor([0, 1, -1, 1])])
    order = torch.randperm(len(queries), generator=torch.Generator().manual_seed(0))
    queries = queries[order.to(coords.device)]

    def found(rows: Tensor, voxels: Tensor) -> Tensor:
        return torch.where(rows >= 0, voxels[rows], -1)

    return (
        ours(g.index, queries, view=lambda rows: found(rows, baseline.pack(g.coords))),
        voxel_list(lambda: baseline.find(keys, baseline.pack(queries)), view=lambda rows: found(rows, keys)),
    )


def read(coords: Tensor) -> Sequence[Contender]:
    """Compare reading the coordinates of all voxels."""
    g, keys = grid(coords), baseline.build(coords)
    return (
        ours(lambda: g.coords, view=lambda c: baseline.pack(c).sort().values),
        voxel_list(baseline.decode, keys, view=baseline.pack),
    )


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Yield speed on a shell of 1M voxels, and memory on all scenes, with up to 3.4M voxels on the largest shells."""
    million = 48 if quick else 565
    yield Case("build", "shell", million, build, Target("ratio", ">=", 1.2))
    yield Case("index", "shell", million, index)
    yield Case("coords", "shell", million, read)
    for scene, size, small, target in (
        ("shell", 800, 64, Target("bytes_per_voxel", "<=", 3.3)),
        ("shell", 1024, 80, Target("stored_mb", "<=", 11)),
        ("shell", 1041, 81, Target("stored_mb", "<=", 11)),
        ("thick_shell", 604, 32, Target("stored_mb", "<=", 11)),
        ("terrain", 1024, 64, None),
        ("lidar", 2048, 64, None),
        ("scatter", 500_000, 2000, None),
        ("curves", 1024, 32, None),
        ("block", 100, 12, None),
    ):
        yield Case("build", scene, small if quick else size, build, target)
    batch = 6 if quick else 44
    yield Case("build", "batch", batch, batch_against_one(grid, torch.clone), Target("ratio", ">=", 0.5))


def _grid_bytes(g: sv.Grid) -> int:
    g.index(g.coords[:1])  # include the hash table, which is built when first needed
    return g.nbytes
