"""Conversion of meshes to and from trimesh (`pip install 'sparsevox[io]'`), which reads, writes and samples them."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsevox.shapes import Mesh

if TYPE_CHECKING:
    import trimesh

Array = NDArray[Any]


def import_trimesh() -> Any:
    """Import trimesh, or raise an ImportError that says how to install it."""
    try:
        import trimesh
    except ImportError as error:
        raise ImportError("meshes need trimesh: pip install 'sparsevox[io]'") from error
    return trimesh


@contextmanager
def parsing() -> Iterator[Any]:
    """Provide the trimesh module for reading a file, and turn any error of its parsers into a ValueError.

    Raises:
        ImportError: If trimesh is not installed, or the file needs Pillow and that is not installed.
        ValueError: If a parser fails, or text cannot be parsed as numbers.
    """
    trimesh = import_trimesh()
    with warnings.catch_warnings():
        # NumPy before 2.3 warns about text that is not a number, and silently drops the rest.
        warnings.filterwarnings("error", message=".*could not be read to its end", category=DeprecationWarning)
        warnings.simplefilter("ignore", RuntimeWarning)  # vertices without texture coordinates have NaN
        try:
            yield trimesh
        except Exception as error:  # damaged files raise exceptions of many types
            if isinstance(error, ImportError) and "PIL" in str(error):
                raise ImportError("texture coordinates need Pillow: pip install 'sparsevox[io]'") from error
            raise ValueError(f"trimesh cannot read the file: {error!r}") from error


def to_trimesh(mesh: Mesh) -> "trimesh.Trimesh":
    """Convert a mesh to trimesh, with its "color" and the "normal" of its vertices. Rows keep their order.

    If both vertices and faces have a color, that of the vertices is used.

    Raises:
        ImportError: If trimesh is not installed.
    """
    made = import_trimesh().Trimesh(
        mesh.vertices.detach().cpu().double().numpy(), mesh.faces.cpu().numpy(), process=False
    )
    for attributes, kind in ((mesh.face_attributes, "face"), (mesh.vertex_attributes, "vertex")):
        if "color" in attributes:
            colors = attributes["color"].detach().cpu().double().clamp(0, 1).numpy()
            setattr(made.visual, f"{kind}_colors", np.rint(colors * 255).astype(np.uint8))
    if "normal" in mesh.vertex_attributes:
        made.vertex_normals = mesh.vertex_attributes["normal"].detach().cpu().double().numpy()
    return made


def exported(mesh: "trimesh.Trimesh", kind: str, **options: Any) -> bytes:
    """Encode a mesh as a file of the given type, such as "obj"."""
    data: Any = mesh.export(file_type=kind, **options)
    return data.encode() if isinstance(data, str) else bytes(data)


def from_trimesh(mesh: "trimesh.Trimesh") -> Mesh:
    """Convert a mesh from trimesh. Rows keep their order, and colors become "color" of the vertices or faces.

    A texture is sampled at the vertices. The default grays of trimesh, for meshes without colors, are ignored.

    Returns:
        Vertices float64 [V, 3], faces int64 [F, 3], "color" float32 [., 3].
    """
    vertices, faces = torch.from_numpy(np.array(mesh.vertices, np.float64)), torch.from_numpy(np.array(mesh.faces))
    vertex: dict[str, torch.Tensor] = {}
    face: dict[str, torch.Tensor] = {}
    visual: Any = mesh.visual
    if visual.kind == "face":
        face["color"] = _color(visual.face_colors)
    elif visual.kind == "vertex":
        vertex["color"] = _color(visual.vertex_colors)
    elif visual.kind == "texture" and (colors := _texture_colors(visual, len(vertices))) is not None:
        vertex["color"] = _color(colors)
    return Mesh(vertices, faces.reshape(-1, 3).long(), vertex, face)


def _color(rgba: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(rgba)[:, :3].astype(np.float32) / 255)


def _texture_colors(visual: Any, count: int) -> Array | None:
    """Get the RGBA colors [count, 4] of the vertices from the texture, or else from the material."""
    visuals = import_trimesh().visual
    colors = np.asarray(visual.material.to_color(visual.uv))
    if colors.shape != (count, 4):
        colors = np.tile(visual.material.main_color, (count, 1))
    grays = (visuals.color.DEFAULT_COLOR, visuals.material.empty_material().to_color(np.zeros((1, 2))))
    return None if any((colors == gray).all() for gray in grays) else colors
