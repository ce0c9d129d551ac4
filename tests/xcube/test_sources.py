"""Sources of datasets: names of files, splits and seeds."""

from functools import partial
from typing import Any

import pytest
import torch

import sparsevox as sv
from sparsevox.io import from_trimesh, save_mesh, save_points
from xcube.data import Box, ShapeFolder, Source, build, file_sources, with_lists
from xcube.data.sources import as_name, seed_of, split_of

trimesh = pytest.importorskip("trimesh", reason="shapes to build from")

FEW: dict[str, Any] = {"box": Box((4, 16)), "samples": 300}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A folder of twelve files, some below others."""
    root = tmp_path_factory.mktemp("shapes")
    mesh = from_trimesh(trimesh.creation.box((0.3, 0.3, 0.3)))
    for number in range(12):
        folder = root / ("flat" if number % 3 else "deep/er")
        folder.mkdir(parents=True, exist_ok=True)
        save_mesh(mesh, folder / f"box {number}.ply")
    return root


def make(number):
    return sv.Voxels(sv.Grid.full(-number, number, voxel_size=1 / 16, origin=1 / 32))


# --- Seeds


def test_seeds_follow_from_name_and_bytes(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    source = Source("x", partial(make, 1), path)
    seeds = {seed_of(source, 0), seed_of(source, 1), seed_of(Source("y", source.load, path), 0)}
    seeds.add(seed_of(Source("x", source.load), 0))
    path.write_bytes(b"two")
    seeds.add(seed_of(source, 0))
    assert len(seeds) == 5
    assert all(0 <= seed < 2**64 for seed in seeds)


# --- Splits


def test_splits_follow_from_names(shapes, tmp_path):
    names = [f"n{number}" for number in range(3000)]
    sources = [Source(name, partial(make, 0)) for name in names]
    found = [split_of(source, {"train": 6, "val": 3, "test": 1, "none": 0}) for source in sources]
    assert [found.count(split) / 3000 for split in ("train", "val", "test", "none")] == pytest.approx(
        [0.6, 0.3, 0.1, 0], abs=0.03
    )
    assert split_of(Source("n0", sources[0].load, split="mine"), {"train": 1}) == "mine"
    build(file_sources([shapes]), tmp_path, **FEW, splits={"train": 0.5, "test": 0.5})
    for split in ("train", "test"):
        for entry in ShapeFolder(tmp_path, split).entries:
            assert split_of(Source(entry.name, sources[0].load), {"train": 0.5, "test": 0.5}) == split


def test_lists(shapes, tmp_path):
    (tmp_path / "train.lst").write_text("flat/box 1\nbox 2.ply\n\n  deep/er/box%200  \n")
    (tmp_path / "val.lst").write_text("er/box 3\nflat/box 99\n")
    sources = with_lists(file_sources([shapes]), tmp_path)
    assert {source.name: source.split for source in sources} == {
        "flat/box%201": "train",
        "flat/box%202": "train",
        "deep/er/box%200": "train",
        "deep/er/box%203": "val",
        "flat/box%2099": "val",
    }
    report = build(sources, tmp_path / "out", **FEW)
    assert [(s.name, s.reason) for s in report.skipped] == [("flat/box%2099", "unreadable")]
    assert "val.lst lists 'flat/box 99', which does not exist" in report.skipped[0].detail
    assert len(ShapeFolder(tmp_path / "out", "val")) == 1


def test_bad_lists(shapes, tmp_path):
    sources = file_sources([shapes])
    with pytest.raises(FileNotFoundError, match=r"must hold lists such as train.lst"):
        with_lists(sources, tmp_path)
    (tmp_path / "train.lst").write_text("box 1")
    (tmp_path / "val.lst").write_text("flat/box 1")
    with pytest.raises(ValueError, match=r"'flat/box%201' is on two lists of .*, the second is val.lst"):
        with_lists(sources, tmp_path)
    (tmp_path / "val.lst").write_text("same")
    with pytest.raises(ValueError, match=r"val.lst: 'same' matches both 'a/same' and 'b/same'"):
        with_lists([Source("a/same", partial(make, 0)), Source("b/same", partial(make, 0))], tmp_path)


# --- Files


def test_names_of_files(shapes, tmp_path):
    everything = {source.name for source in file_sources([shapes])}
    assert {source.name for source in file_sources([shapes / "flat", shapes / "deep"])} == {
        name.partition("/")[2] for name in everything
    }
    assert {source.name for source in file_sources([f"{shapes}/**/*.ply"])} == everything
    assert {s.name for s in file_sources([f"{shapes}/fl*/box 1*.ply"])} == {
        "flat/box%201",
        "flat/box%2010",
        "flat/box%2011",
    }
    one = shapes / "flat" / "box 1.ply"
    assert [source.name for source in file_sources([one, str(one)])] == ["box%201"]
    assert as_name(["..", ".hidden", "a/b", "é"]) == "%2E./%2Ehidden/a%2Fb/%C3%A9"


def test_hidden_and_other_files_are_left_alone(shapes, tmp_path):
    for name in (".hidden.ply", "notes.txt", ".git/a.ply", "a.ply"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((shapes / "flat" / "box 1.ply").read_bytes())
    assert [source.name for source in file_sources([tmp_path])] == ["a"]


def test_points_and_meshes_in_ply(shapes, tmp_path):
    save_points(sv.Points(torch.rand(20, 3) / 4, {"normal": torch.eye(3)[torch.arange(20) % 3]}), tmp_path / "p.ply")
    (source,) = file_sources([tmp_path])
    assert isinstance(source.load(), sv.Points)
    assert isinstance(file_sources([shapes])[0].load(), sv.Mesh)
    (entry,) = build([source], tmp_path / "out", **FEW).built
    assert entry.watertight is None


def test_bad_paths(shapes, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nope: no such file or folder, and no match"):
        file_sources([tmp_path / "nope"])
    with pytest.raises(FileNotFoundError, match=r"\*.obj: no such file or folder"):
        file_sources([f"{shapes}/*.obj"])
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"a.txt must end in one of .bin, .glb"):
        file_sources([tmp_path / "a.txt"])
    with pytest.raises(ValueError, match="paths must lead to meshes or point clouds, got none"):
        file_sources([tmp_path])
    one = shapes / "flat" / "box 1.ply"
    (tmp_path / "BOX 1.ply").write_bytes(one.read_bytes())
    with pytest.raises(
        ValueError, match=r"names must differ, got 'box%201' and 'BOX%201' for .*box 1.ply and .*BOX 1.ply"
    ):
        file_sources([one, tmp_path / "BOX 1.ply"])
    with pytest.raises(ValueError, match=r"names must differ"):
        build([Source("a", partial(make, 1)), Source("a", partial(make, 2))], tmp_path / "out", **FEW)
