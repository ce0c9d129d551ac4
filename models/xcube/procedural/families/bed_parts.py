"""Parts of beds: head and foot boards, mattresses, pillows and blankets."""

from typing import NamedTuple

from xcube.procedural.families.draw import GAP, SIDES, THIN, Draw, ellipse, evenly_spaced, mirrored, part_labels
from xcube.procedural.poses import Pose
from xcube.procedural.primitives import Ellipsoid, capsule, cuboid, prism, rod
from xcube.procedural.solids import Solid, union

FRAME, MATTRESS, BOARD, LEG, PILLOW, BLANKET = part_labels("bed")


class BedSizes(NamedTuple):
    """Sizes that the parts of a bed share. The head is at -x, the foot at +x."""

    length: float  # half length of the mattress
    width: float  # half width of the mattress
    low: float  # underside of the mattress
    high: float  # upper side of the mattress
    rim: float  # width of the frame around the mattress


# Boards


def upright_board(draw: Draw, kind: str, half: float, z: tuple[float, float, float], thick: float) -> Solid:
    """Make a head or foot board from x = 0 to `thick`, of half width `half`.

    Args:
        draw: Random choices.
        kind: "panel", "arched", "crown", "padded", "framed", "posts", "slats", "spindles" or "rails".
        half: Half width.
        z: Lower end, top of the mattress, and upper end. Slats and openings are above the mattress.
        thick: Thickness.
    """
    low, sill, high = z
    if kind in ("slats", "spindles", "rails", "framed") and high - sill < 2 * THIN + 0.03:
        kind = "panel"
    builders = {
        "arched": _arched,
        "crown": _crown,
        "padded": _padded,
        "framed": _framed,
        "posts": _posts,
        "slats": _slats,
        "spindles": _slats,
        "rails": _rails,
    }
    if kind in builders:
        return union(builders[kind](draw, half, (low, sill, high), thick, kind))
    return cuboid((0, -half, low), (thick, half, high), BOARD, radius=draw.pick((0.0, 0.012, 0.024)))


Heights = tuple[float, float, float]


def _arched(draw: Draw, half: float, z: Heights, thick: float, _kind: str) -> list[Solid]:
    low, sill, high = z
    rise = draw.between(0.35, 1.0) * (high - sill) if high - sill > 0.06 else 0.5 * (high - low)
    arch = [(y, v + high - rise) for y, v in ellipse(half, rise, draw.between(1.8, 3.5), 32) if v >= 0]
    return [prism([(-half, low), (half, low), *arch], "x", 0, thick, BOARD)]


def _crown(draw: Draw, half: float, z: Heights, thick: float, _kind: str) -> list[Solid]:
    """An outline of straight lines: a gable, a step, or cut corners."""
    low, sill, high = z
    drop = draw.between(0.3, 0.8) * max(high - sill, 0.08)
    foot, tip = half * draw.between(0.6, 0.97), half * draw.between(0.0, 0.55)
    kind = draw.pick(("gable", "step", "cut"))
    top = {
        "gable": [(max(tip, 0.03), high)],
        "step": [(max(tip, 0.4 * half), high - drop), (max(tip, 0.4 * half), high)],
        "cut": [(foot, high)],
    }
    side = [(half, low), (half, high - drop), *top[kind]]
    return [prism([*side, *((-y, v) for y, v in reversed(side))], "x", 0, thick, BOARD)]


def _padded(draw: Draw, half: float, z: Heights, thick: float, _kind: str) -> list[Solid]:
    """A panel with cushions in front, in columns and at times in two rows."""
    low, sill, high = z
    panel: list[Solid] = [cuboid((0, -half, low), (thick, half, high), BOARD, radius=0.012)]
    columns, rows = draw.count(1, max(int(half / 0.1), 1)), draw.count(1, 2) if high - sill > 0.2 else 1
    wide, tall, start = 2 * half / columns, (high - sill + 0.03) / rows, sill - 0.03
    if tall < 0.08:
        return panel
    inset = draw.between(0.012, 0.025)
    front = thick + draw.between(0.025, 0.04)
    for y in evenly_spaced(columns, -half + wide / 2, half - wide / 2):
        for i in range(rows):
            a, b = y - wide / 2 + inset, y + wide / 2 - inset
            c, d = start + i * tall + inset, start + (i + 1) * tall - inset
            panel.append(cuboid((0, a, c), (front, b, d), BOARD, radius=0.02))
    return panel


def _framed(draw: Draw, half: float, z: Heights, thick: float, _kind: str) -> list[Solid]:
    """A frame with one or more openings above the mattress."""
    low, sill, high = z
    rail = draw.between(THIN, 0.07)
    panel = cuboid((0, -half, low), (thick, half, high), BOARD)
    floor, top = sill + draw.between(0.0, 0.03), high - rail
    count = draw.count(1, max(int((2 * half - rail) / (0.16 + rail)), 1))
    wide = (2 * half - rail) / count - rail
    spots = evenly_spaced(count, -half + rail + wide / 2, half - rail - wide / 2)
    holes = [cuboid((-1, y - wide / 2, floor), (1, y + wide / 2, top), BOARD) for y in spots]
    return [panel - union(holes)]


def _corner_posts(draw: Draw, half: float, high: float, thick: float) -> list[Solid]:
    """Two posts from the floor, square or round, often with a knob on top."""
    r, tip = max(thick / 2, draw.between(THIN / 2, 0.04)), high + draw.between(0.0, 0.06)
    square, x, y = draw.chance(0.5), thick / 2, half - r
    knob = draw.chance(0.55)

    def post(s: float) -> Solid:
        if square:
            column: Solid = cuboid((x - r, s * y - r, 0), (x + r, s * y + r, tip), BOARD)
        else:
            column = rod((x, s * y, 0), (x, s * y, tip), r, None, BOARD)
        ball = Ellipsoid((r * 1.15, r * 1.15, r * 1.15), part=BOARD, pose=Pose(translation=(x, s * y, tip + 0.6 * r)))
        return column | ball if knob else column

    return mirrored(post)


def _posts(draw: Draw, half: float, z: Heights, thick: float, _kind: str) -> list[Solid]:
    """A panel between two posts, below them at the top, and often curved."""
    low, sill, high = z
    top = max(high - draw.between(0.0, 0.08), low + 2 * THIN)
    curve = draw.pick((0.0, draw.between(0.03, 0.1)))
    arch = [(y, v + top) for y, v in ellipse(half - 0.02, curve, 2, 24) if v >= 0] if curve else []
    outline = [(-half + 0.02, low), (half - 0.02, low), *(arch or [(half - 0.02, top), (-half + 0.02, top)])]
    start = (thick - THIN) / 2
    return [*_corner_posts(draw, half, max(high, sill + 0.05), thick), prism(outline, "x", start, start + THIN, BOARD)]


def _slats(draw: Draw, half: float, z: Heights, thick: float, kind: str) -> list[Solid]:
    """Upright slats or round spindles between two posts and a rail, with a board behind the mattress."""
    low, sill, high = z
    rail, room = draw.between(THIN, 0.075), 2 * (half - THIN)
    low = min(low, sill - THIN)
    parts = _corner_posts(draw, half, high, thick)
    parts += [
        cuboid((0, -half + 0.01, high - rail), (thick, half - 0.01, high), BOARD),
        cuboid((0, -half + 0.01, low), (thick, half - 0.01, sill), BOARD),
    ]
    most = max(int((room - GAP) / (THIN + GAP)), 1)
    count = draw.count(max(most // 2, 1), most)
    wide = min(draw.between(THIN, 0.13), (room - GAP) / count - GAP) if kind == "slats" else THIN
    reach = half - THIN - GAP - wide / 2
    for y in evenly_spaced(count, -reach, reach):
        if kind == "slats":
            start = (thick - THIN) / 2
            parts.append(cuboid((start, y - wide / 2, sill - 0.01), (start + THIN, y + wide / 2, high - 0.01), BOARD))
        else:
            parts.append(rod((thick / 2, y, sill - 0.01), (thick / 2, y, high - 0.01), THIN / 2, None, BOARD))
    return parts


def _rails(draw: Draw, half: float, z: Heights, thick: float, _kind: str) -> list[Solid]:
    """Horizontal bars between two posts."""
    low, sill, high = z
    start = sill + 0.02
    count = draw.count(1, max(int((high - start + GAP) / (THIN + GAP)), 1))
    tall = min(draw.between(THIN, 0.12), (high - start + GAP) / count - GAP)
    bars = evenly_spaced(count, start + tall / 2, high - tall / 2) if count > 1 else [high - tall / 2]
    parts = _corner_posts(draw, half, high, thick)
    parts += [cuboid((0, -half + 0.01, v - tall / 2), (thick, half - 0.01, v + tall / 2), BOARD) for v in bars]
    return [*parts, cuboid((0, -half + 0.01, min(low, sill - THIN)), (thick, half - 0.01, sill - 0.02), BOARD)]


# Bedding


def bedding(draw: Draw, p: BedSizes, *, lean: bool = True, drop: float | None = None) -> list[Solid]:
    """Make the mattress, the pillows and often a blanket.

    Args:
        draw: Random choices.
        p: Sizes of the bed.
        lean: Whether pillows may lean against a head board.
        drop: Lowest height of a blanket that hangs over the frame; None if it ends on the mattress.
    """
    soft = draw.between(0.008, 0.028)
    low = p.low - 0.01
    parts: list[Solid] = [
        cuboid((-p.length, -p.width, low), (p.length, p.width, p.high), MATTRESS, radius=min(soft, (p.high - low) / 3))
    ]
    pillows, front = _pillows(draw, p, lean)
    return [*parts, *pillows, *_blanket(draw, p, front, drop)]


def _pillows(draw: Draw, p: BedSizes, lean: bool) -> tuple[list[Solid], float]:
    """Pillows at the head, and the x where they end."""
    count = draw.pick((1, 2, 3), (0.15, 0.7, 0.15)) if p.width > 0.25 else 1
    deep, thick = draw.between(0.11, 0.18), draw.between(0.05, 0.085)
    margin, gap = draw.between(0.0, 0.06), draw.between(0.02, 0.06)
    wide = (2 * (p.width - margin) + gap) / count - gap
    upright = lean and draw.chance(0.3)
    kind = draw.pick(("cushion", "oval", "bolster"), (0.65, 0.25, 0.1))
    tilt, sunk, x = draw.between(15, 45), p.high - 0.018, -p.length + 0.012
    parts: list[Solid] = []
    for y in evenly_spaced(count, -p.width + margin + wide / 2, p.width - margin - wide / 2):
        a, b = y - wide / 2, y + wide / 2
        if kind == "bolster":
            r = max(thick / 2, 0.035)
            parts.append(capsule((x + r, a + r, sunk + r), (x + r, b - r, sunk + r), r, PILLOW))
        elif upright:
            made = cuboid((0, a, 0), (max(thick, 0.06), b, deep), PILLOW, radius=0.024)
            parts.append(made.turned("y", -tilt).moved(x + 0.75 * deep * (tilt / 45), 0, p.high - 0.03))
        elif kind == "oval":
            at = Pose(translation=(x + deep / 2, y, sunk + 0.02))
            parts.append(Ellipsoid((deep / 2, wide / 2, thick), part=PILLOW, pose=at))
        else:
            parts.append(cuboid((x, a, sunk), (x + deep, b, sunk + thick), PILLOW, radius=0.024))
    front = x + deep * (1.1 if upright else 1.0)
    if kind == "cushion" and draw.chance(0.3):  # a smaller one in front
        size, turn = draw.between(0.07, 0.1), draw.between(-25, 25)
        half = min(draw.between(0.08, 0.16), 0.7 * p.width)
        small = cuboid((-size / 2, -half, 0), (size / 2, half, 0.07), PILLOW, radius=0.024)
        parts.append(small.turned("z", turn / 2).moved(front + size / 2, draw.between(-0.3, 0.3) * p.width, sunk))
        front += size
    return parts, front


def _blanket(draw: Draw, p: BedSizes, pillows: float, drop: float | None) -> list[Solid]:
    """A blanket, from a line behind the pillows to the foot; or a throw across the bed, or a folded one at the foot."""
    kind = draw.pick(("spread", "turned", "throw", "folded", "none"), (0.34, 0.3, 0.14, 0.1, 0.12))
    thick, over = draw.between(0.022, 0.04), draw.between(0.014, 0.03)
    start = min(pillows + draw.between(0.03, 0.22), 0.1)
    if kind == "none":
        return []
    if kind == "folded":
        deep, half = draw.between(0.1, 0.16), p.width * draw.between(0.55, 0.95)
        high = draw.between(THIN, 0.08)
        middle = p.length - deep / 2 - draw.between(0.02, 0.12)
        lower, upper = (middle - deep / 2, -half, p.high - 0.02), (middle + deep / 2, half, p.high + high)
        return [cuboid(lower, upper, BLANKET, radius=0.02)]
    hangs = drop is not None and draw.chance(0.55)
    low = draw.between(drop, p.low) if hangs and drop is not None else p.low + 0.01
    half, end = p.width + (p.rim if hangs else 0.0) + over, p.length - 0.004
    if kind == "throw":
        at, deep = p.length - draw.between(0.12, 0.26), draw.between(0.1, 0.2)
        rear, front = at - deep / 2, min(at + deep / 2, end)
        return [cuboid((rear, -half, low), (front, half, p.high + 0.03), BLANKET, radius=0.012)]
    slab: Solid = cuboid((start, -half, low), (end, half, p.high + thick), BLANKET, radius=draw.between(0.008, 0.02))
    if draw.chance(0.25):  # a corner is turned down
        s, reach = draw.pick(SIDES), draw.between(0.12, 0.3)
        rear, far = start - 0.05, s * (half + 0.05)
        cut = [(rear, far), (start + reach, far), (rear, s * (half - reach))]
        slab = slab - prism(cut, "z", p.high + 0.001, p.high + 1, BLANKET)
    parts = [slab]
    if kind == "turned":  # the upper edge is folded back
        fold = start + draw.between(0.07, 0.15)
        parts.append(cuboid((start, -half, low), (fold, half, p.high + thick + 0.025), BLANKET, radius=0.012))
    for _ in range(draw.pick((0, draw.count(1, 4)))):  # creases
        a, b = (draw.between(-0.85, 0.85) * p.width for _ in range(2))
        c, d = (draw.between(start + 0.08, end - 0.06) for _ in range(2))
        r = draw.between(0.035, 0.055)
        if abs(a - b) + abs(c - d) > 0.1:
            parts.append(capsule((c, a, p.high + thick - 0.65 * r), (d, b, p.high + thick - 0.65 * r), r, BLANKET))
    return parts
