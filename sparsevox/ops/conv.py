"""Convolution and its transpose on features, along a kernel map (rulebook).

N fine voxels, M coarse voxels, C input and D output channels, G groups, K taps (kernel offsets).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsevox import checks, kernels
from sparsevox.ops import _library
from sparsevox.ops._kernel_map import KernelMap
from sparsevox.plans import PairLists
from sparsevox.reference import conv as reference

Gradients = tuple[Tensor | list[None] | None, ...]
_ROUTE = "Tensor[] plan, Tensor[] adjoint, Tensor[] pairs, bool symmetric, int groups"


class _Route(NamedTuple):
    """One direction of a kernel map as the registered ops take it: the named plans as lists of tensors.

    plan:    `RowPlan` or `Bags`.
    adjoint: Plan of the other direction; empty if no gradient needs it, or the map is symmetric.
    pairs:   `PairLists`; empty if no gradient needs them.
    """

    plan: Sequence[Tensor]
    adjoint: Sequence[Tensor]
    pairs: Sequence[Tensor]
    symmetric: bool
    groups: int

    def reverse(self) -> "_Route":
        """The other direction. A symmetric map is its own, with the taps in reverse order."""
        if self.symmetric:
            return self
        pairs: Sequence[Tensor] = ()
        if self.pairs:
            sources, targets, starts = PairLists(*self.pairs)
            pairs = PairLists(targets, sources, starts)
        return _Route(self.adjoint, self.plan, pairs, False, self.groups)


def _keep(ctx: Any, a: Tensor, b: Tensor, route: _Route) -> None:
    ctx.symmetric, ctx.groups = route.symmetric, route.groups
    ctx.lengths = len(route.plan), len(route.adjoint), len(route.pairs)
    ctx.save_for_backward(a, b, *route.plan, *route.adjoint, *route.pairs)


def _kept(ctx: Any) -> tuple[Tensor, Tensor, _Route]:
    a, b, *rest = ctx.saved_tensors
    adjoint = ctx.lengths[0]
    pairs = adjoint + ctx.lengths[1]
    return a, b, _Route(rest[:adjoint], rest[adjoint:pairs], rest[pairs:], ctx.symmetric, ctx.groups)


def _no_gradients(ctx: Any) -> Gradients:
    """Return the gradients of a route: none, but in lists like those of the route."""
    return [None] * ctx.lengths[0], [None] * ctx.lengths[1], [None] * ctx.lengths[2], None, None


def _conv_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    feats, weight, bias, *route = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    _keep(ctx, feats, weight, _Route(*route))


def _conv_backward(ctx: Any, grad: Tensor) -> Gradients:
    feats, weight, route = _kept(ctx)
    d_feats = d_weight = d_bias = None
    if ctx.needs_input_grad[0]:
        d_feats = _conv(grad, _adjoint_weight(weight, ctx.groups, ctx.symmetric), None, *route.reverse())
    if ctx.needs_input_grad[1]:
        d_weight = _conv_weight(feats, grad, *route, weight.dtype)
    if ctx.needs_input_grad[2]:
        exact = None if grad.dtype.itemsize >= 4 else torch.float32
        d_bias = grad.sum(0, dtype=exact).to(ctx.bias_dtype)
    return d_feats, d_weight, d_bias, *_no_gradients(ctx)


def _weight_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    feats, grads, *route, _ = inputs
    _keep(ctx, feats, grads, _Route(*route))


def _weight_backward(ctx: Any, grad: Tensor) -> Gradients:
    feats, grads, route = _kept(ctx)
    d_feats = d_grads = None
    if ctx.needs_input_grad[0]:
        d_feats = _conv(grads, _adjoint_weight(grad, ctx.groups, ctx.symmetric), None, *route.reverse())
    if ctx.needs_input_grad[1]:
        d_grads = _conv(feats, grad, None, *route)
    return d_feats, d_grads, *_no_gradients(ctx), None


def _adjoint_weight(weight: Tensor, groups: int, symmetric: bool) -> Tensor:
    """The weight [K, D / G, C] of the other direction, from a weight [K, C / G, D]."""
    if symmetric:
        weight = weight.flip(0)
    if groups == 1:
        return weight.transpose(1, 2)
    return weight.unflatten(2, (groups, -1)).permute(0, 3, 2, 1).flatten(2)


_conv = _library.register(
    f"conv(Tensor feats, Tensor weight, Tensor? bias, {_ROUTE}) -> Tensor",
    reference=reference.conv,
    kernels=lambda: kernels.conv.conv,
    fake=lambda feats, weight, bias, plan, *rest: feats.new_empty((plan[0].shape[1], weight.shape[2])),
    setup_context=_conv_context,
    backward=_conv_backward,
)
_conv_weight = _library.register(
    f"conv_weight(Tensor feats, Tensor grads, {_ROUTE}, ScalarType dtype) -> Tensor",
    reference=reference.conv_weight,
    kernels=lambda: kernels.conv.conv_weight,
    fake=lambda feats, grads, plan, adjoint, pairs, symmetric, groups, dtype: feats.new_empty(
        (plan[0].shape[0], feats.shape[1] // groups, grads.shape[1]), dtype=dtype
    ),
    setup_context=_weight_context,
    backward=_weight_backward,
)


class Tunable(NamedTuple):
    """Description of an op for `sv.tune`."""

    name: str
    groups: int  # position of that argument


TUNABLE = {_library.overload(name): Tunable(name, groups) for name, groups in (("conv", 7), ("conv_weight", 6))}


def conv3d(feats: Tensor, weight: Tensor, bias: Tensor | None, kernel_map: KernelMap, *, groups: int = 1) -> Tensor:
    """Sparse convolution: `torch.nn.functional.conv3d` (cross-correlation), evaluated at the voxels that exist.

    `out[m] = bias + sum over taps t of weight[:, :, t] @ feats[fine voxel of m at t]`; taps without a voxel add
    nothing. Along a map within one grid this is the submanifold convolution of Graham et al. 2018, arXiv:1711.10275. On
    a GPU it runs as an implicit GEMM: rows are gathered and multiplied tile by tile, and the gathered matrix is never
    stored.

    Sums are float32, or float64 for float64 features. Under `torch.autocast` features are cast first. The weight may
    have another floating-point dtype; it is cast to that of the features.

    Args:
        feats: Features [N, C] of the fine grid.
        weight: Weight [D, C / groups, k0, k1, k2].
        bias: Bias [D] or None.
        kernel_map: Kernel map from `Grid.kernel_map`.
        groups: Number of groups; must divide C and D.

    Returns:
        Features [M, D] of the coarse grid, in the dtype of `feats`.

    Raises:
        TypeError: If a tensor is not floating-point.
        ValueError: If shapes, devices or groups do not fit.
    """
    _check(feats, weight, bias, kernel_map, groups, transposed=False)
    return convolve(feats, weight, bias, kernel_map, groups, transposed=False)


def conv_transpose3d(
    feats: Tensor, weight: Tensor, bias: Tensor | None, kernel_map: KernelMap, *, groups: int = 1
) -> Tensor:
    """Transposed convolution: the adjoint of `conv3d`, from coarse to fine voxels.

    It is `torch.nn.functional.conv_transpose3d`, evaluated at the fine voxels that exist.

    Args:
        feats: Features [M, C] of the coarse grid.
        weight: Weight [C, D / groups, k0, k1, k2].
        bias: Bias [D] or None.
        kernel_map: Kernel map of the convolution whose adjoint this is.
        groups: Number of groups; must divide C and D.

    Returns:
        Features [N, D] of the fine grid, in the dtype of `feats`.

    Raises:
        TypeError: If a tensor is not floating-point.
        ValueError: If shapes, devices or groups do not fit.
    """
    _check(feats, weight, bias, kernel_map, groups, transposed=True)
    return convolve(feats, weight, bias, kernel_map, groups, transposed=True)


def convolve(
    feats: Tensor, weight: Tensor, bias: Tensor | None, kernel_map: KernelMap, groups: int, *, transposed: bool
) -> Tensor:
    """Compute `conv3d`, or `conv_transpose3d` if `transposed`, of arguments that are known to be valid.

    Plans that only gradients need are made only for them.
    """
    symmetric = kernel_map.symmetric
    if not transposed:
        matrices = weight.flatten(2).permute(2, 1, 0)  # [D, C / G, k0, k1, k2] -> [K, C / G, D]
    else:  # [C, D / G, k0, k1, k2] -> [K, C / G, D]
        matrices = weight.flatten(2).unflatten(0, (groups, -1)).permute(3, 1, 0, 2).flatten(2)
        if symmetric:  # the way up is the way down with the taps in reverse order
            matrices = matrices.flip(0)
    up = transposed and not symmetric
    here = kernel_map.up if up else kernel_map.down
    pairs: Sequence[Tensor] = ()
    adjoint: Sequence[Tensor] = ()
    if torch.is_grad_enabled():
        if weight.requires_grad:
            pairs = here.pairs
        if feats.requires_grad and not symmetric:
            adjoint = (kernel_map.down if up else kernel_map.up).plan
    feats = _library.autocast(feats)
    return _conv(feats, matrices, bias, list(here.plan), list(adjoint), list(pairs), symmetric, groups)


def _check(
    feats: object,
    weight: object,
    bias: object,
    kernel_map: KernelMap,
    groups: object,
    *,
    transposed: bool,
) -> None:
    """Check all arguments. The first axis of the weight holds output channels; if transposed, input channels."""
    rows = kernel_map.num_coarse if transposed else kernel_map.num_fine
    x = checks.rows("feats", feats, rows, "voxel of the input grid", kernel_map.device)
    w = checks.floats("weight", checks.tensor("weight", weight))
    size = kernel_map.geometry.kernel_size
    if w.ndim != 5 or tuple(w.shape[2:]) != size:
        raise ValueError(f"weight must have shape [channels, channels / groups, {size}], got {list(w.shape)}")
    count = checks.integer("groups", groups)
    if count < 1 or w.shape[0] % count:
        raise ValueError(f"groups must be at least 1 and divide weight.shape[0] = {w.shape[0]}, got {count}")
    outputs, inputs = w.shape[0], w.shape[1] * count
    if transposed:
        outputs, inputs = inputs, outputs
    if x.shape[1] != inputs:
        raise ValueError(f"feats must have {inputs} channels for weight {list(w.shape)}, got {list(x.shape)}")
    checks.same_device("weight", w, "the grid", x.device)
    if bias is not None:
        b = checks.floats("bias", checks.shape("bias", bias, outputs))
        checks.same_device("bias", b, "the grid", x.device)
