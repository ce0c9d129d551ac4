"""Attention on ragged rows: the formula item by item, in float64."""

import math
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsevox import Grid
from sparsevox.nn.attention import window_offsets
from sparsevox.ops import attention
from sparsevox.reference import attention as reference
from tests.definitions import attention as definition

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
# Queries and keys of the items.
LENGTHS: dict[str, tuple[list[int], list[int]]] = {
    "no items": ([], []),
    "nothing": ([0, 0], [0, 0]),
    "no keys at all": ([3, 2], [0, 0]),
    "no queries at all": ([0], [4]),
    "holes": ([3, 0, 5, 70, 0, 1, 9], [4, 2, 0, 60, 0, 3, 9]),
    "windows": ([8] * 40, [8] * 40),
    "one long item": ([300], [280]),
    "short and long": ([1, 2, 3, 40, 5, 17, 64, 1, 0], [1, 9, 3, 50, 5, 17, 33, 200, 7]),
}


def offsets_of(*lengths: list[int]) -> list[Tensor]:
    return [torch.tensor(list(accumulate(part, initial=0))) for part in lengths]


def operands(
    q_lengths: list[int], k_lengths: list[int], d: int = 4, e: int = 4, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (sum(q_lengths), 2, d), (sum(k_lengths), 2, d), (sum(k_lengths), 2, e)
    q, k, v = (torch.randn(s, dtype=torch.float64, generator=generator).to(dtype).requires_grad_() for s in shapes)
    return q, k, v


def by_definition(q: Tensor, k: Tensor, v: Tensor, q_offsets: Tensor, k_offsets: Tensor, scale: float) -> Tensor:
    """The definition, with a gradient of zero where it has none: of nothing."""
    return definition.attention(q, k, v, q_offsets, k_offsets, scale) + 0 * (q.sum() + k.sum() + v.sum())


def error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    if actual.numel() == 0:
        return 0.0
    worst = (actual.detach().double() - expected.detach().double()).abs().max()
    return float(worst / expected.detach().abs().max().clamp(min=1))


@pytest.mark.parametrize(("d", "e"), [(4, 4), (3, 5), (8, 1)])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_every_item_attends_to_itself(lengths: str, d: int, e: int) -> None:
    q, k, v = operands(*LENGTHS[lengths], d, e)
    q_offsets, k_offsets = offsets_of(*LENGTHS[lengths])
    for scale in (None, 0.3):
        result = attention(q, k, v, q_offsets, k_offsets, scale)
        expected = by_definition(q, k, v, q_offsets, k_offsets, 1 / math.sqrt(d) if scale is None else scale)
        assert error(result, expected) < 1e-12
        grad = torch.randn(result.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        found, wanted = (torch.autograd.grad(y, (q, k, v), grad) for y in (result, expected))
        assert max(map(error, found, wanted)) < 1e-12


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=12))
def test_any_lengths(lengths: list[tuple[int, int]]) -> None:
    parts = [q for q, _ in lengths], [k for _, k in lengths]
    q, k, v = operands(*parts)
    q_offsets, k_offsets = offsets_of(*parts)
    assert error(attention(q, k, v, q_offsets, k_offsets), by_definition(q, k, v, q_offsets, k_offsets, 0.5)) < 1e-12


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    lengths = LENGTHS["short and long"]
    inputs = operands(*lengths, 8, 8, dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    q_offsets, k_offsets = offsets_of(*lengths)
    result, expected = (
        attention(inputs[0], inputs[1], inputs[2], q_offsets, k_offsets),
        by_definition(exact[0], exact[1], exact[2], q_offsets, k_offsets, 8**-0.5),
    )
    assert result.dtype == dtype
    assert error(result, expected) < TOLERANCE[dtype]
    grad = torch.ones_like(result)
    found, wanted = torch.autograd.grad(result, inputs, grad), torch.autograd.grad(expected, exact, grad.double())
    assert max(map(error, found, wanted)) < TOLERANCE[dtype]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_op_for_graphs_agrees(lengths: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "SCORES", 999)  # several blocks of queries
    q, k, v = operands(*LENGTHS[lengths], 3, 5)
    q_offsets, k_offsets = offsets_of(*LENGTHS[lengths])
    eager = attention(q, k, v, q_offsets, k_offsets, 0.7)
    compiled = torch.ops.sparsevox.ragged_attention(q, k, v, q_offsets, k_offsets, 0.7)
    assert error(compiled, eager) < 1e-12
    grad = torch.randn(eager.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found, wanted = (torch.autograd.grad(y, (q, k, v), grad) for y in (compiled, eager))
    assert max(map(error, found, wanted)) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_of_the_op_for_graphs_are_rounded_once(dtype: torch.dtype) -> None:
    lengths = LENGTHS["short and long"]
    inputs = operands(*lengths, 8, 8, dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    q_offsets, k_offsets = offsets_of(*lengths)
    result = torch.ops.sparsevox.ragged_attention(*inputs, q_offsets, k_offsets, 8**-0.5)
    expected = by_definition(exact[0], exact[1], exact[2], q_offsets, k_offsets, 8**-0.5)
    found = torch.autograd.grad(result, inputs, torch.ones_like(result))
    wanted = torch.autograd.grad(expected, exact, torch.ones_like(expected))
    assert max(map(error, found, wanted)) < torch.finfo(dtype).eps / 2


def test_it_compiles() -> None:
    torch._dynamo.reset()
    q, k, v = operands([3, 0, 5], [4, 2, 0])
    q_offsets, k_offsets = offsets_of([3, 0, 5], [4, 2, 0])
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    results = [function(q, k, v, q_offsets, k_offsets) for function in (compiled, attention)]
    assert error(*results) < 1e-12
    assert max(map(error, *(torch.autograd.grad(y.sum(), (q, k, v)) for y in results))) < 1e-12


def test_items_do_not_see_each_other() -> None:
    lengths = LENGTHS["short and long"]
    q, k, v = operands(*lengths)
    q_offsets, k_offsets = offsets_of(*lengths)
    with torch.no_grad():
        k[:1], v[:1] = math.nan, math.inf  # those of the first item
    result = attention(q, k, v, q_offsets, k_offsets)
    assert result[0].isnan().all()
    assert result[1:].isfinite().all()
    gradients = torch.autograd.grad(result[1:].sum(), (q, k, v))
    assert all(x[1:].isfinite().all() for x in gradients)


def test_rows_of_no_item() -> None:
    q, k, v = operands([9], [8])
    result = attention(q, k, v, torch.tensor([2, 2, 6]), torch.tensor([1, 3, 6]))
    assert (result[:2] == 0).all()
    assert (result[6:] == 0).all()
    alone = attention(q[2:6], k[3:6], v[3:6], torch.tensor([0, 4]), torch.tensor([0, 3]))
    assert error(result[2:6], alone) < 1e-12
    gradients = torch.autograd.grad(result.sum(), (q, k, v))
    assert all((x[0] == 0).all() for x in gradients)


@pytest.mark.parametrize(
    ("sizes", "window", "shift"), [([2] * 5, 3, 2), ([1, 0, 1, 0], 4, 3), ([0], 1, 0), ([], 2, 1), ([5, 2, 0, 9], 4, 1)]
)
def test_windows_end_with_their_grid(sizes: list[int], window: int, shift: int) -> None:
    grids = [Grid.full(0, (1, 1, size)) for size in sizes]
    grid = Grid.stack(grids) if sizes else Grid.empty(0)
    edges, start = {0}, 0
    for size in sizes:
        edges |= {start, *range(start + window - shift, start + size, window), start + size}
        start += size
    assert window_offsets(grid, window, shift).unique_consecutive().tolist() == sorted(edges)


def test_equal_input_gives_equal_bits() -> None:
    lengths = LENGTHS["short and long"]
    inputs = operands(*lengths, dtype=torch.float32)
    q_offsets, k_offsets = offsets_of(*lengths)
    runs = []
    for _ in range(2):
        result = attention(inputs[0], inputs[1], inputs[2], q_offsets, k_offsets)
        runs.append((result, *torch.autograd.grad(result.square().sum(), inputs)))
    assert all(map(torch.equal, *runs))


def test_autocast() -> None:
    q, k, v = operands([5], [5], dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = attention(q, k.bfloat16(), v, torch.tensor([0, 5]))
    assert result.dtype == torch.bfloat16
    assert error(result, attention(q, k, v, torch.tensor([0, 5]))) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize(
    ("change", "exception", "message"),
    [
        ({"q": [1.0]}, TypeError, "q must be a torch.Tensor, got list"),
        ({"q": torch.zeros(5, 4)}, ValueError, r"q must have shape \[N, H, D\], got \[5, 4\]"),
        ({"q": torch.zeros(5, 2, 4).int()}, TypeError, "q must hold floating-point numbers, got torch.int32"),
        ({"k": torch.zeros(5, 3, 4)}, ValueError, r"k must have shape \[M, 2, 4\], got \[5, 3, 4\]"),
        ({"v": torch.zeros(4, 2, 4)}, ValueError, r"v must have shape \[5, 2, E\], got \[4, 2, 4\]"),
        (
            {"v": torch.zeros(5, 2, 4).double()},
            TypeError,
            "v must have the dtype of q, torch.float32, got torch.float64",
        ),
        ({"k": torch.zeros(5, 2, 4, device="meta")}, ValueError, "k must be on the device of q, cpu, got meta"),
        ({"q_offsets": torch.zeros(2)}, TypeError, "q_offsets must hold integers"),
        (
            {"k_offsets": torch.zeros(2, device="meta").int()},
            ValueError,
            "k_offsets must be on the device of q, cpu, got meta",
        ),
        ({"q_offsets": torch.zeros(0).long()}, ValueError, r"q_offsets must have shape \[B \+ 1\], got \[0\]"),
        ({"q_offsets": torch.tensor([0, 6])}, ValueError, "q_offsets must ascend between 0 and 5, the number of rows"),
        ({"q_offsets": torch.tensor([0, 3, 2])}, ValueError, "q_offsets must ascend between 0 and 5"),
        ({"k_offsets": torch.tensor([-1, 2])}, ValueError, "k_offsets must ascend between 0 and 5"),
        ({"k_offsets": torch.tensor([0, 2, 5])}, ValueError, r"k_offsets must have shape \[2\], got \[3\]"),
        ({"q": torch.zeros(4, 2, 4)}, ValueError, "k must have 4 rows, as q has, unless k_offsets are given"),
        ({"scale": "x"}, TypeError, "scale must hold numbers, got 'x'"),
    ],
)
def test_errors(change: dict[str, Any], exception: type[Exception], message: str) -> None:
    rows = torch.zeros(5, 2, 4)
    arguments: dict[str, Any] = {"q": rows, "k": rows, "v": rows, "q_offsets": torch.tensor([0, 5])} | change
    with pytest.raises(exception, match=message):
        attention(**arguments)
