"""Airplanes: airliners, jets, propeller planes, gliders and biplanes, with the nose along x."""

from typing import NamedTuple

from xcube.procedural.families.draw import SIDES, THIN, Draw, arc, mirrored, part_labels
from xcube.procedural.poses import Pose
from xcube.procedural.primitives import Ellipsoid, Lathe, capsule, cuboid, prism, rod
from xcube.procedural.solids import Solid, union

FUSELAGE, WING, TAIL, ENGINE, CANOPY, GEAR = part_labels("airplane")


class AirplaneSizes(NamedTuple):
    """Sizes that the parts of an airplane share. The axis of the fuselage is at y = z = 0."""

    length: float  # half length of the fuselage
    radius: float  # radius of the fuselage
    span: float  # half span of the wings
    chord: float  # chord of the wings at the root
    tip: float  # chord at the tip
    sweep: float  # distance by which the leading edge recedes over the span
    root: float  # x of the leading edge at the root
    high: float  # z of the wings


def airplane(draw: Draw) -> Solid:
    """Make an airplane of a random kind."""
    kind = draw.pick(("airliner", "fighter", "propeller", "glider", "biplane"), (0.46, 0.2, 0.2, 0.07, 0.07))
    makers = {
        "airliner": _airliner,
        "fighter": _fighter,
        "propeller": _propeller,
        "glider": _glider,
        "biplane": _biplane,
    }
    draw.note(type=kind)
    return union(makers[kind](draw))


# Parts


def _fuselage(draw: Draw, p: AirplaneSizes, nose: float, tail: float) -> Solid:
    """A round body along x with a blunt nose and a narrowing tail, of the given lengths."""
    front = [(p.radius * r, p.length - nose + nose * x) for x, r in arc((0, 0), 1, 0, 90, 6)]
    rear = [(max(0.42 * p.radius, THIN / 2), -p.length), (0.8 * p.radius, -p.length + 0.55 * tail)]
    line = [*rear, (p.radius, -p.length + tail), *reversed(front)]
    return Lathe(tuple((max(r, 0.0), x) for r, x in line), part=FUSELAGE).turned("y", 90)


def _wing(p: AirplaneSizes, s: float, dihedral: float, label: int = WING, thick: float = THIN) -> Solid:
    """One wing, from the axis of the fuselage outwards, tilted up by the dihedral angle."""
    outline = [(p.root, 0.0), (p.root - p.sweep, p.span), (p.root - p.sweep - p.tip, p.span), (p.root - p.chord, 0.0)]
    flat = prism([(x, s * y) for x, y in outline], "z", -thick / 2, thick / 2, label)
    return flat.turned("x", s * dihedral).moved(z=p.high)


def _tail(draw: Draw, p: AirplaneSizes, kind: str) -> list[Solid]:
    """Fin and tailplane: low, on top of the fin ("t"), as a V, or with twin fins."""
    draw.note(tail=kind)
    high, span = draw.between(0.15, 0.23), draw.between(0.14, 0.22)
    chord, sweep = draw.between(0.1, 0.15), draw.between(0.03, 0.12)
    x = -p.length + chord * 0.95
    tip = draw.between(THIN, 0.8 * chord)
    fin = [(x, 0.0), (x - sweep, high), (x - sweep - tip, high), (x - chord, 0.0)]
    upright = prism(fin, "y", -THIN / 2, THIN / 2, TAIL)
    plane = AirplaneSizes(0, 0, span, chord, max(tip, THIN), sweep, x, 0.01)
    if kind == "v":
        return mirrored(lambda s: _wing(plane, s, 40, TAIL))
    if kind == "twin":
        fins = mirrored(lambda s: upright.turned("x", -s * 12).moved(y=s * 0.5 * p.radius))
        return [*fins, *mirrored(lambda s: _wing(plane, s, 0, TAIL))]
    if kind == "t":
        plane = plane._replace(root=x - sweep + 0.02, high=high - 0.02, sweep=0.6 * sweep)
    return [upright, *mirrored(lambda s: _wing(plane, s, 3, TAIL))]


def _nacelle(length: float, radius: float) -> Solid:
    """A jet engine along x with a hollow intake."""
    outer = ((0.75 * radius, -length / 2), (radius, 0.1 * length), (0.95 * radius, length / 2))
    body = Lathe(outer, part=ENGINE)
    mouth = Lathe(((0.0, 0.3 * length), (0.55 * radius, 0.35 * length), (0.65 * radius, length)), part=ENGINE)
    return (body - mouth).turned("y", 90)


def _spinner(x: float, radius: float, blades: int) -> list[Solid]:
    """A propeller that faces along x."""
    parts: list[Solid] = [Ellipsoid((0.05, 0.035, 0.035), part=ENGINE, pose=Pose(translation=(x, 0, 0)))]
    for i in range(blades):
        blade = cuboid((x - THIN / 2, -THIN / 2, 0), (x + THIN / 2, THIN / 2, radius), ENGINE, radius=0.01)
        parts.append(blade.turned("x", 360 * i / blades + 15))
    return parts


def _wheels(p: AirplaneSizes, at: float, spread: float, nose: float) -> list[Solid]:
    """Landing gear: a wheel under the nose and one on each side, on struts."""
    low = -p.radius - 0.075
    spots = [(nose, 0.0), (at, spread), (at, -spread)]
    parts: list[Solid] = []
    for x, y in spots:
        top = (x, y * 0.8, p.high) if y and p.high < 0 else (x, y * 0.2, 0.0)  # in the wing or in the fuselage
        parts.append(rod(top, (x, y, low), THIN / 2, None, GEAR))
        parts.append(rod((x, y - 0.03, low), (x, y + 0.03, low), 0.042, None, GEAR))
    return parts


# Kinds


def _airliner(draw: Draw) -> list[Solid]:
    length, radius = draw.between(0.38, 0.455), draw.between(0.048, 0.075)
    span, chord = draw.between(0.34, 0.455), draw.between(0.15, 0.22)
    high = draw.pick((-0.5, 0.8), (0.8, 0.2)) * radius
    sweep = draw.between(0.12, 0.28)
    p = AirplaneSizes(length, radius, span, chord, draw.between(THIN, 0.08), sweep, draw.between(0.06, 0.16), high)
    dihedral = draw.between(0, 6) if high < 0 else draw.between(-3, 1)
    parts = [_fuselage(draw, p, draw.between(0.07, 0.12), draw.between(0.2, 0.32))]
    parts += mirrored(lambda s: _wing(p, s, dihedral))
    rear = draw.chance(0.2)
    draw.note(engines="rear" if rear else "two")
    parts += _tail(draw, p, "t" if rear or (high > 0 and draw.chance(0.5)) else "low")
    size, long = draw.between(0.034, 0.046), draw.between(0.12, 0.18)
    if rear:
        x = -length + draw.between(0.2, 0.26)
        parts += mirrored(lambda s: _nacelle(long, size).moved(x, s * (radius + size * 0.9), 0.3 * radius))
        parts += mirrored(
            lambda s: cuboid(
                (x - 0.03, min(0, s * (radius + size)), -0.01), (x + 0.03, max(0, s * (radius + size)), 0.045), ENGINE
            )
        )
        return parts
    places = draw.pick(((0.36,), (0.3, 0.6)), (0.65, 0.35))
    draw.note(engines="two" if len(places) == 1 else "four")
    for fraction in places:
        parts += [_hung(p, s, fraction, long, size, dihedral) for s in SIDES]
    if draw.chance(0.25):
        parts += mirrored(lambda s: _winglet(p, s, dihedral))
    return parts


def _hung(p: AirplaneSizes, s: float, fraction: float, long: float, size: float, dihedral: float) -> Solid:
    """An engine on a pylon under the wing, at a fraction of the span, ahead of the leading edge."""
    x, y = p.root - p.sweep * fraction, s * p.span * fraction
    z = -size - 0.012
    pylon = cuboid((x - 0.07, y - THIN / 2, z), (x + 0.02, y + THIN / 2, 0.0), ENGINE)
    engine = _nacelle(long, size).moved(x + 0.02, y, z)
    return (engine | pylon).turned("x", s * dihedral).moved(z=p.high)


def _winglet(p: AirplaneSizes, s: float, dihedral: float) -> Solid:
    x, y = p.root - p.sweep, p.span - THIN
    fin = [(x - 0.005, 0.0), (x - 0.04, 0.085), (x - 0.04 - THIN, 0.085), (x - p.tip, 0.0)]
    low, high = sorted((s * y, s * p.span))
    return prism(fin, "y", low, high, WING).turned("x", s * dihedral).moved(z=p.high)


def _fighter(draw: Draw) -> list[Solid]:
    length, radius = draw.between(0.4, 0.455), draw.between(0.042, 0.06)
    delta = draw.chance(0.5)
    chord = draw.between(0.36, 0.5) if delta else draw.between(0.2, 0.28)
    span = draw.between(0.22, 0.34)
    draw.note(wings="delta" if delta else "swept")
    sweep = chord - draw.between(THIN, 0.1) if delta else draw.between(0.08, 0.2)
    root = draw.between(0.08, 0.14)
    p = AirplaneSizes(length, radius, span, chord, THIN + 0.01, sweep, root, 0.0)
    body = _fuselage(draw, p, draw.between(0.2, 0.32), draw.between(0.05, 0.15))
    at = draw.between(0.12, 0.22)
    canopy = Ellipsoid((0.1, 0.036, 0.04), part=CANOPY, pose=Pose(translation=(at, 0.0, radius * 0.8)))
    parts = [body, canopy, *mirrored(lambda s: _wing(p, s, 0))]
    parts += _tail(draw, p, draw.pick(("twin", "low", "v"), (0.45, 0.35, 0.2)))
    if draw.chance(0.6):
        intake = mirrored(
            lambda s: cuboid(
                (-length + 0.02, min(0, s * 1.75 * radius), -radius),
                (0.1, max(0, s * 1.75 * radius), radius * 0.5),
                ENGINE,
                radius=0.015,
            )
        )
        parts += intake
    if delta and draw.chance(0.5):
        canard = AirplaneSizes(0, 0, draw.between(0.12, 0.17), 0.1, THIN, 0.06, root + draw.between(0.14, 0.2), 0.01)
        parts += mirrored(lambda s: _wing(canard, s, 0))
    if draw.chance(0.3):
        parts += mirrored(
            lambda s: capsule(
                (p.root - sweep - 0.04, s * (span - 0.02), 0),
                (p.root - sweep + 0.12, s * (span - 0.02), 0),
                THIN / 2,
                ENGINE,
            )
        )
    return parts


def _propeller(draw: Draw) -> list[Solid]:
    length, radius = draw.between(0.3, 0.4), draw.between(0.045, 0.07)
    high = draw.pick((-0.7, 0.9)) * radius
    span, chord = draw.between(0.36, 0.455), draw.between(0.12, 0.17)
    p = AirplaneSizes(
        length, radius, span, chord, chord * draw.between(0.55, 1), draw.between(0, 0.04), draw.between(0.1, 0.16), high
    )
    parts = [_fuselage(draw, p, draw.between(0.05, 0.1), draw.between(0.25, 0.4))]
    dihedral = draw.between(0, 5) if high < 0 else 1.0
    parts += mirrored(lambda s: _wing(p, s, dihedral))
    parts += _tail(draw, p, draw.pick(("low", "t", "v"), (0.75, 0.15, 0.1)))
    at = draw.between(0.02, 0.08)
    parts.append(
        Ellipsoid((0.11, 0.75 * radius, 0.7 * radius), part=CANOPY, pose=Pose(translation=(at, 0, 0.85 * radius)))
    )
    blades, reach = draw.count(2, 4), draw.between(0.09, 0.13)
    double = draw.chance(0.35)
    draw.note(engines="wings" if double else "nose")
    if double:  # an engine on each wing
        y, x = span * draw.between(0.3, 0.4), p.root + 0.05
        engine = [capsule((x - 0.14, 0, 0), (x, 0, 0), 0.04, ENGINE), *_spinner(x + 0.045, reach, blades)]
        parts += mirrored(lambda s: union(engine).moved(0, s * y, high))
    else:
        parts += _spinner(length, reach, blades)
    wheels = draw.chance(0.6)
    draw.note(wheels=wheels)
    if wheels:
        parts += _wheels(p, p.root - 0.5 * chord, draw.between(0.09, 0.14), length * 0.6)
    return parts


def _glider(draw: Draw) -> list[Solid]:
    length = draw.between(0.26, 0.36)
    p = AirplaneSizes(
        length, 0.044, 0.455, draw.between(0.075, 0.1), THIN, draw.between(0, 0.03), draw.between(0.06, 0.12), 0.01
    )
    dihedral = draw.between(0, 5)
    body = _fuselage(draw, p, draw.between(0.1, 0.15), draw.between(0.3, 0.42))
    canopy = Ellipsoid((0.08, 0.035, 0.038), part=CANOPY, pose=Pose(translation=(length * 0.5, 0.0, 0.025)))
    return [body, canopy, *mirrored(lambda s: _wing(p, s, dihedral)), *_tail(draw, p, draw.pick(("t", "low", "v")))]


def _biplane(draw: Draw) -> list[Solid]:
    length, radius = draw.between(0.28, 0.36), draw.between(0.05, 0.065)
    gap = draw.between(0.16, 0.2)
    span, chord = draw.between(0.34, 0.45), draw.between(0.11, 0.15)
    low = AirplaneSizes(
        length, radius, span * draw.between(0.85, 1), chord, chord, draw.between(0, 0.03), 0.14, -0.6 * radius
    )
    top = low._replace(span=span, high=low.high + gap, root=0.14 + draw.between(0, 0.04))
    parts = [_fuselage(draw, low, draw.between(0.04, 0.07), draw.between(0.3, 0.4))]
    for p in (low, top):
        parts += [_wing(p, s, 0) for s in SIDES]
    x = low.root - 0.5 * chord
    struts = [0.07, low.span * draw.between(0.7, 0.9)]
    for y in struts:
        parts += [rod((x, s * y, low.high), (x + 0.02, s * y, top.high), THIN / 2, None, WING) for s in SIDES]
    parts += [*_tail(draw, low, "low"), *_spinner(length, draw.between(0.1, 0.13), draw.count(2, 3))]
    return [*parts, *_wheels(low, low.root - 0.04, 0.1, -length + 0.06)]
