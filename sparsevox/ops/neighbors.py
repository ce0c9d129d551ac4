"""Tables of kernel maps: which fine voxel each coarse voxel meets at each tap, for any geometry of a convolution.

N fine voxels, M coarse voxels, K taps (kernel offsets).
"""

from torch import Tensor

from sparsevox import kernels
from sparsevox.conv_geometry import Geometry
from sparsevox.ops import _library
from sparsevox.ops.bricks import HasBricks
from sparsevox.reference import neighbors as reference

_kernel_table = _library.register(
    "kernel_table(Tensor keys, Tensor masks, Tensor starts, Tensor rows, Tensor? table, Tensor coarse_keys, "
    "Tensor coarse_masks, Tensor coarse_starts, Tensor coarse_rows, int[3] kernel_size, int[3] stride, "
    "int[3] dilation, int[3] padding) -> Tensor",
    reference=reference.kernel_table,
    kernels=lambda: kernels.neighbors.kernel_table,
    fake=lambda *args: args[0].new_empty((args[9][0] * args[9][1] * args[9][2], args[8].shape[0]), dtype=args[2].dtype),
)

CUBE = Geometry((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1))


def kernel_table(fine: HasBricks, coarse: HasBricks, geometry: Geometry) -> Tensor:
    """Row of the fine voxel that each coarse voxel meets at each tap, -1 where there is none: int32 [K, M]."""
    bricks, others = fine.bricks, coarse.bricks
    # The reference searches the sorted keys instead of the hash table.
    table = fine.table if _library.uses_kernels(bricks.keys) else None
    return _kernel_table(
        *(bricks.keys, bricks.masks, bricks.starts, bricks.rows, table),
        *(others.keys, others.masks, others.starts, others.rows, *geometry),
    )


def neighbor_table(grid: HasBricks) -> Tensor:
    """Row of the neighbor of every voxel at each of the 27 taps of a 3x3x3 kernel.

    Returns:
        int32 [27, N], -1 where there is no voxel. Tap t is the offset (t // 9 - 1, t // 3 % 3 - 1, t % 3 - 1), so row
        13 holds every voxel's own row, and row 26 - t is the inverse of row t.
    """
    return kernel_table(grid, grid, CUBE)
