"""ChildMap: which fine voxels lie in which coarse voxel.

N fine voxels, M coarse voxels.
"""

import torch
from torch import Tensor

from sparsevox.conv_geometry import Axes
from sparsevox.ops import _library


class ChildMap:
    """The parents and children that pooling and upsampling connect: the parent of voxel i is `floor(i / factor)`.

    The map holds tensors only, never a grid. `Grid.child_map` makes and caches maps.

    factor: Fine voxels per coarse voxel, on each axis.
    parents: Coarse row of each fine voxel, -1 where the coarse grid lacks it: int32 [N].
    children: Fine rows sorted by parent, int32 [N]; those without a parent come first, outside of all ranges. None if
        they are 0 to N - 1, because the children of every voxel are consecutive rows.
    ranges: Start of the children of each coarse voxel, in `children` or among the fine rows, then the end: int32
        [M + 1].
    table: The parents as a table with one tap, int32 [1, N].
    """

    def __init__(self, factor: Axes, parents: Tensor, children: Tensor | None, ranges: Tensor) -> None:
        self.factor = factor
        self.parents = parents
        self.children = children
        self.ranges = ranges
        self.table = parents[None]
        self._counts: Tensor | None = None

    @property
    def counts(self) -> Tensor:
        """Number of children of each coarse voxel, but at least 1: int64 [M], made at first use."""
        counts = self._counts
        if counts is None:
            with _library.lasting():
                counts = self.ranges.diff().clamp(min=1).long()
            if not torch.compiler.is_compiling():
                self._counts = counts
        return counts

    @property
    def num_fine(self) -> int:
        """Number of fine voxels, N."""
        return self.parents.shape[0]

    @property
    def num_coarse(self) -> int:
        """Number of coarse voxels, M."""
        return self.ranges.shape[0] - 1

    @property
    def device(self) -> torch.device:
        """Device of all tensors."""
        return self.ranges.device

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors made so far."""
        tensors = (self.parents, self.ranges, self.children, self._counts)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    def __repr__(self) -> str:
        factor = self.factor[0] if len(set(self.factor)) == 1 else self.factor
        return f"ChildMap(factor={factor}, N={self.num_fine:,}, M={self.num_coarse:,}, {self.device})"
