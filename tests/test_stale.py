"""Nothing that a layer or a grid keeps between calls is ever stale, or keeps memory alive."""

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrizations, vector_to_parameters

import sparsevox as sv
from sparsevox import Grid, SparseTensor, nn, ops

Layer = nn.Conv3d | nn.ConvTranspose3d


def step(name: str, **options: Any) -> Callable[[Layer], None]:
    """Take a step of an optimizer."""

    def run(layer: Layer) -> None:
        for parameter in layer.parameters():
            parameter.grad = torch.ones_like(parameter)
        getattr(torch.optim, name)(layer.parameters(), lr=0.1, **options).step()

    return run


@torch.no_grad()
def in_place(layer: Layer) -> None:
    layer.weight.mul_(2)
    layer.weight[0] = 3
    layer.weight.flatten()[1:5].zero_()


def by_data(layer: Layer) -> None:
    layer.weight.data.add_(1)  # does not change `weight._version`


def by_new_data(layer: Layer) -> None:
    layer.weight.data = layer.weight.data + 1


def by_detached(layer: Layer) -> None:
    layer.weight.detach().neg_()


def by_numpy(layer: Layer) -> None:
    layer.weight.detach().numpy()[:] += 1


def by_storage(layer: Layer) -> None:
    layer.weight.untyped_storage().copy_(torch.randn_like(layer.weight).untyped_storage())


def by_foreach(layer: Layer) -> None:
    torch._foreach_add_([p.data for p in layer.parameters()], 1.0)


def by_vector(layer: Layer) -> None:
    numbers = sum(p.numel() for p in layer.parameters())
    vector_to_parameters(torch.linspace(-1, 1, numbers), layer.parameters())


def by_new_parameter(layer: Layer) -> None:
    layer.weight = torch.nn.Parameter(torch.randn_like(layer.weight))


def by_other_storage(layer: Layer) -> None:
    """Free the storage and fill it again, as FSDP does."""
    storage, values = layer.weight.untyped_storage(), torch.randn_like(layer.weight)
    size = storage.size()
    storage.resize_(0)
    storage.resize_(size)
    with torch.autograd.grad_mode._unsafe_preserve_version_counter(layer.weight), torch.no_grad():
        layer.weight.copy_(values)


def by_state(layer: Layer, assign: bool = False) -> None:
    layer.load_state_dict({name: torch.randn_like(value) for name, value in layer.state_dict().items()}, assign=assign)


def by_parametrization(layer: Layer) -> None:
    parametrizations.weight_norm(layer)
    layer.parametrizations.weight.original0.data.mul_(2)  # type: ignore[operator, union-attr]


CHANGES: dict[str, Callable[[Layer], Any]] = {
    "SGD": step("SGD"),
    "AdamW": step("AdamW", foreach=True),
    "fused Adam": step("Adam", fused=True),
    "in place": in_place,
    "data": by_data,
    "new data": by_new_data,
    "detached": by_detached,
    "numpy": by_numpy,
    "storage": by_storage,
    "foreach": by_foreach,
    "vector": by_vector,
    "new parameter": by_new_parameter,
    "other storage": by_other_storage,
    "state": by_state,
    "assigned state": lambda layer: by_state(layer, assign=True),
    "reset": lambda layer: layer.reset_parameters(),
    "double": lambda layer: layer.double(),
    "half": lambda layer: layer.half(),
    "parametrization": by_parametrization,
    "frozen": lambda layer: layer.requires_grad_(False),
}
SAME = ("half", "double", "frozen")  # changes that may leave results as they are
CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "training": nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


def scene(size: int = 4) -> SparseTensor:
    grid = Grid.full(0, size).prune(torch.arange(size**3) % 3 > 0)
    return SparseTensor(grid, torch.linspace(-1, 1, 4 * grid.num_voxels).reshape(-1, 4))


def fresh(layer: Layer, x: SparseTensor) -> Tensor:
    """The result of a layer, computed from copies of everything."""
    grid = pickle.loads(pickle.dumps(x.grid))
    function = ops.conv_transpose3d if layer.transposed else ops.conv3d
    bias = None if layer.bias is None else layer.bias.clone()
    kernel_map = grid.kernel_map(layer.geometry.kernel_size)
    return function(x.feats.clone(), layer.weight.clone(), bias, kernel_map, groups=layer.groups)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("context", CONTEXTS)
def test_changed_weights_are_used(change: str, context: str) -> None:
    x = scene()
    for layer in (nn.Conv3d(4, 6, 3), nn.ConvTranspose3d(4, 6, 3, groups=2, bias=False)):
        before = None
        for _ in range(2):
            with CONTEXTS[context]():
                result = layer(x, grid=x.grid).feats
                assert torch.equal(result, fresh(layer, x))
            if before is not None and change not in SAME:
                assert not torch.equal(result, before)
            before = result
            if not hasattr(layer, "parametrizations"):
                CHANGES[change](layer)


def test_copies_of_layers_are_independent() -> None:
    x, layer = scene(), nn.Conv3d(4, 6, 3)
    layer(x)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)]
    for number, other in enumerate(copies):
        assert torch.equal(other(x).feats, layer(x).feats)
        with torch.no_grad():
            other.weight.mul_(number + 2)
        assert torch.equal(other(x).feats, fresh(other, x))
    assert torch.equal(layer(x).feats, fresh(layer, x))
    parameters = {"weight": torch.randn_like(layer.weight), "bias": torch.zeros(6)}
    called = torch.func.functional_call(layer, parameters, (x,)).feats
    assert torch.equal(called, ops.conv3d(x.feats, parameters["weight"], parameters["bias"], x.grid.kernel_map(3)))


def test_gradients_are_those_of_the_current_weight() -> None:
    x, layer = scene(), nn.Conv3d(4, 6, 3)
    feats = x.feats.requires_grad_()
    for _ in range(2):
        ours = torch.autograd.grad(layer(x.replace(feats)).feats.square().sum(), [feats, *layer.parameters()])
        theirs = torch.autograd.grad(fresh(layer, x.replace(feats)).square().sum(), [feats, *layer.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        by_data(layer)


def test_a_weight_changed_before_the_backward_is_noticed() -> None:
    x, layer = scene(), nn.Conv3d(4, 6, 3)
    result = layer(x.replace(x.feats.requires_grad_())).feats.sum()
    with torch.no_grad():
        layer.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.backward()


@pytest.mark.parametrize("stride", [1, 2])
def test_every_grid_has_its_own_map(stride: int) -> None:
    layer = nn.Conv3d(4, 6, 3, stride=stride)
    for size in (2, 3, 4, 3, 2):  # grids take the place of others in memory
        x = scene(size)
        target = x.grid.strided(3, stride) if stride > 1 else x.grid
        again = pickle.loads(pickle.dumps(x.grid))
        expected = ops.conv3d(x.feats, layer.weight, layer.bias, again.kernel_map(3, stride=stride))
        for _ in range(2):
            result = layer(x)
            assert result.grid.same_voxels(target)
            assert torch.equal(result.feats, expected)
        x.grid.clear_cache()
        assert torch.equal(layer(x).feats, expected)


def test_layers_keep_no_grid_alive() -> None:
    layers = nn.Sequential(nn.Conv3d(4, 4, 3), nn.Conv3d(4, 4, 3, stride=2))
    x = scene()
    grid, coarse = weakref.ref(x.grid), weakref.ref(layers(x).grid)
    table = weakref.ref(x.grid.kernel_map(3).table)
    del x
    gc.collect()
    assert grid() is None
    assert coarse() is None
    assert table() is None


def test_parameters_that_do_not_fit_are_refused() -> None:
    x = scene()
    refusals: list[tuple[Callable[[Layer], Any], type[Exception], str]] = [
        (lambda layer: layer.to("meta"), ValueError, "weight must be on the device of the grid, cpu, got meta"),
        (lambda layer: replace(layer, "weight", torch.ones(6, 4, 5, 3, 3)), ValueError, "weight must have shape"),
        (lambda layer: replace(layer, "weight", torch.ones(6, 3, 3, 3, 3)), ValueError, "feats must have 3 channels"),
        (lambda layer: replace(layer, "weight", torch.ones(6, 4, 3, 3, 3).int()), TypeError, "weight must hold float"),
        (lambda layer: replace(layer, "bias", torch.ones(5)), ValueError, "bias must have shape"),
        (lambda layer: replace(layer, "bias", torch.ones(6, device="meta")), ValueError, "bias must be on the device"),
    ]
    for change, error, message in refusals:
        layer = sv.nn.Conv3d(4, 6, 3)
        layer(x)
        change(layer)
        with pytest.raises(error, match=message):
            layer(x)


def replace(layer: Layer, name: str, value: Tensor) -> None:
    setattr(layer, name, torch.nn.Parameter(value, requires_grad=False))
