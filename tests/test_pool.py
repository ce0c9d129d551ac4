"""Pooling, upsampling and child maps: definition, dense volumes, reference, kernels."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from sparsevox import Grid
from sparsevox.ops import avg_pool3d, max_pool3d, sum_pool3d, upsample
from sparsevox.testing import Voxel, VoxelSet, as_coords, random_batch, voxel_sets
from tests.definitions import pool as definition
from tests.goldens import GoldenFile

FACTORS: list[Any] = [1, 2, 4, 8, 3, (2, 2, 1), (1, 4, 2)]
TARGETS: dict[str, Callable[[Grid, Any], Grid | None]] = {
    "coarsened": lambda g, f: None,
    "the same by another way": lambda g, f: Grid(g.coarsen(f).bricks, g.coarsen(f).voxel_size),
    "dilated": lambda g, f: g.coarsen(f).dilate(1),
    "cropped": lambda g, f: g.coarsen(f).crop(-2, 3),
    "none": lambda g, f: Grid.empty(g.batch_size, voxel_size=g.coarsen(f).voxel_size),
}
POOLS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "max": max_pool3d,
    "sum": sum_pool3d,
    "mean": avg_pool3d,
    "mean of the window": lambda x, window: avg_pool3d(x, window, count="window"),
}


def grid_of(case: VoxelSet) -> Grid:
    return Grid.from_coords(as_coords(case.voxels), batch_size=case.batch_size + 1)  # the last item is empty


def some_grid(seed: int = 4, count: int = 40) -> Grid:
    kinds = ("clustered", "solid", "planar")
    return grid_of(random_batch(seed, 3, count=count, kinds=kinds))


def features(rows: int, channels: int = 3, seed: int = 0) -> Tensor:
    """Numbers of which several are equal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-9, 9, (rows, channels), generator=generator).double() / 4


def rows_of(grid: Grid) -> list[Voxel]:
    return [tuple(voxel) for voxel in grid.coords.tolist()]


def triple(value: Any) -> tuple[int, ...]:
    return (value,) * 3 if isinstance(value, int) else tuple(value)


def close(actual: Tensor, expected: Tensor, eps: float = 1e-14) -> bool:
    assert actual.shape == expected.shape
    return bool(((actual.double() - expected.double()).abs() <= eps * (1 + expected.double().abs())).all())


# Pooling through child maps


@given(
    voxel_sets(limits=False, max_voxels=80),
    st.sampled_from(FACTORS),
    st.sampled_from(sorted(TARGETS)),
    st.sampled_from([1, 3, 33]),
)
def test_pools_of_children(case: VoxelSet, factor: Any, target: str, channels: int) -> None:
    grid = grid_of(case)
    coarse = TARGETS[target](grid, factor) or grid.coarsen(factor)
    child_map = grid.child_map(factor, coarse)
    windows = definition.child_rows(rows_of(grid), rows_of(coarse), triple(factor))
    feats = features(grid.num_voxels, channels)
    for name, pool in POOLS.items():
        if name == "mean of the window":
            expected = definition.pool(feats, windows, "sum") / math.prod(triple(factor))
        else:
            expected = definition.pool(feats, windows, name)
        assert close(pool(feats, child_map), expected), name
    values = features(coarse.num_voxels, channels, seed=1)
    assert torch.equal(upsample(values, child_map), definition.upsample(values, windows, grid.num_voxels))
    # Pooling and upsampling are adjoint: numbers are quarters, so that this is exact.
    assert (sum_pool3d(feats, child_map) * values).sum() == (feats * upsample(values, child_map)).sum()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("factor", [2, 3, (2, 2, 1)], ids=str)
@pytest.mark.parametrize("pool", POOLS)
def test_gradients_of_children(pool: str, factor: Any, target: str) -> None:
    grid = some_grid(count=9)
    child_map = grid.child_map(factor, TARGETS[target](grid, factor))
    feats = torch.randperm(grid.num_voxels * 2, generator=torch.Generator().manual_seed(1)).double()
    inputs = (feats.reshape(-1, 2).requires_grad_(),)
    assert torch.autograd.gradcheck(lambda x: POOLS[pool](x, child_map), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: POOLS[pool](x, child_map), inputs, fast_mode=True)
    values = (features(child_map.num_coarse, 2).requires_grad_(),)
    assert torch.autograd.gradcheck(lambda x: upsample(x, child_map), values, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: upsample(x, child_map), values, fast_mode=True)


@pytest.mark.parametrize("factor", [2, 3])
def test_equal_children_give_the_gradient_to_the_lowest_row(factor: int) -> None:
    grid = some_grid()
    feats = torch.zeros(grid.num_voxels, 1, requires_grad=True)
    max_pool3d(feats, grid.child_map(factor)).sum().backward()
    lowest = {min(rows) for rows in definition.child_rows(rows_of(grid), rows_of(grid.coarsen(factor)), triple(factor))}
    assert feats.grad is not None
    assert feats.grad.flatten().tolist() == [float(row in lowest) for row in range(grid.num_voxels)]


# Children and windows


def test_children_are_windows() -> None:
    grid = some_grid()
    feats = features(grid.num_voxels)
    coarse = grid.coarsen(2).dilate(1)
    one, other = grid.child_map(2, coarse), grid.kernel_map(2, stride=2, target=coarse)
    for name, pool in POOLS.items():
        assert close(pool(feats, one), pool(feats, other)), name


def windows_of(grid: Grid) -> list[Any]:
    coarse = grid.coarsen(2).dilate(1)
    return [grid.child_map(2), grid.child_map(2, coarse), grid.kernel_map(3), grid.kernel_map(3, stride=2)]


def near_origin(seed: int) -> Grid:
    generator = torch.Generator().manual_seed(seed)
    coords = torch.randint(-5, 5, (90, 3), generator=generator)
    items = torch.randint(0, 2, (90, 1), generator=generator)
    return Grid.from_coords(torch.cat([items, coords], 1), batch_size=3)


@pytest.mark.parametrize("index", range(4))
def test_nan_wins(index: int) -> None:
    grid = near_origin(4)
    window = windows_of(grid)[index]
    feats = features(grid.num_voxels, 1).requires_grad_()
    with torch.no_grad():
        feats[::5] = math.nan
    seen = sum_pool3d(feats, window).isnan()
    assert seen.any()
    assert not seen.all()
    result = max_pool3d(feats, window)
    assert torch.equal(result.isnan(), seen)
    assert torch.equal(max_pool3d(feats.detach(), window).nan_to_num(3), result.nan_to_num(3))
    (grad,) = torch.autograd.grad(result[seen].sum(), feats)
    assert (grad[::5].sum(), grad.sum()) == (seen.sum(), seen.sum())


@pytest.mark.parametrize("grid", [Grid.empty(2), Grid.empty(0), Grid.full(5, 6)], ids=["none", "no items", "one"])
def test_few_voxels(grid: Grid) -> None:
    windows = [*windows_of(grid), grid.child_map(2, Grid.empty(len(grid), voxel_size=2.0)), grid.child_map(3)]
    for window, (name, pool) in itertools.product(windows, POOLS.items()):
        feats = torch.full((grid.num_voxels, 2), -3.0, requires_grad=True)
        result = pool(feats, window)
        result.sum().backward()
        assert feats.grad is not None
        if name in ("max", "mean"):
            assert set(result.flatten().tolist()) <= {0.0, -3.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_sums_are_float32(dtype: torch.dtype) -> None:
    grid = Grid.full(0, 16)
    feats = torch.full((4096, 1), 3.0, dtype=dtype)
    feats[0] = 0.01
    expected = (4095 * 3 + feats[0].double()) / 4096
    assert close(avg_pool3d(feats, grid.child_map(16)), expected[None], torch.finfo(dtype).eps)
    assert close(avg_pool3d(feats, grid.kernel_map(7))[:1], (feats[0] + 63 * 3)[None] / 64, torch.finfo(dtype).eps)
    assert avg_pool3d(feats, grid.kernel_map(3)).dtype == max_pool3d(feats, grid.child_map(2)).dtype == dtype


def test_results_are_deterministic() -> None:
    grid = some_grid(count=300)
    feats = torch.randn(grid.num_voxels, 33, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for window, pool in itertools.product(windows_of(grid), POOLS.values()):
        results = []
        for _ in range(2):
            out = pool(feats, window)
            results.append((out, *torch.autograd.grad((out * out.cos()).sum(), feats)))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# Kernels and graphs

VERBS: dict[str, Callable[[Grid, Tensor], Tensor]] = {
    "children": lambda g, x: max_pool3d(x, g.child_map(2)),
    "children of 3": lambda g, x: avg_pool3d(x, g.child_map(3)),
    "children in a target": lambda g, x: sum_pool3d(x, g.child_map(2, g.coarsen(2).dilate(1))),
    "up": lambda g, x: upsample(max_pool3d(x, g.child_map(2)), g.child_map(2)),
    "windows": lambda g, x: avg_pool3d(x, g.kernel_map(3, stride=2)),
    "largest of windows": lambda g, x: max_pool3d(x, g.kernel_map(3)),
}


@pytest.mark.parametrize("name", VERBS)
def test_pools_compile_into_one_graph_for_all_sizes(name: str) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(VERBS[name], fullgraph=True, backend=counter)
    for seed in range(5):
        grid = some_grid(seed, count=20 * seed + 10)
        results = []
        for function in (compiled, VERBS[name]):
            feats = features(grid.num_voxels).requires_grad_()
            out = function(grid, feats)
            results.append((out, *torch.autograd.grad(out.square().sum(), feats)))
        assert all(close(a, b) for a, b in zip(*results, strict=True))
    assert counter.frame_count <= 2


@pytest.mark.triton36
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the kernels are compiled, not interpreted")
@pytest.mark.parametrize("name", VERBS)
def test_backends_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="kernels need Triton")
    results = []
    for backend in ("reference", "triton"):
        monkeypatch.setenv("SPARSEVOX_BACKEND", backend)
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        grid = near_origin(7)
        feats = features(grid.num_voxels).requires_grad_()
        out = VERBS[name](grid, feats)
        (first,) = torch.autograd.grad(out.square().sum(), feats, create_graph=True)
        results.append((out, first, *torch.autograd.grad(first.square().sum(), feats)))
    assert all(close(a, b) for a, b in zip(*results, strict=True))


# Errors


def test_errors() -> None:
    grid = Grid.full(0, 4)
    window, feats = grid.child_map(2), torch.ones(64, 2)
    pools: list[Any] = [max_pool3d, sum_pool3d, avg_pool3d]
    for pool in pools:
        with pytest.raises(TypeError, match=r"window must come from Grid\.child_map or Grid\.kernel_map, got int"):
            pool(feats, 2)
        with pytest.raises(TypeError, match=r"feats must be a torch\.Tensor, got list"):
            pool([1.0], window)
        with pytest.raises(TypeError, match=r"feats must hold floating-point numbers, got torch\.int64"):
            pool(feats.long(), window)
        for other in (window, grid.kernel_map(3)):
            with pytest.raises(ValueError, match=r"feats must have 64 rows, one per voxel of the fine .* got \[8, 2\]"):
                pool(feats[:8], other)
        with pytest.raises(ValueError, match=r"feats must have shape \[N, C\], got \[64\]"):
            pool(feats[:, 0], window)
        with pytest.raises(ValueError, match="feats must be on the device of the grid, cpu, got meta"):
            pool(feats.to("meta"), window)
    with pytest.raises(ValueError, match="count must be 'active' or 'window', got 'all'"):
        avg_pool3d(feats, window, count="all")
    with pytest.raises(ValueError, match=r"feats must have 8 rows, one per voxel of the coarse grid, got \[64, 2\]"):
        upsample(feats, window)
    with pytest.raises(TypeError, match=r"child_map must come from Grid\.child_map, got KernelMap"):
        upsample(feats, grid.kernel_map(3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"feats must hold floating-point numbers, got torch\.int32"):
        upsample(feats[:8].int(), window)


# fVDB


@pytest.mark.parametrize(("word", "factor"), [("222", 2), ("221", (2, 2, 1))])
def test_fvdb(word: str, factor: Any) -> None:
    file = GoldenFile("fvdb_ops")

    def rows(name: str, grid: Grid) -> Tensor:
        """Recorded features in the order of our rows."""
        return file.aligned(grid, f"{name}/coords", f"{name}/feat")

    grid = file.grid("in")
    feats, window = rows("in", grid), grid.child_map(factor)
    largest = max_pool3d(feats, window)
    assert torch.equal(largest, rows(f"maxpool{word}", grid.coarsen(factor)))
    mean = avg_pool3d(feats, window, count="window")
    assert close(mean, rows(f"avgpool{word}", grid.coarsen(factor)), 1e-6)
    assert grid.coarsen(factor).voxel_size == pytest.approx(file[f"maxpool{word}/voxel_size"].tolist())
    assert torch.equal(upsample(largest, window), rows(f"up{word}_of_maxpool_onto_input_grid", grid))
    fine = file.grid(f"up{word}_of_maxpool_masked")
    masked = fine.child_map(factor, grid.coarsen(factor))
    assert torch.equal(upsample(largest, masked), rows(f"up{word}_of_maxpool_masked", fine))
    if word == "222":
        target = file.grid("maxpool222_into_dilated_grid")
        dilated = grid.child_map(factor, target)
        assert torch.equal(max_pool3d(feats, dilated), rows("maxpool222_into_dilated_grid", target))
        mean = avg_pool3d(feats, dilated, count="window")
        assert close(mean, rows("avgpool222_into_dilated_grid", target), 1e-6)
