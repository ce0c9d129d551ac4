"""Procedural shapes: chairs, tables, sofas, lamps, airplanes, cars, beds and cabinets, built from labeled parts.

A family and a seed determine a shape on every machine, so a dataset is a list of names such as "chair-000123". Shapes
stand upright with z up and face along x. They fit into a box of edge 1, within the margin of boxes with the levels
(16, 64) or (16, 128, 512). No part is thinner than three voxels at a resolution of 64.

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
from xcube.procedural.families.beds import bed
from xcube.procedural.families.cabinets import cabinet
from xcube.procedural.families.cars import car
from xcube.procedural.families.chairs import chair
from xcube.procedural.families.draw import PARTS, Draw, part_labels
from xcube.procedural.families.lamps import lamp
from xcube.procedural.families.sofas import sofa
from xcube.procedural.families.tables import table
from xcube.procedural.poses import Bounds, Pose
from xcube.procedural.solids import Solid
from xcube.procedural.surface import voxelize_solid

_MAKERS: Mapping[str, Callable[[Draw], Solid]] = MappingProxyType(
    {"chair": chair, "table": table, "sofa": sofa, "lamp": lamp, "airplane": airplane, "car": car}
    | {"bed": bed, "cabinet": cabinet}
)
FAMILIES = tuple(_MAKERS)

# Names of the part labels, over all families. 0 is unused.
LABELS: Mapping[int, str] = MappingProxyType(
    {0: "none"} | {i: f"{f}.{name}" for f in FAMILIES for i, name in zip(part_labels(f), PARTS[f], strict=True)}
)

# Seeds of each split. A dataset takes the first seeds of each, and these fractions of its shapes for val and test.
SEEDS: Mapping[str, range] = MappingProxyType(
    {"train": range(800_000), "val": range(800_000, 900_000), "test": range(900_000, 1_000_000)}
)
SPLIT_FRACTIONS: Mapping[str, float] = MappingProxyType({"val": 0.05, "test": 0.05})

MAX_EXTENT = 0.46  # largest distance of a shape from the center of the box, along each axis

Counts = int | Mapping[str, int]


@dataclass(frozen=True)
class ProceduralShape:
    """A shape with its family and seed.

    family: One of `FAMILIES`.
    seed: Number of the shape within its family.
    solid: The shape, in a box of edge 1 around the origin, with labels of `LABELS`.
    facts: What is known about its parts and sizes, such as {"arms": "yes"}; `captions.FACTS` lists them.
    """

    family: str
    seed: int
    solid: Solid
    facts: Mapping[str, str]

    @property
    def name(self) -> str:
        """Family and seed: "chair-000123"."""
        return f"{self.family}-{self.seed:06}"

    @property
    def split(self) -> str:
        """The split that the seed belongs to."""
        return split_of_seed(self.seed)

    @property
    def labels(self) -> dict[int, str]:
        """Label and name of each part of the family."""
        return {label: LABELS[label] for label in part_labels(self.family)}


def make_shape(family: str, seed: int) -> ProceduralShape:
    """Make the shape of a family that a seed determines.

    Raises:
        TypeError: If `seed` is not an integer.
        ValueError: If the family is unknown, or the seed is not between 0 and 999,999.
    """
    if family not in _MAKERS:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    split_of_seed(seed)
    draw = Draw(int.from_bytes(family.encode(), "big"), seed)
    solid = _centered(_MAKERS[family](draw))
    return ProceduralShape(family, seed, solid, draw.facts)


def shape_voxels(name: str, box: Box) -> Voxels:
    """Voxelize the shape with a name such as "chair-000123" at the finest level of a box.

    The shape is scaled with the shortest edge of the box.

    Returns:
        One grid with "normal", float32 [N, 3], and "label", int64 [N], as `voxelize_solid` returns them.

    Raises:
        ValueError: If the name is not that of a shape.
    """
    found = re.fullmatch(r"([a-z]+)-([0-9]{6})", name)
    if found is None:
        raise ValueError(f"name must be a family, a hyphen and six digits, like 'chair-000123', got {name!r}")
    solid = make_shape(found[1], int(found[2])).solid
    return voxelize_solid(solid if min(box.size) == 1 else solid.scaled(min(box.size)), box)


def split_of_seed(seed: int) -> str:
    """Return the split that a seed belongs to.

    Raises:
        TypeError: If `seed` is not an integer.
        ValueError: If it is not between 0 and 999,999.
    """
    number = checks.integer("seed", seed)
    for split, seeds in SEEDS.items():
        if number in seeds:
            return split
    raise ValueError(f"seed must be between 0 and 999,999, got {seed}")


def shape_names(counts: Counts) -> list[tuple[str, str]]:
    """List the names and splits of the shapes of a dataset.

    Args:
        counts: Number of shapes per family, or in total. A total is divided evenly; the first families get what is
            left over.

    Raises:
        ValueError: If a family is unknown or a count is negative or too large.
    """
    if not isinstance(counts, Mapping):
        total = checks.integer("counts", counts)
        counts = {f: (total + len(FAMILIES) - 1 - i) // len(FAMILIES) for i, f in enumerate(FAMILIES)}
    listed: list[tuple[str, str]] = []
    for family, number in counts.items():
        if family not in _MAKERS:
            raise ValueError(f"the families in counts must be among {', '.join(FAMILIES)}, got {family!r}")
        if not 0 <= number <= 800_000:
            raise ValueError(f"counts must be between 0 and 800,000 per family, got {number} of {family}")
        kept = {split: max(int(number * part), int(number > 2)) for split, part in SPLIT_FRACTIONS.items()}
        kept = {"train": number - sum(kept.values())} | kept
        listed += [(f"{family}-{seed:06}", split) for split, n in kept.items() for seed in SEEDS[split][:n]]
    return listed


def procedural_dataset(counts: Counts, box: Box) -> Iterator[tuple[str, str, Voxels]]:
    """Iterate over name, split and voxels of the shapes of a dataset, made one at a time.

    Raises:
        ValueError: As `shape_names` does.
    """
    return ((name, split, shape_voxels(name, box)) for name, split in shape_names(counts))


def procedural_sources(counts: Counts, box: Box) -> list[Source]:
    """List the shapes of a dataset as sources for `xcube.data.build`.

    Raises:
        ValueError: As `shape_names` does.
    """
    return [Source(name, partial(shape_voxels, name, box), split=split) for name, split in shape_names(counts)]


def _centered(solid: Solid) -> Solid:
    """Center a solid in the box. One that is too large is scaled down; `THIN` leaves room for that."""
    low, high = solid.bounds
    middle = Pose(translation=_negative_middle(solid.bounds))
    factor = min(1.0, *(2 * MAX_EXTENT / (b - a) for a, b in zip(low, high, strict=True)))
    return solid.placed(Pose(scale=factor).after(middle))


def _negative_middle(bounds: Bounds) -> tuple[float, float, float]:
    x, y, z = (-(a + b) / 2 for a, b in zip(*bounds, strict=True))
    return x, y, z
