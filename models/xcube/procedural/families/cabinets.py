"""Cabinets: chests of drawers, wardrobes, bookshelves, sideboards, kitchens; `cabinet_parts.py` has their parts."""

from xcube.procedural.families.cabinet_parts import SHELF, Cabinet, Cell, feet, top
from xcube.procedural.families.draw import SIDES, THIN, Draw, ellipse, part_labels
from xcube.procedural.poses import Triple
from xcube.procedural.primitives import capsule, cuboid, prism, rod
from xcube.procedural.solids import Solid, union

BODY, HANDLE, LEG = (part_labels("cabinet")[i] for i in (0, 4, 5))


def cabinet(draw: Draw) -> Solid:
    """Make a cabinet or shelf that faces along x."""
    makers = {
        "chest": _chest,
        "wardrobe": _wardrobe,
        "bookshelf": _bookshelf,
        "sideboard": _sideboard,
        "bedside": _bedside,
        "display": _display,
        "wall": _wall,
        "kitchen": _kitchen,
    }
    kind = draw.pick(tuple(makers), (0.2, 0.18, 0.18, 0.16, 0.08, 0.09, 0.06, 0.05))
    draw.note(type=kind)
    return union(makers[kind](draw))


def _note_width(draw: Draw, half: float, high: float) -> None:
    draw.note_size("width", half / high, ("narrow", 0.3), ("wide", 0.55))


def _standing(draw: Draw, half: tuple[float, float], high: float, raised: float) -> tuple[Triple, Triple, list[Solid]]:
    """The corners of a body of a total height around x = y = 0, and its feet, `raised` high or absent."""
    (a, b), low = half, raised if raised >= 0.03 else 0.0
    _note_width(draw, b, high)
    draw.note(feet=bool(low))
    return (-a, -b, low), (a, b, high), feet(draw, half, low) if low else []


def _drawers(draw: Draw, made: Cabinet, cell: Cell, rows: int, uneven: float = 0.0) -> None:
    """Fill a cell with rows of drawers; the top row may have two or three."""
    split = draw.chance(0.4)
    cells = cell.rows(draw, rows, uneven)
    for row in cells:
        several = split and row is cells[-1] and len(cells) > 1
        for drawer in row.columns(draw, draw.count(2, 3) if several else 1):
            made.drawer(drawer)


def _chest(draw: Draw) -> list[Solid]:
    """A chest of drawers, at times with a door on one side or a mirror."""
    b, a = draw.between(0.2, 0.44), draw.between(0.13, 0.21)
    high = min(draw.between(0.36, 0.86), 2.6 * b + 0.1)
    mirror = high < 0.6 and b > 0.28 and draw.chance(0.2)
    lower, upper, parts = _standing(draw, (a, b), high, draw.between(-0.03, 0.14))
    made = Cabinet(draw, lower, upper)
    rows, area = draw.count(2, 6), made.area
    form = draw.pick(("one", "two", "door"), (0.5, 0.35, 0.15) if b > 0.26 else (1.0, 0.0, 0.0))
    if form == "one":
        _drawers(draw, made, area, rows, draw.pick((0.0, 0.8)))
    elif form == "two":
        for column in area.columns(draw, 2 if b < 0.38 else draw.count(2, 3), draw.pick((0.0, 0.6))):
            _drawers(draw, made, column, rows)
    else:
        cells = area.columns(draw, 2, 0.5)
        door = draw.count(0, 1)
        made.doors(cells[door], at=0.75)
        _drawers(draw, made, cells[1 - door], rows)
    parts += [
        made.solid(radius=draw.pick((0.0, 0.012))),
        *top(draw, lower, upper, ("board", "board", "none", "gallery")),
    ]
    if mirror:
        wide, tall = b * draw.between(0.5, 0.95), draw.between(0.25, 0.42)
        shape = draw.pick(("arch", "oval", "square"))
        line = ellipse(wide, tall / 2, {"arch": 4.0, "oval": 2.0, "square": 12.0}[shape], 32)
        line = [(y, z + tall / 2 + high - 0.01) for y, z in line]
        glass = [(0.75 * y, (z - high - tall / 2) * 0.75 + high + tall / 2) for y, z in line]
        frame = prism(line, "x", -a, -a + 0.065, BODY) - prism(glass, "x", -a + 0.045, 1, BODY)
        parts += [frame, cuboid((-a, -0.5 * wide, high - 0.02), (-a + 0.065, 0.5 * wide, high + 0.1), BODY)]
    return parts


def _wardrobe(draw: Draw) -> list[Solid]:
    """A tall cabinet with doors, at times with drawers below, doors above, or an open side."""
    high, b, a = draw.between(0.72, 0.86), draw.between(0.17, 0.42), draw.between(0.12, 0.21)
    lower, upper, parts = _standing(draw, (a, b), high, draw.between(-0.04, 0.1))
    made = Cabinet(draw, lower, upper)
    area, count = made.area, draw.count(1 if b < 0.24 else 2, 4)
    below = draw.chance(0.35)
    if below:
        rows = draw.count(1, 2)
        cut = area.low + rows * draw.between(0.12, 0.15)
        for column in area._replace(high=cut).columns(draw, draw.count(1, 2)):
            for row in column.rows(draw, rows):
                made.drawer(row)
        area = area._replace(low=cut)
    elif draw.chance(0.25):
        cut = area.high - draw.between(0.14, 0.2)
        for column in area._replace(low=cut).columns(draw, count):
            made.doors(column, at=0.3)
        area = area._replace(high=cut)
    columns = area.columns(draw, count, draw.pick((0.0, 0.0, 0.6)))
    odd = draw.count(0, len(columns) - 1) if len(columns) > 1 and draw.chance(0.3) else -1
    for i, column in enumerate(columns):
        if i == odd:
            made.open(column, draw.count(1, 4))
        else:
            made.door(column, 1.0 if i % 2 else -1.0, at=draw.between(0.45, 0.55))
    kinds = ("none", "cornice", "cornice", "board", "pediment")
    return [*parts, made.solid(), *top(draw, lower, upper, kinds)]


def _bookshelf(draw: Draw) -> list[Solid]:
    """Open compartments in columns and rows, some with doors or drawers, as a block or in steps."""
    high, b, a = draw.between(0.6, 0.9), draw.between(0.15, 0.44), draw.between(0.09, 0.16)
    if draw.chance(0.12):
        high, b = draw.between(0.42, 0.55), draw.between(0.3, 0.455)
    lower, upper, parts = _standing(draw, (a, b), high, draw.pick((0.0, draw.between(0.03, 0.1))))
    made = Cabinet(draw, lower, upper, back=0.0 if draw.chance(0.25) else THIN)
    things, form = draw.pick((0.0, 0.35, 0.7)), draw.pick(("grid", "columns", "rows"), (0.45, 0.35, 0.2))
    closed = draw.pick((0.0, 0.25))
    least = max(int(b / 0.17), 1)
    count, uneven = draw.count(least, max(int(b / 0.09), least)), draw.pick((0.0, 0.8))
    least = 3 if high > 0.5 else 2
    rows = draw.count(least, max(int(high / 0.15), least))
    area = made.area
    if draw.chance(0.2) and high > 0.6:  # doors below
        cut = area.low + draw.between(0.2, 0.3)
        for column in area._replace(high=cut).columns(draw, count):
            made.doors(column, at=0.75)
        area = area._replace(low=cut)
    if form == "rows":
        cells = [
            cell for row in area.rows(draw, rows, uneven, 0.14) for cell in row.columns(draw, draw.count(1, count), 0.8)
        ]
    else:
        cells = []
        for column in area.columns(draw, count, uneven):
            steps = rows if form == "grid" else draw.count(max(rows - 1, 2), rows + 1)
            cells += column.rows(draw, steps, uneven if form == "columns" else 0.0, 0.14)
    for cell in cells:
        if draw.chance(closed):
            (made.drawer if cell.size[1] < 0.2 else made.doors)(cell)
        else:
            made.open(cell, things=things)
    return [*parts, made.solid(), *top(draw, lower, upper, ("none", "none", "board", "cornice", "gallery"))]


def _filled(draw: Draw, made: Cabinet, cell: Cell, kinds: tuple[str, ...], at: float = 0.75) -> None:
    """Fill a cell with one of several kinds of content."""
    kind = draw.pick(kinds)
    if kind == "drawers":
        for row in cell.rows(draw, draw.count(1, 4)):
            made.drawer(row)
    elif kind == "open":
        made.open(cell, draw.count(0, 2))
    else:
        made.doors(cell, at=at, glass=kind == "glass")


def _sideboard(draw: Draw) -> list[Solid]:
    """A long and low cabinet of doors, drawers and open compartments."""
    b, a, high = draw.between(0.36, 0.455), draw.between(0.11, 0.18), draw.between(0.26, 0.48)
    lower, upper, parts = _standing(draw, (a, b), high, min(draw.between(-0.04, 0.14), high - 0.2))
    made = Cabinet(draw, lower, upper)
    area, kinds = made.area, ("drawers", "doors", "doors", "open", "glass")
    if draw.chance(0.3) and area.size[1] > 0.26:  # a row of drawers or an open one above
        cut = area.high - draw.between(0.12, 0.14)
        kind = draw.pick(("drawers", "open"))
        for column in area._replace(low=cut).columns(draw, draw.count(1, 4), 0.3):
            if kind == "open":
                made.open(column, things=0.2)
            else:
                made.drawer(column)
        area = area._replace(high=cut)
    columns = area.columns(draw, draw.count(2, 5), draw.pick((0.0, 0.8)))
    if draw.chance(0.5):  # mirrored
        chosen = [draw.pick(kinds) for _ in range((len(columns) + 1) // 2)]
        chosen += chosen[: len(columns) // 2][::-1]
    else:
        chosen = [draw.pick(kinds) for _ in columns]
    for column, kind in zip(columns, chosen, strict=True):
        _filled(draw, made, column, (kind,))
    return [*parts, made.solid(radius=draw.pick((0.0, 0.014))), *top(draw, lower, upper, ("none", "board"))]


def _bedside(draw: Draw) -> list[Solid]:
    """A small cabinet with drawers, a door, or a drawer above an open compartment."""
    b, a, high = draw.between(0.16, 0.28), draw.between(0.14, 0.23), draw.between(0.36, 0.62)
    lower, upper, parts = _standing(draw, (a, b), high, min(draw.between(-0.03, 0.2), high - 0.24))
    made = Cabinet(draw, lower, upper)
    kind = draw.pick(("drawers", "open", "door", "shelf"))
    if kind == "drawers" or made.area.size[1] < 0.26:
        _drawers(draw, made, made.area, draw.count(1, 3))
    else:
        cut = made.area.high - draw.between(0.12, 0.16)
        upper_cell, rest = made.area._replace(low=cut), made.area._replace(high=cut)
        if kind == "shelf":
            upper_cell, rest = made.area._replace(high=cut), upper_cell
        made.drawer(upper_cell)
        if kind == "door":
            made.door(rest, draw.pick(SIDES), at=0.75)
        else:
            made.open(rest, things=0.4)
    return [*parts, made.solid(radius=draw.pick((0.0, 0.016))), *top(draw, lower, upper, ("none", "board"))]


def _display(draw: Draw) -> list[Solid]:
    """Glass doors or open shelves, on a deeper cabinet or down to the floor."""
    high, b, a = draw.between(0.7, 0.86), draw.between(0.19, 0.4), draw.between(0.13, 0.19)
    if draw.chance(0.3):
        lower, upper, parts = _standing(draw, (a, b), high, draw.between(-0.02, 0.1))
        made = Cabinet(draw, lower, upper)
        for column in made.area.columns(draw, draw.count(1, 3)):
            made.doors(column, glass=True)
        return [*parts, made.solid(), *top(draw, lower, upper, ("none", "cornice", "board", "pediment"))]
    split = draw.between(0.28, 0.4)
    lower, upper, parts = _standing(draw, (a, b), split, draw.between(-0.03, 0.08))
    _note_width(draw, b, high)  # of both parts
    base = Cabinet(draw, lower, upper)
    area = base.area
    for column in area.columns(draw, draw.count(1, 3)):
        if draw.chance(0.5) and column.size[1] > 0.27:
            door, drawer = column.rows(draw, 2, 0.0, 0.12)
            drawer = drawer._replace(low=drawer.high - 0.12)
            base.drawer(drawer)
            base.doors(door._replace(high=drawer.low), at=0.75)
        else:
            _filled(draw, base, column, ("doors", "drawers"))
    parts += [base.solid(), *top(draw, lower, upper, ("board",))]
    gap, inset = draw.pick((0.0, draw.between(0.08, 0.14))), draw.between(0.0, 0.03)
    front = a - draw.between(0.0, 0.45) * a
    start, end = (-a, -b + inset, split + gap), (front, b - inset, high)
    above = Cabinet(draw, start, end)
    above.handle, above.panel = base.handle, base.panel
    glass = draw.chance(0.7)
    for column in above.area.columns(draw, draw.count(1, 3)):
        if glass:
            above.doors(column, at=0.3, glass=True)
        else:
            above.open(column, draw.count(1, 2))
    if gap:
        parts.append(cuboid((-a, -b + inset, split), (-a + THIN, b - inset, split + gap + 0.01), BODY))
        parts += [
            cuboid((-a, y, split), (front, y + THIN, split + gap + 0.01), BODY) for y in (-b + inset, b - inset - THIN)
        ]
    return [*parts, above.solid(), *top(draw, start, end, ("none", "cornice", "cornice", "pediment"))]


def _wall(draw: Draw) -> list[Solid]:
    """A wall unit: towers at the sides, of different heights, and a low part between them."""
    b, a, high = draw.between(0.38, 0.455), draw.between(0.1, 0.16), draw.between(0.55, 0.85)
    left, right = (draw.between(0.16, 0.26) for _ in range(2))
    low, parts, kinds = draw.between(0.18, 0.34), [], ("doors", "glass", "open", "open")
    spans = [
        (-b, -b + left, high),
        (-b + left, b - right, low),
        (b - right, b, draw.pick((high, draw.between(0.5 * (low + high), high)))),
    ]
    for y, end, tall in spans:
        made = Cabinet(draw, (-a, y - 0.002, 0.0), (a, end + 0.002, tall))
        if tall > low:
            for row in made.area.rows(draw, draw.count(1, 3), 0.5, 0.24):
                _filled(draw, made, row, kinds)
        else:
            for column in made.area.columns(draw, draw.count(1, 3)):
                _filled(draw, made, column, ("drawers", "doors", "open"))
        parts.append(made.solid())
    least = min(high, spans[2][2])
    if least > low:
        parts.append(cuboid((-a, -b + left - 0.01, 0), (-a + THIN, b - right + 0.01, least - 0.01), BODY))
    if least > low + 0.22:  # a shelf between the towers, or a bridge on top
        z = draw.pick((least - THIN, draw.between(low + 0.13, least - 0.1)))
        front = draw.between(0.0, a)
        parts.append(cuboid((-a, -b + left - 0.01, z), (front, b - right + 0.01, z + THIN), SHELF))
    return parts


def _kitchen(draw: Draw) -> list[Solid]:
    """A row of kitchen cabinets under a worktop, often with wall cabinets above and a tall one at a side."""
    b, a, work = draw.between(0.34, 0.455), draw.between(0.13, 0.17), draw.between(0.34, 0.4)
    plinth, parts = draw.between(0.045, 0.06), list[Solid]()
    tall, side = draw.chance(0.4), draw.pick(SIDES)
    wide = draw.between(0.2, 0.26) if tall else 0.0
    start, end = (-b, b - wide) if side > 0 else (-b + wide, b)
    base = Cabinet(draw, (-a, start, plinth), (a, end, work - THIN))
    handle, panel = draw.pick(("bar", "bar", "knob", "none")), base.panel
    base.handle = handle
    columns = base.area.columns(draw, draw.count(2, 4), 0.2)
    oven = draw.count(0, len(columns)) if draw.chance(0.7) else -1
    for i, column in enumerate(columns):
        if i == oven and column.size[0] > 0.16:
            parts += _oven(base, column, work)
        else:
            _filled(draw, base, column, ("doors", "drawers", "doors"))
    parts += [base.solid(), cuboid((-a, start + 0.01, 0), (a - 0.035, end - 0.01, plinth + 0.01), LEG)]
    parts.append(cuboid((-a, start, work - THIN), (a + 0.03, end, work), BODY))
    high = draw.between(0.76, 0.86)
    if draw.chance(0.75):
        wall = Cabinet(draw, (-a, start, work + draw.between(0.14, 0.18)), (a - draw.between(0.08, 0.12), end, high))
        wall.handle, wall.panel = handle, panel
        for column in wall.area.columns(draw, draw.count(2, 4), 0.2):
            _filled(draw, wall, column, ("doors", "doors", "doors", "open", "glass"), at=0.25)
        parts += [wall.solid(), cuboid((-a, start, work - 0.01), (-a + THIN, end, high - 0.02), BODY)]
    if tall:
        low, far = sorted((side * b, side * (b - wide)))
        tower = Cabinet(draw, (-a, low - 0.002, 0.0), (a, far + 0.002, high))
        tower.handle, tower.panel = handle, panel
        for row in tower.area.rows(draw, draw.count(1, 3), 0.6, 0.2):
            tower.door(row, side, at=0.4)
        parts.append(tower.solid())
    if draw.chance(0.5):  # a faucet
        y, z = draw.between(start + 0.1, end - 0.1), work + draw.between(0.1, 0.14)
        x = -a + THIN + 0.03
        parts.append(rod((x, y, work - 0.01), (x, y, z), THIN / 2, None, HANDLE))
        parts.append(capsule((x, y, z), (x + 0.1, y, z), THIN / 2, HANDLE))
    return parts


def _oven(base: Cabinet, cell: Cell, work: float) -> list[Solid]:
    """Fill a cell with an oven; return its handle and its hob on the worktop, which is `work` high."""
    front, pane, z = base.upper[0], cell.inset(0.05), cell.high - 0.05
    door = cuboid((front - 0.02, cell.left + 0.02, cell.low), (front + 0.03, cell.right - 0.02, cell.high), BODY)
    base.added.append(door - cuboid((front + 0.006, pane.left, pane.low), (1, pane.right, pane.high - 0.03), BODY))
    hob = (base.lower[0] + 0.05, cell.left + 0.01, work - 0.01), (front - 0.03, cell.right - 0.01, work + 0.02)
    x = front + 0.05
    return [rod((x, pane.left, z), (x, pane.right, z), THIN / 2, None, HANDLE), cuboid(*hob, SHELF)]
