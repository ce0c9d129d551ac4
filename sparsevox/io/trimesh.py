"""Meshes to and from trimesh, which reads, writes and samples them: `pip install 'sparsevox[io]'`."""

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
    """The module trimesh, or an ImportError that says how to get it."""
    try:
        import trimesh
    except ImportError as error:
        raise ImportError("meshes need trimesh: pip install 'sparsevox[io]'") from error
    return trimesh


@contextmanager
def parsing() -> Iterator[Any]:
    """The module trimesh, for reading a file. Whatever its parsers raise becomes a ValueError.

    Raises:
        ImportError: If trimesh is not installed, or Pillow where the file needs it.
        ValueError: If a parser fails, or a number in a text is none.
    """
    trimesh = import_trimesh()
    with warnings.catch_warnings():
        # NumPy before 2.3 only warns of it, and stops reading there.
        warnings.filterwarnings("error", message=".*could not be read to its end", category=DeprecationWarning)
        warnings.simplefilter("ignore", RuntimeWarning)  # a vertex without texture coordinates has NaN there
        try:
            yield trimesh
        except Exception as error:  # a damaged file may raise nearly anything
            if isinstance(error, ImportError) and "PIL" in str(error):
                raise ImportError("texture coordinates need Pillow: pip install 'sparsevox[io]'") from error
            raise ValueError(f"trimesh cannot read it: {error!r}") from error


def to_trimesh(mesh: Mesh) -> "trimesh.Trimesh":
    """The mesh with every vertex and face in its row; "color" and "normal" go along.

    Where vertices and faces both have a color, that of the vertices counts.
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
    """The bytes of a file of that kind, such as "obj"."""
    data: Any = mesh.export(file_type=kind, **options)
    return data.encode() if isinstance(data, str) else bytes(data)


def from_trimesh(mesh: "trimesh.Trimesh") -> Mesh:
    """The mesh with every vertex and face in its row. Colors, textures too, become "color" of the vertices or faces.

    A vertex has the color that its texture has there. A mesh in one of the grays that trimesh gives to what has no
    color gets none.
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
    """Red, green and blue of `count` vertices: of the texture, or of a material without one."""
    looks = import_trimesh().visual
    colors = np.asarray(visual.material.to_color(visual.uv))
    if colors.shape != (count, 4):
        colors = np.tile(visual.material.main_color, (count, 1))
    grays = (looks.color.DEFAULT_COLOR, looks.material.empty_material().to_color(np.zeros((1, 2))))
    return None if any((colors == gray).all() for gray in grays) else colors
