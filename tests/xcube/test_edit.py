"""Edits: what is kept, what changes, that the shell stays closed, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsevox import Grid, Voxels
from sparsevox.io import from_trimesh, load_voxels, save_mesh, save_voxels
from xcube.cli import main
from xcube.data.hierarchy import Box
from xcube.geometry.solids import region_voxels, solid, surface
from xcube.pipeline.edit import joined_shapes, plan_edit
from xcube.pipeline.options import SampleOptions
from xcube.pipeline.pipeline import XCubePipeline
from xcube.procedural.shapes import FAMILIES, shape_voxels

pytest.importorskip("scipy", reason="finds the inside")
trimesh = pytest.importorskip("trimesh", reason="makes the meshes")

BOX = Box((16, 64))
SIZE = 1 / 64


def cube(low: int, high: int) -> set[tuple[int, int, int]]:
    side = range(low, high)
    return {(x, y, z) for x in side for y in side for z in side}


def as_set(grid: Grid) -> set[tuple[int, int, int]]:
    return set(map(tuple, grid.ijk.tolist()))


def as_grid(places: set[tuple[int, int, int]]) -> Grid:
    ijk = torch.tensor(sorted(places) or torch.zeros(0, 3).tolist(), dtype=torch.int32).view(-1, 3)
    return Grid.from_coords(ijk, voxel_size=SIZE, origin=SIZE / 2)


def neighbors(place: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    steps = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    return [(place[0] + a, place[1] + b, place[2] + c) for a, b, c in steps]


def boundary(places: set[tuple[int, int, int]]) -> set[tuple[int, int, int]]:
    return {place for place in places if any(each not in places for each in neighbors(place))}


@given(st.sets(st.tuples(*[st.integers(-4, 4)] * 3), min_size=1, max_size=60))
@settings(max_examples=30, deadline=None)
def test_the_surface_of_a_solid(places: set[tuple[int, int, int]]) -> None:
    assert as_set(surface(as_grid(places))) == boundary(places)


def test_the_solid_of_a_shell() -> None:
    assert as_set(solid(as_grid(boundary(cube(-5, 4))))) == cube(-5, 4)
    hole = boundary(cube(-5, 4)) - {(3, 0, 0)}
    assert as_set(solid(as_grid(hole))) == hole
    assert solid(as_grid(set())).num_voxels == 0


def test_the_voxels_of_a_region() -> None:
    like = as_grid({(0, 0, 0)})
    box = ((-4 * SIZE, -4 * SIZE, -4 * SIZE), (4 * SIZE, 4 * SIZE, 4 * SIZE))
    assert as_set(region_voxels("x", box, like, (9, 9, 9))) == cube(-4, 4)
    assert as_set(region_voxels("x", ([-math.inf] * 3, [math.inf] * 3), like, (2, 2, 2))) == cube(-2, 3)
    mesh = from_trimesh(trimesh.creation.box([6.5 * SIZE] * 3))
    assert as_set(region_voxels("x", mesh, like, (9, 9, 9))) == cube(-4, 4)
    large = Grid.from_coords(torch.tensor([[-1, -1, -1], [0, 0, 0]]), voxel_size=4 * SIZE, origin=2 * SIZE)
    assert as_set(region_voxels("x", large, like, (9, 9, 9))) == cube(-4, 0) | cube(0, 4)
    assert as_set(region_voxels("x", Voxels(like), like, (9, 9, 9))) == {(0, 0, 0)}


@pytest.mark.parametrize(
    ("region", "error", "message"),
    [
        (((0, 0, 0), (1, 1, 0)), ValueError, "x must have a lower corner below the upper one"),
        (((0, 0, 0), (1, 1, math.nan)), ValueError, "x must have a lower corner below the upper one"),
        (((0, 0), (1, 1)), ValueError, "x must have a lower corner"),
        ("chair", TypeError, "x must be the two corners of a box, a Mesh, a Grid or Voxels, got str"),
        (7, TypeError, "x must be the two corners"),
        (Grid.empty(2, voxel_size=SIZE), ValueError, "x must be one grid, got a batch of 2"),
        (Grid.empty(1, voxel_size=SIZE * 1.5), ValueError, "x must have the voxel_size .* times integers"),
        (Grid.empty(1, voxel_size=SIZE), ValueError, "lower corner"),
    ],
)
def test_regions_that_are_none(region: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        region_voxels("x", region, as_grid({(0, 0, 0)}), (9, 9, 9))


def shell(places: set[tuple[int, int, int]]) -> Voxels:
    grid = as_grid(boundary(places))
    return Voxels(grid, {"normal": torch.nn.functional.normalize(grid.ijk.float() + 0.5, dim=1)})


blocks = st.lists(st.tuples(*[st.integers(-9, 5)] * 3, *[st.integers(1, 8)] * 3), min_size=1, max_size=3)


def union(boxes: list[tuple[int, ...]]) -> set[tuple[int, int, int]]:
    return {
        (x, y, z)
        for a, b, c, i, j, k in boxes
        for x in range(a, a + i)
        for y in range(b, b + j)
        for z in range(c, c + k)
    }


@given(blocks, blocks, blocks)
@settings(max_examples=60, deadline=None)
def test_merging_leaves_no_face_of_the_solid_open(
    old: list[tuple[int, ...]], new: list[tuple[int, ...]], space: list[tuple[int, ...]]
) -> None:
    before, generated, zone = shell(union(old)), shell(union(new)), as_grid(union(space))
    found = joined_shapes(before, generated, zone, zone)
    # Outside of the zone nothing changes.
    inside = union(space)
    assert as_set(found.grid) - inside == as_set(before.grid) - inside
    rows = found.grid.index(before.grid.coords)
    kept = ~zone.contains(before.grid.coords)
    assert torch.equal(found.attributes["normal"][rows[kept]], before.attributes["normal"][kept])
    # Inside, what both shapes have in common with the zone is solid or in the shell, and the shell has no hole.
    whole = as_set(solid(found.grid))
    assert (as_set(solid(before.grid)) - inside) <= whole
    assert (as_set(solid(generated.grid)) & inside) <= whole


def test_deep_voxels_are_not_left_alone() -> None:
    """A shell with a voxel below its surface, which the zone of an edit would cut off."""
    places = cube(-8, 8)
    deep = (0, 0, 6)
    before = shell(places)
    extra = Voxels(as_grid(as_set(before.grid) | {deep}))
    thick = extra.with_attributes(normal=torch.nn.functional.normalize(extra.grid.ijk.float() + 0.5, dim=1))
    raised = shell(places | {(x, y, 8) for x, y, _ in places})
    zone = as_grid({(x, y, z) for x, y, _ in places for z in (7, 8)})
    changed = as_grid({(x, y, 8) for x, y, _ in places if y >= 2})
    # All of the zone may change, and must: only the voxel below it stays, alone.
    found = joined_shapes(thick, raised, zone, zone)
    assert deep in as_set(found.grid)
    assert (0, 0, 7) not in as_set(found.grid)
    # The edit is elsewhere: the voxel keeps the surface above it.
    found = joined_shapes(thick, raised, zone, changed)
    assert {deep, (0, 0, 7)} <= as_set(found.grid)
    assert (0, 0, 8) not in as_set(found.grid)
    assert {(0, 4, 8), (0, 1, 8)} <= as_set(found.grid)  # the second one is next to the edit
    assert as_set(found.grid) - as_set(zone) == as_set(thick.grid) - as_set(zone)
    assert as_set(solid(found.grid)) >= places


@pytest.fixture(scope="module")
def pipeline() -> XCubePipeline:
    return XCubePipeline.from_pretrained()


EDITS = ["delete", "add", "both"]


@pytest.mark.parametrize("name", sorted(FAMILIES)[:4])
@pytest.mark.parametrize("kind", EDITS)
def test_edits_of_shapes(pipeline: XCubePipeline, name: str, kind: str) -> None:
    shape = shape_voxels(f"{name}-900007", BOX)
    low, high = (bound[0].double() / 64 for bound in shape.grid.bounds())
    cut = ((-1, -1, float(low[2] + 0.7 * (high[2] - low[2]))), (1, 1, 1))
    block = from_trimesh(trimesh.creation.cylinder(0.08, 0.3))
    every: dict[str, Any] = {"delete": cut, "add": block}
    parts = every if kind == "both" else {kind: every[kind]}
    [found] = pipeline.edit(shape, SampleOptions(quiet=True), **parts)
    zone = plan_edit(shape, BOX, **parts).zones[-1]
    assert (found.finest.grid - zone).same_voxels(shape.grid - zone)
    outside = ~zone.contains(shape.grid.coords)
    rows = found.finest.grid.index(shape.grid.coords[outside])
    assert torch.equal(found.finest.attributes["normal"][rows], shape.attributes["normal"][outside])
    whole = solid(found.finest.grid)
    assert not ((solid(shape.grid) - zone) - whole).num_voxels  # the seam has no hole
    if kind == "delete":
        assert float(found.finest.grid.bounds()[1][0, 2]) / 64 < cut[0][2] + 2 / 16
    else:
        assert (whole & region_voxels("add", block, shape.grid, (33, 33, 33))).num_voxels > 200


def test_variants_differ_by_their_number_and_seed(pipeline: XCubePipeline) -> None:
    shape = shape_voxels("chair-900001", BOX)
    part: Any = ((-1, -1, 0.1), (1, 1, 1))
    first, second = pipeline.edit(shape, SampleOptions(quiet=True), delete=part, numbers=(0, 1))
    [again] = pipeline.edit(shape, SampleOptions(quiet=True), delete=part, numbers=(0,))
    assert first.levels[0].grid.same_voxels(second.levels[0].grid)
    overlap = (first.finest.grid & again.finest.grid).num_voxels / (first.finest.grid | again.finest.grid).num_voxels
    assert overlap > 0.97  # other batches round differently
    assert not first.finest.grid.same_voxels(second.finest.grid)


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({}, ValueError, "delete or add must hold at least one part, got none"),
        ({"delete": ((0.4, 0.4, 0.4), (0.5, 0.5, 0.5))}, ValueError, r"delete\[0\] must overlap the shape"),
        ({"add": ((0.4, 0.4, 0.4), (0.5, 0.5, 0.6))}, ValueError, r"add\[0\] must lie in the box"),
        ({"delete": ((-1, -1, -1), (1, 1, 1))}, ValueError, "the edit must leave a part of the shape, got nothing"),
        ({"delete": [((0, 0, 0), (1, 1, 1)), "lamp"]}, TypeError, r"delete\[1\] must be the two corners"),
        ({"add": ((0, 0, 0), (0.1, 0.1, 0.1)), "margin": -1.0}, ValueError, "margin must not be negative, got -1.0"),
    ],
)
def test_edits_that_are_refused(parts: Any, error: type[Exception], message: str) -> None:
    voxels = shell(cube(-8, 8))
    with pytest.raises(error, match=message):
        plan_edit(voxels, BOX, **parts)
    with pytest.raises(KeyError, match="shape must have normals, got none"):
        plan_edit(Voxels(voxels.grid), BOX, delete=((0, 0, 0), (1, 1, 1)))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("jsonargparse", "matplotlib"):
        pytest.importorskip(package, reason="the command line")
    shape, out = shape_voxels("table-900003", BOX), tmp_path / "edited"
    save_voxels(shape, tmp_path / "table.npz")
    save_mesh(from_trimesh(trimesh.creation.icosphere(radius=0.1)), tmp_path / "ball.obj")
    words = ["edit", str(tmp_path / "table.npz"), "--delete", "x=0.1:,y=:0.1", "--add", str(tmp_path / "ball.obj")]
    assert main([*words, "--count", "2", "--quiet", "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("2 shapes generated\n")
    for number in range(2):
        made = load_voxels(out / f"shape-00000{number}.npz")
        assert made.num_voxels > 1000
        assert (out / f"shape-00000{number}.glb").is_file()
    assert "before" in (out / "index.html").read_text()
    assert json.loads((out / "settings.json").read_text())["delete"] == ["x=0.1:,y=:0.1"]
    # The same command makes nothing again.
    assert main([*words, "--count", "2", "--quiet", "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("0 shapes generated, 2 already existed\n")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("nothing.obj", "delete: there is no file nothing.obj, and it is no box such as x=-0.1:0.1,z=0.2:"),
        ("w=0:1", "delete must be a file or a box such as"),
        ("x=0", "delete must be a file or a box such as"),
        ("x=a:b", "delete must have numbers as ends of ranges, got 'x=a:b'"),
        ("x=0.3:0.2", "delete[0] must have a lower corner below the upper one"),
        ("x=0.49:", "delete[0] must overlap the shape"),
    ],
)
def test_parts_that_are_refused_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str, message: str
) -> None:
    pytest.importorskip("jsonargparse", reason="the command line")
    save_voxels(shell(cube(-8, 8)), tmp_path / "cube.npz")
    assert main(["edit", str(tmp_path / "cube.npz"), "--delete", part, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
