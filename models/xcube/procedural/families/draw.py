"""Shared by all families: random choices, facts about shapes, names of parts, and the minimum thickness of a part.

Families build shapes with x to the front, y to the left and z up, the floor at z = 0, in units of the edge of the box.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from xcube.procedural.poses import Triple
from xcube.procedural.solids import Solid

T = TypeVar("T")

THIN = 0.053  # minimum thickness of a part: 3.4 voxels at a resolution of 64
GAP = 0.06  # minimum gap between slats, into which the surface voxels of both sides reach

SIDES = (1.0, -1.0)  # left and right

# Names of the parts of each family. Labels are numbered from 1 across families, so that one network can learn all.
PARTS: dict[str, tuple[str, ...]] = {
    "chair": ("seat", "back", "leg", "arm", "stretcher", "base"),
    "table": ("top", "leg", "base", "shelf", "drawer", "apron"),
    "sofa": ("frame", "back", "arm", "leg", "cushion"),
    "lamp": ("shade", "pole", "base", "bulb"),
    "airplane": ("fuselage", "wing", "tail", "engine", "canopy", "gear"),
    "car": ("body", "cabin", "window", "wheel", "light", "trim"),
    "bed": ("frame", "mattress", "board", "leg", "pillow", "blanket"),
    "cabinet": ("body", "door", "drawer", "shelf", "handle", "leg"),
}


def part_labels(family: str) -> range:
    """Return the labels of the parts of a family, in the order of `PARTS`."""
    before = 1
    for name, parts in PARTS.items():
        if name == family:
            return range(before, before + len(parts))
        before += len(parts)
    raise ValueError(f"family must be one of {sorted(PARTS)}, got {family!r}")


class Draw:
    """Random choices from a seed, the same on every machine.

    facts: What the choices say about the shape, such as {"arms": "yes"}; captions are made from it.
    """

    def __init__(self, *seed: int) -> None:
        self.generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
        self.facts: dict[str, str] = {}

    def note(self, **facts: str | bool) -> None:
        """Record facts about the shape."""
        self.facts |= {k: v if isinstance(v, str) else "yes" if v else "no" for k, v in facts.items()}

    def note_size(self, name: str, value: float, small: tuple[str, float], large: tuple[str, float]) -> None:
        """Record a size as one of two words if it is below the first limit, or above the second one, or else not."""
        self.facts.pop(name, None)
        if value < small[1]:
            self.facts[name] = small[0]
        elif value > large[1]:
            self.facts[name] = large[0]

    def between(self, low: float, high: float) -> float:
        """Draw a number from [low, high)."""
        return low + (high - low) * float(self.generator.random())

    def count(self, low: int, high: int) -> int:
        """Draw an integer from [low, high]."""
        return int(self.generator.integers(low, high, endpoint=True))

    def chance(self, probability: float) -> bool:
        """Return True with a probability."""
        return float(self.generator.random()) < probability

    def pick(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """Pick one of several options, with equal or given weights."""
        if weights is None:
            return options[self.count(0, len(options) - 1)]
        at, total = self.between(0, sum(weights)), 0.0
        for option, weight in zip(options, weights, strict=True):
            total += weight
            if at < total:
                return option
        return options[-1]


def mirrored(make: Callable[[float], Solid]) -> list[Solid]:
    """Call a function for the left side, 1.0, and for the right side, -1.0."""
    return [make(side) for side in SIDES]


def evenly_spaced(count: int, low: float, high: float) -> list[float]:
    """Return `count` numbers in equal steps from low to high; a single one is the middle."""
    return [low + (high - low) * i / (count - 1) for i in range(count)] if count > 1 else [(low + high) / 2]


def arc(center: tuple[float, float], radius: float, start: float, end: float, steps: int) -> list[tuple[float, float]]:
    """Return points on a circle from angle to angle, in degrees."""
    angles = np.radians(np.linspace(start, end, steps + 1))
    return [(center[0] + radius * float(np.cos(a)), center[1] + radius * float(np.sin(a))) for a in angles]


def ring_sector(radius: float, width: float, start: float, end: float, steps: int = 10) -> list[tuple[float, float]]:
    """Return the polygon of a ring sector between two angles in degrees, `width` inwards from `radius`."""
    outer = arc((0.0, 0.0), radius, start, end, steps)
    return outer + arc((0.0, 0.0), radius - width, end, start, steps)


def ellipse(a: float, b: float, power: float = 2.0, steps: int = 24) -> list[tuple[float, float]]:
    """Return the polygon of a superellipse with half axes a and b; a higher power makes it squarer."""
    points = arc((0.0, 0.0), 1.0, 0, 360, steps)[:-1]
    return [
        (a * float(np.sign(x) * abs(x) ** (2 / power)), b * float(np.sign(y) * abs(y) ** (2 / power)))
        for x, y in points
    ]


def interpolate(a: Triple, b: Triple, t: float) -> Triple:
    """Interpolate linearly from a (t = 0) to b (t = 1)."""
    x, y, z = (p + (q - p) * t for p, q in zip(a, b, strict=True))
    return x, y, z
