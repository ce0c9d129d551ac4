"""Balls on the finest grid of a small box: shapes for tests of training."""

from functools import partial
from pathlib import Path

import torch

from sparsevox import Grid, Voxels
from xcube.data.build import build
from xcube.data.hierarchy import Box
from xcube.data.sources import Source

SIDE = 16


def ball(radius: float, names: tuple[str, ...] = ("normal",)) -> Voxels:
    """The voxels near a sphere with a radius in voxels, with the named ones of the attributes normal and label."""
    axis = torch.arange(-7, 7)
    ijk = torch.cartesian_prod(axis, axis, axis)
    shell = ijk[((ijk + 0.5).square().sum(1).sqrt() - radius).abs() < 0.7]
    grid = Grid.from_coords(shell, voxel_size=1 / SIDE, origin=0.5 / SIDE)
    made = {"normal": torch.nn.functional.normalize(grid.ijk.float() + 0.5, dim=1), "label": grid.ijk[:, 2].long() + 7}
    return Voxels(grid, {name: made[name] for name in names})


def ball_dataset(folder: Path, *levels: int) -> Path:
    """A dataset of six balls for training and one for validation: four small ones, then three large ones."""
    sources = [
        Source(f"{'small' if n < 4 else 'large'}-{n}", partial(ball, 2.5 + n / 3), split="val" if n == 3 else "train")
        for n in range(7)
    ]
    assert len(build(sources, folder, Box(levels)).built) == 7
    return folder
