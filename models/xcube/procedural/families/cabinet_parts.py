"""Parts of cabinets: bodies whose front is divided into drawers, doors and open compartments, feet and tops."""

from typing import NamedTuple

from xcube.procedural.families.draw import GAP, THIN, Draw, arc, evenly_spaced, part_labels
from xcube.procedural.families.legs import short_legs
from xcube.procedural.poses import Pose, Triple
from xcube.procedural.primitives import Ellipsoid, cuboid, prism
from xcube.procedural.solids import Solid, union

BODY, DOOR, DRAWER, SHELF, HANDLE, LEG = part_labels("cabinet")

EDGE = THIN / 2  # half thickness of the boards between open compartments
MIN_DRAWER = 0.115  # least height of the cell of a drawer
MIN_LEAF = 0.15  # least width of the cell of a door


class Cell(NamedTuple):
    """A rectangle of the front of a cabinet."""

    left: float  # lower y
    right: float  # upper y
    low: float  # lower z
    high: float  # upper z

    @property
    def size(self) -> tuple[float, float]:
        """Width and height."""
        return self.right - self.left, self.high - self.low

    def inset(self, by: float) -> "Cell":
        """Move all sides inwards."""
        return Cell(self.left + by, self.right - by, self.low + by, self.high - by)

    def columns(self, draw: Draw, count: int, uneven: float = 0.0, least: float = MIN_LEAF) -> list["Cell"]:
        """Divide it into at most `count` columns, of widths that are equal or not."""
        return [self._replace(left=a, right=b) for a, b in _divided(draw, *self[:2], count, uneven, least)]

    def rows(self, draw: Draw, count: int, uneven: float = 0.0, least: float = MIN_DRAWER) -> list["Cell"]:
        """Divide it into at most `count` rows, from below, of heights that are equal or not."""
        return [self._replace(low=a, high=b) for a, b in _divided(draw, *self[2:], count, uneven, least)]


def _divided(draw: Draw, low: float, high: float, count: int, uneven: float, least: float) -> list[tuple[float, float]]:
    count = max(min(count, int((high - low) / least + 1e-6)), 1)
    weights = [1 + uneven * draw.between(-1, 1) for _ in range(count)]
    free = high - low - count * least
    sizes = [least + free * weight / sum(weights) for weight in weights] if free > 0 else [(high - low) / count] * count
    cuts = [low + sum(sizes[:i]) for i in range(count + 1)]
    return list(zip(cuts, [*cuts[1:-1], high], strict=False))


class Cabinet:
    """A closed body with a front to fill. All its fronts and handles have one style.

    Args:
        draw: Random choices.
        lower: Lower corner of the body; the front is at the upper x.
        upper: Upper corner of the body.
        back: Thickness of the rear wall of open compartments; 0 without a wall.
    """

    def __init__(self, draw: Draw, lower: Triple, upper: Triple, *, back: float = THIN) -> None:
        self.draw, self.lower, self.upper, self.back = draw, lower, upper, back
        self.area = Cell(lower[1], upper[1], lower[2], upper[2]).inset(EDGE)  # what is to be divided
        self.seam, self.lip = draw.between(0.047, 0.06), draw.between(0.026, 0.045)
        self.overlay = draw.chance(0.5)  # fronts cover the edges of the body
        self.handle = draw.pick(("knob", "bar", "cup", "grip", "none"), (0.36, 0.36, 0.12, 0.1, 0.06))
        self.panel = draw.pick(("flat", "framed", "raised"), (0.5, 0.3, 0.2))
        self.knob, self.long = draw.between(0.028, 0.036), draw.between(0.09, 0.2)
        self.soft = draw.pick((0.0, 0.012))
        self.added: list[Solid] = []
        self.cut: list[Solid] = []

    def solid(self, *, radius: float = 0.0) -> Solid:
        """Put it together."""
        body: Solid = cuboid(self.lower, self.upper, BODY, radius=radius)
        return union([body - union(self.cut) if self.cut else body, *self.added])

    def _box(self, cell: Cell, start: float, end: float, label: int, radius: float = 0.0) -> Solid:
        """A cuboid in front of a cell, between two distances from the front of the body."""
        x = self.upper[0]
        return cuboid((x + start, cell.left, cell.low), (x + end, cell.right, cell.high), label, radius=radius)

    def _front(self, cell: Cell) -> Cell:
        """What a door or drawer covers of a cell."""
        made = cell.inset(self.seam / 2)
        if not self.overlay:
            return made
        far = EDGE - 0.006
        return Cell(
            cell.left - far if cell.left == self.area.left else made.left,
            cell.right + far if cell.right == self.area.right else made.right,
            cell.low - far if cell.low == self.area.low else made.low,
            cell.high + far if cell.high == self.area.high else made.high,
        )

    # Contents of cells

    def drawer(self, cell: Cell) -> None:
        """Fill a cell with a drawer."""
        front = self._front(cell)
        wide, tall = front.size
        self.added.append(self._box(front, -0.02, self.lip, DRAWER, min(self.soft, tall / 5)))
        y, z = (front.left + front.right) / 2, (front.low + front.high) / 2
        if self.handle in ("grip", "none"):
            if tall > THIN + 0.03:
                low = front.high - min(0.05, tall - THIN)
                notch = Cell(y - 0.25 * wide, y + 0.25 * wide, low, front.high + 0.05)
                self.added[-1] = self.added[-1] - self._box(notch, 0.002, 1, DRAWER)
            return
        spots = evenly_spaced(2, y - 0.28 * wide, y + 0.28 * wide) if wide > 0.32 and self.handle != "bar" else [y]
        for spot in spots:
            self._handle(spot, z, min(self.long, 0.7 * wide), 0.0)

    def door(self, cell: Cell, hinge: float, *, at: float = 0.5, glass: bool = False) -> None:
        """Fill a cell with a door.

        Args:
            cell: The cell.
            hinge: Side of the hinge: 1.0 for the left, at the upper y, -1.0 for the right.
            at: Height of the handle as a fraction of the door.
            glass: Whether the door is a frame in front of an open compartment.
        """
        front = self._front(cell)
        wide, tall = front.size
        if glass and min(wide, tall) > 2 * THIN + GAP:
            self._glass(cell, front)
        else:
            self.added.append(self._box(front, -0.02, self.lip, DOOR, self.soft))
            inner = front.inset(THIN)
            if self.panel != "flat" and min(inner.size) > (0.05 if self.panel == "framed" else 0.08):
                rows = inner.rows(self.draw, self.draw.count(1, 2) if inner.size[1] > 0.3 else 1)
                for i, row in enumerate(rows):
                    low, high = EDGE if i else 0.0, EDGE if row is not rows[-1] else 0.0
                    field = row._replace(low=row.low + low, high=row.high - high)
                    if self.panel == "framed":
                        self.added[-1] = self.added[-1] - self._box(field, 0.004, 1, DOOR)
                    else:
                        self.added.append(self._box(field, 0.0, self.lip + 0.02, DOOR, 0.008))
        y = front.left + 0.04 if hinge > 0 else front.right - 0.04
        if self.handle in ("grip", "none"):
            return
        self._handle(y, front.low + min(max(at * tall, 0.05), tall - 0.05), 0.0, min(1.3 * self.long, 0.7 * tall))

    def doors(self, cell: Cell, *, at: float = 0.5, glass: bool = False) -> None:
        """Fill a cell with one door, or with two if it is wide."""
        if cell.size[0] > 2 * MIN_LEAF and (cell.size[0] > 0.4 or self.draw.chance(0.7)):
            right, left = cell.columns(self.draw, 2)
            self.door(left, 1.0, at=at, glass=glass)
            self.door(right, -1.0, at=at, glass=glass)
        else:
            self.door(cell, self.draw.pick((1.0, -1.0)), at=at, glass=glass)

    def open(self, cell: Cell, shelves: int = 0, *, things: float = 0.3) -> None:
        """Make a cell an open compartment, with shelves, and with things in it with a probability."""
        inside = cell.inset(EDGE)
        depth = self.upper[0] - self.lower[0]
        self.cut.append(self._box(inside, -depth + self.back if self.back else -depth - 1, 1, SHELF))
        rows = cell.rows(self.draw, shelves + 1, 0.3, 0.13)
        for row in rows[1:]:
            board = cell._replace(low=row.low - EDGE, high=row.low + EDGE)
            self.added.append(self._box(board, -depth, -self.draw.between(0.004, 0.03), SHELF))
        for row in rows:
            if self.draw.chance(things):
                self._things(row.inset(EDGE), depth)

    def _things(self, room: Cell, depth: float) -> None:
        """A row of books, or a box, on the floor of a compartment."""
        draw, (wide, tall) = self.draw, room.size
        count = draw.count(1, max(int(0.7 * wide / THIN), 1))
        y, s = (room.left, 1.0) if draw.chance(0.5) else (room.right, -1.0)
        start = -depth + (self.back or 0.02) - 0.005
        if tall < 0.09 or wide < 0.1:
            return
        for _ in range(count):
            thick, high = draw.between(THIN, 0.075), draw.between(0.55, 0.9) * tall
            low, far = sorted((y - s * 0.005, y + s * thick))
            if low < room.left - 0.01 or far > room.right + 0.01:
                break
            thing = Cell(low, far, room.low - 0.005, room.low + high)
            self.added.append(self._box(thing, start, -draw.between(0.03, 0.05), SHELF))
            y += s * thick

    def _glass(self, cell: Cell, front: Cell) -> None:
        """A frame with bars, in front of a compartment with shelves."""
        draw, (wide, tall) = self.draw, front.size
        self.open(cell, draw.count(0, 2) if tall > 0.3 else 0)
        frame: Solid = self._box(front, -THIN / 2, max(self.lip, THIN / 2), DOOR)
        panes = front.inset(THIN)
        rows = max(min(draw.count(1, 4), int((tall - THIN) / (THIN + 0.085))), 1)
        columns = max(min(draw.count(1, 2), int((wide - THIN) / (THIN + 0.085))), 1)
        holes = [
            self._box(Cell(u + EDGE, v - EDGE, a + EDGE, b - EDGE), -1, 1, DOOR)
            for u, v in _divided(draw, panes.left - EDGE, panes.right + EDGE, columns, 0.0, 0.01)
            for a, b in _divided(draw, panes.low - EDGE, panes.high + EDGE, rows, 0.0, 0.01)
        ]
        self.added.append(frame - union(holes))

    def _handle(self, y: float, z: float, wide: float, tall: float) -> None:
        """A handle in the style of the cabinet; a bar is `wide` or `tall`, whichever is larger."""
        x, r = self.upper[0] + self.lip, self.knob
        if self.handle == "knob":
            at = Pose(translation=(x + 0.5 * r, y, z))
            self.added.append(Ellipsoid((r, r, r), part=HANDLE, pose=at))
        elif self.handle == "cup":
            at = Pose(translation=(x, y, z))
            self.added.append(Ellipsoid((0.04, max(0.3 * wide, 0.034), max(0.3 * tall, 0.034)), part=HANDLE, pose=at))
        elif self.handle == "bar":
            a, b = max(wide, THIN) / 2, max(tall, THIN) / 2
            self.added.append(cuboid((x - 0.03, y - a, z - b), (x + 0.034, y + a, z + b), HANDLE, radius=0.008))


# Feet and tops


def feet(draw: Draw, half: tuple[float, float], high: float) -> list[Solid]:
    """Make what a body around x = y = 0 stands on: legs, a plinth, or brackets with an arch between them."""
    a, b = half
    kind = draw.pick(("legs", "plinth", "brackets"), (0.55, 0.25, 0.2))
    if (kind == "plinth" and high < 0.09) or high < 0.05:
        inset = draw.between(0.02, 0.05)
        draw.note(feet="plinth")
        return [cuboid((-a, -b + inset, 0), (a - inset, b - inset, high + 0.02), LEG)]
    if kind == "brackets" and high < 0.16:
        ring = cuboid((-a, -b, 0), (a, b, high + 0.01), LEG)
        foot, top = draw.between(THIN, 0.12), draw.between(0.55, 0.95) * high
        holes: list[Solid] = []
        for axis, far in (("x", b), ("y", a)):
            wide = far - min(foot, 0.6 * far)
            bow = [(u * wide, v * top) for u, v in arc((0, 0), 1, 0, 180, 12)] if draw.chance(0.5) else None
            square = [(-wide, 0.0), (-wide, top), (wide, top), (wide, 0.0)]
            line = [(wide, -1.0), *(bow or square[::-1]), (-wide, -1.0)]
            holes.append(prism(line, axis, -1, 1, LEG))
        return [ring - union(holes)]
    inset = draw.between(0.03, 0.06)
    return short_legs(draw, (-a + inset, a - inset), b - inset, high, LEG)


def top(draw: Draw, lower: Triple, upper: Triple, kinds: tuple[str, ...]) -> list[Solid]:
    """Make the top of a body, given by its corners: a board, a cornice, a gallery or a pediment."""
    kind, (a, b, _), (c, d, z) = draw.pick(kinds), lower, upper
    if kind == "board":
        over, thick = draw.between(0.0, 0.025), draw.between(THIN, 0.065)
        soft = draw.pick((0.0, 0.015))
        return [cuboid((a, b - over, z - 0.01), (c + over + 0.02, d + over, z + thick - 0.01), BODY, radius=soft)]
    if kind == "cornice":
        over, tall = draw.between(0.025, 0.05), draw.between(THIN, 0.08)
        line = [(b, z - tall), (d, z - tall), (d + over, z), (d + over, z + 0.02), (b - over, z + 0.02), (b - over, z)]
        side = [(a, z - tall), (c, z - tall), (c + over, z), (c + over, z + 0.02), (a, z + 0.02)]
        return [prism(line, "x", a, c + over, BODY) & prism(side, "y", b - over, d + over, BODY)]
    if kind == "pediment":
        rise, wide = draw.between(0.05, 0.12), d - b
        thick = draw.between(THIN, 0.08)
        bow = [(u * wide / 2, v * rise + z - 0.005) for u, v in arc((0, 0), 1, 0, 180, 14)]
        peak = [(wide / 2, z - 0.005), (0.06 * wide, z + rise), (-0.06 * wide, z + rise), (-wide / 2, z - 0.005)]
        line = [(wide / 2, z - 0.03), *draw.pick((bow, peak)), (-wide / 2, z - 0.03)]
        return [prism([(y + (b + d) / 2, v) for y, v in line], "x", c - thick, c + 0.012, BODY)]
    if kind == "gallery":
        tall = draw.between(0.05, 0.08)
        walls: list[Solid] = [cuboid((a, b, z - 0.01), (a + THIN, d, z + tall), BODY)]
        if d - b < 0.6 and draw.chance(0.5):
            reach = draw.between(0.4, 1.0) * (c - a)
            walls += [cuboid((a, y, z - 0.01), (a + reach, y + THIN, z + tall), BODY) for y in (b, d - THIN)]
        return walls
    return []
