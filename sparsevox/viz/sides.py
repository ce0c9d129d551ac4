"""Exposed sides of voxels, and how much their neighbors shade them.

N voxels, F faces.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sparsevox.grid import Grid
from sparsevox.ops import neighbor_table

# The six sides of a voxel: their direction, and the tap of `neighbor_table` for the voxel in front of each.
DIRECTIONS = ((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1))
TAPS = (4, 22, 10, 16, 12, 14)


def exposed_faces(grid: Grid) -> tuple[Tensor, Tensor]:
    """Find the exposed faces of voxels, those with an empty neighbor.

    Returns:
        Row of the voxel of each face, int64 [F], and its side, an index into `DIRECTIONS`, int64 [F].
    """
    return faces_of(neighbor_table(grid))


def faces_of(table: Tensor) -> tuple[Tensor, Tensor]:
    """Find the exposed faces from the neighbor table, int32 [27, N]."""
    side, row = (table[list(TAPS)] < 0).nonzero(as_tuple=True)
    return row, side


def crowding(table: Tensor) -> NDArray[np.uint8]:
    """Count the occupied voxels among the eight around the one in front of each side: [6, N]."""
    exists = (table.cpu().numpy() >= 0).reshape(3, 3, 3, -1).view(np.uint8)  # [3, 3, 3, N]
    around = np.empty((6, exists.shape[-1]), np.uint8)
    for n in range(6):  # in the order of DIRECTIONS
        layer: NDArray[np.uint8] = np.take(exists, 2 * (n % 2), axis=n // 2)
        np.subtract(layer.sum((0, 1), dtype=np.uint8), layer[1, 1], out=around[n])
    return around


def quads() -> NDArray[np.float64]:
    """List the corners of each side in voxels from the center, in the order of DIRECTIONS: [6, 4, 3]."""
    square = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    return np.stack([np.insert(square, n // 2, n % 2 - 0.5, axis=1) for n in range(6)])
