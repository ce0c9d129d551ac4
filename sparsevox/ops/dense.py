"""Dense volumes from features, and features from dense volumes.

B grids, N voxels, C channels, X Y Z voxels per axis.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from sparsevox import checks, kernels, morton
from sparsevox._readback import read_back
from sparsevox.morton import Bricks
from sparsevox.ops import _library
from sparsevox.ops.bricks import HasBricks
from sparsevox.reference import dense as reference

FARTHEST = 1 << 31  # largest absolute coordinate of a box


class HasCoords(HasBricks, Protocol):
    """The attributes of a grid that dense volumes use."""

    @property
    def coords(self) -> Tensor:
        """Coordinates (b, i, j, k) in row order: int32 [N, 4]."""

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Smallest ijk and largest ijk plus one of each grid: two int32 [B, 3], both 0 where a grid is empty."""


def _scatter_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _scatter_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _gather_dense(grad, *ctx.saved_tensors), None, None, None


def _gather_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.batch_size, _, *ctx.size = inputs[0].shape
    ctx.save_for_backward(inputs[1])


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _scatter_dense(grad, *ctx.saved_tensors, ctx.batch_size, ctx.size), None


_dense_bricks = _library.register(
    f"dense_bricks(Tensor mask, int[3] lower) -> {_library.BRICKS}",
    reference=reference.dense_bricks,
    kernels=lambda: kernels.dense.dense_bricks,
    fake=lambda mask, lower: _library.fake_bricks(mask, mask.shape[0]),
)
# Rows [N, C] to a volume [B, C, X, Y, Z]. The cell int64 [N] of a row is its index in the flattened [B, X, Y, Z], -1 if
# it lies outside; no two rows share a cell. This op and the next are each other's gradients.
_scatter_dense = _library.register(
    "scatter_dense(Tensor feats, Tensor cells, SymInt batch_size, SymInt[3] size) -> Tensor",
    reference=reference.scatter_dense,
    kernels=lambda: kernels.dense.scatter_dense,
    fake=lambda feats, cells, batch_size, size: feats.new_empty((batch_size, feats.shape[1], *size)),
    setup_context=_scatter_context,
    backward=_scatter_backward,
)
# A volume to rows; 0 where there is no cell.
_gather_dense = _library.register(
    "gather_dense(Tensor volume, Tensor cells) -> Tensor",
    reference=reference.gather_dense,
    kernels=lambda: kernels.dense.gather_dense,
    fake=lambda volume, cells: volume.new_empty((cells.shape[0], volume.shape[1])),
    setup_context=_gather_context,
    backward=_gather_backward,
)


def from_mask(mask: Tensor, lower: object) -> Bricks:
    """Build bricks of the True voxels of `mask` bool [B, X, Y, Z], whose first voxel has the coordinates `lower`.

    Raises:
        TypeError: If the mask is not a bool tensor.
        ValueError: If it does not have four axes, has more than 1024 items, or leaves [-2^17, 2^17).
    """
    checks.booleans("mask", checks.shape("mask", mask, "B", "X", "Y", "Z"))
    checks.batch_size(mask.shape[0])
    first = checks.int_triple("lower", lower)
    last = [a + size - 1 for a, size in zip(first, mask.shape[1:], strict=True)]
    if mask.numel() and (min(first) < morton.COORD_MIN or max(last) > morton.COORD_MAX):
        raise ValueError(
            f"the volume reaches from lower={tuple(first)} to {tuple(last)}, but coordinates lie in "
            f"[{morton.COORD_MIN}, {morton.COORD_MAX}]"
        )
    return Bricks(*_dense_bricks(mask.contiguous(), first))


def to_dense(
    feats: Tensor, grid: HasCoords, lower: int | Sequence[int] | None = None, upper: int | Sequence[int] | None = None
) -> Tensor:
    """Write the features of the voxels with lower <= ijk < upper to a volume, 0 where there is no voxel.

    Differentiable any number of times; the adjoint of `from_dense`. Without `lower` or `upper` the host waits once for
    the bounds of the grid.

    Args:
        feats: Features [N, C] of the grid.
        grid: Batch of B grids.
        lower: First voxel of the box; by default the smallest coordinates in the whole batch.
        upper: End of the box, exclusive; by default the largest coordinates in the batch plus one, but not less than
            `lower`. If there are no voxels and neither corner is given, the box is empty.

    Returns:
        Volume [B, C, X, Y, Z] in the dtype of the features.

    Raises:
        TypeError: If features are not floating-point or corners not integers.
        ValueError: If shapes or devices do not fit, or `lower` exceeds `upper`.
    """
    x = checks.rows("feats", feats, grid.bricks.rows.shape[0], "voxel of the grid", grid.bricks.keys.device)
    low, up = _box(grid, lower, upper)
    size = [b - a for a, b in zip(low, up, strict=True)]
    return _scatter_dense(x, _cells(grid, low, size), grid.bricks.offsets.shape[0] - 1, size)


def from_dense(volume: Tensor, grid: HasCoords, lower: int | Sequence[int] = (0, 0, 0)) -> Tensor:
    """Read the features of the voxels of a grid from a volume; voxels outside of it get 0.

    Differentiable any number of times; the adjoint of `to_dense`.

    Args:
        volume: Dense features [B, C, X, Y, Z].
        grid: Batch of B grids.
        lower: Coordinates of the first voxel of the volume.

    Returns:
        Features [N, C] of the grid, in the dtype of the volume.

    Raises:
        TypeError: If the volume is not floating-point or `lower` does not hold integers.
        ValueError: If shapes or devices do not fit.
    """
    batch_size = grid.bricks.offsets.shape[0] - 1
    v = checks.floats("volume", checks.shape("volume", volume, batch_size, "C", "X", "Y", "Z"))
    checks.same_device("volume", v, "the grid", grid.bricks.keys.device)
    low = checks.int_triple("lower", lower)
    _check_near(low, low)
    return _gather_dense(v, _cells(grid, low, v.shape[2:]))


def _box(grid: HasCoords, lower: object, upper: object) -> tuple[list[int], list[int]]:
    low = None if lower is None else checks.int_triple("lower", lower)
    up = None if upper is None else checks.int_triple("upper", upper)
    if low is None or up is None:
        first, last = _bounds(grid)
        low, up = _fitting(low, up, first, last)
    checks.box(low, up)
    _check_near(low, up)
    return low, up


def _fitting(
    low: list[int] | None, up: list[int] | None, first: list[int], last: list[int]
) -> tuple[list[int], list[int]]:
    """Complete a box by the bounds of the batch, without crossing the given corner."""
    if low is not None:
        return low, [max(a, b) for a, b in zip(low, last, strict=True)]
    if up is not None:
        return [min(a, b) for a, b in zip(up, first, strict=True)], up
    return first, last


def _bounds(grid: HasCoords) -> tuple[list[int], list[int]]:
    """The smallest box around the whole batch."""
    if grid.bricks.rows.shape[0] == 0:
        return [0] * 3, [0] * 3
    lower, upper = grid.bounds()
    empty = (lower == upper).any(1, keepdim=True)
    first = lower.masked_fill(empty, morton.COORD_MAX).amin(0)
    last = upper.masked_fill(empty, morton.COORD_MIN).amax(0)
    numbers = read_back(first, last)
    return numbers[:3], numbers[3:]


def _check_near(lower: list[int], upper: list[int]) -> None:
    if min(lower) < -FARTHEST or max(upper) > FARTHEST:
        raise ValueError(f"a box must lie in [-2^31, 2^31], got one from lower={tuple(lower)} to upper={tuple(upper)}")


def _cells(grid: HasCoords, lower: Sequence[int], size: Sequence[int]) -> Tensor:
    """Index in the flattened [B, X, Y, Z] of each voxel, for a box that begins at `lower`; -1 outside: int64 [N]."""
    item, *ijk = grid.coords.long().unbind(1)
    cells, inside = item, torch.ones_like(item, dtype=torch.bool)
    for axis in range(3):
        local = ijk[axis] - lower[axis]
        inside = inside & (local >= 0) & (local < size[axis])
        cells = cells * size[axis] + local
    return torch.where(inside, cells, -1)
