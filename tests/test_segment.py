"""Segments: definition, reference, kernels."""

import math
from collections.abc import Callable
from importlib import import_module
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsevox import Grid
from sparsevox.ops import broadcast, global_pool, segment_reduce
from sparsevox.reference import segment as reference
from sparsevox.testing import VoxelSet, as_coords, voxel_sets
from tests.definitions import segment as definition

REDUCTIONS = ("sum", "mean", "max", "min")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
OF_CHANNELS = dict(zip((1, 3, 8, 33), DTYPES, strict=True))
EPS = {dtype: max(torch.finfo(dtype).eps, 1e-6 if dtype == torch.float32 else 0) for dtype in DTYPES}
# Lengths of segments: none at all, empty ones, one of several pieces, many short ones, a few long ones.
LENGTHS: dict[str, list[int]] = {
    "no segments": [],
    "all empty": [0, 0, 0],
    "short": [1, 0, 8, 3, 0, 7, 2, 9, 0],
    "one long": [1700],
    "mixed": [0, 3, 600, 0, 1, 65, 64, 0, 700, 33, 0],
    "many": [i % 5 for i in range(300)] + [513],
}


def values(rows: int, channels: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Numbers of which several are equal."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-40, 40, (rows, channels), generator=generator) / 8).to(dtype)


def offsets_of(lengths: list[int], first: int = 0) -> Tensor:
    return torch.tensor(list(accumulate(lengths, initial=first)))


def assert_close(actual: Tensor, expected: Tensor, eps: float) -> None:
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).abs()
    assert (error <= eps * (1 + expected.double().abs())).all(), error.max()


@given(st.lists(st.integers(0, 20), max_size=12), st.integers(0, 3), st.sampled_from([1, 3, 33]), st.integers(0, 99))
def test_segments(lengths: list[int], first: int, channels: int, seed: int) -> None:
    offsets = offsets_of(lengths, first)
    feats = values(int(offsets[-1]) + 2, channels, seed=seed)  # rows in front and behind are in no segment
    for reduce in REDUCTIONS:
        assert_close(segment_reduce(feats, offsets, reduce), definition.segment_reduce(feats, offsets, reduce), 1e-14)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_lengths_and_dtypes(reduce: str, lengths: str, dtype: torch.dtype) -> None:
    offsets = offsets_of(LENGTHS[lengths])
    feats = values(int(offsets[-1]), 3, dtype)
    result = segment_reduce(feats, offsets.int(), reduce)
    assert result.dtype == dtype
    assert_close(result, definition.segment_reduce(feats, offsets, reduce), EPS[dtype])


@pytest.mark.parametrize("channels", OF_CHANNELS)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("listed", [False, True])
def test_sum_kernel_equals_reference(lengths: str, listed: bool, channels: int, device: torch.device) -> None:
    pytest.importorskip("triton", reason="kernels need Triton")
    kernels = import_module("sparsevox.kernels.segment")
    ranges = offsets_of(LENGTHS[lengths], 2).int()
    rows = int(ranges[-1]) + 3
    children = torch.randperm(rows, generator=torch.Generator().manual_seed(1)).int() if listed else None
    divisors = ranges.diff().clamp(min=1).long() * 3
    dtype = OF_CHANNELS[channels]
    feats = values(rows, channels, dtype)
    args = (feats, ranges, children, None, divisors, 0)
    on_device = [a.to(device) if isinstance(a, Tensor) else a for a in args]
    result = kernels.sum_ranges(*on_device)
    assert result.dtype == dtype
    assert torch.equal(result, kernels.sum_ranges(*on_device))
    assert_close(result.cpu(), reference.sum_ranges(feats.double(), *args[1:]), EPS[dtype])


@pytest.mark.parametrize(("largest", "dtype"), [(True, torch.float64), (False, torch.bfloat16)])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_extreme_kernel_equals_reference(
    lengths: str, largest: bool, dtype: torch.dtype, device: torch.device, agree: Callable[..., Any]
) -> None:
    ranges = offsets_of(LENGTHS[lengths], 1).int().to(device)
    feats = values(int(ranges[-1]) + 1, 3, dtype).to(device)
    children = torch.arange(feats.shape[0], dtype=torch.int32, device=device).flip(0)
    agree("segment", "extreme_ranges", feats, ranges, None, children, largest, 0, read_backs=0)
    agree("segment", "extreme_ranges", feats, ranges, children, children, largest, 0, read_backs=0)
    agree("segment", "extreme_ranges", feats, ranges, children, None, largest, 0, read_backs=0)


def test_ranges_known_to_be_short_are_not_cut(agree: Callable[..., Any], device: torch.device) -> None:
    ranges = offsets_of([64] * 12).int().to(device)
    feats = values(768, 5).to(device)
    for longest in (64, 1 << 54):
        agree("segment", "extreme_ranges", feats, ranges, None, ranges, True, longest, read_backs=0)


@pytest.mark.parametrize("reduce", ["max", "min"])
def test_nan_wins_and_infinities_are_numbers(reduce: str) -> None:
    inf, nan = math.inf, math.nan
    feats = torch.tensor([-inf, -inf, inf, inf, nan, nan, 1.0, 5.0, nan, 2.0])[:, None].requires_grad_()
    offsets = torch.tensor([0, 2, 4, 6, 6, 8, 10])
    result = segment_reduce(feats, offsets, reduce)
    one = 5.0 if reduce == "max" else 1.0
    expected = torch.tensor([-inf, inf, nan, 0.0, one, nan])[:, None]
    assert torch.equal(result.isnan(), expected.isnan())
    assert torch.equal(result.nan_to_num(7), expected.nan_to_num(7))
    assert torch.equal(segment_reduce(feats.detach(), offsets, reduce).nan_to_num(7), expected.nan_to_num(7))
    (grad,) = torch.autograd.grad(result, feats, torch.ones_like(result))
    winners = [1, 0, 1, 0, 1, 0, reduce == "min", reduce == "max", 1, 0]
    assert grad.flatten().tolist() == winners


@pytest.mark.triton36
def test_nan_wins_across_pieces(device: torch.device, agree: Callable[..., Any]) -> None:
    feats = values(1500, 3)
    feats[[77, 401, 1400], [0, 1, 1]] = math.nan
    ranges = torch.tensor([0, 1500], dtype=torch.int32, device=device)
    kernels = import_module("sparsevox.kernels.segment")
    for function in (kernels.extreme_ranges, reference.extreme_ranges):
        moved = (feats.to(device), ranges) if function is kernels.extreme_ranges else (feats, ranges.cpu())
        out, winners = function(*moved, None, moved[1], True, 0)
        assert out[0].isnan().tolist() == [True, True, False]
        assert winners[0, :2].tolist() == [77, 401]


@pytest.mark.parametrize("reduce", ["max", "min"])
def test_equal_elements_give_the_gradient_to_the_lowest_row(reduce: str) -> None:
    feats = torch.ones(700, 2, requires_grad=True)
    segment_reduce(feats, torch.tensor([0, 3, 3, 700]), reduce).sum().backward()
    assert feats.grad is not None
    assert feats.grad.nonzero().tolist() == [[0, 0], [0, 1], [3, 0], [3, 1]]


@pytest.mark.parametrize("lengths", [[2, 0, 3, 1], [0], [70, 0, 9]], ids=str)
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_gradients(reduce: str, lengths: list[int]) -> None:
    offsets = offsets_of(lengths, 1)
    rows = int(offsets[-1]) + 1
    feats = torch.randperm(rows * 2, generator=torch.Generator().manual_seed(0)).double().reshape(rows, 2)

    def function(x: Tensor) -> Tensor:
        return segment_reduce(x, offsets, reduce)

    inputs = (feats.requires_grad_(),)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("reduce", ["max", "min"])
def test_winners_block_by_block(reduce: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "BLOCK", 4)
    offsets = offsets_of(LENGTHS["mixed"])
    feats = values(int(offsets[-1]), 2).requires_grad_()
    result = segment_reduce(feats, offsets, reduce)
    assert_close(result.detach(), definition.segment_reduce(feats.detach(), offsets, reduce), 1e-14)
    (grad,) = torch.autograd.grad(result.sum(), feats)
    assert float(grad.sum()) == 2 * sum(length > 0 for length in LENGTHS["mixed"])
    assert torch.equal((grad * feats).sum(), result.sum())


def test_float16_sums_are_float32() -> None:
    feats = torch.full((80_000, 1), 3.0, dtype=torch.float16)
    assert segment_reduce(feats, torch.tensor([0, 80_000]), "mean").item() == 3
    assert segment_reduce(feats, torch.tensor([0, 20_000])).item() == 60_000


def test_float16_sums_of_kernels_are_float32(device: torch.device) -> None:
    pytest.importorskip("triton", reason="kernels need Triton")
    kernels = import_module("sparsevox.kernels.segment")
    feats, ranges = torch.full((1024, 1), 3000.0, dtype=torch.float16), torch.tensor([0, 1024], dtype=torch.int32)
    divisors = ranges[1:].long().to(device)
    result = kernels.sum_ranges(feats.to(device), ranges.to(device), None, None, divisors, 0)
    assert result.item() == 3000  # float16 ends before the sum of the rows that a piece holds


def test_one_long_sum_is_accurate() -> None:
    feats = torch.full((1_000_000, 1), 0.1)
    assert segment_reduce(feats, torch.tensor([0, 1_000_000])).item() == pytest.approx(
        float(feats.double().sum()), 1e-6
    )


def test_results_do_not_depend_on_memory_or_time() -> None:
    offsets = offsets_of(LENGTHS["mixed"])
    feats = values(int(offsets[-1]), 33, torch.float32) / 3
    wide = feats.repeat(1, 2)[:, :33]
    assert not wide.is_contiguous()
    for reduce in REDUCTIONS:
        result = segment_reduce(feats, offsets, reduce)
        assert torch.equal(result, segment_reduce(feats, offsets, reduce))
        assert torch.equal(result, segment_reduce(wide, offsets, reduce))


# Grids


@given(voxel_sets(), st.sampled_from([1, 3, 33]))
def test_global_pool_and_broadcast(case: VoxelSet, channels: int) -> None:
    grid = Grid.from_coords(as_coords(case.voxels), batch_size=case.batch_size + 1)  # the last item is empty
    items = grid.batch.tolist()
    feats = values(len(items), channels)
    for reduce in REDUCTIONS:
        edges = torch.tensor([sum(item < b for item in items) for b in range(grid.batch_size + 1)])
        assert_close(global_pool(feats, grid, reduce), definition.segment_reduce(feats, edges, reduce), 1e-14)
    rows = values(grid.batch_size, channels)
    assert broadcast(rows, grid).tolist() == [rows.tolist()[item] for item in items]


@given(voxel_sets())
def test_broadcast_and_sum_are_adjoint(case: VoxelSet) -> None:
    grid = Grid.from_coords(as_coords(case.voxels), batch_size=case.batch_size)
    x, y = values(grid.num_voxels, 3, seed=1), values(grid.batch_size, 3, seed=2)
    assert float((global_pool(x, grid, "sum") * y).sum()) == float((x * broadcast(y, grid)).sum())


@pytest.mark.parametrize("count", [0, 5, 40])
def test_gradients_on_grids(count: int) -> None:
    grid = Grid.stack([Grid.full(0, (1, 1, count)), Grid.empty(1), Grid.full(3, (4, 5, 6))])
    y = values(3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: broadcast(t, grid), (y,))
    assert torch.autograd.gradgradcheck(lambda t: broadcast(t, grid), (y,))
    x = values(grid.num_voxels, 2).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda t: global_pool(t, grid, "mean"), (x,))


# Errors


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, [0, 4]), TypeError, "feats must be a torch.Tensor, got NoneType"),
        ((torch.ones(4), [0, 4]), ValueError, r"feats must have shape \[N, C\], got \[4\]"),
        ((torch.ones(4, 2).long(), [0, 4]), TypeError, "feats must hold floating-point numbers, got torch.int64"),
        (
            (torch.ones(4, 2), [0.0, 4.0]),
            TypeError,
            "offsets must hold integers .*, got torch.float32",
        ),
        ((torch.ones(4, 2), [[0, 4]]), ValueError, r"offsets must have shape \[S \+ 1\], got \[1, 2\]"),
        ((torch.ones(4, 2), torch.ones(0).int()), ValueError, r"offsets must have shape \[S \+ 1\], got \[0\]"),
        ((torch.ones(4, 2), [0, 5]), ValueError, r"offsets must ascend between 0 and 4, .*, got tensor\(\[0, 5\]\)"),
        ((torch.ones(4, 2), [-1, 4]), ValueError, "offsets must ascend between 0 and 4"),
        ((torch.ones(4, 2), [0, 3, 2]), ValueError, "offsets must ascend between 0 and 4"),
        ((torch.ones(4, 2), torch.ones(2).int().to("meta")), ValueError, "offsets must be on the device of feats, cpu"),
        ((torch.ones(4, 2), [0, 4], "median"), ValueError, "reduce must be one of 'sum', .*, 'min', got 'median'"),
    ],
)
def test_errors_of_segments(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    feats, offsets, *rest = arguments
    with pytest.raises(error, match=message):
        segment_reduce(feats, offsets if isinstance(offsets, Tensor) else torch.tensor(offsets), *rest)


def test_errors_of_grids() -> None:
    grid = Grid.full(0, 2, batch_size=3)
    with pytest.raises(ValueError, match=r"feats must have 24 rows, one per voxel, got \[23, 2\]"):
        global_pool(torch.ones(23, 2), grid)
    with pytest.raises(ValueError, match="reduce must be one of 'sum', 'mean', 'max', 'min', got 'prod'"):
        global_pool(torch.ones(24, 2), grid, "prod")
    with pytest.raises(TypeError, match=r"feats must hold floating-point numbers, got torch\.bool"):
        global_pool(torch.ones(24, 2).bool(), grid)
    with pytest.raises(ValueError, match="feats must be on the device of the grid, cpu, got meta"):
        global_pool(torch.ones(24, 2, device="meta"), grid)
    with pytest.raises(ValueError, match=r"values must have 3 rows, one per grid, got \[24, 2\]"):
        broadcast(torch.ones(24, 2), grid)
    with pytest.raises(TypeError, match=r"values must hold floating-point numbers, got torch\.int64"):
        broadcast(torch.ones(3, 2).long(), grid)
    with pytest.raises(ValueError, match="values must be on the device of the grid, cpu, got meta"):
        broadcast(torch.ones(3, 2, device="meta"), grid)
