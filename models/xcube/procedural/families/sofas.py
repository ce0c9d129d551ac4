"""Sofas and benches: one to four seats, corners, daybeds, with cushions, arms of many kinds and short legs."""

from typing import NamedTuple

from xcube.procedural.families.draw import THIN, Draw, arc, ellipse, evenly_spaced, mirrored, part_labels
from xcube.procedural.primitives import capsule, cuboid, prism, rod
from xcube.procedural.solids import Solid, union

FRAME, BACK, ARM, LEG, CUSHION = part_labels("sofa")


class SofaSizes(NamedTuple):
    """Sizes that the parts of a sofa share."""

    length: float  # half length along y, between the arms
    depth: float  # half depth along x
    foot: float  # height of the legs
    seat: float  # upper side of the frame
    top: float  # top of the back
    arm: float  # thickness of an arm; 0 without arms
    rear: float  # thickness of the back


def sofa(draw: Draw) -> Solid:
    """Make a sofa or a bench that faces along x."""
    if draw.chance(0.2):
        draw.note(type="bench")
        return union(_bench(draw))
    arm = draw.between(THIN, 0.13) if draw.chance(0.85) else 0.0
    whole = draw.between(0.3, 0.455)
    foot = draw.pick((0.0, draw.between(0.04, 0.11)))
    seat = foot + draw.between(0.1, 0.17)
    depth = draw.between(0.17, 0.25)
    p = SofaSizes(whole - arm, depth, foot, seat, seat + draw.between(0.17, 0.34), arm, draw.between(0.065, 0.12))
    parts = [_frame(draw, p), *_back(draw, p), *_cushions(draw, p), *_legs(draw, p)]
    if arm:
        parts += _arms(draw, p)
    corner = draw.chance(0.22)
    if corner:
        parts += _corner(draw, p)
    draw.note(type="corner" if corner else "sofa", arms=bool(arm), feet=bool(foot))
    draw.note_size("width", whole, ("small", 0.345), ("wide", 0.41))
    return union(parts)


def _frame(draw: Draw, p: SofaSizes) -> Solid:
    return cuboid((-p.depth, -p.length - 0.01, p.foot), (p.depth, p.length + 0.01, p.seat), FRAME, radius=0.012)


def _back(draw: Draw, p: SofaSizes) -> list[Solid]:
    kind = draw.pick(("block", "leaning", "hump", "rolled"), (0.35, 0.3, 0.2, 0.15))
    rear, front = -p.depth, -p.depth + p.rear
    wide = p.length + 0.01
    if kind == "leaning":
        lean = draw.between(0.02, 0.07)
        outline = [(rear, p.foot), (front, p.foot), (front, p.seat), (front - lean, p.top), (rear - lean, p.top)]
        return [prism(outline, "y", -wide, wide, BACK, radius=0.0)]
    if kind == "hump":
        arch = [(y, z) for y, z in ellipse(wide, p.top - p.seat - 0.08, draw.between(2, 3.5), 36) if z >= 0]
        outline = [(-wide, p.foot), (wide, p.foot)] + [(y, z + p.seat + 0.08) for y, z in arch]
        return [prism(outline, "x", rear, front, BACK)]
    body: list[Solid] = [cuboid((rear, -wide, p.foot), (front, wide, p.top), BACK, radius=draw.between(0.005, 0.03))]
    if kind == "rolled":
        r = draw.between(0.04, 0.055)
        body.append(capsule((rear + 0.02, -wide + r, p.top), (rear + 0.02, wide - r, p.top), r, BACK))
    return body


def _arms(draw: Draw, p: SofaSizes) -> list[Solid]:
    kind = draw.pick(("block", "rolled", "sloped", "open"), (0.4, 0.25, 0.2, 0.15))
    high = min(p.seat + draw.between(0.06, 0.16), p.top)
    front, soft = p.depth + draw.between(-0.04, 0.01), draw.between(0.005, 0.025)

    def side(s: float) -> Solid:
        low, far = sorted((s * p.length, s * (p.length + p.arm)))
        if kind == "sloped":
            outline = [(-p.depth, p.foot), (front, p.foot), (front, high - 0.04), (-p.depth, p.top - 0.01)]
            return prism(outline, "y", low, far, ARM)
        if kind == "open":
            rest = cuboid((-p.depth, low, high - THIN), (front, far, high), ARM)
            posts = [cuboid((x, low, 0), (x + THIN, far, high - 0.01), ARM) for x in (-p.depth, front - THIN)]
            return union([rest, *posts, cuboid((-p.depth, low, p.seat - 0.06), (front, far, p.seat), ARM)])
        panel = cuboid((-p.depth, low, p.foot), (front, far, high), ARM, radius=soft)
        if kind == "block":
            return panel
        y, r = (low + far) / 2, max(p.arm * 0.5, 0.042)
        return panel | rod((-p.depth, y, high), (front + 0.012, y, high), r, None, ARM)

    return mirrored(side)


def _cushions(draw: Draw, p: SofaSizes) -> list[Solid]:
    if draw.chance(0.2):
        return []
    seats, thick = draw.count(1, 3) if p.length < 0.34 else draw.count(2, 4), draw.between(THIN + 0.02, 0.1)
    gap, soft = draw.between(0.004, 0.02), draw.between(0.012, 0.03)
    step = 2 * p.length / seats
    rear, front = -p.depth + p.rear - 0.01, p.depth + draw.between(-0.015, 0.02)
    backs, lean = draw.chance(0.5), draw.between(0.0, 10.0)
    tall = (p.top - p.seat - thick * 0.5) * draw.between(0.85, 1.15)
    parts: list[Solid] = []
    for y in evenly_spaced(seats, -p.length + step / 2, p.length - step / 2):
        low, high = y - step / 2 + gap / 2, y + step / 2 - gap / 2
        parts.append(cuboid((rear, low, p.seat - 0.02), (front, high, p.seat - 0.02 + thick), CUSHION, radius=soft))
        if backs and tall > 0.1:
            pillow = cuboid((-0.03, low, 0), (0.045, high, tall), CUSHION, radius=0.03)
            parts.append(pillow.turned("y", -lean).moved(rear + 0.03, 0, p.seat + thick - 0.045))
    return parts


def _legs(draw: Draw, p: SofaSizes) -> list[Solid]:
    if not p.foot:
        return []
    r, kind = draw.between(THIN / 2, 0.038), draw.pick(("block", "round", "runner"), (0.4, 0.4, 0.2))
    a, b = p.depth - r - 0.015, p.length + p.arm / 2 - r - 0.02
    if kind == "runner":
        return mirrored(lambda s: cuboid((-a, s * b - r, 0), (a, s * b + r, p.foot + 0.02), LEG))
    parts: list[Solid] = []
    ys = (-b, 0.0, b) if b > 0.33 and draw.chance(0.4) else (-b, b)
    for x in (-a, a):
        for y in ys:
            if kind == "block":
                parts.append(cuboid((x - r, y - r, 0), (x + r, y + r, p.foot + 0.02), LEG))
            else:
                parts.append(rod((x * 1.03, y * 1.02, 0), (x, y, p.foot + 0.02), THIN / 2, r, LEG))
    return parts


def _corner(draw: Draw, p: SofaSizes) -> list[Solid]:
    """A second wing toward the front on one side, which makes an L-shaped sofa."""
    s, reach = draw.pick((1.0, -1.0)), p.depth + draw.between(0.12, 0.22)
    wide = min(draw.between(0.22, 0.34), p.length)
    low, high = sorted((s * (p.length + p.arm), s * (p.length + p.arm - wide)))
    thick = draw.between(THIN + 0.02, 0.09)
    parts: list[Solid] = [cuboid((-p.depth + 0.02, low, 0), (reach, high, p.seat), FRAME, radius=0.012)]
    inside = (p.depth - 0.05, low + 0.005, p.seat - 0.02), (reach - 0.005, high - 0.005, p.seat - 0.02 + thick)
    return [*parts, cuboid(*inside, CUSHION, radius=0.02)]


def _bench(draw: Draw) -> list[Solid]:
    """A bench of slats or of one board, with a back or without, on legs or panels."""
    b, a, z = draw.between(0.32, 0.455), draw.between(0.1, 0.18), draw.between(0.2, 0.3)
    slats = draw.pick((1, 1, 2, 3))
    wide = (2 * a - 0.04 * (slats - 1)) / slats
    rows = evenly_spaced(slats, -a + wide / 2, a - wide / 2)
    parts: list[Solid] = [cuboid((x - wide / 2, -b, z), (x + wide / 2, b, z + THIN), FRAME) for x in rows]
    inset = draw.between(0.03, 0.1)
    outline = [(-a, 0.0), (-a, z + 0.01), (a, z + 0.01), (a, 0.0)]
    open_ = draw.pick(("solid", "arch", "legs"))
    if open_ == "arch":
        outline += [(x, y) for x, y in arc((0, 0), min(a - THIN, z - THIN), 0, 180, 10)]
    elif open_ == "legs":
        outline += [(a - 0.06, 0.0), (a - 0.06, z - THIN), (-a + 0.06, z - THIN), (-a + 0.06, 0.0)]

    def side(s: float) -> Solid:
        low, high = sorted((s * (b - inset), s * (b - inset - 0.06)))
        return prism(outline, "y", low, high, LEG)

    parts += mirrored(side)
    backed = draw.chance(0.6)
    draw.note(back=backed)
    if backed:
        parts += _bench_back(draw, a, b, z, inset)
    elif draw.chance(0.5):
        thick = draw.between(0.06, 0.09)
        parts.append(cuboid((-a, -b + 0.01, z + 0.03), (a, b - 0.01, z + 0.03 + thick), CUSHION, radius=0.02))
    return parts


def _bench_back(draw: Draw, a: float, b: float, z: float, inset: float) -> list[Solid]:
    high, rows, lean = draw.between(0.2, 0.34), draw.count(1, 3), draw.between(0.0, 12.0)
    tall = min(draw.between(THIN, 0.1), high / rows - 0.04)
    boards = [
        cuboid((0, -b, h - tall / 2), (THIN, b, h + tall / 2), BACK)
        for h in evenly_spaced(rows, 0.09 + tall / 2 if rows > 1 else high - tall / 2, high - tall / 2)
    ]
    ends = b - inset
    posts = [cuboid((0.0, y, 0), (THIN, y + 0.06, high - 0.01), BACK) for y in (-ends, -0.03, ends - 0.06)]
    upright = union([*boards, *posts])
    parts: list[Solid] = [upright.turned("y", -lean).moved(-a, 0, z + 0.005)]
    if draw.chance(0.5):
        parts += mirrored(lambda s: _bench_arm(a, s * (ends - 0.03), z))
    return parts


def _bench_arm(a: float, y: float, z: float) -> Solid:
    rest = cuboid((-a, y - 0.03, z + 0.15), (a, y + 0.03, z + 0.15 + THIN), ARM)
    return rest | cuboid((a - 0.06, y - 0.03, z + 0.01), (a, y + 0.03, z + 0.16), ARM)
