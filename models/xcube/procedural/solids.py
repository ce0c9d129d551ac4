"""Solids by signed distance: primitives, joined, intersected and cut. `primitives.py` has the primitives.

A solid is made of Python numbers only. It works on the device of the points it is asked about.

P points. X, Y, Z points along the axes of a lattice.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import override

from sparsevox import checks
from xcube.procedural.poses import Bounds, Lattice, Pose, hull, overlap, rotation

Label = Tensor | int  # one number stands for many

FAR = 1e30  # a distance where nothing is near
CHUNK = 1 << 16  # points at a time: what they need stays in the cache


class Solid(ABC):
    """A set of points, given by how far away its surface is.

    The distance is negative inside. Its absolute value is never more than the true distance to the surface, so a ball
    of this radius holds no surface. Primitives say where it is exact; it stays exact outside of a union.
    """

    @abstractmethod
    def field(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Distance at world positions, float64, given as three tensors that broadcast against each other."""

    @abstractmethod
    def labels(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Label]:
        """Distance, and the label of the primitive that it comes from, int64; they broadcast against each other."""

    @abstractmethod
    def placed(self, pose: Pose) -> "Solid":
        """The solid, moved as a whole."""

    @property
    @abstractmethod
    def bounds(self) -> Bounds:
        """A box, lower and upper corner, which holds the solid. Of an empty solid, lower may exceed upper."""

    def clipped(self, bounds: Bounds) -> "Solid | None":
        """What matters inside of a box: parts that lie elsewhere are left out. None, if all do."""
        return self if overlap(self.bounds, bounds) else None

    def lattice(self, lattice: Lattice) -> Tensor:
        """Distance at the points of a lattice: float64 [X, Y, Z].

        Further than `REACH` steps from a part of the solid, some larger number may stand for the distance to it.
        """
        return self.field(*lattice.axes).expand(lattice.shape)

    def at(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Distance, and the label of the primitive that it comes from, of points [3, P]: float64 [P] and int64 [P]."""
        distance, label = self.labels(*points)
        count = points.shape[1:]
        return distance.expand(count), torch.as_tensor(label, device=points.device).expand(count)

    def distance(self, points: Tensor) -> Tensor:
        """Distance of points [P, 3]: float64 [P].

        Raises:
            TypeError: If points are not floating-point.
            ValueError: If their shape is wrong.
        """
        return torch.cat([self.at(chunk)[0] for chunk in _positions(points).split(CHUNK, 1)])

    def label(self, points: Tensor) -> Tensor:
        """Label of the primitive whose surface decides the distance of points [P, 3]: int64 [P].

        Raises:
            TypeError: If points are not floating-point.
            ValueError: If their shape is wrong.
        """
        return torch.cat([self.at(chunk)[1] for chunk in _positions(points).split(CHUNK, 1)])

    def normal(self, points: Tensor, *, step: float = 1e-5) -> Tensor:
        """Direction in which the distance of points [P, 3] grows, unit length: float64 [P, 3].

        By central differences. Zero where the distance has no direction, as on the axis of a cylinder.

        Raises:
            TypeError: If points are not floating-point.
            ValueError: If their shape is wrong, or `step` is not positive.
        """
        if not step > 0:
            raise ValueError(f"step must be positive, got {step}")
        p = _positions(points).T
        shifts = torch.eye(3, dtype=p.dtype, device=p.device) * step
        slopes = torch.stack([self.distance(p + shift) - self.distance(p - shift) for shift in shifts], 1) / (2 * step)
        length = torch.linalg.vector_norm(slopes, dim=1, keepdim=True)
        return torch.where(length > 1e-6, slopes / length.clamp_min(1e-6), 0)

    def moved(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> "Solid":
        """The solid, moved."""
        return self.placed(Pose(translation=(x, y, z)))

    def turned(self, axis: str, degrees: float) -> "Solid":
        """The solid, turned around an axis of the world, "x", "y" or "z"."""
        return self.placed(rotation(axis, degrees))

    def scaled(self, factor: float) -> "Solid":
        """The solid, scaled around the origin."""
        if not factor > 0:
            raise ValueError(f"factor must be positive, got {factor}")
        return self.placed(Pose(scale=factor))

    def __sub__(self, other: "Solid") -> "Solid":
        return Difference(self, other)

    def __and__(self, other: "Solid") -> "Solid":
        return Intersection((self, other))

    def __or__(self, other: "Solid") -> "Solid":
        return Union((self, other))


def _positions(points: Tensor) -> Tensor:
    checked = checks.floats("points", checks.shape("points", points, "P", 3))
    return checked.double().T.contiguous()


@dataclass(frozen=True)
class Union(Solid):
    """Everything that lies in at least one part.

    Raises:
        ValueError: If there is no part.
    """

    parts: tuple[Solid, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts must hold one solid at least, got none")

    @cached_property
    @override
    def bounds(self) -> Bounds:
        return hull([part.bounds for part in self.parts])

    @override
    def field(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        nearest = self.parts[0].field(x, y, z)
        for part in self.parts[1:]:
            nearest = torch.minimum(nearest, part.field(x, y, z))
        return nearest

    @override
    def labels(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Label]:
        nearest, label = self.parts[0].labels(x, y, z)
        for part in self.parts[1:]:
            distance, other = part.labels(x, y, z)
            label = torch.where(distance < nearest, other, label)
            nearest = torch.minimum(nearest, distance)
        return nearest, label

    @override
    def at(self, points: Tensor) -> tuple[Tensor, Tensor]:
        nearest = torch.full_like(points[0], FAR)
        label = torch.zeros_like(nearest, dtype=torch.int64)
        for part in self.parts:
            lower, upper = (points.new_tensor(corner)[:, None] for corner in part.bounds)
            gap = torch.maximum(lower - points, points - upper).amax(0)  # no part is nearer than its bounds
            row = (gap < nearest).nonzero().squeeze(1)
            if len(row):
                distance, other = part.at(points[:, row])
                closer = distance < nearest[row]
                nearest[row[closer]], label[row[closer]] = distance[closer], other[closer]
        return nearest, label

    @override
    def lattice(self, lattice: Lattice) -> Tensor:
        made = torch.full(lattice.shape, FAR, dtype=torch.float64, device=lattice.device)
        for part in self.parts:
            found = lattice.part(part.bounds)
            if found is not None:
                view = made[found[1]]
                torch.minimum(view, part.lattice(found[0]), out=view)
        return made

    @override
    def placed(self, pose: Pose) -> Solid:
        return Union(tuple(part.placed(pose) for part in self.parts))

    @override
    def clipped(self, bounds: Bounds) -> Solid | None:
        parts = [found for part in self.parts if (found := part.clipped(bounds)) is not None]
        return union(parts) if parts else None


@dataclass(frozen=True)
class Intersection(Solid):
    """Everything that lies in all parts.

    Raises:
        ValueError: If there is no part.
    """

    parts: tuple[Solid, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts must hold one solid at least, got none")

    @cached_property
    @override
    def bounds(self) -> Bounds:
        boxes = [part.bounds for part in self.parts]
        lower = [max(box[0][i] for box in boxes) for i in range(3)]
        upper = [min(box[1][i] for box in boxes) for i in range(3)]
        return (lower[0], lower[1], lower[2]), (upper[0], upper[1], upper[2])

    @override
    def field(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        furthest = self.parts[0].field(x, y, z)
        for part in self.parts[1:]:
            furthest = torch.maximum(furthest, part.field(x, y, z))
        return furthest

    @override
    def labels(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Label]:
        furthest, label = self.parts[0].labels(x, y, z)
        for part in self.parts[1:]:
            distance, other = part.labels(x, y, z)
            label = torch.where(distance > furthest, other, label)
            furthest = torch.maximum(furthest, distance)
        return furthest, label

    @override
    def placed(self, pose: Pose) -> Solid:
        return Intersection(tuple(part.placed(pose) for part in self.parts))


@dataclass(frozen=True)
class Difference(Solid):
    """What is left of a solid when a cutter is taken away. The surface of the cut has the label of the cutter."""

    solid: Solid
    cutter: Solid

    @property
    @override
    def bounds(self) -> Bounds:
        return self.solid.bounds

    @override
    def field(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return torch.maximum(self.solid.field(x, y, z), -self.cutter.field(x, y, z))

    @override
    def labels(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Label]:
        distance, label = self.solid.labels(x, y, z)
        other, cut = self.cutter.labels(x, y, z)
        return torch.maximum(distance, -other), torch.where(-other > distance, cut, label)

    @override
    def lattice(self, lattice: Lattice) -> Tensor:
        made = self.solid.lattice(lattice)
        found = lattice.part(self.cutter.bounds)
        if found is not None:
            made = made.clone()  # that of a primitive may be one row, seen as many
            view = made[found[1]]
            torch.maximum(view, -self.cutter.lattice(found[0]), out=view)
        return made

    @override
    def placed(self, pose: Pose) -> Solid:
        return Difference(self.solid.placed(pose), self.cutter.placed(pose))

    @override
    def clipped(self, bounds: Bounds) -> Solid | None:
        solid, cutter = self.solid.clipped(bounds), self.cutter.clipped(bounds)
        return solid if solid is None or cutter is None else Difference(solid, cutter)


@dataclass(frozen=True)
class Labeled(Solid):
    """A solid with one label in place of its own."""

    solid: Solid
    number: int

    @property
    @override
    def bounds(self) -> Bounds:
        return self.solid.bounds

    @override
    def field(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return self.solid.field(x, y, z)

    @override
    def labels(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Label]:
        return self.solid.field(x, y, z), self.number

    @override
    def at(self, points: Tensor) -> tuple[Tensor, Tensor]:
        distance, label = self.solid.at(points)
        return distance, torch.full_like(label, self.number)

    @override
    def lattice(self, lattice: Lattice) -> Tensor:
        return self.solid.lattice(lattice)

    @override
    def placed(self, pose: Pose) -> Solid:
        return Labeled(self.solid.placed(pose), self.number)

    @override
    def clipped(self, bounds: Bounds) -> Solid | None:
        solid = self.solid.clipped(bounds)
        return None if solid is None else Labeled(solid, self.number)


def union(parts: Sequence[Solid]) -> Solid:
    """All of some solids; one alone stays itself. Raises ValueError if there is none."""
    return parts[0] if len(parts) == 1 else Union(tuple(parts))
