"""Primitives: cuboids, ellipsoids, capsules, frusta, tori, extruded polygons and solids of revolution.

A primitive is defined in local coordinates around the origin, has a label, and may be grown by a radius, which rounds
its edges. All distances but those of ellipsoids are exact, inside and outside. The functions at the end build
primitives from corner to corner, or from point to point.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Self

import torch
from torch import Tensor
from typing_extensions import override

from xcube.procedural.polygons import Polygon, check_polygon, polygon_distance
from xcube.procedural.poses import Bounds, Pose, Triple, hull, rotation
from xcube.procedural.solids import Label, Solid

UNMOVED = Pose()


@dataclass(frozen=True, kw_only=True)
class Primitive(Solid):
    """A solid in a pose, with one label."""

    part: int = 0  # label
    radius: float = 0.0  # distance by which the primitive is grown
    pose: Pose = UNMOVED

    @abstractmethod
    def local_field(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Signed distance in local coordinates, before growing."""

    @property
    @abstractmethod
    def extent(self) -> Bounds:
        """Bounds in local coordinates, before growing."""

    @override
    def field(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        distance = self.local_field(*self.pose.to_local(x, y, z))
        if self.radius:
            distance = distance - self.radius
        return distance * self.pose.scale if self.pose.scale != 1 else distance

    @override
    def labels(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Label]:
        return self.field(x, y, z), self.part

    @override
    def placed(self, pose: Pose) -> Self:
        return replace(self, pose=pose.after(self.pose))

    @cached_property
    @override
    def bounds(self) -> Bounds:
        (a, b, c), (d, e, f) = self.extent
        corners = [self.pose.to_world(corner) for corner in product((a, d), (b, e), (c, f))]
        lower, upper = hull([(corner, corner) for corner in corners])
        grown = self.radius * self.pose.scale
        x, y, z = (v - grown for v in lower)
        u, v, w = (v + grown for v in upper)
        return (x, y, z), (u, v, w)


def _symmetric(x: float, y: float, z: float) -> Bounds:
    return (-x, -y, -z), (x, y, z)


def _length(*parts: Tensor) -> Tensor:
    squares = [part * part for part in parts]
    return torch.sqrt(sum(squares[1:], squares[0]))


def _corner(*outside: Tensor) -> Tensor:
    """Distance to the intersection of solids whose surfaces meet at right angles."""
    deepest = outside[0]
    for each in outside[1:]:
        deepest = torch.maximum(deepest, each)
    return _length(*(each.clamp_min(0) for each in outside)) + deepest.clamp_max(0)


@dataclass(frozen=True)
class Cuboid(Primitive):
    """A cuboid, given by half its edges."""

    half: Triple

    @override
    def local_field(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return _corner(*(v.abs() - half for v, half in zip((x, y, z), self.half, strict=True)))

    @property
    @override
    def extent(self) -> Bounds:
        return _symmetric(*self.half)


@dataclass(frozen=True)
class Ellipsoid(Primitive):
    """An ellipsoid. The distance is exact for a ball, and else too small by up to the ratio of the radii."""

    radii: Triple

    @override
    def local_field(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        scaled = [v / radius for v, radius in zip((x, y, z), self.radii, strict=True)]
        return (_length(*scaled) - 1) * min(self.radii)

    @property
    @override
    def extent(self) -> Bounds:
        return _symmetric(*self.radii)


@dataclass(frozen=True)
class Capsule(Primitive):
    """A line segment along z, which its radius makes a capsule."""

    half: float

    @override
    def local_field(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return _length(x, y, (z.abs() - self.half).clamp_min(0))

    @property
    @override
    def extent(self) -> Bounds:
        return _symmetric(0, 0, self.half)


@dataclass(frozen=True)
class Torus(Primitive):
    """A circle around z, which its radius makes a torus."""

    ring: float

    @override
    def local_field(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return _length(_length(x, y) - self.ring, z)

    @property
    @override
    def extent(self) -> Bounds:
        return _symmetric(self.ring, self.ring, 0)


@dataclass(frozen=True)
class Frustum(Primitive):
    """A cylinder or truncated cone around z, from -half to half, with a radius at each end."""

    low: float
    high: float
    half: float

    @override
    def local_field(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        r = _length(x, y)
        if self.low == self.high:
            return _corner(r - self.low, z.abs() - self.half)
        # In the half-plane of r and z: the nearest point of either flat end and of the slanted side.
        end = _length((r - torch.where(z < 0, self.low, self.high)).clamp_min(0), z.abs() - self.half)
        lean, height = self.high - self.low, 2 * self.half
        along = ((r - self.low) * lean + (z + self.half) * height) / (lean * lean + height * height)
        along = along.clamp(0, 1)
        dr, dz = r - self.low - along * lean, z + self.half - along * height
        inside = (dr < 0) & (z.abs() < self.half)
        nearest = torch.minimum(end, _length(dr, dz))
        return torch.where(inside, -nearest, nearest)

    @property
    @override
    def extent(self) -> Bounds:
        r = max(self.low, self.high)
        return _symmetric(r, r, self.half)


@dataclass(frozen=True)
class Extrusion(Primitive):
    """A simple polygon in x and y, extruded along z from -half to half.

    Raises:
        ValueError: If there are fewer than three vertices, or two successive ones are equal.
    """

    polygon: tuple[tuple[float, float], ...]
    half: float

    def __post_init__(self) -> None:
        check_polygon("polygon", self.polygon)

    @override
    def local_field(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return _corner(polygon_distance(x, y, self.polygon), z.abs() - self.half)

    @property
    @override
    def extent(self) -> Bounds:
        us, vs = zip(*self.polygon, strict=True)
        return (min(us), min(vs), -self.half), (max(us), max(vs), self.half)


@dataclass(frozen=True)
class Lathe(Primitive):
    """A solid of revolution around z, from a profile of points (r, z).

    The profile is a line from the axis to the axis; where it begins or ends off the axis, a flat disc closes the solid.
    With `ring`, it is a closed polygon at a distance from the axis, and the solid has a hole.

    Raises:
        ValueError: If a radius is negative, or the outline has fewer than three vertices or two successive equal ones.
    """

    profile: tuple[tuple[float, float], ...]
    ring: bool = False

    def __post_init__(self) -> None:
        if min(r for r, _ in self.profile) < 0:
            raise ValueError(f"profile must not have a negative radius, got {self.profile}")
        check_polygon("profile", self.outline)

    @cached_property
    def outline(self) -> tuple[tuple[float, float], ...]:
        """The polygon that is rotated: the profile, and its mirror image unless it is a ring."""
        if self.ring:
            return self.profile
        return self.profile + tuple((-r, z) for r, z in reversed(self.profile) if r > 0)

    @override
    def local_field(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return polygon_distance(_length(x, y), z, self.outline)

    @property
    @override
    def extent(self) -> Bounds:
        rs, zs = zip(*self.profile, strict=True)
        return (-max(rs), -max(rs), min(zs)), (max(rs), max(rs), max(zs))


def cuboid(lower: Triple, upper: Triple, label: int = 0, *, radius: float = 0.0) -> Cuboid:
    """Make a cuboid from corner to corner; `radius` rounds its edges without changing its size."""
    edges = [b - a for a, b in zip(lower, upper, strict=True)]
    if min(edges) <= 2 * radius:
        raise ValueError(f"upper must be more than {2 * radius} above lower, got {lower} and {upper}")
    x, y, z = (edge / 2 - radius for edge in edges)
    a, b, c = ((a + b) / 2 for a, b in zip(lower, upper, strict=True))
    return Cuboid((x, y, z), part=label, radius=radius, pose=Pose(translation=(a, b, c)))


def rod(start: Triple, end: Triple, low: float, high: float | None = None, label: int = 0) -> Frustum:
    """Make a frustum from point to point with a radius at each end; with one radius, a cylinder."""
    half, pose = _from_to(start, end)
    return Frustum(low, low if high is None else high, half, part=label, pose=pose)


def capsule(start: Triple, end: Triple, radius: float, label: int = 0) -> Capsule:
    """Make the capsule of all points within a radius of a line segment."""
    half, pose = _from_to(start, end)
    return Capsule(half, part=label, radius=radius, pose=pose)


def prism(polygon: Polygon, axis: str, low: float, high: float, label: int = 0, *, radius: float = 0.0) -> Extrusion:
    """Extrude a polygon along an axis from low to high: (x, y) along "z", (x, z) along "y", or (y, z) along "x".

    `radius` rounds the edges and grows the polygon; the length along the axis stays.
    """
    turn = {"z": Pose(), "y": rotation("x", 90), "x": rotation("z", 90).after(rotation("x", 90))}
    if axis not in turn:
        raise ValueError(f"axis must be 'x', 'y' or 'z', got {axis!r}")
    if high - low <= 2 * radius:
        raise ValueError(f"high must be more than {2 * radius} above low, got {low} and {high}")
    middle = (low + high) / 2
    x, y, z = (middle if name == axis else 0.0 for name in "xyz")
    pose = Pose(translation=(x, y, z)).after(turn[axis])
    return Extrusion(tuple(polygon), (high - low) / 2 - radius, part=label, radius=radius, pose=pose)


def _from_to(start: Triple, end: Triple) -> tuple[float, Pose]:
    """Half the distance between two points, and the pose that maps the z axis onto the line between them."""
    x, y, z = (b - a for a, b in zip(start, end, strict=True))
    length = math.sqrt(x * x + y * y + z * z)
    if not length > 0:
        raise ValueError(f"end must differ from start, got {start} twice")
    lean, heading = math.degrees(math.atan2(math.hypot(x, y), z)), math.degrees(math.atan2(y, x))
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, (start[2] + end[2]) / 2)
    return length / 2, Pose(translation=middle).after(rotation("z", heading)).after(rotation("y", lean))
