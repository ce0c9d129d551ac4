"""KernelMap: the pairs of voxels that a convolution connects, within one grid or between two.

N fine voxels, M coarse voxels, K taps (kernel offsets).
"""

import torch
from torch import Tensor

from sparsevox.conv_geometry import Geometry
from sparsevox.ops import _library
from sparsevox.ops import plans as plan_ops
from sparsevox.plans import Bags, PairLists, RowPlan


class Direction:
    """One direction of a kernel map: its table, and the plans of convolutions, made at first use."""

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self._pairs: PairLists | None = None
        self._plan: RowPlan | Bags | None = None

    @property
    def pairs(self) -> PairLists:
        """All pairs, tap by tap, for the gradient of the weight."""
        if self._pairs is None:
            with _library.lasting():
                self._pairs = plan_ops.pair_lists(self.table)
        return self._pairs

    @property
    def plan(self) -> RowPlan | Bags:
        """The order in which a convolution visits the pairs: `RowPlan` for the kernel, `Bags` for the reference."""
        if self._plan is None:
            with _library.lasting():
                kernel = _library.uses_kernels(self.table)
                self._plan = plan_ops.row_plan(self.table) if kernel else plan_ops.bags(self.table, self.pairs)
        return self._plan

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors made so far."""
        return [self.table, *(self._pairs or []), *(self._plan or [])]


class KernelMap:
    """The kernel map (rulebook) of a convolution: the pairs of voxels that it connects, tap by tap.

    At tap t (kernel offset), coarse voxel c meets the fine voxel `stride * c + t * dilation - padding`. One map serves
    the convolution (fine to coarse), its transpose (coarse to fine) and the gradients of both. It holds tensors only,
    never a grid. `Grid.kernel_map` makes and caches maps.

    geometry: Kernel size, stride, dilation and padding.
    table: Fine row of each coarse voxel at each tap, -1 where there is none: int32 [K, M].
    symmetric: Whether the map is its own adjoint with the taps in reverse order.
    """

    def __init__(self, geometry: Geometry, table: Tensor, fine_rows: Tensor, symmetric: bool) -> None:
        self.geometry = geometry
        self.symmetric = symmetric
        self.down = Direction(table)
        self._fine_rows = fine_rows
        self._up: Direction | None = None
        self._counts: Tensor | None = None

    @property
    def table(self) -> Tensor:
        """Fine row of each coarse voxel at each tap, -1 where there is none: int32 [K, M]."""
        return self.down.table

    @property
    def up(self) -> Direction:
        """Direction from coarse to fine voxels: the adjoint."""
        if self._up is None:
            with _library.lasting():
                self._up = Direction(plan_ops.adjoint_table(self.table, self._fine_rows))
        return self._up

    @property
    def counts(self) -> Tensor:
        """Number of pairs of each coarse voxel, but at least 1: int64 [M], made at first use."""
        counts = self._counts
        if counts is None:
            with _library.lasting():
                counts = (self.table >= 0).sum(0).clamp(min=1)
            if not torch.compiler.is_compiling():
                self._counts = counts
        return counts

    @property
    def num_fine(self) -> int:
        """Number of fine voxels, N."""
        return self._fine_rows.shape[0]

    @property
    def num_coarse(self) -> int:
        """Number of coarse voxels, M."""
        return self.table.shape[1]

    @property
    def device(self) -> torch.device:
        """Device of all tensors."""
        return self.table.device

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors made so far; a tensor of both directions counts once."""
        tensors = self.down.tensors + (self._up.tensors if self._up else [])
        tensors += [] if self._counts is None else [self._counts]
        distinct = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(distinct.values())

    def __repr__(self) -> str:
        words = (f"{k}={v[0] if len(set(v)) == 1 else v}" for k, v in self.geometry._asdict().items())
        return f"KernelMap({', '.join(words)}, N={self.num_fine:,}, M={self.num_coarse:,}, {self.device})"
