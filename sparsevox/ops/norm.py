"""Group norm and instance norm, with the statistics of each grid of a batch.

N voxels, B grids, C channels, G groups.
"""

from typing import Any

import torch
from torch import Tensor

from sparsevox import checks, kernels
from sparsevox.ops import _library, _reduce
from sparsevox.ops.bricks import HasBricks
from sparsevox.ops.segment import segment_of_rows
from sparsevox.reference import norm as reference

Gradients = tuple[Tensor | None, ...]


def _fake(
    feats: Tensor, offsets: Tensor, weight: Tensor | None, bias: Tensor | None, num_groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    exact = torch.promote_types(feats.dtype, torch.float32)
    mean, rstd = (feats.new_empty((offsets.shape[0] - 1, num_groups), dtype=exact) for _ in range(2))
    return feats.new_empty(feats.shape), mean, rstd


def _fake_backward(grad: Tensor, feats: Tensor, offsets: Tensor, *rest: Tensor | None) -> tuple[Tensor, ...]:
    exact = torch.promote_types(feats.dtype, torch.float32)
    d_weight, d_bias = (feats.new_empty(feats.shape[1], dtype=exact) for _ in range(2))
    return feats.new_empty(feats.shape), d_weight, d_bias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    feats, offsets, weight, bias, ctx.num_groups, ctx.eps = inputs
    ctx.weight_dtype, ctx.bias_dtype = (None if p is None else p.dtype for p in (weight, bias))
    ctx.save_for_backward(feats, offsets, weight, *output[1:])


def _cast(gradient: Tensor, dtype: torch.dtype | None) -> Tensor | None:
    """Convert the gradient of a parameter to its dtype. None if there is no parameter."""
    return None if dtype is None else gradient if gradient.dtype == dtype else gradient.to(dtype)


def _backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> Gradients:
    """Differentiate the normalized features; mean and rstd are internal and get no gradients."""
    feats, offsets, weight, mean, rstd = ctx.saved_tensors
    if torch.is_grad_enabled():  # this may be differentiated again
        d_feats, d_weight, d_bias = _differentiable(grad, feats, offsets, weight, ctx.num_groups, ctx.eps)
    else:
        d_feats, d_weight, d_bias = _group_norm_backward(grad, feats, offsets, weight, mean, rstd)
    return d_feats, None, _cast(d_weight, ctx.weight_dtype), _cast(d_bias, ctx.bias_dtype), None, None


_group_norm = _library.register(
    "group_norm(Tensor feats, Tensor offsets, Tensor? weight, Tensor? bias, int num_groups, float eps)"
    " -> (Tensor out, Tensor mean, Tensor rstd)",
    reference=reference.group_norm,
    kernels=lambda: kernels.norm.group_norm,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
_group_norm_backward = _library.register(
    "group_norm_backward(Tensor grad, Tensor feats, Tensor offsets, Tensor? weight, Tensor mean, Tensor rstd)"
    " -> (Tensor d_feats, Tensor d_weight, Tensor d_bias)",
    reference=reference.group_norm_backward,
    kernels=lambda: kernels.norm.group_norm_backward,
    fake=_fake_backward,
)


def group_norm(
    feats: Tensor,
    grid: HasBricks,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalize over the channels of a group and all voxels of a grid: `torch.nn.functional.group_norm` grid by grid.

    Statistics are float32, or float64 for float64 features; the variance is computed from centered values. Grids may be
    empty. Differentiable any number of times.

    Args:
        feats: Features [N, C] of the grid.
        grid: Batch of B grids.
        num_groups: Number of groups G; must divide C.
        weight: Factor per channel, [C] of any floating-point dtype, or None.
        bias: Offset per channel, likewise.
        eps: Value added to the variance.

    Returns:
        Features [N, C] in the dtype of `feats`.

    Raises:
        TypeError: If a tensor is not floating-point, `num_groups` is not an int or `eps` is not a number.
        ValueError: If shapes or devices do not fit, the groups do not divide the channels, or `eps` is negative.
    """
    x = _check_feats(feats, grid)
    groups, channels = checks.integer("num_groups", num_groups), x.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(f"num_groups must be at least 1 and divide the {channels} channels of feats, got {groups}")
    return _normalize(x, grid.bricks.offsets, groups, weight, bias, eps)


def instance_norm(
    feats: Tensor, grid: HasBricks, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Normalize each channel over all voxels of a grid: group norm with one channel per group.

    Arguments, result and errors are those of `group_norm`.
    """
    x = _check_feats(feats, grid)
    return _normalize(x, grid.bricks.offsets, max(x.shape[1], 1), weight, bias, eps)


def _check_feats(feats: object, grid: HasBricks) -> Tensor:
    bricks = grid.bricks
    return checks.rows("feats", feats, bricks.rows.shape[0], "voxel of the grid", bricks.offsets.device)


def _normalize(
    feats: Tensor, offsets: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    _check_parameter("weight", weight, feats)
    _check_parameter("bias", bias, feats)
    (epsilon, _, _) = checks.float_triple("eps", eps)
    if epsilon < 0:
        raise ValueError(f"eps must not be negative, got {eps}")
    return _group_norm(feats, offsets, weight, bias, groups, epsilon)[0]


def _check_parameter(name: str, value: Tensor | None, feats: Tensor) -> None:
    if value is not None:
        checked = checks.floats(name, checks.shape(name, value, feats.shape[1]))
        checks.same_device(name, checked, "the grid", feats.device)


def _differentiable(
    grad: Tensor, feats: Tensor, offsets: Tensor, weight: Tensor | None, num_groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `group_norm_backward` with differentiable ops."""
    exact = torch.promote_types(feats.dtype, torch.float32)
    g, x = grad.to(exact), feats.to(exact)
    ranges = offsets.int()
    parents = segment_of_rows(ranges, feats)
    group = feats.shape[1] // num_groups
    size = offsets.diff()[:, None].clamp(min=1) * group  # [B, 1]

    def mean(rows: Tensor) -> Tensor:
        """Replace each element of [N, C] by the mean over its grid and group."""
        sums = _reduce.sum_ranges(rows, ranges, None, parents, None, 0).unflatten(1, (num_groups, group)).sum(2)
        means = (sums / size).repeat_interleave(group, 1)  # [B, C]
        return _reduce.sum_table(means, parents[None], ranges, None, None, False, 0)

    centered = x - mean(x)
    rstd = (mean(centered.square()) + eps).rsqrt()
    normal = centered * rstd
    weighted = g if weight is None else g * weight
    d_feats = rstd * (weighted - mean(weighted) - normal * mean(weighted * normal))
    return d_feats.to(feats.dtype), (g * normal).sum(0), g.sum(0)
