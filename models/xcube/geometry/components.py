"""Connected components of shapes, and shapes without their small components.

Voxels are connected where they share a face, an edge or a corner (26-connectivity). N voxels.
"""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from sparsevox import Grid, Voxels
from xcube.geometry.distances import require_scipy

# Half of the 26 neighbors: the other half finds the same pairs from the other side.
NEIGHBORS = [step for step in product((-1, 0, 1), repeat=3) if step > (0, 0, 0)]


def neighbor_pairs(grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """All pairs of neighbors, each once: their rows, two of int64 [pairs], and their distance in voxels, float64."""
    rows = [grid.index(grid.coords + grid.coords.new_tensor((0, *step))) for step in NEIGHBORS]
    source = torch.cat([(each >= 0).nonzero().squeeze(1) for each in rows])
    target = torch.cat([each[each >= 0] for each in rows]).long()
    length = [
        each.new_full((int((each >= 0).sum()),), math.hypot(*step), dtype=torch.float64)
        for each, step in zip(rows, NEIGHBORS, strict=True)
    ]
    return source, target, torch.cat(length)


def component_labels(grid: Grid) -> Tensor:
    """Label the connected components of a batch of grids, from 0 on: int64 [N]. No component spans two grids.

    Raises:
        ImportError: If scipy is not installed.
    """
    if not grid.num_voxels:
        return torch.zeros(0, dtype=torch.int64, device=grid.device)
    source, target, _ = (each.cpu().numpy() for each in neighbor_pairs(grid))
    sparse = require_scipy().sparse
    edges = sparse.coo_array((np.ones(len(source)), (source, target)), shape=(grid.num_voxels,) * 2)
    _, labels = sparse.csgraph.connected_components(edges, directed=False)
    return torch.from_numpy(labels).long().to(grid.device)


def component_sizes(grid: Grid) -> Tensor:
    """Count the voxels of each connected component of one grid, the largest first: int64 [components].

    Raises:
        ImportError: If scipy is not installed.
        ValueError: If the grid is a batch.
    """
    if grid.batch_size != 1:
        raise ValueError(f"grid must be one grid, got a batch of {grid.batch_size}")
    return component_labels(grid).bincount().sort(descending=True).values


def without_small_components(voxels: Voxels, fraction: float) -> Voxels:
    """Remove the components that have less than a fraction of the voxels of their shape.

    The largest component of each shape of the batch is always kept.

    Raises:
        ImportError: If scipy is not installed.
        ValueError: If the fraction does not lie in [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
    grid = voxels.grid
    if not fraction or not grid.num_voxels:
        return voxels
    label, shape = component_labels(grid), grid.batch
    size = label.bincount()
    owner = torch.zeros_like(size).scatter_(0, label, shape)  # all voxels of a component write the same value
    total = shape.bincount(minlength=grid.batch_size)
    largest = torch.zeros_like(total).scatter_reduce_(0, owner, size, "amax")
    kept = (size >= fraction * total[owner].double()) | (size == largest[owner])
    return voxels if bool(kept.all()) else voxels.prune(kept[label])


def without_small(shapes: Sequence[Voxels], fraction: float) -> list[Voxels]:
    """Remove small components of each of several shapes, as `without_small_components` does."""
    return without_small_components(Voxels.stack(list(shapes)), fraction).unbind()
