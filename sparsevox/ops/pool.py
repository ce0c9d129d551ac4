"""Pooling (downsample) and nearest-neighbor upsampling: features of fine voxels to coarse voxels and back.

N fine voxels, M coarse voxels, C channels, K taps.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsevox import checks, kernels, morton
from sparsevox._readback import send
from sparsevox.ops import _library, _reduce
from sparsevox.ops._child_map import ChildMap
from sparsevox.ops._kernel_map import KernelMap
from sparsevox.ops.bricks import HasBricks, coords, find_rows, lookup_table
from sparsevox.ops.topology import power_of_two
from sparsevox.reference import pool as reference

Window = ChildMap | KernelMap

_child_ranges = _library.register(
    "child_ranges(Tensor keys, Tensor masks, Tensor starts, Tensor rows, Tensor coarse_rows, int level)"
    " -> (Tensor parents, Tensor ranges)",
    reference=reference.child_ranges,
    kernels=lambda: kernels.pool.child_ranges,
    fake=lambda keys, masks, starts, rows, coarse_rows, level: (
        starts.new_empty(rows.shape[0]),
        starts.new_empty(coarse_rows.shape[0] + 1),
    ),
)


def parents_and_children(
    fine: HasBricks, coarse: HasBricks, factors: Sequence[int], coarsened: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Parents int32 [N], children int32 [N] or None, and ranges int32 [M + 1] of a `ChildMap`.

    `coarsened` says that the coarse voxels are those of `coarsen(fine, factors)`. If the factors are one power of two
    as well, children are consecutive rows: None. Otherwise they are a list, in which those without a parent come first.
    """
    bricks, level = fine.bricks, power_of_two(factors)
    if coarsened and level is not None and level < morton.AXIS_BITS:
        parents, ranges = _child_ranges(*bricks[:3], bricks.rows, coarse.bricks.rows, level)
        return parents, None, ranges
    device = bricks.keys.device
    wanted = torch.div(coords(bricks), send([1, *factors], device), rounding_mode="floor")
    parents = find_rows(coarse.bricks, lookup_table(coarse), wanted).int()
    found, order = torch.sort(parents, stable=True)
    numbers = torch.arange(coarse.bricks.rows.shape[0] + 1, dtype=torch.int32, device=device)
    return parents, order.int(), torch.searchsorted(found, numbers, out_int32=True)


def max_pool3d(feats: Tensor, window: Window) -> Tensor:
    """Largest element of each window; 0 where it holds no voxel, NaN where it holds a NaN.

    Among equal elements, the lowest row gets the gradient.

    Args:
        feats: Features [N, C] of the fine grid.
        window: Windows, from `Grid.child_map` if they do not overlap, else from `Grid.kernel_map`.

    Returns:
        Features [M, C] of the coarse grid.

    Raises:
        TypeError: If `feats` is not floating-point, or `window` is neither a ChildMap nor a KernelMap.
        ValueError: If there is not one row per voxel, or the devices differ.
    """
    x = _checked(feats, window)
    needed = _reduce.needs_gradient(x)
    result: Tensor
    if isinstance(window, ChildMap):
        parents, longest = window.parents if needed else None, math.prod(window.factor)
        result, _ = _reduce.extreme_ranges(x, window.ranges, window.children, parents, True, longest)
    else:
        result, _ = _reduce.max_table(x, window.table, _up_table(window) if needed else None)
    return result


def avg_pool3d(feats: Tensor, window: Window, *, count: str = "active") -> Tensor:
    """Mean of each window, 0 where it holds no voxel.

    `count="active"` divides by the number of voxels that exist, `count="window"` by the volume of the window. Sums are
    float32, or float64 for float64 features. Other arguments, result and errors are those of `max_pool3d`; an unknown
    `count` raises a ValueError.
    """
    if count not in ("active", "window"):
        raise ValueError(f"count must be 'active' or 'window', got {count!r}")
    x = _checked(feats, window)
    return _sum(x, window, window.counts if count == "active" else _volume(window))


def sum_pool3d(feats: Tensor, window: Window) -> Tensor:
    """Sum of each window, 0 where it holds no voxel. Arguments, result and errors are those of `max_pool3d`."""
    return _sum(_checked(feats, window), window, None)


def upsample(feats: Tensor, child_map: ChildMap) -> Tensor:
    """Copy the features of the parent to each fine voxel, 0 without a parent. The gradient sums over children.

    Args:
        feats: Features [M, C] of the coarse grid.
        child_map: Child map from `Grid.child_map` of the fine grid.

    Returns:
        Features [N, C] of the fine grid.

    Raises:
        TypeError: If `feats` is not floating-point, or `child_map` is not a ChildMap.
        ValueError: If there is not one row per voxel, or the devices differ.
    """
    if not isinstance(child_map, ChildMap):
        raise TypeError(f"child_map must come from Grid.child_map, got {type(child_map).__name__}")
    x = _check_rows(feats, child_map.num_coarse, "M", "coarse", child_map.device)
    adjoint = (child_map.ranges, child_map.children) if _reduce.needs_gradient(x) else (None, None)
    return _reduce.sum_table(x, child_map.table, *adjoint, None, False, math.prod(child_map.factor))


def _checked(feats: object, window: Window) -> Tensor:
    if not isinstance(window, Window):
        checks.floats("feats", checks.shape("feats", feats, "N", "C"))
        raise TypeError(f"window must come from Grid.child_map or Grid.kernel_map, got {type(window).__name__}")
    return _check_rows(feats, window.num_fine, "N", "fine", window.device)


def _check_rows(value: object, rows: int, size: str, grid: str, device: torch.device) -> Tensor:
    if not torch.compiler.is_compiling() and checks.are_rows(value, rows, device):
        return value
    feats = checks.floats("feats", checks.shape("feats", value, size, "C"))
    if torch.compiler.is_compiling():
        torch._check(feats.shape[0] == rows)  # in a graph, sizes that depend on data are unknown
    elif feats.shape[0] != rows:
        raise ValueError(f"feats must have {rows} rows, one per voxel of the {grid} grid, got {list(feats.shape)}")
    checks.same_device("feats", feats, "the grid", device)
    return feats


def _up_table(window: KernelMap) -> Tensor:
    """Table from coarse to fine voxels. That of a symmetric map has its taps in reverse, which pooling may ignore."""
    return window.table if window.symmetric else window.up.table


def _sum(feats: Tensor, window: Window, divisors: Tensor | None) -> Tensor:
    needed = _reduce.needs_gradient(feats)
    result: Tensor
    if isinstance(window, ChildMap):
        parents, longest = window.parents if needed else None, math.prod(window.factor)
        result = _reduce.sum_ranges(feats, window.ranges, window.children, parents, divisors, longest)
    else:
        adjoint = _up_table(window) if needed else None
        result = _reduce.sum_table(feats, window.table, adjoint, None, divisors, False, 0)
    return result


def _volume(window: Window) -> Tensor:
    """Number of voxels that fit in each window: int64 [M]."""
    volume = math.prod(window.factor) if isinstance(window, ChildMap) else window.geometry.taps
    return torch.full((window.num_coarse,), volume, dtype=torch.int64, device=window.device)
