"""Beds: with frames, boxes, platforms, curved boards or a canopy, bunk beds and cribs; `bed_parts.py` has the parts."""

from xcube.procedural.families.bed_parts import BedSizes, bedding, upright_board
from xcube.procedural.families.draw import GAP, SIDES, THIN, Draw, evenly_spaced, mirrored, part_labels, ring_sector
from xcube.procedural.families.legs import short_legs
from xcube.procedural.primitives import cuboid, prism, rod
from xcube.procedural.solids import Solid, union

FRAME, MATTRESS, BOARD, LEG, PILLOW, BLANKET = part_labels("bed")

HEADS = ("panel", "arched", "crown", "padded", "framed", "posts", "slats", "spindles", "rails")
FEET = ("panel", "arched", "crown", "posts", "slats", "rails")  # foot boards, where they differ from the head


def bed(draw: Draw) -> Solid:
    """Make a bed with its head at -x."""
    makers = {
        "framed": _framed,
        "box": _box,
        "platform": _platform,
        "sleigh": _sleigh,
        "canopy": _canopy,
        "bunk": _bunk,
        "crib": _crib,
    }
    kind = draw.pick(tuple(makers), (0.4, 0.17, 0.11, 0.1, 0.1, 0.06, 0.06))
    draw.note(type=kind)
    return union(makers[kind](draw))


def _sizes(draw: Draw, low: tuple[float, float], rim: tuple[float, float] = (0.012, 0.045)) -> BedSizes:
    """Draw the sizes of a single or double bed, with the mattress from a height within a range."""
    length = draw.between(0.35, 0.425)
    width = length * draw.pick((draw.between(0.42, 0.58), draw.between(0.6, 0.98)), (0.4, 0.6))
    at = draw.between(*low)
    draw.note_size("width", width / length, ("single", 0.58), ("double", 0.6))
    return BedSizes(length, width, at, at + draw.between(0.065, 0.13), draw.between(*rim))


def _boards(draw: Draw, p: BedSizes, bottom: float, foot: float) -> list[Solid]:
    """A head board, and a foot board with a probability. They reach to the floor or to a height above it."""
    kind, thick, half = draw.pick(HEADS), draw.between(THIN, 0.075), p.width + p.rim + draw.pick((0.0, 0.03))
    top = p.high + draw.between(0.12, 0.31)
    low = draw.pick((0.0, bottom))
    head = upright_board(draw, kind, half, (low, p.high, top), thick)
    if draw.chance(0.2) and kind in ("panel", "padded", "slats", "framed"):
        head = head.moved(z=-low).turned("y", -draw.between(3, 9)).moved(0.01, 0, low)
    parts: list[Solid] = [head.moved(-p.length - thick + 0.004)]
    ended = draw.chance(foot)
    draw.note(headboard=True, footboard=ended)
    if ended:
        same = kind if draw.chance(0.6) and kind != "padded" else draw.pick(FEET)
        high = p.high + draw.between(-0.05, 0.5 * (top - p.high))
        end = upright_board(draw, same, half, (low, min(p.high, high - 0.01), max(high, low + 0.08)), thick)
        parts.append(end.moved(p.length - 0.004))
    return parts


def _framed(draw: Draw) -> list[Solid]:
    """A frame of rails on legs."""
    p = _sizes(draw, (0.09, 0.2))
    bottom = max(p.low - draw.between(THIN - 0.01, 0.09), 0.035)
    lip = draw.between(0.01, 0.05)
    end, half = p.length + draw.pick((0.0, p.rim)), p.width + p.rim
    parts: list[Solid] = [cuboid((-p.length, -half, bottom), (end, half, p.low + lip), FRAME)]
    head = draw.chance(0.93)
    draw.note(headboard=head)
    if head:
        parts += _boards(draw, p, bottom, 0.5)
    inset = draw.between(0.045, 0.08)
    parts += short_legs(draw, (-p.length + inset, end - inset), half - inset, bottom, LEG)
    return [*parts, *bedding(draw, p, lean=head, drop=bottom if draw.chance(0.7) else None)]


def _box(draw: Draw) -> list[Solid]:
    """A box down to the floor or to a plinth, at times with drawers or with tables at the sides of the head board."""
    p = _sizes(draw, (0.1, 0.19), (0.0, 0.03))
    plinth, half = draw.pick((0.0, draw.between(0.03, 0.05))), p.width + p.rim
    parts: list[Solid] = [cuboid((-p.length, -half, plinth), (p.length, half, p.low), FRAME, radius=0.008)]
    if plinth:
        inset = draw.between(0.03, 0.06)
        parts.append(cuboid((-p.length, -half + inset, 0), (p.length - inset, half - inset, plinth + 0.02), LEG))
    if p.width < 0.3 and draw.chance(0.35):
        parts += _tables(draw, p)
    else:
        parts += _boards(draw, p, plinth, 0.15)
    if draw.chance(0.45):
        count, lip = draw.count(1, 3), draw.between(0.02, 0.035)
        step = 2 * (p.length - 0.03) / count
        for i in range(count):
            a = -p.length + 0.03 + i * step + 0.025
            for s in SIDES:
                low, high = sorted((s * (half - 0.02), s * (half + lip)))
                parts.append(cuboid((a, low, plinth + 0.02), (a + step - 0.05, high, p.low - 0.02), FRAME))
        return [*parts, *bedding(draw, p)]
    return [*parts, *bedding(draw, p, drop=plinth + 0.02)]


def _tables(draw: Draw, p: BedSizes) -> list[Solid]:
    """A wide head board with a bedside table on each side."""
    wide, thick, top = draw.between(0.13, 0.18), draw.between(THIN, 0.065), p.high + draw.between(0.1, 0.3)
    half, deep = p.width + p.rim + wide, draw.between(0.14, 0.2)
    kind = draw.pick(("panel", "padded", "crown"))
    parts: list[Solid] = [upright_board(draw, kind, half, (0, p.high, top), thick).moved(-p.length - thick + 0.004)]
    high, raised = p.high - draw.between(-0.01, 0.04), draw.pick((0.0, draw.between(0.06, 0.1)))
    gap = draw.pick((0.0, 0.05))
    for s in SIDES:
        a, b = sorted((s * (half - wide + gap), s * half))
        parts.append(cuboid((-p.length - 0.01, a, raised), (-p.length + deep, b, high), FRAME))
    return parts


def _platform(draw: Draw) -> list[Solid]:
    """A low platform wider than the mattress."""
    p = _sizes(draw, (0.09, 0.14), (0.04, 0.09))
    p = p._replace(width=min(p.width, 0.36))
    thick, half = draw.between(THIN, 0.07), p.width + p.rim
    parts: list[Solid] = [cuboid((-p.length, -half, p.low - thick), (p.length + p.rim, half, p.low), FRAME)]
    inset = draw.between(0.06, 0.12)
    if draw.chance(0.5):
        parts.append(cuboid((-p.length, -half + inset, 0), (p.length - inset, half - inset, p.low - 0.02), LEG))
    else:
        parts += short_legs(draw, (-p.length + inset, p.length - inset + 0.03), half - inset + 0.02, p.low - thick, LEG)
    head = draw.chance(0.75)
    draw.note(headboard=head)
    if head:
        wall, top = draw.between(THIN, 0.07), p.high + draw.between(0.08, 0.24)
        kind = draw.pick(("panel", "slats", "rails", "framed", "padded"))
        made = upright_board(draw, kind, half, (p.low - thick, p.high, top), wall)
        parts.append(made.moved(-p.length - wall + 0.004))
    return [*parts, *bedding(draw, p, lean=head)]


def _sleigh(draw: Draw) -> list[Solid]:
    """Head and foot boards that curl outward, on a frame with high sides."""
    p = _sizes(draw, (0.1, 0.17))
    reach, t = draw.between(0.09, 0.135), draw.between(THIN, 0.065)
    length = min(p.length, 0.475 - reach)  # the curls leave less room
    p = p._replace(length=length, width=p.width * length / p.length)
    half = p.width + p.rim
    turn, rolled = draw.between(50, 90), draw.chance(0.6)

    def curl(high: float) -> Solid:
        """A board that curls backward to a height, with its front at x = 0."""
        start = max(high - reach, 0.12)
        sector = [(x - reach, z + start) for x, z in ring_sector(reach, t, 0, turn, 10)]
        parts: list[Solid] = [
            cuboid((-t, -half, 0), (0, half, start + 0.004), BOARD),
            prism(sector, "y", -half, half, BOARD),
        ]
        if rolled:
            x, z = ((u + v) / 2 for u, v in zip(sector[10], sector[11], strict=True))
            parts.append(rod((x, -half, z), (x, half, z), draw.between(THIN / 2, 0.04), None, BOARD))
        return union(parts)

    top = p.high + draw.between(0.18, 0.34)
    parts = [curl(top).moved(-p.length + 0.004)]
    if draw.chance(0.8):
        end = p.high + draw.between(0.04, 0.5 * (top - p.high))
        parts.append(curl(end).turned("z", 180).moved(p.length - 0.004))
    else:
        parts += short_legs(draw, (-p.length + 0.04, p.length - 0.04), half - 0.04, p.low - 0.03, LEG)
    parts.append(cuboid((-p.length, -half, p.low - draw.between(0.05, 0.08)), (p.length, half, p.low + 0.04), FRAME))
    return [*parts, *bedding(draw, p)]


def _canopy(draw: Draw) -> list[Solid]:
    """Four posts, with rails, a roof above the head, or curtains."""
    p = _sizes(draw, (0.1, 0.2), (THIN, 0.06))
    p = p._replace(length=0.95 * p.length, width=0.9 * p.width)
    r, top = draw.between(THIN / 2, 0.036), draw.between(0.64, 0.88)
    a, b = p.length + r, p.width + p.rim - r
    square, bottom = draw.chance(0.5), p.low - draw.between(0.05, 0.08)
    parts: list[Solid] = [cuboid((-a, -b - r, bottom), (a, b + r, p.low + 0.02), FRAME)]
    roof = draw.pick(("rails", "roof", "none"), (0.6, 0.22, 0.18))
    draw.note(type="canopy" if roof != "none" else "posts")
    for x in (-a, a):
        high = top - (draw.between(0.0, 0.25) if roof == "none" and x > 0 else 0.0)
        for s in SIDES:
            if square:
                parts.append(cuboid((x - r, s * b - r, 0), (x + r, s * b + r, high), LEG))
            else:
                parts.append(rod((x, s * b, 0), (x, s * b, high), 1.15 * r, THIN / 2, LEG))
        if roof == "rails":
            parts.append(rod((x, -b, top - r), (x, b, top - r), THIN / 2, None, FRAME))
    if roof == "rails":
        parts += mirrored(lambda s: rod((-a, s * b, top - r), (a, s * b, top - r), THIN / 2, None, FRAME))
    elif roof == "roof":
        parts.append(cuboid((-a - r, -b - r, top - THIN), (draw.between(-0.4, 0.3) * a, b + r, top + 0.01), FRAME))
    if roof != "none" and draw.chance(0.35):  # curtains at the head, or at all posts
        wide, low = draw.between(0.07, 0.13), draw.between(0.0, p.high)
        parts += [
            cuboid((x, s * b - THIN / 2, low), (x + wide, s * b + THIN / 2, top - 0.01), BLANKET)
            for x in draw.pick(((-a,), (-a, a - wide + r)) if roof == "rails" else ((-a,),))
            for s in SIDES
        ]
    kind = draw.pick(("panel", "arched", "crown", "slats", "framed"))
    high = p.high + draw.between(0.1, 0.3)
    parts.append(upright_board(draw, kind, b, (bottom, p.high, high), THIN).moved(-a - THIN / 2))
    if draw.chance(0.4):
        parts.append(upright_board(draw, "panel", b, (bottom, p.high, p.high + 0.02), THIN).moved(a - THIN / 2))
    return [*parts, *bedding(draw, p)]


def _bunk(draw: Draw) -> list[Solid]:
    """Two beds, one above the other, with a guard rail and a ladder or steps."""
    stairs = draw.chance(0.3)
    length, thick = draw.between(0.36, 0.42) - 0.07 * stairs, draw.between(0.06, 0.08)
    width = length * draw.between(0.42, 0.55)
    low, up = draw.between(0.08, 0.14), draw.between(0.46, 0.56)
    r, guard = draw.between(THIN / 2, 0.036), draw.between(0.13, 0.19)
    top = up + thick + guard
    a, b = length + r, width
    beds = [BedSizes(length, width - 0.004, z, z + thick, 0.0) for z in (low, up)]
    parts: list[Solid] = [cuboid((x - r, s * b - r, 0), (x + r, s * b + r, top), LEG) for x in (-a, a) for s in SIDES]
    for p in beds:
        parts.append(cuboid((-a, -b - 0.015, p.low - THIN), (a, b + 0.015, p.low + 0.03), FRAME))
        parts += bedding(draw, p, lean=False)
    for x in (-a, a):
        parts.append(cuboid((x - THIN / 2, -b, top - THIN), (x + THIN / 2, b, top), BOARD))
        panel = draw.between(beds[0].high, beds[0].high + 0.1)
        parts.append(cuboid((x - THIN / 2, -b, low - THIN), (x + THIN / 2, b, panel), BOARD))
    side, gate = draw.pick(SIDES), draw.between(0.2, 0.26)
    for s in SIDES:
        end = a - gate if s == side and not stairs else a
        low, far = s * b - THIN / 2, s * b + THIN / 2
        parts.append(cuboid((-a, low, top - THIN), (end, far, top), BOARD))
        for x in evenly_spaced(draw.count(1, 4), -a + 0.15, end - 0.15 * (end == a) - THIN / 2):
            parts.append(cuboid((x - THIN / 2, low, up), (x + THIN / 2, far, top - 0.01), BOARD))
    if stairs:
        count = draw.count(3, 4)
        rise, tread = up / count, 0.2 / count
        line = [(a, 0.0), (a, up)]
        for i in range(count):
            line += [(a + r + (i + 1) * tread, up - i * rise), (a + r + (i + 1) * tread, up - (i + 1) * rise)]
        low, far = sorted((side * b, side * (b - draw.between(0.14, 0.2))))
        return [*parts, prism(line, "y", low, far, FRAME)]
    foot, y = draw.between(0.0, 0.1), side * (b + 0.015)
    spots = (a - gate + THIN / 2, a - THIN / 2)
    for x in spots:
        parts.append(rod((x, y + side * foot, 0), (x, y, up + thick), THIN / 2, None, LEG))
    count = max(int(up / (THIN + GAP)) - 1, 2)
    for i in range(1, count + 1):
        z = i * up / (count + 1)
        at = y + side * foot * (1 - z / (up + thick))
        parts.append(rod((spots[0], at, z), (spots[1], at, z), THIN / 2, None, LEG))
    return parts


def _crib(draw: Draw) -> list[Solid]:
    """A bed for a child, with high sides of bars."""
    a, b = draw.between(0.36, 0.44), draw.between(0.19, 0.28)
    top, bottom, r = draw.between(0.45, 0.7), draw.between(0.08, 0.16), draw.between(THIN / 2, 0.036)
    low = bottom + draw.between(THIN, 0.14)
    p = BedSizes(a - 0.01, b - 0.01, low, low + draw.between(0.055, 0.08), 0.0)
    high = top + draw.between(0.0, 0.04)
    parts: list[Solid] = [cuboid((x - r, s * b - r, 0), (x + r, s * b + r, high), LEG) for x in (-a, a) for s in SIDES]
    parts.append(cuboid((-a, -b, bottom), (a, b, low), FRAME))
    for s in SIDES:
        upper = top - draw.pick((0.0, draw.between(0.06, 0.14)))
        parts += _barred(draw, (-a, s * b), (a, s * b), bottom, upper)
    kind = draw.pick(("bars", "panel", "arched", "crown"), (0.5, 0.2, 0.2, 0.1))
    end = top + draw.between(0.0, 0.06)
    for x in (-a, a):
        if kind == "bars":
            parts += _barred(draw, (x, -b), (x, b), bottom, top)
        else:
            parts.append(upright_board(draw, kind, b, (bottom, p.high, end), THIN).moved(x - THIN / 2))
    if draw.chance(0.3):  # rockers
        bow = [(y, z + 0.53) for y, z in ring_sector(0.55, THIN, 240, 300, 12)]
        parts += [prism(bow, "x", x - THIN / 2, x + THIN / 2, LEG) for x in (-a, a)]
    return [*parts, *bedding(draw, p, lean=False)]


def _barred(draw: Draw, start: tuple[float, float], end: tuple[float, float], low: float, high: float) -> list[Solid]:
    """Upright bars and a rail above them, between two points of x and y."""
    room = abs(end[0] - start[0]) + abs(end[1] - start[1])
    most = int((room - THIN - GAP) / (THIN + GAP))
    count = draw.count(max(most - 2, 2), max(most, 2))
    spots = list(zip(*(evenly_spaced(count + 2, u, v) for u, v in zip(start, end, strict=True)), strict=True))
    (a, b), (c, d) = start, end
    rail = cuboid((a - THIN / 2, b - THIN / 2, high - THIN), (c + THIN / 2, d + THIN / 2, high), BOARD)
    return [rail, *(rod((x, y, low), (x, y, high - 0.01), THIN / 2, None, BOARD) for x, y in spots[1:-1])]
