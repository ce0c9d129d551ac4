"""Interactive HTML pages of voxels, meshes and points: a single file each, which needs no network.

three.js draws; README.md in this folder describes how `three.min.js` is built. Each level is a block of little-endian
bytes, compressed with zlib and encoded in base64: planes of positions (uint16), faces (rows of three uint32), and one
or three planes per attribute (uint8). The browser unpacks a level when it is first shown.

R rows (exposed voxels, vertices or points), F faces.
"""

import base64
import html
import json
import zlib
from collections.abc import Mapping, Sequence
from importlib import resources
from os import PathLike
from typing import Any, Literal

from sparsevox.files import atomic_write
from sparsevox.viz import colors, png
from sparsevox.viz.coding import Coding, codings, first_color
from sparsevox.viz.scene import SceneLevel, Shapes, bounds, scene_levels


def show_html(
    shapes: Shapes,
    path: str | PathLike[str],
    *,
    title: str | None = None,
    attributes: Sequence[str] | None = None,
    classes: Mapping[str, Mapping[int, str]] | None = None,
    color: str | None = None,
    background: Literal["light", "dark"] = "light",
    against: tuple[str, str] | None = None,
) -> None:
    """Write an interactive HTML page of shapes, with controls for the view, the shape, the level and the colors.

    The page needs nothing but a browser with WebGL 2. Its URL selects the initial view:
    `page.html#shape=chair&level=0&color=normal&background=dark&view=35,30`, where the view is azimuth and elevation in
    degrees. `&against=before&split=0.5` compares the shape with another one, which is to the left of a line that a
    slider moves.

    Args:
        shapes: A `Grid`, `Voxels`, `Mesh` or `Points`; a list of these, the levels of one shape from coarsest to
            finest; or a dict of named shapes, each a shape or a list of levels. A batch of B grids is B shapes.
        path: File to write.
        title: Title of the page. By default the name of the shape if there is only one, else "sparsevox".
        attributes: Names of the attributes to include. None includes all. "normal" and "color" are shown as colors
            (clipped to [0, 1]), integers with at most 256 distinct values as classes, and other numbers on a color
            scale, one channel at a time. All shapes and levels share the same scale.
        classes: Names of the values of integer attributes: `{"label": {0: "road", 1: "tree"}}`.
        color: Initial color: the name of an attribute, "height", "level" or "plain". By default "color" if every level
            has it, else "height".
        background: Initial background, "light" or "dark".
        against: Names of the shape that is shown first and of the one that it is compared with; by default the first
            shape, alone.

    Raises:
        TypeError: If `shapes` holds anything but shapes.
        ValueError: If there is no shape, two shapes have the same name, levels of a shape have different batch sizes, a
            position is not finite, a grid spans more than 65,536 voxels along an axis, an attribute holds colors in one
            level and numbers in another, or a name is unknown.
    """
    if title is not None and not isinstance(title, str):
        raise TypeError(f"title must be a string, got {title!r}")
    if background not in ("light", "dark"):
        raise ValueError(f"background must be 'light' or 'dark', got {background!r}")
    items = scene_levels(shapes, attributes)
    levels = [level for item in items.values() for level in item]
    coded = codings(levels)
    for name in classes or ():
        if name not in coded or coded[name].kind != "label":
            known = [name for name, coding in coded.items() if coding.kind == "label"]
            raise ValueError(f"classes must name attributes among {known}, got {name!r}")
    for name in against or ():
        if name not in items:
            raise ValueError(f"against must name shapes among {list(items)}, got {name!r}")
    manifest = {
        "color": first_color(color, levels, coded),
        "background": background,
        "look": {"light": png.LIGHT, "shade": png.SHADE, "tint": png.TINT, "edge": png.EDGE},
        "plain": colors.PLAIN,
        "height": colors.ramp_palette(colors.HEIGHT),
        "levels": [colors.class_color(n) for n in range(max(map(len, items.values())))],
        "colors": {name: _described(coding, (classes or {}).get(name, {})) for name, coding in coded.items()},
        "first": None if against is None else against[0],
        "against": None if against is None else against[1],
        "shapes": [_shape(name, item) for name, item in items.items()],
    }
    data = [
        f'<script type="application/octet-stream" id="data-{s}-{n}">{_block(level, coded)}</script>'
        for s, item in enumerate(items.values())
        for n, level in enumerate(item)
    ]
    name = next(iter(items)) if len(items) == 1 else ""
    page = _filled(title or name or "sparsevox", manifest, "\n".join(data))
    with atomic_write(path) as file:
        file.write(page.encode())


def _described(coding: Coding, names: Mapping[int, str]) -> dict[str, Any]:
    if coding.kind == "rgb":
        return {"kind": "rgb"}
    # The legend shows the value of a class that has no name.
    legend = [names.get(value, str(value)) for value in coding.classes]
    details = {"classes": legend} if coding.kind == "label" else {"range": coding.range}
    return {"kind": coding.kind, "palette": coding.palette, **details}


def _shape(name: str, levels: Sequence[SceneLevel]) -> dict[str, Any]:
    return {"name": name, "bounds": bounds(levels).tolist(), "levels": [_level(level) for level in levels]}


def _level(level: SceneLevel) -> dict[str, Any]:
    return {
        "kind": level.kind,
        "text": level.text,
        "rows": len(level.places),
        "faces": 0 if level.faces is None else len(level.faces),
        "origin": level.origin.tolist(),
        "size": level.size.tolist(),
        "colors": list(level.columns),
    }


def _block(level: SceneLevel, coded: Mapping[str, Coding]) -> str:
    # Planes of channels compress well: neighboring rows are neighbors in space, with similar values.
    planes = [level.places.T.astype("<u2").tobytes()]
    if level.faces is not None:
        planes.append(level.faces.astype("<u4").tobytes())
    planes += [coded[name].encode(column).T.tobytes() for name, column in level.columns.items()]
    return base64.b64encode(zlib.compress(b"".join(planes))).decode("ascii")


def _filled(title: str, manifest: Mapping[str, Any], data: str) -> str:
    folder = resources.files("sparsevox.viz")
    page = (folder / "page.html").read_text(encoding="utf-8")
    parts = {
        "title": html.escape(title),
        # A name must not close the script element.
        "manifest": json.dumps(manifest, allow_nan=False).replace("<", "\\u003c"),
        "vertex": (folder / "vertex.glsl").read_text(encoding="utf-8"),
        "fragment": (folder / "fragment.glsl").read_text(encoding="utf-8"),
        "page": (folder / "page.js").read_text(encoding="utf-8"),
        "three": (folder / "three.min.js").read_text(encoding="utf-8"),
        "data": data,
    }
    # A single pass, so that a title such as "{{data}}" is not replaced.
    pieces = page.replace("}}", "{{").split("{{")
    return "".join(parts[piece] if n % 2 else piece for n, piece in enumerate(pieces))
