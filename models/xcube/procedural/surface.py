"""Voxelization of the surface of a solid, with normals and labels.

N voxels, T tiles.
"""

from itertools import product

import torch
from torch import Tensor

from sparsevox.grid import Grid
from sparsevox.shapes import Voxels
from xcube.data.hierarchy import Box
from xcube.procedural.poses import REACH, Bounds, Lattice
from xcube.procedural.solids import Solid

TILE = 64  # edge of a tile in voxels


def voxelize_solid(solid: Solid, box: Box, *, level: int = -1, device: torch.device | str = "cpu") -> Voxels:
    """Voxelize the surface of a solid: the voxels of a box at whose eight corners the signed distance has both signs.

    Space is divided into tiles. Tiles that the distance at their center shows to be empty are skipped; in the others,
    each primitive is evaluated only at points near to it. Memory is that of one tile and of the result.

    Args:
        solid: The solid; parts outside of the box are dropped. `build_hierarchy` refuses shapes in the margin
            of the box.
        box: The box, whose voxels are those of `build_hierarchy`.
        level: Level of the box; the finest by default.
        device: Device of the computation and of the result.

    Returns:
        One grid with "normal", float32 [N, 3], the unit gradient of the distance over the voxel, and "label", int64
        [N], of the primitive whose surface is nearest to the center.
    """
    size, shape = box.voxel_size(level), box.shape(level)
    lower = (-(shape[0] // 2), -(shape[1] // 2), -(shape[2] // 2))
    found = [
        _tile(solid, start, count, size, torch.device(device))
        for start, count in _tiles(solid, lower, shape, size, torch.device(device))
    ]
    empty = (torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    ijk, normal, label = (torch.cat([first.to(device), *rest]) for first, *rest in zip(empty, *found, strict=True))
    grid = Grid.from_coords(ijk, batch_size=1, voxel_size=size, origin=size / 2)
    row = grid.index(ijk)
    order = torch.empty_like(row)
    order[row] = torch.arange(len(row), device=row.device)
    return Voxels(grid, {"normal": normal[order], "label": label[order]})


Int3 = tuple[int, int, int]


def _tiles(solid: Solid, lower: Int3, shape: Int3, size: float, device: torch.device) -> list[tuple[Int3, Int3]]:
    """First voxel and size of each tile that may contain a part of the surface."""
    x, y, z = (range(low, low + n, TILE) for low, n in zip(lower, shape, strict=True))
    starts: list[Int3] = list(product(x, y, z))
    if len(starts) == 1:
        return [(starts[0], shape)]
    upper = torch.tensor([low + n for low, n in zip(lower, shape, strict=True)])
    start = torch.tensor(starts)
    count = torch.minimum(upper - start, torch.tensor(TILE))
    center = (start + count / 2).double() * size
    half = torch.linalg.vector_norm(count.double(), dim=1) * size / 2
    near = solid.distance(center.to(device)).abs().cpu() <= half
    rows = zip(starts, count.tolist(), near.tolist(), strict=True)
    return [(begin, (x, y, z)) for begin, (x, y, z), kept in rows if kept]


def _tile(solid: Solid, start: Int3, count: Int3, size: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates, normals and labels of the surface voxels of a tile."""
    near = solid.clipped(_around(start, count, size))
    if near is None:
        none = torch.zeros(0, 3, dtype=torch.int64, device=device)
        return none, none.float(), none[:, 0]
    distance = near.lattice(Lattice.of(start, [n + 1 for n in count], size, device))
    inside = distance < 0
    some = every = inside
    for axis, n in enumerate(count):
        some = some.narrow(axis, 0, n) | some.narrow(axis, 1, n)
        every = every.narrow(axis, 0, n) & every.narrow(axis, 1, n)
    ijk = (some & ~every).nonzero()
    at = ijk + torch.tensor(start, device=device)
    centers = (at + 0.5).double() * size
    return at, _normals(near, distance, ijk, centers), near.label(centers)


def _around(start: Int3, count: Int3, size: float) -> Bounds:
    lower = [(first - REACH) * size for first in start]
    upper = [(first + n + REACH) * size for first, n in zip(start, count, strict=True)]
    return (lower[0], lower[1], lower[2]), (upper[0], upper[1], upper[2])


def _normals(solid: Solid, distance: Tensor, ijk: Tensor, centers: Tensor) -> Tensor:
    """Unit normals from the distances at the eight corners of each voxel."""
    i, j, k = ijk.unbind(1)
    corners = torch.stack([distance[i + a, j + b, k + c] for a, b, c in product((0, 1), repeat=3)])
    cube = corners.view(2, 2, 2, -1)
    slope = torch.stack([(cube.select(axis, 1) - cube.select(axis, 0)).sum((0, 1)) for axis in range(3)], 1)
    length = torch.linalg.vector_norm(slope, dim=1)
    flat = length < 1e-9
    normal = slope / torch.where(flat, 1, length)[:, None]
    if bool(flat.any()):  # opposite walls in one voxel
        normal[flat] = solid.normal(centers[flat])
    return normal.float()
