"""Pictures of grids and meshes, drawn off-screen with matplotlib: `pip install 'sparsevox[viz]'`.

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
LIGHT = (0.78, 0.90, 1.0)  # brightness of the sides that face along i, j and k
SHADE = 0.38  # maximum fraction of light that a side loses to the eight voxels around the one in front of it
TINT = (1.1, 1.0, 0.8)  # exponents of the brightness in red, green and blue: shadows are bluish
EDGE = 0.15  # maximum fraction by which an edge is darker than its side, if voxels are large in the picture
MARGIN = 0.04  # empty fraction of the width on each side
SAMPLES = 2  # a pixel is the average of SAMPLES x SAMPLES
GRAY = (0.66, 0.70, 0.77)  # color of a mesh without colors
LAMP = (-0.4, 0.7, 0.6)  # position of the lamp for meshes: right, up, toward the viewer
SHADOW = 0.55  # maximum fraction of light that a face loses by facing away from the lamp
LINE = 0.5  # width of an edge in pixels
DPI = 128  # a power of two, so that sizes in inches are exact

Floats = NDArray[np.float64]


class Sides(NamedTuple):
    """The polygons of one grid or mesh, projected onto the picture plane and sorted from back to front."""

    corners: Floats  # in world units from the center of the picture: [F, 4, 2], for a mesh [F, 3, 2]
    colors: Floats  # [F, 3]
    edge: float  # longest edge of a voxel; 0 for a mesh, whose edges are not drawn


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
    """Draw one grid of a batch to a PNG file, in orthographic projection with the k axis up.

    Args:
        grid: Grid to draw. Its voxels are boxes in the proportions of `voxel_size`.
        path: File to write.
        colors: Colors of all voxels of the batch, RGB floats [N, 3] in [0, 1]. None colors by height.
        width: Width of the picture in pixels. The height follows from the shape and never exceeds the width.
        azimuth: Direction of the camera around the k axis, in degrees. At 0 it looks along -i.
        elevation: Height of the camera, in degrees from -90 (below) to 90 (above).
        background: Background color, in any notation of matplotlib.
        palette: Number of colors of the file, 2 to 256. None keeps all; 256 makes the file about three times smaller.
        batch_item: Index of the grid in the batch.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If an argument has the wrong type.
        ValueError: If `colors` has another shape or exceeds [0, 1], or a number is out of range.
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
    """Draw several grids and meshes in a row, at the same scale, to a PNG file.

    Args:
        grids: Batch of grids, or a sequence of single grids and meshes.
        path: File to write.
        titles: Titles, one per grid or mesh.
        colors: Colors, one tensor or None per grid or mesh: RGB floats [N, 3], or [V, 3] for the vertices of a mesh.
            None colors grids by height, and meshes by their attribute "color", or gray.
        width: Width of the whole picture in pixels.
        azimuth: Direction of the camera around the k axis, in degrees. At 0 it looks along -i.
        elevation: Height of the camera, in degrees from -90 (below) to 90 (above).
        background: Background color, in any notation of matplotlib.
        palette: Number of colors of the file, 2 to 256. None keeps all.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If an argument has the wrong type.
        ValueError: If `grids` is empty or holds a batch, titles or colors do not match, or a number is out of range.
    """
    items: list[Grid | Mesh] = list(grids)
    if not items:
        raise ValueError("grids must hold at least one grid, got none")
    for index, grid in enumerate(items):
        if isinstance(grid, Grid) and grid.batch_size != 1:
            raise ValueError(f"grids[{index}] must be one grid, got a batch of {grid.batch_size}")
    for name, given in (("titles", titles), ("colors", colors)):
        if given is not None and len(given) != len(items):
            raise ValueError(f"{name} must have one entry per grid, {len(items)}, got {len(given)}")
    camera = _camera(azimuth, elevation)
    rgbs = [_rgb(f"colors[{n}]", each, items[n]) for n, each in enumerate(colors or [None] * len(items))]
    sides = [
        _sides(item, rgb, camera) if isinstance(item, Grid) else _triangles(item, rgb, camera)
        for item, rgb in zip(items, rgbs, strict=True)
    ]
    _paint(sides, path, width, background, palette, titles)


def _camera(azimuth: float, elevation: float) -> Floats:
    """Compute unit vectors that point right and up in the picture, and toward the viewer: [3, 3]."""
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
    inside = ((rgb >= 0) & (rgb <= 1)).all(1)  # False for NaN
    if not inside.all():
        row = int(inside.argmin())
        raise ValueError(f"{name} must lie in [0, 1], got {name}[{row}] = {tuple(rgb[row].tolist())}")
    return rgb


def _sides(grid: Grid, rgb: Floats | None, camera: Floats) -> Sides:
    """Project and shade the exposed sides of voxels that face the viewer, from back to front."""
    grid = grid.cpu()
    ijk: NDArray[np.int64] = grid.ijk.long().numpy()
    if not len(ijk):
        return Sides(np.zeros((0, 4, 2)), np.zeros((0, 3)), max(grid.voxel_size))
    rgb = _by_height(ijk[:, 2]) if rgb is None else rgb
    toward = np.where(np.abs(camera[2]) > 1e-9, np.sign(camera[2]), 0).astype(np.int64)

    table = neighbor_table(grid)
    row, side = (index.numpy() for index in faces_of(table))
    visible = np.array(DIRECTIONS) @ toward > 0
    row, side = row[visible[side]], side[visible[side]]
    # A voxel that hides another is in front of it or level with it on every axis, so this order is exact.
    order = np.argsort(ijk[row] @ toward, kind="stable")
    row, side = row[order], side[order]

    light = np.repeat(LIGHT, 2)[side] * (1 - SHADE * crowding(table)[side, row] / 8)  # [F]
    plane = camera[:2] * grid.voxel_size
    corners = (ijk[row, None] + quads()[side]) @ plane.T  # [F, 4, 2]
    corners -= (corners.min((0, 1)) + corners.max((0, 1))) / 2
    return Sides(corners, rgb[row] * light[:, None] ** TINT, max(grid.voxel_size))


def _triangles(mesh: Mesh, rgb: Floats | None, camera: Floats) -> Sides:
    """Project and shade the triangles of a mesh, from back to front by their centroids."""
    vertices: Floats = mesh.vertices.detach().cpu().double().numpy()
    faces: NDArray[np.int64] = mesh.faces.cpu().long().numpy()
    if not len(faces):
        return Sides(np.zeros((0, 3, 2)), np.zeros((0, 3)), 0.0)
    if rgb is None and "color" in mesh.vertex_attributes:
        rgb = mesh.vertex_attributes["color"].detach().cpu().double().clamp(0, 1).numpy()
    colors = np.full((len(faces), 3), GRAY) if rgb is None else rgb[faces].mean(1)
    corners = vertices[faces]  # [F, 3, 3]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-30)
    normal *= np.where(normal @ camera[2] < 0, -1, 1)[:, None]  # back faces are lit like front faces
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
    """Paint tiles in a row, at the same scale."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.collections import PolyCollection
        from matplotlib.figure import Figure
        from PIL import Image  # a dependency of matplotlib
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'sparsevox[viz]'") from error
    if not 16 <= checks.integer("width", width) <= 8192:
        raise ValueError(f"width must be between 16 and 8192 pixels, got {width}")
    if palette is not None and not 2 <= checks.integer("palette", palette) <= 256:
        raise ValueError(f"palette must be between 2 and 256 colors, got {palette}")

    tile = width / len(tiles)
    reaches = [np.abs(t.corners).max((0, 1)) if len(t.corners) else (t.edge, t.edge) for t in tiles]
    reach = np.max(reaches, axis=0)  # maximum distance from the center of a tile, horizontally and vertically
    scale = tile * (0.5 - MARGIN) / float(reach.max())  # pixels per world unit
    body = 2 * (float(reach[1]) * scale + MARGIN * tile)
    head = max(tile / 10, 20) if titles else 0
    height = round(body + head)

    # A figure with its own canvas does not touch the state of pyplot.
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI * SAMPLES, facecolor=background)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    for n, t in enumerate(tiles):
        x = (n + 0.5) * tile
        darker = 1 - EDGE * min(max((t.edge * scale - 2) / 6, 0), 1)
        polygons: Any = t.corners * scale + (x, body / 2)  # matplotlib takes an array, but its types say otherwise
        sides = PolyCollection(polygons, facecolors=t.colors, edgecolors=t.colors * darker, antialiased=False)
        sides.set_linewidth(LINE * 72 / DPI)
        axes.add_collection(sides, autolim=False)
        if titles:
            size = 0.4 * head * 72 / DPI
            axes.text(x, body + 0.4 * head, titles[n], size=size, ha="center", va="center", color=TITLE_COLOR)
    canvas.draw()
    samples = np.asarray(canvas.buffer_rgba())[..., :3].astype(np.uint16)
    shifts = np.ndindex(SAMPLES, SAMPLES)
    total = sum(samples[i::SAMPLES, j::SAMPLES] for i, j in shifts)  # [height, width, 3]
    picture = Image.fromarray((total / np.float32(SAMPLES**2)).round().astype(np.uint8))
    if palette is not None:
        picture = picture.quantize(palette, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    picture.save(path, "PNG")
