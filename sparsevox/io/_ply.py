"""Properties of the vertices and faces of PLY files: what trimesh reads and writes, under our names."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sparsevox.io._files import to_array, to_tensor
from sparsevox.io.trimesh import exported, parsing, to_trimesh
from sparsevox.shapes import Mesh

Array = NDArray[Any]

RAW = "_ply_raw"  # where trimesh keeps the elements, in the metadata of what it made of them

# Properties that make up one attribute or none of ours.
_POSITION = ("x", "y", "z")
_NORMAL = ("nx", "ny", "nz")
_COLOR = ("red", "green", "blue")
_INDEX = ("vertex_index", "vertex_indices")
_RESERVED = {*_POSITION, *_NORMAL, *_COLOR, "alpha", *_INDEX, "texcoord"}
_INTERNAL = {"vertex", "normals", "rgba", "count"}  # names of trimesh's own columns while it writes

# The types that a reader of PLY has to know, in place of those it may not.
_STORED = {"b1": np.uint8, "f2": np.float32, "i8": np.int32}


def elements_of(data: bytes) -> dict[str, Any]:
    """What a PLY file holds, as trimesh parses it: by the name of an element its "length", "properties" and "data".

    Raises:
        ImportError: If trimesh is not installed.
        ValueError: If the file is damaged.
    """
    with parsing() as trimesh:
        elements: dict[str, Any] = trimesh.exchange.ply.load_ply(io.BytesIO(data), skip_materials=True)["metadata"][RAW]
    return elements


def positions(elements: Mapping[str, Any]) -> Tensor:
    """Positions of the vertices [P, 3], in the type of the file.

    Raises:
        ValueError: If there are none, or the file is cut off.
    """
    columns = _columns(elements, "vertex")
    if not columns:
        raise ValueError("the file has no vertices")
    stacked = np.stack([columns[axis].reshape(-1) for axis in _POSITION], 1)
    return to_tensor("positions", stacked if stacked.dtype.kind == "f" else stacked.astype(np.float64))


def attributes(elements: Mapping[str, Any], element: str) -> dict[str, Tensor]:
    """Properties of the "vertex" or "face" of a file by name, apart from positions and indices.

    nx, ny and nz become "normal", float32 [., 3]; red, green and blue "color", float32 [., 3], integers divided by the
    largest of their type; "intensity" becomes [., 1]. Lists of different lengths are left out.

    Raises:
        ValueError: If the file is cut off.
    """
    columns = _columns(elements, element)
    made: dict[str, Tensor] = {}
    if columns.keys() >= set(_NORMAL):
        made["normal"] = to_tensor("normal", _stacked(columns, _NORMAL).astype(np.float32))
    if columns.keys() >= set(_COLOR):
        rgb = _stacked(columns, _COLOR)
        scale = np.iinfo(rgb.dtype).max if rgb.dtype.kind in "iu" else 1
        made["color"] = to_tensor("color", (rgb / scale).astype(np.float32))
    for name, column in columns.items():
        if name not in _RESERVED and column.dtype.kind in "iuf":
            value = to_tensor(name, column)
            made[name] = value[:, None] if name == "intensity" and value.ndim == 1 else value
    return made


def is_triangles(elements: Mapping[str, Any]) -> bool:
    """Whether every face of the file has three corners."""
    columns = _columns(elements, "face")
    found = [columns[name] for name in _INDEX if name in columns]
    return bool(found) and found[0].ndim == 2 and found[0].shape[1] == 3


def encode(mesh: Mesh) -> bytes:
    """A binary PLY file of a mesh, or of points if it has no faces.

    Raises:
        ValueError: If an attribute has a name or a type that the format does not have.
    """
    made = to_trimesh(mesh)
    for given, stored in (
        (mesh.vertex_attributes, made.vertex_attributes),
        (mesh.face_attributes, made.face_attributes),
    ):
        for name, value in given.items():
            if name == "color" or (name == "normal" and given is mesh.vertex_attributes):
                continue
            stored[name] = _storable(name, value)
    return exported(made, "ply", vertex_normal="normal" in mesh.vertex_attributes)


def _storable(name: str, value: Tensor) -> Array:
    if not name.isidentifier() or not name.isascii() or name in _RESERVED | _INTERNAL:
        raise ValueError(f"names of attributes in a .ply file must be words and no property of its own, got {name!r}")
    array = to_array(value)
    if array.dtype.kind == "c":
        raise ValueError(f"a .ply file holds no complex numbers, got attribute {name!r}")
    if array.ndim == 2 and not 1 <= array.shape[1] <= 255:
        raise ValueError(f"a .ply file holds 1 to 255 channels, got attribute {name!r} of {array.shape[1]}")
    stored = array.astype(_STORED.get(array.dtype.str[1:], array.dtype))
    if array.dtype == np.int64 and not np.array_equal(stored, array):
        raise ValueError(f"a .ply file holds integers of 32 bits, got attribute {name!r} with larger ones")
    # One column is a plain property, which every reader knows, and not a list of one.
    return stored[:, 0] if stored.ndim == 2 and stored.shape[1] == 1 else stored


def _columns(elements: Mapping[str, Any], element: str) -> dict[str, Array]:
    """The properties of an element, [rows] or [rows, C]."""
    if element not in elements or not elements[element]["length"]:
        return {}
    data = elements[element]["data"]
    names = data.keys() if isinstance(data, dict) else data.dtype.names or ()
    columns: dict[str, Array] = {}
    for name in names:
        column = np.asarray(data[name])
        if column.dtype.names:  # a list: how many, then which
            column = column["f1"]
        if len(column) < elements[element]["length"]:
            raise ValueError(f"the file is cut off: {len(column)} of {elements[element]['length']} rows of {element}")
        columns[name] = column[:, 0] if column.ndim == 2 and column.shape[1] == 1 else column
    return columns


def _stacked(columns: Mapping[str, Array], names: tuple[str, ...]) -> Array:
    return np.stack([columns[name].reshape(-1) for name in names], 1)
