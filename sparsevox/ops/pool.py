"""Pooling and upsampling: features of fine voxels to coarse ones and back.

N fine voxels, M coarse voxels, C channels, K taps.
"""

import math
from collections.abc import Sequence
from typing import Protocol, TypeGuard, cast

import torch
from torch import Tensor

from sparsevox import checks, morton
from sparsevox._readback import send
from sparsevox.geometry import Axes, Geometry
from sparsevox.ops import _library, _reduce
from sparsevox.ops.bricks import HasBricks, coords, find_rows
from sparsevox.ops.topology import _level


class HasChildren(Protocol):
    """What pooling needs of a `ChildMap`."""

    @property
    def factor(self) -> Axes:
        """Fine voxels of a coarse voxel, an axis."""

    @property
    def parents(self) -> Tensor:
        """Coarse row of each fine voxel, -1 for none: int32 [N]."""

    @property
    def children(self) -> Tensor | None:
        """Fine rows sorted by parent: int32 [N]; None if that is their own order."""

    @property
    def ranges(self) -> Tensor:
        """Where the children of each coarse voxel begin: int32 [M + 1]."""

    @property
    def device(self) -> torch.device:
        """Where the map lies."""


class HasTable(Protocol):
    """One direction of a `KernelMap`."""

    @property
    def table(self) -> Tensor:
        """Input row of each output row at each tap, -1 for none: int32 [K, output rows]."""


class HasTables(Protocol):
    """What pooling needs of a `KernelMap`."""

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
    def device(self) -> torch.device:
        """Where the map lies."""

    @property
    def down(self) -> HasTable:
        """From fine to coarse voxels."""

    @property
    def up(self) -> HasTable:
        """From coarse to fine voxels."""


Window = HasChildren | HasTables

_child_ranges = _library.register(
    "child_ranges(Tensor keys, Tensor masks, Tensor starts, Tensor rows, Tensor coarse_rows, int level)"
    " -> (Tensor parents, Tensor ranges)",
    stem="pool",
    fake=lambda keys, masks, starts, rows, coarse_rows, level: (
        starts.new_empty(rows.shape[0]),
        starts.new_empty(coarse_rows.shape[0] + 1),
    ),
)


def parents_and_children(
    fine: HasBricks, coarse: HasBricks, factors: Sequence[int], coarsened: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Parents int32 [N], children int32 [N] or None, and ranges int32 [M + 1], as `ChildMap` has them.

    `coarsened` says that the coarse voxels are those of `coarsen(fine, factors)`. Where the factors are one power of
    two, too, children are neighboring rows: None. Else those without a parent come first in the list, in no range.
    """
    bricks, level = fine.bricks, _level(factors)
    if coarsened and level is not None and level < morton.AXIS_BITS:
        parents, ranges = _child_ranges(*bricks[:3], bricks.rows, coarse.bricks.rows, level)
        return parents, None, ranges
    device = bricks.keys.device
    wanted = torch.div(coords(bricks), send([1, *factors], device), rounding_mode="floor")
    parents = find_rows(coarse.bricks, coarse.table, wanted).int()
    found, order = torch.sort(parents, stable=True)
    numbers = torch.arange(coarse.bricks.rows.shape[0] + 1, dtype=torch.int32, device=device)
    return parents, order.int(), torch.searchsorted(found, numbers, out_int32=True)


def max_pool3d(feats: Tensor, window: Window) -> Tensor:
    """Largest element of each window, 0 where it holds no voxel; NaN, if there is one.

    The gradient of equal elements goes to the lowest row.

    Args:
        feats: [N, C], rows of the fine grid.
        window: From `Grid.child_map`, for windows that do not overlap, or `Grid.kernel_map`.

    Returns:
        [M, C], rows of the coarse grid.

    Raises:
        TypeError: If `feats` is not floating-point, or `window` no map.
        ValueError: If there is not one row a voxel, or the devices differ.
    """
    x = _checked(feats, window)
    needed = _reduce.needs_gradient(x)
    result: Tensor
    if _is_child_map(window):
        parents = window.parents if needed else None
        result, _ = _reduce.extreme_ranges(x, window.ranges, window.children, parents, True, math.prod(window.factor))
    else:
        result, _ = _reduce.max_table(x, _tables(window).down.table, _up_table(_tables(window)) if needed else None)
    return result


def avg_pool3d(feats: Tensor, window: Window, *, count: str = "active") -> Tensor:
    """Mean of each window, 0 where it holds no voxel.

    `count="active"` divides by the voxels that exist, `count="window"` by all that fit. Arguments, result and errors
    are those of `max_pool3d`; another `count` is a ValueError. Sums are float32 (float64 for float64).
    """
    if count not in ("active", "window"):
        raise ValueError(f"count must be 'active' or 'window', got {count!r}")
    x = _checked(feats, window)
    return _sum(x, window, _active(window) if count == "active" else _volume(window))


def sum_pool3d(feats: Tensor, window: Window) -> Tensor:
    """Sum of each window, 0 where it holds no voxel. Arguments, result and errors are those of `max_pool3d`."""
    return _sum(_checked(feats, window), window, None)


def upsample(feats: Tensor, child_map: HasChildren) -> Tensor:
    """The row of its parent for each fine voxel, 0 if it has none; the gradient sums over children.

    Args:
        feats: [M, C], rows of the coarse grid.
        child_map: From `Grid.child_map` of the fine grid.

    Returns:
        [N, C], rows of the fine grid.

    Raises:
        TypeError: If `feats` is not floating-point, or `child_map` no such map.
        ValueError: If there is not one row a voxel, or the devices differ.
    """
    if not _is_child_map(child_map):
        raise TypeError(f"child_map must come from Grid.child_map, got {type(child_map).__name__}")
    x = checks.floats("feats", checks.shape("feats", feats, "M", "C"))
    _check_rows(x, child_map.ranges.shape[0] - 1, "coarse", child_map.device)
    adjoint = [child_map.ranges] if child_map.children is None else [child_map.ranges, child_map.children]
    needed = adjoint if _reduce.needs_gradient(x) else []
    table, longest = child_map.parents[None], math.prod(child_map.factor)
    result: Tensor = _reduce.sum_table(x, table, needed, None, False, longest)
    return result


def _is_child_map(window: object) -> TypeGuard[HasChildren]:
    return hasattr(window, "parents")


def _tables(window: Window) -> HasTables:
    """A window that is no child map."""
    return cast(HasTables, window)


def _checked(feats: object, window: Window) -> Tensor:
    x = checks.floats("feats", checks.shape("feats", feats, "N", "C"))
    if _is_child_map(window):
        rows = window.parents.shape[0]
    elif hasattr(window, "num_fine") and hasattr(window, "down"):
        rows = window.num_fine
    else:
        raise TypeError(f"window must come from Grid.child_map or Grid.kernel_map, got {type(window).__name__}")
    _check_rows(x, rows, "fine", window.device)
    return x


def _check_rows(feats: Tensor, rows: int, grid: str, device: torch.device) -> None:
    if torch.compiler.is_compiling():
        torch._check(feats.shape[0] == rows)  # of sizes born in a graph nobody knows more
    elif feats.shape[0] != rows:
        raise ValueError(f"feats must have {rows} rows, one a voxel of the {grid} grid, got {list(feats.shape)}")
    checks.same_device("feats", feats, "the grid", device)


def _up_table(window: HasTables) -> Tensor:
    """From coarse to fine. The taps of a symmetric map lead back in another order, which pooling does not ask for."""
    return window.down.table if window.symmetric else window.up.table


def _sum(feats: Tensor, window: Window, divisors: Tensor | None) -> Tensor:
    needed = _reduce.needs_gradient(feats)
    result: Tensor
    if _is_child_map(window):
        parents, longest = window.parents if needed else None, math.prod(window.factor)
        result = _reduce.sum_ranges(feats, window.ranges, window.children, parents, divisors, longest)
    else:
        adjoint = [_up_table(_tables(window))] if needed else []
        result = _reduce.sum_table(feats, _tables(window).down.table, adjoint, divisors, False, 0)
    return result


def _active(window: Window) -> Tensor:
    """How many voxels each window holds, 1 where it is none: int64 [M]."""
    counts = window.ranges.diff().long() if _is_child_map(window) else (_tables(window).down.table >= 0).sum(0)
    return counts.clamp(min=1)


def _volume(window: Window) -> Tensor:
    """How many voxels would fit in each window: int64 [M]."""
    if _is_child_map(window):
        rows, volume = window.ranges.shape[0] - 1, math.prod(window.factor)
    else:
        rows, volume = _tables(window).down.table.shape[1], _tables(window).geometry.taps
    return torch.full((rows,), volume, dtype=torch.int64, device=window.device)
