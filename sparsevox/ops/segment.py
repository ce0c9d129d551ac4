"""Segments: features reduced over consecutive rows, such as the rows of each grid of a batch.

N rows, S segments, C channels, B grids.
"""

import torch
from torch import Tensor

from sparsevox import checks
from sparsevox.ops import _reduce
from sparsevox.ops.bricks import HasBricks

REDUCTIONS = ("sum", "mean", "max", "min")


def segment_reduce(feats: Tensor, offsets: Tensor, reduce: str = "sum") -> Tensor:
    """Reduce the rows from offsets[s] to offsets[s + 1], exclusive, of every segment s.

    Sums are float32, or float64 for float64 features. For "max" and "min", NaN wins, and among equal elements the
    lowest row gets the gradient. Empty segments give 0. Rows outside of all segments are ignored.

    Args:
        feats: Features [N, C].
        offsets: Bounds of the segments, ascending integers [S + 1] between 0 and N. They are not checked on a GPU.
        reduce: Reduction: "sum", "mean", "max" or "min".

    Returns:
        Rows [S, C] in the dtype of the features.

    Raises:
        TypeError: If `feats` is not floating-point or `offsets` does not hold integers.
        ValueError: If shapes or devices do not fit, offsets on the CPU do not ascend between 0 and N, or the reduction
            is unknown.
    """
    _check_reduce(reduce)
    x = checks.floats("feats", checks.shape("feats", feats, "N", "C"))
    edges = checks.integers("offsets", checks.shape("offsets", offsets, "S + 1"))
    checks.same_device("offsets", edges, "feats", x.device)
    if edges.shape[0] == 0:
        raise ValueError("offsets must have shape [S + 1], got [0]")
    if edges.device.type == "cpu" and not torch.compiler.is_compiling():  # elsewhere it would wait for the device
        _check_ascending(edges, x.shape[0])
    return _reduce_segments(x, edges.int(), reduce)


def broadcast(values: Tensor, grid: HasBricks) -> Tensor:
    """Copy the row of each grid of a batch to every voxel of that grid; the gradient sums over voxels.

    Args:
        values: Rows [B, C], one per grid.
        grid: Batch of B grids.

    Returns:
        Rows [N, C], one per voxel.

    Raises:
        TypeError: If `values` is not floating-point.
        ValueError: If there is not one row per grid, or the devices differ.
    """
    offsets = grid.bricks.offsets
    x = checks.rows("values", values, offsets.shape[0] - 1, "grid", offsets.device, "B")
    ranges = offsets.int()
    parents = segment_of_rows(ranges, grid.bricks.rows)[None]
    adjoint = ranges if _reduce.needs_gradient(x) else None
    return _reduce.sum_table(x, parents, adjoint, None, None, False, 0)


def global_pool(feats: Tensor, grid: HasBricks, reduce: str = "mean") -> Tensor:
    """Reduce the voxels of each grid of a batch to one row, as `segment_reduce` does.

    Args:
        feats: Features [N, C] of the grid.
        grid: Batch of B grids.
        reduce: Reduction: "sum", "mean", "max" or "min".

    Returns:
        Rows [B, C], 0 for grids without a voxel.

    Raises:
        TypeError: If `feats` is not floating-point.
        ValueError: If there is not one row per voxel, the devices differ, or the reduction is unknown.
    """
    _check_reduce(reduce)
    offsets = grid.bricks.offsets
    x = checks.rows("feats", feats, grid.bricks.rows.shape[0], "voxel", offsets.device)
    return _reduce_segments(x, offsets.int(), reduce)


def segment_of_rows(ranges: Tensor, rows: Tensor) -> Tensor:
    """Segment that holds each of the rows [N, ...], -1 if none does: int32 [N]."""
    numbers = torch.arange(rows.shape[0], dtype=torch.int32, device=ranges.device)
    segments = torch.searchsorted(ranges, numbers, right=True, out_int32=True) - 1
    return segments.masked_fill(segments == ranges.shape[0] - 1, -1)


def _check_reduce(reduce: object) -> None:
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduce!r}")


def _check_ascending(offsets: Tensor, rows: int) -> None:
    if offsets[0] < 0 or offsets[-1] > rows or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(f"offsets must ascend between 0 and {rows}, the rows of feats, got {offsets}")


def _reduce_segments(feats: Tensor, ranges: Tensor, reduce: str) -> Tensor:
    parents = segment_of_rows(ranges, feats) if _reduce.needs_gradient(feats) else None
    if reduce in ("max", "min"):
        return _reduce.extreme_ranges(feats, ranges, None, parents, reduce == "max", 0)[0]
    divisors = ranges.diff().clamp_(min=1).long() if reduce == "mean" else None
    return _reduce.sum_ranges(feats, ranges, None, parents, divisors, 0)
