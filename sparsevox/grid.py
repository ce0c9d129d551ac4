"""Grid: which voxels exist. An immutable batch of sets of voxels, and their position in the world.

N voxels, M other or coarse voxels, P points, B grids, L bricks, K taps (kernel offsets).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor

from sparsevox import checks
from sparsevox.checks import Triple
from sparsevox.conv_geometry import Axes, Geometry
from sparsevox.morton import Bricks
from sparsevox.ops import _library, _targets
from sparsevox.ops import bricks as brick_ops
from sparsevox.ops import dense as dense_ops
from sparsevox.ops import morphology as morphology_ops
from sparsevox.ops import nearest as nearest_ops
from sparsevox.ops import neighbors as neighbor_ops
from sparsevox.ops import pool as pool_ops
from sparsevox.ops import topology as topology_ops
from sparsevox.ops import voxelize as voxelize_ops
from sparsevox.ops._child_map import ChildMap
from sparsevox.ops._kernel_map import KernelMap

Device = torch.device | str | None
Index3 = int | Sequence[int]
Scale = float | Sequence[float]

TRANSFORM_TOLERANCE = 1e-5  # of a voxel
RATIO_TOLERANCE = 1e-4  # of the ratio of two voxel sizes


class Grid:
    """A batch of sets of voxels.

    Voxels are stored as 4x4x4 bricks, each with a 64-bit mask, sorted in Z-order. Feature rows are in Z-order too:
    their order depends on the set of voxels only. A hash table maps keys to bricks. The center of voxel (i, j, k) is
    at `origin + voxel_size * (i, j, k)`. Coordinates lie in [-2^17, 2^17), and a batch has up to 1024 grids.

    Grids are made by `from_coords`, `from_points`, `from_mesh`, `from_dense`, `full`, `empty` and `stack`, or from
    other grids: by `coarsen` (downsample), `subdivide` (upsample), `dilate`, `prune` and so on, and by the set
    operations `a | b`, `a & b`, `a - b` and `a ^ b`. Indexing, iteration and `len` refer to the grids of the batch. The
    constructor itself takes finished bricks and checks nothing.
    """

    def __init__(self, bricks: Bricks, voxel_size: Triple = (1.0, 1.0, 1.0), origin: Triple = (0.0, 0.0, 0.0)) -> None:
        if not torch.compiler.is_compiling() and bricks.keys.is_inference():
            with torch.inference_mode(False):  # so that the grid can be used for training too
                bricks = Bricks(*(array.clone() for array in bricks))
        self._bricks = bricks
        self._voxel_size = voxel_size
        self._origin = origin
        self._table: Tensor | None = None
        # Caches: derived grids, while referenced; maps within the grid; maps to other grids, while those exist.
        self._derived: WeakValueDictionary[tuple[object, ...], Grid] = WeakValueDictionary()
        self._own_maps: dict[Geometry, KernelMap] = {}
        self._maps: WeakKeyDictionary[Grid, dict[Geometry, KernelMap]] = WeakKeyDictionary()
        self._child_maps: WeakKeyDictionary[Grid, dict[Axes, ChildMap]] = WeakKeyDictionary()

    # Constructors

    @classmethod
    def from_coords(
        cls, coords: Tensor, *, batch_size: int | None = None, voxel_size: Scale = 1.0, origin: Scale = 0.0
    ) -> "Grid":
        """Make a grid of integer coordinates [M, 4] = (b, i, j, k), or [M, 3] = (i, j, k) of a single grid.

        Coordinates may come in any order; duplicates merge. `batch_size=None` takes the largest batch index plus one (1
        if there are no coordinates).

        Raises:
            TypeError: If `coords` does not hold integers.
            ValueError: If its shape is wrong, or a row is out of range (see the class). The message names the first
                such row.
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
        """Make a grid of the voxels around points [P, 3] with batch indices [P].

        `mode="containing"` takes the voxel whose box contains the point, `floor((p - origin) / voxel_size + 0.5)`;
        `mode="enclosing"` the eight voxels whose centers enclose it. Instead of `origin`, the center of voxel (0, 0,
        0), its lower corner may be given as `lower`.

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
        """Make a grid of every voxel whose closed box touches a triangle of a mesh: vertices [V, 3], faces [F, 3].

        Degenerate triangles are legal.

        Raises:
            TypeError: If vertices are not floating-point or faces not integers.
            ValueError: If shapes do not fit, a vertex of a face is not finite or out of range, or a face refers to a
                vertex that does not exist.
        """
        transform = checks.transform(voxel_size, origin)
        return cls(voxelize_ops.from_mesh(vertices, faces, *transform), *transform)

    @classmethod
    def from_dense(
        cls, mask: Tensor, *, lower: Index3 = (0, 0, 0), voxel_size: Scale = 1.0, origin: Scale = 0.0
    ) -> "Grid":
        """Make a grid of the True voxels of a bool volume [B, X, Y, Z], whose first voxel has the coordinates `lower`.

        Raises:
            TypeError: If the mask is not bool.
            ValueError: If its shape is wrong, or a voxel would be out of range.
        """
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
        """Make a grid of all voxels with lower <= ijk < upper, in every batch item.

        Raises:
            ValueError: If `lower` exceeds `upper`, the box is out of range, or it has more than 2^31 - 1 voxels.
        """
        transform = checks.transform(voxel_size, origin)
        return cls(topology_ops.full(lower, upper, batch_size, device), *transform)

    @classmethod
    def empty(
        cls, batch_size: int = 1, *, voxel_size: Scale = 1.0, origin: Scale = 0.0, device: Device = None
    ) -> "Grid":
        """Make a batch of grids without voxels."""
        transform = checks.transform(voxel_size, origin)
        return cls(brick_ops.empty(batch_size, device), *transform)

    @classmethod
    def stack(cls, grids: Iterable["Grid"]) -> "Grid":
        """Concatenate batches, in order, into one batch.

        Raises:
            TypeError: If an element is not a Grid.
            ValueError: If there are no grids, or their transforms or devices differ.
        """
        grids = list(grids)
        if not grids:
            raise ValueError("grids must hold at least one grid, got none")
        first = grids[0]
        for index, grid in enumerate(grids):
            _check_grid(f"grids[{index}]", grid)
            first._check_aligned(grid, f"grids[0] and grids[{index}]")
        return cls(brick_ops.stack([grid.bricks for grid in grids]), first.voxel_size, first.origin)

    # Attributes

    @property
    def bricks(self) -> Bricks:
        """Keys, masks, starts, offsets and rows: the whole topology. Do not write to these tensors."""
        return self._bricks

    @property
    def voxel_size(self) -> Triple:
        """Edge lengths of a voxel in world units, one per axis."""
        return self._voxel_size

    @property
    def origin(self) -> Triple:
        """World position of the center of voxel (0, 0, 0)."""
        return self._origin

    @property
    def table(self) -> Tensor:
        """Hash table from brick keys to brick rows, int32 [capacity], built at first use."""
        if self._table is None:
            self._table = brick_ops.table(self._bricks)
        return self._table

    @property
    def coords(self) -> Tensor:
        """Coordinates (b, i, j, k) in row order: int32 [N, 4], computed from the bricks at each access."""
        return brick_ops.coords(self._bricks)

    @property
    def ijk(self) -> Tensor:
        """Coordinates without the batch index: int32 [N, 3]."""
        return self.coords[:, 1:]

    @property
    def batch(self) -> Tensor:
        """Batch index of every row: int64 [N]."""
        return torch.repeat_interleave(self._bricks.offsets.diff(), output_size=self.num_voxels)

    @property
    def offsets(self) -> Tensor:
        """First row of each batch item, then N: int64 [B + 1]."""
        return self._bricks.offsets.clone()

    @property
    def num_voxels(self) -> int:
        """Number of voxels in the whole batch, N."""
        return self._bricks.rows.shape[0]

    @property
    def num_bricks(self) -> int:
        """Number of bricks in the whole batch, L."""
        return self._bricks.keys.shape[0]

    @property
    def batch_size(self) -> int:
        """Number of grids in the batch, B."""
        return self._bricks.offsets.shape[0] - 1

    @property
    def device(self) -> torch.device:
        """Device of the bricks."""
        return self._bricks.keys.device

    @property
    def nbytes(self) -> int:
        """Bytes of keys, masks, starts and hash table; the table is counted even if it is not built yet."""
        words = (self._bricks.keys, self._bricks.masks, self._bricks.starts)
        return sum(t.numel() * t.element_size() for t in words) + brick_ops.table_bytes(self.num_bricks)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Smallest ijk, and largest ijk plus one, of each grid: two int32 [B, 3], both 0 where a grid is empty."""
        return brick_ops.bounds(self._bricks)

    def __len__(self) -> int:
        return self.batch_size

    def __repr__(self) -> str:
        size, start = (value[0] if len(set(value)) == 1 else value for value in (self.voxel_size, self.origin))
        return (
            f"Grid(N={self.num_voxels:,}, bricks={self.num_bricks:,}, B={self.batch_size}, "
            f"voxel_size={size}, origin={start}, {self.device})"
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Grid":
        """Return this grid on another device, or itself if it is on that device already."""
        if self.device == torch.empty(0, device=device).device:
            return self
        return self._with_arrays(lambda array: array.to(device, non_blocking=non_blocking))

    def cpu(self) -> "Grid":
        """Return this grid on the CPU."""
        return self.to("cpu")

    def cuda(self, non_blocking: bool = False) -> "Grid":
        """Return this grid on the current GPU."""
        return self.to("cuda", non_blocking=non_blocking)

    def pin_memory(self) -> "Grid":
        """Return this grid in pinned memory, from which copies to a GPU need not block."""
        return self._with_arrays(lambda array: array.pin_memory())

    def _with_arrays(self, function: Callable[[Tensor], Tensor]) -> "Grid":
        return self._with(Bricks(*map(function, self._bricks)))

    def _with(self, bricks: Bricks, voxel_size: Triple | None = None, origin: Triple | None = None) -> "Grid":
        return Grid(bricks, voxel_size or self.voxel_size, origin or self.origin)

    def __getitem__(self, index: int | slice) -> "Grid":
        if isinstance(index, slice):
            start, stop, step = index.indices(self.batch_size)
            if step != 1:
                raise ValueError(f"a slice of a batch must have step 1, got {index}")
            return self._split([(start, max(start, stop))])[0]
        item = checks.integer("index", index)
        if not -self.batch_size <= item < self.batch_size:
            raise IndexError(f"index {item} is out of range for a batch of {self.batch_size}")
        return self._split([(item % self.batch_size, item % self.batch_size + 1)])[0]

    def __iter__(self) -> Iterator["Grid"]:
        return iter(self._split([(item, item + 1) for item in range(self.batch_size)]))

    def _split(self, ranges: Sequence[tuple[int, int]]) -> list["Grid"]:
        return [self._with(part) for part in brick_ops.split(self._bricks, ranges)]

    def __getstate__(self) -> dict[str, Any]:
        return {"bricks": tuple(self._bricks), "voxel_size": self.voxel_size, "origin": self.origin}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(Bricks(*state["bricks"]), state["voxel_size"], state["origin"])  # type: ignore[misc]

    # Look-ups

    def index(self, coords: Tensor) -> Tensor:
        """Look up the row of each voxel [M, 4] or [M, 3]: int64 [M], -1 where it is absent or out of range."""
        return brick_ops.find_rows(self._bricks, brick_ops.lookup_table(self), coords)

    def contains(self, coords: Tensor) -> Tensor:
        """Test whether each voxel [M, 4] or [M, 3] exists: bool [M]."""
        return self.index(coords) >= 0

    def nearest(self, points: Tensor, batch: Tensor | None = None) -> Tensor:
        """Find the voxel whose center is nearest to each world position [P, 3], in its batch item: rows int64 [P].

        Among equally near voxels the lowest row wins. The result is -1 where the item has no voxel.

        Raises:
            TypeError: If points are not floating-point or batch indices not integers.
            ValueError: If shapes or devices do not fit, or a point is not finite.
        """
        return nearest_ops.nearest(self._bricks, points, batch, self.voxel_size, self.origin)

    def to_world(self, ijk: Tensor) -> Tensor:
        """Convert voxel coordinates [..., 3] to world positions of the same dtype (the default dtype for integers)."""
        ijk = checks.last_axis("ijk", ijk)
        dtype = ijk.dtype if ijk.is_floating_point() else torch.get_default_dtype()
        return voxelize_ops.to_world(ijk, self.voxel_size, self.origin).to(dtype)

    def to_ijk(self, xyz: Tensor) -> Tensor:
        """Convert world positions [..., 3] to continuous voxel coordinates, float64; integers are voxel centers."""
        return voxelize_ops.to_grid(checks.last_axis("xyz", xyz), self.voxel_size, self.origin)

    def same_voxels(self, other: "Grid") -> bool:
        """Test whether both batches hold the same voxels, regardless of their transforms."""
        _check_grid("other", other)
        same_size = self._bricks.keys.shape == other.bricks.keys.shape and self.batch_size == other.batch_size
        if not same_size or self.device != other.device:
            return False
        same = (self._bricks.keys == other.bricks.keys).all() & (self._bricks.masks == other.bricks.masks).all()
        return bool(same)

    # Topology

    def coarsen(self, factor: Index3 = 2) -> "Grid":
        """Downsample: the voxels floor(ijk / factor), for negative coordinates too.

        The voxel size is multiplied by the factor, and the center of a coarse voxel is the center of its block.
        Isotropic powers of two are bit arithmetic on bricks; for other factors, coordinates are decoded, divided and
        sorted. Equal calls return the same grid while a reference to it exists.

        Raises:
            TypeError: If the factor is not one int or three.
            ValueError: If a factor is smaller than 1.
        """
        return self._coarsen(checks.factor("factor", factor))

    def _coarsen(self, factors: Sequence[int]) -> "Grid":
        if max(factors) == 1:
            return self

        def make() -> Grid:
            return self._with(topology_ops.coarsen(self._bricks, factors), *self._coarse_transform(factors))

        return self._remember(("coarsen", *factors), make)

    def subdivide(self, factor: Index3 = 2, mask: Tensor | None = None) -> "Grid":
        """Upsample: all children, ijk * factor + [0, factor), of every voxel.

        Args:
            factor: Children per axis, one int or three.
            mask: Voxels to subdivide, bool [N]; or, for factor 2, child occupancy, bool [N, 8], numbered with k
                fastest. By default all children.

        Raises:
            TypeError: If the factor is not one int or three, or the mask not bool.
            ValueError: If a factor is smaller than 1, the mask has another shape, or a child would be out of range.
        """
        return self._subdivide(checks.factor("factor", factor), mask)

    def _subdivide(self, factors: Sequence[int], mask: Tensor | None) -> "Grid":
        if max(factors) == 1:
            return self if mask is None else self.prune(mask)
        return self._with(topology_ops.subdivide(self._bricks, factors, mask), *self._fine_transform(factors))

    def dilate(
        self,
        radius: Index3 = 1,
        *,
        lower: Index3 | None = None,
        upper: Index3 | None = None,
        stencil: Tensor | None = None,
    ) -> "Grid":
        """Dilate: all voxels a + s, with a in the grid and s in a box or stencil.

        The box extends `radius` voxels in each direction, or from `lower` to `upper` inclusive. `stencil` is a bool
        [a, b, c] of any shape, whose center is its entry (size - 1) // 2 on each axis.

        Raises:
            TypeError: If bounds are not ints or the stencil is not bool.
            ValueError: If the radius is negative, `lower` exceeds `upper`, the stencil is empty, or a voxel would be
                out of range.
        """
        box, offsets = morphology_ops.structuring_element(radius, lower, upper, stencil)
        if box is None:
            return self._with(morphology_ops.dilate_stencil(self._bricks, offsets))
        low, up = box
        return self._remember(("dilate", *low, *up), lambda: self._with(morphology_ops.dilate(self._bricks, low, up)))

    def erode(
        self,
        radius: Index3 = 1,
        *,
        lower: Index3 | None = None,
        upper: Index3 | None = None,
        stencil: Tensor | None = None,
    ) -> "Grid":
        """Erode: all x for which x + s is a voxel for every s in a box or stencil.

        Arguments and errors are those of `dilate`.
        """
        box, offsets = morphology_ops.structuring_element(radius, lower, upper, stencil)
        if box is None:
            return self._with(morphology_ops.erode_stencil(self._bricks, self.table, offsets))
        low, up = box
        return self._with(morphology_ops.erode(self._bricks, brick_ops.walking_table(self), low, up))

    def prune(self, mask: Tensor) -> "Grid":
        """Keep the voxels whose row of `mask`, bool [N], is True. Any other mask raises TypeError or ValueError."""
        return self._with(topology_ops.prune(self._bricks, mask))

    def crop(self, lower: Index3, upper: Index3) -> "Grid":
        """Keep the voxels with lower <= ijk < upper, in every batch item. Raises ValueError if lower exceeds upper."""
        return self._with(topology_ops.crop(self._bricks, lower, upper))

    def strided(
        self, kernel_size: Index3, stride: Index3 = 2, *, dilation: Index3 = 1, padding: Index3 | None = None
    ) -> "Grid":
        """Return the output grid of a strided convolution: every coarse voxel that a tap reaches from this grid.

        Its transform is that of `coarsen(stride)`. Arguments and errors are those of `kernel_map`.
        """
        return self._strided(checks.geometry(kernel_size, stride, dilation, padding))

    def _strided(self, geometry: Geometry) -> "Grid":
        if geometry.kernel_size == geometry.stride and geometry.padding == (0, 0, 0) and geometry.dilation == (1, 1, 1):
            return self._coarsen(geometry.stride)

        def make() -> Grid:
            return self._with(_targets.strided(self._bricks, geometry), *self._coarse_transform(geometry.stride))

        return self._remember(("strided", *geometry), make)

    def generative(
        self, kernel_size: Index3, stride: Index3 = 2, *, dilation: Index3 = 1, padding: Index3 | None = None
    ) -> "Grid":
        """Return the output grid of a generative transposed convolution: every fine voxel that a tap reaches.

        Its transform is that of `subdivide(stride)`. Arguments and errors are those of `kernel_map`; a voxel out of
        range raises a ValueError, too.
        """
        return self._generative(checks.geometry(kernel_size, stride, dilation, padding))

    def _generative(self, geometry: Geometry) -> "Grid":
        def make() -> Grid:
            return self._with(_targets.generative(self._bricks, geometry), *self._fine_transform(geometry.stride))

        return self._remember(("generative", *geometry), make)

    def __or__(self, other: "Grid") -> "Grid":
        return self._combined(other, "or", "|")

    def __and__(self, other: "Grid") -> "Grid":
        return self._combined(other, "and", "&")

    def __sub__(self, other: "Grid") -> "Grid":
        return self._combined(other, "sub", "-")

    def __xor__(self, other: "Grid") -> "Grid":
        return self._combined(other, "xor", "^")

    def _combined(self, other: "Grid", op: str, symbol: str) -> "Grid":
        _check_grid(f"the right side of {symbol}", other)
        if self.batch_size != other.batch_size:
            sizes = f"{self.batch_size} and {other.batch_size}"
            raise ValueError(f"both sides of {symbol} must have the same batch size, got {sizes}")
        self._check_aligned(other, f"both sides of {symbol}")
        return self._with(topology_ops.combine(self._bricks, other.bricks, op))

    def _check_aligned(self, other: "Grid", names: str) -> None:
        if self.device != other.device:
            raise ValueError(f"{names} must be on the same device, got {self.device} and {other.device}")
        for name in ("voxel_size", "origin"):
            mine, theirs = getattr(self, name), getattr(other, name)
            off = max(abs(a - b) / edge for a, b, edge in zip(mine, theirs, self.voxel_size, strict=True))
            if off > TRANSFORM_TOLERANCE:
                raise ValueError(f"{names} must have the same {name}, got {mine} and {theirs}")

    def _coarse_transform(self, factors: Sequence[int]) -> tuple[Triple, Triple]:
        size, start = self.voxel_size, self.origin
        coarse_size = _per_axis(lambda a: size[a] * factors[a])
        coarse_origin = _per_axis(lambda a: start[a] + size[a] * (factors[a] - 1) / 2)
        return checks.transform(coarse_size, coarse_origin)

    def _fine_transform(self, factors: Sequence[int]) -> tuple[Triple, Triple]:
        fine_size = _per_axis(lambda a: self.voxel_size[a] / factors[a])
        fine_origin = _per_axis(lambda a: self.origin[a] - fine_size[a] * (factors[a] - 1) / 2)
        return checks.transform(fine_size, fine_origin)

    def _remember(self, key: tuple[object, ...], make: Callable[[], "Grid"]) -> "Grid":
        """Return the grid made before under the same key if it still exists, so that equal calls agree."""
        if torch.compiler.is_compiling():
            return make()
        grid = self._derived.get(key)
        if grid is None:
            grid = self._derived[key] = make()
        return grid

    # Maps

    def kernel_map(
        self,
        kernel_size: Index3,
        *,
        stride: Index3 = 1,
        dilation: Index3 = 1,
        padding: Index3 | None = None,
        target: "Grid | None" = None,
    ) -> KernelMap:
        """Return the kernel map (rulebook) of a convolution to a coarser grid, or within this one (submanifold).

        At tap t (kernel offset), coarse voxel c meets the fine voxel `stride * c + t * dilation - padding`, on each
        axis. Equal calls return the same map while both grids exist.

        Args:
            kernel_size: Taps per axis, 1 to 7; one int or three.
            stride: Ratio of the coarse to the fine voxel size, one int or three.
            dilation: Distance between taps in voxels, one int or three.
            padding: Padding in voxels, one int or three; by default `floor((kernel_size - 1) / 2) * dilation`.
            target: The coarse grid. By default this grid itself for stride 1, else `strided(...)`.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If a size is out of range, or the voxel sizes, batch size or device of `target` do not fit.
        """
        geometry = checks.geometry(kernel_size, stride, dilation, padding)
        if target is None:
            target = self if geometry.stride == (1, 1, 1) else self._strided(geometry)
        return self._kernel_map(geometry, target)

    def _kernel_map(self, geometry: Geometry, target: "Grid") -> KernelMap:
        """Return the `kernel_map` of a geometry that is known to be valid."""
        if target is self and geometry.stride == (1, 1, 1):
            own = self._own_maps.get(geometry)
            if own is None:
                own = self._own_maps[geometry] = self._new_map(self, geometry, geometry.symmetric)
            return own
        _check_grid("target", target)
        if torch.compiler.is_compiling():
            self._check_target(target, geometry.stride)
            return self._new_map(target, geometry, symmetric=False)
        maps = self._maps.setdefault(target, {})
        kernel_map = maps.get(geometry)
        if kernel_map is None:
            self._check_target(target, geometry.stride)
            kernel_map = maps[geometry] = self._new_map(target, geometry, symmetric=False)
        return kernel_map

    def _new_map(self, target: "Grid", geometry: Geometry, symmetric: bool) -> KernelMap:
        with _library.lasting():
            table = neighbor_ops.kernel_table(self, target, geometry)
        return KernelMap(geometry, table, self._bricks.rows, symmetric)

    def child_map(self, factor: Index3, target: "Grid | None" = None) -> ChildMap:
        """Return the map from this grid to a coarser one: the parent of voxel i is `floor(i / factor)`.

        Equal calls return the same map while both grids exist.

        Args:
            factor: Fine voxels per coarse voxel and axis, one int or three.
            target: The coarse grid, by default `coarsen(factor)`. Another grid may lack some parents, or have voxels
                without children.

        Raises:
            TypeError: If the factor is not one int or three, or the target is not a grid.
            ValueError: If a factor is smaller than 1, or the voxel sizes, batch size or device of `target` do not fit.
        """
        x, y, z = checks.factor("factor", factor)
        return self._child_map((x, y, z), target)

    def _child_map(self, factors: Axes, target: "Grid | None") -> ChildMap:
        """Return the `child_map` of factors that are known to be valid."""
        if target is None:
            return self._child_map_to(self._coarsen(factors), factors, coarsened=True)
        self._check_target(target, factors)
        if torch.compiler.is_compiling():
            return self._child_map_to(target, factors, coarsened=False)
        coarsened = target is (self if factors == (1, 1, 1) else self._derived.get(("coarsen", *factors)))
        return self._child_map_to(target, factors, coarsened)

    def _child_map_to(self, target: "Grid", factors: Axes, coarsened: bool) -> ChildMap:
        maps = {} if torch.compiler.is_compiling() else self._child_maps.setdefault(target, {})
        if factors not in maps:
            with _library.lasting():
                parts = pool_ops.parents_and_children(self, target, factors, coarsened)
            maps[factors] = ChildMap(factors, *parts)
        return maps[factors]

    def _check_target(self, target: "Grid", stride: Axes) -> None:
        _check_grid("target", target)
        if self.device != target.device:
            raise ValueError(f"target must be on the device of this grid, {self.device}, got {target.device}")
        size, other = self.batch_size, target.batch_size
        if size != other:
            raise ValueError(f"target must have the batch size of this grid, {size}, got {other}")
        for fine, coarse, step in zip(self.voxel_size, target.voxel_size, stride, strict=True):
            if abs(coarse / (fine * step) - 1) > RATIO_TOLERANCE:
                raise ValueError(
                    f"target must have {stride} times the voxel_size of the fine grid, {self.voxel_size}, "
                    f"got {target.voxel_size}"
                )

    def clear_cache(self) -> None:
        """Drop the cached maps and derived grids. Those that are still referenced stay valid."""
        self._own_maps.clear()
        self._maps.clear()
        self._child_maps.clear()
        self._derived.clear()


def _check_grid(name: str, value: object) -> None:
    if not isinstance(value, Grid):
        raise TypeError(f"{name} must be a Grid, got {type(value).__name__}")


def _per_axis(function: Callable[[int], float]) -> Triple:
    return function(0), function(1), function(2)
