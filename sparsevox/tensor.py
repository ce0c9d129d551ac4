"""SparseTensor: a grid with one row of features per voxel.

N voxels, M other voxels, P points, B grids, C channels.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from sparsevox import _gather, checks, ops
from sparsevox.grid import Grid, Scale

Reduce = Literal["error", "sum", "mean", "max", "first"]
Index3 = int | Sequence[int]


class SparseTensor:
    """Features [N, C] on the N voxels of a grid, in the row order of the grid.

    A sparse tensor is immutable: every method returns a new one. The operators `+ - * /` take a number, a tensor that
    broadcasts to [N, C], or a sparse tensor on the same voxels; on different voxels they raise a ValueError.

    Args:
        grid: The voxels, of one or several batch items.
        feats: Features, floating-point [N, C], on the device of the grid.

    Raises:
        TypeError: If `grid` is not a Grid or `feats` is not a floating-point tensor.
        ValueError: If `feats` is not [N, C], or is on another device than the grid.
    """

    def __init__(self, grid: Grid, feats: Tensor) -> None:
        if not isinstance(grid, Grid):
            raise TypeError(f"grid must be a sparsevox.Grid, got {type(grid).__name__}")
        if not checks.are_rows(feats, grid.num_voxels, grid.device):
            checks.floats("feats", checks.shape("feats", feats, "N", "C"))
            checks.same_device("feats", feats, "the grid", grid.device)
            raise ValueError(f"feats must have {grid.num_voxels} rows, one per voxel of grid, got {feats.shape[0]}")
        self._grid = grid
        self._feats = feats

    # Constructors

    @classmethod
    def from_coords(
        cls,
        coords: Tensor,
        feats: Tensor,
        *,
        reduce: Reduce = "error",
        batch_size: int | None = None,
        voxel_size: Scale = 1.0,
        origin: Scale = 0.0,
    ) -> "SparseTensor":
        """Create a sparse tensor from integer coordinates in any order.

        Args:
            coords: Coordinates (b, i, j, k), integers [M, 4], or (i, j, k) of a single batch item, [M, 3].
            feats: Features of the coordinates, floating-point [M, C].
            reduce: How rows with the same coordinates are merged: "sum", "mean", "max" or "first". With "error" they
                raise a ValueError.
            batch_size: Number of batch items B. By default the largest batch index plus 1.
            voxel_size: Edge lengths of a voxel in world units, one number or one per axis.
            origin: World position of the center of voxel (0, 0, 0).

        Raises:
            TypeError: If `coords` is not integer or `feats` is not floating-point.
            ValueError: If the numbers of rows differ, a coordinate is out of range, or coordinates repeat and `reduce`
                is "error".
        """
        grid = Grid.from_coords(coords, batch_size=batch_size, voxel_size=voxel_size, origin=origin)
        return cls(grid, _gather.reduce_rows(grid, grid.index(coords), feats, reduce, "coords"))

    @classmethod
    def from_points(
        cls,
        points: Tensor,
        feats: Tensor,
        batch: Tensor | None = None,
        *,
        voxel_size: Scale,
        origin: Scale | None = None,
        lower: Scale | None = None,
        batch_size: int | None = None,
        reduce: Reduce = "mean",
    ) -> "SparseTensor":
        """Create a sparse tensor on the voxels that contain points.

        Args:
            points: World positions, floating-point [P, 3].
            feats: Features of the points, floating-point [P, C].
            batch: Batch item of each point, integers [P]. By default 0.
            voxel_size: Edge lengths of a voxel in world units, one number or one per axis.
            origin: World position of the center of voxel (0, 0, 0). By default 0.
            lower: World position of the lower corner of voxel (0, 0, 0), in place of `origin`.
            batch_size: Number of batch items B. By default the largest batch index plus 1.
            reduce: How points in the same voxel are merged: "sum", "mean", "max" or "first". With "error" they raise a
                ValueError.

        Raises:
            TypeError: If `points` or `feats` is not floating-point or `batch` is not integer.
            ValueError: If the numbers of rows differ, a point is not finite or out of range, or several points lie in
                the same voxel and `reduce` is "error".
        """
        grid = Grid.from_points(points, batch, voxel_size=voxel_size, origin=origin, lower=lower, batch_size=batch_size)
        return cls(
            grid, _gather.reduce_rows(grid, _gather.containing_rows(grid, points, batch), feats, reduce, "points")
        )

    @classmethod
    def from_dense(
        cls,
        volume: Tensor,
        mask: Tensor | None = None,
        *,
        grid: Grid | None = None,
        lower: Index3 = (0, 0, 0),
        voxel_size: Scale = 1.0,
        origin: Scale = 0.0,
    ) -> "SparseTensor":
        """Create a sparse tensor from a dense volume.

        Args:
            volume: Dense features, floating-point [B, C, X, Y, Z].
            mask: Voxels to take, bool [B, X, Y, Z]. By default all.
            grid: Grid whose voxels are taken, in place of `mask`. Those outside the volume get 0.
            lower: Coordinates of the first voxel of the volume, one int or one per axis.
            voxel_size: Edge lengths of a voxel in world units, one number or one per axis.
            origin: World position of the center of voxel (0, 0, 0).

        Raises:
            TypeError: If `volume` is not floating-point.
            ValueError: If shapes do not match, or `grid` is combined with `mask`, `voxel_size` or `origin`.
        """
        if grid is not None and mask is not None:
            raise ValueError("grid and mask both select the voxels; give only one of them")
        if grid is not None and (voxel_size, origin) != (1.0, 0.0):
            raise ValueError(
                f"grid has its own voxel_size and origin; got also voxel_size={voxel_size!r}, origin={origin!r}"
            )
        checks.floats("volume", checks.shape("volume", volume, "B", "C", "X", "Y", "Z"))
        if grid is None:
            if mask is None:
                mask = torch.ones((volume.shape[0], *volume.shape[2:]), dtype=torch.bool, device=volume.device)
            elif mask.shape != (volume.shape[0], *volume.shape[2:]):
                raise ValueError(
                    f"mask must have shape {[volume.shape[0], *volume.shape[2:]]}, as volume without its channels, got "
                    f"{list(mask.shape)}"
                )
            grid = Grid.from_dense(mask, lower=lower, voxel_size=voxel_size, origin=origin)
        return cls(grid, ops.from_dense(volume, grid, lower))

    # Attributes

    @property
    def grid(self) -> Grid:
        """The voxels."""
        return self._grid

    @property
    def feats(self) -> Tensor:
        """Features [N, C], in the row order of the grid."""
        return self._feats

    @property
    def coords(self) -> Tensor:
        """Coordinates (b, i, j, k) in row order, int32 [N, 4]."""
        return self._grid.coords

    @property
    def shape(self) -> torch.Size:
        """Shape (N, C) of the features."""
        return self._feats.shape

    @property
    def channels(self) -> int:
        """Number of channels C."""
        return self._feats.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the features."""
        return self._feats.dtype

    @property
    def device(self) -> torch.device:
        """Device of grid and features."""
        return self._feats.device

    @property
    def batch_size(self) -> int:
        """Number of batch items B."""
        return self._grid.batch_size

    def __len__(self) -> int:
        """Number of batch items B, not of voxels: iteration yields batch items."""
        return self.batch_size

    def __getitem__(self, index: int | slice) -> "SparseTensor":
        """Select one batch item, or a slice of the batch."""
        grid = self._grid[index]
        items = range(self.batch_size)[index]
        first = items if isinstance(items, int) else items.start
        start = int(self._grid.offsets[first])
        return SparseTensor(grid, self._feats[start : start + grid.num_voxels])

    def __iter__(self) -> Iterator["SparseTensor"]:
        return iter(self.unbind())

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"SparseTensor(C={self.channels}, {dtype}, {self._grid!r})"

    # New features on the same voxels

    def replace(self, feats: Tensor) -> "SparseTensor":
        """Return the same voxels with other features [N, D]."""
        return SparseTensor(self._grid, feats)

    def map(self, function: Callable[[Tensor], Tensor]) -> "SparseTensor":
        """Apply a function to the features, [N, C] to [N, D]: `x.map(torch.relu)`."""
        return self.replace(function(self._feats))

    def detach(self) -> "SparseTensor":
        """Detach the features from the autograd graph."""
        return self.replace(self._feats.detach())

    def to(self, *args: Any, **kwargs: Any) -> "SparseTensor":
        """Convert device and dtype, with the arguments of `torch.Tensor.to`. The dtype applies to the features only."""
        feats = self._feats.to(*args, **kwargs)
        return SparseTensor(self._grid.to(feats.device, non_blocking=kwargs.get("non_blocking", False)), feats)

    def cpu(self) -> "SparseTensor":
        """Return the tensor on the CPU."""
        return self.to("cpu")

    def cuda(self, non_blocking: bool = False) -> "SparseTensor":
        """Return the tensor on the current GPU."""
        return self.to("cuda", non_blocking=non_blocking)

    def pin_memory(self) -> "SparseTensor":
        """Return the tensor in pinned memory, for non-blocking copies to a GPU."""
        return SparseTensor(self._grid.pin_memory(), self._feats.pin_memory())

    # Other voxels

    def to_grid(self, grid: Grid, fill: float = 0.0) -> "SparseTensor":
        """Move the features to the voxels of another grid.

        Voxels are matched by their integer coordinates; voxel size and origin are ignored.

        Args:
            grid: Grid of M voxels, with the same batch size and on the same device.
            fill: Value of the voxels that only `grid` has.

        Returns:
            Features [M, C] on `grid`.

        Raises:
            TypeError: If `grid` is not a Grid.
            ValueError: If batch sizes or devices differ.
        """
        _gather.check_partner(self._grid, grid, "grid")
        return SparseTensor(grid, _gather.rows_or(self._feats, self._grid.index(grid.coords), fill))

    def prune(self, mask: Tensor) -> "SparseTensor":
        """Keep the voxels where `mask`, bool [N], is True. Any other mask raises TypeError or ValueError."""
        grid = self._grid.prune(mask)
        if torch.compiler.is_compiling():  # the compiler does not know how many rows a mask selects
            return self.to_grid(grid)
        return SparseTensor(grid, self._feats[mask])

    def unbind(self) -> list["SparseTensor"]:
        """Split the batch into a list of its items."""
        grids = list(self._grid)
        parts = self._feats.split([grid.num_voxels for grid in grids])
        return [SparseTensor(grid, part) for grid, part in zip(grids, parts, strict=True)]

    def dense(self, lower: Index3 | None = None, upper: Index3 | None = None) -> Tensor:
        """Write the features into a dense volume, with 0 where there is no voxel.

        Args:
            lower: First coordinates of the box, one int or one per axis. By default those of the bounding box of the
                whole batch.
            upper: Last coordinates of the box plus 1, likewise.

        Returns:
            Volume [B, C, X, Y, Z].

        Raises:
            TypeError: If a corner holds anything but ints.
            ValueError: If `lower` exceeds `upper`.
        """
        return ops.to_dense(self._feats, self._grid, lower, upper)

    def sample(
        self,
        points: Tensor,
        batch: Tensor | None = None,
        mode: Literal["trilinear", "nearest"] = "trilinear",
    ) -> Tensor:
        """Interpolate the features at world positions.

        Args:
            points: World positions, floating-point [P, 3].
            batch: Batch item of each point, integers [P]. By default 0.
            mode: "trilinear" for `ops.sample_trilinear`, "nearest" for `ops.sample_nearest`.

        Returns:
            Features [P, C].

        Raises:
            TypeError: If `points` is not floating-point or `batch` is not integer.
            ValueError: If `mode` is unknown, or shapes or devices do not match.
        """
        if mode not in ("trilinear", "nearest"):
            raise ValueError(f"mode must be 'trilinear' or 'nearest', got {mode!r}")
        sample = ops.sample_trilinear if mode == "trilinear" else ops.sample_nearest
        return sample(self._feats, self._grid, points, batch)

    # Arithmetic

    def __add__(self, other: Any) -> "SparseTensor":
        return self._combined(other, torch.add, "+")

    def __radd__(self, other: Any) -> "SparseTensor":
        return self._combined(other, torch.add, "+")

    def __sub__(self, other: Any) -> "SparseTensor":
        return self._combined(other, torch.sub, "-")

    def __rsub__(self, other: Any) -> "SparseTensor":
        return self._combined(other, lambda a, b: b - a, "-")

    def __mul__(self, other: Any) -> "SparseTensor":
        return self._combined(other, torch.mul, "*")

    def __rmul__(self, other: Any) -> "SparseTensor":
        return self._combined(other, torch.mul, "*")

    def __truediv__(self, other: Any) -> "SparseTensor":
        return self._combined(other, torch.div, "/")

    def __rtruediv__(self, other: Any) -> "SparseTensor":
        return self._combined(other, lambda a, b: b / a, "/")

    def __neg__(self) -> "SparseTensor":
        return self.replace(-self._feats)

    def _combined(self, other: Any, function: Callable[[Any, Any], Tensor], symbol: str) -> Any:
        if isinstance(other, SparseTensor):
            _gather.check_same_voxels(self._grid, other._grid, f"both sides of {symbol}")
            other = other._feats
        elif not isinstance(other, Tensor | int | float):
            return NotImplemented
        return self.replace(function(self._feats, other))


def cat(tensors: Sequence[SparseTensor]) -> SparseTensor:
    """Concatenate the channels of sparse tensors on the same voxels, as `torch.cat(feats, 1)` does.

    Raises:
        TypeError: If an element is not a SparseTensor.
        ValueError: If `tensors` is empty, or the voxels differ.
    """
    first = _gather.first_of(tensors, SparseTensor)
    for index, tensor in enumerate(tensors):
        _gather.check_same_voxels(first.grid, tensor.grid, f"tensors[0] and tensors[{index}]")
    return first.replace(torch.cat([tensor.feats for tensor in tensors], 1))


def stack(tensors: Sequence[SparseTensor]) -> SparseTensor:
    """Concatenate batches, in order, into one batch.

    Raises:
        TypeError: If an element is not a SparseTensor.
        ValueError: If `tensors` is empty, or channels, voxel sizes, origins or devices differ.
    """
    first = _gather.first_of(tensors, SparseTensor)
    for index, tensor in enumerate(tensors):
        if tensor.channels != first.channels:
            raise ValueError(
                f"tensors must have the same number of channels, got {first.channels} in tensors[0] and "
                f"{tensor.channels} in tensors[{index}]"
            )
    return SparseTensor(Grid.stack([t.grid for t in tensors]), torch.cat([t.feats for t in tensors]))


torch.serialization.add_safe_globals([Grid, SparseTensor])
