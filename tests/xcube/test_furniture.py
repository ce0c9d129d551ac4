"""Datasets of procedural shapes and furniture: categories, changed copies, provenance and credits."""

import csv
import itertools
import json
from functools import partial
from pathlib import Path

import pytest
import torch

import sparsevox as sv
from sparsevox.io import describe, sample_surface
from sparsevox.shapes import Mesh, Points
from tests.xcube.test_sh3f import BOX, STEP, entry, library
from xcube.cli import main
from xcube.data import Box, ShapeFolder, Source, build, furniture_sources, sh3f_sources
from xcube.data.augment import Change
from xcube.data.axes import upright
from xcube.data.credits import credits_text
from xcube.data.dataset import About, Entry, read_card, read_index
from xcube.data.furniture import (
    LEFT_OUT,
    SCALES,
    TITLES,
    changed,
    copy_change,
    furniture_category,
    load_changed,
    model_name,
)
from xcube.procedural.shapes import FAMILIES
from xcube.training.latents import category_of

pytest.importorskip("trimesh", reason="reads the models")
pytest.importorskip("scipy", reason="finds the inside")

# A box with all faces oriented outward, and its normals: 0.6 by 0.4 by 0.2, corner at the origin.
CORNERS = torch.tensor([(x, y, z) for x in (0, 0.6) for y in (0, 0.4) for z in (0, 0.2)], dtype=torch.float64)
QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
BRICK = Mesh(CORNERS, torch.tensor([f for a, b, c, d in QUADS for f in ((a, b, c), (a, c, d))]))


def load_brick() -> Mesh:
    return BRICK


def load_points() -> Points:
    return Points(CORNERS)


def volume(mesh: Mesh) -> float:
    """Volume within a closed mesh, positive if its faces are oriented outward."""
    a, b, c = mesh.vertices[mesh.faces].unbind(1)
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


@pytest.fixture
def libraries(tmp_path: Path) -> Path:
    """Twelve chairs, of which some belong to each split, a car, an entry that cannot be read, and others left out."""
    titles = ["Chair"] * 12 + ["Seat Leon", "Teapot", "Table fan", "Lost lamp"]
    catalog = "license=CC0 1.0\n" + "".join(
        entry(n, title, "lost.obj" if "Lost" in title else "step.obj", creator="Ada" if n % 2 else "Bob")
        for n, title in enumerate(titles, 1)
    )
    library(tmp_path / "in" / "One.sh3f", catalog, {"step.obj": STEP})
    more = entry(1, "Barstool", "step.obj") + entry(2, "Bar stools", "step.obj", license="CC-BY", creator="")
    library(tmp_path / "in" / "deep" / "Two.sh3f", more, {"step.obj": STEP})
    return tmp_path / "in"


def command(libraries: Path, out: Path, *options: str) -> list[str]:
    small = ["--count", "8", "--copies", "2", "--levels", "16,32", "--samples", "200", "--workers", "0"]
    return ["data", "shapes", "--furniture", str(libraries), "--out", str(out), *small, *options]


# Categories


@pytest.mark.parametrize(("title", "category"), [
    ("Desk lamp", "lamp"),
    ("STREET LIGHTS", "lamp"),
    ("Flashlight", None),
    ("Wall switch", None),
    ("Table fan", None),
    ("Table tennis bat", None),
    ("Tablet", None),
    ("Desk table", "table"),
    ("Bedside table", "cabinet"),
    ("Upper shelves cabinet", "cabinet"),
    ("Television cabinet", "cabinet"),
    ("Chest freezer", None),
    ("Seat Leon", "car"),
    ("Cardboard box", None),
    ("Card game", None),
    ("Wheelchair", None),
    ("Winchester armchair", "chair"),
    ("Step ladder", None),
    ("Futon couch", "sofa"),
    ("Copper beech", None),
    ("Captain's bed", "bed"),
    ("Biplane", "airplane"),
    ("", None),
])  # fmt: skip
def test_a_title_decides_the_category(title: str, category: str | None) -> None:
    assert furniture_category(title) == category


def test_categories_are_those_of_the_procedural_shapes() -> None:
    assert set(TITLES) == set(FAMILIES)
    # A name tells its category only if no category is the beginning of another one.
    assert not [pair for pair in itertools.permutations(FAMILIES, 2) if pair[0].startswith(pair[1])]


# Sources


def test_names_splits_and_copies(libraries: Path) -> None:
    sources = furniture_sources(libraries, copies=3)
    names = {source.name: source for source in sources}
    models = {name: source for name, source in names.items() if model_name(name) == name}
    chairs = [f"chair/One/{n:03}-chair" for n in range(1, 13)]
    assert list(models) == ["car/One/013-seat-leon", *chairs, "chair/Two/002-bar-stools", "lamp/One/016-lost-lamp"]
    assert {category_of(name, FAMILIES) for name in chairs} == {FAMILIES.index("chair")}
    assert category_of("car/One/013-seat-leon", FAMILIES) == FAMILIES.index("car")
    assert {source.split for source in models.values()} == {"train", "val", "test"}
    for name, model in models.items():
        copies = [f"{name}~{n}" for n in (1, 2, 3)]
        if model.split == "train":
            assert {names[copy].split for copy in copies} == {"train"}
            assert {names[copy].about for copy in copies} == {model.about}
        else:
            assert not set(copies) & set(names)
    assert list(models) == [source.name for source in furniture_sources(libraries)]
    # Neither the folder nor other libraries matter.
    alone = furniture_sources(libraries / "deep" / "Two.sh3f", copies=3)
    assert [(s.name, s.split) for s in alone] == [(s.name, s.split) for s in sources if "/Two/" in s.name]


def test_models_are_left_out_by_number(tmp_path: Path) -> None:
    name = next(name for name in LEFT_OUT if name.startswith("Scopia/"))
    number = int(name.rpartition("/")[2])
    catalog = entry(number, "Chair", "step.obj") + entry(number + 1, "Chair", "step.obj")
    sources = furniture_sources(library(tmp_path / "Scopia.sh3f", catalog, {"step.obj": STEP}))
    assert [source.name for source in sources] == [f"chair/Scopia/{number + 1:03}-chair"]


def test_bad_furniture(libraries: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError, match=r"nope: no such file or folder"):
        furniture_sources(tmp_path / "nope")
    with pytest.raises(ValueError, match=r"copies must not be negative, got -1"):
        furniture_sources(libraries, copies=-1)
    other = library(tmp_path / "other" / "One.sh3f", entry(99, "Chair", "step.obj"), {"step.obj": STEP})
    with pytest.raises(ValueError, match=r"furniture libraries must differ in name, got .*in/One.sh3f and .*other/One"):
        furniture_sources(libraries, other)
    twice, once = furniture_sources(libraries, libraries / "deep"), furniture_sources(libraries)
    assert [source.name for source in twice] == [source.name for source in once]
    library(other, entry(1, "Teapot", "step.obj"), {"step.obj": STEP})
    with pytest.raises(ValueError, match=r"furniture must have models of airplane, .* got none of them"):
        furniture_sources(other)
    assert main(command(tmp_path / "nope", tmp_path / "out")) == 2
    assert "nope: no such file or folder" in capsys.readouterr().err
    assert main(command(libraries, tmp_path / "out", "--attributes", "normal,color")) == 2
    assert "attributes must be among normal, fill, got normal, color" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Changed copies


def test_a_change_depends_on_seed_name_and_number() -> None:
    changes = [copy_change(name, n, seed) for name in ("a", "b") for n in range(1, 41) for seed in (0, 1)]
    assert changes == [copy_change(name, n, seed) for name in ("a", "b") for n in range(1, 41) for seed in (0, 1)]
    factors = torch.tensor([change.factors for change in changes])
    assert len(set(map(tuple, factors.tolist()))) == len(changes)
    assert bool(((factors >= SCALES[0]) & (factors <= SCALES[1])).all())
    assert bool((factors.mean(0) - sum(SCALES) / 2).abs().max() < 0.02)
    assert [copy_change("a", n).mirror for n in range(1, 5)] == [False, True, False, True]


@pytest.mark.parametrize("mirror", [False, True])
def test_faces_of_a_changed_mesh_stay_oriented(mirror: bool) -> None:
    factors = (0.75, 0.8, 1.0)
    mesh = changed(BRICK, Change(factors, mirror=mirror))
    assert volume(BRICK) == pytest.approx(0.6 * 0.4 * 0.2)
    assert volume(mesh) == pytest.approx(0.6 * 0.4 * 0.2 * 0.75 * 0.8)
    assert describe(mesh).closed
    assert describe(mesh).oriented
    low, high = mesh.bounds.tolist()
    assert low == pytest.approx([0, -0.32 if mirror else 0, 0])
    assert high == pytest.approx([0.45, 0 if mirror else 0.32, 0.2])
    points = sample_surface(mesh, 500)
    outward = points.positions - mesh.vertices.mean(0)
    assert bool(((outward * points.attributes["normal"]).sum(1) > 0).all())


def test_the_mirror_exchanges_left_and_right_of_an_upright_model() -> None:
    plain, mirrored = (load_changed(load_brick, Change(mirror=mirror)) for mirror in (False, True))
    assert torch.equal(plain.vertices, upright(BRICK, "y").vertices)  # type: ignore[union-attr]
    assert torch.equal(mirrored.vertices, plain.vertices * torch.tensor([1.0, -1.0, 1.0]))
    with pytest.raises(TypeError, match=r"load must return a Mesh, got Points"):
        load_changed(load_points, Change())
    with pytest.raises(ValueError, match=r"change must have no turn"):
        changed(BRICK, Change(quarters=1))


def test_models_have_no_colors(libraries: Path) -> None:
    (source,) = (source for source in furniture_sources(libraries) if source.name == "chair/One/001-chair")
    original = next(source for source in sh3f_sources(libraries) if source.name == "One/001-chair").load()
    mesh = source.load()
    assert isinstance(mesh, Mesh)
    assert isinstance(original, Mesh)
    assert not mesh.vertex_attributes
    assert torch.equal(mesh.vertices, original.vertices.roll(1, 1))
    assert isinstance(source.load, partial)


# The dataset


def test_a_dataset_of_shapes(libraries: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(command(libraries, out)) == 0
    printed = capsys.readouterr().out
    entries = read_index(out, read_card(out))
    names = [each.name for each in entries]
    assert [name for name in names if "/" not in name] == sorted(f"{family}-000000" for family in FAMILIES)
    models = [each for each in entries if "/" in each.name and "~" not in each.name]
    trained = [each for each in models if each.split == "train"]
    copies = [each for each in entries if "~" in each.name]
    assert len(copies) == 2 * len(trained)
    number = sum(each.name.startswith("chair/") for each in trained)
    assert f"  chair     train 1 + {number} + {2 * number}, val 0 + " in printed
    assert "  bed       train 1 + 0 + 0, val 0 + 0 + 0, test 0 + 0 + 0" in printed
    with (out / "report.csv").open(newline="") as file:
        report = {row["name"]: row["reason"] for row in csv.DictReader(file)}
    assert {model_name(name) for name in report} == {"lamp/One/016-lost-lamp"}
    assert set(report.values()) == {"unreadable"}
    about = {each.name: each.about for each in entries}
    assert about["chair/One/001-chair"] == About("Chair", "Living room", "CC0 1.0", "Ada")
    assert not about["chair-000000"]
    card = json.loads((out / "card.json").read_text())
    assert "xcube.procedural.shapes" in card["source"]
    assert card["source"].endswith("Sweet Home 3D, with changed copies: One, Two")
    assert card["license"].startswith("procedural shapes: Apache-2.0; furniture, each model as index.csv says: CC-BY; ")
    assert set(card["attributes"]) == {"normal", "fill"}
    # All models have one mesh, and nearly every copy of it has proportions of its own. All lie in the box.
    shapes = ShapeFolder[sv.Voxels](out, None, level=-1)
    voxels = {each.name: shapes[n].grid.ijk for n, each in enumerate(shapes.entries)}
    assert len({str(voxels[each.name].tolist()) for each in models}) == 1
    assert len({str(voxels[each.name].tolist()) for each in copies}) > len(trained)
    assert all(bool(((ijk >= -15) & (ijk < 15)).all()) for ijk in voxels.values())
    # It resumes, and other options are refused.
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (out / "shapes" / trained[0].name / "32.npz").unlink()
    assert main(command(libraries, out)) == 0
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert main(command(libraries, out, "--seed", "1")) == 2
    assert main(command(libraries / "One.sh3f", out)) == 2
    assert main(["data", "credits", str(out)]) == 0
    number = sum(each.about.creator == "Ada" for each in models)
    assert f"- Ada, {number} models: Chair, Seat Leon\n" in capsys.readouterr().out
    assert main(["data", "credits", str(out), "--split", "val"]) == 0
    number = sum((each.about.creator, each.split) == ("Bob", "val") for each in models)
    assert f"- Bob, {number} model" in capsys.readouterr().out
    assert main(["data", "credits", str(out), "--split", "dev"]) == 2
    assert "split must be one of test, train, val, got 'dev'" in capsys.readouterr().err


def test_normals_point_outward_whatever_the_faces_say(tmp_path: Path) -> None:
    mixed = BRICK.faces.clone()
    mixed[::3] = mixed[::3].flip(1)
    inward = {}
    for outward in (False, True):
        out = tmp_path / str(outward)
        sources = [Source("brick", partial(Mesh, BRICK.vertices, mixed))]
        build(sources, out, Box((8, 32)), samples=20000, outside="rescale", outward=outward)
        voxels = ShapeFolder[sv.Voxels](out, None, level=-1)[0]
        positions = voxels.grid.to_world(voxels.grid.ijk)
        half = positions.abs().amax(0)
        # The brick lies around the origin: its sides are where a position is at the limit along one axis only.
        at_side = (positions.abs() > half - 1e-6).float() * positions.sign()
        side = at_side.abs().sum(1) == 1
        inward[outward] = float(((at_side * voxels.attributes["normal"]).sum(1)[side] < 0).float().mean())
    assert inward[False] > 0.2
    assert inward[True] == 0
    assert "outward" not in read_card(tmp_path / "False").options
    assert read_card(tmp_path / "True").options["outward"] is True


def test_workers_do_not_change_the_result(libraries: Path, tmp_path: Path) -> None:
    sources = furniture_sources(libraries, copies=1)
    made = []
    for workers in (0, 2):
        out = tmp_path / str(workers)
        build(sources, out, BOX, samples=100, outside="rescale", workers=workers)
        made.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert made[0] == made[1]


def test_without_furniture_all_shapes_are_procedural(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["data", "shapes", "--out", str(out), "--count", "8", "--levels", "16,32", "--workers", "0"]) == 0
    card = read_card(out)
    assert (card.source, card.license) == ("procedural shapes (xcube.procedural.shapes)", "Apache-2.0")
    capsys.readouterr()
    assert main(["data", "credits", str(out)]) == 0
    assert capsys.readouterr().out == "index.csv names no license or creator of a shape\n"
    assert main(["data", "credits", str(tmp_path)]) == 2


# Credits


def test_credits() -> None:
    def made(name: str, *about: str) -> Entry:
        return Entry(name, "train", None, (1,), About(*about))

    entries = [
        made("chair/A/1", "Chair", "", "CC0", "bob"),
        made("chair/A/1~1", "Chair", "", "CC0", "bob"),
        made("chair/A/2", "Chair", "", "CC0", "bob"),
        made("bed/A/3", "Bed", "", "CC0", "Ada"),
        made("bed/A/4", "bench bed", "", "CC-BY", "bob"),
        made("bed/A/5", "Old bed", "", "CC-BY", ""),
        made("chair-000000"),
    ]
    assert credits_text(reversed(entries)) == (
        "CC-BY:\n\n- bob, 1 model: bench bed\n- Unknown creator, 1 model: Old bed\n\n"
        "CC0:\n\n- Ada, 1 model: Bed\n- bob, 2 models: Chair\n"
    )
    assert credits_text(entries[-1:]) == ""
