"""Meshes, points and voxels with attributes: validation, devices and batching."""

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

import sparsevox as sv
from sparsevox import Grid, Mesh, Points, Voxels
from sparsevox.testing import as_coords, row_order, voxel_sets

TRIANGLE = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [5, 5, -5]])
FACES = torch.tensor([[0, 1, 2], [2, 1, 3]])


def mesh() -> Mesh:
    vertex = {"color": torch.rand(4, 3, generator=torch.Generator().manual_seed(0)), "label": torch.arange(4)}
    return Mesh(TRIANGLE, FACES, vertex, {"part": torch.tensor([3, 4])})


def voxels(seed: int = 0, batch_size: int = 2, **transform) -> Voxels:
    generator = torch.Generator().manual_seed(seed)
    coords = torch.randint(-9, 9, (60, 4), generator=generator)
    coords[:, 0] %= batch_size
    grid = Grid.from_coords(coords, batch_size=batch_size, **transform)
    tag = (grid.coords.long() * torch.tensor([1000, 100, 10, 1])).sum(1)
    return Voxels(grid, {"tag": tag, "normal": grid.ijk.float() / 9, "flat": tag / 2})


# What they check


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((TRIANGLE[:, :2], FACES), ValueError, r"vertices must have shape \[V, 3\], got \[4, 2\]"),
        ((TRIANGLE, FACES[0]), ValueError, r"faces must have shape \[F, 3\], got \[3\]"),
        ((TRIANGLE.long(), FACES), TypeError, "vertices must hold floating-point numbers, got torch.int64"),
        ((TRIANGLE, FACES.float()), TypeError, "faces must hold integers"),
        ((TRIANGLE.tolist(), FACES), TypeError, "vertices must be a torch.Tensor, got list"),
        ((TRIANGLE, FACES.to("meta")), ValueError, "faces must be on the device of vertices, cpu, got meta"),
        ((TRIANGLE, FACES + 1), ValueError, r"indices of 4 vertices, got faces\[1\] = \[3, 2, 4\]"),
        ((TRIANGLE, FACES - 1), ValueError, r"indices of 4 vertices, got faces\[0\] = \[-1, 0, 1\]"),
        ((TRIANGLE[:0], FACES), ValueError, r"indices of 0 vertices, got faces\[0\]"),
        (
            (TRIANGLE, FACES, {"a": torch.zeros(2)}),
            ValueError,
            r"vertex_attributes\['a'\] must have shape \[4\] or \[4, C\]",
        ),
        (
            (TRIANGLE, FACES, {}, {"a": torch.zeros(4, 1)}),
            ValueError,
            r"face_attributes\['a'\] must have shape \[2\] or",
        ),
        ((TRIANGLE, FACES, {"a": torch.zeros(4, 1, 1)}), ValueError, r"got \[4, 1, 1\]"),
        ((TRIANGLE, FACES, {"a": torch.tensor(1.0)}), ValueError, r"got \[\]"),
        (
            (TRIANGLE, FACES, {"a": [1, 2, 3, 4]}),
            TypeError,
            r"vertex_attributes\['a'\] must be a torch.Tensor, got list",
        ),
        (
            (TRIANGLE, FACES, {}, {"a": torch.zeros(2, device="meta")}),
            ValueError,
            "on the device of the shape, cpu, got meta",
        ),
    ],
)
def test_bad_meshes(arguments, error, message):
    with pytest.raises(error, match=message):
        Mesh(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((TRIANGLE[0],), ValueError, r"positions must have shape \[P, 3\], got \[3\]"),
        ((TRIANGLE.int(),), TypeError, "positions must hold floating-point numbers, got torch.int32"),
        ((None,), TypeError, "positions must be a torch.Tensor, got NoneType"),
        (
            (TRIANGLE, {"a": torch.zeros(5)}),
            ValueError,
            r"attributes\['a'\] must have shape \[4\] or \[4, C\], got \[5\]",
        ),
        ((TRIANGLE, {"a": torch.zeros(4, device="meta")}), ValueError, "device"),
    ],
)
def test_bad_points(arguments, error, message):
    with pytest.raises(error, match=message):
        Points(*arguments)


def test_bad_voxels():
    grid = Grid.full((0, 0, 0), (2, 2, 2))
    with pytest.raises(TypeError, match=r"grid must be a sparsevox\.Grid, got Tensor"):
        Voxels(grid.coords)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match=r"attributes\['a'\] must have shape \[8\] or \[8, C\], got \[7\]"):
        Voxels(grid, {"a": torch.zeros(7)})
    with pytest.raises(TypeError, match=r"attributes\['a'\] must be a torch.Tensor, got float"):
        Voxels(grid, {"a": 1.0})  # type: ignore[dict-item]  # what is tested
    with pytest.raises(ValueError, match="device"):
        Voxels(grid, {"a": torch.zeros(8, device="meta")})


def test_empty_shapes_are_legal():
    nothing = torch.zeros(0, 3)
    assert len(Mesh(nothing, nothing.long(), {"a": torch.zeros(0, 2)}).faces) == 0
    assert len(Points(nothing, {"a": torch.zeros(0)})) == 0
    empty = Voxels(Grid.empty(3), {"a": torch.zeros(0, 2), "b": torch.zeros(0)})
    assert (empty.num_voxels, empty.batch_size, len(empty)) == (0, 3, 3)
    assert empty.tensor("a", "b").feats.shape == (0, 3)
    assert [part.num_voxels for part in empty.unbind()] == [0, 0, 0]
    for shape in (Mesh(nothing, nothing.long()), Points(nothing)):
        with pytest.raises(ValueError, match="bounds need at least one position"):
            _ = shape.bounds


# Meshes and points


def test_bounds_and_transforms():
    shape = mesh()
    assert shape.bounds.tolist() == [[0, 0, -5], [5, 5, 0]]
    moved = shape.transform(lambda p: p * 2 + 1)
    assert torch.equal(moved.vertices, TRIANGLE * 2 + 1)
    assert moved.faces is shape.faces
    assert moved.vertex_attributes["color"] is shape.vertex_attributes["color"]
    assert torch.equal(shape.vertices, TRIANGLE)
    points = Points(TRIANGLE, {"a": torch.arange(4)})
    assert points.bounds.tolist() == [[0, 0, -5], [5, 5, 0]]
    assert torch.equal(points.transform(lambda p: -p).positions, -TRIANGLE)
    with pytest.raises(ValueError, match=r"positions must have shape"):
        points.transform(lambda p: p[:, :2])


def test_selected_points():
    points = Points(TRIANGLE, {"a": torch.arange(4), "b": torch.eye(4)})
    for index, rows in (
        (slice(1, 3), [1, 2]),
        (torch.tensor([3, 0, 3]), [3, 0, 3]),
        (points.attributes["a"] > 1, [2, 3]),
    ):
        chosen = points[index]
        assert len(chosen) == len(rows)
        assert torch.equal(chosen.positions, TRIANGLE[rows])
        assert chosen.attributes["a"].tolist() == rows
        assert torch.equal(chosen.attributes["b"], torch.eye(4)[rows])


def test_shapes_move_between_devices_whole():
    for shape in (mesh(), Points(TRIANGLE, {"a": torch.arange(4)}), voxels()):
        there = shape.to("cpu")
        assert (there.device, type(there)) == (torch.device("cpu"), type(shape))
        assert repr(there) == repr(shape)
    meta = torch.device("meta")
    away = Points(TRIANGLE, {"a": torch.arange(4)}).to(meta)
    assert away.device == away.attributes["a"].device == meta
    blank = Mesh(TRIANGLE, FACES[:0], {"a": torch.arange(4)}, {"b": torch.zeros(0)}).to(meta)
    assert blank.device == blank.faces.device == meta
    assert blank.vertex_attributes["a"].device == blank.face_attributes["b"].device == meta


@pytest.mark.gpu
def test_shapes_on_a_gpu():
    for shape in (mesh(), Points(TRIANGLE, {"a": torch.arange(4)}), voxels()):
        there = shape.to("cuda")
        assert there.device.type == "cuda"
        assert repr(there.to("cpu")) == repr(shape)


def test_repr():
    assert repr(mesh()) == "Mesh(V=4, F=2, attributes: color, label, part, cpu)"
    assert repr(Mesh(TRIANGLE, FACES)) == "Mesh(V=4, F=2, attributes: none, cpu)"
    assert repr(Points(torch.zeros(1234, 3))) == "Points(P=1,234, attributes: none, cpu)"
    shape = voxels()
    assert repr(shape) == f"Voxels(attributes: tag, normal, flat, {shape.grid!r})"


@pytest.mark.parametrize("make", [mesh, lambda: Points(TRIANGLE, {"a": torch.arange(4)}), voxels])
def test_copies_and_pickles(make):
    shape = make()
    for other in (copy.deepcopy(shape), pickle.loads(pickle.dumps(shape))):
        assert repr(other) == repr(shape)
        for field in ("vertices", "faces", "positions"):
            if hasattr(shape, field):
                assert torch.equal(getattr(other, field), getattr(shape, field))
        for field in ("attributes", "vertex_attributes", "face_attributes"):
            for name, value in getattr(shape, field, {}).items():
                assert torch.equal(getattr(other, field)[name], value)
    with pytest.raises(AttributeError):
        shape.attributes = {}


# Voxels


def test_tensors_of_named_attributes():
    shape = voxels()
    made = shape.tensor("normal", "tag")
    assert made.grid is shape.grid
    assert made.feats.dtype == torch.float32
    assert torch.equal(made.feats, torch.cat([shape.attributes["normal"], shape.attributes["tag"][:, None].float()], 1))
    assert shape.tensor("flat").feats.shape == (shape.num_voxels, 1)
    for names in ((), ("normal", "missing")):
        with pytest.raises(KeyError, match=r"names must be among \['flat', 'normal', 'tag'\]"):
            shape.tensor(*names)


def test_with_attributes():
    shape = voxels()
    other = shape.with_attributes(tag=shape.attributes["flat"], extra=torch.ones(shape.num_voxels, 2))
    assert list(other.attributes) == ["tag", "normal", "flat", "extra"]
    assert other.attributes["tag"] is shape.attributes["flat"]
    assert "extra" not in shape.attributes
    with pytest.raises(ValueError, match="'extra'"):
        shape.with_attributes(extra=torch.ones(1))


@given(voxel_sets(max_voxels=40), st.integers(0, 99))
def test_pruned_voxels_keep_their_attributes(data, seed):
    grid = Grid.from_coords(as_coords(data.voxels), batch_size=data.batch_size)
    rows = row_order(data.voxels)
    mask = torch.rand(len(rows), generator=torch.Generator().manual_seed(seed)) < 0.5
    shape = Voxels(grid, {"number": torch.arange(len(rows)), "place": grid.coords.double()}).prune(mask)
    kept = [row for row, keep in zip(rows, mask.tolist(), strict=True) if keep]
    assert [tuple(c) for c in shape.grid.coords.tolist()] == kept
    assert shape.attributes["number"].tolist() == [n for n, row in enumerate(rows) if row in set(kept)]
    assert torch.equal(shape.attributes["place"], shape.grid.coords.double())
    assert shape.batch_size == data.batch_size


@given(voxel_sets(max_voxels=40))
def test_unbind_and_stack_are_inverse(data):
    grid = Grid.from_coords(as_coords(data.voxels), batch_size=data.batch_size, voxel_size=0.5, origin=0.25)
    shape = Voxels(grid, {"place": grid.ijk.double(), "number": torch.arange(grid.num_voxels)})
    parts = shape.unbind()
    assert len(parts) == len(shape) == data.batch_size
    for item, part in enumerate(parts):
        assert [(item, *c[1:]) for c in part.grid.coords.tolist()] == [
            v for v in row_order(data.voxels) if v[0] == item
        ]
        assert torch.equal(part.attributes["place"], part.grid.ijk.double())
        assert (part.grid.voxel_size, part.grid.origin) == (grid.voxel_size, grid.origin)
    again = Voxels.stack(parts)
    assert again.grid.same_voxels(grid)
    assert torch.equal(again.attributes["number"], shape.attributes["number"])


def test_stacking_errors():
    shape = voxels()
    with pytest.raises(ValueError, match="items must hold at least one Voxels, got none"):
        Voxels.stack([])
    with pytest.raises(
        ValueError, match=r"same attributes, got \['flat', 'normal', 'tag'\] in items\[0\] and \[\] in items\[1\]"
    ):
        Voxels.stack([shape, Voxels(shape.grid)])
    with pytest.raises(ValueError, match="voxel_size"):
        Voxels.stack([shape, voxels(voxel_size=2.0)])
    narrow = shape.with_attributes(normal=shape.attributes["normal"][:, :2])
    with pytest.raises(
        ValueError, match=r"'normal'\] must have the same channels .*, 3\] in items\[0\] and .*, 2\] in items\[1\]"
    ):
        Voxels.stack([shape, narrow])


def test_attributes_may_come_in_another_order():
    shape = voxels()
    turned = Voxels(shape.grid, dict(reversed(list(shape.attributes.items()))))
    assert list(Voxels.stack([shape, turned]).attributes) == list(shape.attributes)


# Batches


class Numbered(Dataset[dict[str, Any]]):
    """Item n is n voxels in a row, each with n as its attribute."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, item: int) -> dict[str, Any]:
        ijk = torch.zeros(item, 3, dtype=torch.int64)
        ijk[:, 2] = torch.arange(item)
        grid = Grid.from_coords(ijk, voxel_size=0.1)
        return {"voxels": Voxels(grid, {"number": torch.full((item,), item)}), "name": f"n{item}", "grid": grid}


def test_collate_of_voxels():
    first, second = voxels(0), voxels(1, batch_size=3)
    batch = sv.collate([first, second])
    assert isinstance(batch, Voxels)
    assert batch.batch_size == 5
    assert torch.equal(batch.attributes["tag"], torch.cat([first.attributes["tag"], second.attributes["tag"]]))
    nested = sv.collate([{"a": (first, 1)}, {"a": (second, 2)}])
    assert nested["a"][0].grid.same_voxels(batch.grid)
    assert nested["a"][1].tolist() == [1, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_of_voxels(workers):
    loader: DataLoader[Any] = DataLoader(Numbered(), batch_size=3, collate_fn=sv.collate, num_workers=workers)
    numbers = [list(range(7))[start : start + 3] for start in (0, 3, 6)]
    for batch, expected in zip(loader, numbers, strict=True):
        shape = batch["voxels"]
        assert shape.grid.offsets.diff().tolist() == expected
        assert shape.attributes["number"].tolist() == [n for n in expected for _ in range(n)]
        assert shape.grid.same_voxels(batch["grid"])
        assert batch["name"] == [f"n{n}" for n in expected]
