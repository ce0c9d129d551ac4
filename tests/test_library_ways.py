"""The two ways of a call of an op: directly to its backend in eager mode, and through the dispatcher."""

import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from sparsevox.ops import _library
from tests.test_library import GRIDS, NAMES, PREFIX, Args, as_tuple, cases, op, some_grid


def direct(name: str) -> Callable[..., Any]:
    """The function that `register` returned for an op."""
    modules = [import_module(f"sparsevox.ops.{path.stem}") for path in Path(_library.__file__).parent.glob("*.py")]
    named = [f for m in modules for f in vars(m).values() if getattr(f, "__name__", "") == PREFIX + name]
    function: Callable[..., Any] = named[0]
    return function


def way(result: Tensor) -> str:
    """The way that a convolution went, by its gradient."""
    assert result.grad_fn is not None
    return "directly" if result.grad_fn.name() == "sparsevox::convBackward" else "dispatcher"


def derivatives(function: Callable[..., Any], args: Args) -> list[Tensor]:
    """Results of an op, gradients of its arguments, and where there are any, gradients of those."""
    results = as_tuple(function(*args))
    derived = [*results]
    inputs = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
    for _ in range(2):
        outputs = [r for r in results if r.requires_grad]
        if not outputs or not inputs:
            break
        weights = [torch.linspace(-1, 2, o.numel(), dtype=o.dtype).reshape(o.shape) for o in outputs]
        results = tuple(
            torch.autograd.grad(outputs, inputs, weights, create_graph=True, allow_unused=True, materialize_grads=True)
        )
        derived += results
    return derived


@pytest.mark.parametrize("name", NAMES)
def test_both_ways_compute_the_same(name: str) -> None:
    for args in cases(GRIDS["ordinary"])[name]:
        pairs = zip(derivatives(direct(name), args), derivatives(op(name), args), strict=True)
        assert all(a.dtype == b.dtype and torch.equal(a, b) and a.requires_grad == b.requires_grad for a, b in pairs)
        with torch.inference_mode():
            inferred = as_tuple(direct(name)(*args))
        assert all(r.is_inference() for r in inferred)
        assert all(torch.equal(a, b) for a, b in zip(inferred, as_tuple(op(name)(*args)), strict=True))


def test_eager_calls_go_directly() -> None:
    conv, args = direct("conv"), cases(GRIDS["ordinary"])["conv"][0]
    assert way(conv(*args)) == "directly"
    assert way(conv(args[0].detach(), torch.nn.Parameter(args[1]), *args[2:])) == "directly"
    assert way(op("conv")(*args)) == "dispatcher"
    with torch.autocast("cpu"), torch.autograd.graph.save_on_cpu():
        assert way(conv(*args)) == "directly"
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert conv(*args).grad_fn is None
    assert conv(*[a.detach() if isinstance(a, Tensor) else a for a in args]).grad_fn is None


class Seen(TorchDispatchMode):
    """A dispatch mode that records what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


class Noted(TorchFunctionMode):
    """A function mode that records what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


class Sub(Tensor):
    """A subclass that records what it sees."""

    seen: ClassVar[list[Any]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("mode", [Seen, Noted])
def test_modes_see_ops(mode: Callable[[], Any]) -> None:
    for name in NAMES:
        with mode() as watched:
            direct(name)(*cases(GRIDS["ordinary"])[name][0])
        assert op(name) in watched.seen


def test_subclasses_see_ops() -> None:
    conv, (feats, weight, *rest) = direct("conv"), cases(GRIDS["ordinary"])["conv"][0]
    for args in ((feats.detach().as_subclass(Sub), weight), (feats, weight.detach().as_subclass(Sub))):
        Sub.seen.clear()
        conv(*args, *rest)
        assert op("conv") in Sub.seen
    Sub.seen.clear()
    conv(feats, weight, rest[0], [t.as_subclass(Sub) for t in rest[1]], *rest[2:])
    assert op("conv") in Sub.seen


def test_fake_and_meta_tensors_see_ops() -> None:
    conv, args = direct("conv"), cases(GRIDS["ordinary"])["conv"][0]
    mode = FakeTensorMode()
    for convert in (mode.from_tensor, lambda t: t.to("meta")):
        fakes = tree_map_only(Tensor, convert, args)
        result = conv(*fakes)
        assert result.shape == conv(*args).shape
        assert result.device == fakes[0].device
        assert type(result) is type(fakes[0].detach())


def test_tracers_see_ops() -> None:
    _, weight, bias, *route = cases(GRIDS["ordinary"])["conv"][0]
    feats = torch.randn(some_grid().num_voxels, 4, dtype=torch.float64)
    weight, bias = weight.detach(), bias.detach()

    def convolve(x: Tensor) -> Tensor:
        result: Tensor = direct("conv")(x, weight, bias, *route)
        return result

    graph = make_fx(convolve)(feats).graph
    assert op("conv") in [node.target for node in graph.nodes]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(convolve, feats, check_trace=False)
    assert "sparsevox::conv" in str(traced.inlined_graph)
    with pytest.raises(RuntimeError, match="Batching rule not implemented for sparsevox::conv"):
        torch.func.vmap(convolve)(feats[None])


def test_lazy_signs_are_resolved() -> None:
    feats, weight, bias, *route = cases(GRIDS["ordinary"])["conv"][0]
    negative = torch.complex(feats.detach(), feats.detach()).conj().imag
    assert negative.is_neg()
    with torch.no_grad():
        result = direct("conv")(negative, weight, bias, *route)
        assert torch.equal(result, direct("conv")(-feats, weight, bias, *route))


def test_profiles_name_the_ops() -> None:
    feats, *rest = cases(GRIDS["ordinary"])["conv"][0]
    with torch.profiler.profile() as profile:
        direct("conv")(feats, *rest).sum().backward()
    names = [event.name for event in profile.events()]
    assert {"sparsevox::conv", "sparsevox::conv_weight", "sparsevox::convBackward"} <= set(names)
    assert names.count("sparsevox::conv") == 2
