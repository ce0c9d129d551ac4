"""Balls on the finest grid of a small box: shapes for tests of training."""

import torch

from sparsevox import Grid, Voxels

SIDE = 16


def ball(radius: float, names: tuple[str, ...] = ("normal",)) -> Voxels:
    """The voxels near a sphere with a radius in voxels, with the named ones of the attributes normal and label."""
    axis = torch.arange(-7, 7)
    ijk = torch.cartesian_prod(axis, axis, axis)
    shell = ijk[((ijk + 0.5).square().sum(1).sqrt() - radius).abs() < 0.7]
    grid = Grid.from_coords(shell, voxel_size=1 / SIDE, origin=0.5 / SIDE)
    made = {"normal": torch.nn.functional.normalize(grid.ijk.float() + 0.5, dim=1), "label": grid.ijk[:, 2].long() + 7}
    return Voxels(grid, {name: made[name] for name in names})
