"""Whether generated shapes are new: the training shapes that are nearest to them."""

from collections.abc import Sequence
from os import PathLike
from typing import NamedTuple

import torch

from sparsevox import Grid
from xcube.data.hierarchy import Box
from xcube.data.loading import ShapeFolder
from xcube.evaluation.load import Item
from xcube.geometry.distances import distance_matrix, iou_matrix, shape_points
from xcube.geometry.pyramid import enclosing_coarsen

TRAIN = "train"
CANDIDATES = 8  # training shapes that share most voxels with a shape, of which the nearest in Chamfer distance is taken
CHUNK = 512  # training shapes in memory at once


class Near(NamedTuple):
    """The training shapes nearest to a shape, by shared voxels at the coarsest level and by Chamfer distance."""

    nearest_iou: float
    nearest_iou_shape: str
    nearest_chamfer: float
    nearest_chamfer_shape: str


def nearest_training(
    items: Sequence[Item], data: str | PathLike[str], *, level: int = -1, points: int = 2048, seed: int = 0
) -> list[Near]:
    """The nearest training shapes of each of some shapes, which tell new shapes from copies.

    The intersection over union is that of voxels at the coarsest level. The squared Chamfer distance, of centers of
    voxels, is measured to the eight training shapes that share most voxels so, not to all of them.

    Args:
        items: Shapes of one level of the data set. An empty one shares nothing and is infinitely far.
        data: Folder of the data set, with a split "train".
        level: Their level; -1 is the finest.
        points: On each shape.
        seed: Of the drawing of points.

    Raises:
        FileNotFoundError: If the data set is none.
        ImportError: If scipy is not installed.
        ValueError: If the data set has no training shapes.
    """
    training, learned = ShapeFolder(data, TRAIN, level=level), ShapeFolder(data, TRAIN, level=0)
    box = training.card.box
    coarse = [coarsest(item.voxels.grid, box, level % len(box.levels)) for item in items]
    names = [entry.name for entry in learned.entries]
    chunks = [range(n, min(n + CHUNK, len(learned))) for n in range(0, len(learned), CHUNK)]
    shared = torch.cat([iou_matrix(coarse, [learned[n].grid for n in chunk]) for chunk in chunks], 1)
    best = shared.topk(min(CANDIDATES, len(learned)), dim=1)
    needed = sorted(set(best.indices.flatten().tolist()))
    clouds = {n: shape_points(training[n], points, seed=seed).positions for n in needed}
    made: list[Near] = []
    for item, iou, rows in zip(items, best.values[:, 0].tolist(), best.indices.tolist(), strict=True):
        own = shape_points(item.voxels, points, seed=seed).positions
        distance = distance_matrix([own], [clouds[row] for row in rows])[0]
        nearest = int(distance.argmin())
        made.append(Near(iou, names[rows[0]], float(distance[nearest]), names[rows[nearest]]))
    return made


def coarsest(grid: Grid, box: Box, level: int) -> Grid:
    """The grid that a level of a shape has at the coarsest level of a box, as data sets are built."""
    for finer in range(level, 0, -1):
        grid = enclosing_coarsen(grid, box.levels[finer] // box.levels[finer - 1])
    return grid
