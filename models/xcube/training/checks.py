"""Checks that a network and a dataset fit each other."""

from collections.abc import Collection
from pathlib import Path

from xcube.data.dataset import Card, read_card


def check_level(data: Path, level: int, sizes: tuple[float, float, float], name: str = "model") -> Card:
    """Return the card of a dataset; raise ValueError unless the voxels of a level have these sizes."""
    card = read_card(data)
    count = len(card.box.levels)
    if not -count <= level < count:
        raise ValueError(f"level must be an index of the levels {card.box.levels}, got {level}")
    expected = card.box.voxel_size(level)
    if any(abs(size - expected) > 1e-5 * expected for size in sizes):
        given = sizes[0] if len(set(sizes)) == 1 else sizes
        raise ValueError(f"{name} must have the voxel_size of the level, {expected}, got {given}")
    return card


def check_attributes(data: Path, card: Card, needed: Collection[str]) -> None:
    """Raise ValueError unless the shapes of a dataset have the attributes that a model needs."""
    missing = sorted(set(needed) - set(card.attributes))
    if missing:
        raise ValueError(
            f"data must have the attributes {sorted(needed)} that the model needs, got {data} without {missing}; "
            "build it with them, or turn them off in the model"
        )
