"""Registration of the ops with PyTorch: the only file that touches `torch.library`.

Tensors on the CPU go to the function in `reference/`, tensors on a GPU (NVIDIA or AMD) to the one in `kernels/`, unless
the environment variable SPARSEVOX_BACKEND says `reference` or `triton`. With TRITON_INTERPRET=1 the Triton kernels run
on CPU tensors too.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]

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
    """Define an op and return it.

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
    for key, default in (("CPU", "reference"), ("CUDA", "triton")):
        _library.impl(name, partial(_run, default, reference, kernels), key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    if backward is not None:
        torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_library)
    op: Function = getattr(getattr(torch.ops, NAMESPACE), name).default
    return op


def _run(default: str, reference: Function, kernels: Callable[[], Function] | None, *args: Any) -> Any:
    function = reference
    if kernels is not None and _backend(default) == "triton":
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
    return _backend("reference" if tensor.device.type == "cpu" else "triton") == "triton"


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
