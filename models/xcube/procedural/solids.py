"""Solids as signed distance functions: unions, intersections and differences of the primitives in `primitives.py`.

A solid holds Python numbers only and computes on the device of the points that it is evaluated at.

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

Label = Tensor | int  # an int stands for a tensor of that value

FAR = 1e30  # the distance where there is no solid
CHUNK = 1 << 16  # points evaluated at a time, so that intermediate results stay in the cache


class Solid(ABC):
    """A set of points, given by the signed distance to its surface, negative inside.

    The absolute value never exceeds the true distance, so sphere tracing is safe. The primitives document where the
    distance is exact; outside of a union of them it stays exact.
    """

    @abstractmethod
    def field(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Signed distance at world positions, float64; x, y and z broadcast against each other."""

    @abstractmethod
    def labels(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Label]:
        """Signed distance, and the label int64 of the primitive that it comes from; the two broadcast."""

    @abstractmethod
    def placed(self, pose: Pose) -> "Solid":
        """Apply a pose to the whole solid."""

    @property
    @abstractmethod
    def bounds(self) -> Bounds:
        """Lower and upper corner of a box that contains the solid. If the solid is empty, lower may exceed upper."""

    def clipped(self, bounds: Bounds) -> "Solid | None":
        """Leave out the parts that do not touch a box; None if no part does."""
        return self if overlap(self.bounds, bounds) else None

    def lattice(self, lattice: Lattice) -> Tensor:
        """Signed distance at the points of a lattice: float64 [X, Y, Z].

        More than `REACH` steps away from a part of the solid, a larger number may replace the distance to that part.
        """
        return self.field(*lattice.axes).expand(lattice.shape)

    def at(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance float64 [P] and label int64 [P] at points [3, P]."""
        distance, label = self.labels(*points)
        count = points.shape[1:]
        return distance.expand(count), torch.as_tensor(label, device=points.device).expand(count)

    def distance(self, points: Tensor) -> Tensor:
        """Signed distance at points [P, 3]: float64 [P].

        Raises:
            TypeError: If points are not floating-point.
            ValueError: If their shape is wrong.
        """
        return torch.cat([self.at(chunk)[0] for chunk in _positions(points).split(CHUNK, 1)])

    def label(self, points: Tensor) -> Tensor:
        """Label of the primitive that the distance comes from, at points [P, 3]: int64 [P].

        Raises:
            TypeError: If points are not floating-point.
            ValueError: If their shape is wrong.
        """
        return torch.cat([self.at(chunk)[1] for chunk in _positions(points).split(CHUNK, 1)])

    def normal(self, points: Tensor, *, step: float = 1e-5) -> Tensor:
        """Unit gradient of the distance at points [P, 3], by central differences: float64 [P, 3].

        Zero where the gradient vanishes, as on the axis of a cylinder.

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
        """Translate the solid."""
        return self.placed(Pose(translation=(x, y, z)))

    def turned(self, axis: str, degrees: float) -> "Solid":
        """Rotate the solid around an axis of the world, "x", "y" or "z"."""
        return self.placed(rotation(axis, degrees))

    def scaled(self, factor: float) -> "Solid":
        """Scale the solid around the origin. Raises ValueError unless the factor is positive."""
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
    """The points that lie in at least one part.

    Raises:
        ValueError: If there are no parts.
    """

    parts: tuple[Solid, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts must hold at least one solid, got none")

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
            found = lattice.crop(part.bounds)
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
    """The points that lie in all parts.

    Raises:
        ValueError: If there are no parts.
    """

    parts: tuple[Solid, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts must hold at least one solid, got none")

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
    """A solid minus a cutter. The surface of the cut has the label of the cutter."""

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
        found = lattice.crop(self.cutter.bounds)
        if found is not None:
            made = made.clone()  # the field of a primitive may be an expanded view
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
    """A solid whose labels are replaced by one number."""

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
    """Unite solids; a single one is returned as it is. Raises ValueError if there are none."""
    return parts[0] if len(parts) == 1 else Union(tuple(parts))
