"""Converters, on small files in the layouts of others."""

from typing import Any

import numpy as np
import pytest
import torch

import sparsevox as sv
from sparsevox.io import from_trimesh, save_mesh, save_voxels
from xcube.data import Box, ShapeFolder, build, semantic_kitti_sources, shapenet_sources, voxel_sources
from xcube.data.converters import SEMANTIC_KITTI

trimesh = pytest.importorskip("trimesh", reason="shapes to build from")

BOX = Box((4, 16))


def splits_of(sources):
    return {source.name: source.split for source in sources}


def loaded(source):
    voxels = source.load()
    assert isinstance(voxels, sv.Voxels)
    return voxels


# --- ShapeNet


def model(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_mesh(from_trimesh(trimesh.creation.box((0.3, 0.4, 0.5))), path)


@pytest.fixture
def shapenet(tmp_path):
    """Two categories: as ShapeNetCore 1 and 2 have it, as files, as folders with a mesh of any name."""
    root = tmp_path / "shapenet"
    model(root / "03001627" / "one" / "models" / "model_normalized.obj")
    model(root / "03001627" / "one" / "models" / "model_normalized.ply")
    model(root / "03001627" / "two" / "model.obj")
    model(root / "02691156" / "three.ply")
    model(root / "02691156" / "four" / "scan" / "final.stl")
    (root / "02691156" / "five").mkdir()
    (root / "02691156" / "notes.txt").write_text("")
    (root / "taxonomy.json").write_text("[]")
    return root


def test_shapenet(shapenet, tmp_path):
    sources = shapenet_sources(shapenet)
    names = ["02691156/four", "02691156/three", "03001627/one", "03001627/two"]
    assert splits_of(sources) == dict.fromkeys(names)
    assert sources[2].path == shapenet / "03001627" / "one" / "models" / "model_normalized.obj"
    report = build(sources, tmp_path / "out", BOX, samples=200)
    assert [entry.name for entry in report.built] == names
    assert {entry.voxels for entry in report.built if "three" in entry.name} == {
        entry.voxels for entry in report.built if "one" in entry.name
    }


def test_shapenet_with_lists(shapenet, tmp_path):
    (shapenet / "03001627" / "train.lst").write_text("two\nmissing\n")
    (shapenet / "03001627" / "test.lst").write_text("one\n")
    sources = shapenet_sources(shapenet)
    assert splits_of(sources) == {
        "02691156/four": None,
        "02691156/three": None,
        "03001627/one": "test",
        "03001627/two": "train",
        "missing": "train",
    }
    report = build(sources, tmp_path / "out", BOX, samples=200)
    assert [(s.name, s.reason) for s in report.skipped] == [("missing", "unreadable")]
    assert [entry.name for entry in ShapeFolder(tmp_path / "out", "test").entries if "0300" in entry.name] == [
        "03001627/one"
    ]


def test_bad_shapenet(shapenet, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"root must be a folder, got .*nope"):
        shapenet_sources(tmp_path / "nope")
    (tmp_path / "empty" / "03001627").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"empty must hold CATEGORY/MODEL.obj"):
        shapenet_sources(tmp_path / "empty")
    model(shapenet / "02691156" / "four" / "other.obj")
    with pytest.raises(ValueError, match=r"four: expected one mesh, got other.obj and final.stl"):
        shapenet_sources(shapenet)


# --- SemanticKITTI


@pytest.fixture
def kitti(tmp_path):
    """Three sequences of a sweep each; that of the test sequence has no labels."""
    root = tmp_path / "kitti"
    positions = np.array([[-10.0, 0.5, -1.5], [10.1, 20.1, 0.3], [0.1, 0.1, 0.1], [12.1, -3.1, 1]], np.float32)
    for sequence in ("00", "08", "11"):
        for folder in ("velodyne", "labels"):
            (root / "sequences" / sequence / folder).mkdir(parents=True)
        sweep = np.concatenate([positions, [[0.25], [0.5], [0.75], [1.0]]], 1).astype("<f4")
        sweep.tofile(root / "sequences" / sequence / "velodyne" / "000042.bin")
        if sequence != "11":
            labels = np.array([10, 252, 99, (7 << 16) + 40], "<u4")  # instance 7 of the last one
            labels.tofile(root / "sequences" / sequence / "labels" / "000042.label")
    return root


def test_semantic_kitti(kitti, tmp_path):
    box = Box((32, 128), (102.4, 102.4, 25.6))
    sources = semantic_kitti_sources(kitti)
    assert splits_of(sources) == {"00/000042": "train", "08/000042": "val", "11/000042": "test"}
    points: Any = sources[0].load()
    assert set(points.attributes) == {"intensity", "label", "instance"}
    assert points.attributes["label"].tolist() == [1, 1, 0, 9]
    assert points.attributes["instance"].tolist() == [0, 0, 0, 7]
    report = build(sources, tmp_path / "out", box, attributes=("intensity", "label"))
    assert [(s.name, s.reason) for s in report.skipped] == [("11/000042", "other attributes")]
    voxels = ShapeFolder(tmp_path / "out", "train")[0]
    rows = voxels.grid.index(torch.floor(points.positions / 0.8).long())
    assert voxels.num_voxels == 4
    assert voxels.attributes["label"][rows].tolist() == [1, 1, 0, 9]
    assert voxels.attributes["intensity"][rows, 0].tolist() == [0.25, 0.5, 0.75, 1.0]


def test_semantic_kitti_with_its_own_labels(kitti):
    points: Any = semantic_kitti_sources(kitti, classes=None)[0].load()
    assert points.attributes["label"].tolist() == [10, 252, 99, 40]
    points = semantic_kitti_sources(kitti, classes={99: 5})[0].load()
    assert points.attributes["label"].tolist() == [0, 0, 5, 0]
    points = semantic_kitti_sources(kitti)[2].load()
    assert set(points.attributes) == {"intensity"}


def test_classes_of_semantic_kitti():
    assert sorted(set(SEMANTIC_KITTI.values())) == list(range(1, 20))
    moving = {252: 10, 253: 31, 254: 30, 255: 32, 258: 18}
    assert all(SEMANTIC_KITTI[label] == SEMANTIC_KITTI[still] for label, still in moving.items())


def test_a_sweep_cut_off_is_reported(kitti, tmp_path):
    path = kitti / "sequences" / "00" / "labels" / "000042.label"
    path.write_bytes(path.read_bytes()[:-1])
    report = build(semantic_kitti_sources(kitti), tmp_path / "out", Box((32,), (102.4, 102.4, 25.6)), attributes=())
    assert [(s.name, s.reason) for s in report.skipped] == [("00/000042", "unreadable")]
    assert "000042.label" in report.skipped[0].detail
    with pytest.raises(FileNotFoundError, match=r"must hold sequences/\*/velodyne/\*.bin"):
        semantic_kitti_sources(tmp_path / "out")


# --- Arrays of voxels


def test_voxels_count_from_the_corner_of_the_box(tmp_path):
    box = Box((4, 8), (1.0, 1.0, 0.5))
    ijk = np.array([[7, 1, 2], [1, 6, 1], [2, 3, 1], [1, 1, 1]]).clip(1, 6)
    (tmp_path / "in" / "deep").mkdir(parents=True)
    np.save(tmp_path / "in" / "plain.npy", ijk)
    normal = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    np.savez(tmp_path / "in" / "deep" / "with.npz", ijk=ijk.astype(np.int16), normal=normal, label=np.arange(4))
    sources = voxel_sources(tmp_path / "in", box)
    assert [source.name for source in sources] == ["deep/with", "plain"]
    for source in sources:
        grid = loaded(source).grid
        assert (grid.voxel_size, grid.origin) == ((0.125,) * 3, (0.0625,) * 3)
        assert {tuple(v) for v in grid.ijk.tolist()} == {tuple(v) for v in (ijk - [4, 4, 2]).tolist()}
    voxels = loaded(sources[0])
    rows = voxels.grid.index(torch.from_numpy(ijk - [4, 4, 2]))
    assert voxels.attributes["label"][rows].tolist() == [0, 1, 2, 3]
    assert np.array_equal(voxels.attributes["normal"][rows].numpy(), normal)
    report = build(sources[:1], tmp_path / "out", box, attributes=("normal", "label"), outside="clip")
    assert report.built[0].voxels[1] == 4


def test_voxels_around_the_middle_and_voxels_that_say_where_they_lie(tmp_path):
    ijk = torch.tensor([[-3, 0, 2], [1, 1, 1]])
    np.save(tmp_path / "a.npy", ijk.numpy())
    own = sv.Grid.from_coords(ijk, voxel_size=1 / 16, origin=1 / 32)
    save_voxels(sv.Voxels(own), tmp_path / "b.npz")
    for source in voxel_sources(tmp_path, BOX, centered=True):
        grid = loaded(source).grid
        assert grid.same_voxels(own)
        assert grid.voxel_size == own.voxel_size
    assert loaded(voxel_sources(tmp_path / "b.npz", BOX)[0]).grid.same_voxels(own)
    assert not loaded(voxel_sources(tmp_path / "a.npy", BOX)[0]).grid.same_voxels(own)


def test_bad_voxels(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold .npy or .npz files"):
        voxel_sources(tmp_path, BOX)
    np.save(tmp_path / "twice.npy", np.array([[8, 8, 8], [8, 8, 8]]))
    np.save(tmp_path / "beyond.npy", np.array([[8, 8, 16]]))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "batch.npy", np.array([[0, 8, 8, 8], [1, 8, 8, 8]]))
    np.save(tmp_path / "floats.npy", np.array([[0.5, 8, 8]]))
    report = build(voxel_sources(tmp_path, BOX), tmp_path / "out", BOX, attributes=())
    assert {s.name: s.reason for s in report.skipped} == {
        "twice": "unreadable",
        "beyond": "out of the box",
        "objects": "unreadable",
        "batch": "unreadable",
        "floats": "unreadable",
    }
