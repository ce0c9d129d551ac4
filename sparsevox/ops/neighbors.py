"""Kernel tables: who is whose neighbor, for any geometry of a convolution.

N fine voxels, M coarse voxels, K taps.
"""

from torch import Tensor

from sparsevox.geometry import Geometry
from sparsevox.ops import _library
from sparsevox.ops.bricks import HasBricks

_kernel_table = _library.register(
    "kernel_table(Tensor keys, Tensor masks, Tensor starts, Tensor rows, Tensor? table, Tensor coarse_keys, "
    "Tensor coarse_masks, Tensor coarse_starts, Tensor coarse_rows, int[3] kernel_size, int[3] stride, "
    "int[3] dilation, int[3] padding) -> Tensor",
    stem="neighbors",
    fake=lambda *args: args[0].new_empty((args[9][0] * args[9][1] * args[9][2], args[8].shape[0]), dtype=args[2].dtype),
)

CUBE = Geometry((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1))


def kernel_table(fine: HasBricks, coarse: HasBricks, geometry: Geometry) -> Tensor:
    """Row of the fine voxel that each coarse voxel meets at each tap, -1 where there is none: int32 [K, M]."""
    bricks, others = fine.bricks, coarse.bricks
    # The CPU searches its sorted keys.
    table = fine.table if _library.uses_kernels(bricks.keys) else None
    result: Tensor = _kernel_table(
        *(bricks.keys, bricks.masks, bricks.starts, bricks.rows, table),
        *(others.keys, others.masks, others.starts, others.rows, *geometry),
    )
    return result


def neighbor_table(grid: HasBricks) -> Tensor:
    """Row of the neighbor of every voxel at each of the 27 taps.

    Returns:
        int32 [27, N], -1 where there is no voxel. Tap t is the offset (t // 9 - 1, t // 3 % 3 - 1, t % 3 - 1), so
        row 13 holds every voxel's own row, and row 26 - t is the inverse of row t.
    """
    return kernel_table(grid, grid, CUBE)
