"""What the families share: random choices, names of parts, and how thick a part is at least.

Families build in a frame whose x axis points to the front, y to the left and z up, with the floor at zero, in units of
the box that shapes fill.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from xcube.procedural.poses import Triple
from xcube.procedural.solids import Solid

T = TypeVar("T")

THIN = 0.053  # of the box: the least thickness of a part, 3.4 voxels of 64
GAP = 0.06  # the least gap between slats: voxels of either side take a part of it

SIDES = (1.0, -1.0)  # left and right

# Names of parts. Their labels count from 1 through all families, so that one network can learn them all.
PARTS: dict[str, tuple[str, ...]] = {
    "chair": ("seat", "back", "leg", "arm", "stretcher", "base"),
    "table": ("top", "leg", "base", "shelf", "drawer", "apron"),
    "sofa": ("frame", "back", "arm", "leg", "cushion"),
    "lamp": ("shade", "pole", "base", "bulb"),
    "airplane": ("fuselage", "wing", "tail", "engine", "canopy", "gear"),
    "car": ("body", "cabin", "window", "wheel", "light", "trim"),
}


def labels(family: str) -> range:
    """Labels of the parts of a family, in the order of `PARTS`."""
    before = 1
    for name, parts in PARTS.items():
        if name == family:
            return range(before, before + len(parts))
        before += len(parts)
    raise ValueError(f"family must be one of {sorted(PARTS)}, got {family!r}")


class Draw:
    """Random choices. Equal seeds make equal choices on every machine."""

    def __init__(self, *seed: int) -> None:
        self.generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))

    def between(self, low: float, high: float) -> float:
        """A number."""
        return low + (high - low) * float(self.generator.random())

    def count(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return int(self.generator.integers(low, high, endpoint=True))

    def chance(self, probability: float) -> bool:
        """Whether something happens."""
        return float(self.generator.random()) < probability

    def pick(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """One of some options."""
        if weights is None:
            return options[self.count(0, len(options) - 1)]
        at, total = self.between(0, sum(weights)), 0.0
        for option, weight in zip(options, weights, strict=True):
            total += weight
            if at < total:
                return option
        return options[-1]


def mirrored(make: Callable[[float], Solid]) -> list[Solid]:
    """What a function makes on the left and on the right."""
    return [make(side) for side in SIDES]


def spread(count: int, low: float, high: float) -> list[float]:
    """Numbers at equal steps from low to high."""
    return [low + (high - low) * i / (count - 1) for i in range(count)] if count > 1 else [(low + high) / 2]


def arc(center: tuple[float, float], radius: float, start: float, end: float, steps: int) -> list[tuple[float, float]]:
    """Points on a circle from angle to angle, in degrees."""
    angles = np.radians(np.linspace(start, end, steps + 1))
    return [(center[0] + radius * float(np.cos(a)), center[1] + radius * float(np.sin(a))) for a in angles]


def ring_sector(radius: float, width: float, start: float, end: float, steps: int = 10) -> list[tuple[float, float]]:
    """A polygon: the part of a ring between two angles, in degrees, `width` inwards from a radius."""
    outer = arc((0.0, 0.0), radius, start, end, steps)
    return outer + arc((0.0, 0.0), radius - width, end, start, steps)


def ellipse(a: float, b: float, power: float = 2.0, steps: int = 24) -> list[tuple[float, float]]:
    """A polygon: an ellipse of two half axes; a higher power makes it squarer."""
    points = arc((0.0, 0.0), 1.0, 0, 360, steps)[:-1]
    return [
        (a * float(np.sign(x) * abs(x) ** (2 / power)), b * float(np.sign(y) * abs(y) ** (2 / power)))
        for x, y in points
    ]


def between(a: Triple, b: Triple, t: float) -> Triple:
    """The point a fraction of the way from a to b."""
    x, y, z = (p + (q - p) * t for p, q in zip(a, b, strict=True))
    return x, y, z
