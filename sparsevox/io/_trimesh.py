"""Meshes to and from trimesh, which reads, writes and samples them: `pip install 'sparsevox[io]'`."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsevox.shapes import Mesh

if TYPE_CHECKING:
    import trimesh


def library() -> Any:
    """The module trimesh, or an ImportError that says how to get it."""
    try:
        import trimesh
    except ImportError as error:
        raise ImportError("meshes need trimesh: pip install 'sparsevox[io]'") from error
    return trimesh


def to_trimesh(mesh: Mesh) -> "trimesh.Trimesh":
    """The mesh with every vertex and face in its row; "color" and "normal" go along."""
    made = library().Trimesh(mesh.vertices.detach().cpu().double().numpy(), mesh.faces.cpu().numpy(), process=False)
    for attributes, kind in ((mesh.vertex_attributes, "vertex"), (mesh.face_attributes, "face")):
        if "color" in attributes:
            colors = attributes["color"].detach().cpu().double().clamp(0, 1).numpy()
            setattr(made.visual, f"{kind}_colors", np.rint(colors * 255).astype(np.uint8))
    if "normal" in mesh.vertex_attributes:
        made.vertex_normals = mesh.vertex_attributes["normal"].detach().cpu().double().numpy()
    return made


def from_trimesh(mesh: "trimesh.Trimesh") -> Mesh:
    """The mesh with every vertex and face in its row. Colors, textures too, become "color" of the vertices or faces."""
    vertices, faces = torch.from_numpy(np.array(mesh.vertices, np.float64)), torch.from_numpy(np.array(mesh.faces))
    vertex: dict[str, torch.Tensor] = {}
    face: dict[str, torch.Tensor] = {}
    visual: Any = mesh.visual
    if visual.kind == "texture":
        visual = visual.to_color()
    if visual.kind in ("vertex", "face"):
        colors = np.array(visual.vertex_colors if visual.kind == "vertex" else visual.face_colors)[:, :3]
        (vertex if visual.kind == "vertex" else face)["color"] = torch.from_numpy(colors.astype(np.float32) / 255)
    return Mesh(vertices, faces.long(), vertex, face)
