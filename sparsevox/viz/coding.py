"""Encoding of attributes as bytes and colors. All shapes and levels share the encoding of an attribute name.

R rows.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sparsevox.viz import colors
from sparsevox.viz.scene import SceneLevel

MAX_CLASSES = 256
BUILT_IN = ("height", "level", "plain")  # colors that need no attribute

Array = NDArray[Any]


@dataclass(frozen=True)
class Coding:
    """Encoding of the values of an attribute as bytes, and of the bytes as colors.

    Attributes:
        kind: Meaning of the bytes: "rgb" for a color of three bytes, "scalar" for a position on a color ramp, "label"
            for the index of a class.
        palette: Colors of the bytes; empty for "rgb".
        range: Minimum and maximum of a "scalar".
        classes: Sorted values of a "label".
    """

    kind: Literal["rgb", "scalar", "label"]
    palette: tuple[str, ...] = ()
    range: tuple[float, float] = (0.0, 1.0)
    classes: tuple[int, ...] = ()

    def encode(self, column: Array) -> NDArray[np.uint8]:
        """Encode a column as bytes [R], or [R, 3] for "rgb"."""
        if self.kind == "rgb":
            return column
        if self.kind == "label":
            return np.searchsorted(self.classes, column).astype(np.uint8)
        low, high = self.range
        step = (column.astype(np.float64) - low) / (high - low or 1.0) * (colors.STEPS - 1)
        return np.where(np.isfinite(step), np.rint(step), colors.STEPS).astype(np.uint8)

    def paint(self, column: Array) -> NDArray[np.uint8]:
        """Convert a column to colors, RGB bytes [R, 3]."""
        codes = self.encode(column)
        return codes if self.kind == "rgb" else colors.rgb_bytes(self.palette)[codes]


def codings(levels: Iterable[SceneLevel]) -> dict[str, Coding]:
    """Choose the coding of each attribute of the levels, in order of appearance.

    Raises:
        ValueError: If an attribute holds colors in one level and numbers in another.
    """
    columns: dict[str, list[Array]] = {}
    for level in levels:
        for name, column in level.columns.items():
            columns.setdefault(name, []).append(column)
    for name, parts in columns.items():
        if len({part.ndim for part in parts}) > 1:
            raise ValueError(f"attribute {name!r} must be floats [., 3] in all levels that have it, or in none")
    return {name: _coding(parts) for name, parts in columns.items()}


def first_color(color: str | None, levels: Iterable[SceneLevel], coded: Mapping[str, Coding]) -> str:
    """Choose the initial color: the given one, else "color" if every level has it, else "height".

    Raises:
        ValueError: If `color` is neither an attribute nor built in.
    """
    known = [*BUILT_IN, *coded]
    if color is not None and color not in known:
        raise ValueError(f"color must be among {known}, got {color!r}")
    return color or ("color" if all("color" in level.columns for level in levels) else "height")


def _coding(parts: list[Array]) -> Coding:
    if parts[0].ndim == 2:
        return Coding("rgb")
    if all(part.dtype == np.int64 for part in parts):
        classes = np.unique(np.concatenate([np.unique(part) for part in parts])).tolist()
        if len(classes) <= MAX_CLASSES:
            return Coding("label", tuple(map(colors.class_color, classes)), classes=tuple(classes))
    finite = [part[np.isfinite(part)] for part in parts]
    ends = [float(end) for part in finite if len(part) for end in (part.min(), part.max())]
    return Coding("scalar", tuple(colors.ramp_palette(colors.VIRIDIS)), (min(ends, default=0), max(ends, default=1)))
