"""Group and instance norm: definition, reference, kernels."""

from importlib import import_module
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsevox import Grid
from sparsevox.ops import group_norm, instance_norm
from sparsevox.reference import norm as reference
from tests.definitions import norm as definition
from tests.goldens import GoldenFile

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Relative to the largest element. Triton's interpreter rounds bfloat16 toward zero.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
# Voxels of the items: blocks of the reference have 4096 rows, chunks of the kernels 512. Up to 1024 rows are few.
SIZES = {
    "no items": [],
    "no voxels": [0, 0],
    "one voxel": [0, 1],
    "holes": [0, 5, 0, 0, 70, 3, 0],
    "few rows": [600, 0, 300, 124],
    "several chunks": [600, 0, 513, 512, 1],
    "several blocks": [3, 5000, 0, 4090, 7],
}
SPLITS = ((1, 1), (3, 3), (6, 2), (33, 11))  # channels, groups


def ragged(sizes: list[int]) -> Grid:
    """A grid whose items have these many voxels."""
    steps = [(b, n % 16, n // 16 % 16, n // 256) for b, size in enumerate(sizes) for n in range(size)]
    return Grid.from_coords(torch.tensor(steps, dtype=torch.int64).reshape(-1, 4), batch_size=len(sizes))


def values(rows: int, channels: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    feats = torch.randn(rows, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (feats * 2 + 3).to(dtype)


def by_definition(
    feats: Tensor, sizes: list[int], groups: int, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    return definition.group_norm(feats, list(accumulate(sizes, initial=0)), groups, weight, bias)


def error(actual: Tensor, expected: Tensor) -> float:
    """The largest error, relative to the largest element or 1."""
    assert actual.shape == expected.shape
    if actual.numel() == 0:
        return 0.0
    worst = (actual.detach().double() - expected.detach().double()).abs().max()
    return float(worst / expected.detach().abs().max().clamp(min=1))


@pytest.mark.parametrize(("channels", "groups"), SPLITS)
@pytest.mark.parametrize("sizes", SIZES)
def test_batch_items_are_normalized_separately(sizes: str, channels: int, groups: int) -> None:
    grid = ragged(SIZES[sizes])
    feats = values(grid.num_voxels, channels).requires_grad_()
    weight, bias = (values(channels, 1, seed=s).squeeze(1).requires_grad_() for s in (1, 2))
    for affine in ((weight, bias), (None, bias), (None, None)):
        actual = group_norm(feats, grid, groups, *affine)
        expected = by_definition(feats, SIZES[sizes], groups, *affine)
        assert error(actual, expected) < 1e-12
        given_ = [x for x in (feats, *affine) if x is not None]
        grad = values(grid.num_voxels, channels, seed=3)
        expected = expected + 0 * sum(x.sum() for x in given_)
        found, wanted = (torch.autograd.grad(y, given_, grad) for y in (actual, expected))
        assert max(map(error, found, wanted)) < 1e-10


@given(st.lists(st.integers(0, 30), max_size=6), st.integers(0, 99))
def test_any_sizes(sizes: list[int], seed: int) -> None:
    feats = values(sum(sizes), 4, seed=seed)
    assert error(group_norm(feats, ragged(sizes), 2), by_definition(feats, sizes, 2)) < 1e-12


def test_instance_norm_is_group_norm_with_one_channel_per_group() -> None:
    sizes = [9, 0, 30]
    feats, weight = values(39, 3), values(3, 1).squeeze(1)
    expected = [
        torch.nn.functional.instance_norm(part.t()[None], weight=weight)[0].t() for part in (feats[:9], feats[9:])
    ]
    assert error(instance_norm(feats, ragged(sizes), weight), torch.cat(expected)) < 1e-12


@pytest.mark.parametrize("eps", [0, 0.5])
def test_eps_is_added_to_the_variance(eps: float) -> None:
    feats = values(12, 2)
    expected = (feats - feats.mean(0)) / (feats.var(0, correction=0) + eps).sqrt()
    assert error(group_norm(feats, ragged([12]), 2, eps=eps), expected) < 1e-12
    assert error(instance_norm(feats, ragged([12]), eps=eps), expected) < 1e-12


def test_many_items() -> None:
    sizes = [b * 7 % 11 for b in range(1024)]
    feats = values(sum(sizes), 6)
    assert error(group_norm(feats, ragged(sizes), 3), by_definition(feats, sizes, 3)) < 1e-12


@pytest.fixture(params=[False, True], ids=["by block", "whole"])
def whole(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the reference process features block by block, or whole, regardless of their size."""
    monkeypatch.setattr(reference, "WHOLE", (1 << 62) * request.param)


@pytest.mark.usefixtures("whole")
def test_a_large_mean_costs_no_more_than_its_rounding() -> None:
    for sizes in ([40], [5000, 0, 300]):
        feats = (values(sum(sizes), 8) / 2 + 1e4).float()
        result = group_norm(feats, ragged(sizes), 2)
        # The mean, too, is rounded to a multiple of 2^-10.
        assert (result.double() - by_definition(feats, sizes, 2)).abs().max() < 6e-4
        for part in result.double().split([n for n in sizes if n]):
            assert (part.unflatten(1, (2, 4)).var((0, 2), correction=0) - 1).abs().max() < 3e-5


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("sizes", [[40], [5000, 0, 300]], ids=str)
def test_a_small_variance_with_a_large_mean(sizes: list[int]) -> None:
    feats = (values(sum(sizes), 1) / 400 + 1e4).float()
    result = group_norm(feats, ragged(sizes), 1)
    for part, exact in zip(result.double().split(sizes), feats.double().split(sizes), strict=True):
        if len(exact):
            variance = float(exact.var(correction=0))
            assert float(part.var(correction=0)) == pytest.approx(variance / (variance + 1e-5), rel=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    sizes, grid = SIZES["holes"], ragged(SIZES["holes"])
    feats, grad = values(78, 6, dtype).requires_grad_(), values(78, 6, dtype, seed=1)
    weight = values(6, 1, torch.float32, seed=2).squeeze(1).requires_grad_()
    exact, exact_weight = feats.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    result, expected = group_norm(feats, grid, 2, weight), by_definition(exact, sizes, 2, exact_weight)
    assert result.dtype == dtype
    assert error(result, expected) < TOLERANCE[dtype] / 2
    found = torch.autograd.grad(result, (feats, weight), grad)
    wanted = torch.autograd.grad(expected, (exact, exact_weight), grad.double())
    assert [x.dtype for x in found] == [dtype, torch.float32]
    assert error(found[0], wanted[0]) < TOLERANCE[dtype]
    assert error(found[1], wanted[1]) < 1e-5


def test_first_and_second_derivatives() -> None:
    grid = ragged([4, 0, 1, 6])
    feats, weight, bias = values(11, 4), values(4, 1, seed=1).squeeze(1), values(4, 1, seed=2).squeeze(1)
    inputs = tuple(x.requires_grad_() for x in (feats, weight, bias))

    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return group_norm(x, grid, 2, w, b)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(lambda x: instance_norm(x, grid), (inputs[0],))


def test_both_formulas_of_the_gradient_agree() -> None:
    grid = ragged(SIZES["several chunks"])
    feats, weight, bias = values(grid.num_voxels, 6), values(6, 1, seed=2).squeeze(1), values(6, 1, seed=3).squeeze(1)
    inputs = [x.requires_grad_() for x in (feats, weight, bias)]
    grad = values(grid.num_voxels, 6, seed=1)
    fused, composed = (
        torch.autograd.grad(group_norm(feats, grid, 3, weight, bias, 0.5), inputs, grad, create_graph=graph)
        for graph in (False, True)
    )
    assert composed[0].requires_grad
    assert max(map(error, fused, composed)) < 1e-12


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize(
    ("sizes", "channels"), [(SIZES["several blocks"], 33), ([9100], 33), ([50000], 3), ([50000], 1)], ids=str
)
def test_equal_input_gives_equal_bits_whatever_its_strides_and_the_number_of_threads(
    sizes: list[int], channels: int
) -> None:
    grid = ragged(sizes)
    feats = values(grid.num_voxels, channels, torch.float32).requires_grad_()
    columns = feats.detach().t().contiguous().t().requires_grad_()
    runs = []
    try:
        for threads, x, grad in (
            (1, feats, feats),
            (1, feats, feats),
            (2, feats, feats),
            (3, feats, columns),
            (1, columns, feats),
            (3, columns, columns),
        ):
            torch.set_num_threads(threads)
            result = group_norm(x, grid, min(channels, 3))
            assert result.is_contiguous()
            runs.append((result, *torch.autograd.grad(result, x, grad.detach())))
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(mine, first) for run in runs for mine, first in zip(run, runs[0], strict=True))


@pytest.mark.triton36
@pytest.mark.parametrize("sizes", [name for name in SIZES if name != "several blocks"])
@pytest.mark.parametrize(
    ("channels", "groups", "dtype"),
    [*((33, 11, dtype) for dtype in DTYPES), (1, 1, torch.float32), (1, 1, torch.float64), (40, 1, torch.bfloat16)],
    ids=str,
)
def test_kernels_equal_the_reference(
    channels: int, groups: int, sizes: str, dtype: torch.dtype, device: torch.device
) -> None:
    pytest.importorskip("triton", reason="kernels need Triton")
    kernels = import_module("sparsevox.kernels.norm")
    offsets = torch.tensor(list(accumulate(SIZES[sizes], initial=0)))
    feats, grad = values(int(offsets[-1]), channels, dtype), values(int(offsets[-1]), channels, dtype, seed=1)
    weight, bias = (values(channels, 1, torch.float32, seed=s).squeeze(1) for s in (2, 3))
    for w, b in ((weight, bias), (None, None)):
        found = reference.group_norm(feats, offsets, w, b, groups, 1e-5)
        expected = (*found, *reference.group_norm_backward(grad, feats, offsets, w, *found[1:]))
        x, o, g, w, b, *statistics = (
            None if t is None else t.to(device) for t in (feats, offsets, grad, w, b, *found[1:])
        )
        actual = kernels.group_norm(x, o, w, b, groups, 1e-5)
        actual += kernels.group_norm_backward(g, x, o, w, *statistics)
        # Small deviations make large gradients, and their rounding too.
        tolerance = TOLERANCE[dtype] * float(torch.cat([found[2].flatten(), torch.ones(1)]).max())
        for part, wanted in zip(actual, expected, strict=True):
            assert part.dtype == wanted.dtype
            assert error(part.cpu(), wanted) < tolerance


def test_kernels_take_strided_rows(device: torch.device) -> None:
    pytest.importorskip("triton", reason="kernels need Triton")
    kernels = import_module("sparsevox.kernels.norm")
    offsets = torch.tensor([0, 9, 20], device=device)
    feats, grad = values(20, 6).to(device)[:, ::2], torch.ones(1, 3, dtype=torch.float64, device=device).expand(20, 3)
    out, *statistics = kernels.group_norm(feats, offsets, None, None, 3, 0.5)
    expected, *_ = kernels.group_norm(feats.contiguous(), offsets, None, None, 3, 0.5)
    assert torch.equal(out, expected)
    by_reference, *_ = reference.group_norm(feats.cpu(), offsets.cpu(), None, None, 3, 0.5)
    assert error(out.cpu(), by_reference) < 1e-12
    found = kernels.group_norm_backward(grad, feats, offsets, None, *statistics)
    wanted = kernels.group_norm_backward(grad.contiguous(), feats.contiguous(), offsets, None, *statistics)
    assert all(map(torch.equal, found, wanted))


def test_as_recorded() -> None:
    file = GoldenFile("fvdb_ops")
    grid = Grid.from_coords(file["in/coords"])
    feats, expected = (file.aligned(grid, "in/coords", name) for name in ("in/feat", "groupnorm3/out"))
    assert error(group_norm(feats, grid, 3, file["groupnorm3/weight"], file["groupnorm3/bias"]), expected) < 1e-5


@pytest.mark.parametrize(
    ("change", "exception", "message"),
    [
        ({"feats": [1.0]}, TypeError, "feats must be a torch.Tensor, got list"),
        ({"feats": torch.zeros(9, 4).int()}, TypeError, "feats must hold floating-point numbers, got torch.int32"),
        ({"feats": torch.zeros(8, 4)}, ValueError, r"feats must have 9 rows, one per voxel of the grid, got \[8, 4\]"),
        ({"num_groups": 3}, ValueError, "num_groups must be at least 1 and divide the 4 channels of feats, got 3"),
        ({"num_groups": 0}, ValueError, "num_groups must be at least 1 and divide the 4 channels of feats, got 0"),
        ({"num_groups": 2.0}, TypeError, "num_groups must be an int, got 2.0"),
        ({"weight": torch.zeros(3)}, ValueError, r"weight must have shape \[4\], got \[3\]"),
        ({"bias": torch.zeros(4).int()}, TypeError, "bias must hold floating-point numbers, got torch.int32"),
        ({"weight": torch.zeros(4, device="meta")}, ValueError, "weight must be on the device of the grid, cpu, got"),
        ({"eps": -1.0}, ValueError, "eps must not be negative, got -1.0"),
        ({"eps": "no"}, TypeError, "eps must hold numbers, got 'no'"),
    ],
)
def test_errors(change: dict[str, object], exception: type[Exception], message: str) -> None:
    arguments = {"feats": torch.zeros(9, 4), "grid": ragged([9]), "num_groups": 2} | change
    with pytest.raises(exception, match=message):
        group_norm(**arguments)  # type: ignore[arg-type]
