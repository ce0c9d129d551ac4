"""Pages that show voxels, meshes and points, open without a network and are one file each.

The drawing is three.js: README.md in this folder says how `three.min.js` is made. A level is one block of bytes,
compressed by zlib, in base64: planes of places (uint16), faces (rows of three uint32), and a plane or three for each
attribute (uint8), all little-endian. The browser unpacks a level when it is first looked at.

R rows: exposed voxels, vertices or points. F faces.
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
from sparsevox.viz.scene import Level, Shapes, bounds, gallery


def show_html(
    shapes: Shapes,
    path: str | PathLike[str],
    *,
    title: str | None = None,
    attributes: Sequence[str] | None = None,
    classes: Mapping[str, Mapping[int, str]] | None = None,
    color: str | None = None,
    background: Literal["light", "dark"] = "light",
) -> None:
    """Write a page that shows shapes, to turn, to zoom, to color and to look at level by level.

    The page needs a browser with WebGL 2 and nothing else. Its address takes what to show first:
    `page.html#shape=chair&level=0&color=normal&background=dark&view=35,30`, where the view is azimuth and elevation.

    Args:
        shapes: A `Grid`, `Voxels`, `Mesh` or `Points`; or a list of these, which are the levels of one shape from the
            coarsest to the finest; or a dict from names to any of both, which are shapes to choose from. A batch of B
            grids is B shapes.
        path: Where to write.
        title: Of the page.
        attributes: Names of those to choose from; None takes all. "normal" and "color" are shown as colors (clipped to
            [0, 1]), integers with at most 256 different values as classes, and other numbers on a scale, channel by
            channel. Colors mean the same in all shapes and levels.
        classes: For attributes of integers, names of their values: `{"label": {0: "road", 1: "tree"}}`.
        color: What to color by at first: an attribute, "height", "level" or "plain". By default "color" if every
            level has it, else "height".
        background: At first.

    Raises:
        TypeError: If something is no shape.
        ValueError: If there is no shape, two have the same name, batches have different sizes, a position is not
            finite, a grid spans more than 65,536 voxels along an axis, an attribute is colors in one level and numbers
            in another, or a name is unknown.
    """
    if title is not None and not isinstance(title, str):
        raise TypeError(f"title must be a string, got {title!r}")
    if background not in ("light", "dark"):
        raise ValueError(f"background must be 'light' or 'dark', got {background!r}")
    items = gallery(shapes, attributes)
    levels = [level for item in items.values() for level in item]
    coded = codings(levels)
    for name in classes or ():
        if name not in coded or coded[name].kind != "label":
            known = [name for name, coding in coded.items() if coding.kind == "label"]
            raise ValueError(f"classes must be of attributes among {known}, got {name!r}")
    manifest = {
        "color": first_color(color, levels, coded),
        "background": background,
        "look": {"light": png.LIGHT, "shade": png.SHADE, "tint": png.TINT, "edge": png.EDGE},
        "plain": colors.PLAIN,
        "height": colors.ramp_palette(colors.HEIGHT),
        "levels": [colors.class_color(n) for n in range(max(map(len, items.values())))],
        "colors": {name: _described(coding, (classes or {}).get(name, {})) for name, coding in coded.items()},
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
    # A legend calls a class by its number where it has no name.
    legend = [names.get(value, str(value)) for value in coding.classes]
    told = {"classes": legend} if coding.kind == "label" else {"range": coding.range}
    return {"kind": coding.kind, "palette": coding.palette, **told}


def _shape(name: str, levels: Sequence[Level]) -> dict[str, Any]:
    return {"name": name, "bounds": bounds(levels).tolist(), "levels": [_level(level) for level in levels]}


def _level(level: Level) -> dict[str, Any]:
    return {
        "kind": level.kind,
        "text": level.text,
        "rows": len(level.places),
        "faces": 0 if level.faces is None else len(level.faces),
        "origin": level.origin.tolist(),
        "size": level.size.tolist(),
        "colors": list(level.columns),
    }


def _block(level: Level, coded: Mapping[str, Coding]) -> str:
    # Planes: neighboring rows are neighbors in space, so numbers of one kind repeat, and compress well.
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
        # Names must not end the element that they stand in.
        "manifest": json.dumps(manifest, allow_nan=False).replace("<", "\\u003c"),
        "vertex": (folder / "vertex.glsl").read_text(encoding="utf-8"),
        "fragment": (folder / "fragment.glsl").read_text(encoding="utf-8"),
        "page": (folder / "page.js").read_text(encoding="utf-8"),
        "three": (folder / "three.min.js").read_text(encoding="utf-8"),
        "data": data,
    }
    # In one pass, so that a title of "{{data}}" stays what it is.
    pieces = page.replace("}}", "{{").split("{{")
    return "".join(parts[piece] if n % 2 else piece for n, piece in enumerate(pieces))
