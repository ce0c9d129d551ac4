"""Poses of solids, bounding boxes, and lattices of points to evaluate solids at.

X, Y, Z points along the axes of a lattice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Triple = tuple[float, float, float]
Bounds = tuple[Triple, Triple]

REACH = 2.0  # lattice steps around the bounds of a part within which its distance is evaluated
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


class Pose(NamedTuple):
    """Map from local to world coordinates: a rotation, then a uniform scale, then a translation.

    rotation: Row-major 3x3 matrix.
    """

    rotation: tuple[float, ...] = IDENTITY
    translation: Triple = (0.0, 0.0, 0.0)
    scale: float = 1.0

    def after(self, first: "Pose") -> "Pose":
        """Compose two poses: `first`, then this one."""
        a, b = self.rotation, first.rotation
        turned = tuple(sum(a[3 * i + k] * b[3 * k + j] for k in range(3)) for i in range(3) for j in range(3))
        return Pose(turned, self.to_world(first.translation), self.scale * first.scale)

    def to_world(self, p: Triple) -> Triple:
        """Map a point from local to world coordinates."""
        r, t, s = self.rotation, self.translation, self.scale
        x, y, z = (s * (r[3 * i] * p[0] + r[3 * i + 1] * p[1] + r[3 * i + 2] * p[2]) + t[i] for i in range(3))
        return x, y, z

    def to_local(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map positions from world to local coordinates."""
        moved = [v - t if t else v for v, t in zip((x, y, z), self.translation, strict=True)]
        if self.scale != 1:
            moved = [v / self.scale for v in moved]
        if self.rotation == IDENTITY:
            return moved[0], moved[1], moved[2]
        a, b, c = (_combined([self.rotation[3 * i + j] for i in range(3)], moved) for j in range(3))
        return a, b, c


def _combined(factors: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """Sum of products without the zero factors, so that a lattice is not expanded along their axes."""
    terms = [value if factor == 1 else value * factor for factor, value in zip(factors, values, strict=True) if factor]
    return sum(terms[1:], terms[0])


def rotation(axis: str, degrees: float) -> Pose:
    """Rotation around an axis, "x", "y" or "z", counterclockwise as seen from its tip."""
    if axis not in ("x", "y", "z"):
        raise ValueError(f"axis must be 'x', 'y' or 'z', got {axis!r}")
    quarter = degrees % 360 / 90
    if quarter == int(quarter):  # exact zeros for quarter turns
        c, s = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[int(quarter) % 4]
    else:
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    if axis == "x":
        return Pose((1.0, 0.0, 0.0, 0.0, c, -s, 0.0, s, c))
    if axis == "y":
        return Pose((c, 0.0, s, 0.0, 1.0, 0.0, -s, 0.0, c))
    return Pose((c, -s, 0.0, s, c, 0.0, 0.0, 0.0, 1.0))


@dataclass(frozen=True)
class Lattice:
    """Points at integer multiples of a step along each axis.

    start: First multiple along each axis.
    step: Distance between neighboring points, in world units.
    axes: World coordinates, float64 [X, 1, 1], [1, Y, 1] and [1, 1, Z].
    """

    start: tuple[int, int, int]
    step: float
    axes: tuple[Tensor, Tensor, Tensor]

    @classmethod
    def of(cls, start: Sequence[int], shape: Sequence[int], step: float, device: torch.device) -> "Lattice":
        """Make a lattice from its first multiples and its number of points along each axis."""
        x, y, z = (
            torch.arange(first, first + count, device=device, dtype=torch.float64) * step
            for first, count in zip(start, shape, strict=True)
        )
        return cls((start[0], start[1], start[2]), step, (x.view(-1, 1, 1), y.view(1, -1, 1), z.view(1, 1, -1)))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of points along each axis."""
        return self.axes[0].shape[0], self.axes[1].shape[1], self.axes[2].shape[2]

    @property
    def device(self) -> torch.device:
        return self.axes[0].device

    def crop(self, bounds: Bounds) -> "tuple[Lattice, tuple[slice, slice, slice]] | None":
        """The points in a box and up to `REACH` steps around it, and their slices of the lattice; None without any."""
        slices = []
        for low, high, start, count in zip(*bounds, self.start, self.shape, strict=True):
            # Bounds may be infinite, so they are clamped before they are rounded.
            first = math.ceil(max(low / self.step - REACH, start))
            end = math.floor(min(high / self.step + REACH, start + count - 1)) + 1
            if first >= end:
                return None
            slices.append(slice(first - start, end - start))
        x, y, z = slices
        axes = (self.axes[0][x], self.axes[1][:, y], self.axes[2][:, :, z])
        first_point = (self.start[0] + x.start, self.start[1] + y.start, self.start[2] + z.start)
        return Lattice(first_point, self.step, axes), (x, y, z)


def overlap(a: Bounds, b: Bounds) -> bool:
    """Return whether two boxes have a point in common."""
    return all(max(a[0][i], b[0][i]) <= min(a[1][i], b[1][i]) for i in range(3))


def hull(boxes: Sequence[Bounds]) -> Bounds:
    """Return the smallest box that contains all boxes."""
    lower = [min(box[0][i] for box in boxes) for i in range(3)]
    upper = [max(box[1][i] for box in boxes) for i in range(3)]
    return (lower[0], lower[1], lower[2]), (upper[0], upper[1], upper[2])
