"""Pictures of grids and meshes, drawn off-screen by matplotlib: `pip install 'sparsevox[viz]'`.

N voxels, V vertices, F faces.
"""

import math
from collections.abc import Sequence
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sparsevox import checks
from sparsevox.grid import Grid
from sparsevox.ops import neighbor_table
from sparsevox.shapes import Mesh
from sparsevox.viz.colors import HEIGHT, ramp
from sparsevox.viz.sides import DIRECTIONS, crowding, faces_of, quads

TITLE_COLOR = "#3a3f47"
LIGHT = (0.78, 0.90, 1.0)  # brightness of the sides that look along i, j and k
SHADE = 0.38  # of its light, a side loses up to this much to the eight voxels around the one in front of it
TINT = (1.1, 1.0, 0.8)  # shadows are bluish: exponents of brightness in red, green and blue
EDGE = 0.15  # an edge is darker than its side by up to this much, if voxels are large enough in the picture
MARGIN = 0.04  # of the width of a picture, left free on each side
SAMPLES = 2  # a pixel is the average of SAMPLES x SAMPLES
GRAY = (0.66, 0.70, 0.77)  # of a mesh without colors
LAMP = (-0.4, 0.7, 0.6)  # where the light of meshes stands: right, up, toward the viewer
SHADOW = 0.55  # of its light, a face loses up to this much by looking away from the lamp
LINE = 0.5  # width of an edge, in pixels
DPI = 128  # a power of two, so that sizes in inches are exact

Floats = NDArray[np.float64]


class Sides(NamedTuple):
    """What there is to paint of one grid or mesh, from back to front."""

    corners: (
        Floats  # [F, 4, 2], of a mesh [F, 3, 2], on the picture plane, in world units, around the middle of the picture
    )
    colors: Floats  # [F, 3]
    edge: float  # of a voxel, the longest; 0 for a mesh, whose edges are not drawn


def render_png(
    grid: Grid,
    path: str | PathLike[str],
    *,
    colors: Tensor | None = None,
    width: int = 800,
    azimuth: float = 35.0,
    elevation: float = 30.0,
    background: str = "white",
    palette: int | None = None,
    batch_item: int = 0,
) -> None:
    """Write a picture of one grid of a batch to a PNG file.

    Args:
        grid: Its voxels are drawn as boxes, in the proportions of `voxel_size`, with the k axis up.
        path: Where to write.
        colors: Red, green and blue of every voxel of the batch, in [0, 1]: floats [N, 3]. None colors by height.
        width: In pixels. The height follows from the voxels; it is never larger than the width.
        azimuth: Where the camera stands, in degrees around the k axis; at 0 it looks against the i axis.
        elevation: How high the camera stands, in degrees from -90 (below) to 90 (above).
        background: A color, in any form that matplotlib knows.
        palette: How many colors the file may have, 2 to 256; 256 makes it about three times smaller. None keeps all.
        batch_item: Which grid of the batch.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If a number, or the tensor of colors, is of another type.
        ValueError: If colors have another shape or leave [0, 1], or a number is out of range.
    """
    item = checks.integer("batch_item", batch_item)
    if not 0 <= item < grid.batch_size:
        raise ValueError(f"batch_item must be in [0, {grid.batch_size}), got {item}")
    rgb = _rgb("colors", colors, grid)
    if rgb is not None:
        first, last = grid.offsets[item : item + 2].tolist()
        rgb = rgb[first:last]
    _paint([_sides(grid[item], rgb, _camera(azimuth, elevation))], path, width, background, palette)


def render_row(
    grids: Grid | Sequence[Grid | Mesh],
    path: str | PathLike[str],
    *,
    titles: Sequence[str] | None = None,
    colors: Sequence[Tensor | None] | None = None,
    width: int = 1600,
    azimuth: float = 35.0,
    elevation: float = 30.0,
    background: str = "white",
    palette: int | None = None,
) -> None:
    """Write a row of pictures, all to the same scale, to one PNG file.

    `grids` is a batch, or a sequence of grids of one item each and of meshes; titles and colors come one for each of
    them. Colors of a mesh are those of its vertices [V, 3]; by default they are its attribute "color", or gray. The
    other arguments, and the errors, are those of `render_png`.
    """
    items: list[Grid | Mesh] = list(grids)
    if not items:
        raise ValueError("grids must hold one grid at least, got none")
    for index, grid in enumerate(items):
        if isinstance(grid, Grid) and grid.batch_size != 1:
            raise ValueError(f"grids[{index}] must be one grid, got a batch of {grid.batch_size}")
    for name, given in (("titles", titles), ("colors", colors)):
        if given is not None and len(given) != len(items):
            raise ValueError(f"{name} must hold one entry for each of {len(items)} grids, got {len(given)}")
    camera = _camera(azimuth, elevation)
    rgbs = [_rgb(f"colors[{n}]", each, items[n]) for n, each in enumerate(colors or [None] * len(items))]
    sides = [
        _sides(item, rgb, camera) if isinstance(item, Grid) else _triangles(item, rgb, camera)
        for item, rgb in zip(items, rgbs, strict=True)
    ]
    _paint(sides, path, width, background, palette, titles)


def _camera(azimuth: float, elevation: float) -> Floats:
    """Unit vectors [3, 3] that point right and up in the picture, and toward the viewer."""
    for name, angle, limit in (("azimuth", azimuth, 360), ("elevation", elevation, 90)):
        if isinstance(angle, bool) or not isinstance(angle, int | float):
            raise TypeError(f"{name} must be a number of degrees, got {angle!r}")
        if not -limit <= angle <= limit:
            raise ValueError(f"{name} must be between {-limit} and {limit} degrees, got {angle}")
    a, e = math.radians(azimuth), math.radians(elevation)
    right = (-math.sin(a), math.cos(a), 0.0)
    up = (-math.sin(e) * math.cos(a), -math.sin(e) * math.sin(a), math.cos(e))
    toward = (math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e))
    return np.array([right, up, toward])


def _rgb(name: str, colors: Tensor | None, item: Grid | Mesh) -> Floats | None:
    if colors is None:
        return None
    rows = item.num_voxels if isinstance(item, Grid) else len(item.vertices)
    checked = checks.floats(name, checks.shape(name, colors, rows, 3))
    rgb: Floats = checked.detach().cpu().double().numpy()
    inside = ((rgb >= 0) & (rgb <= 1)).all(1)  # NaN is not
    if not inside.all():
        row = int(inside.argmin())
        raise ValueError(f"{name} must lie in [0, 1], got {name}[{row}] = {tuple(rgb[row].tolist())}")
    return rgb


def _sides(grid: Grid, rgb: Floats | None, camera: Floats) -> Sides:
    """The sides of the voxels of one grid that look at the viewer, shaded, from back to front."""
    grid = grid.cpu()
    ijk: NDArray[np.int64] = grid.ijk.long().numpy()
    if not len(ijk):
        return Sides(np.zeros((0, 4, 2)), np.zeros((0, 3)), max(grid.voxel_size))
    rgb = _by_height(ijk[:, 2]) if rgb is None else rgb
    toward = np.where(np.abs(camera[2]) > 1e-9, np.sign(camera[2]), 0).astype(np.int64)

    table = neighbor_table(grid)
    row, side = (index.numpy() for index in faces_of(table))
    looks = np.array(DIRECTIONS) @ toward > 0
    row, side = row[looks[side]], side[looks[side]]
    # What hides a voxel is not behind it along any axis, so this order is exact.
    order = np.argsort(ijk[row] @ toward, kind="stable")
    row, side = row[order], side[order]

    light = np.repeat(LIGHT, 2)[side] * (1 - SHADE * crowding(table)[side, row] / 8)
    plane = camera[:2] * grid.voxel_size
    corners = (ijk[row, None] + quads()[side]) @ plane.T
    corners -= (corners.min((0, 1)) + corners.max((0, 1))) / 2
    return Sides(corners, rgb[row] * light[:, None] ** TINT, max(grid.voxel_size))


def _triangles(mesh: Mesh, rgb: Floats | None, camera: Floats) -> Sides:
    """The triangles of a mesh, lit from beside the viewer, from back to front by their middles."""
    vertices: Floats = mesh.vertices.detach().cpu().double().numpy()
    faces: NDArray[np.int64] = mesh.faces.cpu().long().numpy()
    if not len(faces):
        return Sides(np.zeros((0, 3, 2)), np.zeros((0, 3)), 0.0)
    if rgb is None and "color" in mesh.vertex_attributes:
        rgb = mesh.vertex_attributes["color"].detach().cpu().double().clamp(0, 1).numpy()
    colors = np.full((len(faces), 3), GRAY) if rgb is None else rgb[faces].mean(1)
    corners = vertices[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)
    normal *= np.where(normal @ camera[2] < 0, -1, 1)[:, None]  # both sides are lit alike
    light = np.array(LAMP) @ camera
    brightness = 1 - SHADOW * (1 - np.clip(normal @ (light / np.linalg.norm(light)), 0, 1))
    order = np.argsort(corners.mean(1) @ camera[2], kind="stable")
    flat = corners[order] @ camera[:2].T
    flat -= (flat.min((0, 1)) + flat.max((0, 1))) / 2
    return Sides(flat, colors[order] * brightness[order, None] ** TINT, 0.0)


def _by_height(k: NDArray[np.int64]) -> Floats:
    return ramp(HEIGHT, (k - k.min()) / max(np.ptp(k), 1))


def _paint(
    tiles: Sequence[Sides],
    path: str | PathLike[str],
    width: int,
    background: str,
    palette: int | None,
    titles: Sequence[str] | None = None,
) -> None:
    """Paint one tile beside the other, to one scale."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.collections import PolyCollection
        from matplotlib.figure import Figure
        from PIL import Image  # which comes with matplotlib
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'sparsevox[viz]'") from error
    if not 16 <= checks.integer("width", width) <= 8192:
        raise ValueError(f"width must be between 16 and 8192 pixels, got {width}")
    if palette is not None and not 2 <= checks.integer("palette", palette) <= 256:
        raise ValueError(f"palette must be between 2 and 256 colors, got {palette}")

    tile = width / len(tiles)
    reaches = [np.abs(t.corners).max((0, 1)) if len(t.corners) else (t.edge, t.edge) for t in tiles]
    reach = np.max(reaches, axis=0)  # from the middle of a tile, to the side and up
    scale = tile * (0.5 - MARGIN) / float(reach.max())  # pixels a world unit
    body = 2 * (float(reach[1]) * scale + MARGIN * tile)
    head = max(tile / 10, 20) if titles else 0
    height = round(body + head)

    # A figure with a canvas of its own leaves the state of pyplot as it is.
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI * SAMPLES, facecolor=background)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    for n, t in enumerate(tiles):
        x = (n + 0.5) * tile
        darker = 1 - EDGE * min(max((t.edge * scale - 2) / 6, 0), 1)
        # An array, which matplotlib likes but does not announce.
        polygons: Any = t.corners * scale + (x, body / 2)
        sides = PolyCollection(polygons, facecolors=t.colors, edgecolors=t.colors * darker, antialiased=False)
        sides.set_linewidth(LINE * 72 / DPI)
        axes.add_collection(sides, autolim=False)
        if titles:
            size = 0.4 * head * 72 / DPI
            axes.text(x, body + 0.4 * head, titles[n], size=size, ha="center", va="center", color=TITLE_COLOR)
    canvas.draw()
    samples = np.asarray(canvas.buffer_rgba())[..., :3].reshape(height, SAMPLES, width, SAMPLES, 3)
    picture = Image.fromarray(samples.mean((1, 3)).round().astype(np.uint8))
    if palette is not None:
        picture = picture.quantize(palette, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    picture.save(path, "PNG", optimize=True)
