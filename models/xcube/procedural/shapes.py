"""Shapes by rule: chairs, tables, sofas, lamps, airplanes and cars, made of parts with labels.

A family and a seed make a shape, the same on every machine, so a data set is a list of names such as "chair-000123".
Shapes stand upright with z up and look along x. They fit into the box of edge 1 and keep the margin of boxes of the
levels (16, 64) or (16, 128, 512). No part is thinner than three voxels of 64.

N voxels.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from sparsevox import checks
from sparsevox.shapes import Voxels
from xcube.data.hierarchy import Box
from xcube.data.sources import Source
from xcube.procedural.families.airplanes import airplane
from xcube.procedural.families.cars import car
from xcube.procedural.families.chairs import chair
from xcube.procedural.families.draw import PARTS, Draw, labels
from xcube.procedural.families.lamps import lamp
from xcube.procedural.families.sofas import sofa
from xcube.procedural.families.tables import table
from xcube.procedural.poses import Bounds, Pose
from xcube.procedural.solids import Solid
from xcube.procedural.surface import voxels_of

_MAKERS: Mapping[str, Callable[[Draw], Solid]] = MappingProxyType(
    {"chair": chair, "table": table, "sofa": sofa, "lamp": lamp, "airplane": airplane, "car": car}
)
FAMILIES = tuple(_MAKERS)

# What labels mean. 0 is no part.
LABELS: Mapping[int, str] = MappingProxyType(
    {0: "none"} | {i: f"{f}.{name}" for f in FAMILIES for i, name in zip(labels(f), PARTS[f], strict=True)}
)

# Seeds of each split. A data set takes the first of each, by these shares.
SEEDS: Mapping[str, range] = MappingProxyType(
    {"train": range(800_000), "val": range(800_000, 900_000), "test": range(900_000, 1_000_000)}
)
SHARES: Mapping[str, float] = MappingProxyType({"val": 0.05, "test": 0.05})

LIMIT = 0.46  # how far a shape reaches from the middle of the box, along each axis

Counts = int | Mapping[str, int]


@dataclass(frozen=True)
class PartShape:
    """A shape and where it comes from.

    family: One of `FAMILIES`.
    seed: Which of the family.
    solid: In the box of edge 1 around the origin; its labels are those of `LABELS`.
    """

    family: str
    seed: int
    solid: Solid

    @property
    def name(self) -> str:
        """Family and seed: "chair-000123"."""
        return f"{self.family}-{self.seed:06}"

    @property
    def split(self) -> str:
        """To which split the seed belongs."""
        return split_of(self.seed)

    @property
    def labels(self) -> dict[int, str]:
        """What the labels of the family mean."""
        return {label: LABELS[label] for label in labels(self.family)}


def make_shape(family: str, seed: int) -> PartShape:
    """The shape of a family that a seed makes.

    Raises:
        TypeError: If `seed` is no integer.
        ValueError: If the family is unknown, or the seed is not between 0 and 999,999.
    """
    if family not in _MAKERS:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    split_of(seed)
    draw = Draw(int.from_bytes(family.encode(), "big"), seed)
    return PartShape(family, seed, _centered(_MAKERS[family](draw)))


def make(name: str, box: Box) -> Voxels:
    """The voxels of a shape, at the finest level of a box, from its name, such as "chair-000123".

    In a box whose shortest edge is not 1, the shape is larger or smaller in proportion.

    Returns:
        One grid with "normal", float32 [N, 3], and "label", int64 [N], as `voxels_of` makes them.

    Raises:
        ValueError: If the name is none of a shape.
    """
    found = re.fullmatch(r"([a-z]+)-([0-9]{6})", name)
    if found is None:
        raise ValueError(f"name must be a family, a hyphen and six digits, like 'chair-000123', got {name!r}")
    solid = make_shape(found[1], int(found[2])).solid
    return voxels_of(solid if min(box.size) == 1 else solid.scaled(min(box.size)), box)


def split_of(seed: int) -> str:
    """The split that a seed belongs to.

    Raises:
        TypeError: If `seed` is no integer.
        ValueError: If it is not between 0 and 999,999.
    """
    number = checks.integer("seed", seed)
    for split, seeds in SEEDS.items():
        if number in seeds:
            return split
    raise ValueError(f"seed must be between 0 and 999,999, got {seed}")


def shape_names(counts: Counts) -> list[tuple[str, str]]:
    """Names and splits of a data set.

    Args:
        counts: How many shapes of each family, or of all of them together, which get equally many (the first ones get
            one more where that does not come out even).

    Raises:
        ValueError: If a family is unknown or a count is negative or too large.
    """
    if not isinstance(counts, Mapping):
        total = checks.integer("counts", counts)
        counts = {f: (total + len(FAMILIES) - 1 - i) // len(FAMILIES) for i, f in enumerate(FAMILIES)}
    listed: list[tuple[str, str]] = []
    for family, number in counts.items():
        if family not in _MAKERS:
            raise ValueError(f"counts must be of families among {', '.join(FAMILIES)}, got {family!r}")
        if not 0 <= number <= 800_000:
            raise ValueError(f"counts must be between 0 and 800,000 for each family, got {number} of {family}")
        kept = {split: max(int(number * share), int(number > 2)) for split, share in SHARES.items()}
        kept = {"train": number - sum(kept.values())} | kept
        listed += [(f"{family}-{seed:06}", split) for split, n in kept.items() for seed in SEEDS[split][:n]]
    return listed


def procedural_dataset(counts: Counts, box: Box) -> Iterator[tuple[str, str, Voxels]]:
    """Name, split and voxels of each shape of a data set, made one at a time.

    Raises:
        ValueError: As `shape_names` does.
    """
    return ((name, split, make(name, box)) for name, split in shape_names(counts))


def part_sources(counts: Counts, box: Box) -> list[Source]:
    """The shapes of a data set, as `xcube.data.build` takes them.

    Raises:
        ValueError: As `shape_names` does.
    """
    return [Source(name, partial(make, name, box), split=split) for name, split in shape_names(counts)]


def _centered(solid: Solid) -> Solid:
    """The solid in the middle of the box; smaller, if it is too large, by the little that thickness has to spare."""
    low, high = solid.bounds
    middle = Pose(translation=_negative_middle(solid.bounds))
    factor = min(1.0, *(2 * LIMIT / (b - a) for a, b in zip(low, high, strict=True)))
    return solid.placed(Pose(scale=factor).after(middle))


def _negative_middle(bounds: Bounds) -> tuple[float, float, float]:
    x, y, z = (-(a + b) / 2 for a, b in zip(*bounds, strict=True))
    return x, y, z
