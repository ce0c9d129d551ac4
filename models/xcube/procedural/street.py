"""Objects of a street: houses, trees, hedges, fences, street lamps, signs and people.

Objects are made around the origin, in meters, with x to the front. They reach a little below zero, so that they stand
firmly on uneven ground. No part is thinner than 0.18 m, so that voxels of 0.1 m do not miss it.
"""

from xcube.procedural.families.draw import SIDES, Draw, evenly_spaced
from xcube.procedural.poses import Pose
from xcube.procedural.primitives import Ellipsoid, capsule, cuboid, prism, rod
from xcube.procedural.solids import Solid, union

BUILDING, ROOF, FENCE, VEGETATION, TRUNK, POLE, SIGN = range(6, 13)
PERSON = 15

DEEP = 1.2  # depth in meters that objects reach below the ground


def house(draw: Draw, wide: float, deep: float, stories: int) -> Solid:
    """Make a house, `wide` along y and `deep` along x, with windows, a door, a roof and often a chimney."""
    high = stories * 2.7 + draw.between(0.2, 0.6)
    a, b = deep / 2, wide / 2
    walls = cuboid((-a, -b, -DEEP), (a, b, high), BUILDING) - union(_openings(draw, a, b, stories))
    parts = [walls, *_roof(draw, a, b, high)]
    if draw.chance(0.5):
        y, z = draw.between(-0.6, 0.6) * b, high + draw.between(1.6, 2.6)
        parts.append(cuboid((-0.35, y - 0.35, high - 0.5), (0.35, y + 0.35, z), BUILDING))
    return union(parts)


def _openings(draw: Draw, a: float, b: float, stories: int) -> list[Solid]:
    """Cutters for windows on all sides and a door in front."""
    cutters: list[Solid] = []
    inset = 0.2
    across, along = max(int(2 * b / 2.6), 1), max(int(2 * a / 3.0), 1)
    door = draw.count(0, across - 1)
    for story in range(stories):
        low = story * 2.7 + 0.95
        for i, y in enumerate(evenly_spaced(across, -b + 1.4, b - 1.4)):
            for s in SIDES:
                x0, x1 = sorted((s * (a - inset), s * (a + 1)))
                floor = 0.1 if story == 0 and s > 0 and i == door else low
                cutters.append(cuboid((x0, y - 0.5, floor), (x1, y + 0.5, low + 1.25), BUILDING))
        for x in evenly_spaced(along, -a + 1.6, a - 1.6):
            for s in SIDES:
                y0, y1 = sorted((s * (b - inset), s * (b + 1)))
                cutters.append(cuboid((x - 0.45, y0, low), (x + 0.45, y1, low + 1.25), BUILDING))
    return cutters


def _roof(draw: Draw, a: float, b: float, high: float) -> list[Solid]:
    kind, rise, eave = draw.pick(("gable", "hip", "flat"), (0.55, 0.3, 0.15)), draw.between(1.3, 2.8), 0.45
    if kind == "flat":
        slab = cuboid((-a - 0.2, -b - 0.2, high - 0.05), (a + 0.2, b + 0.2, high + 0.3), ROOF)
        return [slab - cuboid((-a + 0.2, -b + 0.2, high + 0.08), (a - 0.2, b - 0.2, high + 1), ROOF)]
    lip = high - rise * eave / a
    across = prism([(-a - eave, lip), (a + eave, lip), (0.0, high + rise)], "y", -b - eave, b + eave, ROOF)
    if kind == "gable":
        return [across]
    ends = [(-b - eave, lip), (b + eave, lip), (b - a, high + rise), (a - b, high + rise)]
    if b - a < 0.3:
        ends = [(-b - eave, lip), (b + eave, lip), (0.0, high + rise * b / a)]
    return [across & prism(ends, "x", -a - eave, a + eave, ROOF)]


def tree(draw: Draw) -> Solid:
    """Make a broad-leaved tree, a conifer or a slender poplar."""
    kind, high = draw.pick(("broad", "conifer", "poplar"), (0.6, 0.28, 0.12)), draw.between(4.5, 9.0)
    trunk = rod((0, 0, -DEEP), (0, 0, high * 0.6), draw.between(0.18, 0.3), 0.14, TRUNK)
    if kind == "conifer":
        base, wide = draw.between(0.8, 1.6), draw.between(0.2, 0.28) * high
        tiers = draw.count(2, 4)
        step = (high - base) / tiers
        cones: list[Solid] = []
        for i in range(tiers):
            low = base + i * step
            cones.append(rod((0, 0, low), (0, 0, low + 1.35 * step), wide * (1 - 0.7 * i / tiers), 0.1, VEGETATION))
        return union([trunk, *cones])
    if kind == "poplar":
        return trunk | Ellipsoid((0.9, 0.9, 0.42 * high), part=VEGETATION, pose=_at(0, 0, 0.58 * high))
    wide = draw.between(0.2, 0.3) * high
    crown: list[Solid] = [Ellipsoid((wide, wide, 0.8 * wide), part=VEGETATION, pose=_at(0, 0, 0.68 * high))]
    for _ in range(draw.count(4, 7)):
        r = wide * draw.between(0.45, 0.7)
        x, y = (draw.between(-0.75, 0.75) * wide for _ in range(2))
        crown.append(Ellipsoid((r, r, 0.85 * r), part=VEGETATION, pose=_at(x, y, high * draw.between(0.55, 0.85))))
    return union([trunk, *crown])


def bush(draw: Draw) -> Solid:
    """Make two or three round bushes."""
    balls: list[Solid] = []
    for _ in range(draw.count(2, 3)):
        r = draw.between(0.4, 0.9)
        x, y = (draw.between(-0.5, 0.5) for _ in range(2))
        balls.append(Ellipsoid((r, r, 0.9 * r), part=VEGETATION, pose=_at(x, y, 0.5 * r)))
    return union(balls)


def hedge(draw: Draw, length: float) -> Solid:
    """Make a hedge along y."""
    high, wide = draw.between(0.9, 1.8), draw.between(0.35, 0.55)
    return cuboid((-wide, -length / 2, -DEEP), (wide, length / 2, high), VEGETATION, radius=0.2)


def fence(draw: Draw, length: float) -> Solid:
    """Make a fence along y: rails on posts, or boards."""
    high, half = draw.between(0.9, 1.3), length / 2
    if draw.chance(0.4):
        return cuboid((-0.1, -half, -DEEP), (0.1, half, high), FENCE)
    posts = evenly_spaced(max(int(length / 1.8) + 1, 2), -half + 0.1, half - 0.1)
    parts: list[Solid] = [cuboid((-0.1, y - 0.1, -DEEP), (0.1, y + 0.1, high + 0.1), FENCE) for y in posts]
    parts += [cuboid((-0.1, -half, z - 0.1), (0.1, half, z + 0.1), FENCE) for z in (0.4, high - 0.15)]
    return union(parts)


def lamp_post(draw: Draw) -> Solid:
    """Make a street lamp whose arm reaches along x."""
    high, reach = draw.between(5.0, 7.5), draw.between(0.9, 1.8)
    pole = rod((0, 0, -DEEP), (0, 0, high), 0.13, 0.1, POLE)
    arm = capsule((0, 0, high), (reach, 0, high + 0.15), 0.1, POLE)
    return union([pole, arm, cuboid((reach - 0.4, -0.16, high + 0.02), (reach + 0.4, 0.16, high + 0.24), POLE)])


def sign(draw: Draw) -> Solid:
    """Make a traffic sign that faces along x: round, triangular or square."""
    high, r = draw.between(2.1, 2.6), draw.between(0.35, 0.45)
    pole = rod((0, 0, -DEEP), (0, 0, high + 0.1), 0.1, None, POLE)
    kind = draw.pick(("round", "triangle", "square"))
    if kind == "round":
        return pole | rod((0.05, 0, high), (0.25, 0, high), r, None, SIGN)
    if kind == "square":
        return pole | cuboid((0.05, -r, high - r), (0.25, r, high + r), SIGN)
    return pole | prism([(-r, high - 0.6 * r), (r, high - 0.6 * r), (0.0, high + r)], "x", 0.05, 0.25, SIGN)


def person(draw: Draw) -> Solid:
    """Make a person who walks along x."""
    high, step = draw.between(1.55, 1.9), draw.between(0.05, 0.28)
    hip, neck = 0.5 * high, 0.84 * high
    parts: list[Solid] = []
    for s in SIDES:
        parts.append(capsule((s * step, s * 0.11, 0.1), (0, s * 0.1, hip), 0.1, PERSON))
        parts.append(capsule((-s * step, s * 0.28, 0.55 * high), (0, s * 0.22, neck - 0.08), 0.09, PERSON))
    parts.append(capsule((0, 0, hip), (0, 0, neck - 0.12), 0.19, PERSON))
    parts.append(Ellipsoid((0.13, 0.13, 0.15), part=PERSON, pose=_at(0, 0, high - 0.13)))
    return union([*parts, rod((0, 0, neck - 0.15), (0, 0, high - 0.15), 0.09, None, PERSON)])


def _at(x: float, y: float, z: float) -> Pose:
    return Pose(translation=(x, y, z))
