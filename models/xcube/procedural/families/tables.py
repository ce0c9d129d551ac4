"""Tables and desks: tops of many outlines on legs, trestles, panels or columns, with shelves, drawers and aprons."""

from typing import NamedTuple

from xcube.procedural.families.draw import THIN, Draw, ellipse, mirrored, part_labels
from xcube.procedural.polygons import Polygon
from xcube.procedural.primitives import Lathe, cuboid, prism, rod
from xcube.procedural.solids import Solid

TOP, LEG, BASE, SHELF, DRAWER, APRON = part_labels("table")


class TableSizes(NamedTuple):
    """Sizes that the parts of a table share."""

    length: float  # half length along y
    depth: float  # half depth along x
    low: float  # underside of the tabletop
    inner: float  # fraction of length and depth within which the legs stand


def table(draw: Draw) -> Solid:
    """Make a table or desk with its long side along y."""
    size = draw.pick(("dining", "coffee", "side", "bar"), (0.45, 0.25, 0.15, 0.15))
    length, depth, high = {
        "dining": (draw.between(0.34, 0.455), draw.between(0.2, 0.34), draw.between(0.36, 0.52)),
        "coffee": (draw.between(0.34, 0.455), draw.between(0.2, 0.32), draw.between(0.2, 0.32)),
        "side": (draw.between(0.18, 0.28), draw.between(0.18, 0.27), draw.between(0.38, 0.6)),
        "bar": (draw.between(0.17, 0.3), draw.between(0.17, 0.24), draw.between(0.6, 0.9)),
    }[size]
    thick = draw.between(THIN, 0.085)
    shape = draw.pick(("rectangle", "soft", "oval", "round", "octagon", "boat"), (0.44, 0.16, 0.1, 0.16, 0.06, 0.08))
    if shape in ("round", "octagon"):
        length = depth = max(depth, draw.between(0.24, 0.4) if size in ("dining", "coffee") else depth)
    corners = shape in ("rectangle", "soft")
    plan = TableSizes(length, depth, high - thick, draw.between(0.88, 0.98) if corners else draw.between(0.62, 0.7))
    columns = 0.16 if corners else 0.6
    kind = draw.pick(("legs", "column", "panels", "trestle", "desk"), (1 - columns, columns, *_weights(shape, size)))
    draw.note(use="desk" if kind == "desk" else size, top="rectangular" if corners else shape, base=kind, shelf=False)
    return _joined(draw, plan, kind, _top(draw, plan, shape, thick), corners)


def _weights(shape: str, size: str) -> tuple[float, float, float]:
    """Weights of panels, trestles and desks, which need a tabletop with corners."""
    if shape == "soft":
        return 0.2, 0.2, 0.0
    if shape != "rectangle":
        return 0.0, 0.0, 0.0
    return (0.25, 0.22, 0.4) if size == "dining" else (0.25, 0.12, 0.0)


def _joined(draw: Draw, plan: TableSizes, kind: str, top: Solid, corners: bool) -> Solid:
    builders = {"legs": _legs, "column": _column, "panels": _panels, "trestle": _trestle, "desk": _desk}
    below = builders[kind](draw, plan)
    if kind == "legs" and corners and draw.chance(0.4):
        below += _apron(draw, plan)
    whole = top
    for part in below:
        whole = whole | part
    return whole


def _top(draw: Draw, p: TableSizes, shape: str, thick: float) -> Solid:
    low, high, a, b = p.low, p.low + thick, p.depth, p.length
    if shape == "rectangle":
        return cuboid((-a, -b, low), (a, b, high), TOP, radius=draw.pick((0.0, 0.012, 0.024)))
    outlines: dict[str, Polygon] = {
        "soft": ellipse(a, b, draw.between(6, 10), 48),
        "oval": ellipse(a, b, draw.between(2, 2.6), 32),
        "round": ellipse(a, b, 2, 32),
        "octagon": ellipse(a, b, 2, sides := draw.pick((6, 8))),
        "boat": [(-0.75 * a, -b), (0.75 * a, -b), (a, 0), (0.75 * a, b), (-0.75 * a, b), (-a, 0)],
    }
    if shape == "octagon" and sides == 6:
        draw.note(top="hexagon")
    return prism(outlines[shape], "z", low, high, TOP)


def _legs(draw: Draw, p: TableSizes) -> list[Solid]:
    kind = draw.pick(("square", "round", "turned"), (0.45, 0.35, 0.2))
    r, foot = draw.between(THIN / 2, 0.05), draw.between(THIN / 2, 0.032)
    splay = draw.pick((0.0, draw.between(0.02, 0.07))) if kind == "round" else 0.0
    if kind != "turned":  # those are as thick as their bulges
        draw.note_size("legs", r, ("thin", 0.033), ("thick", 0.043))
    a, b = p.depth * p.inner - r - splay, p.length * p.inner - r - splay
    if min(a, b) < 0.09:
        a, b, splay = max(a, 0.09), max(b, 0.09), 0.0
    end = p.low + 0.02
    turned = _spindle(draw, end, r)
    parts: list[Solid] = []
    for x in (-1, 1):
        for y in (-1, 1):
            if kind == "square":
                parts.append(cuboid((x * a - r, y * b - r, 0), (x * a + r, y * b + r, end), LEG))
            elif kind == "round":
                parts.append(rod((x * (a + splay), y * (b + splay), 0), (x * a, y * b, end), foot, r, LEG))
            else:
                parts.append(turned.moved(x * a, y * b))
    return parts + _shelf(draw, p, a, b, splay)


def _spindle(draw: Draw, high: float, r: float) -> Solid:
    """A turned leg with bulges and necks."""
    r = max(r, 0.036)
    stops = draw.count(2, 4)
    profile = [(THIN / 2, 0.0)]
    for i in range(stops):
        z = high * (i + draw.between(0.3, 0.7)) / stops
        profile.append((r if i % 2 == 0 else THIN / 2, z))
    return Lathe((*profile, (r, high)), part=LEG)


def _shelf(draw: Draw, p: TableSizes, a: float, b: float, splay: float) -> list[Solid]:
    kind = draw.pick(("none", "shelf", "bars", "h"), (0.5, 0.22, 0.14, 0.14))
    z = draw.between(0.12, 0.45) * p.low
    if kind == "none" or p.low - z < 0.16:
        return []
    a, b = (v + splay * (1 - z / p.low) for v in (a, b))  # where the legs are at this height
    if kind == "shelf":
        draw.note(shelf=True)
        return [cuboid((-a - 0.01, -b - 0.01, z), (a + 0.01, b + 0.01, z + THIN), SHELF)]
    along = mirrored(lambda s: rod((s * a, -b, z), (s * a, b, z), THIN / 2, None, SHELF))
    across = mirrored(lambda s: rod((-a, s * b, z), (a, s * b, z), THIN / 2, None, SHELF))
    return along + across if kind == "bars" else [*across, rod((0, -b, z), (0, b, z), THIN / 2, None, SHELF)]


def _apron(draw: Draw, p: TableSizes) -> list[Solid]:
    a, b = p.depth * p.inner, p.length * p.inner
    drop = min(draw.between(0.05, 0.1), p.low - 0.12)
    low, high = p.low - drop, p.low + 0.02
    ring = cuboid((-a, -b, low), (a, b, high), APRON) - cuboid(
        (-a + THIN, -b + THIN, -1), (a - THIN, b - THIN, p.low), APRON
    )
    parts: list[Solid] = [ring]
    if drop > THIN and draw.chance(0.6):
        count = draw.count(1, 3 if b > 0.3 else 2)
        gap = 0.04
        wide = 2 * (b - 0.03) / count
        for i in range(count):
            y = -b + 0.03 + wide * i + gap / 2
            front = (a - THIN, y, low - 0.01), (a + 0.025, y + wide - gap, p.low - 0.005)
            parts.append(cuboid(*front, DRAWER))
    return parts


def _column(draw: Draw, p: TableSizes) -> list[Solid]:
    if p.length > 1.5 * p.depth and p.length > 0.3 and draw.chance(0.7):
        draw.note(base="columns")
        half = TableSizes(p.length * 0.5, p.depth, p.low, p.inner)
        column = _one_column(draw, half)
        return [part.moved(y=s * p.length * 0.5) for part in column for s in (-1, 1)]
    return _one_column(draw, p)


def _one_column(draw: Draw, p: TableSizes) -> list[Solid]:
    r, reach = draw.between(0.03, 0.07), draw.between(0.6, 0.9) * min(p.depth, p.length)
    end = p.low + 0.02
    foot = draw.pick(("disc", "cross", "claw", "drum", "bell"), (0.3, 0.2, 0.2, 0.1, 0.2))
    if foot == "drum":
        waist = draw.between(0.5, 1.0) * reach
        return [Lathe(((reach, 0), (waist, end / 2), (reach * draw.between(0.8, 1.0), end)), part=BASE)]
    if foot == "bell":
        low = draw.between(0.02, 0.06)
        bell = ((reach, 0), (reach, low), (0.6 * reach, low + 0.06), (r, 0.5 * end), (r, 0.8 * end), (1.8 * r, end))
        return [Lathe(bell, part=BASE)]
    column = rod((0, 0, 0.01), (0, 0, end), r * draw.between(1, 1.4), r, BASE)
    if foot == "disc":
        return [column, rod((0, 0, 0), (0, 0, THIN), reach, reach * draw.between(0.75, 1), BASE)]
    if foot == "cross":
        turn = draw.pick((0.0, 45.0))
        bars = [cuboid((-reach, -0.035, 0), (reach, 0.035, THIN), BASE).turned("z", turn + t) for t in (0, 90)]
        return [column, *bars]
    count, rise = draw.pick((3, 4)), draw.between(0.08, 0.2)
    claws = [rod((0, 0, rise), (reach, 0, THIN / 2), 0.035, THIN / 2, BASE) for _ in range(count)]
    return [column, *(claw.turned("z", i * 360 / count + 30) for i, claw in enumerate(claws))]


def _panels(draw: Draw, p: TableSizes) -> list[Solid]:
    a, b, thick = p.depth * p.inner, p.length * p.inner, draw.between(THIN, 0.09)
    foot = draw.between(0.7, 1.0) * a
    outline = [(-foot, 0), (foot, 0), (a, p.low + 0.02), (-a, p.low + 0.02)]

    def side(s: float) -> Solid:
        low, high = sorted((s * (b - thick), s * b))
        return prism(outline, "y", low, high, LEG)

    parts = mirrored(side)
    if draw.chance(0.65):
        drop = draw.between(0.25, 0.9) * p.low
        x = draw.pick((0.0, -0.6 * foot))
        parts.append(cuboid((x - THIN / 2, -b + 0.01, p.low - drop), (x + THIN / 2, b - 0.01, p.low + 0.02), APRON))
    elif p.low > 0.3:
        draw.note(shelf=True)
        parts.append(cuboid((-foot, -b + 0.01, 0.4 * p.low), (foot, b - 0.01, 0.4 * p.low + THIN), SHELF))
    return parts


def _trestle(draw: Draw, p: TableSizes) -> list[Solid]:
    a, b = p.depth * p.inner - 0.02, p.length * draw.between(0.65, 0.85)
    r, end, crossed = draw.between(THIN / 2, 0.04), p.low + 0.02, draw.chance(0.5)
    draw.note(base="crossed" if crossed else "trestle")
    top = a * 0.9 if crossed else draw.between(0.03, 0.4) * a

    def side(s: float) -> Solid:
        y = s * b
        legs = mirrored(lambda t: rod((t * a, y, r * 0.6), (-t * top if crossed else t * top, y, end), r, None, LEG))
        head = cuboid((-max(top, 0.06), y - r, end - 0.045), (max(top, 0.06), y + r, end), LEG)
        return legs[0] | legs[1] | head

    z = end * 0.47 if crossed else end - 0.06
    return [*mirrored(side), rod((0, -b, z), (0, b, z), THIN / 2, None, APRON)]


def _desk(draw: Draw, p: TableSizes) -> list[Solid]:
    """A desk: drawers on one side or both, a panel or legs on the other, and often a board at the rear."""
    a, b = p.depth * 0.95, p.length * 0.97
    wide, raised = draw.between(0.42, 0.62) * b, draw.pick((0.0, draw.between(0.05, 0.12)))
    both = draw.chance(0.45)
    drawers = draw.count(1, 3)

    def pedestal(s: float) -> list[Solid]:
        low, high = sorted((s * (b - wide), s * b))
        box: Solid = cuboid((-a, low, raised), (a - 0.02, high, p.low + 0.02), BASE)
        step = (p.low - raised - 0.03) / drawers
        fronts = [
            cuboid(
                (a - THIN, low + 0.02, raised + 0.02 + i * step),
                (a + 0.01, high - 0.02, raised + (i + 1) * step),
                DRAWER,
            )
            for i in range(drawers)
        ]
        feet = [
            cuboid((x - 0.03, y - 0.03, 0), (x + 0.03, y + 0.03, raised + 0.01), LEG)
            for x in (-a + 0.03, a - 0.06)
            for y in (low + 0.03, high - 0.03)
        ]
        return [box, *fronts, *(feet if raised else [])]

    if both:
        parts = pedestal(1.0) + pedestal(-1.0)
    else:
        side = draw.pick((1.0, -1.0))
        parts = pedestal(side)
        low, high = sorted((-side * (b - THIN), -side * b))
        if draw.chance(0.5):
            parts.append(cuboid((-a, low, 0), (a, high, p.low + 0.02), LEG))
        else:
            parts += [cuboid((x, low, 0), (x + THIN, high, p.low + 0.02), LEG) for x in (-a, a - THIN)]
    if draw.chance(0.6):
        drop = draw.between(0.3, 0.8) * p.low
        parts.append(cuboid((-a + 0.02, -b + 0.02, p.low - drop), (-a + 0.02 + THIN, b - 0.02, p.low + 0.02), APRON))
    return parts
