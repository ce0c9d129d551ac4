"""Numerics of convolutions: accuracy, bits that do not change, gradients of gradients, NaN, modes of PyTorch.

The oracle sums over pairs, found in dictionaries of tuples, in float64.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sparsevox import Grid, KernelMap, ops
from sparsevox.testing import Voxel, as_coords, random_batch

HALVES = (torch.float16, torch.bfloat16)
DTYPES = (*HALVES, torch.float32)

Pairs = list[tuple[Tensor, Tensor]]
Call = Callable[..., Tensor]


class Layer(NamedTuple):
    """A kernel and a stride with the default padding, and the direction."""

    kernel: int
    stride: int
    transposed: bool

    @property
    def call(self) -> Call:
        return ops.conv_transpose3d if self.transposed else ops.conv3d

    def map(self, fine: Grid) -> KernelMap:
        return fine.kernel_map(self.kernel, stride=self.stride)

    def weight(self, inputs: int, outputs: int, groups: int = 1) -> Tensor:
        shape = (inputs, outputs // groups) if self.transposed else (outputs, inputs // groups)
        return torch.randn(*shape, *[self.kernel] * 3) / self.kernel


LAYERS = [Layer(3, 1, False), Layer(3, 1, True), Layer(3, 2, False), Layer(3, 2, True), Layer(2, 2, False)]


def some_grid(count: int = 200) -> Grid:
    case = random_batch(4, 3, count=count, kinds=("clustered", "solid", "linear"))
    return Grid.from_coords(as_coords(case.voxels), batch_size=3)


def rows_of(kernel_map: KernelMap, layer: Layer) -> tuple[int, int]:
    sizes = (kernel_map.num_fine, kernel_map.num_coarse)
    return (sizes[1], sizes[0]) if layer.transposed else sizes


def pairs_of(fine: Grid, layer: Layer) -> Pairs:
    """Input and output rows of each tap, by the rule of coordinates."""
    rows: dict[Voxel, int] = {tuple(v): row for row, v in enumerate(fine.coords.tolist())}
    coarse = (fine if layer.stride == 1 else fine.strided(layer.kernel, layer.stride)).coords.tolist()
    result = []
    for t in torch.cartesian_prod(*[torch.arange(layer.kernel)] * 3).reshape(-1, 3).tolist():
        pad = (layer.kernel - 1) // 2
        met = [(b, *(layer.stride * c + step - pad for c, step in zip(ijk, t, strict=True))) for b, *ijk in coarse]
        found = [(rows[v], row) for row, v in enumerate(met) if v in rows]
        down, up = torch.tensor(found, dtype=torch.int64).reshape(-1, 2).unbind(1)
        result.append((up, down) if layer.transposed else (down, up))
    return result


def oracle(pairs: Pairs, rows: int, layer: Layer, feats: Tensor, weight: Tensor) -> Tensor:
    taps = weight.flatten(2).unbind(2)
    out = feats.new_zeros(rows, weight.shape[1] if layer.transposed else weight.shape[0])
    for (source, target), tap in zip(pairs, taps, strict=True):
        out = out.index_add(0, target, feats[source] @ (tap if layer.transposed else tap.T))
    return out


def largest_error(actual: Tensor | None, expected: Tensor | None) -> float:
    """The error relative to the largest number."""
    assert actual is not None
    assert expected is not None
    expected = expected.detach()
    return float((actual.detach().double() - expected).abs().amax() / expected.abs().amax())


def exactly(values: Tensor, *dtypes: torch.dtype) -> Tensor:
    """The float64 numbers that dtypes can hold, one cast after the other."""
    for dtype in dtypes:
        values = values.to(dtype)
    return values.detach().double().requires_grad_()


class Setting(NamedTuple):
    feats: torch.dtype
    weight: torch.dtype
    autocast: torch.dtype | None = None

    @property
    def compute(self) -> torch.dtype:
        return self.autocast or self.feats


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize(
    "setting",
    [
        *[Setting(dtype, dtype) for dtype in DTYPES],
        *[Setting(dtype, torch.float32) for dtype in HALVES],
        Setting(torch.float32, torch.float16),
        Setting(torch.float32, torch.float64),
        *[Setting(torch.float32, torch.float32, dtype) for dtype in HALVES],
    ],
    ids=lambda s: "-".join(str(part).removeprefix("torch.") for part in s),
)
def test_errors_are_those_of_one_rounding(layer: Layer, setting: Setting) -> None:
    torch.manual_seed(0)
    grid = some_grid()
    kernel_map, pairs = layer.map(grid), pairs_of(grid, layer)
    inputs, outputs = rows_of(kernel_map, layer)
    feats = torch.randn(inputs, 33).to(setting.feats).requires_grad_()
    weight = layer.weight(33, 20).to(setting.weight).requires_grad_()
    bias = torch.randn(20).to(setting.weight).requires_grad_()
    with torch.autocast("cpu", setting.autocast or torch.bfloat16, enabled=setting.autocast is not None):
        out = layer.call(feats, weight, bias, kernel_map)
        bare = layer.call(feats, weight, None, kernel_map)
    assert out.dtype == bare.dtype == setting.compute
    probe = torch.randn(out.shape).to(out.dtype)
    out.backward(probe)

    x, w = exactly(feats, setting.compute), exactly(weight, setting.compute)
    expected = oracle(pairs, outputs, layer, x, w)
    expected.backward(probe.double())
    rounding = torch.finfo(setting.compute).eps / 2
    slack = 2e-6  # sums of up to 27 * 33 products in float32
    assert largest_error(bare, expected) <= rounding + slack
    assert largest_error(out, expected + bias.double()) <= 2 * rounding + slack  # it may be rounded, too
    assert feats.grad is not None
    assert weight.grad is not None
    assert bias.grad is not None
    assert [feats.grad.dtype, weight.grad.dtype, bias.grad.dtype] == [feats.dtype, weight.dtype, bias.dtype]
    assert largest_error(feats.grad, x.grad) <= rounding + slack
    assert largest_error(weight.grad, w.grad) <= torch.finfo(setting.weight).eps / 2 + slack
    assert largest_error(bias.grad, probe.double().sum(0)) <= torch.finfo(setting.weight).eps / 2 + slack


@pytest.mark.parametrize("dtype", [*HALVES, torch.float64], ids=str)
@pytest.mark.parametrize("layer", LAYERS[:4], ids=str)
def test_autocast_casts_the_features(layer: Layer, dtype: torch.dtype) -> None:
    grid = some_grid()
    kernel_map = layer.map(grid)
    feats, weight, bias = torch.randn(rows_of(kernel_map, layer)[0], 4), layer.weight(4, 5), torch.randn(5)
    if dtype == torch.float64:  # stays
        feats = feats.double()
    with torch.autocast("cpu", torch.bfloat16 if dtype == torch.float64 else dtype):
        out = layer.call(feats, weight, bias, kernel_map)
    assert out.dtype == dtype
    assert torch.equal(out, layer.call(feats.to(dtype), weight, bias, kernel_map))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_training_and_inference_give_the_same_bits(layer: Layer, dtype: torch.dtype) -> None:
    grid = some_grid()
    inputs, _ = rows_of(layer.map(grid), layer)
    feats = torch.randn(inputs, 6, dtype=dtype, requires_grad=True)
    weight, bias = layer.weight(6, 4).requires_grad_(), torch.randn(4, requires_grad=True)
    out = layer.call(feats, weight, bias, layer.map(grid))
    with torch.no_grad():
        assert torch.equal(out, layer.call(feats, weight, bias, layer.map(grid)))
    with torch.inference_mode():
        assert torch.equal(out, layer.call(feats, weight, bias, layer.map(grid)))
    assert torch.equal(out, layer.call(feats.detach(), weight.detach(), bias.detach(), layer.map(grid)))


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("inside", ["the grid", "the map"])
def test_maps_made_in_inference_mode_serve_training(layer: Layer, inside: str) -> None:
    grid = some_grid()
    with torch.inference_mode():
        if inside == "the grid":
            grid = some_grid()
        kernel_map = layer.map(grid)
        inputs, _ = rows_of(kernel_map, layer)
        expected = layer.call(torch.ones(inputs, 2), torch.ones_like(layer.weight(2, 2)), None, kernel_map)
    feats, weight = torch.ones(inputs, 2, requires_grad=True), torch.ones_like(layer.weight(2, 2)).requires_grad_()
    out = layer.call(feats, weight, None, kernel_map)
    assert torch.equal(out, expected)
    out.sum().backward()
    assert feats.grad is not None
    assert weight.grad is not None


@pytest.mark.parametrize(("dtype", "big"), [(torch.float16, 2048.0), (torch.bfloat16, 256.0)], ids=str)
def test_the_bias_is_added_before_the_rounding(dtype: torch.dtype, big: float) -> None:
    """`big + 1` is halfway between two numbers of the dtype, and rounds down."""
    feats, weight, kernel_map = torch.tensor([[big, 1.0]]), torch.ones(1, 2, 1, 1, 1), Grid.full(0, 1).kernel_map(1)
    for bias, expected in ((torch.tensor([0.0]), big), (torch.tensor([1.0]), big + 2)):
        for call, taps in ((ops.conv3d, weight), (ops.conv_transpose3d, weight.transpose(0, 1))):
            out = call(feats.to(dtype), taps.to(dtype), bias.to(dtype), kernel_map)
            assert out.tolist() == [[expected]]


def test_gradients_that_half_cannot_hold() -> None:
    """Products of float16 gradients leave its range; the gradient of a float32 weight does not."""
    grid = some_grid()
    feats = torch.full((grid.num_voxels, 4), 200.0, dtype=torch.float16)
    weight = torch.zeros(4, 4, 3, 3, 3, requires_grad=True)
    out = ops.conv3d(feats, weight, None, grid.kernel_map(3))
    out.backward(torch.full_like(out, 6e4))
    assert weight.grad is not None
    counts = torch.tensor([len(source) for source, _ in pairs_of(grid, LAYERS[0])]).view(3, 3, 3)
    largest = torch.tensor(6e4).half().float()
    torch.testing.assert_close(weight.grad, (counts * 200 * largest).expand(4, 4, 3, 3, 3), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_every_run_gives_the_same_bits(layer: Layer, dtype: torch.dtype) -> None:
    feats, weight, probe = torch.randn(9999, 33, dtype=dtype), layer.weight(33, 8), torch.randn(9999, 8, dtype=dtype)

    def run() -> tuple[Tensor, ...]:
        kernel_map = layer.map(some_grid())
        inputs, outputs = rows_of(kernel_map, layer)
        x, w = feats[:inputs].clone().requires_grad_(), weight.clone().requires_grad_()
        out = layer.call(x, w, None, kernel_map)
        return out, *torch.autograd.grad(out, (x, w), probe[:outputs])

    first = run()
    assert all(part.any() for part in first)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))


@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[2]], ids=str)
def test_the_order_of_the_input_does_not_matter(layer: Layer) -> None:
    torch.manual_seed(3)
    coords = some_grid().coords
    values, weight = torch.randn(len(coords), 5), layer.weight(5, 4)

    def run(order: Tensor) -> dict[Voxel, list[float]]:
        grid = Grid.from_coords(coords[order], batch_size=3)
        feats = torch.empty_like(values)
        feats[grid.index(coords[order])] = values[order]
        out = layer.call(feats, weight, None, layer.map(grid))
        target = grid if layer.stride == 1 else grid.strided(layer.kernel, layer.stride)
        return dict(zip(map(tuple, target.coords.tolist()), out.tolist(), strict=True))

    expected = run(torch.arange(len(coords)))
    assert run(torch.randperm(len(coords))) == expected
    assert run(torch.arange(len(coords)).flip(0)) == expected


def tiny_grid() -> Grid:
    places = [(0, 0, 0, 0), (0, 0, 1, -1), (0, 2, 0, 1), (0, 2, 2, 1), (0, -1, 0, 0), (2, 5, 5, 5), (2, 5, 7, 6)]
    return Grid.from_coords(as_coords(places), batch_size=3)


GEOMETRIES: dict[str, Callable[[], KernelMap]] = {
    "submanifold": lambda: tiny_grid().kernel_map((3, 1, 3)),
    "strided": lambda: tiny_grid().kernel_map(2, stride=2),
    "dilated": lambda: tiny_grid().kernel_map((1, 3, 2), dilation=2, padding=(0, 2, 2)),
    "to another grid": lambda: tiny_grid().kernel_map((3, 1, 2), target=tiny_grid().crop(-1, 7).dilate((0, 0, 1))),
}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_gradients_and_their_gradients(name: str, transposed: bool, groups: int) -> None:
    torch.manual_seed(0)
    kernel_map = GEOMETRIES[name]()
    rows = kernel_map.num_coarse if transposed else kernel_map.num_fine
    shape = (2, 4 // groups) if transposed else (4, 2 // groups)
    options: dict[str, Any] = {"dtype": torch.float64, "requires_grad": True}
    feats = torch.randn(rows, 2, **options)
    weight = torch.randn(*shape, *kernel_map.geometry.kernel_size, **options)
    bias = torch.randn(4, **options)

    def run(feats: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return (ops.conv_transpose3d if transposed else ops.conv3d)(feats, weight, bias, kernel_map, groups=groups)

    assert (kernel_map.table >= 0).any()
    assert torch.autograd.gradcheck(run, (feats, weight, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (feats, weight, bias), fast_mode=True)
    for frozen in (feats, weight):
        frozen.requires_grad_(False)
        assert torch.autograd.gradgradcheck(run, (feats, weight, bias), fast_mode=True)
        frozen.requires_grad_()


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)], ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_gradients_that_are_not_wanted_are_not_there(layer: Layer, wanted: tuple[int, ...]) -> None:
    grid = some_grid()
    inputs, outputs = rows_of(layer.map(grid), layer)
    args = [torch.randn(inputs, 4), layer.weight(4, 6), torch.randn(6)]
    probe = torch.randn(outputs, 6)

    def run(names: tuple[int, ...]) -> list[Tensor | None]:
        leaves = [arg.clone().requires_grad_(number in names) for number, arg in enumerate(args)]
        layer.call(*leaves, layer.map(grid)).backward(probe)
        return [leaf.grad for leaf in leaves]

    everything = run((0, 1, 2))
    for number, (part, whole) in enumerate(zip(run(wanted), everything, strict=True)):
        assert (part is not None) == (number in wanted)
        assert part is None or (whole is not None and torch.equal(part, whole))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_checkpoints_give_the_same_gradients(layer: Layer, reentrant: bool) -> None:
    grid = some_grid()
    inputs, _ = rows_of(layer.map(grid), layer)
    values, taps = torch.randn(inputs, 4), layer.weight(4, 6)

    def run(x: Tensor, w: Tensor) -> Tensor:
        return layer.call(x, w, None, layer.map(grid)).sin()

    gradients = []
    for wrapped in (False, True):
        x, w = values.clone().requires_grad_(), taps.clone().requires_grad_()
        out = checkpoint(run, x, w, use_reentrant=reentrant) if wrapped else run(x, w)
        out.sum().backward()
        gradients.append((x.grad, w.grad))
    for a, b in zip(*gradients, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_nan_goes_where_the_taps_lead(layer: Layer) -> None:
    grid = some_grid()
    pairs = pairs_of(grid, layer)
    inputs, outputs = rows_of(layer.map(grid), layer)
    feats = torch.randn(inputs, 3)
    feats[inputs // 2, 1] = float("nan")
    out = layer.call(feats, layer.weight(3, 4), torch.zeros(4), layer.map(grid))
    reached = {int(t) for source, target in pairs for s, t in zip(source, target, strict=True) if s == inputs // 2}
    assert 0 < len(reached) < outputs
    assert out.isnan().any(1).nonzero().flatten().tolist() == sorted(reached)


def test_taps_that_meet_nothing_add_nothing() -> None:
    grid = Grid.from_coords(torch.tensor([[0, 0, 0], [9, 9, 9]]))
    weight = torch.full((1, 1, 3, 3, 3), float("nan"))
    weight[0, 0, 1, 1, 1] = 2
    feats = torch.tensor([[1.0], [5.0]], requires_grad=True)
    for call in (ops.conv3d, ops.conv_transpose3d):
        leaf = weight.clone().requires_grad_()
        out = call(feats, leaf, None, grid.kernel_map(3))
        assert out.tolist() == [[2], [10]]
        gradients = torch.autograd.grad(out.sum(), (feats, leaf))
        assert gradients[0].tolist() == [[2], [2]]
        assert gradients[1].flatten().tolist() == [0] * 13 + [6] + [0] * 13


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_strides_of_the_arguments_do_not_matter_and_they_stay(layer: Layer) -> None:
    grid = some_grid()
    inputs, _ = rows_of(layer.map(grid), layer)
    feats, weight, bias = torch.randn(inputs, 5), layer.weight(5, 4), torch.randn(4)
    expected = layer.call(feats, weight, bias, layer.map(grid))
    strange = (
        feats.T.contiguous().T,
        weight.contiguous(memory_format=torch.channels_last_3d),
        torch.stack([bias, bias], 1)[:, 0],
    )
    before = [t.clone() for t in strange]
    assert torch.equal(layer.call(*strange, layer.map(grid)), expected)
    assert all(torch.equal(a, b) for a, b in zip(strange, before, strict=True))


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_the_transpose_is_the_adjoint(layer: Layer) -> None:
    """<Ax, y> = <x, A'y>, with the same weight and the same map."""
    grid = some_grid()
    kernel_map = layer.map(grid)
    weight = layer.weight(3, 4).double() if not layer.transposed else layer.weight(4, 3).double()
    x, y = torch.randn(kernel_map.num_fine, 3).double(), torch.randn(kernel_map.num_coarse, 4).double()
    there, back = ops.conv3d(x, weight, None, kernel_map), ops.conv_transpose3d(y, weight, None, kernel_map)
    torch.testing.assert_close((there * y).sum(), (x * back).sum(), rtol=1e-12, atol=0)
