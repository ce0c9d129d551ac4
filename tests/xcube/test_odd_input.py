"""What people have on their disks: huge planes, stray vertices, odd names, datasets inside their own input."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsevox import Grid, Mesh, Voxels
from sparsevox.io import load_points, save_mesh, save_voxels, voxelize
from xcube.cli import main
from xcube.data import Box, build, build_hierarchy, file_sources, voxel_sources
from xcube.data.converters import load_box_voxels
from xcube.data.dataset import read_card, read_index
from xcube.data.sources import as_name

trimesh = pytest.importorskip("trimesh", reason="writes the meshes")

BOX = Box((8, 32))


def plane(size: float) -> Mesh:
    """Two triangles with a corner color and a label each, far larger than the box."""
    corners = torch.tensor([[-size, -size, 0.1], [size, -size, 0.1], [size, size, 0.1], [-size, size, 0.1]])
    colors = (corners[:, :3] / (2 * size) + 0.5).clamp(0, 1)
    return Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3]]), {"color": colors}, {"label": torch.tensor([4, 7])})


def ball(stray: bool = False) -> Mesh:
    sphere = trimesh.creation.icosphere(3, radius=0.3)
    vertices = torch.from_numpy(np.array(sphere.vertices))
    extra = torch.full((1, 3), 100.0, dtype=vertices.dtype)
    return Mesh(torch.cat([vertices, extra]) if stray else vertices, torch.from_numpy(np.array(sphere.faces)).long())


@pytest.mark.parametrize("size", [40.0, 4000.0])
def test_attributes_of_what_is_cut_off_come_from_what_is_left(size: float) -> None:
    coarse, fine = build_hierarchy(plane(size), BOX, samples=50_000, outside="clip")
    assert fine.num_voxels == 28 * 28
    for level in (coarse, fine):
        assert float(level.attributes["normal"][:, 2].abs().min()) > 0.9
    centers = fine.grid.to_world(fine.grid.ijk)
    clear = (centers[:, 0] - centers[:, 1]).abs() > 0.1
    expected = torch.where(centers[:, 0] > centers[:, 1], 4, 7)
    assert torch.equal(fine.attributes["label"][clear], expected[clear])
    middle = (fine.attributes["color"][:, :2] - 0.5).abs().max()
    assert float(middle) < 1 / size + 0.02


def test_vertices_that_no_face_uses_do_not_count() -> None:
    plain, stray = (build_hierarchy(m, BOX, samples=1000, outside="rescale") for m in (ball(), ball(stray=True)))
    assert [level.num_voxels for level in plain] == [level.num_voxels for level in stray]


def test_boxes_without_room_are_named() -> None:
    with pytest.raises(ValueError, match="has no room inside the margin"):
        build_hierarchy(ball(), Box((2, 4)), outside="rescale")
    for size in ((0.0, 1.0, 1.0), (float("inf"), 1.0, 1.0)):
        with pytest.raises(ValueError, match="size must be three positive edges"):
            Box((8,), size)
    assert main(["data", "build", "x", "--out", "y", "--size", "1,2"]) == 2


def test_points_without_any_attribute_are_built(tmp_path: Path) -> None:
    np.save(tmp_path / "sweep.npy", np.random.default_rng(0).uniform(-0.3, 0.3, (500, 3)).astype(np.float32))
    words = ["data", "build", str(tmp_path / "sweep.npy"), "--out", str(tmp_path / "out"), "--levels", "8,32"]
    assert main([*words, "--attributes", "", "--workers", "0"]) == 0


@pytest.mark.parametrize("part", ["\u6d77" * 30, "x.npz", "a.NPZ", "b c"])
def test_every_file_name_makes_a_name(tmp_path: Path, part: str) -> None:
    save_mesh(ball(), tmp_path / f"{part}.ply")
    save_mesh(ball(), tmp_path / "plain.ply")
    report = build(
        file_sources([tmp_path / f"{part}.ply", tmp_path / "plain.ply"]), tmp_path / "out", BOX, samples=1000
    )
    assert len(report.built) == 2
    assert len(as_name([part])) <= 180
    assert as_name(["\u6d77" * 30]) != as_name(["\u6d77" * 31])


def test_buffers_of_a_gltf_are_no_point_clouds(tmp_path: Path) -> None:
    trimesh.Scene(trimesh.creation.icosphere(2, radius=0.3)).export(tmp_path / "scene.gltf")
    assert list(tmp_path.glob("*.bin"))
    (source,) = file_sources([tmp_path])
    assert source.name == "scene"


def test_a_data_set_inside_its_own_input_is_none(tmp_path: Path) -> None:
    save_mesh(ball(), tmp_path / "ball.ply")
    reports = [build(file_sources([tmp_path]), tmp_path / "set", BOX, samples=1000) for _ in range(2)]
    assert (len(reports[0].built), reports[1].kept, len(reports[1].skipped)) == (1, 1, 0)


def test_dangling_links_are_reported(tmp_path: Path) -> None:
    save_mesh(ball(), tmp_path / "ball.ply")
    (tmp_path / "gone.ply").symlink_to(tmp_path / "nowhere")
    report = build(file_sources([tmp_path]), tmp_path / "out", BOX, samples=1000)
    assert [skipped.name for skipped in report.skipped] == ["gone"]


def test_faces_that_look_inwards_are_noted(tmp_path: Path) -> None:
    mesh = ball()
    flipped = mesh.faces.clone()
    flipped[:100] = flipped[:100].flip(1)
    for name, faces in (("good", mesh.faces), ("odd", flipped)):
        save_mesh(Mesh(mesh.vertices, faces), tmp_path / f"{name}.ply")
    build(file_sources([tmp_path]), tmp_path / "out", BOX, samples=1000)
    entries = read_index(tmp_path / "out", read_card(tmp_path / "out"))
    assert {entry.name: entry.watertight for entry in entries} == {"good": True, "odd": False}


@pytest.mark.parametrize(("content", "message"), [
    (b"", "the file is empty"),
    (b"\xff\xfe", "index.csv"),
    (None, "is listed twice"),
])  # fmt: skip
def test_a_damaged_index_is_named_and_kept(tmp_path: Path, content: bytes | None, message: str) -> None:
    save_mesh(ball(), tmp_path / "ball.ply")
    build(file_sources([tmp_path / "ball.ply"]), tmp_path / "out", BOX, samples=1000)
    index = tmp_path / "out" / "index.csv"
    rows = list(csv.reader(index.read_text().splitlines()))
    twice = "".join(",".join(row) + "\n" for row in [*rows, rows[-1]]).encode()
    index.write_bytes(twice if content is None else content)
    with pytest.raises(ValueError, match=message):
        build(file_sources([tmp_path / "ball.ply"]), tmp_path / "out", BOX, samples=1000)
    assert index.read_bytes() == (twice if content is None else content)


def test_saved_voxels_say_where_they_lie_whatever_it_is(tmp_path: Path) -> None:
    voxels = Voxels(Grid.from_coords(torch.tensor([[20, 20, 20]])))
    save_voxels(voxels, tmp_path / "a.npz")
    assert load_box_voxels(tmp_path / "a.npz", size=1.0, lower=(-16, -16, -16)).grid.same_voxels(voxels.grid)
    np.save(tmp_path / "b.npy", np.array([[20, 20, 20]]))
    moved = load_box_voxels(tmp_path / "b.npy", size=1.0, lower=(-16, -16, -16))
    assert moved.grid.ijk.tolist() == [[4, 4, 4]]
    assert len(voxel_sources(tmp_path, BOX)) == 2


def test_colors_of_any_integers_are_bytes_if_they_look_so(tmp_path: Path) -> None:
    for dtype in (np.uint8, np.int32, np.int64):
        np.savez(tmp_path / "a.npz", positions=np.zeros((3, 3)), colors=np.full((3, 4), 255, dtype))
        assert load_points(tmp_path / "a.npz").attributes["color"].tolist() == [[1.0, 1.0, 1.0]] * 3
    np.savez(tmp_path / "a.npz", positions=np.zeros((3, 3)), colors=np.full((3, 4), 0.5))
    assert load_points(tmp_path / "a.npz").attributes["color"].shape == (3, 3)


def test_shapes_of_one_name_are_all_shown(tmp_path: Path) -> None:
    files = []
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / "x.npz")
        save_voxels(voxelize(ball(), voxel_size=0.1), files[-1])
    assert main(["view", *map(str, files), "--page", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count('<script type="application/octet-stream"') == 3
    assert main(["view", str(files[0]), "--page", str(tmp_path / "page.html"), "--limit", "0"]) == 2
