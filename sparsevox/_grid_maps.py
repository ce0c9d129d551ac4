"""What convolutions and pooling ask of a `Grid`: the voxels that they reach, and the maps to them.

N fine voxels, M coarse voxels, K taps.
"""

from typing import Self
from weakref import WeakKeyDictionary

import torch

from sparsevox import checks
from sparsevox._grid_topology import GridTopology, Index3, Triple, _check_grid
from sparsevox.child_map import ChildMap
from sparsevox.geometry import Axes, Geometry
from sparsevox.kernel_map import KernelMap
from sparsevox.morton import Bricks
from sparsevox.ops import _library, _targets
from sparsevox.ops import neighbors as neighbor_ops
from sparsevox.ops import pool as pool_ops

RATIO_TOLERANCE = 1e-4  # of the ratio of two voxel sizes


class GridMaps(GridTopology):
    """A grid and its maps to others. Users meet it as `Grid`."""

    def __init__(self, bricks: Bricks, voxel_size: Triple = (1.0, 1.0, 1.0), origin: Triple = (0.0, 0.0, 0.0)) -> None:
        super().__init__(bricks, voxel_size, origin)
        # Within the grid, and to other grids, which are not kept for that.
        self._own_maps: dict[Geometry, KernelMap] = {}
        self._maps: WeakKeyDictionary[Self, dict[Geometry, KernelMap]] = WeakKeyDictionary()
        self._child_maps: WeakKeyDictionary[Self, dict[Axes, ChildMap]] = WeakKeyDictionary()

    def kernel_map(
        self,
        kernel_size: Index3,
        *,
        stride: Index3 = 1,
        dilation: Index3 = 1,
        padding: Index3 | None = None,
        target: Self | None = None,
    ) -> KernelMap:
        """Who is whose neighbor in a convolution from this grid to a coarser one, or within it.

        At tap t, coarse voxel c meets the fine voxel `stride * c + t * dilation - padding`, on each axis; the default
        padding is `floor((kernel_size - 1) / 2) * dilation`. Equal calls give the same map, as long as the grids live.

        Args:
            kernel_size: 1 to 7, one int or three.
            stride: One int or three.
            dilation: One int or three.
            padding: One int or three.
            target: The coarse grid. By default this grid itself for stride 1, else `strided(...)`.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If a size is out of range, or the voxel sizes, batch size or device of `target` do not fit.
        """
        geometry = checks.geometry(kernel_size, stride, dilation, padding)
        if target is None:
            target = self if geometry.stride == (1, 1, 1) else self._strided(geometry)
        if target is self and geometry.stride == (1, 1, 1):
            if geometry not in self._own_maps:
                self._own_maps[geometry] = self._new_map(self, geometry, geometry.symmetric)
            return self._own_maps[geometry]
        self._check_target(target, geometry)
        return self._map_to(target, geometry)

    def _map_to(self, target: Self, geometry: Geometry) -> KernelMap:
        if torch.compiler.is_compiling():
            return self._new_map(target, geometry, symmetric=False)
        maps = self._maps.setdefault(target, {})
        if geometry not in maps:
            maps[geometry] = self._new_map(target, geometry, symmetric=False)
        return maps[geometry]

    def _new_map(self, target: Self, geometry: Geometry, symmetric: bool) -> KernelMap:
        with _library.lasting():
            table = neighbor_ops.kernel_table(self, target, geometry)
        return KernelMap(geometry, table, self.bricks.rows, symmetric)

    def child_map(self, factor: Index3, target: Self | None = None) -> ChildMap:
        """Which voxels of this grid lie in which voxel of a coarser one: the parent of voxel i is `floor(i / factor)`.

        Equal calls give the same map, as long as the grids live.

        Args:
            factor: One int or three.
            target: The coarse grid, `coarsen(factor)` by default. Any other may lack parents and have childless voxels.

        Raises:
            TypeError: If the factor is not one int or three, or the target no grid.
            ValueError: If a factor is smaller than 1, or the voxel sizes, batch size or device of `target` do not fit.
        """
        x, y, z = checks.factor("factor", factor)
        factors = (x, y, z)
        if target is None:
            return self._child_map_to(self.coarsen(factors), factors, coarsened=True)
        self._check_target(target, Geometry(factors, factors, (1, 1, 1), (0, 0, 0)))
        if torch.compiler.is_compiling():
            return self._child_map_to(target, factors, coarsened=False)
        coarsened = target is (self if factors == (1, 1, 1) else self._derived.get(("coarsen", *factors)))
        return self._child_map_to(target, factors, coarsened)

    def _child_map_to(self, target: Self, factors: Axes, coarsened: bool) -> ChildMap:
        if torch.compiler.is_compiling():
            return ChildMap(factors, *pool_ops.parents_and_children(self, target, factors, coarsened))
        maps = self._child_maps.setdefault(target, {})
        if factors not in maps:
            with _library.lasting():
                parts = pool_ops.parents_and_children(self, target, factors, coarsened)
            maps[factors] = ChildMap(factors, *parts)
        return maps[factors]

    def _check_target(self, target: object, geometry: Geometry) -> None:
        _check_grid("target", target)
        assert isinstance(target, GridMaps)
        device, other = self.bricks.keys.device, target.bricks.keys.device
        if device != other:
            raise ValueError(f"target must be on the device of this grid, {device}, got {other}")
        size, other_size = self.bricks.offsets.shape[0] - 1, target.bricks.offsets.shape[0] - 1
        if size != other_size:
            raise ValueError(f"target must have the batch size of this grid, {size}, got {other_size}")
        for fine, coarse, step in zip(self.voxel_size, target.voxel_size, geometry.stride, strict=True):
            if abs(coarse / (fine * step) - 1) > RATIO_TOLERANCE:
                raise ValueError(
                    f"target does not fit: the coarse grid must have voxels {geometry.stride} times those of the fine "
                    f"one, whose voxel_size is {self.voxel_size}, got voxel_size {target.voxel_size}"
                )

    def strided(
        self, kernel_size: Index3, stride: Index3 = 2, *, dilation: Index3 = 1, padding: Index3 | None = None
    ) -> Self:
        """Grid of every coarse voxel that a convolution reaches from this one; its transform is `coarsen(stride)`'s.

        Arguments and errors are those of `kernel_map`.
        """
        return self._strided(checks.geometry(kernel_size, stride, dilation, padding))

    def _strided(self, geometry: Geometry) -> Self:
        if geometry.kernel_size == geometry.stride and geometry.padding == (0, 0, 0) and geometry.dilation == (1, 1, 1):
            return self.coarsen(geometry.stride)
        transform = self._coarse_transform(geometry.stride)
        return self._remember(
            ("strided", *geometry), lambda: self._with(_targets.strided(self.bricks, geometry), *transform)
        )

    def generative(
        self, kernel_size: Index3, stride: Index3 = 2, *, dilation: Index3 = 1, padding: Index3 | None = None
    ) -> Self:
        """Grid of every fine voxel that a transposed convolution reaches from this one.

        Its transform is `subdivide(stride)`'s. Arguments and errors are those of `kernel_map`; a voxel out of the range
        of coordinates is a ValueError, too.
        """
        geometry = checks.geometry(kernel_size, stride, dilation, padding)
        transform = self._fine_transform(geometry.stride)
        return self._remember(
            ("generative", *geometry), lambda: self._with(_targets.generative(self.bricks, geometry), *transform)
        )

    def clear_cache(self) -> None:
        """Forget all maps of this grid and the grids derived from it. Who holds one keeps it."""
        self._own_maps.clear()
        self._maps.clear()
        self._child_maps.clear()
        self._derived.clear()
