"""Pooling through kernel maps: dense volumes, reference, kernels."""

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sparsevox import Grid, KernelMap, SparseTensor
from sparsevox.nn import AvgPool3d
from sparsevox.ops import avg_pool3d, max_pool3d, sum_pool3d
from sparsevox.reference import pool as reference

POOLS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "max": max_pool3d,
    "sum": sum_pool3d,
    "mean": avg_pool3d,
    "mean of the window": lambda x, window: avg_pool3d(x, window, count="window"),
}
GEOMETRIES: dict[str, dict[str, Any]] = {
    "3": {"kernel_size": 3},
    "2, stride 2": {"kernel_size": 2, "stride": 2},
    "3, stride 2": {"kernel_size": 3, "stride": 2},
    "(3, 1, 2), stride (2, 1, 3)": {"kernel_size": (3, 1, 2), "stride": (2, 1, 3)},
    "2": {"kernel_size": 2, "padding": 1},
    "3, dilation 2": {"kernel_size": 3, "dilation": 2},
    "3, no padding": {"kernel_size": 3, "stride": 2, "padding": 0},
}


def features(rows: int, channels: int = 3, seed: int = 0) -> Tensor:
    """Numbers of which several are equal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-9, 9, (rows, channels), generator=generator).double() / 4


def close(actual: Tensor, expected: Tensor, eps: float = 1e-14) -> bool:
    assert actual.shape == expected.shape
    return bool(((actual.double() - expected.double()).abs() <= eps * (1 + expected.double().abs())).all())


def dense(grid: Grid, feats: Tensor, reach: int, fill: float) -> Tensor:
    """Volume [B, C, 2 reach, 2 reach, 2 reach] from -reach on."""
    volume = torch.full((grid.batch_size, *[2 * reach] * 3, feats.shape[1]), fill, dtype=feats.dtype)
    volume[tuple(torch.cat([grid.coords[:, :1], grid.ijk + reach], 1).long().unbind(1))] = feats
    return volume.movedim(-1, 1)


def dense_pools(grid: Grid, coarse: Grid, feats: Tensor, kernel_map: KernelMap) -> dict[str, Tensor]:
    size, stride, dilation, padding = kernel_map.geometry
    reach = 12  # a multiple of all strides
    sides = [p for p in reversed(padding) for _ in range(2)]

    def padded(values: Tensor, fill: float) -> Tensor:
        return functional.pad(dense(grid, values, reach, fill), sides, value=fill)

    def sums(values: Tensor) -> Tensor:
        channels = values.shape[1]
        ones = values.new_ones(channels, 1, *size)
        return functional.conv3d(padded(values, 0), ones, stride=stride, dilation=dilation, groups=channels)

    largest = functional.max_pool3d(padded(feats, -math.inf), size, stride, 0, dilation)
    total, count = sums(feats), sums(torch.ones_like(feats))
    volumes = {
        "max": torch.where(largest == -math.inf, 0, largest),
        "sum": total,
        "mean": total / count.clamp(min=1),
        "mean of the window": total / math.prod(size),
    }
    first = torch.tensor([-reach // s for s in stride])
    where = torch.cat([coarse.coords[:, :1], coarse.ijk - first], 1).long().unbind(1)
    return {name: volume.movedim(1, -1)[where] for name, volume in volumes.items()}


def near_origin(seed: int) -> Grid:
    generator = torch.Generator().manual_seed(seed)
    coords = torch.randint(-5, 5, (90, 3), generator=generator)
    items = torch.randint(0, 2, (90, 1), generator=generator)
    return Grid.from_coords(torch.cat([items, coords], 1), batch_size=3)


@pytest.mark.parametrize("target", [None, "dilated", "cropped"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_pools_of_windows(name: str, target: str | None) -> None:
    grid = near_origin(1)
    geometry = GEOMETRIES[name]
    coarse = grid if "stride" not in geometry else grid.strided(**geometry)
    if target:
        coarse = coarse.dilate(1) if target == "dilated" else coarse.crop(-2, 1)
    kernel_map = grid.kernel_map(**geometry, target=coarse)
    for channels in (1, 3, 33):
        feats = features(grid.num_voxels, channels)
        for pool, expected in dense_pools(grid, coarse, feats, kernel_map).items():
            assert close(POOLS[pool](feats, kernel_map), expected), pool


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("pool", POOLS)
def test_gradients_of_windows(pool: str, name: str) -> None:
    grid = near_origin(2)
    kernel_map = grid.kernel_map(**GEOMETRIES[name])
    feats = torch.randperm(grid.num_voxels * 2, generator=torch.Generator().manual_seed(1)).double()
    inputs = (feats.reshape(-1, 2).requires_grad_(),)
    assert torch.autograd.gradcheck(lambda x: POOLS[pool](x, kernel_map), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: POOLS[pool](x, kernel_map), inputs, fast_mode=True)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_equal_voxels_of_windows_give_the_gradient_to_the_lowest_row(name: str) -> None:
    grid = near_origin(3)
    kernel_map = grid.kernel_map(**GEOMETRIES[name])
    feats = torch.zeros(grid.num_voxels, 1, requires_grad=True)
    max_pool3d(feats, kernel_map).sum().backward()
    expected = [0.0] * grid.num_voxels
    for window in kernel_map.table.t().tolist():
        if max(window) >= 0:
            expected[min(row for row in window if row >= 0)] += 1
    assert feats.grad is not None
    assert feats.grad.flatten().tolist() == expected


def test_a_mean_of_the_window_counts_absent_voxels() -> None:
    volume, mask = torch.randn(2, 3, 6, 6, 6), torch.rand(2, 6, 6, 6) < 0.5
    x = SparseTensor.from_dense(volume, mask)
    found = AvgPool3d(2, count="window")(x).dense(0, 3)
    torch.testing.assert_close(found, functional.avg_pool3d(volume * mask[:, None], 2))


def test_windows_are_summed_in_float32() -> None:
    """Forward and backward: bfloat16 would not count beyond 256."""
    grid = Grid.full(0, 13)
    feats = (grid.ijk == 6).all(1, keepdim=True).bfloat16().requires_grad_()
    max_pool3d(feats, grid.kernel_map(7)).sum().backward()
    assert feats.grad is not None
    total = sum_pool3d(torch.ones_like(feats), grid.kernel_map(7))
    assert feats.grad.max() == total.max() == torch.tensor(343).bfloat16()


def test_the_lowest_row_of_several_nan_wins() -> None:
    table = torch.tensor([[2, 1], [0, 2]], dtype=torch.int32)  # taps, output rows
    out, winners = reference.max_table(torch.full((3, 1), math.nan), table, table)
    assert out.isnan().all()
    assert winners.tolist() == [[0], [1]]


# Kernels


@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, torch.float64), (3, torch.float16), (33, torch.float32), (9, torch.bfloat16)]
)
def test_kernels_equal_reference(channels: int, dtype: torch.dtype, device: torch.device, agree: Any) -> None:
    kernels = import_module("sparsevox.kernels.pool")
    grid = near_origin(5)
    feats = (features(grid.num_voxels, channels) / 3).to(dtype)
    eps = max(torch.finfo(dtype).eps, 1e-6 if dtype == torch.float32 else 1e-14)
    for window in (grid.kernel_map(3), grid.kernel_map((2, 3, 1), stride=2)):
        down, up = window.down.table, window.up.table
        divisors = {True: torch.arange(1, grid.num_voxels + 1), False: torch.arange(1, window.num_coarse + 1)}
        for before in (True, False):
            args = (feats, down, up, None, divisors[before] if channels > 1 else None, before, 0)
            on_device = [a.to(device) if isinstance(a, Tensor) else a for a in args]
            result = kernels.sum_table(*on_device)
            assert torch.equal(result, kernels.sum_table(*on_device))
            assert close(result.cpu(), reference.sum_table(feats.double(), *args[1:]), eps)
        _, winners = agree("pool", "max_table", feats.to(device), down.to(device), up.to(device), read_backs=0)
        agree("pool", "max_table", feats.to(device), down.to(device), None, read_backs=0)
        values = (features(window.num_coarse, channels) / 3).to(dtype)
        result = kernels.place_rows(values.to(device), winners, up.to(device))
        assert close(result.cpu(), reference.place_rows(values.double(), winners.cpu(), up), eps)
    agree("pool", "sum_table", feats.to(device), up[:1].to(device), None, None, None, False, 0, read_backs=0)


def test_kernels_take_strided_rows(device: torch.device, agree: Callable[..., Any]) -> None:
    grid = near_origin(5)
    table = grid.kernel_map(3).table.to(device)
    feats = features(grid.num_voxels, 6).to(device)[:, ::2]
    agree("pool", "max_table", feats, table, table, read_backs=0)
    agree("pool", "sum_table", feats, table, None, None, None, False, 0, read_backs=0)  # of quarters: exact


def test_max_kernel_sees_nan_and_equals(device: torch.device, agree: Callable[..., Any]) -> None:
    grid = near_origin(6)
    table = grid.kernel_map(3).table
    feats = torch.randint(0, 2, (grid.num_voxels, 3), generator=torch.Generator().manual_seed(0)).float()
    agree("pool", "max_table", feats.to(device), table.to(device), table.to(device), read_backs=0)
    feats[::7, 0] = math.nan
    kernels = import_module("sparsevox.kernels.pool")
    results = kernels.max_table(*(t.to(device) for t in (feats, table, table)))
    expected = reference.max_table(feats, table, table)
    assert torch.equal(results[1].cpu(), expected[1])
    assert torch.equal(results[0].cpu().nan_to_num(9), expected[0].nan_to_num(9))
