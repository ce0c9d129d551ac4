"""Lamps: table, floor, hanging, desk and arc lamps."""

from itertools import pairwise

from xcube.procedural.families.draw import THIN, Draw, arc, part_labels
from xcube.procedural.poses import Pose, Triple
from xcube.procedural.primitives import Ellipsoid, Lathe, capsule, cuboid, rod
from xcube.procedural.solids import Solid, union

SHADE, POLE, BASE, BULB = part_labels("lamp")
R = THIN / 2


def lamp(draw: Draw) -> Solid:
    """Make a lamp of a random kind. Desk and arc lamps lean along x."""
    makers = {"table": _table, "floor": _floor, "hanging": _hanging, "desk": _desk, "arc": _arched}
    kind = draw.pick(tuple(makers), (0.34, 0.26, 0.22, 0.1, 0.08))
    draw.note(type=kind)
    return union(makers[kind](draw))


# Shades, with their middle at the origin


def _shade(draw: Draw, radius: float, high: float) -> list[Solid]:
    """A shade that is open below, with a bulb; or a globe."""
    kind = draw.pick(
        ("cone", "drum", "bell", "dome", "globe", "box", "pagoda"), (0.28, 0.2, 0.14, 0.12, 0.12, 0.08, 0.06)
    )
    h = high / 2
    draw.note(shade=kind)
    if kind == "globe":
        return [Ellipsoid((radius * 0.8, radius * 0.8, h), part=SHADE)]
    if kind == "box":
        a = radius * 0.85
        outer = cuboid((-a, -a, -h), (a, a, h), SHADE)
        hollow = cuboid((-a + THIN, -a + THIN, -h - 1), (a - THIN, a - THIN, h - THIN), SHADE)
        return [outer - hollow if a > THIN + 0.03 else outer, _bulb(h)]
    waist = draw.between(0.45, 0.75) * radius
    lines = {
        "cone": ((radius, -h), (waist, h)),
        "drum": ((radius, -h), (radius * draw.between(0.88, 1.0), h)),
        "bell": ((radius, -h), (0.78 * radius, -0.4 * h), (0.6 * radius, 0.2 * h), (0.5 * radius, h)),
        "dome": tuple((radius * x, -h + high * z) for x, z in arc((0, 0), 1, 0, 75, 6)),
        "pagoda": ((radius, -h), (0.55 * radius, -0.2 * h), (0.4 * radius, h)),
    }
    line = lines[kind]
    return [_hollow(line), _bulb(h)]


def _hollow(line: tuple[tuple[float, float], ...]) -> Solid:
    """A solid of revolution, hollowed out to a wall of even thickness and open below."""
    outer = Lathe(line, part=SHADE)
    inner = [(r - 1.15 * THIN, z - THIN) for r, z in line if r > 1.15 * THIN + 0.02]
    if not inner:
        return outer
    inner = [(inner[0][0], line[0][1] - 1), *inner]
    return outer - Lathe(tuple(inner), part=SHADE)


def _bulb(h: float) -> Solid:
    """A bulb, which connects the top of a shade to a pole that ends inside of it."""
    return capsule((0, 0, -0.75 * h), (0, 0, h - 0.045), 0.03, BULB)


# Lamps


def _vase(draw: Draw, high: float, radius: float) -> list[Solid]:
    """The foot of a table lamp: a vase, a column, stacked balls, a pole on a plate, or a block."""
    kind = draw.pick(("vase", "column", "balls", "pole", "block"), (0.38, 0.16, 0.14, 0.2, 0.12))
    foot = draw.between(0.55, 0.95) * radius
    if kind == "vase":
        belly, at = draw.between(0.6, 1.15) * foot, draw.between(0.25, 0.7) * high
        neck, stand = max(R, 0.3 * belly), draw.between(0.5, 0.9) * foot
        line = [(stand, 0.0), (stand, 0.03), (0.75 * stand, 0.06)]
        line += [(max(0.85 * belly, R), 0.5 * (0.06 + at)), (belly, at), (0.85 * belly, 0.5 * (at + high) - 0.01)]
        return [Lathe((*line, (neck, high - 0.02), (neck, high)), part=BASE)]
    if kind == "column":
        return [Lathe(((foot, 0), (foot, THIN), (0.5 * foot, THIN + 0.02), (max(0.4 * foot, R), high)), part=BASE)]
    plate: Solid = rod((0, 0, 0), (0, 0, THIN), foot, foot * draw.between(0.7, 1), BASE)
    if kind == "block":
        a = 0.6 * foot
        return [
            cuboid((-a, -a, 0), (a, a, high * draw.between(0.6, 0.9)), BASE, radius=0.01),
            rod((0, 0, 0.1), (0, 0, high), R, None, POLE),
        ]
    pole = rod((0, 0, 0.02), (0, 0, high), R, None, POLE)
    if kind == "balls":
        count = draw.count(2, 3)
        r = (high - THIN) / count / 2
        wide = min(r * draw.between(0.9, 1.1), 0.13)
        return [
            plate,
            pole,
            *(Ellipsoid((wide, wide, r), part=BASE, pose=_up(THIN + (2 * i + 1) * r)) for i in range(count)),
        ]
    return [plate, pole]


def _up(z: float) -> Pose:
    return Pose(translation=(0.0, 0.0, z))


def _table(draw: Draw) -> list[Solid]:
    radius, tall = draw.between(0.17, 0.3), draw.between(0.2, 0.36)
    stem = draw.between(0.26, 0.5)
    shade = [part.moved(z=stem + tall / 2 - 0.03) for part in _shade(draw, radius, tall)]
    return [*_vase(draw, stem, radius), rod((0, 0, 0.1), (0, 0, stem + 0.03), R, None, POLE), *shade]


def _floor(draw: Draw) -> list[Solid]:
    radius, tall = draw.between(0.13, 0.24), draw.between(0.14, 0.26)
    high = draw.between(0.8, 0.9)
    joint = high - tall + 0.03
    shade = [part.moved(z=high - tall / 2) for part in _shade(draw, radius, tall)]
    stand = draw.pick(("disc", "tripod", "cross", "square", "spread"), (0.35, 0.25, 0.12, 0.14, 0.14))
    foot = draw.between(0.12, 0.2)
    draw.note(stand={"tripod": "legs", "spread": "legs", "cross": "cross"}.get(stand, "plate"))
    pole: list[Solid] = [rod((0, 0, 0.02), (0, 0, joint + 0.02), R, None, POLE)]
    if stand == "disc":
        return [*pole, *shade, rod((0, 0, 0), (0, 0, THIN), foot, foot * draw.between(0.6, 1), BASE)]
    if stand == "square":
        return [*pole, *shade, cuboid((-foot, -foot, 0), (foot, foot, THIN), BASE)]
    if stand == "cross":
        bars = [cuboid((-foot, -R, 0), (foot, R, THIN), BASE).turned("z", 45 + t) for t in (0, 90)]
        return [*pole, *shade, *bars]
    count = draw.pick((3, 3, 4))
    apex = draw.between(0.55, 0.85) * joint if stand == "tripod" else draw.between(0.12, 0.25)
    reach = draw.between(0.16, 0.26)
    legs = [rod((reach, 0, 0), (0, 0, apex), R, None, BASE).turned("z", i * 360 / count) for i in range(count)]
    column = rod((0, 0, apex - 0.06), (0, 0, joint + 0.02), R, None, POLE)
    return [*legs, column, *shade]


def _hanging(draw: Draw) -> list[Solid]:
    cord = draw.between(0.25, 0.55)
    plate = rod((0, 0, 0.86), (0, 0, 0.86 + THIN), draw.between(0.07, 0.14), draw.between(0.07, 0.14), BASE)
    if draw.chance(0.3):
        draw.note(type="chandelier")
        return [plate, *_chandelier(draw, 0.86 - cord)]
    radius, tall = draw.between(0.16, 0.36), draw.between(0.16, 0.3)
    low = 0.86 - cord
    shade = [part.moved(z=low - tall / 2 + 0.02) for part in _shade(draw, radius, tall)]
    return [plate, rod((0, 0, low), (0, 0, 0.87), R, None, POLE), *shade]


def _chandelier(draw: Draw, hub: float) -> list[Solid]:
    """Arms around a hub, with a small shade or a globe at the end of each."""
    arms, reach, rise = draw.pick((3, 4, 5, 6)), draw.between(0.22, 0.34), draw.pick((0.09, -0.07))
    size = draw.between(0.06, 0.1 if arms < 6 else 0.085)
    kind = draw.pick(("globe", "cone"))
    parts: list[Solid] = [rod((0, 0, hub), (0, 0, 0.87), R, None, POLE)]
    parts.append(Ellipsoid((0.06, 0.06, draw.between(0.05, 0.09)), part=BASE, pose=_up(hub)))
    for i in range(arms):
        end: Triple = (reach, 0.0, hub + rise)
        arm: list[Solid] = [capsule((0, 0, hub), (reach, 0, hub), R, POLE), capsule((reach, 0, hub), end, R, POLE)]
        if kind == "globe":
            arm.append(Ellipsoid((size, size, size), part=SHADE, pose=Pose(translation=end)))
        else:
            arm.append(rod((reach, 0, end[2] - 0.02), (reach, 0, end[2] + 1.6 * size), size, 0.6 * size, SHADE))
        parts.append(union(arm).turned("z", i * 360 / arms))
    return parts


def _desk(draw: Draw) -> list[Solid]:
    """A desk lamp with a jointed arm and a conical head that points down."""
    foot, lean = draw.between(0.13, 0.2), draw.between(0.12, 0.24)
    elbow: Triple = (-lean, 0.0, draw.between(0.4, 0.52))
    wrist: Triple = (elbow[0] + draw.between(0.25, 0.38), 0.0, draw.between(0.6, 0.8))
    r, tall = draw.between(0.1, 0.16), draw.between(0.14, 0.22)
    head = Lathe(((r, -tall), (r, 0.035 - tall), (0.45 * r, -0.2 * tall), (0.35 * r, 0.04)), part=SHADE)
    base = rod((0, 0, 0), (0, 0, THIN), foot, foot * 0.85, BASE)
    arms = [capsule((0, 0, 0.04), elbow, R, POLE), capsule(elbow, wrist, R, POLE)]
    return [base, *arms, head.turned("y", -draw.between(10, 50)).moved(*wrist)]


def _arched(draw: Draw) -> list[Solid]:
    """An arc lamp: a floor lamp whose pole bends over."""
    reach, high = draw.between(0.24, 0.33), draw.between(0.84, 0.9)
    rise = high - draw.between(0.25, 0.4)
    bend = [(x, z * (high - R - rise) + rise) for x, z in arc((0.0, 0.0), 1.0, 180, 0, 10)]
    points: list[Triple] = [(-reach, 0.0, 0.04)] + [(x * reach, 0.0, z) for x, z in bend]
    drop = draw.between(0.0, 0.12)
    points.append((reach, 0.0, rise - drop - 0.02))
    radius, tall = draw.between(0.1, 0.13), draw.between(0.12, 0.2)
    shade = [part.moved(reach, 0, rise - drop - tall / 2) for part in _shade(draw, radius, tall)]
    foot = draw.between(0.09, 0.13)
    base = rod((-reach, 0, 0), (-reach, 0, draw.between(THIN, 0.08)), foot, foot, BASE)
    return [base, *(capsule(a, b, R, POLE) for a, b in pairwise(points)), *shade]
