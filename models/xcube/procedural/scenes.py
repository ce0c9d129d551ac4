"""Procedural outdoor scenes: a street with houses, gardens, trees, vehicles and people, with semantic classes.

N voxels.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

import torch

from sparsevox import checks
from sparsevox.shapes import Voxels
from xcube.data.hierarchy import Box
from xcube.procedural import street
from xcube.procedural.families.cars import METERS, vehicle
from xcube.procedural.families.draw import SIDES, Draw
from xcube.procedural.ground import BAY, LANE, Ground, draw_ground
from xcube.procedural.poses import Pose, Triple, rotation
from xcube.procedural.solids import Labeled, Solid, Union
from xcube.procedural.surface import voxelize_solid


class SceneClass(NamedTuple):
    """A semantic class of surfaces.

    color: RGB color, 0xRRGGBB.
    semantic_kitti: The closest label of SemanticKITTI.
    """

    name: str
    color: int
    semantic_kitti: int


CLASSES: Mapping[int, SceneClass] = MappingProxyType(
    {
        0: SceneClass("unlabeled", 0x000000, 0),
        1: SceneClass("road", 0x7D7A87, 40),
        2: SceneClass("lane marking", 0xF2F2F2, 60),
        3: SceneClass("sidewalk", 0xC9B8A8, 48),
        4: SceneClass("terrain", 0xA8CF7F, 72),
        5: SceneClass("parking", 0x9B8FB0, 44),
        6: SceneClass("building", 0xF0D9A0, 50),
        7: SceneClass("roof", 0xC8694F, 50),
        8: SceneClass("fence", 0xB07A4A, 51),
        9: SceneClass("vegetation", 0x3F8F4F, 70),
        10: SceneClass("trunk", 0x7A4F2E, 71),
        11: SceneClass("pole", 0x5A6570, 80),
        12: SceneClass("traffic sign", 0xF2C230, 81),
        13: SceneClass("car", 0x4F83D9, 10),
        14: SceneClass("truck", 0x5B4FC9, 18),
        15: SceneClass("person", 0xE04F7A, 30),
    }
)
CAR, TRUCK = 13, 14

SIZE: Triple = (51.2, 51.2, 12.8)
ROAD_HEIGHT = 1.6  # mean height of the road above the bottom of the box, in meters


@dataclass(frozen=True)
class Scene:
    """An outdoor scene around the origin, in meters, with z up.

    seed: Seed that it was made from.
    size: Edges of its box. The ground continues beyond the box.
    ground: Terrain and roads.
    objects: Everything that stands on the ground.
    """

    seed: int
    size: Triple
    ground: Ground
    objects: tuple[Solid, ...]

    @cached_property
    def solid(self) -> Solid:
        """The whole scene, with labels of `CLASSES`."""
        return Union((self.ground, *self.objects))

    @property
    def sensor(self) -> Triple:
        """Position of a scanner on the roof of a car in the right lane."""
        y, heading = self.ground.along(0.0)
        y -= 0.5 * LANE / math.cos(math.radians(heading))
        return 0.0, y, self.ground.top(0.0, y) + 1.8


def make_scene(seed: int, size: Triple = SIZE) -> Scene:
    """Make the scene that a seed and a size determine.

    Args:
        seed: Any nonnegative integer.
        size: Edges of the box in meters, at least (20, 20, 4).

    Raises:
        TypeError: If `seed` is not an integer.
        ValueError: If `seed` is negative or the size is too small.
    """
    if checks.integer("seed", seed) < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if size[0] < 20 or size[1] < 20 or size[2] < 4:
        raise ValueError(f"size must be at least (20, 20, 4) meters, got {size}")
    draw = Draw(int.from_bytes(b"scene", "big"), seed)
    plot = _Plot(draw, draw_ground(draw, ROAD_HEIGHT - size[2] / 2), size)
    plot.fill()
    return Scene(seed, size, plot.ground, tuple(plot.objects))


def scene_voxels(name: str, box: Box) -> Voxels:
    """Voxelize the scene with a name such as "scene-000012" at the finest level of a box, whose size is in meters.

    Voxels in the margin of the box are left out, so that `build_hierarchy` accepts the others.

    Returns:
        One grid with "normal", float32 [N, 3], and "label", int64 [N], of `CLASSES`.

    Raises:
        ValueError: If the name is not that of a scene, or the box is too small.
    """
    found = re.fullmatch(r"scene-([0-9]{6})", name)
    if found is None:
        raise ValueError(f"name must be 'scene-' and six digits, got {name!r}")
    voxels = voxelize_solid(make_scene(int(found[1]), box.size).solid, box)
    reach = torch.tensor([edge / 2 - box.margin for edge in box.size], dtype=torch.float64)
    centers = voxels.grid.to_world(voxels.grid.ijk)
    return voxels.prune((centers.abs() < reach).all(1))


class _Plot:
    """Places objects on the ground so that they do not overlap."""

    def __init__(self, draw: Draw, ground: Ground, size: Triple) -> None:
        self.draw, self.ground, self.size = draw, ground, size
        self.objects: list[Solid] = []
        self.taken: list[Triple] = []  # x, y and radius

    def fill(self) -> None:
        """Place all objects, the largest kinds first."""
        self._vehicles()
        self._houses()
        for make, count, radius, nearest in (
            (street.tree, 14, 1.6, 1.0),
            (street.bush, 8, 1.0, 0.8),
        ):
            for _ in range(count):
                self._anywhere(make(self.draw), radius, self.ground.sidewalk + nearest)
        self._sidewalks()

    def _free(self, x: float, y: float, radius: float) -> bool:
        half = self.size[0] / 2 - 0.5, self.size[1] / 2 - 0.5
        inside = abs(x) < half[0] and abs(y) < half[1]
        return inside and all(math.hypot(x - a, y - b) > radius + r for a, b, r in self.taken)

    def _put(self, solid: Solid, x: float, y: float, radius: float, heading: float = 0.0) -> bool:
        """Place an object on the ground with a heading in degrees, if there is room; return whether there was."""
        if not self._free(x, y, radius):
            return False
        self._stand(solid, x, y, heading)
        self.taken.append((x, y, radius))
        return True

    def _stand(self, solid: Solid, x: float, y: float, heading: float) -> None:
        pose = Pose(translation=(x, y, self.ground.top(x, y))).after(rotation("z", heading))
        self.objects.append(solid.placed(pose))

    def _edge(self, x: float, y: float) -> float:
        at = torch.tensor([x, y], dtype=torch.float64)
        return float(self.ground.edge(at[0], at[1]))

    def _next_to_road(self, x: float, side: float, edge: float) -> tuple[float, float, float]:
        """A place at a distance from the edge of the main road, and the heading from it to the road."""
        y, heading = self.ground.along(x)
        off = side * (self.ground.half + edge)
        turn = math.radians(heading)
        return x - off * math.sin(turn), y + off * math.cos(turn), heading - 90 * side

    def _anywhere(self, solid: Solid, radius: float, edge: float) -> None:
        for _ in range(12):
            x, y = (self.draw.between(-0.5, 0.5) * extent for extent in self.size[:2])
            if self._edge(x, y) > edge and self._put(solid, x, y, radius, self.draw.between(0, 360)):
                return

    def _vehicles(self) -> None:
        """Cars in both lanes and in the parking bays. The road stays free around the sensor at x = 0."""
        draw, reach = self.draw, self.size[0] / 2
        lanes = [(-0.5 * LANE, 0.0, 0.3), (0.5 * LANE, 180.0, 0.3)]
        if self.ground.half > LANE:
            lanes += [(-LANE - BAY / 2, 0.0, 0.55), (LANE + BAY / 2, 180.0, 0.55)]
        for off, turn, often in lanes:
            x = -reach + draw.between(2, 6)
            while x < reach - 3:
                crossing = self.ground.crossing
                clear = crossing is None or abs(x - crossing) > LANE + 4
                if draw.chance(often) and (abs(x) > 6 or abs(off) > LANE) and (clear or abs(off) < LANE):
                    self._vehicle(x, off, turn, parked=abs(off) > LANE)
                x += draw.between(5.6, 7.5)
        if not any(isinstance(o, Labeled) for o in self.objects):
            self._vehicle(reach * 0.5, -0.5 * LANE, 0.0, parked=True)

    def _vehicle(self, x: float, off: float, turn: float, *, parked: bool) -> None:
        draw = self.draw
        big = not parked and draw.chance(0.25)
        kind = "truck" if big else draw.pick(tuple(METERS)[:6])
        solid = vehicle(draw, kind)
        (low, _, floor), (high, _, _) = solid.bounds
        factor = METERS[kind] / (high - low)
        solid = solid.placed(Pose(scale=factor).after(Pose(translation=(0.0, 0.0, -floor))))
        y, heading = self.ground.along(x)
        # Three discs along the vehicle cover its footprint.
        u, v = math.cos(math.radians(heading)), math.sin(math.radians(heading))
        steps = [t * METERS[kind] for t in (-0.36, 0.0, 0.36)]
        discs = [(x + u * t, y + off + v * t, 0.2 * METERS[kind]) for t in steps]
        if all(self._free(*disc) for disc in discs):
            self._stand(Labeled(solid, TRUCK if big else CAR), x, y + off, heading + turn)
            self.taken += discs

    def _houses(self) -> None:
        """Rows of houses on both sides of the road, some with a hedge or a fence in front."""
        draw, reach = self.draw, self.size[0] / 2
        for side in SIDES:
            x = -reach + draw.between(3, 7)
            while x < reach - 4:
                wide, deep = draw.between(7, 11), draw.between(6.5, 9)
                setback = self.ground.sidewalk + draw.between(2.5, 5) + deep / 2
                a, b, heading = self._next_to_road(x, side, setback)
                if self._edge(a, b) > self.ground.sidewalk + deep / 2 and draw.chance(0.85):
                    solid = street.house(draw, wide, deep, draw.pick((1, 2, 2)))
                    if self._put(solid, a, b, 0.62 * max(wide, deep), heading):
                        self._border(x, side, wide)
                x += wide + draw.between(2.5, 6)

    def _border(self, x: float, side: float, wide: float) -> None:
        draw = self.draw
        kind = draw.pick((street.hedge, street.fence, None))
        length = wide * draw.between(0.5, 0.9)
        a, b, heading = self._next_to_road(x, side, self.ground.sidewalk + 0.7)
        if kind is not None and self._edge(a, b) > self.ground.sidewalk:
            self._put(kind(draw, length), a, b, 0.5, heading)

    def _sidewalks(self) -> None:
        """Street lamps, signs and people along the road."""
        draw, reach, walk = self.draw, self.size[0] / 2, self.ground.sidewalk
        for side in SIDES:
            x = -reach + draw.between(2, 8)
            while x < reach - 1:
                a, b, heading = self._next_to_road(x, side, 0.35)
                if self._edge(a, b) > 0.2:
                    self._put(street.lamp_post(draw), a, b, 0.3, heading)
                x += draw.between(13, 18)
            for make, often, edge in ((street.sign, 3, 0.4), (street.person, 5, 0.6 * walk)):
                for _ in range(often):
                    a, b, heading = self._next_to_road(draw.between(-0.95, 0.95) * reach, side, edge)
                    if 0.2 < self._edge(a, b) < walk:
                        self._put(make(draw), a, b, 0.4, heading + draw.pick((90.0, -90.0)))
