"""Convolution and its transpose on features, along a kernel map.

N fine voxels, M coarse voxels, C input and D output channels, G groups, K taps.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sparsevox import checks
from sparsevox.geometry import Geometry
from sparsevox.ops import _library


class Direction(Protocol):
    """One direction of a kernel map: which input row each output row meets at each tap."""

    @property
    def gather(self) -> list[Tensor]:
        """The table int32 [K, output rows] and what the backend wants beside it."""

    @property
    def pairs(self) -> list[Tensor]:
        """Input rows, output rows and starts, as `ops.plans.pair_lists` has them."""


class HasDirections(Protocol):
    """What convolutions need of a `KernelMap`."""

    @property
    def geometry(self) -> Geometry:
        """Kernel size, stride, dilation and padding."""

    @property
    def symmetric(self) -> bool:
        """Whether the way up is the way down with the taps in reverse."""

    @property
    def num_fine(self) -> int:
        """N."""

    @property
    def num_coarse(self) -> int:
        """M."""

    @property
    def device(self) -> torch.device:
        """Where the map lies."""

    @property
    def down(self) -> Direction:
        """From fine to coarse voxels."""

    @property
    def up(self) -> Direction:
        """From coarse to fine voxels."""


Gradients = tuple[Tensor | list[None] | None, ...]
_MAP = "Tensor[] gather, Tensor[] adjoint, Tensor[] pairs, bool symmetric, int groups"


def _keep(ctx: Any, operands: tuple[Tensor, Tensor], the_map: tuple[Any, ...]) -> None:
    gather, adjoint, pairs, ctx.symmetric, ctx.groups = the_map
    ctx.lengths = len(gather), len(adjoint), len(pairs)
    ctx.save_for_backward(*operands, *gather, *adjoint, *pairs)


def _kept(ctx: Any) -> tuple[Tensor, Tensor, tuple[Any, ...], tuple[Any, ...]]:
    """The operands, the map and the map of the other direction."""
    a, b, *rest = ctx.saved_tensors
    middle, last = ctx.lengths[0], ctx.lengths[0] + ctx.lengths[1]
    gather, adjoint, pairs = rest[:middle], rest[middle:last], rest[last:]
    here = (gather, adjoint, pairs, ctx.symmetric, ctx.groups)
    if ctx.symmetric:
        return a, b, here, here
    swapped = [pairs[1], pairs[0], pairs[2]] if pairs else []
    return a, b, here, (adjoint, gather, swapped, False, ctx.groups)


def _no_gradients(ctx: Any) -> Gradients:
    """Of the map, whose lists have to come back as lists."""
    return (*([None] * length for length in ctx.lengths), None, None)


def _conv_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    feats, weight, bias, *the_map = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    _keep(ctx, (feats, weight), tuple(the_map))


def _conv_backward(ctx: Any, grad: Tensor) -> Gradients:
    feats, weight, here, back = _kept(ctx)
    d_feats = d_weight = d_bias = None
    if ctx.needs_input_grad[0]:
        d_feats = _conv(grad, _adjoint_weight(weight, ctx.groups, ctx.symmetric), None, *back)
    if ctx.needs_input_grad[1]:
        d_weight = _conv_weight(feats, grad, *here, weight.dtype)
    if ctx.needs_input_grad[2]:
        d_bias = grad.sum(0, dtype=torch.promote_types(grad.dtype, torch.float32)).to(ctx.bias_dtype)
    return d_feats, d_weight, d_bias, *_no_gradients(ctx)


def _weight_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _keep(ctx, inputs[:2], inputs[2:7])


def _weight_backward(ctx: Any, grad: Tensor) -> Gradients:
    feats, grads, here, back = _kept(ctx)
    d_feats = d_grads = None
    if ctx.needs_input_grad[0]:
        d_feats = _conv(grads, _adjoint_weight(grad, ctx.groups, ctx.symmetric), None, *back)
    if ctx.needs_input_grad[1]:
        d_grads = _conv(feats, grad, None, *here)
    return d_feats, d_grads, *_no_gradients(ctx), None


def _adjoint_weight(weight: Tensor, groups: int, symmetric: bool) -> Tensor:
    """The weight [K, D / G, C] of the other direction, of a weight [K, C / G, D]."""
    turned = weight.unflatten(2, (groups, -1)).permute(0, 3, 2, 1).flatten(2)
    return turned.flip(0) if symmetric else turned.contiguous()


_conv = _library.register(
    f"conv(Tensor feats, Tensor weight, Tensor? bias, {_MAP}) -> Tensor",
    stem="conv",
    fake=lambda feats, weight, bias, gather, *rest: feats.new_empty((gather[0].shape[1], weight.shape[2])),
    setup_context=_conv_context,
    backward=_conv_backward,
)
_conv_weight = _library.register(
    f"conv_weight(Tensor feats, Tensor grads, {_MAP}, ScalarType dtype) -> Tensor",
    stem="conv",
    fake=lambda feats, grads, gather, adjoint, pairs, symmetric, groups, dtype: feats.new_empty(
        (gather[0].shape[0], feats.shape[1] // groups, grads.shape[1]), dtype=dtype
    ),
    setup_context=_weight_context,
    backward=_weight_backward,
)


class Tunable(NamedTuple):
    """What `sv.tune` has to know of an op."""

    name: str
    groups: int  # which argument holds them


TUNABLE = {_conv: Tunable("conv", 7), _conv_weight: Tunable("conv_weight", 6)}


def conv3d(feats: Tensor, weight: Tensor, bias: Tensor | None, kernel_map: HasDirections, *, groups: int = 1) -> Tensor:
    """Cross-correlation of the features of fine voxels, exactly `torch.nn.functional.conv3d` on the voxels that exist.

    `out[m] = bias + sum over taps t of weight[:, :, t] @ feats[fine voxel of m at t]`; taps without a voxel add
    nothing. Sums are float32 (float64 for float64). Under `torch.autocast` features are cast first; the weight may have
    another floating-point dtype than the features, and is cast to theirs.

    Args:
        feats: [N, C], rows of the fine grid.
        weight: [D, C / groups, k0, k1, k2].
        bias: [D] or None.
        kernel_map: From `Grid.kernel_map`.
        groups: Divides C and D.

    Returns:
        [M, D], rows of the coarse grid, in the dtype of the features.

    Raises:
        TypeError: If a tensor is not floating-point.
        ValueError: If shapes, devices or groups do not fit.
    """
    _check(feats, weight, bias, kernel_map, groups, rows=kernel_map.num_fine, channels=(1, 0))
    feats, k = _library.autocast(feats), kernel_map
    matrices = weight.flatten(2).permute(2, 1, 0).contiguous()
    return _run(feats, matrices, bias, k, groups, up=False)


def conv_transpose3d(
    feats: Tensor, weight: Tensor, bias: Tensor | None, kernel_map: HasDirections, *, groups: int = 1
) -> Tensor:
    """The adjoint of `conv3d`, from coarse to fine voxels, as `torch.nn.functional.conv_transpose3d`.

    Args:
        feats: [M, C], rows of the coarse grid.
        weight: [C, D / groups, k0, k1, k2].
        bias: [D] or None.
        kernel_map: The map of the convolution that it is the adjoint of.
        groups: Divides C and D.

    Returns:
        [N, D], rows of the fine grid, in the dtype of the features.

    Raises:
        TypeError: If a tensor is not floating-point.
        ValueError: If shapes, devices or groups do not fit.
    """
    _check(feats, weight, bias, kernel_map, groups, rows=kernel_map.num_coarse, channels=(0, 1))
    feats, k = _library.autocast(feats), kernel_map
    # [C, D / G, k0, k1, k2] -> [K, C / G, D]
    matrices = weight.flatten(2).unflatten(0, (groups, -1)).permute(3, 1, 0, 2).flatten(2)
    if k.symmetric:
        return _run(feats, matrices.flip(0), bias, k, groups, up=False)
    return _run(feats, matrices.contiguous(), bias, k, groups, up=True)


def _run(
    feats: Tensor,
    matrices: Tensor,
    bias: Tensor | None,
    kernel_map: HasDirections,
    groups: int,
    *,
    up: bool,
) -> Tensor:
    """Along one direction of the map. What only gradients need is made only for them."""
    training, symmetric = torch.is_grad_enabled(), kernel_map.symmetric
    here = kernel_map.up if up else kernel_map.down
    pairs = here.pairs if training and matrices.requires_grad else []
    adjoint: list[Tensor] = []
    if training and feats.requires_grad and not symmetric:
        adjoint = (kernel_map.down if up else kernel_map.up).gather
    result: Tensor = _conv(feats, matrices, bias, here.gather, adjoint, pairs, symmetric, groups)
    return result


def _check(
    feats: object,
    weight: object,
    bias: object,
    kernel_map: HasDirections,
    groups: object,
    *,
    rows: int,
    channels: tuple[int, int],
) -> None:
    """`channels`: the axes of the weight that hold input and output channels; the second is divided by groups."""
    x = checks.floats("feats", checks.shape("feats", feats, "N", "C"))
    w = checks.floats("weight", checks.tensor("weight", weight))
    size = kernel_map.geometry.kernel_size
    if w.ndim != 5 or tuple(w.shape[2:]) != size:
        raise ValueError(f"weight must have shape [channels, channels / groups, {size}], got {list(w.shape)}")
    count = checks.integer("groups", groups)
    if count < 1 or w.shape[0] % count:
        raise ValueError(f"groups must be at least 1 and divide weight.shape[0] = {w.shape[0]}, got {count}")
    wide = [w.shape[0], w.shape[1] * count]
    inputs, outputs = (wide[0], wide[1]) if channels == (0, 1) else (wide[1], wide[0])
    if x.shape[1] != inputs:
        raise ValueError(f"feats must have {inputs} channels for weight {list(w.shape)}, got {list(x.shape)}")
    if x.shape[0] != rows:
        raise ValueError(f"feats must have {rows} rows, one a voxel of the input grid, got {list(x.shape)}")
    for name, value in (("feats", x), ("weight", w), ("bias", bias)):
        if value is not None:
            checks.same_device(name, checks.floats(name, checks.tensor(name, value)), "the grid", kernel_map.device)
    if bias is not None:
        checks.shape("bias", bias, outputs)
