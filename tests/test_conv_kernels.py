"""The kernels of convolutions against sums in float64, and through the ops. tests/test_conv.py tests what they mean."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from sparsevox import Grid, ops, plans
from sparsevox.ops.plans import pair_lists, row_plan
from sparsevox.plans import PairLists, RowPlan, pair_block
from sparsevox.testing import as_coords, random_batch

pytest.importorskip("triton", reason="kernels need Triton")

from sparsevox.kernels import _conv_configs as configs
from sparsevox.kernels.conv import conv, conv_weight

# Largest error, in units of the sum of absolute products. The interpreter cuts bfloat16 off where a GPU rounds it.
TOLERANCES = {torch.float64: 1e-14, torch.float32: 3e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64


class Case(NamedTuple):
    """A table of `taps` x `rows`, and the channels and dtype that go through it."""

    taps: int
    rows: int
    c: int
    d: int
    groups: int = 1
    dtype: torch.dtype = SINGLE


CASES = [
    Case(27, 140, 32, 64),
    Case(27, 100, 64, 16, dtype=HALF),
    Case(8, 270, 48, 32, dtype=BRAIN),
    Case(8, 130, 3, 5, dtype=DOUBLE),
    Case(125, 40, 16, 16),
    Case(1, 400, 1, 1, dtype=HALF),
    Case(3, 200, 33, 65),
    Case(3, 150, 133, 7, dtype=HALF),
    Case(27, 128, 12, 12, groups=12),
    Case(8, 200, 6, 18, groups=6, dtype=HALF),
    Case(8, 150, 8, 12, groups=4, dtype=BRAIN),
    Case(8, 129, 20, 80, groups=2),
    Case(3, 200, 4, 6, groups=2, dtype=DOUBLE),
]
triton36 = [pytest.param(case, marks=pytest.mark.triton36) if i % 3 < 2 else case for i, case in enumerate(CASES)]


class Problem(NamedTuple):
    """What a case runs on: features, weight, bias and gradients, the table and its plans."""

    feats: Tensor
    weight: Tensor
    bias: Tensor
    grads: Tensor
    plan: RowPlan
    pairs: PairLists


def problem(case: Case, device: torch.device, monkeypatch: pytest.MonkeyPatch, inputs: int = 180) -> Problem:
    generator = torch.Generator().manual_seed(case.taps + case.c)
    width = max(case.rows, inputs)
    table = torch.stack([torch.randperm(width, generator=generator)[: case.rows] for _ in range(case.taps)])
    table[(table >= inputs) | (torch.rand(table.shape, generator=generator) < 0.5)] = -1
    table[case.taps // 3] = -1 if case.taps > 1 else table[0]
    feats, grads = (
        torch.randn(shape, generator=generator).to(case.dtype) for shape in ((inputs, case.c), (case.rows, case.d))
    )
    weight = torch.randn(case.taps, case.c // case.groups, case.d, generator=generator)
    bias = torch.randn(case.d, generator=generator)
    feats, weight, bias, grads, table = (t.to(device) for t in (feats, weight, bias, grads, table.int()))
    monkeypatch.setenv("SPARSEVOX_BACKEND", "triton")
    return Problem(feats, weight.to(case.dtype), bias, grads, row_plan(table), pair_lists(table))


def gathered(feats: Tensor, table: Tensor, groups: int) -> Tensor:
    """Input rows in float64 [K, M, G, C / G], 0 where there is none."""
    padded = torch.cat([feats.double(), feats.new_zeros((1, feats.shape[1])).double()])
    return padded[table.long()].unflatten(2, (groups, -1))


def expected_conv(feats: Tensor, weight: Tensor, table: Tensor, groups: int) -> Tensor:
    matrices = weight.double().unflatten(2, (groups, -1))
    return torch.einsum("kmgc,kcgd->mgd", gathered(feats, table, groups), matrices).flatten(1)


def expected_weight(feats: Tensor, grads: Tensor, table: Tensor, groups: int) -> Tensor:
    rows, out = gathered(feats, table, groups), grads.double().unflatten(1, (groups, -1))
    return torch.einsum("kmgc,mgd->kcgd", rows, out).flatten(2)


def run_conv(p: Problem, groups: int, bias: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    return conv(p.feats, p.weight if weight is None else weight, bias, p.plan, [], [], False, groups)


def run_weight(p: Problem, groups: int, dtype: torch.dtype) -> Tensor:
    return conv_weight(p.feats, p.grads, p.plan, [], p.pairs, False, groups, dtype)


def assert_near(actual: Tensor, expected: Tensor, scale: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    assert (actual.double() - expected).abs().max() <= tolerance * scale.max()


@pytest.mark.parametrize("case", triton36, ids=str)
def test_conv_sums_over_taps(case: Case, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(case, device, monkeypatch)
    actual = run_conv(p, case.groups, p.bias)
    expected = expected_conv(p.feats, p.weight, p.plan.table, case.groups)
    scale = expected_conv(p.feats.abs(), p.weight.abs(), p.plan.table, case.groups)
    assert actual.dtype == case.dtype
    assert_near(actual, expected + p.bias, scale, TOLERANCES[case.dtype])


@pytest.mark.parametrize("case", triton36, ids=str)
def test_conv_weight_sums_over_pairs(case: Case, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(case, device, monkeypatch)
    dtype = DOUBLE if case.dtype == DOUBLE else SINGLE
    actual = run_weight(p, case.groups, dtype)
    expected = expected_weight(p.feats, p.grads, p.plan.table, case.groups)
    scale = expected_weight(p.feats.abs(), p.grads.abs(), p.plan.table, case.groups)
    assert actual.dtype == dtype
    assert_near(actual, expected, scale, TOLERANCES[dtype])


@pytest.mark.parametrize("case", [Case(8, 200, 40, 24, dtype=HALF), Case(8, 200, 12, 12, groups=12)], ids=str)
def test_the_same_input_gives_the_same_bits(case: Case, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(case, device, monkeypatch)
    assert torch.equal(run_conv(p, case.groups, p.bias), run_conv(p, case.groups, p.bias))
    gradient = run_weight(p, case.groups, SINGLE)
    assert torch.equal(run_weight(p, case.groups, SINGLE), gradient)
    assert torch.equal(run_weight(p, case.groups, BRAIN), gradient.to(BRAIN))


def test_many_blocks_of_pairs_in_several_parts(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsevox.plans.PAIR_ROWS", 64)
    assert pair_block(8) == 64
    p = problem(Case(8, 300, 16, 16), device, monkeypatch)
    scale = expected_weight(p.feats.abs(), p.grads.abs(), p.plan.table, 1)
    expected = expected_weight(p.feats, p.grads, p.plan.table, 1)
    for programs, blocks in ((1024, 1), (16, 3), (1, 5)):
        monkeypatch.setattr(configs, "SPLIT_PROGRAMS", programs)
        assert configs.split_blocks(5, 8, 16, 16, 1) == blocks
        assert_near(run_weight(p, 1, SINGLE), expected, scale, TOLERANCES[SINGLE])


def test_the_weight_takes_the_dtype_of_the_features(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(Case(8, 150, 16, 16, dtype=HALF), device, monkeypatch)
    weight = torch.randn(p.weight.shape, dtype=DOUBLE, device=device)
    assert torch.equal(run_conv(p, 1, weight=weight), run_conv(p, 1, weight=weight.half()))


@pytest.mark.parametrize(("rows", "inputs"), [(0, 50), (50, 0), (0, 0)])
def test_no_rows(rows: int, inputs: int, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(Case(8, rows, 16, 24), device, monkeypatch, inputs=inputs)
    assert torch.equal(run_conv(p, 1, p.bias), p.bias.expand(rows, 24))
    assert torch.equal(run_weight(p, 1, SINGLE), torch.zeros(8, 16, 24, device=device))


@pytest.mark.parametrize(("c", "d"), [(0, 8), (8, 0), (0, 0)])
def test_no_channels(c: int, d: int, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(Case(8, 60, c, d), device, monkeypatch)
    assert torch.equal(run_conv(p, 1, p.bias), p.bias.expand(60, d))
    assert torch.equal(run_conv(p, 1), torch.zeros(60, d, device=device))
    assert run_weight(p, 1, SINGLE).shape == (8, c, d)


def test_rows_that_are_not_contiguous(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(Case(8, 150, 16, 16), device, monkeypatch)
    turned = p._replace(
        feats=p.feats.t().contiguous().t(), weight=p.weight.mT.contiguous().mT, grads=p.grads[:1].expand(150, 16)
    )
    assert torch.equal(run_conv(turned, 1), run_conv(p, 1))
    same = p._replace(grads=turned.grads.contiguous())
    assert torch.equal(run_weight(turned, 1, SINGLE), run_weight(same, 1, SINGLE))


@pytest.mark.parametrize("op", ["conv", "conv_weight"])
def test_a_tuned_tile_takes_the_place_of_the_default(
    op: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = problem(Case(3, 130, 40, 72), device, monkeypatch)
    run: Callable[[], Tensor] = (lambda: run_conv(p, 1)) if op == "conv" else (lambda: run_weight(p, 1, SINGLE))
    default = run()
    chosen = configs.Config(rows=32, columns=32, num_warps=4, num_stages=2)
    kind = configs.key(op, 40, 72, 1, SINGLE, configs.arch(device))
    monkeypatch.setitem(configs.tuned, kind, chosen)
    assert configs.config(kind) == chosen
    assert torch.equal(run(), default)


def test_steps_waste_few_channels() -> None:
    assert [configs.step_channels(c, HALF) for c in (1, 16, 33, 48, 64, 96, 100, 256)] == [
        16,
        16,
        16,
        16,
        64,
        32,
        64,
        64,
    ]
    assert [configs.step_channels(c, SINGLE) for c in (3, 32, 64, 133)] == [16, 32, 32, 32]


@pytest.fixture
def allow_tf32() -> Iterator[Callable[[bool], None]]:
    """Switch the precision of float32 products for one test."""
    before = torch.backends.cuda.matmul.fp32_precision

    def switch(on: bool) -> None:
        torch.backends.cuda.matmul.fp32_precision = "tf32" if on else "ieee"

    yield switch
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("allowed", [True, False])
def test_float32_is_multiplied_as_pytorch_does(allowed: bool, allow_tf32: Callable[[bool], None]) -> None:
    allow_tf32(allowed)
    assert configs.precision(SINGLE, 90) == ("tf32" if allowed else "ieee")
    assert {configs.precision(SINGLE, configs.AMD), configs.precision(HALF, 90)} == {"ieee"}


def through_ops(device: torch.device) -> dict[str, list[Tensor]]:
    """Results and gradients of convolutions within a grid, to a coarser one, and back up."""
    data = random_batch(3, 3, count=30, kinds=("clustered", "solid", "linear"))
    grid = Grid.from_coords(as_coords(data.voxels).to(device), batch_size=3)
    maps = {"within": grid.kernel_map(3), "down": grid.kernel_map((2, 1, 2), stride=2)}
    results = {}
    for name, kernel_map in maps.items():
        generator = torch.Generator().manual_seed(len(name))

        def draw(*shape: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(shape, generator=generator).to(device).requires_grad_()

        size = kernel_map.geometry.kernel_size
        for up in (False, True):
            groups = 2 if name == "down" else 1
            feats = draw(kernel_map.num_coarse if up else kernel_map.num_fine, 16)
            weight, bias = draw(*((16, 8 // groups) if up else (8, 16 // groups)), *size), draw(8)
            op: Callable[..., Any] = ops.conv_transpose3d if up else ops.conv3d
            out = op(feats, weight, bias, kernel_map, groups=groups)
            grads = torch.autograd.grad(out.square().sum(), (feats, weight, bias))
            results[f"{name}, up" if up else name] = [out.detach(), *grads]
    return results


def test_ops_agree_with_the_reference(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEVOX_BACKEND", "reference")
    expected = through_ops(torch.device("cpu"))
    monkeypatch.setenv("SPARSEVOX_BACKEND", "triton")
    for name, results in through_ops(device).items():
        for actual, wanted in zip(results, expected[name], strict=True):
            torch.testing.assert_close(actual.cpu(), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()), msg=name)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize(("c", "d"), [(64, 16), (16, 64)])
def test_more_than_2_to_the_31_elements(c: int, d: int) -> None:
    rows = (1 << 31) // 64 + 1000
    table = torch.arange(rows, dtype=torch.int32, device="cuda").flip(0)[None]
    feats = torch.ones(rows, c, dtype=HALF, device="cuda")
    feats[-500:] = 2
    feats[500:1000] = 3
    out = conv(feats, torch.ones(1, c, d, dtype=HALF, device="cuda"), None, row_plan(table), [], [], False, 1)
    assert (out == c * feats.flip(0)[:, :1]).all()
    pairs = pair_lists(table)
    total = conv_weight(feats, out, [table], [], pairs, False, 1, SINGLE)
    wanted = float(c) * (rows - 1000 + 500 * 4 + 500 * 9)
    torch.testing.assert_close(total, torch.full_like(total, wanted), rtol=1e-3, atol=0.0)


@pytest.mark.gpu
def test_tf32_is_used_where_it_is_allowed(allow_tf32: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(Case(27, 300, 64, 64), torch.device("cuda"), monkeypatch)
    allow_tf32(False)
    exact, scale = run_conv(p, 1), expected_conv(p.feats.abs(), p.weight.abs(), p.plan.table, 1)
    allow_tf32(True)
    rough = run_conv(p, 1)
    assert torch.version.hip or not torch.equal(rough, exact)
    assert_near(rough, expected_conv(p.feats, p.weight, p.plan.table, 1), scale, 2**-10)


@pytest.mark.parametrize("up", [False, True])
def test_second_derivatives_of_several_blocks(device: torch.device, monkeypatch: pytest.MonkeyPatch, up: bool) -> None:
    """Input and output rows fill different numbers of blocks."""
    monkeypatch.setattr(plans, "PAIR_ROWS", 64)
    torch.manual_seed(0)
    bricks = Grid.from_coords(torch.randint(-4, 4, (300, 3), device=device)).bricks
    weight = torch.randn(4, 4, 3, 3, 3, device=device)
    results = []
    for backend in ("triton", "reference"):
        monkeypatch.setenv("SPARSEVOX_BACKEND", backend)
        fine = Grid(bricks)
        coarse = fine.strided(3, 2)
        kernel_map = fine.kernel_map(3, stride=2, target=coarse)
        feats = torch.sin(torch.arange(4.0 * (coarse if up else fine).num_voxels, device=device)).reshape(-1, 4)
        x, w = feats.requires_grad_(), weight.clone().requires_grad_()
        out = (ops.conv_transpose3d if up else ops.conv3d)(x, w, None, kernel_map)
        d_x, d_w = torch.autograd.grad(out.square().sum(), (x, w), create_graph=True)
        results.append(torch.autograd.grad(d_x.square().sum() + d_w.square().sum(), (x, w)))
    for actual, expected in zip(*results, strict=True):
        assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_memoized_flags_follow_tuning_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = configs.key("conv", 64, 64, 1, HALF, 90)
    _, _, default = configs.conv_flags(64, 64, 1, HALF, bias=True, architecture=90)
    monkeypatch.setitem(configs.tuned, kind, configs.Config(rows=64, columns=32, num_warps=4, num_stages=2))
    rows, tiles, tuned = configs.conv_flags(64, 64, 1, HALF, bias=True, architecture=90)
    assert (rows, tiles, tuned["COLUMNS"], tuned["num_stages"]) == (64, 2, 32, 2)
    monkeypatch.delitem(configs.tuned, kind)
    assert configs.conv_flags(64, 64, 1, HALF, bias=True, architecture=90)[2] == default
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for how in ("tf32", "ieee", "tf32"):
            torch.backends.cuda.matmul.fp32_precision = how
            assert configs.conv_flags(64, 64, 1, SINGLE, bias=False, architecture=90)[2]["PRECISION"] == how
            assert configs.weight_flags(64, 64, 1, SINGLE, architecture=90)[1]["PRECISION"] == how
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
