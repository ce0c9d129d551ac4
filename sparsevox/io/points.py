"""Reading and writing point clouds.

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

POSITIONS = ("positions", "points", "xyz")  # accepted names of the array of positions in a .npz file

# Common names in files of other programs, and the attribute names of this library.
_KNOWN = {"normals": "normal", "colors": "color", "rgb": "color", "labels": "label", "intensities": "intensity"}


def load_points(path: FilePath, *, columns: Sequence[str] | None = None, labels: FilePath | None = None) -> Points:
    """Load points from a .ply, .npz, .npy or .bin file.

    - .ply: the vertices. nx, ny, nz become "normal", red, green, blue become "color", other properties keep their name.
    - .npz: positions are the array "positions", "points" or "xyz", [P, 3]. Other numeric arrays [P] or [P, C] become
      attributes of the same name, except that "normals", "colors", "rgb", "labels" and "intensities" are renamed to
      "normal", "color", "color", "label" and "intensity".
    - .npy: an array [P, 3 + C] of x, y, z and the `columns`.
    - .bin: x, y, z and the `columns` of each point as float32, the format of KITTI and SemanticKITTI.

    Integer colors are divided by the maximum of their dtype; "intensity" becomes [P, 1]. Floating-point positions keep
    their dtype, integers become float64. Positions that are not finite, which scanners write for lost returns, are
    kept; `points[points.positions.isfinite().all(1)]` removes them.

    Args:
        path: File to load.
        columns: Names of the columns after x, y, z of a .npy or .bin file. Columns of the same name become one
            attribute [P, C]; the name "" skips a column. By default none for .npy and "intensity" for .bin.
        labels: A .label file of SemanticKITTI, one uint32 per point. Its lower 16 bits become "label", the semantic
            class, and its upper 16 bits become "instance", both int64 [P].

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the file is .ply and trimesh is not installed.
        ValueError: If a suffix is unknown, a file is damaged, truncated, has no points or holds pickled Python objects,
            or columns or labels do not match. The message starts with the path.
    """
    file = existing(path, ".ply", ".npz", ".npy", ".bin")
    kind = file.suffix.lower()
    if columns is not None and kind not in (".npy", ".bin"):
        raise ValueError(f"columns apply to .npy and .bin files only, got {list(columns)} for {file}")
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
    """Save points to a .npz or .ply file, atomically.

    - .npz stores "positions" and all attributes exactly, except that bfloat16 becomes float32.
    - .ply stores positions and normals as float32, colors as 8 bits per channel, and other attributes as in
      `save_mesh`. An attribute [P, 1] is loaded as [P].

    Args:
        points: Points to save.
        path: File to write. Its suffix selects the format.

    Raises:
        ImportError: If the file is .ply and trimesh is not installed.
        ValueError: If the suffix is unknown, or the format does not allow an attribute.
    """
    if suffix_of(path, ".npz", ".ply") == ".npz":
        clash = sorted({*POSITIONS, *_KNOWN} & points.attributes.keys())
        if clash:
            raise ValueError(f"attributes in a .npz file must not be named {clash[0]!r}, which is reserved")
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
        raise ValueError(f"exactly one array must be named {' or '.join(POSITIONS)}, got {sorted(arrays)}")
    positions = _positions(arrays[found[0]])
    named = {_KNOWN.get(name, name): value for name, value in arrays.items() if name not in found}
    if len(named) < len(arrays) - 1:
        raise ValueError(f"arrays must be distinct attributes, got several names for the same one in {sorted(arrays)}")
    return Points(positions, rowwise({k: _conventional(k, v) for k, v in named.items()}, len(positions)))


def _from_table(table: Array, columns: Sequence[str]) -> Points:
    if table.ndim != 2 or table.shape[1] < 3:
        raise ValueError(f"the array must have shape [P, 3 + C], got {list(table.shape)}")
    if table.shape[1] != 3 + len(columns):
        raise ValueError(
            f"columns must have {table.shape[1] - 3} names, one per column after x, y, z of the array "
            f"{list(table.shape)}, got {list(columns)}"
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
        raise ValueError(f"the file must have {width} bytes per point, got {len(data)}: truncated or other columns")
    return _from_table(np.frombuffer(data, "<f4").reshape(-1, width // 4), columns)


def _labeled(points: Points, file: Path) -> Points:
    data = file.read_bytes()
    if len(data) != 4 * len(points):
        raise ValueError(f"{file}: the file must have 4 bytes for each of {len(points)} points, got {len(data)}")
    both = np.frombuffer(data, "<u4").astype(np.int64)
    made = {"label": to_tensor("label", both & 0xFFFF), "instance": to_tensor("instance", both >> 16)}
    return Points(points.positions, {**points.attributes, **made})


def _positions(array: Array) -> Tensor:
    if array.ndim != 2 or array.shape[1] != 3 or array.dtype.kind not in "iuf":
        raise ValueError(f"positions must be real numbers of shape [P, 3], got {array.dtype} {list(array.shape)}")
    return to_tensor("positions", array if array.dtype.kind == "f" else array.astype(np.float64))


def _conventional(name: str, array: Array) -> Array:
    """Convert colors to [0, 1] without alpha, and intensity to a column."""
    if name == "color" and array.dtype.kind in "iu":
        # NumPy's default integer has 64 bits, so only the values tell whether such colors are bytes.
        bytes_only = array.dtype.itemsize > 2 and array.size and array.min() >= 0 and array.max() <= 255
        return (array / (255 if bytes_only else np.iinfo(array.dtype).max)).astype(np.float32)[:, :3]
    if name == "color" and array.ndim == 2:
        return array[:, :3]
    return array[:, None] if name == "intensity" and array.ndim == 1 else array
