"""Samples at points and splats from them: definition, dense PyTorch, reference, kernels."""

import math
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsevox import Grid
from sparsevox.ops import sample_nearest, sample_trilinear, splat_trilinear
from sparsevox.reference import sample as reference
from sparsevox.testing import LIMIT, Voxel, random_batch
from tests.definitions import sample as definition
from tests.goldens import GoldenFile

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Relative to the largest element. Triton's interpreter rounds bfloat16 toward zero.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def some_grid(seed: int = 0, batch_size: int = 3, count: int = 60) -> Grid:
    """Clouds near the origin; the item in the middle is empty."""
    case = random_batch(seed, batch_size, count=count, kinds=("clustered", "solid"))
    voxels = [(b, x % 7 - 3, y % 7 - 3, z % 7 - 3) for b, x, y, z in case.voxels if b != 1]
    coords = torch.tensor(voxels).reshape(-1, 4)
    return Grid.from_coords(coords, batch_size=batch_size, voxel_size=(0.5, 0.25, 2.0), origin=(0.1, -0.2, 0.3))


def values(rows: int, channels: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(rows, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def some_points(grid: Grid, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points in and around the grid, some of them at centers of voxels, and their batch items, one more than exist."""
    generator = torch.Generator().manual_seed(seed)
    ijk = torch.rand(count, 3, dtype=torch.float64, generator=generator) * 9 - 5
    ijk[::5] = ijk[::5].round()
    return grid.to_world(ijk), torch.randint(0, grid.batch_size + 1, (count,), generator=generator)


def located(grid: Grid, points: Tensor, batch: Tensor) -> tuple[list[Voxel], list[list[float]], list[int]]:
    """The voxels of a grid in row order, and points in voxels with their batch items."""
    rows = [tuple(voxel) for voxel in grid.coords.tolist()]
    axes = list(zip(grid.origin, grid.voxel_size, strict=True))
    places = [[(x - o) / s for x, (o, s) in zip(point, axes, strict=True)] for point in points.tolist()]
    return rows, places, batch.tolist()


def error(actual: Tensor, expected: Tensor) -> float:
    """The largest error, relative to the largest element or 1."""
    assert actual.shape == expected.shape
    if actual.numel() == 0:
        return 0.0
    worst = (actual.detach().double() - expected.detach().double()).abs().max()
    return float(worst / expected.detach().abs().max().clamp(min=1))


@given(st.integers(0, 99), st.sampled_from([1, 3, 33]), st.integers(0, 40))
def test_trilinear(seed: int, channels: int, count: int) -> None:
    grid = some_grid(seed)
    feats, (points, batch) = values(grid.num_voxels, channels, seed=seed), some_points(grid, count, seed)
    where = located(grid, points, batch)
    expected = definition.sample_trilinear(feats, *where)
    assert error(sample_trilinear(feats, grid, points, batch), expected) < 1e-12
    total = definition.sample_trilinear(torch.ones_like(feats[:, :1]), *where)
    renormalized = torch.where(total > 0, expected / total, 0)
    assert error(sample_trilinear(feats, grid, points, batch, outside="renormalize"), renormalized) < 1e-10


@given(st.integers(0, 99), st.sampled_from([1, 3, 33]), st.integers(0, 40))
def test_splat(seed: int, channels: int, count: int) -> None:
    grid = some_grid(seed)
    points, batch = some_points(grid, count, seed)
    data = values(count, channels, seed=seed)
    result = splat_trilinear(points, data, grid, batch)
    assert error(result, definition.splat_trilinear(data, *located(grid, points, batch))) < 1e-12
    # The adjoint of sampling.
    feats = values(grid.num_voxels, channels, seed=seed + 1)
    sampled = sample_trilinear(feats, grid, points, batch)
    assert torch.allclose((sampled * data).sum(), (result * feats).sum(), rtol=1e-12, atol=1e-12)


@given(st.integers(0, 99), st.integers(0, 40))
def test_nearest(seed: int, count: int) -> None:
    grid = some_grid(seed)
    feats, (points, batch) = values(grid.num_voxels, 3, seed=seed), some_points(grid, count, seed)
    expected = definition.sample_nearest(feats, *located(grid, points, batch))
    assert torch.equal(sample_nearest(feats, grid, points, batch), expected)


def test_a_full_grid_is_sampled_like_an_image() -> None:
    size = (4, 5, 6)
    grid = Grid.full((0, 0, 0), size, voxel_size=0.5)
    volume = values(3, 120).reshape(1, 3, *size)
    feats = volume[0][:, grid.ijk[:, 0], grid.ijk[:, 1], grid.ijk[:, 2]].t()
    ijk = torch.rand(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 8 - 1.5
    where = (ijk / (torch.tensor(size) - 1) * 2 - 1).flip(1)[None, None, None]
    expected = torch.nn.functional.grid_sample(volume, where, align_corners=True)[0, :, 0, 0].t()
    assert error(sample_trilinear(feats, grid, grid.to_world(ijk)), expected) < 1e-12


def test_derivatives() -> None:
    grid = some_grid(count=20)
    feats, data = (values(n, 3, seed=n).requires_grad_() for n in (grid.num_voxels, 8))
    near = torch.arange(8) * 2 % grid.num_voxels
    off = torch.rand(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    points, batch = grid.to_world(grid.ijk[near] - off), grid.batch[near]  # not at centers, where there are kinks
    rows, places, items = located(grid, points, batch)
    assert all(definition.corners(rows, place, item) for place, item in zip(places, items, strict=True))
    points.requires_grad_()
    checks: list[Any] = [
        (lambda f, p: sample_trilinear(f, grid, p, batch), (feats, points)),
        (lambda f, p: sample_trilinear(f, grid, p, batch, outside="renormalize"), (feats, points)),
        (lambda v, p: splat_trilinear(p, v, grid, batch), (data, points)),
    ]
    for function, inputs in checks:
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)
    assert torch.autograd.gradcheck(lambda f: sample_nearest(f, grid, points, batch), (feats,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 3, 33])
def test_dtypes(channels: int, dtype: torch.dtype) -> None:
    grid = some_grid()
    points, batch = some_points(grid, 300)
    feats, data = values(grid.num_voxels, channels, dtype).requires_grad_(), values(300, channels, dtype, seed=1)
    exact = feats.detach().double().requires_grad_()
    single = points.float().requires_grad_()
    found = sample_trilinear(feats, grid, single, batch)
    wanted = sample_trilinear(exact, grid, single, batch)
    assert found.dtype == dtype
    assert error(found, wanted) < TOLERANCE[dtype]
    results = torch.autograd.grad(found, (feats, single), data)
    expected = torch.autograd.grad(wanted, (exact, single), data.double())
    assert [x.dtype for x in results] == [dtype, torch.float32]
    assert max(map(error, results, expected)) < TOLERANCE[dtype]
    assert (
        error(splat_trilinear(points, data, grid, batch), splat_trilinear(points, data.double(), grid, batch))
        < (TOLERANCE[dtype])
    )


def test_points_that_are_nowhere() -> None:
    grid = some_grid()
    points = torch.tensor([[math.nan, 0, 0], [0, math.inf, 0], [0, 0, -1e30], [1e9, 0, 0], [0.1, -0.2, 0.3]])
    points = torch.cat([points, points[4:], points[4:]]).requires_grad_()
    batch = torch.tensor([0, 0, 0, 0, 1, -1, 1 << 40])  # item 1 is empty, the others do not exist
    feats = torch.ones(grid.num_voxels, 2, requires_grad=True)
    for outside in ("zero", "renormalize"):
        result = sample_trilinear(feats, grid, points, batch, outside=outside)
        gradients = torch.autograd.grad(result.sum(), (feats, points))
        assert all((x == 0).all() for x in (result, *gradients))
    assert (sample_nearest(feats, grid, points, batch) == 0).all()
    assert (splat_trilinear(points, torch.ones(7, 2), grid, batch) == 0).all()


def test_at_the_limits() -> None:
    for corner in (-LIMIT, LIMIT - 1):
        grid = Grid.from_coords(torch.tensor([[corner] * 3]))
        feats = torch.ones(1, 1, dtype=torch.float64)
        points = torch.tensor([[corner + d] * 3 for d in (-1, -0.5, 0, 0.25, 1)]).double()
        expected = torch.tensor([[0], [0.125], [1], [0.421875], [0]]).double()
        assert torch.equal(sample_trilinear(feats, grid, points), expected)
        assert sample_nearest(feats, grid, points).flatten().tolist() == [0, 1, 1, 1, 0]


def test_one_feature_does_not_spoil_the_others() -> None:
    grid = Grid.full(0, 4)
    feats = torch.ones(64, 2)
    feats[int(grid.index(torch.tensor([[0, 0, 0]])))] = math.nan
    points = torch.tensor([[2.5, 2.5, 2.5], [9.0, 9.0, 9.0], [0.5, 0.5, 0.5]])
    result = sample_trilinear(feats, grid, points)
    assert result[:2].tolist() == [[1, 1], [0, 0]]
    assert result[2].isnan().all()


@pytest.mark.parametrize("grid", [Grid.empty(0), Grid.empty(2), Grid.full(0, 2)], ids=repr)
@pytest.mark.parametrize("count", [0, 3])
def test_nothing(grid: Grid, count: int) -> None:
    feats = torch.ones(grid.num_voxels, 2, requires_grad=True)
    points = torch.full((count, 3), 9.0, requires_grad=True)
    assert torch.equal(sample_nearest(feats, grid, points), torch.zeros(count, 2))
    for result in (sample_trilinear(feats, grid, points), splat_trilinear(points, torch.ones(count, 2), grid)):
        assert (result == 0).all()
        result.sum().backward()
    assert torch.equal(points.grad, torch.zeros(count, 3))  # type: ignore[arg-type]


def test_equal_input_gives_equal_bits_on_many_threads() -> None:
    grid = some_grid(count=300)
    feats = values(grid.num_voxels, 33, torch.float32).requires_grad_()
    points, batch = some_points(grid, 3000)
    torch.set_num_threads(4)
    try:
        runs = []
        for _ in range(3):
            sampled = sample_trilinear(feats, grid, points, batch)
            gradients = torch.autograd.grad(sampled.square().sum(), feats)
            runs.append((sampled, *gradients, splat_trilinear(points, sampled, grid, batch)))
    finally:
        torch.set_num_threads(1)
    for run in runs[1:]:
        assert all(map(torch.equal, runs[0], run))


def test_products_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "BLOCK", 16)  # two points
    feats, data = values(4, 3), values(7, 3, seed=1)
    rows = torch.randint(-1, 4, (7, 8), generator=torch.Generator().manual_seed(0)).int()
    expected = [[float(feats[r] @ data[p]) if r >= 0 else 0.0 for r in mine] for p, mine in enumerate(rows.tolist())]
    assert error(reference.dot_rows(feats, rows, data), torch.tensor(expected, dtype=torch.float64)) < 1e-12


def test_it_compiles() -> None:
    def function(feats: Tensor, points: Tensor, batch: Tensor) -> Tensor:
        sampled = sample_trilinear(feats, grid, points, batch, outside="renormalize")
        return splat_trilinear(points, sampled + sample_nearest(feats, grid, points, batch), grid, batch)

    torch._dynamo.reset()
    grid = some_grid()
    feats, (points, batch) = values(grid.num_voxels, 3).requires_grad_(), some_points(grid, 20)
    points.requires_grad_()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results = [run(feats, points, batch) for run in (compiled, function)]
    assert error(*results) < 1e-12
    gradients = [torch.autograd.grad(y.square().sum(), (feats, points)) for y in results]
    assert max(map(error, *gradients)) < 1e-12


@pytest.mark.triton36
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "points", "taps", "channels"),
    [(20, 70, 8, 3), (5, 40, 8, 33), (3, 0, 8, 4), (0, 5, 8, 2), (9, 9, 1, 1), (2, 400, 8, 9)],
)
def test_kernels_equal_the_reference(
    rows: int, points: int, taps: int, channels: int, dtype: torch.dtype, device: torch.device
) -> None:
    pytest.importorskip("triton", reason="kernels need Triton")
    kernels = import_module("sparsevox.kernels.sample")
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    numbers = torch.randint(-1, max(rows, 1), (points, taps), generator=torch.Generator().manual_seed(0)).int()
    numbers = numbers if rows else numbers.fill_(-1)
    feats, data = values(rows, channels, dtype), values(points, channels, dtype, seed=1)
    weights = values(points, taps, exact, seed=2)
    for name, args in (
        ("gather_rows", (feats, numbers, weights)),
        ("sum_rows", (data, numbers, weights, rows)),
        ("dot_rows", (feats, numbers, data)),
    ):
        placed = [x.to(device) if isinstance(x, Tensor) else x for x in args]
        actual, expected = getattr(kernels, name)(*placed), getattr(reference, name)(*args)
        assert actual.dtype == expected.dtype
        assert error(actual.cpu(), expected) < TOLERANCE[expected.dtype]
        assert torch.equal(actual, getattr(kernels, name)(*placed))


def test_kernels_take_strided_rows(device: torch.device) -> None:
    pytest.importorskip("triton", reason="kernels need Triton")
    kernels = import_module("sparsevox.kernels.sample")
    feats, data = values(5, 6).to(device)[:, ::2], torch.ones(1, 3, dtype=torch.float64, device=device).expand(4, 3)
    rows = torch.randint(-1, 5, (4, 8), generator=torch.Generator().manual_seed(0)).int().to(device)
    weights = values(4, 8).to(device)
    for name, args in (
        ("gather_rows", (feats, rows, weights)),
        ("sum_rows", (data, rows, weights, 5)),
        ("dot_rows", (feats, rows, data)),
    ):
        packed = [x.contiguous() if isinstance(x, Tensor) else x for x in args]
        assert torch.equal(getattr(kernels, name)(*args), getattr(kernels, name)(*packed))


def test_as_recorded() -> None:
    file = GoldenFile("fvdb_ops")
    grid = file.grid("in")
    result = splat_trilinear(file["splat/points"], file["splat/data"], grid, file["splat/points_batch"])
    assert error(result, file.aligned(grid, "in/coords", "splat/out")) < 1e-5


@pytest.mark.parametrize(
    ("change", "exception", "message"),
    [
        ({"feats": torch.zeros(8, 2).int()}, TypeError, "feats must hold floating-point numbers, got torch.int32"),
        ({"feats": torch.zeros(7, 2)}, ValueError, r"feats must have 8 rows, one per voxel of the grid, got \[7, 2\]"),
        ({"points": torch.zeros(3, 2)}, ValueError, r"points must have shape \[P, 3\], got \[3, 2\]"),
        ({"points": torch.zeros(3, 3).long()}, TypeError, "points must hold floating-point numbers, got torch.int64"),
        ({"points": torch.zeros(3, 3, device="meta")}, ValueError, "points must be on the device of the grid, cpu"),
        ({"batch": torch.zeros(2).long()}, ValueError, r"batch must have shape \[3\], got \[2\]"),
        ({"batch": torch.zeros(3)}, TypeError, "batch must hold integers"),
        ({"outside": "border"}, ValueError, "outside must be 'zero' or 'renormalize', got 'border'"),
    ],
)
def test_errors(change: dict[str, Any], exception: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"feats": torch.zeros(8, 2), "grid": Grid.full(0, 2), "points": torch.zeros(3, 3)}
    arguments |= change
    with pytest.raises(exception, match=message):
        sample_trilinear(**arguments)
    del arguments["feats"]
    if "feats" not in change and "outside" not in change:
        with pytest.raises(exception, match=message):
            splat_trilinear(values=torch.zeros(3, 2), **arguments)
    with pytest.raises(ValueError, match=r"values must have 3 rows, one per point, got \[2, 2\]"):
        splat_trilinear(torch.zeros(3, 3), torch.zeros(2, 2), Grid.full(0, 2))
