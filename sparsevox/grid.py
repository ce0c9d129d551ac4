"""Grid: which voxels exist. An immutable batch of sets of voxels, and where they lie in the world.

N voxels, M other voxels, P points, B grids, L bricks.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from sparsevox import checks
from sparsevox._grid_maps import GridMaps
from sparsevox._grid_topology import Device, Index3, _check_grid
from sparsevox.morton import Bricks
from sparsevox.ops import bricks as brick_ops
from sparsevox.ops import dense as dense_ops
from sparsevox.ops import nearest as nearest_ops
from sparsevox.ops import topology as topology_ops
from sparsevox.ops import voxelize as voxelize_ops

Scale = float | Sequence[float]


class Grid(GridMaps):
    """A batch of sets of voxels.

    Voxels are kept as 4x4x4 bricks with a 64-bit mask, sorted in Z-order, so rows of features are in Z-order too:
    their order depends on the set of voxels only. The center of voxel (i, j, k) lies at
    `origin + voxel_size * (i, j, k)`. Coordinates lie in [-2^17, 2^17), and a batch has up to 1024 grids.

    Grids are made by `from_coords`, `from_points`, `from_mesh`, `from_dense`, `full`, `empty`, `stack` and by the
    verbs of other grids; the constructor itself takes finished bricks and checks nothing.
    """

    # Constructors

    @classmethod
    def from_coords(
        cls, coords: Tensor, *, batch_size: int | None = None, voxel_size: Scale = 1.0, origin: Scale = 0.0
    ) -> "Grid":
        """Grid of the voxels at integer coordinates [M, 4] = (b, i, j, k), or [M, 3] = (i, j, k) of one grid.

        Any order; duplicates merge. `batch_size=None` takes the largest batch index plus one (1 without coordinates).

        Raises:
            TypeError: If `coords` does not hold integers.
            ValueError: If its shape is wrong, or the first offending row is out of range (see the class).
        """
        transform = checks.transform(voxel_size, origin)
        return cls(brick_ops.build(coords, batch_size), *transform)

    @classmethod
    def from_points(
        cls,
        points: Tensor,
        batch: Tensor | None = None,
        *,
        voxel_size: Scale,
        origin: Scale | None = None,
        lower: Scale | None = None,
        batch_size: int | None = None,
        mode: Literal["containing", "enclosing"] = "containing",
    ) -> "Grid":
        """Grid of the voxels around points [P, 3], with batch indices [P].

        `mode="containing"` takes the voxel whose box holds the point, `floor((p - origin) / voxel_size + 0.5)`;
        `mode="enclosing"` the eight voxels whose centers enclose it. `lower` may be given instead of `origin`: the
        corner, not the center, of voxel (0, 0, 0).

        Raises:
            TypeError: If points are not floating-point or batch indices not integers.
            ValueError: If shapes do not fit, a point is not finite, or a voxel would be out of range.
        """
        size = checks.voxel_size(voxel_size)
        start = checks.float_triple("origin", 0.0 if origin is None else origin)
        if lower is not None:
            if origin is not None:
                raise ValueError("origin and lower both say where the grid lies; give one of them")
            corner = checks.float_triple("lower", lower)
            start = (corner[0] + size[0] / 2, corner[1] + size[1] / 2, corner[2] + size[2] / 2)
        return cls(voxelize_ops.from_points(points, batch, size, start, batch_size, mode), size, start)

    @classmethod
    def from_mesh(cls, vertices: Tensor, faces: Tensor, *, voxel_size: Scale, origin: Scale = 0.0) -> "Grid":
        """Grid of every voxel whose closed box touches a triangle of a mesh: vertices [V, 3], faces [F, 3].

        Raises:
            TypeError: If vertices are not floating-point or faces not integers.
            ValueError: If shapes do not fit, a used vertex is not finite or out of range, or a face points past the
                vertices. Degenerate triangles are legal.
        """
        transform = checks.transform(voxel_size, origin)
        return cls(voxelize_ops.from_mesh(vertices, faces, *transform), *transform)

    @classmethod
    def from_dense(
        cls, mask: Tensor, *, lower: Index3 = (0, 0, 0), voxel_size: Scale = 1.0, origin: Scale = 0.0
    ) -> "Grid":
        """Grid of the True voxels of a bool volume [B, X, Y, Z], whose first voxel has the coordinates `lower`."""
        transform = checks.transform(voxel_size, origin)
        return cls(dense_ops.from_mask(mask, lower), *transform)

    @classmethod
    def full(
        cls,
        lower: Index3,
        upper: Index3,
        *,
        batch_size: int = 1,
        voxel_size: Scale = 1.0,
        origin: Scale = 0.0,
        device: Device = None,
    ) -> "Grid":
        """Grid of all voxels with lower <= ijk < upper, in every batch item."""
        transform = checks.transform(voxel_size, origin)
        return cls(topology_ops.full(lower, upper, batch_size, device), *transform)

    @classmethod
    def empty(
        cls, batch_size: int = 1, *, voxel_size: Scale = 1.0, origin: Scale = 0.0, device: Device = None
    ) -> "Grid":
        """Grid without voxels."""
        transform = checks.transform(voxel_size, origin)
        return cls(brick_ops.empty(batch_size, device), *transform)

    @classmethod
    def stack(cls, grids: Iterable["Grid"]) -> "Grid":
        """One batch of all batches, in order. Raises ValueError unless transforms and devices agree."""
        grids = list(grids)
        if not grids:
            raise ValueError("grids must hold one grid at least, got none")
        first = grids[0]
        for index, grid in enumerate(grids):
            _check_grid(f"grids[{index}]", grid)
            first._check_aligned(grid, f"grids[0] and grids[{index}]")
        return cls(brick_ops.stack([grid.bricks for grid in grids]), first.voxel_size, first.origin)

    # Attributes

    @property
    def coords(self) -> Tensor:
        """Coordinates (b, i, j, k) in row order: int32 [N, 4]. Computed from the bricks when asked for."""
        return brick_ops.coords(self.bricks)

    @property
    def ijk(self) -> Tensor:
        """Coordinates without the batch index: int32 [N, 3]."""
        return self.coords[:, 1:]

    @property
    def batch(self) -> Tensor:
        """Batch index of every row: int64 [N]."""
        return self.coords[:, 0].long()

    @property
    def offsets(self) -> Tensor:
        """First row of each batch item, then N: int64 [B + 1]."""
        return self.bricks.offsets.clone()

    @property
    def num_voxels(self) -> int:
        """N, over the whole batch."""
        return self.bricks.rows.shape[0]

    @property
    def num_bricks(self) -> int:
        """L, over the whole batch."""
        return self.bricks.keys.shape[0]

    @property
    def batch_size(self) -> int:
        """B."""
        return self.bricks.offsets.shape[0] - 1

    @property
    def device(self) -> torch.device:
        """Where the bricks lie."""
        return self.bricks.keys.device

    @property
    def nbytes(self) -> int:
        """Bytes of keys, masks, starts and hash table; the table counts before its first use, too."""
        words = (self.bricks.keys, self.bricks.masks, self.bricks.starts)
        return sum(t.numel() * t.element_size() for t in words) + brick_ops.table_bytes(self.num_bricks)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Smallest ijk and largest ijk plus one of each grid: two int32 [B, 3], both 0 where a grid is empty."""
        return brick_ops.bounds(self.bricks)

    def __len__(self) -> int:
        return self.batch_size

    def __repr__(self) -> str:
        size, start = (value[0] if len(set(value)) == 1 else value for value in (self.voxel_size, self.origin))
        return (
            f"Grid(N={self.num_voxels:,}, bricks={self.num_bricks:,}, B={self.batch_size}, "
            f"voxel_size={size}, origin={start}, {self.device})"
        )

    # Devices, batches and copies

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Grid":
        """This grid on another device; itself, if it is there already."""
        if self.bricks.keys.device == torch.empty(0, device=device).device:
            return self
        return self._with_arrays(lambda array: array.to(device, non_blocking=non_blocking))

    def cpu(self) -> "Grid":
        """This grid on the CPU."""
        return self.to("cpu")

    def cuda(self, non_blocking: bool = False) -> "Grid":
        """This grid on the current GPU."""
        return self.to("cuda", non_blocking=non_blocking)

    def pin_memory(self) -> "Grid":
        """This grid in pinned memory, from which copies to a GPU need not block."""
        return self._with_arrays(lambda array: array.pin_memory())

    def _with_arrays(self, function: Callable[[Tensor], Tensor]) -> "Grid":
        return Grid(Bricks(*map(function, self.bricks)), self.voxel_size, self.origin)

    def __getitem__(self, index: int | slice) -> "Grid":
        if isinstance(index, slice):
            start, stop, step = index.indices(self.batch_size)
            if step != 1:
                raise ValueError(f"slices of a batch have step 1, got {index}")
            return self._split([(start, max(start, stop))])[0]
        item = checks.integer("index", index)
        if not -self.batch_size <= item < self.batch_size:
            raise IndexError(f"index {item} is out of range for a batch of {self.batch_size}")
        return self._split([(item % self.batch_size, item % self.batch_size + 1)])[0]

    def __iter__(self) -> Iterator["Grid"]:
        return iter(self._split([(item, item + 1) for item in range(self.batch_size)]))

    def _split(self, ranges: Sequence[tuple[int, int]]) -> list["Grid"]:
        return [Grid(part, self.voxel_size, self.origin) for part in brick_ops.split(self.bricks, ranges)]

    def __getstate__(self) -> dict[str, Any]:
        return {"bricks": tuple(self.bricks), "voxel_size": self.voxel_size, "origin": self.origin}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(Bricks(*state["bricks"]), state["voxel_size"], state["origin"])  # type: ignore[misc]

    # Queries

    def index(self, coords: Tensor) -> Tensor:
        """Row of each voxel [M, 4] or [M, 3], -1 where there is none: int64 [M]. What is out of range is absent."""
        return brick_ops.find_rows(self.bricks, self.table, coords)

    def contains(self, coords: Tensor) -> Tensor:
        """Whether each voxel [M, 4] or [M, 3] exists: bool [M]."""
        return self.index(coords) >= 0

    def nearest(self, points: Tensor, batch: Tensor | None = None) -> Tensor:
        """Row of the voxel of the point's batch item whose center is nearest to each world position [P, 3]: int64 [P].

        The lowest row of those equally near; -1 where the item has no voxel.
        """
        return nearest_ops.nearest(self.bricks, points, batch, self.voxel_size, self.origin)

    def to_world(self, ijk: Tensor) -> Tensor:
        """World positions [..., 3] of voxel coordinates [..., 3], in their dtype; of integers, in the default dtype."""
        ijk = checks.last_axis("ijk", ijk)
        dtype = ijk.dtype if ijk.is_floating_point() else torch.get_default_dtype()
        return voxelize_ops.to_world(ijk, self.voxel_size, self.origin).to(dtype)

    def to_ijk(self, xyz: Tensor) -> Tensor:
        """Continuous voxel coordinates float64 [..., 3] of world positions [..., 3]; integers are voxel centers."""
        return voxelize_ops.to_grid(checks.last_axis("xyz", xyz), self.voxel_size, self.origin)

    def same_voxels(self, other: "Grid") -> bool:
        """Whether both batches hold the same voxels, wherever they lie in the world."""
        _check_grid("other", other)
        same_size = self.bricks.keys.shape == other.bricks.keys.shape and self.batch_size == other.batch_size
        if not same_size or self.device != other.device:
            return False
        same = (self.bricks.keys == other.bricks.keys).all() & (self.bricks.masks == other.bricks.masks).all()
        return bool(same)
