"""Properties of the vertices and faces of PLY files: from trimesh to the attribute names of this library and back."""

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

RAW = "_ply_raw"  # key of the raw elements in the metadata of a mesh that trimesh loaded

# Properties that are not attributes of the same name.
_POSITION = ("x", "y", "z")
_NORMAL = ("nx", "ny", "nz")
_COLOR = ("red", "green", "blue")
_INDEX = ("vertex_index", "vertex_indices")
_RESERVED = {*_POSITION, *_NORMAL, *_COLOR, "alpha", *_INDEX, "texcoord"}
_INTERNAL = {"vertex", "normals", "rgba", "count"}  # names that trimesh uses for its own columns when it writes

# Dtypes that the PLY format lacks, and those that replace them.
_STORED = {"b1": np.uint8, "f2": np.float32, "i8": np.int32}


def elements_of(data: bytes) -> dict[str, Any]:
    """Parse a PLY file with trimesh: a dict of "length", "properties" and "data" for each element by name.

    Raises:
        ImportError: If trimesh is not installed.
        ValueError: If the file is damaged.
    """
    with parsing() as trimesh:
        elements: dict[str, Any] = trimesh.exchange.ply.load_ply(io.BytesIO(data), skip_materials=True)["metadata"][RAW]
    return elements


def positions(elements: Mapping[str, Any]) -> Tensor:
    """Read the positions of the vertices [P, 3], in the floating-point dtype of the file.

    Raises:
        ValueError: If there are no vertices, or the file is truncated.
    """
    columns = _columns(elements, "vertex")
    if not columns:
        raise ValueError("the file has no vertices")
    stacked = np.stack([columns[axis].reshape(-1) for axis in _POSITION], 1)
    return to_tensor("positions", stacked if stacked.dtype.kind == "f" else stacked.astype(np.float64))


def attributes(elements: Mapping[str, Any], element: str) -> dict[str, Tensor]:
    """Read the properties of element "vertex" or "face" by name, except positions and indices.

    nx, ny and nz become "normal", float32 [., 3]. red, green and blue become "color", float32 [., 3]; integers are
    divided by the maximum of their dtype. "intensity" becomes [., 1]. Lists of varying length are skipped.

    Raises:
        ValueError: If the file is truncated.
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
    """Check whether every face of the file has three vertices."""
    columns = _columns(elements, "face")
    found = [columns[name] for name in _INDEX if name in columns]
    return bool(found) and found[0].ndim == 2 and found[0].shape[1] == 3


def encode(mesh: Mesh) -> bytes:
    """Encode a mesh, or the points of a mesh without faces, as a binary PLY file.

    Raises:
        ValueError: If the format does not allow the name, dtype or shape of an attribute.
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
        raise ValueError(f"attribute names in a .ply file must be ASCII identifiers and not reserved, got {name!r}")
    array = to_array(value)
    if array.dtype.kind == "c":
        raise ValueError(f"attributes in a .ply file must not be complex, got {array.dtype} for {name!r}")
    if array.ndim == 2 and not 1 <= array.shape[1] <= 255:
        raise ValueError(f"attributes in a .ply file must have 1 to 255 channels, got {array.shape[1]} for {name!r}")
    stored = array.astype(_STORED.get(array.dtype.str[1:], array.dtype))
    if array.dtype == np.int64 and not np.array_equal(stored, array):
        raise ValueError(f"integers in a .ply file must fit in 32 bits, got larger ones in attribute {name!r}")
    # A single channel is stored as a scalar property, which more readers support than a list of length 1.
    return stored[:, 0] if stored.ndim == 2 and stored.shape[1] == 1 else stored


def _columns(elements: Mapping[str, Any], element: str) -> dict[str, Array]:
    """Read the properties of an element, [rows] or [rows, C]."""
    if element not in elements or not elements[element]["length"]:
        return {}
    data = elements[element]["data"]
    names = data.keys() if isinstance(data, dict) else data.dtype.names or ()
    columns: dict[str, Array] = {}
    for name in names:
        column = np.asarray(data[name])
        if column.dtype.names:  # a list property: field f0 is the length, f1 the values
            column = column["f1"]
        if len(column) < elements[element]["length"]:
            raise ValueError(
                f"the file is truncated: it has {len(column)} of {elements[element]['length']} rows of {element}"
            )
        columns[name] = column[:, 0] if column.ndim == 2 and column.shape[1] == 1 else column
    return columns


def _stacked(columns: Mapping[str, Array], names: tuple[str, ...]) -> Array:
    return np.stack([columns[name].reshape(-1) for name in names], 1)
