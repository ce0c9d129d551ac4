"""The verbs of `Grid` that make other grids: coarser, finer, larger, smaller, combined.

N voxels, B grids.
"""

from collections.abc import Callable, Sequence
from typing import Self
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from sparsevox import checks
from sparsevox.morton import Bricks
from sparsevox.ops import bricks as brick_ops
from sparsevox.ops import morphology as morphology_ops
from sparsevox.ops import topology as topology_ops

Triple = tuple[float, float, float]
Device = torch.device | str | None
Index3 = int | Sequence[int]

TRANSFORM_TOLERANCE = 1e-5  # of a voxel


class GridTopology:
    """Bricks, a transform, and what topology can be derived from them. Users meet it as `Grid`."""

    def __init__(self, bricks: Bricks, voxel_size: Triple = (1.0, 1.0, 1.0), origin: Triple = (0.0, 0.0, 0.0)) -> None:
        if not torch.compiler.is_compiling() and bricks.keys.is_inference():
            with torch.inference_mode(False):  # so that the grid may serve training, too
                bricks = Bricks(*(array.clone() for array in bricks))
        self._bricks = bricks
        self._voxel_size = voxel_size
        self._origin = origin
        self._table: Tensor | None = None
        self._derived: WeakValueDictionary[tuple[object, ...], Self] = WeakValueDictionary()

    @property
    def bricks(self) -> Bricks:
        """Keys, masks, starts, offsets and rows: all there is to know of the voxels. Not to be written to."""
        return self._bricks

    @property
    def voxel_size(self) -> Triple:
        """Edges of a voxel."""
        return self._voxel_size

    @property
    def origin(self) -> Triple:
        """World position of the center of voxel (0, 0, 0)."""
        return self._origin

    @property
    def table(self) -> Tensor:
        """Hash table from brick keys to brick rows, int32 [capacity], built at first use."""
        if self._table is None:
            self._table = brick_ops.table(self.bricks)
        return self._table

    def _with(self, bricks: Bricks, voxel_size: Triple | None = None, origin: Triple | None = None) -> Self:
        return type(self)(bricks, voxel_size or self.voxel_size, origin or self.origin)

    def _remember(self, key: tuple[object, ...], make: Callable[[], Self]) -> Self:
        """The grid made before under the same key, if somebody still holds it: equal calls give the same grid."""
        if torch.compiler.is_compiling():
            return make()
        grid = self._derived.get(key)
        if grid is None:
            grid = self._derived[key] = make()
        return grid

    def coarsen(self, factor: Index3 = 2) -> Self:
        """Grid of the voxels floor(ijk / factor), for negative coordinates too.

        Voxels grow by the factor, and the center of a coarse voxel is the centroid of its block. Isotropic powers of
        two are arithmetic on bricks; any other factor, or triple of factors, decodes, divides and sorts.

        Raises:
            TypeError: If the factor is not one int or three.
            ValueError: If a factor is smaller than 1.
        """
        factors = checks.factor("factor", factor)
        if factors == [1, 1, 1]:
            return self
        return self._remember(("coarsen", *factors), lambda: self._coarsened(factors))

    def _coarsened(self, factors: list[int]) -> Self:
        return self._with(topology_ops.coarsen(self.bricks, factors), *self._coarse_transform(factors))

    def _coarse_transform(self, factors: Sequence[int]) -> tuple[Triple, Triple]:
        size, start = self.voxel_size, self.origin
        coarse_size = _per_axis(lambda a: size[a] * factors[a])
        coarse_origin = _per_axis(lambda a: start[a] + size[a] * (factors[a] - 1) / 2)
        return checks.transform(coarse_size, coarse_origin)

    def _fine_transform(self, factors: Sequence[int]) -> tuple[Triple, Triple]:
        fine_size = _per_axis(lambda a: self.voxel_size[a] / factors[a])
        fine_origin = _per_axis(lambda a: self.origin[a] - fine_size[a] * (factors[a] - 1) / 2)
        return checks.transform(fine_size, fine_origin)

    def subdivide(self, factor: Index3 = 2, mask: Tensor | None = None) -> Self:
        """Grid of all children, ijk * factor + [0, factor), of every voxel.

        Args:
            factor: Children an axis, one int or three.
            mask: Which voxels become children, bool [N]; or, for factor 2, which children, bool [N, 8], numbered with
                k fastest. All by default.

        Raises:
            TypeError: If the factor is not one int or three, or the mask not bool.
            ValueError: If a factor is smaller than 1, the mask has another shape, or a child would be out of range.
        """
        factors = checks.factor("factor", factor)
        if factors == [1, 1, 1]:
            return self if mask is None else self.prune(mask)
        return self._with(topology_ops.subdivide(self.bricks, factors, mask), *self._fine_transform(factors))

    def dilate(
        self,
        radius: Index3 = 1,
        *,
        lower: Index3 | None = None,
        upper: Index3 | None = None,
        stencil: Tensor | None = None,
    ) -> Self:
        """Grid of all voxels a + s: a in the grid, s in a box or stencil.

        The box reaches `radius` voxels in each direction, or from `lower` to `upper` inclusive. `stencil` is a bool
        [a, b, c] of any shape, whose center is its entry (size - 1) // 2 of each axis.

        Raises:
            TypeError: If bounds are not ints or the stencil not bool.
            ValueError: If the radius is negative, lower exceeds upper, the stencil is empty, or a voxel would be out of
                range.
        """
        box, offsets = morphology_ops.structuring_element(radius, lower, upper, stencil)
        if box is None:
            return self._with(morphology_ops.dilate_stencil(self.bricks, offsets))
        low, up = box
        return self._remember(("dilate", *low, *up), lambda: self._with(morphology_ops.dilate(self.bricks, low, up)))

    def erode(
        self,
        radius: Index3 = 1,
        *,
        lower: Index3 | None = None,
        upper: Index3 | None = None,
        stencil: Tensor | None = None,
    ) -> Self:
        """Grid of all x for which x + s is a voxel for every s in a box or stencil, given as to `dilate`."""
        box, offsets = morphology_ops.structuring_element(radius, lower, upper, stencil)
        if box is None:
            return self._with(morphology_ops.erode_stencil(self.bricks, self.table, offsets))
        low, up = box
        return self._with(morphology_ops.erode(self.bricks, brick_ops.walking_table(self), low, up))

    def prune(self, mask: Tensor) -> Self:
        """Grid of the voxels whose row of `mask`, bool [N], is True. Raises TypeError or ValueError for other masks."""
        return self._with(topology_ops.prune(self.bricks, mask))

    def crop(self, lower: Index3, upper: Index3) -> Self:
        """Grid of the voxels with lower <= ijk < upper, in every batch item. The transform stays."""
        return self._with(topology_ops.crop(self.bricks, lower, upper))

    def __or__(self, other: Self) -> Self:
        return self._combined(other, "or", "|")

    def __and__(self, other: Self) -> Self:
        return self._combined(other, "and", "&")

    def __sub__(self, other: Self) -> Self:
        return self._combined(other, "sub", "-")

    def __xor__(self, other: Self) -> Self:
        return self._combined(other, "xor", "^")

    def _combined(self, other: Self, op: str, symbol: str) -> Self:
        _check_grid(f"the right side of {symbol}", other)
        size, other_size = self.bricks.offsets.shape[0] - 1, other.bricks.offsets.shape[0] - 1
        if size != other_size:
            raise ValueError(f"both sides of {symbol} must have the same batch size, got {size} and {other_size}")
        self._check_aligned(other, f"both sides of {symbol}")
        return self._with(topology_ops.combine(self.bricks, other.bricks, op))

    def _check_aligned(self, other: Self, names: str) -> None:
        device, other_device = self.bricks.keys.device, other.bricks.keys.device
        if device != other_device:
            raise ValueError(f"{names} must be on one device, got {device} and {other_device}")
        for name in ("voxel_size", "origin"):
            mine, theirs = getattr(self, name), getattr(other, name)
            off = max(abs(a - b) / edge for a, b, edge in zip(mine, theirs, self.voxel_size, strict=True))
            if off > TRANSFORM_TOLERANCE:
                raise ValueError(f"{names} must have the same {name}, got {mine} and {theirs}")


def _check_grid(name: str, value: object) -> None:
    if not isinstance(value, GridTopology):
        raise TypeError(f"{name} must be a Grid, got {type(value).__name__}")


def _per_axis(function: Callable[[int], float]) -> Triple:
    return function(0), function(1), function(2)
