"""SparseTensor: dictionaries from voxels to rows of features."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sparsevox as sv
from sparsevox.testing import VoxelSet, as_coords, random_batch, row_order, voxel_sets

Voxel = tuple[int, ...]


def as_dict(x: sv.SparseTensor) -> dict[Voxel, list[float]]:
    return {tuple(v): row for v, row in zip(x.coords.tolist(), x.feats.tolist(), strict=True)}


def tensor(seed: int = 3, channels: int = 2, batch_size: int = 3) -> sv.SparseTensor:
    data = random_batch(seed, batch_size, kinds=("clustered", "solid", "empty"))
    grid = sv.Grid.from_coords(as_coords(data.voxels), batch_size=batch_size)
    generator = torch.Generator().manual_seed(seed)
    return sv.SparseTensor(grid, torch.randn(grid.num_voxels, channels, dtype=torch.float64, generator=generator))


X = tensor()


# Constructors


@given(voxel_sets(max_voxels=40), st.randoms(use_true_random=False))
def test_from_coords_sorts_features_with_their_voxels(data: VoxelSet, random: Any) -> None:
    voxels = list(data.voxels)
    random.shuffle(voxels)
    feats = torch.arange(2.0 * len(voxels)).reshape(-1, 2)
    x = sv.SparseTensor.from_coords(as_coords(voxels), feats, batch_size=data.batch_size)
    assert list(as_dict(x)) == row_order(voxels)
    assert as_dict(x) == dict(zip(voxels, feats.tolist(), strict=True))


REDUCTIONS = {
    "sum": lambda rows: [sum(column) for column in zip(*rows, strict=True)],
    "mean": lambda rows: [sum(column) / len(rows) for column in zip(*rows, strict=True)],
    "max": lambda rows: [max(column) for column in zip(*rows, strict=True)],
    "first": lambda rows: rows[0],
}


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_from_coords_merges(reduce: Any) -> None:
    torch.manual_seed(1)
    coords = torch.cat([torch.randint(0, 2, (80, 1)), torch.randint(-2, 2, (80, 3))], 1)
    feats = torch.randint(-9, 9, (80, 2)).double().requires_grad_()
    groups: dict[Voxel, list[list[float]]] = {}
    for voxel, row in zip(coords.tolist(), feats.tolist(), strict=True):
        groups.setdefault(tuple(voxel), []).append(row)
    x = sv.SparseTensor.from_coords(coords, feats, reduce=reduce)
    expected = {voxel: REDUCTIONS[reduce](rows) for voxel, rows in groups.items()}
    assert as_dict(x).keys() == expected.keys()
    for voxel, row in as_dict(x).items():
        assert row == pytest.approx(expected[voxel])
    x.feats.sum().backward()
    assert feats.grad is not None


def test_from_coords_names_the_pair_that_collides() -> None:
    coords = torch.tensor([[0, 5, 5, 5], [0, 1, 2, 3], [0, 7, 7, 7], [0, 1, 2, 3]])
    with pytest.raises(ValueError, match=r"coords\[1\] and coords\[3\] lie in the same voxel; .*reduce='sum'"):
        sv.SparseTensor.from_coords(coords, torch.zeros(4, 1))


def test_from_points_takes_the_mean() -> None:
    points = torch.tensor([[0.1, 0.1, 0.1], [0.9, 0.1, 0.1], [0.2, 0.0, 0.0], [0.1, 0.1, 0.1]])
    batch = torch.tensor([0, 0, 0, 1])
    x = sv.SparseTensor.from_points(points, torch.tensor([[1.0], [2.0], [4.0], [8.0]]), batch, voxel_size=0.5)
    assert as_dict(x) == {(0, 0, 0, 0): [2.5], (0, 2, 0, 0): [2.0], (1, 0, 0, 0): [8.0]}


def test_from_dense_and_dense_are_inverse() -> None:
    volume = torch.randn(2, 3, 4, 5, 6)
    assert torch.equal(sv.SparseTensor.from_dense(volume, lower=(-1, 0, 2)).dense((-1, 0, 2), (3, 5, 8)), volume)
    mask = torch.rand(2, 4, 5, 6) < 0.3
    x = sv.SparseTensor.from_dense(volume, mask, voxel_size=0.5)
    assert x.grid.voxel_size == (0.5, 0.5, 0.5)
    assert torch.equal(x.dense(0, (4, 5, 6)), volume * mask[:, None])
    again = sv.SparseTensor.from_dense(volume, grid=x.grid)
    assert again.grid is x.grid
    with pytest.raises(ValueError, match=r"grid has its own voxel_size and origin; got also voxel_size=2.0"):
        sv.SparseTensor.from_dense(volume, grid=x.grid, voxel_size=2.0)
    assert torch.equal(again.feats, x.feats)


def test_constructors_pass_on_voxel_size_and_origin() -> None:
    where: dict[str, Any] = {"voxel_size": (0.5, 1.0, 2.0), "origin": (3.0, -1.0, 0.25)}
    made = [
        sv.SparseTensor.from_coords(torch.tensor([[1, 2, 3]]), torch.ones(1, 1), batch_size=2, **where),
        sv.SparseTensor.from_points(torch.tensor([[3.5, 1.0, 6.25]]), torch.ones(1, 1), batch_size=2, **where),
        sv.SparseTensor.from_dense(torch.ones(2, 1, 1, 1, 1), lower=(1, 2, 3), **where),
    ]
    for x in made:
        assert x.coords[0].tolist() == [0, 1, 2, 3]
        assert (x.batch_size, x.grid.voxel_size, x.grid.origin) == (2, *where.values())


def test_from_points_with_a_corner() -> None:
    points = torch.tensor([[1.1, 2.1, 3.1], [1.9, 2.1, 3.1]])
    x = sv.SparseTensor.from_points(points, torch.tensor([[1.0], [2.0]]), voxel_size=0.5, lower=(1.0, 2.0, 2.0))
    assert as_dict(x) == {(0, 0, 0, 2): [1.0], (0, 1, 0, 2): [2.0]}


def test_constructors_name_what_does_not_fit() -> None:
    volume, grid = torch.zeros(1, 1, 2, 2, 2), sv.Grid.full(0, 2)
    with pytest.raises(ValueError, match="grid and mask both select the voxels"):
        sv.SparseTensor.from_dense(volume, torch.ones(1, 2, 2, 2).bool(), grid=grid)
    with pytest.raises(ValueError, match=r"got also voxel_size=1.0, origin=2.0"):
        sv.SparseTensor.from_dense(volume, grid=grid, origin=2.0)
    with pytest.raises(ValueError, match=r"mask must have shape \[1, 2, 2, 2\], .*, got \[1, 2, 2, 3\]"):
        sv.SparseTensor.from_dense(volume, torch.ones(1, 2, 2, 3).bool())
    with pytest.raises(ValueError, match="feats must have 8 rows, one per row of coords, got 9"):
        sv.SparseTensor.from_coords(grid.coords, torch.zeros(9, 1))
    with pytest.raises(ValueError, match="feats must be on the device of coords, cpu, got meta"):
        sv.SparseTensor.from_coords(grid.coords, torch.zeros(8, 1, device="meta"))


# Features


def test_attributes() -> None:
    assert (X.shape, X.channels, X.batch_size, len(X)) == ((X.grid.num_voxels, 2), 2, 3, 3)
    assert (X.dtype, X.device) == (torch.float64, torch.device("cpu"))
    assert torch.equal(X.coords, X.grid.coords)
    assert repr(X) == f"SparseTensor(C=2, float64, {X.grid!r})"


def test_to_changes_the_dtype_of_a_copy() -> None:
    half = X.to(torch.float16)
    assert (half.dtype, X.dtype) == (torch.float16, torch.float64)
    assert half.grid is X.grid
    assert X.to("cpu").feats is X.feats
    assert X.cpu().grid is X.grid


def test_map_and_replace_keep_the_voxels() -> None:
    assert torch.equal(X.map(torch.relu).feats, X.feats.relu())
    assert X.map(torch.relu).grid is X.grid
    with pytest.raises(ValueError, match=r"feats must have \d+ rows, one per voxel of grid, got 1"):
        X.map(lambda feats: feats[:1])


def test_unbind_and_stack_are_inverse() -> None:
    parts = X.unbind()
    assert [part.batch_size for part in parts] == [1, 1, 1]
    together = sv.stack(parts)
    assert together.grid.same_voxels(X.grid)
    assert torch.equal(together.feats, X.feats)


# Other voxels


@given(voxel_sets(max_voxels=40, max_batch=2), voxel_sets(max_voxels=40, max_batch=2))
def test_to_grid_keeps_what_both_have(a: VoxelSet, b: VoxelSet) -> None:
    x = sv.SparseTensor.from_coords(as_coords(a.voxels), torch.rand(len(a.voxels), 2), batch_size=2)
    grid = sv.Grid.from_coords(as_coords(b.voxels), batch_size=2)
    y = x.to_grid(grid, fill=-7)
    old = as_dict(x)
    assert y.grid is grid
    assert as_dict(y) == {tuple(v): old.get(tuple(v), [-7.0, -7.0]) for v in grid.coords.tolist()}


def test_to_grid_and_prune_have_gradients() -> None:
    feats = X.feats.clone().requires_grad_()
    x = X.replace(feats)
    target = X.grid.dilate(1) - X.grid.erode(1)
    assert torch.autograd.gradcheck(lambda f: X.replace(f).to_grid(target, fill=2).feats, feats)
    mask = X.grid.ijk[:, 0] > 0
    x.prune(mask).feats.sum().backward()
    assert feats.grad is not None
    assert torch.equal(feats.grad, mask[:, None].expand(-1, 2).double())


def test_prune() -> None:
    mask = X.grid.ijk.sum(1) % 2 == 0
    pruned = X.prune(mask)
    assert pruned.grid.same_voxels(X.grid.prune(mask))
    assert torch.equal(pruned.feats, X.feats[mask])


def test_to_grid_needs_a_grid_of_the_same_batch() -> None:
    with pytest.raises(TypeError, match=r"grid must be a sparsevox.Grid, got Tensor"):
        X.to_grid(X.coords)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="grid must have the batch size of the tensor, 3, got 2"):
        X.to_grid(sv.Grid.full(0, 2, batch_size=2))
    with pytest.raises(ValueError, match="grid must be on the device of the tensor, cpu, got meta"):
        X.to_grid(X.grid.to("meta"))


def test_sample() -> None:
    coords = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]])
    x = sv.SparseTensor.from_coords(coords, torch.tensor([[1.0], [3.0], [5.0]]))
    points, batch = torch.tensor([[0.25, 0.0, 0.0], [0.25, 0.0, 0.0]]), torch.tensor([0, 1])
    assert x.sample(points, batch).tolist() == [[1.5], [3.75]]
    assert x.sample(points, batch, mode="nearest").tolist() == [[1.0], [5.0]]
    with pytest.raises(ValueError, match="mode must be 'trilinear' or 'nearest', got 'linear'"):
        x.sample(points, batch, mode="linear")  # type: ignore[arg-type]


# Arithmetic


def test_arithmetic() -> None:
    y = X.replace(X.feats + 3)
    row = torch.tensor([2.0, 5.0], dtype=torch.float64)
    f, g = X.feats, y.feats
    cases: list[tuple[Any, Tensor]] = [
        (X + y, f + g),
        (X - y, f - g),
        (X * y, f * g),
        (X / y, f / g),
        (X + 1, f + 1),
        (1 - X, 1 - f),
        (2 / y, 2 / g),
        (X * row, f * row),
        (row * X, row * f),
        (row - X, row - f),
        (-X, -f),
        (sum([X, y]), f + g),
    ]
    for actual, expected in cases:
        assert isinstance(actual, sv.SparseTensor)
        assert actual.grid is X.grid
        assert torch.equal(actual.feats, expected)


def test_equal_voxels_of_another_grid_may_be_combined() -> None:
    other = sv.SparseTensor(sv.Grid.from_coords(X.coords, batch_size=3), X.feats)
    assert torch.equal((X + other).feats, 2 * X.feats)
    assert sv.cat([X, other]).channels == 4


def test_different_voxels_are_an_error_that_names_the_remedy() -> None:
    other = sv.SparseTensor(X.grid.dilate(1), torch.zeros(X.grid.dilate(1).num_voxels, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"both sides of \+ must be on the same voxels.*y\.to_grid\(x\.grid\)"):
        X + other
    with pytest.raises(ValueError, match=r"tensors\[0\] and tensors\[1\] must be on the same voxels"):
        sv.cat([X, other])
    with pytest.raises(TypeError):
        X + "1"


def test_cat_and_stack_name_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="tensors must hold at least one SparseTensor, got none"):
        sv.cat([])
    with pytest.raises(TypeError, match=r"tensors\[1\] must be a SparseTensor, got Tensor"):
        sv.stack([X, X.feats])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"the same number of channels, got 2 in tensors\[0\] and 3 in tensors\[1\]"):
        sv.stack([X, tensor(channels=3)])


@pytest.mark.parametrize(
    ("feats", "error", "message"),
    [
        (torch.zeros(X.shape[0], 2, dtype=torch.int64), TypeError, "feats must hold floating-point numbers"),
        (torch.zeros(X.shape[0]), ValueError, r"feats must have shape \[N, C\]"),
        (torch.zeros(X.shape[0] + 1, 2), ValueError, r"feats must have \d+ rows, one per voxel of grid"),
        (torch.zeros(X.shape[0], 2, device="meta"), ValueError, "feats must be on the device of the grid, cpu"),
        ([[1.0]], TypeError, "feats must be a torch.Tensor, got list"),
    ],
)
def test_bad_feats_are_named(feats: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sv.SparseTensor(X.grid, feats)


def test_a_grid_is_needed() -> None:
    with pytest.raises(TypeError, match=r"grid must be a sparsevox.Grid, got Tensor"):
        sv.SparseTensor(X.coords, X.feats)  # type: ignore[arg-type]


# Items


@pytest.mark.parametrize("index", [0, 1, -1, slice(1, 3), slice(0, 0), slice(None)])
def test_items_and_slices_are_those_of_the_grid(index: int | slice) -> None:
    item = X[index]
    chosen = range(len(X))[index]
    wanted = {chosen} if isinstance(chosen, int) else set(chosen)
    rows = [row for row, voxel in enumerate(X.coords.tolist()) if voxel[0] in wanted]
    assert item.grid.same_voxels(X.grid[index])
    assert torch.equal(item.feats, X.feats[rows])


def test_iteration_is_unbind() -> None:
    assert [part.shape for part in X] == [part.shape for part in X.unbind()]
    assert len(list(X)) == len(X) == X.batch_size


def test_errors_count_the_voxels_that_differ() -> None:
    a = sv.SparseTensor(sv.Grid.full((0, 0, 0), (2, 2, 2)), torch.ones(8, 1))
    b = sv.SparseTensor(sv.Grid.full((0, 0, 1), (2, 2, 3)), torch.ones(8, 1))
    with pytest.raises(ValueError, match=", which differ in 8 voxels; align them"):
        _ = a + b


# Copies and files


def test_copies_and_pickles() -> None:
    for twin in (copy.copy(X), copy.deepcopy(X), pickle.loads(pickle.dumps(X))):
        assert twin.grid.same_voxels(X.grid)
        assert torch.equal(twin.feats, X.feats)


def test_torch_load_with_weights_only() -> None:
    file = io.BytesIO()
    torch.save({"x": X, "grid": X.grid.coarsen(2)}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert torch.equal(loaded["x"].feats, X.feats)
    assert loaded["grid"].same_voxels(X.grid.coarsen(2))
    assert loaded["grid"].voxel_size == (2.0, 2.0, 2.0)


def test_collate_stacks_what_is_sparse() -> None:
    samples = [{"x": part, "label": 2, "name": "a", "pair": (part.grid, torch.ones(3))} for part in X.unbind()]
    loader: Any = torch.utils.data.DataLoader(samples, batch_size=3, collate_fn=sv.collate)  # type: ignore[arg-type]
    (batch,) = loader
    assert torch.equal(batch["x"].feats, X.feats)
    assert batch["x"].grid.same_voxels(X.grid)
    assert batch["label"].tolist() == [2, 2, 2]
    assert batch["name"] == ["a", "a", "a"]
    assert batch["pair"][0].same_voxels(X.grid)
    assert batch["pair"][1].shape == (3, 3)


def test_collate_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="samples must hold at least one sample"):
        sv.collate([])
