"""Connected parts of shapes, and shapes without the crumbs that float beside them.

Voxels are connected where they share a side, an edge or a corner. N voxels.
"""

from itertools import product

import torch
from torch import Tensor

from sparsevox import Grid, Voxels
from xcube.geometry.distances import library

HALF = [step for step in product((-1, 0, 1), repeat=3) if step > (0, 0, 0)]  # of the neighbors; the others look back


def component_of_voxel(grid: Grid) -> Tensor:
    """The part that each voxel belongs to: int64 [N], numbers from 0 on. Shapes of a batch have parts of their own.

    Raises:
        ImportError: If scipy is not installed.
    """
    if not grid.num_voxels:
        return torch.zeros(0, dtype=torch.int64, device=grid.device)
    found = [grid.index(grid.coords + grid.coords.new_tensor((0, *step))) for step in HALF]
    source = torch.cat([(there >= 0).nonzero().squeeze(1) for there in found]).cpu().numpy()
    target = torch.cat([there[there >= 0] for there in found]).cpu().numpy()
    sparse = library().sparse
    edges = sparse.coo_array((torch.ones(len(source)).numpy(), (source, target)), shape=(grid.num_voxels,) * 2)
    _, part = sparse.csgraph.connected_components(edges, directed=False)
    return torch.from_numpy(part).long().to(grid.device)


def components(grid: Grid) -> Tensor:
    """Voxels of each connected part, the largest first: int64 [parts]. An empty grid has none.

    Raises:
        ImportError: If scipy is not installed.
        ValueError: If the grid is a batch.
    """
    if grid.batch_size != 1:
        raise ValueError(f"grid must be one grid, got a batch of {grid.batch_size}")
    return component_of_voxel(grid).bincount().sort(descending=True).values


def without_small_components(voxels: Voxels, share: float) -> Voxels:
    """Shapes without their parts of less than a share of their voxels. The largest part of each shape stays.

    Raises:
        ImportError: If scipy is not installed.
        ValueError: If the share does not lie in [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], got {share}")
    grid = voxels.grid
    if not share or not grid.num_voxels:
        return voxels
    part, shape = component_of_voxel(grid), grid.batch
    size = part.bincount()
    owner = torch.zeros_like(size).scatter_(0, part, shape)  # all voxels of a part write the same
    whole = shape.bincount(minlength=grid.batch_size)
    largest = torch.zeros_like(whole).scatter_reduce_(0, owner, size, "amax")
    stays = (size >= share * whole[owner].double()) | (size == largest[owner])
    return voxels if bool(stays.all()) else voxels.prune(stays[part])
