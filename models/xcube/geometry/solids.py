"""Solid shapes as grids: the inside of shells, regions of space, and the shell of a solid.

All grids hold one shape. A solid is the set of voxels that lie in a shell or inside of it.
"""

from collections.abc import Sequence

import torch

from sparsevox import Grid, Mesh, Voxels
from xcube.geometry.pyramid import TOLERANCE
from xcube.geometry.shell import is_solid

# A part of space: the lower and upper corner of a box in world units, a closed mesh, or voxels.
Region = tuple[Sequence[float], Sequence[float]] | Mesh | Grid | Voxels

# The voxel in the center and those that share a face with it, bool [3, 3, 3].
FACES = (torch.cartesian_prod(*[torch.arange(-1, 2)] * 3).abs().sum(1) <= 1).view(3, 3, 3)


def solid(shell: Grid) -> Grid:
    """The voxels that lie in a shell or inside of it. An open shell has no inside.

    Raises:
        ImportError: If scipy is not installed.
    """
    if not shell.num_voxels:
        return shell
    lower, upper = (bound[0].tolist() for bound in shell.bounds())
    box = Grid.full(lower, upper, voxel_size=shell.voxel_size, origin=shell.origin, device=shell.device)
    return box.prune(is_solid(box, shell))


def surface(solid: Grid) -> Grid:
    """The voxels of a solid that share a face with a voxel outside of it."""
    return solid - solid.erode(stencil=FACES.to(solid.device))


def region_voxels(name: str, region: object, like: Grid, limits: Sequence[int]) -> Grid:
    """The voxels whose centers lie in a region, with the voxel size and the origin of `like`.

    Of a mesh these are the voxels that its surface touches and those that they enclose; of larger voxels all the
    smaller ones in them.

    Args:
        name: Name of the argument, for error messages.
        region: The lower and upper corner of a box in world units, a mesh, or one grid of voxels that are as large, or
            larger by an integer factor.
        like: A grid with the transform of the result.
        limits: For each axis, the largest absolute voxel coordinate of a box; larger boxes are cropped.

    Raises:
        ImportError: If the region is a mesh and scipy is not installed.
        TypeError: If the region is of another type.
        ValueError: If the box is empty, the region is a batch, or its voxels are not aligned.
    """
    if isinstance(region, Mesh):
        mesh = region.to(like.device)
        return solid(Grid.from_mesh(mesh.vertices, mesh.faces, voxel_size=like.voxel_size, origin=like.origin))
    if isinstance(region, Grid | Voxels):
        return _subdivided(name, (region.grid if isinstance(region, Voxels) else region).to(like.device), like)
    try:
        low, high = (torch.tensor([float(x) for x in corner], dtype=torch.float64) for corner in region)  # type: ignore[attr-defined]
        valid = low.shape == high.shape == (3,) and bool((low < high).all())
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} must be the two corners of a box, a Mesh, a Grid or Voxels, got {type(region).__name__}"
        ) from error
    if not valid:
        raise ValueError(f"{name} must have a lower corner below the upper one, got {low.tolist()} and {high.tolist()}")
    ends = torch.tensor(limits, dtype=torch.float64)
    first, last = (like.to_ijk(corner.to(like.device)).cpu().clamp(-ends, ends) for corner in (low, high))
    lower, upper = first.ceil().long().tolist(), (last.floor().long() + 1).tolist()
    upper = [max(a, b) for a, b in zip(lower, upper, strict=True)]
    return Grid.full(lower, upper, voxel_size=like.voxel_size, origin=like.origin, device=like.device)


def as_regions(regions: Region | Sequence[Region]) -> list[Region]:
    """One region, or several, as a list. A tuple of two triples of numbers is one box."""
    if isinstance(regions, Mesh | Grid | Voxels) or _is_box(regions):
        return [regions]  # type: ignore[list-item]
    return list(regions)  # type: ignore[arg-type]


def _is_box(regions: object) -> bool:
    def triple(corner: object) -> bool:
        return isinstance(corner, Sequence) and len(corner) == 3 and all(isinstance(x, int | float) for x in corner)

    return isinstance(regions, Sequence) and len(regions) == 2 and all(map(triple, regions))


def _subdivided(name: str, grid: Grid, like: Grid) -> Grid:
    """The voxels of a grid, divided into voxels of the size of `like`."""
    if grid.batch_size != 1:
        raise ValueError(f"{name} must be one grid, got a batch of {grid.batch_size}")
    sizes = [a / b for a, b in zip(grid.voxel_size, like.voxel_size, strict=True)]
    factor = [round(size) for size in sizes]
    corners = [
        (a - x / 2 - b + y / 2) / y
        for a, x, b, y in zip(grid.origin, grid.voxel_size, like.origin, like.voxel_size, strict=True)
    ]
    if min(factor) < 1 or max(abs(a - b) for a, b in zip(sizes, factor, strict=True)) > TOLERANCE:
        raise ValueError(f"{name} must have the voxel_size {like.voxel_size} times integers, got {grid.voxel_size}")
    if max(map(abs, corners)) > TOLERANCE:
        raise ValueError(f"{name} must have its voxel (0, 0, 0) at the lower corner of that of the shape")
    fine = grid if max(factor) == 1 else grid.subdivide((factor[0], factor[1], factor[2]))
    return Grid.from_coords(fine.coords, voxel_size=like.voxel_size, origin=like.origin)
