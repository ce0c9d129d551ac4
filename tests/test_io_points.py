"""Reading and writing points. Files are written by hand, so that a reader is not tested with its own writer only."""

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.scenes import scene
from sparsevox import Points
from sparsevox.io import load_points, save_points

XYZ = [(0.5, -1.25, 3.0), (2.0, 0.0, -7.5), (1.0, 1.0, 1.0)]
PLY_TYPES = {"float": "f", "double": "d", "uchar": "B", "ushort": "H", "uint": "I", "int": "i", "short": "h"}


def ply(columns: list[tuple[str, str, list[Any]]], layout: str) -> bytes:
    """Vertices with columns of (type, name, values)."""
    rows = list(zip(*(values for _, _, values in columns), strict=True))
    head = ["ply", f"format {layout} 1.0", f"element vertex {len(rows)}"]
    head += [*(f"property {kind} {name}" for kind, name, _ in columns), "end_header", ""]
    if layout == "ascii":
        body = "\n".join(" ".join(map(str, row)) for row in rows).encode()
    else:
        order = ">" if "big" in layout else "<"
        body = b"".join(struct.pack(order + "".join(PLY_TYPES[k] for k, _, _ in columns), *row) for row in rows)
    return "\n".join(head).encode() + body


def position_columns(kind="float"):
    return [(kind, axis, [row[n] for row in XYZ]) for n, axis in enumerate("xyz")]


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def save(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


LAYOUTS = ["ascii", "binary_little_endian", "binary_big_endian"]


# PLY


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_ply_file(tmp_path, layout):
    columns = [
        *position_columns(),
        *(("float", name, values) for name, values in (("nx", [0, 1, 0]), ("ny", [0, 0, 1]), ("nz", [1, 0, 0]))),
        *(
            ("uchar", name, values)
            for name, values in (("red", [255, 0, 51]), ("green", [0, 1, 2]), ("blue", [7, 8, 9]))
        ),
        ("uchar", "alpha", [255, 255, 255]),
        ("float", "intensity", [0.25, 0.5, 1.0]),
        ("double", "scalar_Time", [1.5, 2.5, 3.5]),
        ("int", "label", [-1, 0, 70000]),
        ("ushort", "ring", [0, 40000, 65535]),
        ("uint", "id", [0, 3000000000, 1]),
    ]
    points = load_points(write(tmp_path, "a.ply", ply(columns, layout)))
    assert points.positions.dtype == torch.float32
    assert points.positions.tolist() == [list(row) for row in XYZ]
    a = points.attributes
    assert set(a) == {"normal", "color", "intensity", "scalar_Time", "label", "ring", "id"}
    assert a["normal"].tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert torch.equal(a["color"], torch.tensor([[255, 0, 7], [0, 1, 8], [51, 2, 9]]) / 255)
    assert (a["intensity"].tolist(), a["scalar_Time"].tolist()) == ([[0.25], [0.5], [1.0]], [1.5, 2.5, 3.5])
    assert (a["scalar_Time"].dtype, a["label"].dtype) == (torch.float64, torch.int32)
    assert a["label"].tolist() == [-1, 0, 70000]
    assert (a["ring"].dtype, a["ring"].tolist()) == (torch.int32, [0, 40000, 65535])
    assert (a["id"].dtype, a["id"].tolist()) == (torch.int64, [0, 3000000000, 1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_positions_of_a_ply_file_keep_their_precision(tmp_path, layout):
    for kind in ("double", "int"):
        columns = [(kind, axis, [1, 2, 3]) for axis in "xyz"]
        positions = load_points(write(tmp_path, "a.ply", ply(columns, layout))).positions
        assert (positions.dtype, positions.tolist()) == (torch.float64, [[1] * 3, [2] * 3, [3] * 3])


def test_colors_of_16_bits_and_of_floats(tmp_path):
    for kind, scale in (("ushort", 65535), ("float", 1)):
        columns = position_columns() + [(kind, name, [0, scale, 0]) for name in ("red", "green", "blue")]
        points = load_points(write(tmp_path, "a.ply", ply(columns, "binary_little_endian")))
        assert points.attributes["color"].tolist() == [[0.0] * 3, [1.0] * 3, [0.0] * 3]


def test_the_points_of_a_mesh_are_its_vertices(tmp_path):
    text = ply(position_columns(), "ascii").decode()
    face = "element face 1\nproperty list uchar int vertex_indices\nend_header"
    points = load_points(write(tmp_path, "a.ply", (text.replace("end_header", face) + "\n3 0 1 2\n").encode()))
    assert points.positions.tolist() == [list(row) for row in XYZ]
    assert not points.attributes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ply_files_that_are_empty_or_truncated(tmp_path, layout):
    with pytest.raises(ValueError, match=r"a\.ply: .*no vertices"):
        load_points(write(tmp_path, "a.ply", ply([(k, n, []) for k, n, _ in position_columns()], layout)))
    with pytest.raises(ValueError, match=r"a\.ply: trimesh cannot read the file: .*z"):
        load_points(write(tmp_path, "a.ply", ply(position_columns()[:2], layout)))
    whole = ply(position_columns(), layout)
    for kept in (10, 60, len(whole) - 20, len(whole) - 11):
        with pytest.raises(ValueError, match=r"a\.ply"):
            load_points(write(tmp_path, "a.ply", whole[:kept]))


def test_the_error_names_trimesh_if_it_is_missing(tmp_path, monkeypatch):
    path = write(tmp_path, "a.ply", ply(position_columns(), "ascii"))
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(ImportError, match=r"sparsevox\[io\]"):
        load_points(path)
    np.save(tmp_path / "a.npy", np.array(XYZ, np.float32))
    assert len(load_points(tmp_path / "a.npy")) == 3


# NumPy


@pytest.mark.parametrize("name", ["positions", "points", "xyz"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f4", np.float16])
def test_positions_of_an_npz_file(tmp_path, name, dtype):
    points = load_points(save(tmp_path / "a.npz", **{name: np.array(XYZ, dtype), "voxel_size": np.array(0.1)}))
    assert points.positions.tolist() == [list(row) for row in XYZ]
    assert points.positions.dtype == torch.from_numpy(np.zeros(0, np.dtype(dtype).newbyteorder("="))).dtype
    assert not points.attributes


def test_arrays_of_an_npz_file_become_attributes(tmp_path):
    arrays = {
        "colors": np.array([[255, 0, 51, 9]] * 3, np.uint8),
        "normals": np.eye(3),
        "labels": np.array([0, 65535, 3], np.uint16),
        "intensity": np.array([0.0, 0.5, 1.0], np.float32),
        "weights": np.zeros((3, 5), ">f8"),
        "seen": np.array([True, False, True]),
        "huge": np.array([1, 2, 2**63 - 1], np.uint64),
        "names": np.array(["a", "b", "c"]),
        "pairs": np.zeros((3, 2, 2)),
        "others": np.zeros(4),
    }
    a = load_points(save(tmp_path / "a.npz", points=np.array(XYZ), **arrays)).attributes
    assert set(a) == {"color", "normal", "label", "intensity", "weights", "seen", "huge"}
    assert torch.equal(a["color"], torch.tensor([[255, 0, 51]] * 3) / 255)
    assert torch.equal(a["normal"], torch.eye(3, dtype=torch.float64))
    assert (a["label"].dtype, a["label"].tolist()) == (torch.int32, [0, 65535, 3])
    assert a["intensity"].tolist() == [[0.0], [0.5], [1.0]]
    assert (a["weights"].dtype, a["weights"].shape) == (torch.float64, (3, 5))
    assert (a["seen"].dtype, a["seen"].tolist()) == (torch.bool, [True, False, True])
    assert (a["huge"].dtype, a["huge"].tolist()) == (torch.int64, [1, 2, 2**63 - 1])


def test_invalid_npz_files(tmp_path):
    with pytest.raises(ValueError, match=r"a\.npz: exactly one array must be named positions .* xyz, got \['p'\]"):
        load_points(save(tmp_path / "a.npz", p=np.zeros((3, 3))))
    with pytest.raises(ValueError, match=r"one array must be named"):
        load_points(save(tmp_path / "a.npz", points=np.zeros((3, 3)), xyz=np.zeros((3, 3))))
    with pytest.raises(ValueError, match=r"arrays must be distinct attributes"):
        load_points(save(tmp_path / "a.npz", points=np.zeros((3, 3)), label=np.zeros(3), labels=np.zeros(3)))
    for bad in (np.zeros((3, 4)), np.zeros(3), np.zeros((3, 3), bool), np.zeros((3, 3), np.longdouble)):
        with pytest.raises(ValueError, match=r"a\.npz: positions must"):
            load_points(save(tmp_path / "a.npz", points=bad))
    with pytest.raises(ValueError, match=r"huge must fit in int64"):
        load_points(save(tmp_path / "a.npz", points=np.zeros((1, 3)), huge=np.array([2**63], np.uint64)))


def test_columns_of_an_npy_file(tmp_path):
    table = np.arange(24.0).reshape(3, 8)
    path = tmp_path / "a.npy"
    np.save(path, table)
    names = ("intensity", "normal", "normal", "normal", "")
    points = load_points(path, columns=names)
    assert points.positions.tolist() == table[:, :3].tolist()
    assert set(points.attributes) == {"intensity", "normal"}
    assert points.attributes["intensity"].tolist() == table[:, 3:4].tolist()
    assert points.attributes["normal"].tolist() == table[:, 4:7].tolist()
    for columns in (None, ("intensity",), (*names, "more")):
        with pytest.raises(ValueError, match=r"a\.npy: columns must have 5 names"):
            load_points(path, columns=columns)
    np.save(path, table[:, :3].astype(np.int16))
    assert torch.equal(load_points(path).positions, torch.from_numpy(table[:, :3]))
    for bad in (table[:, :2], table[0], table[None]):
        np.save(path, bad)
        with pytest.raises(ValueError, match=r"must have shape \[P, 3 \+ C\]"):
            load_points(path)


def test_columns_are_for_tables_only(tmp_path):
    with pytest.raises(ValueError, match=r"columns apply to \.npy and \.bin files only, got \['a'\]"):
        load_points(save(tmp_path / "a.npz", points=np.zeros((1, 3))), columns=["a"])


class Malicious:
    """What runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_nothing_is_unpickled(tmp_path, suffix):
    trap, path = tmp_path / "trap", tmp_path / f"a.{suffix}"
    bad = np.array([Malicious(trap)], object)
    if suffix == "npz":
        np.savez(path, positions=np.zeros((1, 3)), extra=bad, allow_pickle=True)
    else:
        np.save(path, bad, allow_pickle=True)
    with pytest.raises(ValueError, match=rf"a\.{suffix}: NumPy cannot read it without unpickling"):
        load_points(path)
    assert not trap.exists()
    np.load(path, allow_pickle=True)["extra" if suffix == "npz" else slice(None)]
    assert trap.exists()  # so the trap works
    path.write_bytes(bad.dumps())  # a bare pickle under the name of an array
    with pytest.raises(ValueError, match=rf"a\.{suffix}: NumPy cannot read it without unpickling"):
        load_points(path)


# LiDAR


def test_a_bin_file(tmp_path):
    rows = [(*xyz, n / 2) for n, xyz in enumerate(XYZ)]
    path = write(tmp_path, "a.bin", b"".join(struct.pack("<4f", *row) for row in rows))
    points = load_points(path)
    assert points.positions.dtype == torch.float32
    assert points.positions.tolist() == [list(row) for row in XYZ]
    assert points.attributes["intensity"].tolist() == [[0.0], [0.5], [1.0]]
    assert load_points(path, columns=("",)).attributes == {}
    path = write(tmp_path, "b.bin", b"".join(struct.pack("<5f", *row, 7) for row in rows))
    assert load_points(path, columns=("intensity", "ring")).attributes["ring"].tolist() == [7, 7, 7]
    with pytest.raises(ValueError, match=r"b\.bin: the file must have 16 bytes per point, got 60"):
        load_points(path)
    assert len(load_points(write(tmp_path, "c.bin", bytes(36)), columns=())) == 3


def test_labels_of_a_bin_file(tmp_path):
    path = write(tmp_path, "a.bin", bytes(16 * 3))
    classes, instances = [0, 40, 65535], [0, 65535, 2]
    packed = [instance << 16 | label for label, instance in zip(classes, instances, strict=True)]
    labels = write(tmp_path, "a.label", struct.pack("<3I", *packed))
    points = load_points(path, labels=labels)
    assert list(points.attributes) == ["intensity", "label", "instance"]
    assert (points.attributes["label"].tolist(), points.attributes["instance"].tolist()) == (classes, instances)
    assert points.attributes["label"].dtype == torch.int64
    for bad in (struct.pack("<2I", 1, 2), struct.pack("<3I", 1, 2, 3) + b"\0"):
        with pytest.raises(ValueError, match=r"a\.label: the file must have 4 bytes for each of 3 points, got"):
            load_points(path, labels=write(tmp_path, "a.label", bad))
    with pytest.raises(ValueError, match=r"must end in \.label"):
        load_points(path, labels=path)
    with pytest.raises(FileNotFoundError, match=r"b\.label"):
        load_points(path, labels=tmp_path / "b.label")


# Bad files


@pytest.mark.parametrize("name", ["a.ply", "a.npz", "a.npy", "a.bin"])
def test_empty_missing_and_wrong_files(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(FileNotFoundError, match=f"{name}: there is no such file"):
        load_points(path)
    with pytest.raises(ValueError, match=f"{name}: the file is empty"):
        load_points(write(tmp_path, name, b""))
    with pytest.raises(ValueError, match=name):
        load_points(write(tmp_path, name, b"no points at all\n"))
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError, match=name):
        load_points(path)
    with pytest.raises(ValueError, match=r"must end in \.ply or \.npz or \.npy or \.bin"):
        load_points(tmp_path / "a.pcd")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
def test_truncated_arrays(tmp_path, kept):
    for name in ("a.npz", "a.npy"):
        path = tmp_path / name
        (np.savez if name == "a.npz" else np.save)(path, np.zeros((9, 3)))
        with pytest.raises(ValueError, match=f"{name}: NumPy cannot read it"):
            load_points(write(tmp_path, name, path.read_bytes()[: int(path.stat().st_size * kept)]))


def test_damaged_archives_load_or_the_error_names_them(tmp_path):
    whole = save(
        tmp_path / "whole.npz", points=np.random.default_rng(0).random((5, 3)), label=np.arange(5)
    ).read_bytes()
    rng = np.random.default_rng(1)
    said = 0
    for _ in range(200):
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        try:
            assert len(load_points(write(tmp_path, "a.npz", bytes(data)))) == 5
        except ValueError as error:
            assert "a.npz: " in str(error)  # noqa: PT017  (some damage is harmless)
            said += 1
    assert said > 100


# Writing


@given(
    st.integers(0, 9),
    st.dictionaries(
        st.sampled_from(["a", "file", "allow_pickle", "label", "x", "two words", "\u00e9"]),
        st.sampled_from(["float16", "float32", "float64", "int8", "uint8", "int64", "bool", "complex64"]),
    ),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_an_npz_file_stores_everything_bit_for_bit(tmp_path_factory, count, attributes, dtype):
    generator = torch.Generator().manual_seed(count)
    made = {}
    for n, (name, kind) in enumerate(attributes.items()):
        raw = torch.randint(0, 256, (count, 16 * (n + 1)), generator=generator, dtype=torch.uint8)
        value = raw % 2 == 1 if kind == "bool" else raw.view(getattr(torch, kind))
        made[name] = value[:, 0].clone() if n % 2 else value
    points = Points(torch.rand(count, 3, generator=generator, dtype=dtype), made)
    path = tmp_path_factory.mktemp("points") / "a.npz"
    save_points(points, path)
    back = load_points(path)
    assert list(back.attributes) == list(made)
    for name, value in (("", points.positions), *made.items()):
        other = back.attributes[name] if name else back.positions
        assert (other.dtype, other.shape) == (value.dtype, value.shape)
        assert other.numpy().tobytes() == value.numpy().tobytes()
    with np.load(path, allow_pickle=False) as plain:
        assert set(plain.files) == {"positions", *made}


def test_a_ply_file_round_trip(tmp_path):
    generator = torch.Generator().manual_seed(0)
    color = torch.randint(0, 256, (50, 3), generator=generator) / 255
    normal = torch.nn.functional.normalize(torch.randn(50, 3, generator=generator), dim=1)
    made = {"intensity": torch.rand(50, 1, generator=generator), "label": torch.arange(50), "color": color}
    points = Points(torch.rand(50, 3, generator=generator), {**made, "normal": normal})
    save_points(points, tmp_path / "a.ply")
    back = load_points(tmp_path / "a.ply")
    assert torch.equal(back.positions, points.positions)
    assert back.attributes.keys() == points.attributes.keys()
    for name, value in points.attributes.items():
        assert torch.equal(back.attributes[name], value.int() if name == "label" else value)
    assert b"property list" not in (tmp_path / "a.ply").read_bytes().split(b"element face")[0]


def test_attributes_that_a_file_cannot_store(tmp_path):
    points = Points(torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"must end in \.npz or \.ply"):
        save_points(points, tmp_path / "a.bin")
    for name in ("positions", "xyz", "colors"):
        with pytest.raises(ValueError, match=f"must not be named '{name}'"):
            save_points(Points(torch.zeros(1, 3), {name: torch.zeros(1)}), tmp_path / "a.npz")
    for name in ("../escape", "a\\b", "", "a\0b"):
        with pytest.raises(ValueError, match="printable and without slashes"):
            save_points(Points(torch.zeros(1, 3), {name: torch.zeros(1)}), tmp_path / "a.npz")
    with pytest.raises(ValueError, match="attribute names"):
        save_points(Points(torch.zeros(1, 3), {"two words": torch.zeros(1)}), tmp_path / "a.ply")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    save_points(Points(torch.ones(4, 3)), path)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.lib.format.write_array", full)
    with pytest.raises(OSError, match="No space left"):
        save_points(Points(torch.zeros(4, 3)), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_lidar_sweep_round_trip(tmp_path):
    sweep = scene("lidar", 256)[:, 1:].float() * 0.1
    np.savez_compressed(tmp_path / "a.npz", points=sweep.numpy())
    points = load_points(tmp_path / "a.npz")
    assert torch.equal(points.positions, sweep.double())
    save_points(points, tmp_path / "a.ply")
    assert torch.equal(load_points(tmp_path / "a.ply").positions, points.positions)
