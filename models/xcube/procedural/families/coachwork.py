"""Parts of cars: bodies with wheel arches, cabins with glass, wheels, lights."""

from collections.abc import Sequence
from typing import NamedTuple

from xcube.procedural.families.draw import SIDES, THIN, Draw, labels, mirrored
from xcube.procedural.primitives import block, prism, rod
from xcube.procedural.solids import Difference, Solid, union

BODY, CABIN, WINDOW, WHEEL, LIGHT, TRIM = labels("car")

GLASS = 0.018  # how deep a window lies in the cabin
Point = tuple[float, float]


class Plan(NamedTuple):
    """Sizes that the parts of one car share."""

    length: float  # half
    width: float  # half
    sill: float  # underside of the body
    belt: float  # where the windows begin
    roof: float
    wheel: float  # radius
    axles: tuple[float, ...]  # x of each


def draw_plan(
    draw: Draw, length: Point, width: Point, belt: Point, cabin: Point, wheel: Point = (0.066, 0.082)
) -> Plan:
    """Sizes of a car, each between two numbers; the belt above the sill, the roof above the belt."""
    a, r = draw.between(*length), draw.between(*wheel)
    sill = r * draw.between(0.75, 1.05)
    top = max(sill + draw.between(*belt), 2 * r + 0.085)  # the bonnet is above the wheels
    front, rear = a * draw.between(0.58, 0.68), -a * draw.between(0.55, 0.66)
    return Plan(a, draw.between(*width), sill, top, top + draw.between(*cabin), r, (front, rear))


def lower_body(p: Plan, top: Sequence[Point], label: int = BODY) -> Solid:
    """The lower body: an outline from the side, its upper line given from front to rear, without the wheel arches."""
    outline = [(-p.length + 0.015, p.sill), (p.length - 0.015, p.sill), *top]
    body = prism(outline, "y", -p.width, p.width, label)
    arches = [
        rod((x, s * (p.width - 0.055), p.wheel), (x, s * (p.width + 1), p.wheel), p.wheel + 0.014, None, BODY)
        for x in p.axles
        for s in SIDES
    ]
    return Difference(body, union(arches))


def wheels_of(p: Plan, wide: float = 0.07) -> list[Solid]:
    """Wheels, so wide, and their axles."""
    parts: list[Solid] = []
    for x in p.axles:
        for s in SIDES:
            inner, outer = s * (p.width - wide), s * (p.width + 0.006)
            parts.append(rod((x, inner, p.wheel), (x, outer, p.wheel), p.wheel, None, WHEEL))
        parts.append(rod((x, -p.width + 0.02, p.wheel), (x, p.width - 0.02, p.wheel), 0.03, None, WHEEL))
    return parts


def cabin_on(p: Plan, foot: Point, roof: Point, *, pillars: Sequence[float] = (), tuck: float = 0.03) -> Solid:
    """What stands on the body: from rear to front at foot and roof, narrower toward the roof, with glass."""
    low, high, wide = p.belt - 0.03, p.roof, p.width - 0.012
    side = prism([(foot[0], low), (foot[1], low), (roof[1], high), (roof[0], high)], "y", -wide, wide, CABIN)
    ends = [(-wide, low), (wide, low), (wide - tuck, high), (-wide + tuck, high)]
    cabin = side & prism(ends, "x", foot[0] - 0.01, foot[1] + 0.01, CABIN)
    return Difference(cabin, union(_glass(p, foot, roof, pillars, tuck)))


def _glass(p: Plan, foot: Point, roof: Point, pillars: Sequence[float], tuck: float) -> list[Solid]:
    """Cutters: side windows between the pillars, windscreen and rear window."""
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
    posts = [block((x - 0.018, -2, -1), (x + 0.018, 2, 2), WINDOW) for x in pillars]
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
    """A band from `GLASS` inside to well outside of the line from a to b, whose left is the outside."""
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


def lights_of(p: Plan, z: float) -> list[Solid]:
    """Head and tail lights at the corners."""
    parts: list[Solid] = []
    for x in (p.length - 0.045, -p.length - 0.008):
        for s in SIDES:
            low, high = sorted((s * (p.width - 0.09), s * (p.width - 0.015)))
            parts.append(block((x, low, z - 0.028), (x + THIN, high, z + 0.028), LIGHT))
    return parts


def _bumpers(p: Plan) -> list[Solid]:
    low, high = p.sill + 0.005, p.sill + 0.005 + THIN
    return [
        block((x, -p.width + 0.01, low), (x + 0.05, p.width - 0.01, high), TRIM, radius=0.012)
        for x in (p.length - 0.035, -p.length - 0.015)
    ]


def extras_of(draw: Draw, p: Plan, roof: Point) -> list[Solid]:
    """Bumpers, and what may stand on a roof."""
    parts: list[Solid] = []
    if draw.chance(0.6):
        parts += _bumpers(p)
    if draw.chance(0.15) and roof[1] - roof[0] > 0.2:
        long = (roof[0] + 0.03, roof[1] - 0.03)
        rail = p.width - 0.075
        parts += mirrored(
            lambda s: block(
                (long[0], s * rail - THIN / 2, p.roof - 0.02), (long[1], s * rail + THIN / 2, p.roof + 0.022), TRIM
            )
        )
    elif draw.chance(0.1):
        x = (roof[0] + roof[1]) / 2
        parts.append(block((x - 0.03, -0.08, p.roof - 0.01), (x + 0.03, 0.08, p.roof + 0.045), TRIM, radius=0.01))
    return parts


def upper_line(p: Plan, nose: float, scuttle: float, tail: float, deck: float) -> list[Point]:
    """The upper line of a body: bonnet height at the nose and at the scuttle, belt, deck and tail."""
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
