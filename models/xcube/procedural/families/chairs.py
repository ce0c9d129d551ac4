"""Chairs on four legs, pedestals, swivel bases, sled bases and panels; `chair_parts.py` has the backs and arms."""

from xcube.procedural.families.chair_parts import ChairSizes, arms, back
from xcube.procedural.families.draw import THIN, Draw, ellipse, interpolate, mirrored, part_labels
from xcube.procedural.poses import Triple
from xcube.procedural.primitives import capsule, cuboid, prism, rod
from xcube.procedural.solids import Solid, union

SEAT, BACK, LEG, ARM, STRETCHER, BASE = part_labels("chair")


def chair(draw: Draw) -> Solid:
    """Make a chair that faces along x."""
    stool = draw.chance(0.07)
    tall = draw.chance(0.1)
    thick = draw.between(THIN, 0.1)
    high = draw.between(0.5, 0.62) if tall else draw.between(0.33, 0.46)
    top = min(high + draw.between(0.26, 0.52), 0.91)
    shrink = 0.75 if tall else 1.0
    frame = ChairSizes(shrink * draw.between(0.19, 0.28), shrink * draw.between(0.2, 0.31), high - thick, high, top)
    seat = draw.pick(("block", "rounded", "wedge"), (0.5, 0.25, 0.25))
    kind = draw.pick(("legs", "pedestal", "swivel", "sledge", "panels"), (0.58, 0.1, 0.14, 0.1, 0.08))
    draw.note(height="tall" if tall else "normal", base=kind)
    draw.note_size("width", frame.width / shrink, ("narrow", 0.235), ("wide", 0.275))
    parts = [_seat(draw, frame, seat), *_under(draw, frame, kind)]
    armed = False
    if not stool:
        parts += back(draw, frame)
        armed = seat != "rounded" and draw.chance(0.5)  # arms stand at its corners
    if armed:
        parts += arms(draw, frame)
    draw.note(arms=armed, **({"back": "none"} if stool else {}))
    return union(parts)


def _seat(draw: Draw, f: ChairSizes, shape: str) -> Solid:
    if shape == "block":
        soft = draw.pick((0.0, 0.012, 0.024))
        return cuboid((-f.depth, -f.width, f.low), (f.depth, f.width, f.high), SEAT, radius=soft)
    if shape == "rounded":
        outline = ellipse(f.depth, f.width, draw.between(3.0, 6.0))
    else:
        back = f.width * draw.between(0.8, 0.95)
        outline = [(-f.depth, -back), (f.depth, -f.width), (f.depth, f.width), (-f.depth, back)]
    return prism(outline, "z", f.low, f.high, SEAT)


# Legs and bases


def _under(draw: Draw, f: ChairSizes, kind: str) -> list[Solid]:
    if kind == "legs":
        return _legs(draw, f)
    if kind == "pedestal":
        return _pedestal(draw, f)
    if kind == "swivel":
        return _swivel(draw, f)
    return _sled(draw, f) if kind == "sledge" else _panels(draw, f)


def _legs(draw: Draw, f: ChairSizes) -> list[Solid]:
    square, splay = draw.chance(0.45), draw.pick((0.0, draw.between(0.02, 0.07)))
    r = draw.between(THIN / 2, 0.042)
    foot = draw.between(THIN / 2, r)
    draw.note_size("legs", r, ("thin", 0.031), ("thick", 0.037))
    feet: list[tuple[Triple, Triple]] = []
    for x in (-1, 1):
        for y in (-1, 1):
            hip = (x * (f.depth - r - 0.01), y * (f.width - r - 0.03), (f.low + f.high) / 2)
            feet.append(((hip[0] + x * splay * 0.6, hip[1] + y * splay * 0.6, 0.0), hip))
    if square:
        parts: list[Solid] = [_post(a, b, r, foot) for a, b in feet]
    else:
        parts = [rod(a, b, foot, r, LEG) for a, b in feet]
    return parts + _stretchers(draw, feet)


def _post(foot: Triple, hip: Triple, r: float, low: float) -> Solid:
    """A square leg: a cuboid, or the intersection of two prisms that lean along x and y and taper to the foot."""
    if foot[:2] == hip[:2]:
        return cuboid((hip[0] - r, hip[1] - r, 0.0), (hip[0] + r, hip[1] + r, hip[2]), LEG)
    outline = [[(foot[i] - low, 0.0), (foot[i] + low, 0.0), (hip[i] + r, hip[2]), (hip[i] - r, hip[2])] for i in (0, 1)]
    sides = [(min(foot[i] - low, hip[i] - r), max(foot[i] + low, hip[i] + r)) for i in (0, 1)]
    return prism(outline[0], "y", *sides[1], LEG) & prism(outline[1], "x", *sides[0], LEG)


def _stretchers(draw: Draw, feet: list[tuple[Triple, Triple]]) -> list[Solid]:
    kind = draw.pick(("none", "box", "h", "sides", "cross"), (0.45, 0.15, 0.2, 0.1, 0.1))
    if kind == "none":
        return []
    up = draw.between(0.2, 0.5)
    right_back, left_back, right_front, left_front = (interpolate(a, b, up) for a, b in feet)
    r = THIN / 2
    pairs = {
        "box": [(right_back, left_back), (right_front, left_front), (right_back, right_front), (left_back, left_front)],
        "h": [
            (right_back, right_front),
            (left_back, left_front),
            (interpolate(right_back, right_front, 0.5), interpolate(left_back, left_front, 0.5)),
        ],
        "sides": [(right_back, right_front), (left_back, left_front)],
        "cross": [(right_back, left_front), (left_back, right_front)],
    }[kind]
    return [rod(a, b, r, r, STRETCHER) for a, b in pairs]


def _pedestal(draw: Draw, f: ChairSizes) -> list[Solid]:
    r = draw.between(THIN / 2, 0.06)
    foot = draw.between(0.6, 0.95) * min(f.depth, f.width)
    column = rod((0, 0, 0.02), (0, 0, f.low + 0.02), r * draw.between(1, 1.5), r, BASE)
    if draw.chance(0.6):
        disc = rod((0, 0, 0), (0, 0, THIN), foot, foot * draw.between(0.7, 1), BASE)
        return [column, disc]
    bars = [
        cuboid((-foot, -0.035, 0), (foot, 0.035, THIN), BASE),
        cuboid((-0.035, -foot, 0), (0.035, foot, THIN), BASE),
    ]
    turn = draw.pick((0.0, 45.0))
    return [column, *(bar.turned("z", turn) for bar in bars)]


def _swivel(draw: Draw, f: ChairSizes) -> list[Solid]:
    r, spokes = draw.between(THIN / 2, 0.045), draw.pick((4, 5, 5, 6))
    reach = draw.between(0.75, 0.98) * min(f.depth, f.width)
    wheel = draw.between(0.03, 0.038)
    arch = draw.between(0.0, 0.04)
    parts: list[Solid] = [rod((0, 0, wheel), (0, 0, f.low + 0.02), r, r, BASE)]
    for i in range(spokes):
        start, end = (0.0, 0.0, 2 * wheel + arch), (reach, 0.0, 2 * wheel)
        spoke = union((capsule(start, end, THIN / 2, BASE), capsule((reach, 0, wheel), end, wheel, LEG)))
        parts.append(spoke.turned("z", i * 360 / spokes + 90 / spokes))
    return parts


def _sled(draw: Draw, f: ChairSizes) -> list[Solid]:
    """A sled base of bent tubes: runners that rise in front, and at the rear unless the chair is a cantilever."""
    r, swings = THIN / 2, draw.chance(0.5)
    back, front = -f.depth + r, f.depth - r
    middle = (f.low + f.high) / 2

    def side(s: float) -> Solid:
        y = s * (f.width - r)
        ends = [((back, y, r), (front, y, r)), ((front, y, r), (front, y, middle))]
        if not swings:
            ends.append(((back, y, r), (back, y, middle)))
        return union([capsule(a, b, r, LEG) for a, b in ends])

    bars = [capsule((x, -f.width + r, z), (x, f.width - r, z), r, STRETCHER) for x, z in ((back, r), (front, middle))]
    return [*mirrored(side), *bars]


def _panels(draw: Draw, f: ChairSizes) -> list[Solid]:
    thick, taper = draw.between(THIN, 0.08), draw.between(0.65, 1.0)
    outline = [(-f.depth, 0), (f.depth * taper, 0), (f.depth, f.high - 0.01), (-f.depth, f.high - 0.01)]

    def side(s: float) -> Solid:
        low, high = sorted((s * (f.width - thick), s * f.width))
        return prism(outline, "y", low, high, LEG)

    parts = mirrored(side)
    if draw.chance(0.4):
        parts.append(cuboid((-THIN / 2, -f.width + 0.01, 0.1), (THIN / 2, f.width - 0.01, 0.1 + 0.1), STRETCHER))
    return parts
