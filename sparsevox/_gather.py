"""Gathering features by row indices: how SparseTensor moves features from one grid to another.

N voxels, M other voxels or rows, P points, C channels.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from sparsevox import checks, ops
from sparsevox.grid import Grid
from sparsevox.ops._reduce import needs_gradient, sum_table
from sparsevox.ops.plans import adjoint_table

T = TypeVar("T")

REDUCTIONS = ("error", "sum", "mean", "max", "first")


def rows_or(feats: Tensor, rows: Tensor, fill: float) -> Tensor:
    """Gather `feats[rows]`, with `fill` where the row is -1: [M, C]. No row may occur twice."""
    table = rows.int()[None]
    adjoint = adjoint_table(table, feats) if needs_gradient(feats) else None
    found: Tensor = sum_table(feats, table, adjoint, None, None, False, 0)
    return found if fill == 0 else torch.where(rows[:, None] < 0, fill, found)


def containing_rows(grid: Grid, points: Tensor, batch: Tensor | None) -> Tensor:
    """Find the voxel that contains each point [P, 3]: rows int64 [P], -1 where there is none."""
    ijk = torch.floor(grid.to_ijk(points) + 0.5).long()
    item = torch.zeros(len(points), dtype=torch.int64, device=points.device) if batch is None else batch.long()
    return grid.index(torch.cat([item[:, None], ijk], 1))


def reduce_rows(grid: Grid, rows: Tensor, feats: object, reduce: str, name: str) -> Tensor:
    """Merge features [M, C] into [N, C], where row m belongs to voxel `rows[m]`. Every voxel must have a row."""
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduce!r}")
    checked = checks.floats("feats", checks.shape("feats", feats, "M", "C"))
    if checked.shape[0] != rows.shape[0]:
        raise ValueError(f"feats must have {rows.shape[0]} rows, one per row of {name}, got {checked.shape[0]}")
    checks.same_device("feats", checked, name, rows.device)
    ordered, order = torch.sort(rows, stable=True)
    if rows.shape[0] == grid.num_voxels:
        return checked[order]
    if reduce == "error":
        second = order[1:][ordered[1:] == ordered[:-1]][0]
        first = order[torch.searchsorted(ordered, rows[second])]
        raise ValueError(
            f"{name}[{int(first)}] and {name}[{int(second)}] lie in the same voxel; "
            "choose how to merge them: reduce='sum', 'mean', 'max' or 'first'"
        )
    offsets = torch.searchsorted(ordered, torch.arange(grid.num_voxels + 1, device=rows.device))
    if reduce == "first":
        return checked[order[offsets[:-1]]]
    return ops.segment_reduce(checked[order], offsets, reduce)


def first_of(items: Sequence[T], kind: type[T]) -> T:
    """Return the first item after checking that all are of that type."""
    if len(items) == 0:
        raise ValueError(f"tensors must hold at least one {kind.__name__}, got none")
    for index, item in enumerate(items):
        if not isinstance(item, kind):
            raise TypeError(f"tensors[{index}] must be a {kind.__name__}, got {type(item).__name__}")
    return items[0]


def check_partner(grid: Grid, other: object, name: str) -> None:
    """Raise unless `other` is a grid with the same batch size and device."""
    if not isinstance(other, Grid):
        raise TypeError(f"{name} must be a sparsevox.Grid, got {type(other).__name__}")
    if other.device != grid.device:
        raise ValueError(f"{name} must be on the device of the tensor, {grid.device}, got {other.device}")
    if other.batch_size != grid.batch_size:
        raise ValueError(f"{name} must have the batch size of the tensor, {grid.batch_size}, got {other.batch_size}")


def _difference(grid: Grid, other: Grid) -> str:
    if grid.batch_size != other.batch_size:
        return ""
    count = int((~grid.contains(other.coords)).sum()) + int((~other.contains(grid.coords)).sum())
    return f", which differ in {count} voxels"


def check_same_voxels(grid: Grid, other: Grid, names: str) -> None:
    """Raise unless two grids hold the same voxels. Under torch.compile only their sizes are compared."""
    if grid is other:
        return
    if torch.compiler.is_compiling():
        torch._check(grid.num_voxels == other.num_voxels)
        return
    if not grid.same_voxels(other):
        raise ValueError(
            f"{names} must be on the same voxels, got {grid} and {other}{_difference(grid, other)}; align them first, "
            "for instance with y.to_grid(x.grid)"
        )
