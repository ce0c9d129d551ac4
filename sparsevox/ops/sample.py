"""Features at points: trilinear and nearest-neighbor samples of a grid, and splatting of values onto it.

Everything derives from one trilinear form, the sum over points p, corners t and channels c of
`weights[p, t] * values[p, c] * feats[rows[p, t], c]`. Its gradients with respect to values, feats and weights are the
three ops below, and the gradients of each of them are the other two. Rows of -1 add nothing.

N voxels, P points, C channels, T corners per point.
"""

from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from sparsevox import checks, kernels, morton
from sparsevox.ops import _library
from sparsevox.ops.bricks import HasBricks
from sparsevox.ops.voxelize import OUTSIDE, check_points
from sparsevox.reference import sample as reference

Gradients = tuple[Tensor | None, ...]


class HasVoxels(HasBricks, Protocol):
    """The methods of a grid that sampling uses."""

    def to_ijk(self, xyz: Tensor) -> Tensor:
        """Continuous voxel coordinates float64 [..., 3] of world positions."""

    def index(self, coords: Tensor) -> Tensor:
        """Row of each voxel [M, 4], -1 where there is none."""


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.count = inputs[0].shape[0]


def _gather_backward(ctx: Any, grad: Tensor) -> Gradients:
    feats, rows, weights = ctx.saved_tensors
    d_feats = _sum_rows(grad, rows, weights, ctx.count) if ctx.needs_input_grad[0] else None
    d_weights = _dot_rows(feats, rows, grad) if ctx.needs_input_grad[2] else None
    return d_feats, None, d_weights


def _sum_backward(ctx: Any, grad: Tensor) -> Gradients:
    values, rows, weights = ctx.saved_tensors
    d_values = _gather_rows(grad, rows, weights) if ctx.needs_input_grad[0] else None
    d_weights = _dot_rows(grad, rows, values) if ctx.needs_input_grad[2] else None
    return d_values, None, d_weights, None


def _dot_backward(ctx: Any, grad: Tensor) -> Gradients:
    feats, rows, values = ctx.saved_tensors
    d_feats = _sum_rows(values, rows, grad, ctx.count) if ctx.needs_input_grad[0] else None
    d_values = _gather_rows(feats, rows, grad) if ctx.needs_input_grad[2] else None
    return d_feats, None, d_values


# Features [N, C] to values [P, C]. Rows are int32 [P, T]; weights [P, T] are float64 for float64 features, float32 for
# others.
_gather_rows = _library.register(
    "gather_rows(Tensor feats, Tensor rows, Tensor weights) -> Tensor",
    reference=reference.gather_rows,
    kernels=lambda: kernels.sample.gather_rows,
    fake=lambda feats, rows, weights: feats.new_empty((rows.shape[0], feats.shape[1])),
    setup_context=_context,
    backward=_gather_backward,
)
# Values [P, C] to features [N, C]: for each of `count` rows, the weighted sum of its values, by point and corner.
_sum_rows = _library.register(
    "sum_rows(Tensor values, Tensor rows, Tensor weights, SymInt count) -> Tensor",
    reference=reference.sum_rows,
    kernels=lambda: kernels.sample.sum_rows,
    fake=lambda values, rows, weights, count: values.new_empty((count, values.shape[1])),
    setup_context=_context,
    backward=_sum_backward,
)
# Features [N, C] and values [P, C] to weights [P, T]: dot products of the values with the rows at their corners.
_dot_rows = _library.register(
    "dot_rows(Tensor feats, Tensor rows, Tensor values) -> Tensor",
    reference=reference.dot_rows,
    kernels=lambda: kernels.sample.dot_rows,
    fake=lambda feats, rows, values: feats.new_empty(rows.shape, dtype=_weight_dtype(feats)),
    setup_context=_context,
    backward=_dot_backward,
)


def sample_trilinear(
    feats: Tensor,
    grid: HasVoxels,
    points: Tensor,
    batch: Tensor | None = None,
    *,
    outside: Literal["zero", "renormalize"] = "zero",
) -> Tensor:
    """Interpolate between the eight voxels whose centers enclose each point. Differentiable any number of times.

    Voxels that do not exist count as 0. With `outside="renormalize"` they are left out instead: the weights of those
    that exist are scaled to sum to 1. A point gets 0 if none of its eight voxels exists, it is not finite, or its batch
    item does not exist. On the border of two cells, the gradient with respect to a point is that of the cell that
    begins there.

    Args:
        feats: Features [N, C] of the grid.
        grid: Grid, or batch of grids, that has the features.
        points: World positions, floating point [P, 3]; voxel coordinates are computed in float64.
        batch: Batch item of each point, integers [P], 0 by default.
        outside: Treatment of voxels that do not exist: "zero" or "renormalize".

    Returns:
        Values [P, C] in the dtype of the features. Sums are float32, or float64 for float64 features.

    Raises:
        TypeError: If features or points are not floating-point, or batch indices not integers.
        ValueError: If shapes or devices do not fit, or `outside` is unknown.
    """
    if outside not in ("zero", "renormalize"):
        raise ValueError(f"outside must be 'zero' or 'renormalize', got {outside!r}")
    x = _check_feats(feats, grid)
    rows, weights = _corners(grid, *_check_points(points, batch, grid))
    if outside == "renormalize":
        present = weights.masked_fill(rows < 0, 0)
        total = present.sum(1, keepdim=True)
        weights = present / torch.where(total > 0, total, 1)
    return _gather_rows(x, rows, weights.to(_weight_dtype(x)))


def sample_nearest(feats: Tensor, grid: HasVoxels, points: Tensor, batch: Tensor | None = None) -> Tensor:
    """Read the voxel whose box contains each point, `floor(p + 0.5)` in voxel coordinates; 0 if it does not exist.

    For the nearest voxel that exists, use `feats[grid.nearest(points, batch)]`.

    Args:
        feats: Features [N, C] of the grid.
        grid: Grid, or batch of grids, that has the features.
        points: World positions, floating point [P, 3]; they get no gradient.
        batch: Batch item of each point, integers [P], 0 by default.

    Returns:
        Values [P, C] in the dtype of the features.

    Raises:
        TypeError: If features or points are not floating-point, or batch indices not integers.
        ValueError: If shapes or devices do not fit.
    """
    x = _check_feats(feats, grid)
    positions, items = _check_points(points, batch, grid)
    voxels, _ = _voxels((grid.to_ijk(positions.detach()) + 0.5).floor())
    rows = grid.index(torch.cat([items[:, None], voxels], 1)).int()[:, None]
    return _gather_rows(x, rows, torch.ones(rows.shape, dtype=_weight_dtype(x), device=x.device))


def splat_trilinear(points: Tensor, values: Tensor, grid: HasVoxels, batch: Tensor | None = None) -> Tensor:
    """Add each value, times its trilinear weight, to the existing voxels among the eight around its point.

    The result is a weighted sum, not a mean: nothing is normalized, and weights of absent voxels are lost. It is the
    adjoint of `sample_trilinear(..., outside="zero")`. Sums run in the order of the points, so equal input gives equal
    bits.

    Args:
        points: World positions, floating point [P, 3]; voxel coordinates are computed in float64.
        values: Values of the points, floating point [P, C].
        grid: Grid, or batch of grids, that the values are added to.
        batch: Batch item of each point, integers [P], 0 by default.

    Returns:
        Features [N, C] of the grid, in the dtype of the values. Sums are float32, or float64 for float64 values.

    Raises:
        TypeError: If points or values are not floating-point, or batch indices not integers.
        ValueError: If shapes or devices do not fit.
    """
    positions, items = _check_points(points, batch, grid)
    v = checks.rows("values", values, positions.shape[0], "point", grid.bricks.keys.device, "P")
    rows, weights = _corners(grid, positions, items)
    return _sum_rows(v, rows, weights.to(_weight_dtype(v)), grid.bricks.rows.shape[0])


def _corners(grid: HasVoxels, points: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """Rows int32 [P, 8] of the voxels whose centers enclose each point, and their weights float64 [P, 8]; z fastest."""
    ijk = grid.to_ijk(points)
    base, inside = _voxels(ijk.detach().floor())
    first = torch.cat([items[:, None], base], 1)
    steps = torch.cartesian_prod(*[torch.arange(2, device=points.device)] * 3)
    near = first[:, None] + torch.nn.functional.pad(steps, (1, 0))  # [P, 8, 4]
    rows = grid.index(near.view(-1, 4)).int().view(-1, 8)
    part = torch.where(inside, ijk - base, 0)  # rows of OUTSIDE are 0, so that no NaN enters a gradient
    x, y, z = torch.stack([1 - part, part], 2).unbind(1)  # [P, 2] each
    return rows, (x[:, :, None, None] * y[:, None, :, None] * z[:, None, None, :]).flatten(1)


def _voxels(ijk: Tensor) -> tuple[Tensor, Tensor]:
    """Convert integral float64 [P, 3] to int64, points out of range or NaN to OUTSIDE; and the valid points [P, 1]."""
    inside = ((ijk >= morton.COORD_MIN - 1) & (ijk <= morton.COORD_MAX)).all(1, keepdim=True)  # NaN compares False
    return torch.where(inside, ijk, OUTSIDE).long(), inside


def _weight_dtype(feats: Tensor) -> torch.dtype:
    return torch.float64 if feats.dtype == torch.float64 else torch.float32


def _check_feats(feats: object, grid: HasVoxels) -> Tensor:
    return checks.rows("feats", feats, grid.bricks.rows.shape[0], "voxel of the grid", grid.bricks.keys.device)


def _check_points(points: object, batch: object, grid: HasVoxels) -> tuple[Tensor, Tensor]:
    positions, items = check_points(points, batch)
    checks.same_device("points", positions, "the grid", grid.bricks.keys.device)
    return positions, items
