"""Registration of the ops with PyTorch: the only file that touches `torch.library`.

Tensors on the CPU go to the function in `reference/`, tensors on a GPU (NVIDIA or AMD) to the one in `kernels/`, unless
the environment variable SPARSEVOX_BACKEND says `reference` or `triton`. With TRITON_INTERPRET=1 the Triton kernels run
on CPU tensors too.

A call of an op goes one of two ways. In eager mode it goes *directly* to the function of the backend; if a gradient is
needed, through a `torch.autograd.Function` around it. Whenever PyTorch has to see the op itself, the call goes through
the *dispatcher*, which costs the host some hundred microseconds per training step of a layer: under `torch.compile` and
`torch.export`, in modes such as `FakeTensorMode`, under the transforms of `torch.func`, with subclasses of tensors and
on other devices. `_is_eager` decides. Both ways run the same function and the same formula for gradients.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.profiler import record_function

Function = Callable[..., Any]

# Types of arguments that mean nothing to the dispatcher. Subclasses of tensors do: those are distributed, fake, traced.
PLAIN = frozenset({Tensor, torch.nn.Parameter, int, float, bool, str, type(None), torch.dtype})
NAMESPACE = "sparsevox"
BRICKS = "(Tensor keys, Tensor masks, Tensor starts, Tensor offsets, Tensor rows)"

_library = torch.library.Library(NAMESPACE, "DEF")


def register(
    schema: str,
    *,
    reference: Function,
    kernels: Callable[[], Function] | None,
    fake: Function,
    setup_context: Callable[..., None] | None = None,
    backward: Function | None = None,
) -> Function:
    """Define an op, and return a function that calls it directly or through the dispatcher.

    Args:
        schema: "name(arguments) -> results" in the language of `torch.library`.
        reference: Computes the op in plain PyTorch; takes the arguments of the schema in their order, as do the others.
        kernels: Returns the function that computes it in Triton: a lambda, so that Triton is imported only when a
            kernel runs. None if every device uses the reference.
        fake: Returns empty results of the right shapes and dtypes, for tracing.
        setup_context: `(ctx, inputs, output)`, saves the tensors that `backward` needs.
        backward: `(ctx, *gradients)` -> one gradient per argument. If it is made of differentiable ops, it can be
            differentiated again. Without it the results have no gradients.
    """
    name = schema.split("(")[0]
    _library.define(schema)
    run = partial(_run, reference, kernels)
    for key in ("CPU", "CUDA"):
        _library.impl(name, run, key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    if backward is not None:
        torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_library)
    op, title = overload(name), f"{NAMESPACE}::{name}"
    differentiable = run if backward is None else _differentiable(title, run, setup_context, backward)

    def call(*args: Any) -> Any:
        """Call the op directly, or through the dispatcher."""
        if not _is_eager(args):
            return op(*args)
        function = differentiable if torch.is_grad_enabled() and _requires_grad(args) else run
        if torch._C._autograd._profiler_enabled():
            with record_function(title):
                return function(*args)
        return function(*args)

    call.__name__ = title
    return call


def overload(name: str) -> Function:
    """Return a registered op as the dispatcher and its modes see it."""
    op: Function = getattr(getattr(torch.ops, NAMESPACE), name).default
    return op


def _differentiable(
    title: str, run: Function, setup_context: Callable[..., None] | None, backward: Function
) -> Function:
    """Make a `torch.autograd.Function` of the parts of a registered op, and return the function that applies it."""

    def forward(ctx: Any, *args: Any) -> Any:
        results = run(*args)
        if setup_context is not None:
            setup_context(ctx, args, results)
        return results

    def gradients(ctx: Any, *grads: Any) -> Any:
        results = backward(ctx, *grads)
        # A list of tensors, with a list of gradients for the dispatcher, is one argument here. It never has a gradient.
        return tuple(None if isinstance(result, list) else result for result in results)

    methods = {"forward": staticmethod(forward), "backward": staticmethod(gradients)}
    function: Any = type(title, (torch.autograd.Function,), methods)
    apply: Function = function.apply
    return apply


def _is_eager(args: tuple[Any, ...]) -> bool:
    """Whether the dispatcher would only pick a backend and record gradients. Takes about a microsecond."""
    if torch.compiler.is_dynamo_compiling():
        return False
    if (
        torch._C._len_torch_dispatch_stack()  # modes such as FakeTensorMode, and the tracing of graphs
        or torch._C._len_torch_function_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
    ):
        return False
    if not (args[0].is_cpu or args[0].is_cuda):
        return False
    for arg in args:
        kind = type(arg)
        if kind is Tensor or kind is torch.nn.Parameter:
            if arg.is_neg():  # a lazy sign, which the dispatcher would resolve
                return False
        elif kind not in PLAIN and not (isinstance(arg, list | tuple) and PLAIN.issuperset(map(type, arg))):
            return False
    return True


def _requires_grad(args: tuple[Any, ...]) -> bool:
    """Whether an argument requires a gradient. Lists hold maps, which do not."""
    return any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)


def _run(reference: Function, kernels: Callable[[], Function] | None, *args: Any) -> Any:
    function = reference
    if kernels is not None and uses_kernels(args[0]):
        try:
            function = kernels()
        except ModuleNotFoundError as error:
            if error.name != "triton":
                raise
            raise ImportError("tensors on a GPU need Triton: install it, or set SPARSEVOX_BACKEND=reference") from error
    results = function(*args)
    return tuple(results) if isinstance(results, tuple) else results


def uses_kernels(tensor: Tensor) -> bool:
    """Whether ops on this tensor run Triton kernels, which need other plans than the reference."""
    return _backend("reference" if tensor.is_cpu else "triton") == "triton"


def lasting() -> AbstractContextManager[Any]:
    """Context for making maps and grids that outlive the call: inference tensors could not be used in training."""
    return nullcontext() if torch.compiler.is_compiling() else torch.inference_mode(False)


def autocast(feats: Tensor) -> Tensor:
    """Features in the dtype that `torch.autocast` asks matrix products to run in, float64 excepted."""
    device_type = feats.device.type
    if not torch.is_autocast_enabled(device_type) or feats.dtype == torch.float64:
        return feats
    return feats.to(torch.get_autocast_dtype(device_type))


def _backend(default: str) -> str:
    backend = os.environ.get("SPARSEVOX_BACKEND") or default
    if backend not in ("reference", "triton"):
        raise ValueError(f"SPARSEVOX_BACKEND must be 'reference' or 'triton', got {backend!r}")
    if backend == "triton" and default == "reference" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("SPARSEVOX_BACKEND=triton needs TRITON_INTERPRET=1 for tensors on the CPU")
    return backend


def fake_bricks(like: Tensor, batch_size: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Make the bricks of a grid that is not built: sizes that depend on the data become symbols."""
    bricks, voxels = dynamic_size(), dynamic_size()
    boundaries = dynamic_size() if batch_size is None else batch_size + 1
    return (
        like.new_empty(bricks, dtype=torch.int64),
        like.new_empty(bricks, dtype=torch.int64),
        like.new_empty(bricks, dtype=torch.int32),
        like.new_empty(boundaries, dtype=torch.int64),
        like.new_empty((voxels, 0), dtype=torch.bool),
    )


def dynamic_size() -> Any:
    """Make a size that depends on the data, inside a fake."""
    return torch.library.get_ctx().new_dynamic_size()
