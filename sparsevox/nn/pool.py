"""Pooling and upsampling.

N fine voxels, M coarse voxels, C channels, B grids.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sparsevox import checks, ops
from sparsevox._gather import rows_or
from sparsevox.geometry import MAX_KERNEL_SIZE
from sparsevox.grid import Grid
from sparsevox.nn._base import Module, check_grid
from sparsevox.ops.pool import Window
from sparsevox.tensor import SparseTensor

Index3 = int | Sequence[int]


class _Pool(Module):
    """Windows of both kinds: blocks of children, and any other through a kernel map."""

    def __init__(
        self,
        kernel_size: Index3,
        stride: Index3 | None = None,
        padding: Index3 | None = None,
        dilation: Index3 = 1,
    ) -> None:
        super().__init__()
        self.factor: list[int] | None = None
        size = checks.factor("kernel_size", kernel_size)
        step = size if stride is None else checks.factor("stride", stride)
        unpadded = padding is None or checks.int_triple("padding", padding) == [0, 0, 0]
        if step == size and unpadded and checks.int_triple("dilation", dilation) == [1, 1, 1]:
            self.factor = size
        else:
            self.geometry = checks.geometry(size, step, dilation, padding)

    def extra_repr(self) -> str:
        """The window."""
        return f"{tuple(self.factor)}" if self.factor else ", ".join(f"{k}={v}" for k, v in self._words())

    def _words(self) -> list[tuple[str, tuple[int, int, int]]]:
        return list(self.geometry._asdict().items())

    def _window(self, x: SparseTensor, grid: Grid | None) -> tuple[Grid, Window]:
        """The coarse grid and the way to it."""
        check_grid(self, grid)
        if self.factor:
            grid = x.grid.coarsen(self.factor) if grid is None else grid
            return grid, x.grid.child_map(self.factor, target=grid)
        size, stride, dilation, padding = self.geometry
        if grid is None:
            grid = x.grid.strided(size, stride, dilation=dilation, padding=padding) if max(stride) > 1 else x.grid
        return grid, x.grid.kernel_map(size, stride=stride, dilation=dilation, padding=padding, target=grid)


class MaxPool3d(_Pool):
    """Largest feature of each window. `forward(x, grid=...)` pools onto a given grid; an empty window gives 0.

    Args:
        kernel_size: One int or three. With no other argument, windows are the children floor(i / kernel_size).
        stride: By default the kernel size.
        padding: By default none for children, else as for convolutions.
        dilation: Distance of taps.
    """

    def forward(self, x: SparseTensor, grid: Grid | None = None) -> SparseTensor:
        """Features [M, C] on the coarse voxels."""
        grid, window = self._window(self._check_input(x), grid)
        return SparseTensor(grid, ops.max_pool3d(x.feats, window))


class SumPool3d(_Pool):
    """Sum of each window; arguments as of `MaxPool3d`."""

    def forward(self, x: SparseTensor, grid: Grid | None = None) -> SparseTensor:
        """Features [M, C] on the coarse voxels."""
        grid, window = self._window(self._check_input(x), grid)
        return SparseTensor(grid, ops.sum_pool3d(x.feats, window))


class AvgPool3d(_Pool):
    """Mean of each window. Arguments are those of `MaxPool3d`, and one more.

    count: "active" divides by the voxels that exist, "window" by the volume of the window.
    """

    def __init__(
        self,
        kernel_size: Index3,
        stride: Index3 | None = None,
        padding: Index3 | None = None,
        dilation: Index3 = 1,
        *,
        count: Literal["active", "window"] = "active",
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation)
        if count not in ("active", "window"):
            raise ValueError(f"count must be 'active' or 'window', got {count!r}")
        self.count: Literal["active", "window"] = count

    def forward(self, x: SparseTensor, grid: Grid | None = None) -> SparseTensor:
        """Features [M, C] on the coarse voxels."""
        grid, window = self._window(self._check_input(x), grid)
        return SparseTensor(grid, ops.avg_pool3d(x.feats, window, count=self.count))


class GlobalPool(Module):
    """One row a grid: the "mean", "max", "sum" or "min" over its voxels, 0 where it has none. A plain tensor [B, C]."""

    def __init__(self, reduce: Literal["mean", "max", "sum", "min"] = "mean") -> None:
        super().__init__()
        if reduce not in ("mean", "max", "sum", "min"):
            raise ValueError(f"reduce must be 'mean', 'max', 'sum' or 'min', got {reduce!r}")
        self.reduce: Literal["mean", "max", "sum", "min"] = reduce

    def forward(self, x: SparseTensor) -> Tensor:
        """Features [B, C]."""
        x = self._check_input(x)
        return ops.global_pool(x.feats, x.grid, self.reduce)


class Upsample(Module):
    """Every voxel hands its features to its children, floor(i / factor).

    `forward(x)` goes to all children; with `mask`, bool [M] or for factor 2 [M, 8], to some of them; with `grid` to the
    voxels of a given grid, of which those without a parent get 0.
    """

    def __init__(self, factor: Index3 = 2) -> None:
        super().__init__()
        self.factor = checks.factor("factor", factor)

    def extra_repr(self) -> str:
        """The factor."""
        return f"{tuple(self.factor)}"

    def forward(self, x: SparseTensor, mask: Tensor | None = None, grid: Grid | None = None) -> SparseTensor:
        """Features [N, C] on the fine voxels."""
        x = self._check_input(x)
        if mask is not None and grid is not None:
            raise ValueError("mask and grid both say which voxels come out; give one of them")
        check_grid(self, grid)
        fine = x.grid.subdivide(self.factor, mask) if grid is None else grid
        return SparseTensor(fine, ops.upsample(x.feats, fine.child_map(self.factor, target=x.grid)))


class Prune(Module):
    """Keep the voxels whose row of a mask, bool [N], is True."""

    def forward(self, x: SparseTensor, mask: Tensor) -> SparseTensor:
        """The kept voxels and their features."""
        return self._check_input(x).prune(mask)


def _small_factor(factor: Index3) -> list[int]:
    """Factors whose children a kernel reaches."""
    factors = checks.factor("factor", factor)
    if max(factors) > MAX_KERNEL_SIZE:
        raise ValueError(f"factor must be between 1 and {MAX_KERNEL_SIZE}, got {factor!r}")
    return factors


class SpaceToChannel(Module):
    """Blocks of `factor`^3 voxels become one voxel with as many times the channels; absent voxels are 0 there.

    Channels of a child follow each other; children are numbered with k fastest.
    """

    def __init__(self, factor: Index3 = 2) -> None:
        super().__init__()
        self.factor = _small_factor(factor)

    def forward(self, x: SparseTensor, grid: Grid | None = None) -> SparseTensor:
        """Features [M, factor^3 * C] on the coarse voxels."""
        x = self._check_input(x)
        check_grid(self, grid)
        coarse = x.grid.coarsen(self.factor) if grid is None else grid
        table = x.grid.kernel_map(self.factor, stride=self.factor, padding=0, target=coarse).table
        children = rows_or(x.feats, table.t().flatten(), 0.0)  # [M * K, C]
        return SparseTensor(coarse, children.unflatten(0, (-1, table.shape[0])).flatten(1))


class ChannelToSpace(Module):
    """The inverse of `SpaceToChannel`: every voxel deals its channels out to its children."""

    def __init__(self, factor: Index3 = 2) -> None:
        super().__init__()
        self.factor = _small_factor(factor)

    def forward(self, x: SparseTensor, mask: Tensor | None = None, grid: Grid | None = None) -> SparseTensor:
        """Features [N, C / factor^3]; `mask` and `grid` as of `Upsample`."""
        x = self._check_input(x)
        taps = self.factor[0] * self.factor[1] * self.factor[2]
        if x.channels % taps:
            raise ValueError(f"ChannelToSpace needs a multiple of {taps} channels, got {x.channels}")
        if mask is not None and grid is not None:
            raise ValueError("mask and grid both say which voxels come out; give one of them")
        check_grid(self, grid)
        fine = x.grid.subdivide(self.factor, mask) if grid is None else grid
        kernel_map = fine.kernel_map(self.factor, stride=self.factor, padding=0, target=x.grid)
        parents, tap = kernel_map.up.table.max(0)  # one tap at most has a parent
        shares = x.feats.unflatten(1, (taps, -1)).flatten(0, 1)
        return SparseTensor(fine, rows_or(shares, torch.where(parents < 0, -1, parents.long() * taps + tap), 0.0))
