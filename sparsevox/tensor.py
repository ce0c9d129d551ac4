"""SparseTensor: a grid, and a row of features for each of its voxels.

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
    """Features [N, C] on the voxels of a grid, rows in the order of the grid. Nothing is changed in place.

    Raises:
        TypeError: If `grid` is no Grid or `feats` no floating-point tensor.
        ValueError: If `feats` is not [N, C], or lies on another device than the grid.
    """

    def __init__(self, grid: Grid, feats: Tensor) -> None:
        if not isinstance(grid, Grid):
            raise TypeError(f"grid must be a sparsevox.Grid, got {type(grid).__name__}")
        checks.floats("feats", checks.shape("feats", feats, "N", "C"))
        checks.same_device("feats", feats, "the grid", grid.device)
        if feats.shape[0] != grid.num_voxels:
            raise ValueError(f"feats must have {grid.num_voxels} rows, one a voxel of the grid, got {feats.shape[0]}")
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
        """Features [M, C] at integer coordinates [M, 4] = (b, i, j, k) or [M, 3], in any order.

        `reduce` says what becomes of several rows at one voxel: their "sum", "mean", "max" or "first", or an error.

        Raises:
            TypeError: If `coords` are not integers or `feats` not floating-point.
            ValueError: If rows do not match, a coordinate is out of range, or comes twice and `reduce` is "error".
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
        """Features [P, C] of points [P, 3] in the voxels that hold them; arguments as of `Grid.from_points`."""
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
        """The voxels of a volume [B, C, X, Y, Z] where `mask`, bool [B, X, Y, Z], is True; all of them by default.

        `lower` are the coordinates of its first voxel. With `grid`, its voxels are read instead; those outside the
        volume get 0.
        """
        if grid is not None and mask is not None:
            raise ValueError("grid and mask both say which voxels to take; give one of them")
        if grid is not None and (voxel_size, origin) != (1.0, 0.0):
            raise ValueError(
                f"grid says where the voxels lie; do not give voxel_size={voxel_size!r} and origin={origin!r} beside it"
            )
        checks.floats("volume", checks.shape("volume", volume, "B", "C", "X", "Y", "Z"))
        if grid is None:
            if mask is None:
                mask = torch.ones((volume.shape[0], *volume.shape[2:]), dtype=torch.bool, device=volume.device)
            elif mask.shape != (volume.shape[0], *volume.shape[2:]):
                raise ValueError(
                    f"mask must have shape {[volume.shape[0], *volume.shape[2:]]}, that of volume without channels, "
                    f"got {list(mask.shape)}"
                )
            grid = Grid.from_dense(mask, lower=lower, voxel_size=voxel_size, origin=origin)
        return cls(grid, ops.from_dense(volume, grid, lower))

    # Attributes

    @property
    def grid(self) -> Grid:
        """Which voxels exist."""
        return self._grid

    @property
    def feats(self) -> Tensor:
        """[N, C], rows in the order of the grid."""
        return self._feats

    @property
    def coords(self) -> Tensor:
        """Coordinates (b, i, j, k) in row order: int32 [N, 4]."""
        return self._grid.coords

    @property
    def shape(self) -> torch.Size:
        """(N, C)."""
        return self._feats.shape

    @property
    def channels(self) -> int:
        """C."""
        return self._feats.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the features."""
        return self._feats.dtype

    @property
    def device(self) -> torch.device:
        """Of grid and features."""
        return self._feats.device

    @property
    def batch_size(self) -> int:
        """B."""
        return self._grid.batch_size

    def __len__(self) -> int:
        """B, as there are B items to iterate over."""
        return self.batch_size

    def __getitem__(self, index: int | slice) -> "SparseTensor":
        """One item of the batch, or the batch of a slice of them."""
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
        """The same voxels with other features [N, D]."""
        return SparseTensor(self._grid, feats)

    def map(self, function: Callable[[Tensor], Tensor]) -> "SparseTensor":
        """The same voxels with `function(feats)`, which has to keep the rows: `x.map(torch.relu)`."""
        return self.replace(function(self._feats))

    def detach(self) -> "SparseTensor":
        """Without history."""
        return self.replace(self._feats.detach())

    def to(self, *args: Any, **kwargs: Any) -> "SparseTensor":
        """Another device or dtype, as `torch.Tensor.to` takes them. The dtype concerns the features only."""
        feats = self._feats.to(*args, **kwargs)
        return SparseTensor(self._grid.to(feats.device, non_blocking=kwargs.get("non_blocking", False)), feats)

    def cpu(self) -> "SparseTensor":
        """On the CPU."""
        return self.to("cpu")

    def cuda(self, non_blocking: bool = False) -> "SparseTensor":
        """On the current GPU."""
        return self.to("cuda", non_blocking=non_blocking)

    def pin_memory(self) -> "SparseTensor":
        """In pinned memory, from which copies to a GPU need not block."""
        return SparseTensor(self._grid.pin_memory(), self._feats.pin_memory())

    # Other voxels

    def to_grid(self, grid: Grid, fill: float = 0.0) -> "SparseTensor":
        """The features of the voxels of another grid: those that both have, elsewhere `fill`. Transforms do not count.

        Raises:
            TypeError: If `grid` is no Grid.
            ValueError: If batch sizes or devices differ.
        """
        _gather.check_partner(self._grid, grid, "grid")
        return SparseTensor(grid, _gather.rows_or(self._feats, self._grid.index(grid.coords), fill))

    def prune(self, mask: Tensor) -> "SparseTensor":
        """The voxels whose row of `mask`, bool [N], is True."""
        grid = self._grid.prune(mask)
        if torch.compiler.is_compiling():  # which does not know how many rows a mask selects
            return self.to_grid(grid)
        return SparseTensor(grid, self._feats[mask])

    def unbind(self) -> list["SparseTensor"]:
        """One tensor a batch item."""
        grids = list(self._grid)
        parts = self._feats.split([grid.num_voxels for grid in grids])
        return [SparseTensor(grid, part) for grid, part in zip(grids, parts, strict=True)]

    def dense(self, lower: Index3 | None = None, upper: Index3 | None = None) -> Tensor:
        """Volume [B, C, X, Y, Z] of the box from lower to upper, exclusive; 0 where there is no voxel.

        By default the smallest box that holds the whole batch.
        """
        return ops.to_dense(self._feats, self._grid, lower, upper)

    def sample(
        self,
        points: Tensor,
        batch: Tensor | None = None,
        mode: Literal["trilinear", "nearest"] = "trilinear",
    ) -> Tensor:
        """Features [P, C] at world positions [P, 3]: `ops.sample_trilinear` or `ops.sample_nearest`."""
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
    """The channels of all tensors, one after the other, on the voxels that they share.

    Raises:
        TypeError: If an element is no SparseTensor.
        ValueError: If there are none, or their voxels differ.
    """
    first = _gather.first_of(tensors, SparseTensor)
    for index, tensor in enumerate(tensors):
        _gather.check_same_voxels(first.grid, tensor.grid, f"tensors[0] and tensors[{index}]")
    return first.replace(torch.cat([tensor.feats for tensor in tensors], 1))


def stack(tensors: Sequence[SparseTensor]) -> SparseTensor:
    """One batch of all batches, in order. Raises as `Grid.stack`, and ValueError if numbers of channels differ."""
    first = _gather.first_of(tensors, SparseTensor)
    for index, tensor in enumerate(tensors):
        if tensor.channels != first.channels:
            raise ValueError(
                f"tensors must have one number of channels, got {first.channels} in tensors[0] and {tensor.channels} "
                f"in tensors[{index}]"
            )
    return SparseTensor(Grid.stack([t.grid for t in tensors]), torch.cat([t.feats for t in tensors]))


torch.serialization.add_safe_globals([Grid, SparseTensor])
