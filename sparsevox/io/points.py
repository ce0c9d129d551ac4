"""Point clouds from files and to files.

P points, C channels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sparsevox.files import atomic_write, prefix_errors
from sparsevox.io import _ply
from sparsevox.io._files import (
    FilePath,
    existing,
    read_numpy,
    rowwise,
    suffix_of,
    to_array,
    to_tensor,
    write_npz,
)
from sparsevox.shapes import Mesh, Points

Array = NDArray[Any]

POSITIONS = ("positions", "points", "xyz")  # names of the array of positions in a .npz file

# Names that others use for attributes that ops know.
_KNOWN = {"normals": "normal", "colors": "color", "rgb": "color", "labels": "label", "intensities": "intensity"}


def load_points(path: FilePath, *, columns: Sequence[str] | None = None, labels: FilePath | None = None) -> Points:
    """The points of a .ply, .npz, .npy or .bin file.

    - .ply: the vertices. nx, ny, nz become "normal", red, green, blue "color", every other property keeps its name.
    - .npz: the array "positions", "points" or "xyz" [P, 3]. Every other array of numbers [P] or [P, C] becomes an
      attribute of that name; "normals", "colors", "rgb", "labels" and "intensities" are called as ops know them.
    - .npy: an array [P, 3 + C]: x, y, z and the `columns`.
    - .bin: float32 x, y, z and the `columns` of each point, as KITTI and SemanticKITTI store them.

    Integers named "color" are divided by the largest of their type; "intensity" becomes [P, 1]. Positions keep their
    floating-point type, integers become float64. What is not finite is kept: scanners write it for lost returns, and
    `points[points.positions.isfinite().all(1)]` leaves it out.

    Args:
        path: The file.
        columns: Of .npy and .bin files: a name for each column after x, y, z. Columns next to each other under one name
            become one attribute [P, C], and "" leaves a column out. By default none for .npy, "intensity" for .bin.
        labels: A .label file of SemanticKITTI: for each point a uint32, the semantic class in its lower 16 bits, which
            becomes "label", int64 [P], and the instance in its upper ones, "instance", int64 [P].

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the file is .ply and trimesh is not installed.
        ValueError: If a name ends otherwise, a file is damaged, cut off or without points, columns or labels do not
            fit, or arrays are Python objects, which would have to be unpickled. It names the file.
    """
    file = existing(path, ".ply", ".npz", ".npy", ".bin")
    kind = file.suffix.lower()
    if columns is not None and kind not in (".npy", ".bin"):
        raise ValueError(f"columns name those of .npy and .bin files, got {list(columns)} for {file}")
    with prefix_errors(path):
        if kind == ".ply":
            points = _from_ply(file.read_bytes())
        elif kind == ".npz":
            points = _from_arrays(read_numpy(file))
        elif kind == ".npy":
            points = _from_table(read_numpy(file)[""], () if columns is None else columns)
        else:
            points = _from_bin(file.read_bytes(), ("intensity",) if columns is None else columns)
    return points if labels is None else _labeled(points, existing(labels, ".label"))


def save_points(points: Points, path: FilePath) -> None:
    """Write points to a .npz or .ply file, all or nothing.

    - .npz holds everything to the bit, "positions" and each attribute under its name; bfloat16 becomes float32.
    - .ply holds positions and normals as float32, colors as 8 bits, every other attribute as `save_mesh` says; [P, 1]
      comes back as [P].

    Raises:
        ImportError: If the file is .ply and trimesh is not installed.
        ValueError: If the name ends otherwise, or the file cannot hold an attribute.
    """
    if suffix_of(path, ".npz", ".ply") == ".npz":
        clash = sorted({*POSITIONS, *_KNOWN} & points.attributes.keys())
        if clash:
            raise ValueError(
                f"attributes of a .npz file must not be called {clash[0]!r}: it means something else there"
            )
        arrays = {"positions": points.positions, **points.attributes}
        write_npz(path, {name: to_array(value) for name, value in arrays.items()})
        return
    no_faces = points.positions.new_zeros((0, 3)).long()
    data = _ply.encode(Mesh(points.positions, no_faces, points.attributes))
    with atomic_write(path) as file:
        file.write(data)


def _from_ply(data: bytes) -> Points:
    elements = _ply.elements_of(data)
    return Points(_ply.positions(elements), _ply.attributes(elements, "vertex"))


def _from_arrays(arrays: Mapping[str, Array]) -> Points:
    found = [name for name in POSITIONS if name in arrays]
    if len(found) != 1:
        raise ValueError(f"one array must be called {' or '.join(POSITIONS)}, got {sorted(arrays)}")
    positions = _positions(arrays[found[0]])
    named = {_KNOWN.get(name, name): value for name, value in arrays.items() if name not in found}
    if len(named) < len(arrays) - 1:
        raise ValueError(f"two arrays are one attribute, among {sorted(arrays)}")
    return Points(positions, rowwise({k: _conventional(k, v) for k, v in named.items()}, len(positions)))


def _from_table(table: Array, columns: Sequence[str]) -> Points:
    if table.ndim != 2 or table.shape[1] < 3:
        raise ValueError(f"the array must have shape [P, 3 + C], got {list(table.shape)}")
    if table.shape[1] != 3 + len(columns):
        raise ValueError(
            f"the array has {table.shape[1]} columns; name those after x, y, z: columns=(...) of "
            f"{table.shape[1] - 3} names, got {list(columns)}"
        )
    positions, made = _positions(table[:, :3]), {}
    for name in dict.fromkeys(columns):
        if name:
            where = [3 + n for n, column in enumerate(columns) if column == name]
            made[name] = to_tensor(
                name, _conventional(name, table[:, where[0]] if len(where) == 1 else table[:, where])
            )
    return Points(positions, made)


def _from_bin(data: bytes, columns: Sequence[str]) -> Points:
    width = 4 * (3 + len(columns))
    if len(data) % width:
        raise ValueError(f"the file is cut off, or has other columns: {len(data)} bytes, {width} for each point")
    return _from_table(np.frombuffer(data, "<f4").reshape(-1, width // 4), columns)


def _labeled(points: Points, file: Path) -> Points:
    data = file.read_bytes()
    if len(data) != 4 * len(points):
        raise ValueError(f"{file}: must have 4 bytes for each of {len(points)} points, got {len(data)}")
    both = np.frombuffer(data, "<u4").astype(np.int64)
    made = {"label": to_tensor("label", both & 0xFFFF), "instance": to_tensor("instance", both >> 16)}
    return Points(points.positions, {**points.attributes, **made})


def _positions(array: Array) -> Tensor:
    if array.ndim != 2 or array.shape[1] != 3 or array.dtype.kind not in "iuf":
        raise ValueError(f"positions must be numbers [P, 3], got {array.dtype} {list(array.shape)}")
    return to_tensor("positions", array if array.dtype.kind == "f" else array.astype(np.float64))


def _conventional(name: str, array: Array) -> Array:
    """Color in [0, 1] without alpha and intensity as a column, as ops know them."""
    if name == "color" and array.dtype.kind in "iu":
        # NumPy makes 64-bit integers of what it is given, so there the values tell bytes from full range.
        bytes_only = array.dtype.itemsize > 2 and array.size and array.min() >= 0 and array.max() <= 255
        return (array / (255 if bytes_only else np.iinfo(array.dtype).max)).astype(np.float32)[:, :3]
    if name == "color" and array.ndim == 2:
        return array[:, :3]
    return array[:, None] if name == "intensity" and array.ndim == 1 else array
