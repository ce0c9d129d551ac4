"""Rows of one grid for the voxels of another: what SparseTensor needs to move features around.

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
    """`feats[rows]`, and `fill` where the row is -1: [M, C]. No row may come twice."""
    table = rows.int()[None]
    adjoint = [adjoint_table(table, feats)] if needs_gradient(feats) else []
    found: Tensor = sum_table(feats, table, adjoint, None, False, 0)
    return found if fill == 0 else torch.where(rows[:, None] < 0, fill, found)


def containing_rows(grid: Grid, points: Tensor, batch: Tensor | None) -> Tensor:
    """Row of the voxel whose box holds each point [P, 3]: int64 [P]."""
    ijk = torch.floor(grid.to_ijk(points) + 0.5).long()
    item = torch.zeros(len(points), dtype=torch.int64, device=points.device) if batch is None else batch.long()
    return grid.index(torch.cat([item[:, None], ijk], 1))


def reduce_rows(grid: Grid, rows: Tensor, feats: object, reduce: str, name: str) -> Tensor:
    """Features [N, C] of features [M, C] of which row m belongs to voxel `rows[m]`; every voxel has some."""
    if reduce not in REDUCTIONS:
        raise ValueError(f"reduce must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduce!r}")
    checked = checks.floats("feats", checks.shape("feats", feats, "M", "C"))
    if checked.shape[0] != rows.shape[0]:
        raise ValueError(f"feats must have {rows.shape[0]} rows, one for each of {name}, got {checked.shape[0]}")
    checks.same_device("feats", checked, name, rows.device)
    ordered, order = torch.sort(rows, stable=True)
    if rows.shape[0] == grid.num_voxels:
        return checked[order]
    if reduce == "error":
        second = order[1:][ordered[1:] == ordered[:-1]][0]
        first = order[torch.searchsorted(ordered, rows[second])]
        raise ValueError(
            f"{name}[{int(first)}] and {name}[{int(second)}] are one voxel; "
            "say how to merge them: reduce='sum', 'mean', 'max' or 'first'"
        )
    offsets = torch.searchsorted(ordered, torch.arange(grid.num_voxels + 1, device=rows.device))
    if reduce == "first":
        return checked[order[offsets[:-1]]]
    return ops.segment_reduce(checked[order], offsets, reduce)


def first_of(items: Sequence[T], kind: type[T]) -> T:
    """The first item, once all are of that kind."""
    if len(items) == 0:
        raise ValueError(f"tensors must hold one {kind.__name__} at least, got none")
    for index, item in enumerate(items):
        if not isinstance(item, kind):
            raise TypeError(f"tensors[{index}] must be a {kind.__name__}, got {type(item).__name__}")
    return items[0]


def check_partner(grid: Grid, other: object, name: str) -> None:
    """Raise unless `other` is a grid of as many batch items, on the same device."""
    if not isinstance(other, Grid):
        raise TypeError(f"{name} must be a sparsevox.Grid, got {type(other).__name__}")
    if other.device != grid.device:
        raise ValueError(f"{name} must be on the device of the tensor, {grid.device}, got {other.device}")
    if other.batch_size != grid.batch_size:
        raise ValueError(f"{name} must have the batch size of the tensor, {grid.batch_size}, got {other.batch_size}")


def _differing(grid: Grid, other: Grid) -> str:
    if grid.batch_size != other.batch_size:
        return ""
    return f", {int((~grid.contains(other.coords)).sum()) + int((~other.contains(grid.coords)).sum())} voxels apart"


def check_same_voxels(grid: Grid, other: Grid, names: str) -> None:
    """Raise unless two grids hold the same voxels. A compiled graph knows no more than that their sizes agree."""
    if grid is other:
        return
    if torch.compiler.is_compiling():
        torch._check(grid.num_voxels == other.num_voxels)
        return
    if not grid.same_voxels(other):
        raise ValueError(
            f"{names} must be on the same voxels, got {grid} and {other}{_differing(grid, other)}; align them first, "
            "for instance with y.to_grid(x.grid)"
        )
