"""Augmentation: random scaled, turned and mirrored copies of shapes during training.

The center of the box is a corner of voxels at every level. Mirror images and quarter turns of a shape are therefore
exact: they move whole voxels, at all levels alike. A scaled shape is computed from the finest level.

N voxels of a shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from sparsevox import Grid, Voxels
from sparsevox.shapes import Points
from xcube.config import Config
from xcube.data.dataset import read_shape
from xcube.data.hierarchy import Box, build_hierarchy
from xcube.data.loading import ShapeFolder

Factors = tuple[float, float, float]


class Change(NamedTuple):
    """A change of a shape, in this order.

    factors: Factor of each axis by which it is scaled; None for no scaling.
    quarters: Number of quarter turns about the z axis, from x to y.
    mirror: Whether it is mirrored left to right: y changes its sign.
    """

    factors: Factors | None = None
    quarters: int = 0
    mirror: bool = False


@dataclass(frozen=True)
class Augment(Config):
    """Random changes of training shapes, which differ in every epoch.

    Args:
        mirror: Whether to mirror half of the shapes from left to right, along the y axis.
        turn: Whether to turn shapes by 0, 90, 180 or 270 degrees about the z axis.
        scale: Range of the factors by which each axis of a shape is scaled about the center of the box, at most 1, such
            as [0.75, 1.0]; null for no scaling.
        variants: Number of changed copies of each shape whose latents are cached for a denoiser, one for each epoch in
            turn.

    Raises:
        ValueError: If a setting is out of range.
    """

    mirror: bool = False
    turn: bool = False
    scale: tuple[float, float] | None = None
    variants: int = 8

    def __post_init__(self) -> None:
        self._check_at_least(1, "variants")
        if self.scale is not None and not (len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1] <= 1):
            raise ValueError(f"scale must be a range within (0, 1], got {self.scale}")

    @property
    def active(self) -> bool:
        """Whether any change is on."""
        return self.mirror or self.turn or self.scale is not None

    def change(self, seed: int, epoch: int, item: int) -> Change:
        """Draw the change of a shape in an epoch, which depends on nothing else."""
        # All numbers are drawn, so that one kind of change does not affect the others.
        generator = np.random.default_rng([seed, epoch, item])
        mirror, quarters = bool(generator.integers(2)), int(generator.integers(4))
        part = generator.random(3)
        factors: Factors | None = None
        if self.scale is not None:
            x, y, z = (float(f) for f in self.scale[0] + (self.scale[1] - self.scale[0]) * part)
            factors = (x, y, z)
        return Change(factors, quarters * self.turn, mirror and self.mirror)


class AugmentedShapes:
    """The shapes of a dataset at one level, each with a change in every epoch.

    sizes: Number of voxels of each item without changes.

    Args:
        shapes: The shapes, at one level.
        augment: The changes.
        seed: Random seed of the changes.

    Raises:
        ValueError: If shapes are turned in a box that is not square.
    """

    def __init__(self, shapes: ShapeFolder[Voxels], augment: Augment = Augment(), seed: int = 0) -> None:
        x, y, _ = shapes.card.box.size
        if augment.turn and x != y:
            raise ValueError(f"augment.turn needs a box with a square base, got {shapes.card.box.size}")
        self.shapes, self.augment, self.seed = shapes, augment, seed
        self.sizes = shapes.sizes

    def __len__(self) -> int:
        return len(self.shapes)

    def variant(self, item: int, epoch: int) -> Voxels:
        """Load a shape with its change in an epoch. It depends on seed, epoch and item only."""
        if not self.augment.active:
            return self.shapes[item]
        factors, quarters, mirror = self.augment.change(self.seed, epoch, item)
        voxels = self.shapes[item] if factors is None else self._scaled(item, factors)
        voxels = turned(voxels, quarters)
        return mirror_image(voxels) if mirror else voxels

    def _scaled(self, item: int, factors: Factors) -> Voxels:
        shapes, card = self.shapes, self.shapes.card
        (level,) = shapes.levels
        finest = read_shape(shapes.root, card, shapes.entries[item], -1)
        return scaled(finest, _without_coarser(card.box, level), factors)[0]

    def __repr__(self) -> str:
        return f"AugmentedShapes({self.shapes!r}, {self.augment})"


def _without_coarser(box: Box, level: int) -> Box:
    """A box without the levels that are coarser than this one."""
    levels = box.levels[level:]
    return Box(levels, box.size, tuple(count for count in box.thin if count in levels[:-1]))


def mirror_image(voxels: Voxels) -> Voxels:
    """Mirror one shape from left to right: voxel (i, j, k) becomes (i, -1 - j, k), and normals change the sign of y."""
    return _moved(voxels, (0, 1, 2), (1, -1, 1))


def turned(voxels: Voxels, quarters: int = 1) -> Voxels:
    """Turn one shape about the z axis by 90 degrees, from x to y, a number of times.

    Voxel (i, j, k) becomes (-1 - j, i, k). Normals turn, too.
    """
    for _ in range(quarters % 4):
        voxels = _moved(voxels, (1, 0, 2), (-1, 1, 1))
    return voxels


def _moved(voxels: Voxels, axes: Sequence[int], signs: Sequence[int]) -> Voxels:
    """Exchange axes: new axis a is the old axis `axes[a]`, reversed if `signs[a]` is -1."""
    grid = voxels.grid
    reverse = torch.tensor(signs, dtype=grid.ijk.dtype, device=grid.device)
    ijk = grid.ijk[:, list(axes)] * reverse + (reverse - 1) // 2  # -1 - i where it is reversed: [N, 3]
    moved = Grid.from_coords(ijk, batch_size=1, voxel_size=grid.voxel_size, origin=grid.origin)
    order = moved.index(ijk).argsort()  # the Z-order depends on the coordinates
    attributes = dict(voxels.attributes)
    if "normal" in attributes:
        attributes["normal"] = attributes["normal"][:, list(axes)] * reverse.to(attributes["normal"].dtype)
    return Voxels(moved, {name: value[order] for name, value in attributes.items()})


def scaled(voxels: Voxels, box: Box, factors: Factors) -> list[Voxels]:
    """Scale one shape about the center of a box, and compute all levels again, coarsest first (`build_hierarchy`).

    The voxels of the finest level are those that contain the scaled centers of the original ones. With factors of at
    most 1 this leaves no holes: voxels that share a face still do, or become one, and empty space enclosed by a shell
    stays enclosed. Thin gaps, of less than `1 / factor` voxels, can close.

    Args:
        voxels: The voxels of the finest level.
        box: The box with its levels.
        factors: Factor of each axis, in (0, 1].
    """
    factor = torch.tensor(factors, dtype=torch.float64, device=voxels.device)
    positions = (voxels.grid.ijk.double() + 0.5) * box.voxel_size(-1) * factor
    attributes = dict(voxels.attributes)
    fill = attributes.pop("fill", None) is not None  # it is computed again
    if "normal" in attributes:  # the normal of a scaled plane is divided by the factors
        normals = attributes["normal"] / factor.to(attributes["normal"].dtype)
        attributes["normal"] = torch.nn.functional.normalize(normals, dim=1)
    return build_hierarchy(Points(positions, attributes), box, outside="clip", fill=fill)
