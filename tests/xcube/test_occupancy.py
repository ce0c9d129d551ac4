"""Labeled occupancy of street scenes, in files of the layouts of SemanticKITTI's scene completion and Occ3D."""

from pathlib import Path

import numpy as np
import pytest

from sparsevox import Voxels
from xcube.cli import main
from xcube.data import Box, ShapeFolder, occ3d_sources, semantic_kitti_voxel_sources
from xcube.data.occupancy import load_kitti_voxels, load_occ3d

KITTI = Box((128, 256), (51.2, 51.2, 6.4))
OCC3D = Box((50, 200), (80.0, 80.0, 6.4))


def packed(places: np.ndarray) -> bytes:
    """Bits of a volume in the order of the format: the first voxel is the highest bit of the first byte."""
    flat = np.zeros(256 * 256 * 32, dtype=bool)
    flat[(places[:, 0] * 256 + places[:, 1]) * 32 + places[:, 2]] = True
    data = bytearray(len(flat) // 8)
    for index in flat.nonzero()[0].tolist():
        data[index // 8] |= 0x80 >> index % 8
    return bytes(data)


def scene(folder: Path, name: str = "000000") -> tuple[Path, np.ndarray]:
    """A road of 40 x 10 voxels, a car on it that is partly invalid, and an unlabeled hit."""
    folder.mkdir(parents=True, exist_ok=True)
    road = np.array([(x, 120 + y, 3) for x in range(40) for y in range(10)])
    car = np.array([(10, 124, z) for z in (4, 5, 6)])
    labels = np.zeros((256, 256, 32), dtype="<u2")
    labels[tuple(road.T)], labels[tuple(car.T)] = 40, 252  # a moving car
    (folder / f"{name}.label").write_bytes(labels.tobytes())
    (folder / f"{name}.bin").write_bytes(packed(np.concatenate([road[:100], [[200, 200, 20]]])))
    (folder / f"{name}.invalid").write_bytes(packed(car[2:]))
    (folder / f"{name}.occluded").write_bytes(packed(road[300:]))
    return folder / f"{name}.bin", np.concatenate([road, car[:2]])


def test_a_scene_of_semantic_kitti(tmp_path: Path) -> None:
    file, expected = scene(tmp_path)
    voxels = load_kitti_voxels(file)
    assert voxels.grid.voxel_size == (0.2,) * 3
    # The lower corner of the volume is that of the box.
    found = (voxels.grid.to_world(voxels.grid.ijk.double()).numpy() + np.array([25.6, 25.6, 3.2])) / 0.2 - 0.5
    table = {tuple(np.rint(place).astype(int).tolist()): row for row, place in enumerate(found)}
    assert table.keys() == {tuple(place) for place in expected.tolist()}
    rows = [table[tuple(place)] for place in expected.tolist()]
    assert voxels.attributes["label"][rows].tolist() == [9] * 400 + [1] * 2
    assert voxels.attributes["observed"][rows].tolist() == [1] * 100 + [0] * 302
    assert voxels.attributes["occluded"][rows].tolist() == [0] * 300 + [1] * 100 + [0] * 2
    assert set(load_kitti_voxels(file, None).attributes["label"].tolist()) == {40, 252}
    # Scans of the test set have no labels.
    for suffix in (".label", ".invalid", ".occluded"):
        file.with_suffix(suffix).unlink()
    voxels = load_kitti_voxels(file)
    assert voxels.num_voxels == 101
    assert "label" not in voxels.attributes


def test_sequences_and_splits(tmp_path: Path) -> None:
    for sequence in ("00", "08", "11"):
        scene(tmp_path / "sequences" / sequence / "voxels", "000005")
    sources = semantic_kitti_voxel_sources(tmp_path, KITTI)
    assert {source.name: source.split for source in sources} == {
        "00/000005": "train", "08/000005": "val", "11/000005": "test",
    }  # fmt: skip


def test_a_scene_of_occ3d(tmp_path: Path) -> None:
    labels = np.full((200, 200, 16), 17, dtype=np.uint8)
    labels[0, 0, 0], labels[199, 199, 15], labels[100, 50, 2] = 4, 0, 11
    mask = np.zeros(labels.shape, dtype=np.uint8)
    mask[0, 0, 0] = 1
    folder = tmp_path / "gts" / "scene-0003" / "abc"
    folder.mkdir(parents=True)
    np.savez(folder / "labels.npz", semantics=labels, mask_lidar=mask, mask_camera=1 - mask)
    (source,) = occ3d_sources(tmp_path / "gts", OCC3D)
    assert source.name == "scene-0003/abc"
    voxels = source.load()
    assert isinstance(voxels, Voxels)
    places = voxels.grid.to_world(voxels.grid.ijk.double()).numpy() + np.array([40.0, 40.0, 3.2])
    order = places[:, 0].argsort()
    assert np.allclose(places[order], [[0.2, 0.2, 0.2], [40.2, 20.2, 1.0], [79.8, 79.8, 6.2]])
    assert voxels.attributes["label"][order].tolist() == [4, 11, 0]
    assert voxels.attributes["observed"][order].tolist() == [1, 0, 0]


def test_bad_files_are_named(tmp_path: Path) -> None:
    file, _ = scene(tmp_path)
    file.with_suffix(".label").write_bytes(b"12")
    with pytest.raises(ValueError, match=r"000000.label must have 4,194,304 bytes, got 2"):
        load_kitti_voxels(file)
    file.with_suffix(".label").write_bytes(bytes(256 * 256 * 32 * 2))
    with pytest.raises(ValueError, match=r"000000.bin must have a voxel, got none"):
        load_kitti_voxels(file)
    np.savez(tmp_path / "labels.npz", semantics=np.zeros((2, 2, 2)))
    with pytest.raises(
        ValueError, match=r"must have semantics of shape \(200, 200, 16\), .* got semantics \(2, 2, 2\)"
    ):
        load_occ3d(tmp_path / "labels.npz")
    np.savez(tmp_path / "labels.npz", other=np.zeros(2))
    with pytest.raises(ValueError, match="got none"):
        load_occ3d(tmp_path / "labels.npz")
    np.savez(tmp_path / "labels.npz", semantics=np.full((200, 200, 16), 23))
    with pytest.raises(ValueError, match="must have labels from 0 to 17, which is free space, got 23 to 23"):
        load_occ3d(tmp_path / "labels.npz")
    np.savez(tmp_path / "labels.npz", semantics=np.zeros((200, 200, 16)), mask_lidar=np.zeros(3))
    with pytest.raises(ValueError, match=r"got mask_lidar \(3,\)"):
        load_occ3d(tmp_path / "labels.npz")
    (tmp_path / "labels.npz").write_bytes(b"PK nonsense")
    with pytest.raises(ValueError, match=r"labels\.npz is damaged"):
        load_occ3d(tmp_path / "labels.npz")


def test_bad_folders_and_boxes_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"sequences/\*/voxels/\*.bin, got none"):
        semantic_kitti_voxel_sources(tmp_path, KITTI)
    with pytest.raises(FileNotFoundError, match=r"must hold files labels\.npz, got none"):
        occ3d_sources(tmp_path, OCC3D)
    with pytest.raises(
        ValueError, match=r"256 x 256 x 32 voxels of 0.2 m, .* with the size 51.2,51.2,6.4 do, got 200 x"
    ):
        semantic_kitti_voxel_sources(tmp_path, OCC3D)
    with pytest.raises(ValueError, match=r"with the size 80,80,6.4 do, got 256 x 256 x 32 of 0.2"):
        occ3d_sources(tmp_path, KITTI)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jsonargparse", reason="the command line")
    _, expected = scene(tmp_path / "in" / "sequences" / "00" / "voxels")
    out = tmp_path / "out"
    command = ["data", "build", str(tmp_path / "in"), "--layout", "semantic-kitti-voxels", "--levels", "64,256"]
    command += ["--size", "51.2,51.2,6.4", "--thin", "64", "--attributes", "label,observed", "--workers", "0"]
    assert main([*command, "--out", str(out)]) == 0
    assert "1 shapes built" in capsys.readouterr().out
    shapes = [ShapeFolder[Voxels](out, "train", level=level)[0] for level in (0, 1)]
    assert shapes[1].num_voxels == len(expected)
    assert int(shapes[1].attributes["observed"].sum()) == 100
    assert shapes[0].grid.same_voxels(shapes[1].grid.coarsen(4))
    assert main([*command, "--up", "y", "--out", str(out)]) == 2
    assert "up must be 'z'" in capsys.readouterr().err
