"""Cars, vans, pickups, buses and trucks, with the front along x; `car_parts.py` has the parts."""

from xcube.procedural.families.car_parts import (
    CarSizes,
    cabin_on,
    draw_sizes,
    extras_of,
    lights_of,
    lower_body,
    upper_line,
    wheels_of,
)
from xcube.procedural.families.draw import THIN, Draw, mirrored, part_labels
from xcube.procedural.primitives import cuboid, prism, rod
from xcube.procedural.solids import Solid, union

BODY, CABIN, WINDOW, WHEEL, LIGHT, TRIM = part_labels("car")

# Kinds of vehicles, and their length in meters.
METERS = {
    "sedan": 4.7,
    "hatchback": 4.1,
    "suv": 4.7,
    "van": 5.2,
    "pickup": 5.3,
    "sports": 4.4,
    "bus": 11.5,
    "truck": 8.0,
}


def car(draw: Draw) -> Solid:
    """Make a vehicle of a random kind."""
    return vehicle(draw, draw.pick(tuple(METERS), (0.22, 0.17, 0.17, 0.12, 0.1, 0.1, 0.06, 0.06)))


def vehicle(draw: Draw, kind: str) -> Solid:
    """Make a vehicle of a kind among `METERS`."""
    makers = {
        "sedan": _sedan,
        "hatchback": _hatchback,
        "suv": _suv,
        "van": _van,
        "pickup": _pickup,
        "sports": _sports,
        "bus": _bus,
        "truck": _truck,
    }
    draw.note(type=kind)
    return union(makers[kind](draw))


def _sedan(draw: Draw) -> list[Solid]:
    p = draw_sizes(draw, (0.42, 0.455), (0.16, 0.195), (0.105, 0.135), (0.085, 0.115))
    scuttle, deck = draw.between(0.14, 0.2), -draw.between(0.24, 0.31)
    roof = (deck + draw.between(0.07, 0.13), scuttle - draw.between(0.1, 0.16))
    body = lower_body(
        p, upper_line(p, p.belt - draw.between(0.015, 0.04), scuttle, p.belt - draw.between(0, 0.02), deck)
    )
    cabin = cabin_on(p, (deck, scuttle), roof, pillars=(draw.between(-0.08, -0.03),))
    return [body, cabin, *wheels_of(p), *lights_of(p, p.belt - 0.055), *extras_of(draw, p, roof)]


def _hatchback(draw: Draw) -> list[Solid]:
    p = draw_sizes(draw, (0.36, 0.43), (0.165, 0.2), (0.115, 0.15), (0.1, 0.14))
    scuttle, rear = p.length * draw.between(0.42, 0.55), -p.length + draw.between(0.005, 0.03)
    roof = (rear + draw.between(0.02, 0.12), scuttle - draw.between(0.1, 0.15))
    body = lower_body(p, upper_line(p, p.belt - draw.between(0.02, 0.05), scuttle, p.belt, rear + 0.03))
    cabin = cabin_on(p, (rear, scuttle), roof, pillars=(draw.between(-0.08, 0.0),))
    return [body, cabin, *wheels_of(p), *lights_of(p, p.belt - 0.06), *extras_of(draw, p, roof)]


def _suv(draw: Draw) -> list[Solid]:
    p = draw_sizes(draw, (0.4, 0.455), (0.175, 0.21), (0.14, 0.175), (0.11, 0.14), (0.085, 0.105))
    scuttle, rear = p.length * draw.between(0.42, 0.52), -p.length + draw.between(0.005, 0.02)
    roof = (rear + draw.between(0.01, 0.06), scuttle - draw.between(0.06, 0.13))
    body = lower_body(p, upper_line(p, p.belt - draw.between(0.005, 0.03), scuttle, p.belt, rear + 0.03))
    cabin = cabin_on(p, (rear, scuttle), roof, pillars=(-0.1, draw.between(0.0, 0.06)), tuck=0.022)
    spare = [
        rod((-p.length - 0.02, 0, p.belt - 0.03), (-p.length + 0.035, 0, p.belt - 0.03), p.wheel * 0.9, None, WHEEL)
    ]
    parts = [body, cabin, *wheels_of(p, 0.08), *lights_of(p, p.belt - 0.06), *extras_of(draw, p, roof)]
    return parts + (spare if p.length < 0.43 and draw.chance(0.35) else [])


def _van(draw: Draw) -> list[Solid]:
    p = draw_sizes(draw, (0.4, 0.455), (0.17, 0.2), (0.15, 0.18), (0.15, 0.2), (0.068, 0.08))
    nose, glazed = draw.between(0.02, 0.12), draw.chance(0.5)
    scuttle, rear = p.length - nose, -p.length + 0.005
    roof = (rear + 0.01, scuttle - draw.between(0.07, 0.13))
    body = lower_body(p, upper_line(p, p.belt - draw.between(0.02, 0.05), scuttle, p.belt, rear + 0.03))
    pillars = (-0.24, -0.08, 0.1) if glazed else ()
    parts = [body, cabin_on(p, (rear, scuttle), roof, pillars=pillars, tuck=0.012)]
    if not glazed:  # a closed box behind the driver
        parts.append(
            cuboid((rear, -p.width + 0.006, p.belt - 0.03), (0.12, p.width - 0.006, p.roof), CABIN, radius=0.015)
        )
    return [*parts, *wheels_of(p), *lights_of(p, p.belt - 0.08), *extras_of(draw, p, roof)]


def _pickup(draw: Draw) -> list[Solid]:
    p = draw_sizes(draw, (0.43, 0.455), (0.17, 0.2), (0.125, 0.155), (0.1, 0.125), (0.085, 0.1))
    scuttle, rear = draw.between(0.17, 0.23), -draw.between(0.02, 0.14)
    roof = (rear + draw.between(0.0, 0.03), scuttle - draw.between(0.08, 0.13))
    body = lower_body(p, upper_line(p, p.belt - draw.between(0.01, 0.03), scuttle, p.belt, -p.length + 0.04))
    bed = cuboid(
        (-p.length + THIN, -p.width + THIN, p.belt - draw.between(0.06, 0.085)), (rear - 0.04, p.width - THIN, 1), BODY
    )
    cabin = cabin_on(p, (rear, scuttle), roof, pillars=(0.06,) if rear < -0.08 else ())
    return [body - bed, cabin, *wheels_of(p, 0.08), *lights_of(p, p.belt - 0.06), *extras_of(draw, p, roof)]


def _sports(draw: Draw) -> list[Solid]:
    p = draw_sizes(draw, (0.42, 0.455), (0.18, 0.21), (0.085, 0.11), (0.075, 0.09), (0.075, 0.09))
    scuttle, deck = draw.between(0.08, 0.16), -p.length + draw.between(0.05, 0.16)
    roof = (deck + draw.between(0.14, 0.24), scuttle - draw.between(0.12, 0.18))
    body = lower_body(p, upper_line(p, p.belt - draw.between(0.03, 0.05), scuttle, p.belt - 0.005, deck))
    parts = [body, *wheels_of(p, 0.085), *lights_of(p, p.belt - 0.05)]
    roofless = draw.chance(0.25)
    draw.note(roof=not roofless)
    if roofless:  # a convertible, with a windshield frame and seats
        opening = cuboid((deck + 0.12, -p.width + 0.06, p.belt - 0.05), (scuttle - 0.09, p.width - 0.06, 1), TRIM)
        screen = prism(
            [
                (scuttle - 0.03, p.belt - 0.02),
                (scuttle + 0.035, p.belt - 0.02),
                (scuttle - 0.03, p.belt + 0.07),
                (scuttle - 0.085, p.belt + 0.07),
            ],
            "y",
            -p.width + 0.03,
            p.width - 0.03,
            WINDOW,
        )
        seats = mirrored(
            lambda s: cuboid(
                (deck + 0.16, s * 0.08 - 0.04, p.belt - 0.06),
                (deck + 0.22, s * 0.08 + 0.04, p.belt + 0.055),
                CABIN,
                radius=0.015,
            )
        )
        return [body - opening, *parts[1:], screen, *seats]
    parts.append(cabin_on(p, (deck, scuttle), roof, tuck=0.045))
    if draw.chance(0.4):
        z, x = p.belt + draw.between(0.05, 0.075), -p.length + 0.005
        parts.append(cuboid((x, -p.width + 0.02, z - THIN / 2), (x + 0.08, p.width - 0.02, z + THIN / 2), TRIM))
        parts += mirrored(
            lambda s: cuboid((x + 0.01, s * 0.1 - THIN / 2, p.belt - 0.06), (x + 0.065, s * 0.1 + THIN / 2, z), TRIM)
        )
    return parts


def _bus(draw: Draw) -> list[Solid]:
    p = draw_sizes(draw, (0.445, 0.46), (0.105, 0.13), (0.085, 0.11), (0.11, 0.14), (0.05, 0.06))
    a = p.length
    body = lower_body(p, [(a, p.sill), (a, p.belt), (-a, p.belt)])
    roof = (-a + 0.005, a - draw.between(0.01, 0.05))
    pillars = [-0.3 + 0.15 * i + draw.between(-0.01, 0.01) for i in range(5)]
    cabin = cabin_on(p, (-a, a), roof, pillars=pillars, tuck=0.006)
    parts = [body, cabin, *wheels_of(p, 0.06), *lights_of(p, p.belt - 0.045)]
    if draw.chance(0.5):
        x = draw.between(-0.3, 0.0)
        parts.append(cuboid((x, -0.07, p.roof - 0.02), (x + 0.25, 0.07, p.roof + 0.035), TRIM, radius=0.01))
    return parts


def _truck(draw: Draw) -> list[Solid]:
    a, width, wheel = draw.between(0.43, 0.455), draw.between(0.12, 0.15), draw.between(0.055, 0.065)
    split = a - draw.between(0.2, 0.26)
    p = CarSizes(
        a, width, wheel + 0.01, wheel + 0.12, wheel + draw.between(0.22, 0.26), wheel, (a - 0.1, -a + 0.22, -a + 0.085)
    )
    chassis = cuboid((-a, -width + 0.05, wheel), (a - 0.05, width - 0.05, wheel + THIN), TRIM)
    front = p._replace(axles=(p.axles[0],))
    body = lower_body(front, [(a, p.sill), (a, p.belt), (split + 0.02, p.belt), (split + 0.02, p.sill)][1:])
    body = body & cuboid((split + 0.02, -1, -1), (1, 1, 2), BODY)
    cabin = cabin_on(p, (split + 0.02, a), (split + 0.025, a - draw.between(0.01, 0.05)), tuck=0.01)
    parts = [chassis, body, cabin, *wheels_of(p, 0.06), *lights_of(p._replace(length=a), p.belt - 0.05)[:2]]
    load, high = draw.pick(("box", "flat", "tank")), p.roof + draw.between(-0.02, 0.07)
    draw.note(load=load)
    floor = wheel + THIN - 0.012
    if load == "box":
        parts.append(cuboid((-a, -width, floor + 0.03), (split - 0.02, width, high), CABIN))
        parts.append(cuboid((-a + 0.01, -width + 0.04, floor), (split - 0.03, width - 0.04, floor + 0.06), TRIM))
    elif load == "flat":
        parts.append(cuboid((-a, -width, floor + 0.02), (split - 0.02, width, floor + 0.02 + THIN), CABIN))
        parts.append(cuboid((split - 0.02 - THIN, -width, floor + 0.02), (split - 0.02, width, floor + 0.16), CABIN))
        parts.append(cuboid((-a + 0.012, -width + 0.06, floor), (split - 0.03, width - 0.06, floor + 0.03), TRIM))
    else:
        r = width * 0.9
        parts.append(rod((-a, 0, floor + r - 0.01), (split - 0.02, 0, floor + r - 0.01), r, None, CABIN))
    return parts
