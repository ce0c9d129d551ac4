"""Coarsening, subdivision, set operations, pruning and cropping of grids."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bench import baseline
from bench.baseline import build
from bench.contenders import batch_against_one, grid, ours, voxel_list
from bench.harness import Case, Contender, Target


def coarsen(coords: Tensor) -> Sequence[Contender]:
    """Compare halving the resolution."""
    return ours(lambda g: g.coarsen(2), grid(coords)), voxel_list(baseline.coarsen, build(coords))


def subdivide(coords: Tensor) -> Sequence[Contender]:
    """Compare doubling the resolution."""
    return ours(lambda g: g.subdivide(2), grid(coords)), voxel_list(baseline.subdivide, build(coords))


def union(coords: Tensor) -> Sequence[Contender]:
    """Compare the union of the scene and a moved copy."""
    pair = coords, _moved(coords)
    return ours(lambda a, b: a | b, *map(grid, pair)), voxel_list(baseline.union, *map(build, pair))


def intersection(coords: Tensor) -> Sequence[Contender]:
    """Compare the intersection of the scene and a moved copy."""
    pair = coords, _moved(coords)
    return ours(lambda a, b: a & b, *map(grid, pair)), voxel_list(baseline.intersection, *map(build, pair))


def difference(coords: Tensor) -> Sequence[Contender]:
    """Compare the difference of the scene and a moved copy."""
    pair = coords, _moved(coords)
    return ours(lambda a, b: a - b, *map(grid, pair)), voxel_list(baseline.difference, *map(build, pair))


def prune(coords: Tensor) -> Sequence[Contender]:
    """Compare keeping two thirds of the voxels."""
    g, keys = grid(coords), build(coords)
    return (
        ours(lambda keep: g.prune(keep), _two_of_three(g.coords)),
        voxel_list(baseline.prune, keys, _two_of_three(baseline.decode(keys))),
    )


def crop(coords: Tensor) -> Sequence[Contender]:
    """Compare cropping to the middle half along every axis."""
    reach = coords[:, 1:].abs().amax(0) // 2
    x, y, z = (reach + 1).tolist()
    box = (-x, -y, -z), (x, y, z)
    return ours(lambda g: g.crop(*box), grid(coords)), voxel_list(baseline.crop, build(coords), *box)


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Yield a shell of 1M voxels, scenes with few voxels per brick, and a batch of 64."""
    shell = 48 if quick else 565
    yield Case("coarsen", "shell", shell, coarsen, Target("ratio", ">=", 20))
    yield Case("subdivide", "shell", shell, subdivide, Target("ratio", ">=", 5))
    yield Case("union", "shell", shell, union, Target("ratio", ">=", 5))
    for op in (intersection, difference, prune, crop):
        yield Case(op.__name__, "shell", shell, op)
    for op in (coarsen, union):
        yield Case(op.__name__, "lidar", 64 if quick else 2048, op)
        yield Case(op.__name__, "scatter", 2000 if quick else 500_000, op)
    size, twice = 6 if quick else 44, Target("ratio", ">=", 0.5)
    yield Case("coarsen", "batch", size, batch_against_one(lambda g: g.coarsen(2)), twice)
    yield Case("subdivide", "batch", size, batch_against_one(lambda g: g.subdivide(2)), twice)
    yield Case("union", "batch", size, batch_against_one(lambda g: g | g), twice)


def _moved(coords: Tensor) -> Tensor:
    """Move the scene by a few voxels, so that both share some voxels and more bricks."""
    return coords + coords.new_tensor([0, 3, 1, -2])


def _two_of_three(coords: Tensor) -> Tensor:
    return coords.sum(1) % 3 != 0
