"""The ground of a scene: rolling terrain, a winding road, at times a crossing road, curbs and sidewalks.

P points.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Self

import torch
from torch import Tensor
from typing_extensions import override

from xcube.procedural.families.draw import Draw
from xcube.procedural.poses import Bounds, Pose
from xcube.procedural.solids import Label, Solid

ROAD, LANE_MARKING, SIDEWALK, TERRAIN, PARKING = 1, 2, 3, 4, 5

# In meters.
CURB = 0.16  # height of a sidewalk above the road
RAMP = 5.0  # distance behind the sidewalk over which the terrain begins to roll
LANE = 3.1  # width of a lane
BAY = 2.3  # width of a row of parking bays


class Wave(NamedTuple):
    """A plane wave: height * sin(x * u + y * v + phase)."""

    height: float
    u: float
    v: float
    phase: float

    @property
    def slope(self) -> float:
        """The largest slope of the wave."""
        return self.height * math.hypot(self.u, self.v)


@dataclass(frozen=True)
class Ground(Solid):
    """The half-space below the surface of the ground, unbounded to the sides. Lengths are in meters.

    The main road winds along x; with `crossing`, a second road runs along y.

    level: Height of the road where the waves are zero.
    gentle: Waves of the whole ground.
    rough: Waves of the terrain, which fade out toward the roads.
    bend: Center line of the main road: y = middle + bend(x).
    middle: y of the center line where its wave is zero.
    half: Half width of the main road, including its parking bays.
    sidewalk: Width of the sidewalks.
    crossing: x of the center line of the second road, or None.
    """

    level: float
    gentle: tuple[Wave, ...]
    rough: tuple[Wave, ...]
    bend: Wave
    middle: float
    half: float
    sidewalk: float
    crossing: float | None

    @cached_property
    @override
    def bounds(self) -> Bounds:
        top = self.level + sum(wave.height for wave in (*self.gentle, *self.rough)) + CURB
        return (-math.inf, -math.inf, -math.inf), (math.inf, math.inf, top)

    @cached_property
    def _steep(self) -> float:
        """An upper bound of the slope of the terrain."""
        return sum(w.slope for w in (*self.gentle, *self.rough)) + sum(w.height for w in self.rough) * 1.5 / RAMP

    def edge(self, x: Tensor, y: Tensor) -> Tensor:
        """A lower bound of the distance to the edge of the nearest road; negative on a road."""
        return torch.minimum(self._main(x, y).abs() - self.half, self._cross(x, y))

    def _main(self, x: Tensor, y: Tensor) -> Tensor:
        """Signed lower bound of the distance to the center line of the main road, positive on its left."""
        return (y - self.middle - _height((self.bend,), x, x)) / math.hypot(1, self.bend.slope)

    def _cross(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance to the edge of the second road."""
        if self.crossing is None:
            return torch.full_like(x, math.inf)
        return (x - self.crossing).abs() - LANE

    def height(self, x: Tensor, y: Tensor) -> Tensor:
        """Height of the terrain, not counting curbs."""
        rise = ((self.edge(x, y) - self.sidewalk) / RAMP).clamp(0, 1)
        rise = rise * rise * (3 - 2 * rise)
        return self.level + _height(self.gentle, x, y) + _height(self.rough, x, y) * rise

    def top(self, x: float, y: float) -> float:
        """Height of the surface at one place, including the sidewalks."""
        u, v = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
        raised = 0 <= float(self.edge(u, v)) < self.sidewalk
        return float(self.height(u, v)) + CURB * raised

    def along(self, x: float) -> tuple[float, float]:
        """y of the middle of the road, and its heading in degrees."""
        b = self.bend
        slope = b.height * b.u * math.cos(x * b.u + b.phase)
        return self.middle + b.height * math.sin(x * b.u + b.phase), math.degrees(math.atan(slope))

    @override
    def field(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        above = (z - self.height(x, y)) / math.hypot(1, self._steep)
        raised = (z - self.height(x, y) - CURB) / math.hypot(1, self._steep)
        strip = (self.edge(x, y) - self.sidewalk / 2).abs() - self.sidewalk / 2
        return torch.minimum(above, torch.maximum(raised, strip))

    @override
    def labels(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Label]:
        side, cross, edge = self._main(x, y), self._cross(x, y), self.edge(x, y)
        label = torch.where(edge < self.sidewalk, SIDEWALK, TERRAIN)
        label = torch.where(edge < 0, ROAD, label)
        clear = cross > 1.0  # of the crossing
        if self.half > LANE:
            label = torch.where(clear & (side.abs() < self.half) & (side.abs() > LANE), PARKING, label)
        dash = (torch.remainder(x, 6.0) < 3) & (side.abs() < 0.1)
        border = (side.abs() - LANE + 0.25).abs() < 0.08
        label = torch.where(clear & (dash | border), LANE_MARKING, label)
        return self.field(x, y, z), label

    def placed(self, pose: Pose) -> Self:
        """Raise or lower the ground. Raises ValueError for any other pose, since the objects of a scene stand on it."""
        if pose != Pose(translation=(0.0, 0.0, pose.translation[2])):
            raise ValueError(f"pose of the ground must be a translation along z, got {pose}")
        return replace(self, level=self.level + pose.translation[2])


def _height(waves: tuple[Wave, ...], x: Tensor, y: Tensor) -> Tensor:
    made = torch.zeros_like(x)
    for wave in waves:
        made = made + wave.height * torch.sin(x * wave.u + y * wave.v + wave.phase)
    return made


def draw_ground(draw: Draw, level: float) -> Ground:
    """Draw a random ground."""
    gentle = tuple(_wave(draw, draw.between(0.1, 0.3), draw.between(60, 120)) for _ in range(2))
    rough = [_wave(draw, draw.between(0.15, 0.4), draw.between(18, 40)) for _ in range(3)]
    rough += [_wave(draw, draw.between(0.03, 0.07), draw.between(4, 9)) for _ in range(3)]
    length = draw.between(60, 120)
    bend = Wave(draw.between(0, 4), 2 * math.pi / length, 0.0, draw.between(0, 2 * math.pi))
    half = LANE + (BAY if draw.chance(0.6) else 0.0)
    crossing = draw.between(-14, 14) if draw.chance(0.5) else None
    return Ground(level, gentle, tuple(rough), bend, draw.between(-5, 5), half, draw.between(1.6, 2.6), crossing)


def _wave(draw: Draw, height: float, length: float) -> Wave:
    heading, number = draw.between(0, 2 * math.pi), 2 * math.pi / length
    return Wave(height, number * math.cos(heading), number * math.sin(heading), draw.between(0, 2 * math.pi))
