"""KernelMap: who is whose neighbor, for one geometry of a convolution between two grids, or within one.

N fine voxels, M coarse voxels, K taps.
"""

import torch
from torch import Tensor

from sparsevox.geometry import Geometry
from sparsevox.ops import _library
from sparsevox.ops import plans as plan_ops


class Direction:
    """One direction of a map. What a backend needs beside the table is prepared when it is first asked for."""

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self._pairs: list[Tensor] | None = None
        self._gather: list[Tensor] | None = None

    @property
    def pairs(self) -> list[Tensor]:
        """Input rows, output rows and starts of all pairs, as `ops.plans.pair_lists` has them."""
        if self._pairs is None:
            with _library.lasting():
                self._pairs = list(plan_ops.pair_lists(self.table))
        return self._pairs

    @property
    def gather(self) -> list[Tensor]:
        """The table, and for kernels the order of rows and the taps of each tile, for the reference pairs and bags."""
        if self._gather is None:
            with _library.lasting():
                self._gather = [self.table, *self._plan()]
        return self._gather

    def _plan(self) -> tuple[Tensor, ...]:
        if _library.uses_kernels(self.table):
            return plan_ops.row_plan(self.table)
        src, dst, starts = self.pairs
        return (src, starts, *plan_ops.pair_bags(dst, starts, self.table))

    @property
    def tensors(self) -> list[Tensor]:
        """What has been made so far."""
        return [self.table, *(self._pairs or []), *(self._gather or [])]


class KernelMap:
    """The pairs of voxels that a convolution connects, tap by tap.

    At tap t, coarse voxel c meets the fine voxel `stride * c + t * dilation - padding`. The map serves the convolution
    (fine to coarse), its transpose (coarse to fine) and the gradients of both. It holds tensors only, never a grid.
    `Grid.kernel_map` makes maps and remembers them.

    geometry: Kernel size, stride, dilation and padding.
    table: Fine row of each coarse voxel at each tap, -1 where there is none: int32 [K, M].
    symmetric: Whether the way up is the way down with the taps in reverse.
    """

    def __init__(self, geometry: Geometry, table: Tensor, fine_rows: Tensor, symmetric: bool) -> None:
        self.geometry = geometry
        self.symmetric = symmetric
        self.down = Direction(table)
        self._fine_rows = fine_rows
        self._up: Direction | None = None

    @property
    def table(self) -> Tensor:
        """Fine row of each coarse voxel at each tap, -1 where there is none: int32 [K, M]."""
        return self.down.table

    @property
    def up(self) -> Direction:
        """From coarse to fine voxels: the adjoint."""
        if self._up is None:
            with _library.lasting():
                self._up = Direction(plan_ops.adjoint_table(self.table, self._fine_rows))
        return self._up

    @property
    def num_fine(self) -> int:
        """N."""
        return self._fine_rows.shape[0]

    @property
    def num_coarse(self) -> int:
        """M."""
        return self.table.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the map lies."""
        return self.table.device

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors made so far; those that two directions share count once."""
        tensors = self.down.tensors + (self._up.tensors if self._up else [])
        distinct = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(distinct.values())

    def __repr__(self) -> str:
        words = (f"{k}={v[0] if len(set(v)) == 1 else v}" for k, v in self.geometry._asdict().items())
        return f"KernelMap({', '.join(words)}, N={self.num_fine:,}, M={self.num_coarse:,}, {self.device})"
