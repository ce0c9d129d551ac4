"""Backs and arms of chairs."""

from itertools import pairwise
from typing import NamedTuple

from xcube.procedural.families.draw import GAP, THIN, Draw, ellipse, evenly_spaced, mirrored, part_labels, ring_sector
from xcube.procedural.primitives import capsule, cuboid, prism, rod
from xcube.procedural.solids import Solid, Union, union

SEAT, BACK, LEG, ARM, STRETCHER, BASE = part_labels("chair")


# What the kinds of backs look like.
BACKS = {
    "panel": "solid",
    "arched": "arched",
    "pad": "solid",
    "slats": "slatted",
    "ladder": "slatted",
    "spindles": "slatted",
    "frame": "open",
    "curved": "round",
}


class ChairSizes(NamedTuple):
    """Sizes that the parts of a chair share."""

    depth: float  # half depth of the seat
    width: float  # half width of the seat
    low: float  # underside of the seat
    high: float  # upper side of the seat
    top: float  # top of the back


def back(draw: Draw, f: ChairSizes) -> list[Solid]:
    """Make the back: built upright at the rear of the seat, then tilted around its rear edge."""
    kind = draw.pick(
        ("panel", "arched", "slats", "ladder", "frame", "curved", "spindles", "pad"),
        (0.2, 0.13, 0.15, 0.13, 0.09, 0.14, 0.06, 0.1),
    )
    draw.note(back=BACKS[kind])
    if kind == "curved":
        return [_curved_back(draw, f)]
    thick = draw.between(THIN, 0.075)
    # It begins inside of the seat, deep enough that tilting leaves no gap.
    low, x = f.low + 0.005, -f.depth
    builders = {
        "panel": _panel_back,
        "arched": _arched_back,
        "slats": _slats,
        "ladder": _ladder,
        "frame": _framed_back,
        "spindles": _spindles,
        "pad": _pad,
    }
    upright = Union(tuple(builders[kind](draw, f, thick, low)))
    lean = draw.pick((0.0, draw.between(3, 11)))
    return [upright.turned("y", -lean).moved(x, 0, low)]


def _panel_back(draw: Draw, f: ChairSizes, thick: float, low: float) -> list[Solid]:
    width = f.width * draw.between(0.8, 1)
    return [cuboid((0, -width, 0), (thick, width, f.top - low), BACK, radius=draw.pick((0.0, 0.012, 0.024)))]


def _arched_back(draw: Draw, f: ChairSizes, thick: float, low: float) -> list[Solid]:
    width, high = f.width * draw.between(0.75, 1), f.top - low
    arch = ellipse(width, draw.between(0.3, 0.95) * high, draw.between(2, 3.2), 32)
    shoulder = high - max(z for _, z in arch)
    outline = [(-width, 0.0), (width, 0.0)] + [(y, z + shoulder) for y, z in arch if z >= 0]
    panel: Solid = prism(outline, "x", 0, thick, BACK)
    if draw.chance(0.35) and width > 0.17 and high > 0.3:
        a, b = width - 0.065, high * 0.22
        hole = [(y, z + high * 0.6) for y, z in ellipse(a, b, draw.between(2, 4))]
        panel = panel - prism(hole, "x", -1, 1, BACK)
    return [panel]


def _posts(f: ChairSizes, thick: float, low: float) -> list[Solid]:
    width, high = f.width, f.top - low
    return mirrored(
        lambda s: cuboid((0, s * width - THIN * (s > 0), 0), (thick, s * width + THIN * (s < 0), high), BACK)
    )


def _slats(draw: Draw, f: ChairSizes, thick: float, low: float) -> list[Solid]:
    high, rail = f.top - low, draw.between(THIN, 0.1)
    parts = [*_posts(f, thick, low), cuboid((0, -f.width, high - rail), (thick, f.width, high), BACK)]
    room = 2 * (f.width - THIN)
    count = draw.count(1, max(int((room - GAP) / (THIN + GAP)), 1))
    wide = min(draw.between(THIN, 0.12), (room - GAP) / count - GAP)
    reach = f.width - THIN - GAP - wide / 2
    for y in evenly_spaced(count, -reach, reach):
        parts.append(cuboid((0, y - wide / 2, 0.005), (thick, y + wide / 2, high - 0.01), BACK))
    return parts


def _ladder(draw: Draw, f: ChairSizes, thick: float, low: float) -> list[Solid]:
    high = f.top - low
    start = f.high - low + GAP
    count = draw.count(1, max(int((high - start + GAP) / (THIN + GAP)), 1))
    tall = min(draw.between(THIN, 0.12), (high - start + GAP) / count - GAP)
    rails = evenly_spaced(count, start + tall / 2, high - tall / 2) if count > 1 else [high - tall / 2]
    bars = [cuboid((0, -f.width + 0.01, z - tall / 2), (thick, f.width - 0.01, z + tall / 2), BACK) for z in rails]
    return [*_posts(f, thick, low), *bars]


def _framed_back(draw: Draw, f: ChairSizes, thick: float, low: float) -> list[Solid]:
    high, rail = f.top - low, draw.between(THIN, 0.08)
    sill = f.high - low + draw.between(0.0, 0.08)
    opening = cuboid((-1, -f.width + rail, sill + rail), (1, f.width - rail, max(high - rail, sill + rail + GAP)), BACK)
    return [cuboid((0, -f.width, 0), (thick, f.width, high), BACK) - opening]


def _spindles(draw: Draw, f: ChairSizes, thick: float, low: float) -> list[Solid]:
    high, count = f.top - low, draw.count(3, 5)
    fan = draw.between(0.8, 1.0)
    rail = draw.between(THIN, 0.09)
    width = f.width * draw.between(0.95, 1.08)
    parts: list[Solid] = [cuboid((0, -width, high - rail), (thick, width, high), BACK, radius=0.02)]
    reach = f.width - 0.04
    for y in evenly_spaced(count, -reach, reach):
        end = (thick / 2, y, high - 0.03)
        parts.append(rod((thick / 2, y * fan, 0.0), end, THIN / 2, THIN / 2, BACK))
    return parts


def _pad(draw: Draw, f: ChairSizes, thick: float, low: float) -> list[Solid]:
    """An upholstered pad on one or two bars."""
    high, width = f.top - low, f.width * draw.between(0.75, 1)
    tall = draw.between(0.35, 0.65) * high
    bars = draw.pick(((0.0,), (-0.5 * width, 0.5 * width)))
    parts: list[Solid] = [cuboid((0, y - 0.035, 0), (THIN, y + 0.035, high - tall / 2), BACK) for y in bars]
    parts.append(cuboid((0, -width, high - tall), (thick + 0.02, width, high), BACK, radius=0.025))
    return parts


def _curved_back(draw: Draw, f: ChairSizes) -> Solid:
    """A ring sector around the rear of the seat: solid or with an opening, level or sloping down to the front."""
    span, thick = draw.between(70, 105), draw.between(THIN, 0.07)
    radius = f.width
    outline = ring_sector(radius, thick, 180 - span, 180 + span, 14)
    shift = -f.depth + radius
    shell: Solid = prism([(x + shift, y) for x, y in outline], "z", f.low + 0.005, f.top, BACK)
    if draw.chance(0.5):
        gap = f.high + draw.between(0.05, 0.12)
        sill = max(gap + 0.04, f.top - draw.between(0.12, 0.25))
        window = cuboid((-1, -f.width + 0.12, gap), (1, f.width - 0.12, sill), BACK)
        shell = shell - window
    if draw.chance(0.5):
        drop = draw.between(0.5, 1.0) * (f.top - f.high - 0.1)
        front, rear = shift + radius, -f.depth
        shell = shell - prism(
            [(rear + 0.06, f.top + 0.01), (front, f.top - drop), (front, f.top + 0.01)], "y", -1, 1, BACK
        )
    return shell


def arms(draw: Draw, f: ChairSizes) -> list[Solid]:
    """Make two armrests: on posts, as panels or as bent tubes."""
    kind = draw.pick(("posts", "panel", "loop"), (0.5, 0.25, 0.25))
    high = min(f.high + draw.between(0.13, 0.22), f.top - 0.02)
    front = f.depth * draw.between(0.5, 0.95)
    wide = draw.between(THIN, 0.075)

    def side(s: float) -> Solid:
        low, far = sorted((s * (f.width - 0.02), s * (f.width - 0.02 + wide)))
        if kind == "panel":
            return cuboid((-f.depth, low, f.low + 0.005), (front, far, high), ARM, radius=0.012)
        y = (low + far) / 2
        if kind == "loop":
            corners = [(front, y, f.low + 0.02), (front - 0.02, y, high - 0.03), (-f.depth + 0.01, y, high - 0.03)]
            corners.append((-f.depth + 0.01, y, f.low + 0.02))
            return union([capsule(a, b, THIN / 2, ARM) for a, b in pairwise(corners)])
        rest = cuboid((-f.depth - 0.01, low, high - THIN), (front + 0.02, far, high), ARM)
        posts = [cuboid((x, low, f.low + 0.005), (x + THIN, far, high - 0.01), ARM) for x in (-f.depth, front - THIN)]
        return union([rest, *posts])

    return mirrored(side)
