"""Reading, writing and checking meshes, with trimesh.

V vertices, F faces.
"""

import io
import re
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

_RELATIVE = re.compile(rb"^\s*f\s[^\n]*-", re.MULTILINE)  # a face of a .obj file with an index that counts back


def load_mesh(path: FilePath) -> Mesh:
    """Load a triangle mesh from a .obj, .ply, .stl, .off, .glb or .gltf file.

    - Polygons are triangulated. All parts of a scene are transformed to their place in it and joined into one mesh.
    - Indices of a .obj file may be negative: they count back from the line of the face.
    - Vertices are neither merged nor removed. Two formats repeat vertices: .stl stores three per triangle, and for a
      .obj file with materials trimesh creates one per combination of position, texture coordinate and normal.
      `describe` counts equal positions once.
    - Colors of vertices and materials, and textures sampled at the vertices, become the vertex attribute "color".
      Colors of faces become the face attribute "color". If only some parts of a scene have colors, others are white.
    - The properties of a .ply file become attributes of the same name, and its normals "normal", unless a texture or
      polygons with more than three corners changed the vertices or faces. Normals in other formats are ignored.

    The mesh need not be closed; `describe` checks whether it is.

    Args:
        path: File to load.

    Returns:
        Vertices float64 [V, 3], faces int64 [F, 3], "color" float32 in [0, 1], on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If trimesh is not installed, or the file has texture coordinates or materials and Pillow is not
            installed.
        ValueError: If the suffix is unknown, or the file is damaged or truncated, has no faces or has a vertex that is
            not finite. The message starts with the path. Truncation of a .obj file cannot always be detected, since it
            does not store its length.
    """
    file = existing(path, *READS)
    data, kind = file.read_bytes(), file.suffix.lower()
    with prefix_errors(path):
        if kind in (".obj", ".off") or (kind == ".stl" and b"\0" not in data):
            data = _as_utf8(data)
        if kind == ".obj" and _RELATIVE.search(data):
            data = _with_absolute_indices(data)
        if kind == ".off":
            _check_off(data.decode())
        if kind == ".stl":
            _check_stl(data)
        parts = _parts(file, data, kind)
        if not parts:
            raise ValueError("the file has no faces")
        mesh = _joined([mesh for mesh, _ in parts]) if len(parts) > 1 else _with_properties(*parts[0])
        if not len(mesh.faces):
            raise ValueError("the file has no faces")
        check_finite("vertices", mesh.vertices)
    return mesh


def save_mesh(mesh: Mesh, path: FilePath) -> None:
    """Save a mesh to a .obj, .ply, .stl, .off or .glb file, atomically.

    - .ply stores positions as float32, colors as 8 bits per channel, and all other attributes. float16 and bfloat16
      become float32, bool becomes uint8, int64 becomes int32.
    - .obj and .glb store the colors of vertices; colors of faces are averaged at the vertices. Other attributes are
      dropped.
    - .stl and .off store triangles only.

    Args:
        mesh: Mesh to save, with at least one face.
        path: File to write. Its suffix selects the format.

    Raises:
        ImportError: If trimesh is not installed.
        ValueError: If the suffix is unknown, the mesh has no faces, a vertex is not finite, or the .ply format does not
            allow an attribute.
    """
    kind = suffix_of(path, *WRITES)
    if not len(mesh.faces):
        raise ValueError(f"mesh must have faces, got {mesh}")
    check_finite("mesh.vertices", mesh.vertices)
    data = _ply.encode(mesh) if kind == ".ply" else exported(to_trimesh(mesh), kind[1:])
    with atomic_write(path) as file:
        file.write(data)


class MeshInfo(NamedTuple):
    """Result of `describe`. Vertices at equal positions count as one.

    Attributes:
        vertices: Number of distinct positions that faces use.
        faces: Number of faces with three distinct vertices.
        degenerate_faces: Number of faces with fewer distinct vertices. Their edges are not counted.
        boundary_edges: Number of edges with a single face.
        crowded_edges: Number of edges with more than two faces.
        flipped_edges: Number of edges with two faces of opposite orientation.
    """

    vertices: int
    faces: int
    degenerate_faces: int
    boundary_edges: int
    crowded_edges: int
    flipped_edges: int

    @property
    def closed(self) -> bool:
        """Whether the mesh has faces and no boundary edges. The inside of an open mesh is undefined."""
        return self.faces > 0 and self.boundary_edges == 0

    @property
    def edge_manifold(self) -> bool:
        """Whether no edge has more than two faces."""
        return self.crowded_edges == 0

    @property
    def oriented(self) -> bool:
        """Whether the mesh is edge-manifold and neighboring faces agree on which side is outside."""
        return self.edge_manifold and self.flipped_edges == 0


def describe(mesh: Mesh) -> MeshInfo:
    """Check whether a mesh is closed, edge-manifold and oriented, and count the edges that violate this.

    A mesh that is closed and edge-manifold is watertight.
    """
    place = torch.unique(mesh.vertices, dim=0, return_inverse=True)[1]
    corners = place[mesh.faces.long()]  # [F, 3]
    a, b, c = corners.unbind(1)
    proper = (a != b) & (b != c) & (c != a)
    used = len(corners.unique())
    corners = corners[proper]
    edges = torch.stack([corners, corners.roll(-1, 1)], 2).reshape(-1, 2)  # in the direction of the face: [3 F, 2]
    forward = (edges[:, 0] < edges[:, 1]).long()
    keys = edges.amin(1) * max(len(place), 1) + edges.amax(1)
    _, edge, count = torch.unique(keys, return_inverse=True, return_counts=True)
    ahead = torch.zeros_like(count).index_put_((edge,), forward, accumulate=True)  # faces that run low to high
    return MeshInfo(
        vertices=used,
        faces=len(corners),
        degenerate_faces=int((~proper).sum()),
        boundary_edges=int((count == 1).sum()),
        crowded_edges=int((count > 2).sum()),
        flipped_edges=int(((count == 2) & (ahead != 1)).sum()),
    )


def _parts(file: Path, data: bytes, kind: str) -> list[tuple[Mesh, dict[str, Any]]]:
    """Load the meshes of a file, each at its place in the scene, with the metadata that trimesh attaches to them."""
    options: dict[str, Any] = {"process": False}
    if kind == ".obj" and b"usemtl" not in data:
        options["maintain_order"] = True  # only materials require repeated vertices
    with parsing() as trimesh:
        resolver = trimesh.resolvers.FilePathResolver(str(file))
        if kind == ".ply":
            parts = _ply_parts(trimesh, trimesh.exchange.ply.load_ply(io.BytesIO(data), resolver=resolver))
        else:
            scene = trimesh.load_scene(io.BytesIO(data), file_type=kind[1:], resolver=resolver, **options)
            parts = [part for part in scene.dump() if isinstance(part, trimesh.Trimesh)]
        return [(from_trimesh(part), part.metadata) for part in parts]


def _ply_parts(trimesh: Any, read: dict[str, Any]) -> Sequence[Any]:
    """Create the meshes of a PLY file as `trimesh.load_scene` does, which fails for polygons with colors."""
    if read.get("faces") is None:
        return []
    read["faces"] = trimesh.geometry.triangulate_quads(read["faces"])
    for name, rows in (("face_colors", read["faces"]), ("vertex_colors", read["vertices"])):
        if read.get(name) is not None and len(read[name]) != len(rows):
            del read[name]
    return [trimesh.Trimesh(**read, process=False)]


def _as_utf8(data: bytes) -> bytes:
    """Re-encode text as UTF-8, so that trimesh need not guess the encoding of names. Numbers are ASCII anyway."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1").encode()
    return data


def _with_absolute_indices(data: bytes) -> bytes:
    """Replace the indices of faces in a .obj file that count back from their line; trimesh counts from the end."""
    counts = {b"v": 0, b"vt": 0, b"vn": 0}

    def absolute(corner: bytes) -> bytes:
        parts = corner.split(b"/")
        for place, (part, count) in enumerate(zip(parts, counts.values(), strict=False)):
            if part.startswith(b"-"):
                index = count + 1 + int(part)
                if index < 1:
                    raise ValueError(f"a face has the index {part.decode()}, but only {count} rows are before it")
                parts[place] = b"%d" % index
        return b"/".join(parts)

    lines = data.replace(b"\r\n", b"\n").replace(b"\\\n", b"").split(b"\n")
    for number, line in enumerate(lines):
        key, *words = line.split(b"#")[0].split() or [b""]
        if key in counts:
            counts[key] += 1
        elif key == b"f":
            lines[number] = b" ".join([b"f", *map(absolute, words)])
    return b"\n".join(lines)


def _check_off(text: str) -> None:
    """Raise for a truncated .off file, whose remaining rows trimesh would read."""
    rows = [words for line in text.splitlines() if (words := line.split("#")[0].split())]
    if rows and len(rows[0]) == 1:  # the counts are on the second line
        rows = [rows[0] + (rows[1] if len(rows) > 1 else []), *rows[2:]]
    counts = [int(word) for word in rows[0][1:3] if word.isdecimal()] if rows else []
    if len(counts) < 2:
        raise ValueError("the file lacks the counts of vertices and faces")
    if len(rows) <= sum(counts) or (counts[1] and len(rows[sum(counts)]) <= int(rows[sum(counts)][0])):
        raise ValueError(f"the file is truncated: it should have {counts[0]} vertices and {counts[1]} faces")


def _check_stl(data: bytes) -> None:
    """Raise for a truncated .stl file, whose remaining triangles trimesh would read."""
    triangles = int.from_bytes(data[80:84], "little")
    if len(data) == 84 + 50 * triangles:
        return
    if b"\0" in data:
        raise ValueError(f"the file is truncated or damaged: it has {len(data)} bytes for {triangles} triangles")
    if b"endsolid" not in data.lower().rsplit(b"facet", 1)[-1]:
        raise ValueError("the file is truncated: it has no endsolid")


def _with_properties(mesh: Mesh, metadata: dict[str, Any]) -> Mesh:
    elements = metadata.get(_ply.RAW)
    if elements is None:
        return mesh
    vertex, face = (_ply.attributes(elements, name) for name in ("vertex", "face"))
    # trimesh repeats vertices of textured files and triangulates polygons; attributes of changed rows are dropped.
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
    """Get the color of each vertex, from the vertices, else averaged from the faces, else white: float32 [V, 3]."""
    if "color" in mesh.vertex_attributes:
        return mesh.vertex_attributes["color"]
    if "color" in mesh.face_attributes:
        visual: Any = to_trimesh(mesh).visual
        return torch.from_numpy(visual.vertex_colors[:, :3] / 255).float()
    return torch.ones(len(mesh.vertices), 3)
