"""Attributes of voxels that come from several shapes."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from sparsevox import Grid, Voxels
from xcube.geometry.normals import estimated_normals
from xcube.networks.conditions import NO_FILL


def joined_attributes(grid: Grid, sources: Sequence[Voxels], solid: Grid, names: Collection[str]) -> Voxels:
    """Give the voxels of a grid the attributes of the first shape that has a voxel there, or else estimated ones.

    A normal is estimated from the solid; a solid fraction is unknown; other attributes are those of the nearest voxel.
    An unknown solid fraction of a shape counts as none.

    Args:
        grid: The voxels, of one shape.
        sources: Shapes with attributes.
        solid: The solid of which the voxels are the shell.
        names: Names of the attributes, which at least one of the shapes must have.

    Raises:
        ImportError: If normals are to be estimated and scipy is not installed.
    """
    rows = [each.grid.index(grid.coords) for each in sources]
    made: dict[str, Tensor] = {}
    for name in names:
        having = [(each, row) for each, row in zip(sources, rows, strict=True) if name in each.attributes]
        like = having[0][0].attributes[name]
        known = torch.zeros(grid.num_voxels, dtype=torch.bool, device=grid.device)
        value = like.new_zeros((grid.num_voxels, *like.shape[1:]))
        for each, row in having:
            if not each.num_voxels:
                continue
            picked = each.attributes[name][row.clamp(min=0)].to(like.dtype)
            fresh = (row >= 0) & ~known
            if name == "fill":
                fresh &= picked >= 0
            value = torch.where(fresh.view(-1, *[1] * (value.ndim - 1)), picked, value)
            known |= fresh
        if not bool(known.all()):
            rest = _estimated(name, grid, having, solid, value)
            value = torch.where(known.view(-1, *[1] * (value.ndim - 1)), value, rest)
        made[name] = value
    return Voxels(grid, made)


def _estimated(name: str, grid: Grid, having: Sequence[tuple[Voxels, Tensor]], solid: Grid, like: Tensor) -> Tensor:
    """Values of an attribute for voxels that no shape has."""
    if name == "normal":
        return estimated_normals(solid)[solid.index(grid.coords)].to(like.dtype)
    if name == "fill":
        return torch.full_like(like, NO_FILL)
    nearest = next((each for each, _ in having if each.num_voxels), None)
    if nearest is None:
        return torch.zeros_like(like)
    return nearest.attributes[name][nearest.grid.nearest(grid.to_world(grid.ijk.double()))].to(like.dtype)
