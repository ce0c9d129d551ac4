"""Small pictures of few colors, for the README."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from sparsevox import Voxels
from sparsevox.viz import render_row
from xcube.pipeline.output import shown_colors, stack_pictures

WIDTH, COLORS = 900, 96
TILE = 300  # width of a shape before the picture is made smaller, in pixels


def save_small(large: Path, path: Path) -> None:
    """Write a picture file again, 900 pixels wide."""
    with Image.open(large) as picture:
        small = picture.convert("RGB").resize((WIDTH, round(picture.height * WIDTH / picture.width)))
    small.quantize(COLORS).save(path, optimize=True)


def draw_rows(shapes: Mapping[str, Voxels], columns: int, path: Path) -> None:
    """Draw shapes in rows of this many. The part of a name before a colon is not shown."""
    names = list(shapes)
    with tempfile.TemporaryDirectory() as place:
        files = []
        for start in range(0, len(names), columns):
            row = {name.rpartition(": ")[2]: shapes[name] for name in names[start : start + columns]}
            files.append(Path(place) / f"{start}.png")
            colors = [shown_colors(each) for each in row.values()]
            render_row([v.grid for v in row.values()], files[-1], titles=list(row), colors=colors, width=TILE * columns)
        stack_pictures(files, Path(place) / "all.png")
        save_small(Path(place) / "all.png", path)
