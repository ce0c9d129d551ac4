"""The folder of generated shapes: files of each shape as soon as it is finished, then a picture and a page of all."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from sparsevox import Voxels
from sparsevox.files import atomic_write
from sparsevox.io import load_voxels, save_mesh, save_voxels, to_mesh
from sparsevox.viz import render_row, show_html
from xcube.data.colors import unit_colors
from xcube.data.dataset import remove_partial_files
from xcube.pipeline.options import Sample

SETTINGS, GALLERY, PAGE, LEVELS = "settings.json", "gallery.png", "index.html", "levels"
PREFIX = "shape-"
PICTURES, COLUMNS, TILE = 16, 4, 400  # number of shapes in the picture, shapes per row, pixels per shape
SHOWN = 64  # number of shapes on the page


class SampleFolder:
    """A folder of shapes that were all generated with the same settings.

    `shape-000000.npz` holds the finest level of the first shape, `shape-000000.glb` its mesh, unless it is empty, and
    `levels/0/shape-000000.npz` and so on its coarser levels. The .npz of the finest level is written last, so if it
    exists the shape is complete.

    Args:
        path: The folder. It is created if settings are given.
        settings: JSON values that determine the shapes. None opens a folder for reading only.
        restart: Whether to remove shapes that are already there, if settings are given.

    Raises:
        FileNotFoundError: If settings are neither given nor in the folder.
        OSError: If the folder cannot be created or written to.
        ValueError: If it holds shapes with other settings, or its settings are damaged.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any] | None = None, *, restart: bool = False) -> None:
        self.path = path
        if settings is None:
            if not (path / SETTINGS).is_file():
                raise FileNotFoundError(f"{path} holds no samples: it lacks {SETTINGS}")
            self._settings()
            return
        path.mkdir(parents=True, exist_ok=True)
        for folder in (path, *(path / LEVELS).glob("*")):
            remove_partial_files(folder)
        if restart:
            for pattern in (f"{PREFIX}*.npz", f"{PREFIX}*.glb", f"{LEVELS}/*/{PREFIX}*.npz", SETTINGS, GALLERY, PAGE):
                for file in path.glob(pattern):
                    file.unlink()
        self._check(json.loads(json.dumps(settings)))
        with atomic_write(path / SETTINGS) as written:
            written.write((json.dumps(settings, indent=2) + "\n").encode())

    def file(self, number: int) -> Path:
        """The file of the finest level of a shape."""
        return self.path / f"{PREFIX}{number:06}.npz"

    def missing(self, count: int) -> list[int]:
        """Numbers of the shapes among the first `count` that have not been written."""
        return [number for number in range(count) if not self.file(number).is_file()]

    def write(self, number: int, sample: Sample) -> None:
        """Write all files of a shape."""
        for level, voxels in enumerate(sample.levels[:-1], sample.first):
            folder = self.path / LEVELS / str(level)
            folder.mkdir(parents=True, exist_ok=True)
            save_voxels(voxels, folder / self.file(number).name, half=True)
        if sample.finest.num_voxels:  # an empty grid has no surface
            save_mesh(to_mesh(sample.finest), self.file(number).with_suffix(".glb"))
        save_voxels(sample.finest, self.file(number), half=True)

    def levels(self, number: int) -> list[Voxels]:
        """Load the levels of a shape, coarse to fine."""
        name = self.file(number).name
        found = [folder / name for folder in (self.path / LEVELS).glob("*") if (folder / name).is_file()]
        return [load_voxels(path) for path in [*sorted(found, key=lambda p: int(p.parent.name)), self.file(number)]]

    def show(
        self,
        count: int,
        title: str,
        others: Mapping[str, Sequence[Voxels]] = MappingProxyType({}),
        columns: int = COLUMNS,
    ) -> None:
        """Write a picture and a page of the first shapes without the empty ones; nothing if all are empty.

        Args:
            count: Number of shapes in the folder.
            title: Title of the page.
            others: Levels of other shapes to show before them, by their titles. The page compares the first of them
                with the first shape.
            columns: Number of shapes in a row of the picture.
        """
        shapes = {**others} | {self.file(n).stem: self.levels(n) for n in range(min(count, SHOWN))}
        shapes = {name: levels for name, levels in shapes.items() if levels[-1].num_voxels}
        if not shapes:
            return
        pictured = {name: levels[-1] for name, levels in list(shapes.items())[:PICTURES]}
        draw_gallery(pictured, self.path / GALLERY, columns)
        names = [set(voxels.attributes) for levels in shapes.values() for voxels in levels]
        shared = sorted(set.intersection(*names))
        color = next((name for name in ("color", "normal") if name in shared), None)
        first = next((name for name in shapes if name not in others), None)
        other = next((name for name in shapes if name in others), None)
        compared = None if first is None or other is None else (first, other)
        show_html(shapes, self.path / PAGE, title=title, attributes=shared, color=color, against=compared)

    def _settings(self) -> Any:
        file = self.path / SETTINGS
        try:
            return json.loads(file.read_text())
        except ValueError as error:
            raise ValueError(
                f"{file} is damaged: {error}; use another folder, or start from scratch with restart"
            ) from error

    def _check(self, settings: Mapping[str, Any]) -> None:
        file = self.path / SETTINGS
        if not file.is_file():
            if list(self.path.glob(f"{PREFIX}*.npz")):
                raise ValueError(
                    f"out must be a new folder, or a folder of samples, got {self.path} without {SETTINGS}"
                )
            return
        present = self._settings()
        old = present if isinstance(present, dict) else {}
        # Folders of earlier versions lack options that were added later; an option that is not given is None.
        names = [n for n in sorted(old.keys() | settings.keys()) if old.get(n) != settings.get(n)]
        if names:
            changes = ", ".join(f"{name} {old.get(name)}, now {settings.get(name)}" for name in names)
            raise ValueError(
                f"{self.path} holds shapes with other settings: {changes}; use another folder, or start from scratch "
                "with restart"
            )


def draw_gallery(shapes: Mapping[str, Voxels], path: Path, columns: int = COLUMNS) -> None:
    """Write a picture of shapes in rows, in their colors or else those of their normals. Each row has its own scale.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    names = list(shapes)
    columns = min(columns, len(names))
    rows = [names[n : n + columns] for n in range(0, len(names), columns)]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{n}.png" for n in range(len(rows))]
        for row, file in zip(rows, files, strict=True):
            voxels = [shapes[name] for name in row]
            colors = [shown_colors(each) for each in voxels]
            render_row([v.grid for v in voxels], file, titles=row, colors=colors, width=TILE * len(row))
        stack_pictures(files, path)


def shown_colors(voxels: Voxels) -> Tensor | None:
    """RGB color in [0, 1] of each voxel, [N, 3]: its color, or else one from its normal; None without either."""
    if "color" in voxels.attributes:
        return unit_colors(voxels.attributes["color"])
    normal = voxels.attributes.get("normal")
    return None if normal is None else (normal.float().clamp(-1, 1) + 1) / 2


def stack_pictures(files: Sequence[Path], path: Path) -> None:
    """Write pictures as one, below each other."""
    from PIL import Image  # a dependency of matplotlib, which has drawn them

    pictures = [Image.open(file) for file in files]
    whole = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    with atomic_write(path) as file:
        whole.save(file, "PNG")
