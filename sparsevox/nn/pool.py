"""Pooling (downsample) and upsampling.

N fine voxels, M coarse voxels, C channels, B grids.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from sparsevox import checks, ops
from sparsevox._gather import rows_or
from sparsevox.conv_geometry import MAX_KERNEL_SIZE, Axes, Geometry
from sparsevox.grid import Grid
from sparsevox.nn._base import Module, check_grid
from sparsevox.ops.pool import Window
from sparsevox.tensor import SparseTensor

Index3 = int | Sequence[int]


class _Pool(Module):
    """Base of the poolings. Windows are blocks of children, or, for any other geometry, those of a kernel map."""

    def __init__(
        self,
        kernel_size: Index3,
        stride: Index3 | None = None,
        padding: Index3 | None = None,
        dilation: Index3 = 1,
    ) -> None:
        super().__init__()
        self.factor: Axes | None = None
        size = checks.factor("kernel_size", kernel_size)
        step = size if stride is None else checks.factor("stride", stride)
        unpadded = padding is None or checks.int_triple("padding", padding) == [0, 0, 0]
        if step == size and unpadded and checks.int_triple("dilation", dilation) == [1, 1, 1]:
            self.factor = (size[0], size[1], size[2])
        else:
            self.geometry = checks.geometry(size, step, dilation, padding)

    def extra_repr(self) -> str:
        """Describe the window."""
        return f"{self.factor}" if self.factor else ", ".join(f"{k}={v}" for k, v in self.geometry._asdict().items())

    def _window(self, x: SparseTensor, grid: Grid | None) -> tuple[Grid, Window]:
        """Return the coarse grid and the map to it."""
        check_grid(self, grid)
        if self.factor:
            grid = x.grid._coarsen(self.factor) if grid is None else grid
            return grid, x.grid._child_map(self.factor, grid)
        if grid is None:
            grid = x.grid if self.geometry.stride == (1, 1, 1) else x.grid._strided(self.geometry)
        return grid, x.grid._kernel_map(self.geometry, grid)


class MaxPool3d(_Pool):
    """Max pooling: the largest element of each window, 0 if it has no voxel.

    `forward(x, grid=...)` pools onto the voxels of a given grid.

    Args:
        kernel_size: Voxels per axis, one int or three. Without other arguments, the window of coarse voxel c is the
            block of fine voxels i with floor(i / kernel_size) = c.
        stride: Ratio of the coarse to the fine voxel size, by default the kernel size.
        padding: Padding in voxels. By default 0 for such blocks, else as in `Conv3d`.
        dilation: Distance between taps in voxels.

    Raises:
        TypeError: If a number is not an int.
        ValueError: If a number is out of range; in `forward`, if the given grid does not fit.
    """

    def forward(self, x: SparseTensor, grid: Grid | None = None) -> SparseTensor:
        """Return features [M, C] on the coarse voxels."""
        grid, window = self._window(self._check_input(x), grid)
        return SparseTensor(grid, ops.max_pool3d(x.feats, window))


class SumPool3d(_Pool):
    """Sum pooling: the sum of each window, 0 if it has no voxel. Arguments and errors are those of `MaxPool3d`."""

    def forward(self, x: SparseTensor, grid: Grid | None = None) -> SparseTensor:
        """Return features [M, C] on the coarse voxels."""
        grid, window = self._window(self._check_input(x), grid)
        return SparseTensor(grid, ops.sum_pool3d(x.feats, window))


class AvgPool3d(_Pool):
    """Average pooling: the mean of each window, 0 if it has no voxel. Other arguments and errors as in `MaxPool3d`.

    Args:
        kernel_size: Voxels per axis, as in `MaxPool3d`.
        stride: Ratio of the coarse to the fine voxel size, by default the kernel size.
        padding: Padding in voxels, as in `MaxPool3d`.
        dilation: Distance between taps in voxels.
        count: Divisor: "active" for the number of voxels that exist, "window" for the volume of the window.
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
        """Return features [M, C] on the coarse voxels."""
        grid, window = self._window(self._check_input(x), grid)
        return SparseTensor(grid, ops.avg_pool3d(x.feats, window, count=self.count))


class GlobalPool(Module):
    """Reduce the voxels of each grid to one row: a plain tensor [B, C], 0 for grids without voxels.

    Args:
        reduce: Reduction: "mean", "max", "sum" or "min". Anything else raises a ValueError.
    """

    def __init__(self, reduce: Literal["mean", "max", "sum", "min"] = "mean") -> None:
        super().__init__()
        if reduce not in ("mean", "max", "sum", "min"):
            raise ValueError(f"reduce must be 'mean', 'max', 'sum' or 'min', got {reduce!r}")
        self.reduce: Literal["mean", "max", "sum", "min"] = reduce

    def forward(self, x: SparseTensor) -> Tensor:
        """Return features [B, C]."""
        x = self._check_input(x)
        return ops.global_pool(x.feats, x.grid, self.reduce)


class Upsample(Module):
    """Nearest-neighbor upsampling: copy the features of every voxel to its children; floor(i / factor) is the parent.

    - `forward(x)` fills all children.
    - `forward(x, mask)` fills the children of the voxels where `mask`, bool [M], is True; for factor 2, the mask may
      also be child occupancy, bool [M, 8].
    - `forward(x, grid=grid)` fills the voxels of a given grid; those without a parent get 0.

    Args:
        factor: Children per axis, one int or three.

    Raises:
        TypeError: If `factor` holds anything but ints.
        ValueError: If a factor is out of range; in `forward`, if the mask or the grid does not fit, or both are given.
    """

    def __init__(self, factor: Index3 = 2) -> None:
        super().__init__()
        x, y, z = checks.factor("factor", factor)
        self.factor = (x, y, z)

    def extra_repr(self) -> str:
        """Describe the factor."""
        return f"{self.factor}"

    def forward(self, x: SparseTensor, mask: Tensor | None = None, grid: Grid | None = None) -> SparseTensor:
        """Return features [N, C] on the fine voxels."""
        x = self._check_input(x)
        fine = _fine_grid(self, x, self.factor, mask, grid)
        return SparseTensor(fine, ops.upsample(x.feats, fine._child_map(self.factor, x.grid)))


class Prune(Module):
    """Keep the voxels whose row of a mask, bool [N], is True."""

    def forward(self, x: SparseTensor, mask: Tensor) -> SparseTensor:
        """Return the kept voxels and their features."""
        return self._check_input(x).prune(mask)


def _fine_grid(module: Module, x: SparseTensor, factor: Axes, mask: Tensor | None, grid: Grid | None) -> Grid:
    """Return the voxels to upsample to: all or selected children of the voxels of x, or those of a given grid."""
    if mask is not None and grid is not None:
        raise ValueError("mask and grid both select the output voxels; give one of them")
    check_grid(module, grid)
    return x.grid._subdivide(factor, mask) if grid is None else grid


def _block(factor: Index3) -> Geometry:
    """Return the geometry whose taps are the children of a voxel."""
    x, y, z = checks.factor("factor", factor)
    if max(x, y, z) > MAX_KERNEL_SIZE:
        raise ValueError(f"factor must be between 1 and {MAX_KERNEL_SIZE}, got {factor!r}")
    return Geometry((x, y, z), (x, y, z), (1, 1, 1), (0, 0, 0))


class SpaceToChannel(Module):
    """Merge each block of `factor`^3 voxels into one voxel with `factor`^3 * C channels; absent voxels are 0.

    The C channels of a child are consecutive; children are numbered with k fastest.

    Args:
        factor: Voxels of a block per axis, one int or three, each 1 to 7.

    Raises:
        TypeError: If `factor` holds anything but ints.
        ValueError: If a factor is out of range; in `forward`, if the given grid does not fit.
    """

    def __init__(self, factor: Index3 = 2) -> None:
        super().__init__()
        self.geometry = _block(factor)
        self.factor = self.geometry.stride

    def forward(self, x: SparseTensor, grid: Grid | None = None) -> SparseTensor:
        """Return features [M, factor^3 * C] on the coarse voxels."""
        x = self._check_input(x)
        check_grid(self, grid)
        coarse = x.grid._strided(self.geometry) if grid is None else grid
        table = x.grid._kernel_map(self.geometry, coarse).table
        children = rows_or(x.feats, rearrange(table, "children m -> (m children)"), 0.0)
        return SparseTensor(coarse, rearrange(children, "(m children) c -> m (children c)", children=table.shape[0]))


class ChannelToSpace(Module):
    """Split the channels of every voxel among its `factor`^3 children: the inverse of `SpaceToChannel`.

    Args:
        factor: Children per axis, one int or three, each 1 to 7.

    Raises:
        TypeError: If `factor` holds anything but ints.
        ValueError: If a factor is out of range; in `forward`, if the channels, the mask or the grid do not fit.
    """

    def __init__(self, factor: Index3 = 2) -> None:
        super().__init__()
        self.geometry = _block(factor)
        self.factor = self.geometry.stride

    def forward(self, x: SparseTensor, mask: Tensor | None = None, grid: Grid | None = None) -> SparseTensor:
        """Return features [N, C / factor^3] on the fine voxels; `mask` and `grid` are those of `Upsample`."""
        x = self._check_input(x)
        taps = self.geometry.taps
        if x.channels % taps:
            raise ValueError(f"ChannelToSpace needs a multiple of {taps} channels, got {x.channels}")
        fine = _fine_grid(self, x, self.factor, mask, grid)
        if mask is None and grid is None and self.factor == (2, 2, 2):  # children are consecutive rows
            return SparseTensor(fine, rearrange(x.feats, "m (children c) -> (m children) c", children=taps))
        parents, tap = fine._kernel_map(self.geometry, x.grid).up.table.max(0)  # at most one tap has a parent
        children = rearrange(x.feats, "m (children c) -> (m children) c", children=taps)
        return SparseTensor(fine, rows_or(children, torch.where(parents < 0, -1, parents.long() * taps + tap), 0.0))
