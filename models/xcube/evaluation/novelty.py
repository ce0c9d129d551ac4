"""Novelty of generated shapes: their nearest training shapes, which reveal copies."""

from collections.abc import Sequence
from os import PathLike
from typing import NamedTuple

import torch

from sparsevox import Grid
from xcube.data.hierarchy import Box
from xcube.data.loading import ShapeFolder
from xcube.evaluation.load import NamedShape
from xcube.geometry.distances import distance_matrix, iou_matrix, shape_points

TRAIN = "train"
CANDIDATES = 8  # training shapes of the largest IoU with a shape, to which the Chamfer distance is measured
CHUNK = 512  # training shapes in memory at once


class NearestTraining(NamedTuple):
    """The training shapes nearest to a shape: by voxel IoU at the coarsest level, and by Chamfer distance."""

    nearest_iou: float
    nearest_iou_shape: str
    nearest_chamfer: float
    nearest_chamfer_shape: str


def nearest_training(
    shapes: Sequence[NamedShape], data: str | PathLike[str], *, level: int = -1, points: int = 2048, seed: int = 0
) -> list[NearestTraining]:
    """Find the nearest training shapes of each shape, which tell new shapes from copies.

    The IoU is that of the voxels at the coarsest level. The squared Chamfer distance of voxel centers is measured to
    the eight training shapes of the largest IoU only, not to all.

    Args:
        shapes: Shapes of one level of the dataset. An empty one has IoU 0 and infinite distance.
        data: Folder of the dataset, with a split "train".
        level: Level of the shapes; -1 is the finest.
        points: Number of points per shape.
        seed: Random seed of the points.

    Raises:
        FileNotFoundError: If there is no dataset.
        ImportError: If scipy is not installed.
        ValueError: If the dataset has no training shapes.
    """
    training, training_coarse = ShapeFolder(data, TRAIN, level=level), ShapeFolder(data, TRAIN, level=0)
    box = training.card.box
    coarse = [coarsest_grid(shape.voxels.grid, box, level % len(box.levels)) for shape in shapes]
    names = [entry.name for entry in training_coarse.entries]
    total = len(training_coarse)
    chunks = [range(n, min(n + CHUNK, total)) for n in range(0, total, CHUNK)]
    iou = torch.cat([iou_matrix(coarse, [training_coarse[n].grid for n in chunk]) for chunk in chunks], 1)
    best = iou.topk(min(CANDIDATES, total), dim=1)
    needed = sorted(set(best.indices.flatten().tolist()))
    clouds = {n: shape_points(training[n], points, seed=seed).positions for n in needed}
    found: list[NearestTraining] = []
    for shape, largest, rows in zip(shapes, best.values[:, 0].tolist(), best.indices.tolist(), strict=True):
        own = shape_points(shape.voxels, points, seed=seed).positions
        distance = distance_matrix([own], [clouds[row] for row in rows])[0]
        nearest = int(distance.argmin())
        found.append(NearestTraining(largest, names[rows[0]], float(distance[nearest]), names[rows[nearest]]))
    return found


def coarsest_grid(grid: Grid, box: Box, level: int) -> Grid:
    """Coarsen the grid of a level to the coarsest level of a box, as datasets are built."""
    for coarser in reversed(range(level)):
        grid = box.coarser(grid, coarser)
    return grid
