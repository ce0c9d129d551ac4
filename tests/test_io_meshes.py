"""Reading meshes. The files are written by hand, so that a reader is not tested with its own writer only."""

import base64
import json
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from sparsevox import Mesh
from sparsevox.io import load_mesh, save_mesh

# A tetrahedron, faces outwards.
CORNERS = [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.5)]
FACES = [(0, 2, 1), (0, 1, 3), (1, 2, 3), (0, 3, 2)]
NORMAL = "facet normal 0 0 0\nouter loop\n"


def obj(corners=CORNERS, faces=FACES) -> str:
    lines = [f"v {x} {y} {z}" for x, y, z in corners]
    return "\n".join([*lines, *("f " + " ".join(str(i + 1) for i in face) for face in faces), ""])


def off(corners=CORNERS, faces=FACES) -> str:
    lines = ["OFF", f"{len(corners)} {len(faces)} 0", *(f"{x} {y} {z}" for x, y, z in corners)]
    return "\n".join([*lines, *(f"{len(face)} " + " ".join(map(str, face)) for face in faces), ""])


def ply(corners=CORNERS, faces=FACES, vertex="", face="", corner_rows=None, face_rows=None) -> str:
    head = ["ply", "format ascii 1.0", f"element vertex {len(corners)}", *(f"property float {a}" for a in "xyz")]
    head += [*vertex.splitlines(), f"element face {len(faces)}", "property list uchar int vertex_indices"]
    extra, more = corner_rows or [""] * len(corners), face_rows or [""] * len(faces)
    rows = [f"{x} {y} {z} {e}" for (x, y, z), e in zip(corners, extra, strict=True)]
    rows += [f"{len(f)} {' '.join(map(str, f))} {e}" for f, e in zip(faces, more, strict=True)]
    return "\n".join([*head, *face.splitlines(), "end_header", *rows, ""])


def stl(corners=CORNERS, faces=FACES) -> str:
    triangles = ["".join(f"vertex {corners[i][0]} {corners[i][1]} {corners[i][2]}\n" for i in f) for f in faces]
    return "solid s\n" + "".join(f"{NORMAL}{t}endloop\nendfacet\n" for t in triangles) + "endsolid s\n"


def binary_stl(corners=CORNERS, faces=FACES) -> bytes:
    rows = [struct.pack("<12fH", 0, 0, 0, *(c for i in face for c in corners[i]), 0) for face in faces]
    return b"made by hand".ljust(80) + struct.pack("<I", len(faces)) + b"".join(rows)


def gltf(parts, materials=()) -> dict[str, Any]:
    """Parts (corners, faces, translation, material or None) as nodes of one scene."""
    blob, views, accessors, meshes, nodes = b"", [], [], [], []
    for corners, faces, translation, material in parts:
        for array, kind, component in ((np.float32(corners), "VEC3", 5126), (np.uint32(faces), "SCALAR", 5125)):
            views.append({"buffer": 0, "byteOffset": len(blob), "byteLength": array.nbytes})
            accessors.append({"bufferView": len(views) - 1, "componentType": component, "type": kind})
            accessors[-1]["count"] = array.size // (3 if kind == "VEC3" else 1)
            blob += array.tobytes()
        primitive = {"attributes": {"POSITION": len(accessors) - 2}, "indices": len(accessors) - 1}
        meshes.append({"primitives": [primitive | ({} if material is None else {"material": material})]})
        nodes.append({"mesh": len(meshes) - 1, "translation": translation})
    uri = "data:application/octet-stream;base64," + base64.b64encode(blob).decode()
    made = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": list(range(len(nodes)))}], "nodes": nodes}
    made |= {"meshes": meshes, "accessors": accessors, "bufferViews": views, "materials": list(materials)}
    return made | {"buffers": [{"byteLength": len(blob), "uri": uri}]}


def glb(document: dict[str, Any]) -> bytes:
    buffers = document["buffers"]
    blob = base64.b64decode(buffers[0].pop("uri").split(",")[1])
    text = json.dumps(document).encode()
    text, blob = text.ljust(-(-len(text) // 4) * 4), blob.ljust(-(-len(blob) // 4) * 4, b"\0")
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(blob), 0x004E4942) + blob
    return struct.pack("<III", 0x46546C67, 2, 12 + len(chunks)) + chunks


FILES = {
    "a.obj": obj().encode(),
    "a.off": off().encode(),
    "a.ply": ply().encode(),
    "a.stl": stl().encode(),
    "binary.stl": binary_stl(),
    "a.gltf": json.dumps(gltf([(CORNERS, FACES, [0, 0, 0], None)])).encode(),
    "a.glb": glb(gltf([(CORNERS, FACES, [0, 0, 0], None)])),
}


def write(folder: Path, name: str, data: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def triangles(mesh: Mesh) -> Counter[Any]:
    """Each triangle by its corners, the smallest first, in the sense in which it runs around."""
    made: Counter[Any] = Counter()
    for face in mesh.vertices[mesh.faces].tolist():
        corners = [tuple(corner) for corner in face]
        first = corners.index(min(corners))
        made[tuple(corners[first:] + corners[:first])] += 1
    return made


EXPECTED = triangles(Mesh(torch.tensor(CORNERS), torch.tensor(FACES)))


@pytest.fixture
def image():
    return pytest.importorskip("PIL.Image", reason="textures and materials need Pillow")


# Reading


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_triangles(tmp_path, name):
    mesh = load_mesh(write(tmp_path, name, FILES[name]))
    assert (mesh.vertices.dtype, mesh.faces.dtype) == (torch.float64, torch.int64)
    assert triangles(mesh) == EXPECTED
    assert not mesh.vertex_attributes
    assert not mesh.face_attributes
    if "stl" not in name:
        assert mesh.vertices.tolist() == [list(corner) for corner in CORNERS]
        assert mesh.faces.tolist() == [list(face) for face in FACES]


def test_paths_may_be_text_and_suffixes_upper_case(tmp_path):
    assert len(load_mesh(str(write(tmp_path, "a.OBJ", obj()))).faces) == 4


@pytest.mark.parametrize(("name", "text"), [("a.obj", obj), ("a.off", off), ("a.ply", ply)])
def test_polygons_become_triangles(tmp_path, name, text):
    square = [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (1.0, 1.0, 0.0), (0.0, 1.0, 0.0), (0.5, 2.0, 0.0)]
    mesh = load_mesh(write(tmp_path, name, text(square, [(0, 1, 2, 3), (3, 2, 4)])))
    assert len(mesh.faces) == 3
    a, b, c = mesh.vertices[mesh.faces].unbind(1)
    area = torch.linalg.cross(b - a, c - a)[:, 2] / 2  # all of them look up
    assert sorted(area.tolist()) == [0.5, 0.5, 0.5]
    assert len(load_mesh(write(tmp_path, name, text(square, [(0, 1, 2, 4, 3)]))).faces) == 3


def test_vertices_stay_as_they_are(tmp_path):
    """One that no face uses, one that comes twice, a face without an area: nothing is tidied up."""
    corners = [(9.0, 9.0, 9.0), *CORNERS, CORNERS[0]]
    faces = [(1, 2, 3), (5, 4, 2), (1, 1, 2)]
    for name, text in (("a.obj", obj(corners, faces)), ("a.off", off(corners, faces)), ("a.ply", ply(corners, faces))):
        mesh = load_mesh(write(tmp_path, name, text))
        assert mesh.vertices.tolist() == [list(corner) for corner in corners]
        assert mesh.faces.tolist() == [list(face) for face in faces]


def test_normals_and_texture_coordinates_without_a_material_change_no_vertex(tmp_path):
    text = obj([(7.0, 7.0, 7.0), *CORNERS], [])
    text += "vt 0 0\nvt 1 0\nvn 0 0 1\nvn 1 0 0\n" + "f 2/1/1 4/2/1 3/1/1\nf 2/2/2 3/1/2 5/1/2\n"
    mesh = load_mesh(write(tmp_path, "a.obj", text))
    assert mesh.faces.tolist() == [[1, 3, 2], [1, 2, 4]]
    assert mesh.vertices[1:].tolist() == [list(corner) for corner in CORNERS]
    assert not mesh.vertex_attributes


def test_indices_that_count_back_from_their_line(tmp_path):
    """Two tetrahedra, each after its corners: -1 is the last corner before the face, not the last of the file."""
    far = [(x + 5, y, z) for x, y, z in CORNERS]
    tail = "vt 0 0\nvn 0 0 1\nf -4/-1/-1 2/1/1 \\\n-2/-1/1  # -9\r\nf -4/-1/-1 -3/-1/-1 -1/-1/-1 -2/-1/-1\n"
    text = obj(CORNERS, []) + tail + obj(far, []) + tail.replace(" 2/", " -3/")
    mesh = load_mesh(write(tmp_path, "a.obj", text))
    expected = [[0, 1, 2], [0, 1, 3], [0, 3, 2], [4, 5, 6], [4, 5, 7], [4, 7, 6]]
    found = {tuple(sorted(map(tuple, corners))) for corners in mesh.vertices[mesh.faces].tolist()}
    assert found == {tuple(sorted([*CORNERS, *far][i] for i in face)) for face in expected}
    with pytest.raises(ValueError, match=r"a.obj: a face has the index -5, but only 4 rows are before it"):
        load_mesh(write(tmp_path, "a.obj", obj(CORNERS, []) + "f -5 -2 -1\n"))


def test_text_in_latin_1(tmp_path):
    note = "# caf\xe9\n"
    texts = {"a.obj": note + obj(), "a.off": note + off(), "a.stl": stl().replace("solid s", "solid \xe9")}
    for name, text in texts.items():
        assert triangles(load_mesh(write(tmp_path, name, text.encode("latin-1")))) == EXPECTED


def test_counts_of_off_files_on_the_first_line(tmp_path):
    assert triangles(load_mesh(write(tmp_path, "a.off", off().replace("OFF\n", "OFF ")))) == EXPECTED


# Colors and other attributes


def test_colors_of_vertices(tmp_path):
    rgb = [(255, 0, 0), (0, 51, 0), (0, 0, 102), (1, 2, 3)]
    lines = obj().splitlines()
    lines[:4] = [f"{line} {r / 255} {g / 255} {b / 255}" for line, (r, g, b) in zip(lines, rgb, strict=False)]
    properties = "property uchar red\nproperty uchar green\nproperty uchar blue"
    rows = [f"{r} {g} {b}" for r, g, b in rgb]
    for name, text in (("a.obj", "\n".join(lines)), ("a.ply", ply(vertex=properties, corner_rows=rows))):
        mesh = load_mesh(write(tmp_path, name, text))
        assert mesh.vertex_attributes["color"].dtype == torch.float32
        assert torch.equal((mesh.vertex_attributes["color"] * 255).round(), torch.tensor(rgb).float())


def test_properties_of_a_ply_file(tmp_path):
    vertex = "property float nx\nproperty float ny\nproperty float nz\nproperty int label\nproperty float intensity\n"
    vertex += "property list uchar float embedding\n"
    face = "property uchar red\nproperty uchar green\nproperty uchar blue\nproperty ushort part"
    corner_rows = [f"0 {n % 2} {1 - n % 2} {n - 2} 0.{n} 2 {n} {n * 2}" for n in range(4)]
    text = ply(
        vertex=vertex, face=face, corner_rows=corner_rows, face_rows=[f"{n} 0 255 {60000 + n}" for n in range(4)]
    )
    mesh = load_mesh(write(tmp_path, "a.ply", text))
    assert mesh.vertex_attributes.keys() == {"normal", "label", "intensity", "embedding"}
    assert mesh.vertex_attributes["normal"].tolist() == [[0, n % 2, 1 - n % 2] for n in range(4)]
    assert mesh.vertex_attributes["label"].tolist() == [-2, -1, 0, 1]
    assert mesh.vertex_attributes["intensity"].tolist() == [[pytest.approx(n / 10)] for n in range(4)]
    assert mesh.vertex_attributes["embedding"].tolist() == [[n, 2 * n] for n in range(4)]
    assert mesh.face_attributes["part"].tolist() == [60000 + n for n in range(4)]
    assert torch.equal(mesh.face_attributes["color"], torch.tensor([[n / 255, 0, 1] for n in range(4)]))


def test_attributes_of_polygons_are_dropped(tmp_path):
    face = "property uchar red\nproperty uchar green\nproperty uchar blue"
    text = ply(CORNERS, [(0, 1, 2, 3)], face=face, face_rows=["1 2 3"], vertex="property int label", corner_rows="1234")
    mesh = load_mesh(write(tmp_path, "a.ply", text))
    assert len(mesh.faces) == 2
    assert not mesh.face_attributes
    assert mesh.vertex_attributes["label"].tolist() == [1, 2, 3, 4]


@pytest.mark.usefixtures("image")
def test_rows_of_a_textured_ply_file_are_not_mixed_up(tmp_path):
    """Its vertices are split where texture coordinates differ, so what belonged to the old ones has no place."""
    face = "property list uchar float texcoord"
    texts = ["6 0 0 1 0 1 1", "6 0 1 1 0 0 0", "6 0 0 1 1 1 0", "6 1 1 0 0 0.5 0"]
    text = ply(face=face, face_rows=texts, vertex="property int label", corner_rows="1234")
    mesh = load_mesh(write(tmp_path, "a.ply", text))
    assert triangles(mesh) == EXPECTED
    assert len(mesh.vertices) > 4
    assert "label" not in mesh.vertex_attributes


def test_textures_and_materials_of_an_obj_file(tmp_path, image):
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[0, 0], picture[1, 1] = (255, 0, 0), (0, 0, 255)  # upper left and lower right
    image.fromarray(picture).save(tmp_path / "picture.png")
    write(tmp_path, "a.mtl", "newmtl photo\nmap_Kd picture.png\nnewmtl plain\nKd 0 1 0\n")
    text = "mtllib a.mtl\n" + obj(faces=[]) + "vt 0 1\nvt 1 0\nusemtl photo\nf 1/1 2/2 3/1\nf 1/2 3/1 4/1\n"
    mesh = load_mesh(write(tmp_path, "a.obj", text + "usemtl plain\nf 1 4 3\n"))
    red, green, blue = torch.eye(3)
    seen: Counter[Any] = Counter()
    for face in mesh.faces.tolist():
        for vertex in face:
            position, color = mesh.vertices[vertex].tolist(), mesh.vertex_attributes["color"][vertex]
            seen[(tuple(position), "rgb"[int(color.argmax())])] += 1
            assert any(torch.equal(color, c) for c in (red, green, blue))
    a, b, c, d = CORNERS
    assert seen == Counter([(a, "r"), (b, "b"), (c, "r"), (a, "b"), (c, "r"), (d, "r"), (a, "g"), (d, "g"), (c, "g")])


def test_an_asset_outside_the_folder_is_not_read(tmp_path, image):
    image.fromarray(np.full((2, 2, 3), 200, np.uint8)).save(tmp_path / "secret.png")
    (tmp_path / "inner").mkdir()
    write(tmp_path / "inner", "a.mtl", "newmtl m\nmap_Kd ../secret.png\n")
    text = "mtllib a.mtl\n" + obj(faces=[]) + "vt 0 0\nusemtl m\nf 1/1 2/1 3/1\n"
    assert not load_mesh(write(tmp_path / "inner", "a.obj", text)).vertex_attributes


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize("name", ["a.gltf", "a.glb"])
def test_the_parts_of_a_scene_are_joined_where_they_belong(tmp_path, name):
    materials = [{"pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 1]}}]
    scene = gltf([(CORNERS, FACES, [0, 0, 0], 0), (CORNERS, FACES[:2], [10, 20, 30], None)], materials)
    mesh = load_mesh(write(tmp_path, name, glb(scene) if name == "a.glb" else json.dumps(scene)))
    moved = torch.tensor(CORNERS) + torch.tensor([10, 20, 30])
    assert triangles(mesh) == EXPECTED + triangles(Mesh(moved, torch.tensor(FACES[:2])))
    far = mesh.vertices[:, 0] >= 10
    assert mesh.vertex_attributes["color"][far].unique(dim=0).tolist() == [[1, 1, 1]]
    assert mesh.vertex_attributes["color"][~far].unique(dim=0).tolist() == [[1, 0, 0]]


def test_a_scene_without_colors_has_none(tmp_path):
    scene = gltf([(CORNERS, FACES, [0, 0, 0], None), (CORNERS, FACES, [5, 0, 0], None)])
    assert not load_mesh(write(tmp_path, "a.gltf", json.dumps(scene))).vertex_attributes


def test_solids_of_one_stl_file_are_joined(tmp_path):
    far = [(x + 5, y, z) for x, y, z in CORNERS]
    mesh = load_mesh(write(tmp_path, "a.stl", stl() + stl(far).replace("solid s", "solid t")))
    assert triangles(mesh) == EXPECTED + triangles(Mesh(torch.tensor(far), torch.tensor(FACES)))


# Bad files


@pytest.mark.parametrize("name", FILES)
def test_empty_missing_and_wrong_files(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(FileNotFoundError, match=f"{name}: there is no such file"):
        load_mesh(path)
    with pytest.raises(ValueError, match=f"{name}: the file is empty"):
        load_mesh(write(tmp_path, name, b""))
    for garbage in (b"\x93\x00\xff" * 100, b"no mesh at all\n" * 9):
        with pytest.raises(ValueError, match=name):
            load_mesh(write(tmp_path, name, garbage))
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError, match=name):
        load_mesh(path)


def test_unknown_suffixes(tmp_path):
    with pytest.raises(ValueError, match=r"must end in .*\.glb or \.gltf, got '.*a\.txt'"):
        load_mesh(write(tmp_path, "a.txt", obj()))
    with pytest.raises(ValueError, match=r"must end in .*\.glb, got 'a\.gltf'"):
        save_mesh(Mesh(torch.tensor(CORNERS), torch.tensor(FACES)), "a.gltf")


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith("obj")])
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.7, 0.9, 0.97])
def test_truncated_files(tmp_path, name, kept):
    data = FILES[name].rstrip()
    with pytest.raises(ValueError, match=name):
        load_mesh(write(tmp_path, name, data[: int(len(data) * kept)]))


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_load_or_the_error_names_them(tmp_path, name):
    rng = np.random.default_rng(len(FILES[name]))
    outcomes: Counter[bool] = Counter()
    for _ in range(60):
        data = bytearray(FILES[name])
        for position in rng.integers(0, len(data), rng.integers(1, 4)):
            data[position] = rng.integers(0, 256)
        try:
            outcomes[bool(torch.isfinite(load_mesh(write(tmp_path, name, bytes(data))).vertices).all())] += 1
        except ValueError as error:
            outcomes[name in str(error)] += 1
    assert outcomes.keys() == {True}
    with pytest.raises(ValueError, match=name):
        load_mesh(write(tmp_path, name, b" \n\n"))


def test_what_trimesh_would_read_as_a_smaller_mesh(tmp_path):
    two, (head, tail) = stl() + stl(), stl().rsplit("outer loop\nvertex", 1)
    with pytest.raises(ValueError, match=r"a\.stl: the file is truncated: it has no endsolid"):
        load_mesh(write(tmp_path, "a.stl", two[: len(two) - 30]))
    with pytest.raises(ValueError, match=r"a\.stl: the file is truncated or damaged: it has 234 bytes for 4 triangles"):
        load_mesh(write(tmp_path, "a.stl", binary_stl()[:-50]))
    with pytest.raises(ValueError, match=r"a\.stl: trimesh cannot read the file: .*could not be read to its end"):
        load_mesh(write(tmp_path, "a.stl", f"{head}outer loop\nvertex x{tail}"))


def test_an_obj_file_truncated_within_its_vertices(tmp_path):
    with pytest.raises(ValueError, match=r"a\.obj"):
        load_mesh(write(tmp_path, "a.obj", obj()[:30]))


@pytest.mark.parametrize(("name", "text"), [("a.obj", obj), ("a.off", off), ("a.ply", ply), ("a.stl", stl)])
def test_no_faces_and_invalid_numbers(tmp_path, name, text):
    with pytest.raises(ValueError, match=f"{name}: .*(no faces|cannot read)"):
        load_mesh(write(tmp_path, name, text(faces=[])))
    for bad in ("nan", "inf"):
        corners = [*CORNERS[:3], (0.0, 0.0, float(bad))]
        with pytest.raises(ValueError, match=f"{name}: vertices must be finite, got .*{bad}"):
            load_mesh(write(tmp_path, name, text(corners)))
    with pytest.raises(ValueError, match=name):
        load_mesh(write(tmp_path, name, text().replace("1.5", "one")))


@pytest.mark.parametrize(("name", "text"), [("a.obj", obj), ("a.off", off), ("a.ply", ply)])
def test_faces_with_invalid_indices(tmp_path, name, text):
    with pytest.raises(ValueError, match=name):
        load_mesh(write(tmp_path, name, text(faces=[(0, 1, 9)])))


def test_the_error_names_pillow_if_it_is_missing(tmp_path, monkeypatch):
    missing = trimesh.exceptions.ExceptionWrapper(ModuleNotFoundError("No module named 'PIL'"))
    monkeypatch.setattr("trimesh.visual.material.Image", missing)
    text = obj(faces=[]) + "vt 0 0\nf 1/1 2/1 3/1\n"
    with pytest.raises(ImportError, match=r"need Pillow: pip install 'sparsevox\[io\]'"):
        load_mesh(write(tmp_path, "a.obj", text))
    with pytest.raises(ImportError, match="need Pillow"):
        load_mesh(write(tmp_path, "a.ply", ply(vertex="property float s\nproperty float t", corner_rows=["0 0"] * 4)))
    assert len(load_mesh(write(tmp_path, "a.obj", obj())).faces) == 4


def test_the_error_names_trimesh_if_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(ImportError, match=r"sparsevox\[io\]"):
        load_mesh(write(tmp_path, "a.obj", obj()))
