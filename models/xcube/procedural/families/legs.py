"""Short legs of beds and cabinets."""

from xcube.procedural.families.draw import SIDES, THIN, Draw, mirrored
from xcube.procedural.primitives import Lathe, cuboid, rod
from xcube.procedural.solids import Solid


def short_legs(draw: Draw, ends: tuple[float, float], side: float, high: float, label: int) -> list[Solid]:
    """Make legs at two x and at y = side and -side: blocks, cones, turned legs, panels or runners.

    Args:
        draw: Random choices.
        ends: x of the rear and of the front legs.
        side: y of the left legs.
        high: Height of what stands on them. They end 0.01 above it.
        label: Label of the legs.
    """
    kind = draw.pick(("block", "cone", "turned", "panel", "runner"), (0.4, 0.28, 0.14, 0.1, 0.08))
    r, end = draw.between(THIN / 2, 0.042), high + 0.01
    if kind == "runner":
        return mirrored(lambda s: cuboid((ends[0] - r, s * side - r, 0), (ends[1] + r, s * side + r, end), label))
    if kind == "panel":
        return [cuboid((x - r, -side - r, 0), (x + r, side + r, end), label) for x in ends]
    parts: list[Solid] = []
    splay = draw.between(0.0, 0.03)
    for x, t in zip(ends, (-1.0, 1.0), strict=True):
        for s in SIDES:
            y = s * side
            if kind == "block":
                parts.append(cuboid((x - r, y - r, 0), (x + r, y + r, end), label))
            elif kind == "cone":
                parts.append(rod((x + t * splay, s * (side + splay), 0), (x, y, end), THIN / 2, r, label))
            else:
                thin, wide = THIN / 2, max(r, 0.036)
                profile = ((thin, 0.0), (wide, 0.5 * high), (thin, 0.8 * high), (wide, end))
                parts.append(Lathe(profile, part=label).moved(x, y))
    return parts
