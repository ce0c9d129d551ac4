"""Parts of cars: bodies with wheel arches, cabins with glass, wheels, lights."""

from collections.abc import Sequence
from typing import NamedTuple

from xcube.procedural.families.draw import SIDES, THIN, Draw, mirrored, part_labels
from xcube.procedural.primitives import cuboid, prism, rod
from xcube.procedural.solids import Difference, Solid, union

BODY, CABIN, WINDOW, WHEEL, LIGHT, TRIM = part_labels("car")

GLASS = 0.018  # depth by which windows are set into the cabin
Point = tuple[float, float]


class CarSizes(NamedTuple):
    """Sizes that the parts of a car share."""

    length: float  # half length
    width: float  # half width
    sill: float  # underside of the body
    belt: float  # lower edge of the windows
    roof: float
    wheel: float  # wheel radius
    axles: tuple[float, ...]  # x of each axle


def draw_sizes(
    draw: Draw, length: Point, width: Point, belt: Point, cabin: Point, wheel: Point = (0.066, 0.082)
) -> CarSizes:
    """Draw the sizes of a car from ranges: `belt` is measured from the sill, `cabin` from the belt."""
    a, r = draw.between(*length), draw.between(*wheel)
    sill = r * draw.between(0.75, 1.05)
    top = max(sill + draw.between(*belt), 2 * r + 0.085)  # the hood is above the wheels
    front, rear = a * draw.between(0.58, 0.68), -a * draw.between(0.55, 0.66)
    return CarSizes(a, draw.between(*width), sill, top, top + draw.between(*cabin), r, (front, rear))


def lower_body(p: CarSizes, top: Sequence[Point], label: int = BODY) -> Solid:
    """Make the lower body from the upper line of its side view, front to rear, and cut out the wheel arches."""
    outline = [(-p.length + 0.015, p.sill), (p.length - 0.015, p.sill), *top]
    body = prism(outline, "y", -p.width, p.width, label)
    arches = [
        rod((x, s * (p.width - 0.055), p.wheel), (x, s * (p.width + 1), p.wheel), p.wheel + 0.014, None, BODY)
        for x in p.axles
        for s in SIDES
    ]
    return Difference(body, union(arches))


def wheels_of(p: CarSizes, wide: float = 0.07) -> list[Solid]:
    """Make the wheels, of a given width, and their axles."""
    parts: list[Solid] = []
    for x in p.axles:
        for s in SIDES:
            inner, outer = s * (p.width - wide), s * (p.width + 0.006)
            parts.append(rod((x, inner, p.wheel), (x, outer, p.wheel), p.wheel, None, WHEEL))
        parts.append(rod((x, -p.width + 0.02, p.wheel), (x, p.width - 0.02, p.wheel), 0.03, None, WHEEL))
    return parts


def cabin_on(p: CarSizes, foot: Point, roof: Point, *, pillars: Sequence[float] = (), tuck: float = 0.03) -> Solid:
    """Make the cabin from (rear, front) at its foot and at its roof, narrower there by `tuck`, and cut its windows."""
    low, high, wide = p.belt - 0.03, p.roof, p.width - 0.012
    side = prism([(foot[0], low), (foot[1], low), (roof[1], high), (roof[0], high)], "y", -wide, wide, CABIN)
    ends = [(-wide, low), (wide, low), (wide - tuck, high), (-wide + tuck, high)]
    cabin = side & prism(ends, "x", foot[0] - 0.01, foot[1] + 0.01, CABIN)
    return Difference(cabin, union(_glass(p, foot, roof, pillars, tuck)))


def _glass(p: CarSizes, foot: Point, roof: Point, pillars: Sequence[float], tuck: float) -> list[Solid]:
    """Cutters for the side windows between the pillars, the windshield and the rear window."""
    low, high = p.belt + 0.012, p.roof - 0.03
    t0, t1 = ((z - p.belt + 0.03) / (p.roof - p.belt + 0.03) for z in (low, high))
    rear = [foot[0] + (roof[0] - foot[0]) * t for t in (t0, t1)]
    front = [foot[1] + (roof[1] - foot[1]) * t for t in (t0, t1)]
    window: Solid = prism(
        [(rear[0] + 0.04, low), (front[0] - 0.045, low), (front[1] - 0.035, high), (rear[1] + 0.035, high)],
        "y",
        -1,
        1,
        WINDOW,
    )
    posts = [cuboid((x - 0.018, -2, -1), (x + 0.018, 2, 2), WINDOW) for x in pillars]
    if posts:
        window = Difference(window, union(posts))
    inner = p.width - 0.012 - GLASS
    section = [(-inner, p.belt - 0.03), (inner, p.belt - 0.03), (inner - tuck, p.roof), (-inner + tuck, p.roof)]
    window = Difference(window, prism(section, "x", -2, 2, WINDOW))
    wide = p.width - 0.05 - tuck / 2
    panes = [
        prism(_strip((front[0], low), (front[1], high)), "y", -wide, wide, WINDOW),
        prism(_strip((rear[1], high), (rear[0], low)), "y", -wide, wide, WINDOW),
    ]
    return [window, *panes]


def _strip(a: Point, b: Point) -> list[Point]:
    """A band along the line from a to b, from `GLASS` deep on its inner side to well outside, which is on its left."""
    x, z = b[0] - a[0], b[1] - a[1]
    length = (x * x + z * z) ** 0.5
    nx, nz = z / length, -x / length
    inside, outside = -GLASS, 0.1
    return [
        (a[0] + nx * inside, a[1] + nz * inside),
        (a[0] + nx * outside, a[1] + nz * outside),
        (b[0] + nx * outside, b[1] + nz * outside),
        (b[0] + nx * inside, b[1] + nz * inside),
    ]


def lights_of(p: CarSizes, z: float) -> list[Solid]:
    """Make the head and tail lights at the corners."""
    parts: list[Solid] = []
    for x in (p.length - 0.045, -p.length - 0.008):
        for s in SIDES:
            low, high = sorted((s * (p.width - 0.09), s * (p.width - 0.015)))
            parts.append(cuboid((x, low, z - 0.028), (x + THIN, high, z + 0.028), LIGHT))
    return parts


def _bumpers(p: CarSizes) -> list[Solid]:
    low, high = p.sill + 0.005, p.sill + 0.005 + THIN
    return [
        cuboid((x, -p.width + 0.01, low), (x + 0.05, p.width - 0.01, high), TRIM, radius=0.012)
        for x in (p.length - 0.035, -p.length - 0.015)
    ]


def extras_of(draw: Draw, p: CarSizes, roof: Point) -> list[Solid]:
    """Add bumpers, and roof rails or a sign on the roof, at random."""
    parts: list[Solid] = []
    if draw.chance(0.6):
        parts += _bumpers(p)
    if draw.chance(0.15) and roof[1] - roof[0] > 0.2:
        long = (roof[0] + 0.03, roof[1] - 0.03)
        rail = p.width - 0.075
        parts += mirrored(
            lambda s: cuboid(
                (long[0], s * rail - THIN / 2, p.roof - 0.02), (long[1], s * rail + THIN / 2, p.roof + 0.022), TRIM
            )
        )
    elif draw.chance(0.1):
        x = (roof[0] + roof[1]) / 2
        parts.append(cuboid((x - 0.03, -0.08, p.roof - 0.01), (x + 0.03, 0.08, p.roof + 0.045), TRIM, radius=0.01))
    return parts


def upper_line(p: CarSizes, nose: float, scuttle: float, tail: float, deck: float) -> list[Point]:
    """Return the upper line of a body, front to rear: nose, scuttle (rear end of the hood), rear deck and tail."""
    a = p.length
    return [
        (a, p.sill + 0.03),
        (a, nose - 0.02),
        (a - 0.03, nose),
        (scuttle, p.belt),
        (deck, p.belt),
        (-a + 0.02, tail),
        (-a, tail - 0.02),
        (-a, p.sill + 0.03),
    ]
