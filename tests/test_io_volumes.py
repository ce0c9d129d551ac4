"""Reading and writing voxels: foreign files are written with NumPy alone, and ours are read with NumPy alone."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.scenes import scene
from sparsevox import Grid, Voxels
from sparsevox.io import load_volume, load_voxels, save_voxels
from sparsevox.testing import LIMIT, VoxelSet, as_coords, row_order, voxel_sets

DTYPES = (torch.float16, torch.float32, torch.float64, torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool)


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def save(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


def decorated(data: VoxelSet, seed: int = 0, voxel_size=(0.1, 0.2, 1 / 3), origin=(1e-9, -7.3, 2.0)) -> Voxels:
    """A batch of voxels with attributes of every type, among them bits that are no ordinary numbers."""
    grid = Grid.from_coords(as_coords(data.voxels), batch_size=data.batch_size, voxel_size=voxel_size, origin=origin)
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for dtype in DTYPES:
        bits = torch.randint(0, 256, (grid.num_voxels, 24), generator=generator, dtype=torch.uint8)
        value = bits > 127 if dtype == torch.bool else bits.view(dtype)
        made[str(dtype).removeprefix("torch.")] = value
        made[f"one {dtype}"] = value[:, 0].contiguous()
    return Voxels(grid, made)


def bits(value: torch.Tensor) -> tuple[object, ...]:
    return value.dtype, tuple(value.shape), value.numpy().tobytes()


# Ours


@given(voxel_sets(max_voxels=40), st.booleans())
def test_saved_voxels_come_back_bit_for_bit(tmp_path_factory, data, compress):
    path = tmp_path_factory.mktemp("voxels") / "a.npz"
    voxels = decorated(data)
    save_voxels(voxels, path, compress=compress)
    back = load_voxels(path)
    assert back.grid.same_voxels(voxels.grid)
    assert (back.grid.voxel_size, back.grid.origin) == (voxels.grid.voxel_size, voxels.grid.origin)
    assert list(back.attributes) == list(voxels.attributes)
    for name, value in voxels.attributes.items():
        assert bits(back.attributes[name]) == bits(value)


@given(voxel_sets(max_voxels=40))
def test_numpy_reads_what_the_documentation_says(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("voxels") / "a.npz"
    voxels = decorated(data)
    save_voxels(voxels, path)
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    rows = row_order(data.voxels)
    assert arrays.pop("sparsevox_voxels") == 1
    assert [tuple(row) for row in arrays["ijk"].tolist()] == [row[1:] for row in rows]
    assert arrays.pop("ijk").dtype in (np.int8, np.int16, np.int32)
    starts = [sum(row[0] < item for row in rows) for item in range(data.batch_size + 1)]
    assert (arrays["offsets"].dtype, arrays.pop("offsets").tolist()) == (np.int64, starts)
    assert tuple(arrays.pop("voxel_size")) == (0.1, 0.2, 1 / 3)
    assert tuple(arrays.pop("origin")) == (1e-9, -7.3, 2.0)
    assert arrays.keys() == {f"attribute:{name}" for name in voxels.attributes}
    for name, value in voxels.attributes.items():
        assert arrays[f"attribute:{name}"].tobytes() == value.numpy().tobytes()


@pytest.mark.parametrize(
    ("far", "dtype"), [(-128, np.int8), (128, np.int16), (-32769, np.int32), (LIMIT - 1, np.int32)]
)
def test_coordinates_take_the_smallest_dtype(tmp_path, far, dtype):
    grid = Grid.from_coords(torch.tensor([[0, 0, 0], [0, far, 0]]))
    save_voxels(Voxels(grid), tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as file:
        assert file["ijk"].dtype == dtype
    assert load_voxels(tmp_path / "a.npz").grid.same_voxels(grid)


def test_equal_voxels_give_equal_bytes(tmp_path):
    data = VoxelSet(frozenset((b, x, b, -x) for b in range(3) for x in range(20)), 4)
    digests = set()
    for n in range(2):
        save_voxels(decorated(data), tmp_path / f"{n}.npz")
        digests.add(hashlib.sha256((tmp_path / f"{n}.npz").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_rows_of_a_file_may_lie_in_any_order(tmp_path):
    """Somebody else may write the layout without knowing the order of the grid."""
    rng = np.random.default_rng(0)
    ijk = rng.permutation([(x, y, z) for x in range(-2, 3) for y in range(3) for z in range(4)]).astype(np.int16)
    arrays = {"sparsevox_voxels": np.array(1), "ijk": ijk, "offsets": np.array([0, 25, 25, 60])}
    arrays |= {"voxel_size": np.full(3, 0.5), "origin": np.zeros(3), "attribute:tag": np.arange(60)}
    arrays["attribute:pair"] = np.stack([np.arange(60.0), -np.arange(60.0)], 1)
    voxels = load_voxels(save(tmp_path / "a.npz", **arrays))
    assert voxels.batch_size == 3
    for n in range(60):
        row = int(voxels.grid.index(torch.tensor([[0 if n < 25 else 2, *ijk[n].tolist()]])))
        assert voxels.attributes["tag"][row] == n
        assert voxels.attributes["pair"][row].tolist() == [n, -n]
    assert [tuple(c) for c in voxels.grid.coords.tolist()] == row_order(map(tuple, voxels.grid.coords.tolist()))


def test_half_precision(tmp_path):
    grid = Grid.full((0, 0, 0), (2, 2, 2))
    value = torch.linspace(-3, 3, 8)[:, None]
    voxels = Voxels(
        grid, {"value": value, "double": value.double(), "label": torch.arange(8), "brain": value.bfloat16()}
    )
    save_voxels(voxels, tmp_path / "a.npz", half=True)
    back = load_voxels(tmp_path / "a.npz").attributes
    assert {name: v.dtype for name, v in back.items()} == {
        "value": torch.float16,
        "double": torch.float16,
        "label": torch.int64,
        "brain": torch.float16,
    }
    assert torch.equal(back["value"], value.half())
    save_voxels(voxels, tmp_path / "a.npz")
    back = load_voxels(tmp_path / "a.npz").attributes
    assert (back["brain"].dtype, bits(back["brain"])) == (torch.float32, bits(value.bfloat16().float()))
    special = torch.tensor([float("inf"), float("nan"), -float("inf"), 65504.0, 0, 0, 0, 0])
    save_voxels(Voxels(grid, {"special": special}), tmp_path / "a.npz", half=True)
    assert load_voxels(tmp_path / "a.npz").attributes["special"].tolist()[2:] == special.tolist()[2:]
    with pytest.raises(ValueError, match=r"attribute 'density' must fit in float16, got 70000\.0"):
        save_voxels(Voxels(grid, {"density": torch.full((8, 1), 7e4)}), tmp_path / "b.npz", half=True)
    assert not (tmp_path / "b.npz").exists()


def test_tensors_with_gradients_and_views_are_saved(tmp_path):
    grid = Grid.full((0, 0, 0), (2, 2, 2))
    value = torch.arange(16.0).reshape(2, 8).T.requires_grad_()
    save_voxels(Voxels(grid, {"value": value}), tmp_path / "a.npz")
    assert torch.equal(load_voxels(tmp_path / "a.npz").attributes["value"], value.detach())


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    save_voxels(Voxels(Grid.full((0, 0, 0), (4, 4, 4))), path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("numpy.lib.format.write_array", "os.fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(name, full)
            with pytest.raises(OSError, match="No space left"):
                save_voxels(Voxels(Grid.empty(1)), path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]


def test_names_of_files_and_attributes(tmp_path):
    voxels = Voxels(Grid.empty(1), {"../escape": torch.zeros(0)})
    with pytest.raises(ValueError, match="printable and without slashes"):
        save_voxels(voxels, tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"must end in \.npz or \.vox, got 'a\.npy'"):
        save_voxels(voxels, "a.npy")
    assert not list(tmp_path.iterdir())


# What is wrong with a file


def layout(**changes) -> dict[str, np.ndarray]:
    arrays = {"sparsevox_voxels": np.array(1), "ijk": np.eye(3, dtype=np.int8), "offsets": np.array([0, 1, 3])}
    arrays |= {"voxel_size": np.ones(3), "origin": np.zeros(3), "attribute:a": np.arange(3)}
    return {name: value for name, value in (arrays | changes).items() if value is not None}


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"sparsevox_voxels": np.array(2)}, "version of the file format must be 1, got 2"),
    ({"sparsevox_voxels": np.array([1, 1])}, r"must be 1, got \[1 1\]"),
    ({"sparsevox_voxels": np.array("one")}, "must be 1, got one"),
    *(({name: None}, f"the file must have the array {name}") for name in ("ijk", "offsets", "voxel_size", "origin")),
    ({"ijk": np.eye(3)}, "must hold integers"),
    ({"ijk": np.eye(3, dtype=np.int8)[:, :2]}, r"ijk must have shape \[N, 3\], got \[3, 2\]"),
    ({"ijk": np.arange(3)}, r"ijk must have shape \[N, 3\], got \[3\]"),
    ({"offsets": np.array(3)}, r"offsets must have shape \[B \+ 1\]"),
    ({"ijk": np.full((3, 3), 7)}, r"must be distinct, got \(1, 7, 7, 7\) more than once"),
    ({"ijk": np.eye(3, dtype=np.int64) * LIMIT}, "out of range"),
    ({"offsets": np.array([0, 2, 1])}, "offsets must start with 0"),
    ({"offsets": np.array([1, 3])}, "offsets must start with 0"),
    ({"offsets": np.zeros(0, np.int64)}, "offsets must start with 0"),
    ({"offsets": np.array([0, 2])}, "offsets must end with the number of rows of ijk, 3, got 2"),
    ({"offsets": np.array([0.0, 3.0])}, "must hold integers"),
    ({"voxel_size": np.array([1.0, 1.0, 0.0])}, "voxel_size must be positive"),
    ({"voxel_size": np.ones(2)}, "voxel_size must be one number or three"),
    ({"origin": np.array([0, np.nan, 0])}, "origin must be finite"),
    ({"attribute:a": np.arange(2)}, r"attribute 'a' must have shape \[3\] or \[3, C\], got \[2\]"),
    ({"attribute:a": np.zeros((3, 1, 1))}, r"attribute 'a' must have shape"),
    ({"attribute:a": np.array(["x", "y", "z"])}, "attribute:a must hold numbers"),
]


@pytest.mark.parametrize(("changes", "message"), BROKEN)
def test_files_in_an_invalid_format(tmp_path, changes, message):
    assert load_voxels(save(tmp_path / "good.npz", **layout())).num_voxels == 3
    with pytest.raises(ValueError, match=rf"a\.npz: .*({message})"):
        load_voxels(save(tmp_path / "a.npz", **layout(**changes)))


@pytest.mark.parametrize("load", [load_voxels, load_volume])
@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_empty_missing_and_wrong_files(tmp_path, load, name):
    path = tmp_path / name
    with pytest.raises(FileNotFoundError, match=f"{name}: there is no such file"):
        load(path)
    with pytest.raises(ValueError, match=f"{name}: the file is empty"):
        load(write(tmp_path, name, b""))
    with pytest.raises(ValueError, match=f"{name}: NumPy cannot read it"):
        load(write(tmp_path, name, b"no voxels at all\n"))
    (np.savez if name == "a.npz" else np.save)(path, np.zeros((50, 3), np.int64))
    whole = path.read_bytes()
    for kept in (5, 100, len(whole) - 1):
        with pytest.raises(ValueError, match=f"{name}: NumPy cannot read it"):
            load(write(tmp_path, name, whole[:kept]))
    with pytest.raises(ValueError, match=r"must end in \.npz or \.npy( or \.vox)?, got"):
        load(write(tmp_path, "a.bin", whole))


class Malicious:
    """What runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("load", [load_voxels, load_volume])
def test_nothing_is_unpickled(tmp_path, load):
    trap = tmp_path / "trap"
    bad = np.array([Malicious(trap)], object)
    np.savez(tmp_path / "a.npz", **layout(), extra=bad, allow_pickle=True)
    np.save(tmp_path / "b.npy", bad, allow_pickle=True)
    (tmp_path / "c.npz").write_bytes(bad.dumps())
    for name in ("a.npz", "b.npy", "c.npz"):
        with pytest.raises(ValueError, match=f"{name}: NumPy cannot read it without unpickling"):
            load(tmp_path / name)
    assert not trap.exists()
    assert np.load(tmp_path / "b.npy", allow_pickle=True).shape == (1,)
    assert trap.exists()  # so the trap works


# Plain coordinates of others


@given(voxel_sets(max_voxels=40), st.sampled_from([np.int32, np.int64]), st.integers(0, 1 << 20))
def test_plain_coordinates(tmp_path_factory, data, dtype, seed):
    folder = tmp_path_factory.mktemp("voxels")
    rows = np.random.default_rng(seed).permutation(np.array(row_order(data.voxels), dtype).reshape(-1, 4))
    np.save(folder / "a.npy", rows)
    coords = row_order(data.voxels)
    assert [tuple(c) for c in load_voxels(folder / "a.npy").grid.coords.tolist()] == coords
    tags = np.arange(len(rows), dtype=np.float32)
    for name in ("ijk", "coords"):
        voxels = load_voxels(save(folder / "a.npz", **{name: rows, "tag": tags, "more": np.zeros(len(rows) + 1)}))
        assert list(voxels.attributes) == ["tag"]
        order = voxels.attributes["tag"].long().tolist()
        assert rows[order].tolist() == [list(c) for c in coords]


def test_coordinates_without_a_batch(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[3, 2, 1], [-1, 0, 0]], np.int8))
    voxels = load_voxels(tmp_path / "a.npy", voxel_size=(1, 2, 3), origin=-1)
    assert voxels.grid.coords.tolist() == [[0, -1, 0, 0], [0, 3, 2, 1]]
    assert (voxels.grid.voxel_size, voxels.grid.origin) == ((1.0, 2.0, 3.0), (-1.0, -1.0, -1.0))
    plain = load_voxels(tmp_path / "a.npy").grid
    assert (plain.voxel_size, plain.origin) == ((1.0,) * 3, (0.0,) * 3)


def test_invalid_coordinates(tmp_path):
    cases: list[tuple[Callable[[], Path], str]] = [
        (
            lambda: save(tmp_path / "a.npz", voxels=np.zeros((1, 3), int)),
            r"must be named ijk or coords, got \['voxels'\]",
        ),
        (lambda: save(tmp_path / "a.npz", ijk=np.zeros((1, 3), int), coords=np.zeros((1, 4), int)), "must be named"),
        (lambda: save(tmp_path / "a.npz", ijk=np.zeros((2, 3), int)), r"must be distinct, got \(0, 0, 0, 0\)"),
        (lambda: save(tmp_path / "a.npz", ijk=np.zeros((2, 3))), "must hold integers"),
        (lambda: save(tmp_path / "a.npz", ijk=np.array(3)), "shape"),
        (lambda: save(tmp_path / "a.npz", ijk=np.array([[0, 0, LIMIT]])), "out of range"),
        (lambda: save(tmp_path / "a.npz", ijk=np.array([[-1, 0, 0, 0]])), "out of range"),
    ]
    for make, message in cases:
        with pytest.raises(ValueError, match=rf"a\.npz: .*{message}"):
            load_voxels(make())


def test_a_stored_transform_cannot_be_overridden(tmp_path):
    save_voxels(Voxels(Grid.empty(1, voxel_size=0.1)), tmp_path / "a.npz")
    for given_ in ({"voxel_size": 0.1}, {"origin": 0.0}):
        with pytest.raises(ValueError, match=r"a\.npz: voxel_size and origin must be None for a file that stores them"):
            load_voxels(tmp_path / "a.npz", **given_)


# Dense volumes


def volume(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def found(voxels: Voxels) -> set[tuple[int, ...]]:
    return {tuple(row) for row in voxels.grid.coords.tolist()}


@pytest.mark.parametrize("shape", [(5, 6, 7), (3, 4, 5, 2), (0, 3, 3), (1, 1, 1)])
def test_occupancy(tmp_path, shape):
    mask = volume(shape) > 0.3
    np.save(tmp_path / "a.npy", mask)
    voxels = load_volume(tmp_path / "a.npy", voxel_size=0.5, origin=(1, 2, 3))
    batched = mask if mask.ndim == 4 else mask[None]
    assert found(voxels) == {index for index in np.ndindex(*batched.shape) if batched[index]}
    assert voxels.batch_size == batched.shape[0]
    assert not voxels.attributes
    assert (voxels.grid.voxel_size, voxels.grid.origin) == ((0.5,) * 3, (1.0, 2.0, 3.0))


@pytest.mark.parametrize(("above", "below"), [(0.2, None), (None, -0.4), (-0.5, 0.5)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ">f4"])
def test_limits_of_floats(tmp_path, above, below, dtype):
    values = volume((2, 4, 5, 6)).astype(dtype)
    values[0, 0, 0] = np.nan
    voxels = load_volume(save(tmp_path / "a.npz", v=values), above=above, below=below)
    low, high = -np.inf if above is None else above, np.inf if below is None else below
    assert found(voxels) == {index for index in np.ndindex(*values.shape) if low < values[index] < high}
    expected = [values[tuple(row)] for row in voxels.grid.coords.tolist()]
    assert voxels.attributes["value"].shape == (len(expected), 1)
    assert voxels.attributes["value"].flatten().tolist() == [float(v) for v in expected]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64])
def test_labels_of_voxels(tmp_path, dtype):
    values = np.random.default_rng(0).integers(0, 4, (5, 4, 3)).astype(dtype)
    values[0, 0, 0] = np.iinfo(dtype).max
    np.save(tmp_path / "a.npy", values)
    voxels = load_volume(tmp_path / "a.npy")
    label = voxels.attributes["label"]
    assert label.dtype == torch.int64
    rows = zip(voxels.grid.ijk.tolist(), label.tolist(), strict=True)
    assert {tuple(ijk): n for ijk, n in rows} == {i: int(values[i]) for i in np.ndindex(*values.shape) if values[i]}


def test_invalid_volumes(tmp_path):
    floats, mask = volume((2, 2, 2)), np.ones((2, 2, 2), bool)
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"a": floats}, {}, "above or below must be given for floats and only for floats, got float32"),
        ({"a": mask}, {"above": 0.5}, "only for floats, got bool"),
        ({"a": mask.astype(int)}, {"below": 0.5}, "only for floats, got int64"),
        ({"a": mask[0]}, {}, r"of shape \[X, Y, Z\] or \[B, X, Y, Z\], got bool \[2, 2\]"),
        ({"a": mask[None, None]}, {}, "the volume must be"),
        ({"a": np.full((1, 1, 1), "x")}, {}, "the volume must be"),
        ({"a": mask, "b": mask}, {}, r"name must be one of \['a', 'b'\], got None"),
        ({"a": mask}, {"name": "b"}, r"name must be one of \['a'\], got 'b'"),
    ]
    for arrays, options, message in cases:
        with pytest.raises(ValueError, match=rf"a\.npz: .*{message}"):
            load_volume(save(tmp_path / "a.npz", **arrays), **options)
    assert load_volume(save(tmp_path / "a.npz", a=mask, b=~mask), name="b").num_voxels == 0


def test_voxels_of_a_sweep(tmp_path):
    coords = scene("lidar", 256)
    np.savez_compressed(tmp_path / "sweep.npz", coords=coords.numpy().astype(np.int16))
    voxels = load_voxels(tmp_path / "sweep.npz", voxel_size=0.1)
    assert voxels.num_voxels == len(coords)
    assert bool(voxels.grid.contains(coords).all())
    save_voxels(voxels, tmp_path / "a.npz")
    assert load_voxels(tmp_path / "a.npz").grid.same_voxels(voxels.grid)
    assert (tmp_path / "a.npz").stat().st_size < 3 * voxels.num_voxels
