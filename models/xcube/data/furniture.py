"""Models of Sweet Home 3D in the categories of the procedural shapes, with changed copies.

The title of a model decides its category, by the words in `TITLES`; models of other kinds are left out. A model of the
split "train" also has copies with other proportions, of which every second one is mirrored from left to right.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from sparsevox import checks
from sparsevox.shapes import Mesh, Shape
from xcube.data.augment import Change
from xcube.data.axes import upright
from xcube.data.sh3f import sh3f_sources
from xcube.data.sources import SPLITS, Source, Splits, split_of, unique

# Words and phrases in the titles of each category, in singular. The first category with a match is that of the model: a
# desk lamp is a lamp, and a bedside table a cabinet. Benches, sinks, vanities and game tables belong to none.
TITLES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "airplane": ("airplane", "biplane"),
    "car": (
        *("bus", "car", "sedan", "suv", "truck", "van"),
        *("chevrolet", "ford focus", "peugeot 308", "renault scenic", "seat leon", "vw new beetle"),
    ),
    "lamp": ("chandelier", "lamp", "lamppost", "lantern", "light", "spotlight"),
    "sofa": ("couch", "sofa"),
    "bed": ("bed", "crib", "futon"),
    "cabinet": (
        *("bedside table", "bookcase", "cabinet", "changing table", "cupboard", "dresser", "locker"),
        *("shelf", "shelves", "tv stand", "wardrobe"),
    ),
    "chair": ("armchair", "chair", "class seat", "stool"),
    "table": ("desk", "table"),
})  # fmt: skip

# Phrases in titles of models that belong to no category, although they have a word of `TITLES`.
OTHER_TITLES = (
    *("beach chair", "relax chair"),  # sun loungers
    *("fluorescent light", "stone lantern", "track light", "wall lamp artwork"),
    *("football table", "pool table", "table fan", "table tennis"),
    *("opened convertible sofa", "sink cabinet"),
)

# Models that do not look like the category of their title: library and number, and what they are.
LEFT_OUT: Mapping[str, str] = MappingProxyType({
    "BlendSwap-CC-0/155": "a box with a post, titled outdoor lamp",
    "BlendSwap-CC-BY/016": "a sun lounger, titled deck chair",
    "Scopia/006": "a part of a sofa, titled chair",
})  # fmt: skip

SCALES = (0.75, 1.0)  # range of the factors of each axis of a copy


def furniture_category(title: str) -> str | None:
    """Return the category of a model with this title, or None if it belongs to none."""
    if _has(title, OTHER_TITLES):
        return None
    return next((category for category, phrases in TITLES.items() if _has(title, phrases)), None)


def furniture_sources(
    *roots: str | PathLike[str], copies: int = 0, seed: int = 0, splits: Splits = SPLITS
) -> list[Source]:
    """Find the models of furniture libraries that belong to a category, and make changed copies of those for training.

    Their names are CATEGORY/LIBRARY/N-NAME, such as "chair/Scopia/029-chair", in whatever folder the library is, and
    those of their copies "chair/Scopia/029-chair~1" and so on. They stand upright with z up and face along x, and have
    no colors. `build` needs `outside="rescale"` for them.

    Args:
        roots: Libraries, and folders that hold libraries at any depth (`sh3f_sources`).
        copies: Number of changed copies of each model of the split "train".
        seed: Random seed of the changes.
        splits: Fraction of each split. The split of a model follows from its name; its copies belong to the same one.

    Raises:
        FileNotFoundError: If a file or folder does not exist.
        ValueError: If a folder holds no library, a file is no library, no model belongs to a category, two libraries
            have the same name, or `copies` is negative.
    """
    if checks.integer("copies", copies) < 0:
        raise ValueError(f"copies must not be negative, got {copies}")
    models: list[Source] = []
    paths: dict[str, Path | None] = {}
    for source in sh3f_sources(*roots):
        library, model = source.name.split("/")[-2:]
        if paths.setdefault(library, source.path) != source.path:
            raise ValueError(f"furniture libraries must differ in name, got {paths[library]} and {source.path}")
        category = furniture_category(source.about.title)
        if category is not None and f"{library}/{model.partition('-')[0]}" not in LEFT_OUT:
            name = f"{category}/{library}/{model}"
            models.append(replace(source, name=name, load=partial(load_changed, source.load, Change())))
            models[-1] = replace(models[-1], split=split_of(models[-1], splits))
    if not models:
        raise ValueError(f"furniture must have models of {', '.join(sorted(TITLES))}, got none of them")
    return unique([*models, *(copy for model in models for copy in _copies(model, copies, seed))])


def _copies(model: Source, count: int, seed: int) -> list[Source]:
    """The changed copies of a model of the split "train"; none of any other one."""
    if model.split != "train":
        return []
    assert isinstance(model.load, partial)
    load = model.load.args[0]
    return [
        replace(model, name=f"{model.name}~{n}", load=partial(load_changed, load, copy_change(model.name, n, seed)))
        for n in range(1, count + 1)
    ]


def model_name(name: str) -> str:
    """Return the name of the model that a shape with this name is a copy of, or its own if it is none."""
    return re.sub(r"~[0-9]+$", "", name)


def copy_change(name: str, number: int, seed: int = 0) -> Change:
    """Draw the change of a copy of a model: a factor for each axis, and a mirror image if its number is even."""
    digest = hashlib.sha256(f"{seed}\0{name}\0{number}".encode()).digest()
    x, y, z = np.random.default_rng(int.from_bytes(digest[:8], "big")).uniform(*SCALES, 3).tolist()
    return Change((x, y, z), mirror=number % 2 == 0)


def load_changed(load: Callable[[], Shape], change: Change) -> Mesh:
    """Load a mesh with y up, without its attributes, rotate it so that z points up, and change it.

    Raises:
        TypeError: If the shape is no mesh.
    """
    mesh = load()
    if not isinstance(mesh, Mesh):
        raise TypeError(f"load must return a Mesh, got {type(mesh).__name__}")
    shape = upright(Mesh(mesh.vertices, mesh.faces), "y")
    assert isinstance(shape, Mesh)
    return changed(shape, change)


def changed(mesh: Mesh, change: Change) -> Mesh:
    """Scale a mesh without attributes along each axis, and mirror it from left to right. Faces stay oriented.

    Raises:
        ValueError: If the change has a turn.
    """
    if change.quarters:
        raise ValueError(f"change must have no turn, got {change}")
    factors = torch.tensor(change.factors or (1.0, 1.0, 1.0), dtype=mesh.vertices.dtype, device=mesh.device)
    if change.mirror:
        factors[1] *= -1
    # In a mirror image, the corners of a face run the other way around.
    return Mesh(mesh.vertices * factors, mesh.faces.flip(1) if change.mirror else mesh.faces)


def _has(title: str, phrases: tuple[str, ...]) -> bool:
    """Whether a title has one of these phrases, in singular or with an s, in upper or lower case."""
    return re.search(rf"\b(?:{'|'.join(map(re.escape, phrases))})s?\b", title, re.IGNORECASE) is not None
