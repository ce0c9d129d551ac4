"""Attention within the items of a ragged batch (variable sequence lengths).

N query rows, M key rows, B items, H heads, D channels of queries and keys, E of values.
"""

import math
from typing import Any

import torch
from torch import Tensor

from sparsevox import checks
from sparsevox.ops import _library
from sparsevox.reference import attention as reference

_ARGUMENTS = "Tensor q, Tensor k, Tensor v, Tensor q_offsets, Tensor k_offsets, float scale"


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_ragged_attention_backward(grad, *ctx.saved_tensors, ctx.scale), None, None, None


# For compiled graphs, which cannot see the lengths of items. Outside of them PyTorch differentiates its own attention.
_ragged_attention = _library.register(
    f"ragged_attention({_ARGUMENTS}) -> Tensor",
    reference=reference.ragged_attention,
    kernels=None,  # PyTorch's attention is fused on every device
    fake=lambda q, k, v, *rest: q.new_empty((*q.shape[:2], v.shape[2])),
    setup_context=_context,
    backward=_backward,
)
_ragged_attention_backward = _library.register(
    f"ragged_attention_backward(Tensor grad, {_ARGUMENTS}) -> (Tensor d_q, Tensor d_k, Tensor d_v)",
    reference=reference.ragged_attention_backward,
    kernels=None,  # as above
    fake=lambda grad, q, k, v, *rest: tuple(x.new_empty(x.shape) for x in (q, k, v)),
)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`, item by item: `softmax(scale * q @ k.T) @ v`.

    Queries without keys, and rows outside of all items, get 0, and so do their gradients. The lengths of items are
    copied to the host. Where PyTorch has a fused kernel for the dtype, memory is linear in the number of rows, not in
    the number of (query, key) pairs. There is no second derivative. Under `torch.autocast`, q, k and v are cast first.

    Args:
        q: Queries [N, H, D].
        k: Keys [M, H, D].
        v: Values [M, H, E].
        q_offsets: First query row of each item, then the end: ascending integers [B + 1] between 0 and N.
        k_offsets: First key row of each item, then the end, likewise. By default `q_offsets`, which requires M = N.
        scale: Factor of the scores, by default 1 / sqrt(D).

    Returns:
        Rows [N, H, E] in the dtype of the queries.

    Raises:
        TypeError: If q, k or v is not floating-point, their dtypes differ, or offsets are not integers.
        ValueError: If shapes or devices do not fit, or offsets do not ascend between 0 and the number of rows.
    """
    q, k, v = _check_rows(q, k, v)
    q_edges = _check_offsets("q_offsets", q_offsets, q.device)
    k_edges = q_edges if k_offsets is None else _check_offsets("k_offsets", k_offsets, q.device)
    if k_offsets is None and k.shape[0] != q.shape[0]:
        raise ValueError(f"k must have {q.shape[0]} rows, as q has, unless k_offsets are given; got {list(k.shape)}")
    if k_edges.shape != q_edges.shape:
        raise ValueError(f"k_offsets must have shape {list(q_edges.shape)}, got {list(k_edges.shape)}")
    factor = 1 / math.sqrt(max(q.shape[2], 1)) if scale is None else checks.float_triple("scale", scale)[0]
    run = _ragged_attention if torch.compiler.is_compiling() else reference.attend
    return run(q, k, v, q_edges, k_edges, factor)


def _check_rows(q: object, k: object, v: object) -> tuple[Tensor, Tensor, Tensor]:
    queries = checks.floats("q", checks.shape("q", q, "N", "H", "D"))
    keys = checks.floats("k", checks.shape("k", k, "M", queries.shape[1], queries.shape[2]))
    values = checks.floats("v", checks.shape("v", v, keys.shape[0], queries.shape[1], "E"))
    for name, value in (("k", keys), ("v", values)):
        checks.same_device(name, value, "q", queries.device)
    cast = [_library.autocast(x) for x in (queries, keys, values)]
    for name, value in zip("kv", cast[1:], strict=True):
        if value.dtype != cast[0].dtype:
            raise TypeError(f"{name} must have the dtype of q, {cast[0].dtype}, got {value.dtype}")
    return cast[0], cast[1], cast[2]


def _check_offsets(name: str, value: object, device: torch.device) -> Tensor:
    offsets = checks.integers(name, checks.shape(name, value, "B + 1"))
    checks.same_device(name, offsets, "q", device)
    if offsets.shape[0] == 0:
        raise ValueError(f"{name} must have shape [B + 1], got [0]")
    return offsets
