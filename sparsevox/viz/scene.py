"""Normalized input of the viewers: named shapes, each a list of levels, each with rows and their attributes.

R rows (exposed voxels, vertices or points), F faces, C channels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsevox.grid import Grid
from sparsevox.ops import neighbor_table
from sparsevox.shapes import Mesh, Points, Voxels
from sparsevox.viz.sides import TAPS, crowding

Shown = Grid | Voxels | Mesh | Points
Levels = Shown | Sequence[Shown]
Shapes = Levels | Mapping[str, Levels]
Array = NDArray[Any]
Floats = NDArray[np.float64]

STEPS = 65535  # positions are uint16
SHADES = 5  # number of brightness levels of a side


@dataclass(frozen=True)
class SceneLevel:
    """One level of one shape, as NumPy arrays. The world position of row r is `origin + size * places[r, :3]`.

    Attributes:
        kind: Type of the shape.
        count: Number of all voxels, faces or points, including hidden ones.
        origin: World position of place (0, 0, 0), [3].
        size: World size of a step of the places, [3].
        places: Quantized positions, uint16 [R, 3]. Voxels have a fourth column, the sum of `6**s` times the code of
            side s: 0 if it is hidden, else from 1 (lit) to 5 (in a corner).
        columns: Attributes by name: numbers [R], or colors as bytes [R, 3].
        faces: Rows of the corners of triangles, uint32 [F, 3], for meshes.
    """

    kind: Literal["voxels", "mesh", "points"]
    count: int
    origin: Floats
    size: Floats
    places: NDArray[np.uint16]
    columns: dict[str, Array]
    faces: NDArray[np.uint32] | None = None

    @property
    def bounds(self) -> Floats:
        """Lower and upper corner of the bounding box in world coordinates, [2, 3]; NaN if there are no rows."""
        if not len(self.places):
            return np.full((2, 3), np.nan)
        around = 0.5 if self.kind == "voxels" else 0.0
        steps = np.stack([self.places[:, :3].min(0) - around, self.places[:, :3].max(0) + around])
        return np.asarray(self.origin + self.size * steps, np.float64)

    @property
    def text(self) -> str:
        """Description to show in a viewer."""
        text = f"{self.count:,} {'faces' if self.kind == 'mesh' else self.kind}"
        if self.kind != "voxels" or not self.count:
            return text
        box = " x ".join(f"{n:,}" for n in (self.places[:, :3].max(0).astype(int) + 1).tolist())
        edges = " x ".join(f"{edge:.4g}" for edge in self.size.tolist()[: 1 if len(set(self.size)) == 1 else 3])
        return f"{text} in {box}, voxel size {edges}"


def scene_levels(shapes: Shapes, attributes: Sequence[str] | None) -> dict[str, list[SceneLevel]]:
    """Convert shapes to named lists of levels. A batch of B grids becomes B shapes.

    Raises:
        TypeError: If something is not a shape.
        ValueError: If there is no shape, levels of a shape have different batch sizes, a position is not finite, a grid
            spans too many voxels, or no shape has an attribute of a requested name.
    """
    items: dict[str, list[Voxels | Mesh | Points]] = {}
    for name, item in _items(shapes):
        if name in items:
            raise ValueError(f"names of shapes must be unique (those of batch items too), got {name!r} twice")
        items[name] = item
    if not items:
        raise ValueError("shapes must hold at least one shape, got none")
    known = {name for levels in items.values() for level in levels for name in _names(level)}
    for name in attributes or ():
        if name not in known:
            raise ValueError(f"attributes must be among {sorted(known)}, got {name!r}")
    return {
        name: [_level(f"shapes[{name!r}][{n}]", level, attributes) for n, level in enumerate(levels)]
        for name, levels in items.items()
    }


def bounds(levels: Sequence[SceneLevel]) -> Floats:
    """Compute the bounding box of all levels in world coordinates, lower and upper corner [2, 3]; zeros if empty."""
    corners = np.concatenate([level.bounds for level in levels])
    corners = corners[np.isfinite(corners).all(1)]
    return np.stack([corners.min(0), corners.max(0)]) if len(corners) else np.zeros((2, 3))


def _items(shapes: Shapes) -> Iterator[tuple[str, list[Voxels | Mesh | Points]]]:
    named = shapes if isinstance(shapes, Mapping) else {"": shapes}
    for name, given in named.items():
        if not isinstance(name, str):
            raise TypeError(f"names of shapes must be strings, got {name!r}")
        where = f"shapes[{name!r}]" if isinstance(shapes, Mapping) else "shapes"
        levels = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
        if not levels:
            raise ValueError(f"{where} must hold at least one level, got none")
        parts = [_parts(f"{where}[{n}]" if len(levels) > 1 else where, level) for n, level in enumerate(levels)]
        sizes = [len(part) for part in parts]
        if len(set(sizes)) > 1:
            raise ValueError(f"levels of {where} must have the same batch size, got {sizes}")
        for item in range(sizes[0]):
            yield (name if sizes[0] == 1 else f"{name}[{item}]"), [part[item] for part in parts]


def _parts(where: str, shape: object) -> Sequence[Voxels | Mesh | Points]:
    if isinstance(shape, Grid):
        shape = Voxels(shape)
    if isinstance(shape, Voxels):
        return [shape] if shape.batch_size == 1 else shape.unbind()
    if isinstance(shape, Mesh | Points):
        return [shape]
    raise TypeError(f"{where} must be a Grid, Voxels, Mesh or Points, or a list of these, got {type(shape).__name__}")


def _names(shape: Voxels | Mesh | Points) -> list[str]:
    return [*shape.vertex_attributes, *shape.face_attributes] if isinstance(shape, Mesh) else [*shape.attributes]


def _level(where: str, shape: Voxels | Mesh | Points, attributes: Sequence[str] | None) -> SceneLevel:
    def columns(given: Mapping[str, Tensor], rows: Array | slice) -> dict[str, Array]:
        wanted = {k: v.detach().cpu() for k, v in given.items() if attributes is None or k in attributes}
        return {name: column[rows] for k, v in wanted.items() for name, column in _columns(k, v)}

    if isinstance(shape, Voxels):
        return _voxels(where, shape, columns)
    if isinstance(shape, Points):
        places, origin, size = _quantized(where, shape.positions)
        return SceneLevel("points", len(shape), origin, size, places, columns(shape.attributes, slice(None)))
    places, origin, size = _quantized(where, shape.vertices)
    corners = shape.faces.cpu().numpy().astype(np.uint32)
    on_faces = columns(shape.face_attributes, np.repeat(np.arange(len(corners)), 3))
    if not on_faces:
        rows = columns(shape.vertex_attributes, slice(None))
        return SceneLevel("mesh", len(corners), origin, size, places, rows, corners)
    # Face attributes become attributes of corners, so faces must not share vertices.
    flat = corners.reshape(-1)
    both = columns(shape.vertex_attributes, flat) | on_faces
    faces = np.arange(len(flat), dtype=np.uint32).reshape(-1, 3)
    return SceneLevel("mesh", len(corners), origin, size, places[flat], both, faces)


def _voxels(where: str, voxels: Voxels, columns: Any) -> SceneLevel:
    grid = voxels.grid
    size = np.array(grid.voxel_size)
    if not grid.num_voxels:
        nothing = np.zeros((0, 4), np.uint16)
        return SceneLevel("voxels", 0, np.array(grid.origin), size, nothing, columns(voxels.attributes, slice(None)))
    lower, upper = grid.bounds()
    extent = (upper - lower)[0].tolist()
    if max(extent) > STEPS + 1:
        raise ValueError(
            f"{where} must span at most {STEPS + 1} voxels along each axis, got {extent}: coarsen or crop it"
        )
    table = neighbor_table(grid)
    codes = (table[list(TAPS)] < 0).cpu().numpy() * (1 + (crowding(table) + 1) // 2)
    sides = np.tensordot(6 ** np.arange(6, dtype=np.uint16), codes.astype(np.uint16), 1)
    rows = np.flatnonzero(sides)
    low: Array = lower[0].cpu().numpy()
    places = np.empty((len(rows), 4), np.uint16)
    places[:, :3] = grid.ijk.cpu().numpy()[rows] - low
    places[:, 3] = sides[rows]
    return SceneLevel(
        "voxels", grid.num_voxels, grid.origin + size * low, size, places, columns(voxels.attributes, rows)
    )


def _quantized(where: str, positions: Tensor) -> tuple[NDArray[np.uint16], Floats, Floats]:
    """Quantize positions to 16 bits over the bounding box: half the bytes of float32, without a visible error."""
    at: Floats = positions.detach().cpu().double().numpy()
    if not len(at):
        return np.zeros((0, 3), np.uint16), np.zeros(3), np.ones(3)
    if not np.isfinite(at).all():
        row = int((~np.isfinite(at)).any(1).argmax())
        raise ValueError(f"positions of {where} must be finite, got {tuple(at[row].tolist())} in row {row}")
    low = at.min(0)
    extent = at.max(0) - low
    size = np.where(extent > 0, extent, 1.0) / STEPS
    return np.rint((at - low) / size).astype(np.uint16), low, size


def _columns(name: str, value: Tensor) -> Iterator[tuple[str, Array]]:
    """Convert an attribute to named columns: "color" and "normal" to one of RGB bytes, others to one per channel."""
    if value.is_floating_point() and value.ndim == 2 and value.shape[1] == 3 and name in ("normal", "color"):
        unit = (value.double() + 1) / 2 if name == "normal" else value.double()
        yield name, (unit.nan_to_num(0.5).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        return
    table = value[:, None] if value.ndim == 1 else value
    table = table.double() if table.is_floating_point() else table.long()
    for channel in range(table.shape[1]):
        yield (name if table.shape[1] == 1 else f"{name}[{channel}]"), table[:, channel].numpy()
