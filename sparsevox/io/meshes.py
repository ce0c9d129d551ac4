"""Meshes from files and to files, by trimesh.

V vertices, F faces.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsevox.files import atomic_write, prefix_errors
from sparsevox.io import _ply
from sparsevox.io._files import FilePath, existing, suffix_of
from sparsevox.io.sampling import check_finite
from sparsevox.io.trimesh import exported, from_trimesh, parsing, to_trimesh
from sparsevox.shapes import Mesh

READS = (".obj", ".ply", ".stl", ".off", ".glb", ".gltf")
WRITES = (".obj", ".ply", ".stl", ".off", ".glb")


def load_mesh(path: FilePath) -> Mesh:
    """The triangles of a .obj, .ply, .stl, .off, .glb or .gltf file.

    - Polygons become triangles. All parts of a scene become one mesh, each moved to where the scene has it.
    - Vertices stay as they are in the file; nothing is merged, and nothing is left out for being degenerate. Two
      formats repeat vertices: .stl has three for each triangle, and trimesh makes one for each combination of position,
      texture coordinate and normal that the faces of a .obj file with materials use. `describe` counts equal positions
      once.
    - The colors of vertices, textures (at the vertices) and materials become "color" of the vertices, those of faces
      "color" of the faces. Parts without a color are white beside others that have one.
    - Of .ply files "normal" and every further property of vertices and faces come along under their names, unless a
      texture or polygons made other vertices or faces of them. Normals of other formats are left behind.

    An open mesh is as welcome as a closed one; `describe` tells which it is.

    Returns:
        Vertices float64 [V, 3], faces int64 [F, 3], "color" float32 in [0, 1], on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If trimesh is not installed, or Pillow and the file has texture coordinates or materials.
        ValueError: If the name ends otherwise, or the file is damaged, cut off (a .obj file does not say how long it
            is: what lies before the cut may pass), has no faces, or a vertex is not finite. It names the file.
    """
    file = existing(path, *READS)
    data, kind = file.read_bytes(), file.suffix.lower()
    with prefix_errors(path):
        if kind in (".obj", ".off") or (kind == ".stl" and b"\0" not in data):
            data = _as_utf8(data)
        if kind == ".off":
            _check_off(data.decode())
        if kind == ".stl":
            _check_stl(data)
        parts = _parts(file, data, kind)
        if not parts:
            raise ValueError("the mesh has no faces")
        mesh = _joined([mesh for mesh, _ in parts]) if len(parts) > 1 else _with_properties(*parts[0])
        if not len(mesh.faces):
            raise ValueError("the mesh has no faces")
        check_finite("vertices", mesh.vertices)
    return mesh


def save_mesh(mesh: Mesh, path: FilePath) -> None:
    """Write a mesh to a .obj, .ply, .stl, .off or .glb file, all or nothing.

    - .ply holds positions as float32, colors as 8 bits, "normal" and every other attribute: float16 and bfloat16 as
      float32, bool as uint8, int64 as int32.
    - .obj and .glb hold colors of vertices; those of faces are averaged at the vertices. Other attributes are left out.
    - .stl and .off hold triangles only.

    Raises:
        ImportError: If trimesh is not installed.
        ValueError: If the name ends otherwise, the mesh has no faces, a vertex is not finite, or a .ply file cannot
            hold an attribute.
    """
    kind = suffix_of(path, *WRITES)
    if not len(mesh.faces):
        raise ValueError(f"mesh must have faces, got {mesh}")
    check_finite("mesh.vertices", mesh.vertices)
    data = _ply.encode(mesh) if kind == ".ply" else exported(to_trimesh(mesh), kind[1:])
    with atomic_write(path) as file:
        file.write(data)


class MeshInfo(NamedTuple):
    """What `describe` finds out. Corners at equal positions count as one vertex here.

    vertices: How many positions the faces use.
    faces: How many faces have three different corners.
    degenerate_faces: How many do not. They count for nothing else.
    boundary_edges: Edges of one face only.
    crowded_edges: Edges of more than two faces.
    flipped_edges: Edges of two faces that run around them in different senses.
    """

    vertices: int
    faces: int
    degenerate_faces: int
    boundary_edges: int
    crowded_edges: int
    flipped_edges: int

    @property
    def closed(self) -> bool:
        """Whether there are faces and no edge is open. The inside of an open mesh is undefined."""
        return self.faces > 0 and self.boundary_edges == 0

    @property
    def edge_manifold(self) -> bool:
        """Whether no edge has more than two faces."""
        return self.crowded_edges == 0

    @property
    def oriented(self) -> bool:
        """Whether neighboring faces agree on which side is out."""
        return self.edge_manifold and self.flipped_edges == 0


def describe(mesh: Mesh) -> MeshInfo:
    """Whether a mesh is closed, edge-manifold and oriented, and how many edges say otherwise."""
    place = torch.unique(mesh.vertices, dim=0, return_inverse=True)[1]
    corners = place[mesh.faces.long()]
    a, b, c = corners.unbind(1)
    proper = (a != b) & (b != c) & (c != a)
    used = len(corners.unique())
    corners = corners[proper]
    edges = torch.stack([corners, corners.roll(-1, 1)], 2).reshape(-1, 2)  # each as its face runs along it
    forward = (edges[:, 0] < edges[:, 1]).long()
    keys = edges.amin(1) * max(len(place), 1) + edges.amax(1)
    _, edge, count = torch.unique(keys, return_inverse=True, return_counts=True)
    ahead = torch.zeros_like(count).index_put_((edge,), forward, accumulate=True)
    return MeshInfo(
        vertices=used,
        faces=len(corners),
        degenerate_faces=int((~proper).sum()),
        boundary_edges=int((count == 1).sum()),
        crowded_edges=int((count > 2).sum()),
        flipped_edges=int(((count == 2) & (ahead != 1)).sum()),
    )


def _parts(file: Path, data: bytes, kind: str) -> list[tuple[Mesh, dict[str, Any]]]:
    """The meshes of a file, each where it belongs, and what trimesh notes about them."""
    options: dict[str, Any] = {"process": False}
    if kind == ".obj" and b"usemtl" not in data:
        options["maintain_order"] = True  # without materials there is nothing to repeat vertices for
    with parsing() as trimesh:
        resolver = trimesh.resolvers.FilePathResolver(str(file))
        if kind == ".ply":
            parts = _ply_parts(trimesh, trimesh.exchange.ply.load_ply(io.BytesIO(data), resolver=resolver))
        else:
            scene = trimesh.load_scene(io.BytesIO(data), file_type=kind[1:], resolver=resolver, **options)
            parts = [part for part in scene.dump() if isinstance(part, trimesh.Trimesh)]
        return [(from_trimesh(part), part.metadata) for part in parts]


def _ply_parts(trimesh: Any, read: dict[str, Any]) -> Sequence[Any]:
    """What `trimesh.load_scene` makes of a PLY file, which fails where polygons have colors."""
    if read.get("faces") is None:
        return []
    read["faces"] = trimesh.geometry.triangulate_quads(read["faces"])
    for name, rows in (("face_colors", read["faces"]), ("vertex_colors", read["vertices"])):
        if read.get(name) is not None and len(read[name]) != len(rows):
            del read[name]
    return [trimesh.Trimesh(**read, process=False)]


def _as_utf8(data: bytes) -> bytes:
    """Text, whose numbers are ASCII in any case, in the one encoding that needs no guess."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1").encode()
    return data


def _check_off(text: str) -> None:
    """Raise for a file that is shorter than it says, where trimesh would read what is left."""
    rows = [words for line in text.splitlines() if (words := line.split("#")[0].split())]
    if rows and len(rows[0]) == 1:  # the counts stand on a line of their own
        rows = [rows[0] + (rows[1] if len(rows) > 1 else []), *rows[2:]]
    counts = [int(word) for word in rows[0][1:3] if word.isdecimal()] if rows else []
    if len(counts) < 2:
        raise ValueError("the file does not say how many vertices and faces it has")
    if len(rows) <= sum(counts) or (counts[1] and len(rows[sum(counts)]) <= int(rows[sum(counts)][0])):
        raise ValueError(f"the file is cut off: it should have {counts[0]} vertices and {counts[1]} faces")


def _check_stl(data: bytes) -> None:
    """Raise for a file that is shorter than it says, where trimesh would read what is left."""
    triangles = int.from_bytes(data[80:84], "little")
    if len(data) == 84 + 50 * triangles:
        return
    if b"\0" in data:
        raise ValueError(f"the file is cut off or damaged: {len(data)} bytes for {triangles} triangles")
    if b"endsolid" not in data.lower().rsplit(b"facet", 1)[-1]:
        raise ValueError("the file is cut off: it has no endsolid")


def _with_properties(mesh: Mesh, metadata: dict[str, Any]) -> Mesh:
    elements = metadata.get(_ply.RAW)
    if elements is None:
        return mesh
    vertex, face = (_ply.attributes(elements, name) for name in ("vertex", "face"))
    # trimesh repeats the vertices of textured files and cuts polygons into triangles: rows that it changed are lost.
    same = torch.equal(_ply.positions(elements).double(), mesh.vertices)
    return Mesh(
        mesh.vertices,
        mesh.faces,
        vertex if same else mesh.vertex_attributes,
        face if _ply.is_triangles(elements) else {},
    )


def _joined(meshes: Sequence[Mesh]) -> Mesh:
    starts = torch.tensor([0, *(len(mesh.vertices) for mesh in meshes)]).cumsum(0)
    vertices = torch.cat([mesh.vertices for mesh in meshes])
    faces = torch.cat([mesh.faces + start for mesh, start in zip(meshes, starts, strict=False)])
    if not any("color" in {**mesh.vertex_attributes, **mesh.face_attributes} for mesh in meshes):
        return Mesh(vertices, faces)
    return Mesh(vertices, faces, {"color": torch.cat([_vertex_color(mesh) for mesh in meshes])})


def _vertex_color(mesh: Mesh) -> Tensor:
    """The color of vertices, of the faces around them, or white: float32 [V, 3]."""
    if "color" in mesh.vertex_attributes:
        return mesh.vertex_attributes["color"]
    if "color" in mesh.face_attributes:
        visual: Any = to_trimesh(mesh).visual
        return torch.from_numpy(visual.vertex_colors[:, :3] / 255).float()
    return torch.ones(len(mesh.vertices), 3)
