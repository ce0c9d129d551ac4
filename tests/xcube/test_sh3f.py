"""Furniture libraries of Sweet Home 3D, on tiny ones with the same layout, and shapes with y up."""

import csv
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import sparsevox as sv
from sparsevox.io import load_mesh, save_mesh
from sparsevox.shapes import Mesh, Points
from xcube.cli import main
from xcube.data import Box, ShapeFolder, build, sh3f_sources
from xcube.data.axes import upright
from xcube.data.dataset import About, Entry, read_card, read_index, write_index
from xcube.data.sh3f import CATALOG, parse_properties
from xcube.data.sources import seed_of

pytest.importorskip("trimesh", reason="reads the models")

BOX = Box((4, 16))

# A step: two boxes, the first flat (part "seat"), the second upright at its back (part "back"). y is up, z the front.
SEAT = [(x, y, z) for x in (-0.3, 0.3) for y in (0.0, 0.1) for z in (-0.2, 0.2)]
BACK = [(x, y, z) for x in (-0.3, 0.3) for y in (0.1, 0.4) for z in (-0.2, -0.1)]
SIDES = [(1, 2, 4, 3), (5, 7, 8, 6), (1, 5, 6, 2), (3, 4, 8, 7), (1, 3, 7, 5), (2, 6, 8, 4)]  # of a box, quads


def obj(parts: dict[str, list[tuple[float, float, float]]]) -> str:
    lines = ["mtllib model.mtl"]
    for number, (name, corners) in enumerate(parts.items()):
        lines += [f"g {name}", f"usemtl {name}"]
        lines += [f"v {x} {y} {z}" for x, y, z in corners]
        lines += ["f " + " ".join(str(8 * number + corner) for corner in side) for side in SIDES]
    return "\n".join(lines) + "\n"


STEP = obj({"seat": SEAT, "back": BACK})
MATERIALS = "newmtl seat\nKd 1 0 0\nnewmtl back\nKd 0 0 1\n"


def entry(number: int, name: str, model: str, **more: str) -> str:
    fields = {"id": f"test#{number}", "name": name, "category": "Living room", "model": model, "creator": "Ada"} | more
    return "".join(f"{key}#{number}={value}\n" for key, value in fields.items())


def library(path: Path, catalog: str | None, files: dict[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        if catalog is not None:
            archive.writestr(CATALOG, catalog.encode("latin-1"))
        for name, text in files.items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def furniture(tmp_path: Path) -> Path:
    """Two libraries in a folder: with accents, a rotation, a license of its own, and entries that cannot be used."""
    catalog = "# a comment\nid=test\nname=Test\nlicense=CC0 \\\n   1.0\n" + "".join([
        entry(1, "Step \\u00e9t\\u00e9", "/step/step.obj"),
        entry(2, "Chaise \xe0 bras", "/turned/step.obj", modelRotation="0 0 1 0 1 0 -1 0 0", license="CC-BY"),
        entry(3, "Lost", "/lost/lost.obj"),
        entry(4, "Empty", "/empty/empty.obj"),
        entry(5, "Skewed", "/step/step.obj", modelRotation="1 0 0"),
        entry(7, "Hidden", "/step/step.obj", ignored="true"),
        entry(12, "\\u6905\\u5b50", "/step/step.obj", creator="A,\\tB\\n\\uD83E\\uDE91"),
    ])  # fmt: skip
    files = {f"{name}/step.obj": STEP for name in ("step", "turned")}
    files |= {"step/model.mtl": MATERIALS, "turned/model.mtl": MATERIALS, "empty/empty.obj": "v 0 0 0\n"}
    library(tmp_path / "furniture" / "One.sh3f", catalog, files)
    library(tmp_path / "furniture" / "more" / "Two.sh3f", entry(1, "Step", "step.obj"), {"step.obj": STEP})
    return tmp_path / "furniture"


def bounds(voxels: sv.Voxels) -> list[list[int]]:
    return [voxels.grid.ijk.amin(0).tolist(), voxels.grid.ijk.amax(0).tolist()]


def test_names_and_what_is_known(furniture: Path) -> None:
    sources = sh3f_sources(furniture)
    assert [source.name for source in sources] == [
        *("One/001-step-ete", "One/002-chaise-a-bras", "One/003-lost", "One/004-empty", "One/005-skewed", "One/012"),
        "more/Two/001-step",
    ]
    about = {source.name: source.about for source in sources}
    assert about["One/001-step-ete"] == About("Step été", "Living room", "CC0 1.0", "Ada")
    assert about["One/002-chaise-a-bras"] == About("Chaise à bras", "Living room", "CC-BY", "Ada")
    assert about["One/012"] == About("椅子", "Living room", "CC0 1.0", "A, B 🪑")
    assert about["more/Two/001-step"].license == ""
    one = furniture / "One.sh3f"
    assert [source.name for source in sh3f_sources(one, furniture / "more")][-2:] == ["One/012", "Two/001-step"]
    assert len(sh3f_sources(one, one)) == 6


def test_a_model_is_one_mesh_with_its_colors_and_rotation(furniture: Path, tmp_path: Path) -> None:
    sources = {source.name: source.load for source in sh3f_sources(furniture)}
    (tmp_path / "model.mtl").write_text(MATERIALS)
    (tmp_path / "step.obj").write_text(STEP)
    expected = load_mesh(tmp_path / "step.obj")
    mesh, turned = sources["One/001-step-ete"](), sources["One/002-chaise-a-bras"]()
    assert isinstance(mesh, Mesh)
    assert isinstance(turned, Mesh)
    assert len(mesh.faces) == 24
    assert torch.equal(mesh.vertices, expected.vertices)
    assert torch.equal(mesh.vertex_attributes["color"], expected.vertex_attributes["color"])
    # The rows 0 0 1, 0 1 0 and -1 0 0: the new x is the old z, the new z is the negative of the old x.
    x, y, z = mesh.vertices.unbind(1)
    assert torch.equal(turned.vertices, torch.stack([z, y, -x], 1))


def test_a_dataset_of_furniture(furniture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--levels", "4,16", "--samples", "500", "--workers", "0", "--outside", "rescale", "--license", "mixed"]
    command = ["data", "build", str(furniture), "--layout", "sh3f", "--out", str(out), *options]
    assert main(command) == 0
    with (out / "report.csv").open(newline="") as file:
        report = {row["name"]: (row["reason"], row["detail"]) for row in csv.DictReader(file)}
    assert {name: reason for name, (reason, _) in report.items()} == {
        "One/003-lost": "unreadable",
        "One/004-empty": "unreadable",
        "One/005-skewed": "unreadable",
    }
    assert "One.sh3f must hold the model 'lost/lost.obj' of its catalog" in report["One/003-lost"][1]
    assert report["One/004-empty"][1].endswith("One.sh3f/empty/empty.obj: the file has no faces")
    assert "modelRotation must be nine numbers, got '1 0 0'" in report["One/005-skewed"][1]
    with (out / "index.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("name", "split", "watertight", "voxels_4", "voxels_16", "title", "category", "license", "creator"),
    ]
    assert [(row["title"], row["license"]) for row in rows] == [
        *(("Step été", "CC0 1.0"), ("Chaise à bras", "CC-BY"), ("椅子", "CC0 1.0"), ("Step", "")),
    ]
    shapes = ShapeFolder[sv.Voxels](out, None, level=-1)
    assert [entry.about.title for entry in shapes.entries] == ["Step été", "Chaise à bras", "椅子", "Step"]
    assert shapes.card.license == "mixed"
    assert json.loads((out / "card.json").read_text())["options"]["up"] == "y"
    # The step stands: its back is high in z, at the rear in x, and 0.6 wide in y. It is 0.4 deep and 0.4 high.
    (low, high), ijk = bounds(shapes[0]), shapes[0].grid.ijk
    extent = [b - a + 1 for a, b in zip(low, high, strict=True)]
    assert extent[1] > extent[0]
    assert abs(extent[0] - extent[2]) <= 1
    top = ijk[ijk[:, 2] > 1]
    assert bool((top[:, 0] < 0).all())
    # The rotation of the catalog moved the back to one side.
    top = shapes[1].grid.ijk[shapes[1].grid.ijk[:, 2] > 1]
    assert bool((top[:, 1] < 0).all())
    # It resumes, and other options are refused.
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(command) == 0
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert main([*command, "--up", "z"]) == 2


def test_seeds_follow_from_the_model_not_from_the_library(furniture: Path, tmp_path: Path) -> None:
    first = sh3f_sources(furniture / "One.sh3f")[0]
    lone = library(tmp_path / "One.sh3f", entry(1, "Step ete", "step/step.obj"), {"step/step.obj": STEP})
    other = library(tmp_path / "b" / "One.sh3f", entry(1, "Step ete", "step/step.obj"), {"step/step.obj": STEP + " "})
    assert seed_of(first, 0) == seed_of(sh3f_sources(lone)[0], 0) != seed_of(sh3f_sources(other)[0], 0)


def test_bad_libraries(furniture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError, match=r"nope: no such file or folder"):
        sh3f_sources(tmp_path / "nope")
    (tmp_path / "meshes").mkdir()
    (tmp_path / "meshes" / "step.obj").write_text(STEP)
    with pytest.raises(
        ValueError, match=r"meshes must hold furniture libraries of Sweet Home 3D \(\*.sh3f\), got none"
    ):
        sh3f_sources(tmp_path / "meshes")
    bad = tmp_path / "bad.sh3f"
    for data in (b"", b"not a zip", (furniture / "One.sh3f").read_bytes()[:200]):
        bad.write_bytes(data)
        with pytest.raises(
            ValueError, match=r"bad.sh3f must be a zip file, as furniture libraries of Sweet Home 3D are"
        ):
            sh3f_sources(bad)
    library(bad, None, {"PluginTexturesCatalog.properties": "", "wood.jpg": ""})
    with pytest.raises(ValueError, match=rf"bad.sh3f must hold {CATALOG}, got PluginTexturesCatalog.properties"):
        sh3f_sources(bad)
    library(bad, None, {})
    with pytest.raises(ValueError, match=rf"bad.sh3f must hold {CATALOG}, got an empty zip file"):
        sh3f_sources(bad)
    library(bad, "id=test\nname=Test\n", {})
    with pytest.raises(ValueError, match=rf"bad.sh3f: {CATALOG} must list models \(model#1 and so on\), got none"):
        sh3f_sources(bad)
    with pytest.raises(ValueError, match=r"names must differ"):
        sh3f_sources(furniture, library(tmp_path / "one.sh3f", entry(1, "Step ete", "a.obj"), {}))
    command = ["data", "build", str(tmp_path / "meshes"), "--layout", "sh3f", "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "must hold furniture libraries of Sweet Home 3D" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damaged_model_does_not_spoil_the_others(tmp_path: Path) -> None:
    catalog = (
        entry(1, "Good", "a/step.obj") + entry(2, "Bad", "b/step.obj") + entry(3, "Dae", "c.dae") + "name#4=None\n"
    )
    path = library(tmp_path / "One.sh3f", catalog, {"a/step.obj": STEP, "b/step.obj": STEP, "c.dae": "<xml/>"})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("b/step.obj").header_offset
    data[start + 100] ^= 0xFF  # a byte of the content, which is stored as it is
    path.write_bytes(data)
    report = build(sh3f_sources(path), tmp_path / "out", BOX, samples=100, outside="rescale", up="y")
    assert [entry.name for entry in report.built] == ["One/001-good"]
    assert [(s.name, s.reason) for s in report.skipped] == [
        *(("One/002-bad", "unreadable"), ("One/003-dae", "unreadable"), ("One/004-none", "unreadable")),
    ]
    assert "Bad CRC-32" in report.skipped[0].detail
    assert ".dae" in report.skipped[1].detail


# --- Properties of Java


@pytest.mark.parametrize(("text", "expected"), [
    ("a=1\nb : 2\r\nc 3\rd\n", {"a": "1", "b": "2", "c": "3", "d": ""}),
    ("  a\t=  x y \n! no = comment\n#x=y\n\n", {"a": "x y "}),
    ("a=one \\\n   two\\\\\nb=\\\n3", {"a": "one two\\", "b": "3"}),
    ("a\\=\\:b\\ c=\\#d=e", {"a=:b c": "#d=e"}),
    ("name#1=caf\xe9 \\u00e9\\u4e2d\\t\\q", {"name#1": "café é中\tq"}),
    ("a=\\uD83E\\uDE91\\uD83E", {"a": "🪑\ufffd"}),
    ("a=1\na=2", {"a": "2"}),
    ("a=\\", {"a": ""}),
])  # fmt: skip
def test_properties(text: str, expected: dict[str, str]) -> None:
    assert parse_properties(text.encode("latin-1")) == expected


# --- The axis that points up


def test_upright_rotates_positions_and_normals() -> None:
    axes = torch.eye(3)
    normal = {"normal": axes, "color": axes}
    points = upright(Points(axes, normal), "y")
    mesh = upright(Mesh(axes, torch.tensor([[0, 1, 2]]), normal, {"normal": axes[1:2]}), "y")
    assert isinstance(points, Points)
    assert isinstance(mesh, Mesh)
    expected = axes[[1, 2, 0]]  # x becomes y, y becomes z, z becomes x
    assert torch.equal(points.positions, expected)
    assert torch.equal(points.attributes["normal"], expected)
    assert torch.equal(points.attributes["color"], axes)
    assert torch.equal(mesh.vertices, expected)
    assert torch.equal(mesh.vertex_attributes["normal"], expected)
    assert torch.equal(mesh.face_attributes["normal"], axes[2:3])
    assert float(torch.linalg.det(expected)) == 1.0  # no mirror image
    assert upright(mesh, "z") is mesh


def test_up_is_an_option_of_meshes(tmp_path: Path) -> None:
    corners = torch.tensor(SEAT) * torch.tensor([0.5, 4.0, 1.0])  # 0.3 by 0.4 by 0.4
    faces = torch.tensor(
        [[a - 1, b - 1, c - 1] for a, b, c, _ in SIDES] + [[a - 1, c - 1, d - 1] for a, _, c, d in SIDES]
    )
    (tmp_path / "in").mkdir()
    save_mesh(Mesh(corners - torch.tensor([0.0, 0.2, 0.0]), faces), tmp_path / "in" / "box.ply")
    extents = {}
    for up in ("y", "z"):
        out = str(tmp_path / up)
        options = ["--levels", "4,16", "--samples", "100", "--workers", "0", "--up", up]
        assert main(["data", "build", str(tmp_path / "in"), "--out", out, *options]) == 0
        low, high = bounds(ShapeFolder(out, None)[0])
        extents[up] = [b - a for a, b in zip(low, high, strict=True)]
    assert extents["y"] == np.roll(extents["z"], 1).tolist()
    assert "up" not in read_card(tmp_path / "z").options  # as before there was such an option
    assert read_card(tmp_path / "y").options["up"] == "y"


@pytest.mark.parametrize("layout", ["voxels", "semantic-kitti"])
def test_up_is_no_option_of_voxels_and_scans(tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "build", str(tmp_path), "--out", str(tmp_path / "out"), "--layout", layout, "--up", "y"]
    assert main(command) == 2
    assert f"up must be 'z' with layout '{layout}', got 'y'" in capsys.readouterr().err


# --- The index


def test_an_index_with_and_without_descriptions(tmp_path: Path) -> None:
    plain = [Entry("a", "train", None, (1, 2)), Entry("b", "val", True, (3, 4))]
    build([], tmp_path / "data", BOX)
    card = read_card(tmp_path / "data")
    write_index(tmp_path, card, plain)
    assert (
        tmp_path / "index.csv"
    ).read_text() == "name,split,watertight,voxels_4,voxels_16\na,train,,1,2\nb,val,1,3,4\n"
    assert read_index(tmp_path, card) == plain
    described = [plain[0]._replace(about=About('A "b",\nc\x85d', "", "", "e\u2028f")), plain[1]]
    write_index(tmp_path, card, described)
    assert read_index(tmp_path, card) == described
    assert read_index(tmp_path, card)[0].about == About('A "b", c d', creator="e f")
    lines = (tmp_path / "index.csv").read_text().splitlines()
    (tmp_path / "index.csv").write_text("\n".join([*lines[:2], "b,val,1,3,4"]))
    with pytest.raises(ValueError, match=r"index.csv, line 3: expected 9 columns, got 5"):
        read_index(tmp_path, card)
