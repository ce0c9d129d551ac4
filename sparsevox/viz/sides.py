"""The sides of voxels that show, and how much light their neighbors leave them.

N voxels, F faces.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sparsevox.grid import Grid
from sparsevox.ops import neighbor_table

# The six sides of a voxel: where each one looks, and the tap of `neighbor_table` that lies in front of it.
DIRECTIONS = ((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1))
TAPS = (4, 22, 10, 16, 12, 14)


def exposed_faces(grid: Grid) -> tuple[Tensor, Tensor]:
    """Faces between a voxel and an empty neighbor.

    Returns:
        The row of the voxel of each face, int64 [F], and the side it is, int64 [F] into `DIRECTIONS`.
    """
    return faces_of(neighbor_table(grid))


def faces_of(table: Tensor) -> tuple[Tensor, Tensor]:
    """The same from the table of neighbors, int32 [27, N]."""
    side, row = (table[list(TAPS)] < 0).nonzero(as_tuple=True)
    return row, side


def crowding(table: Tensor) -> NDArray[np.uint8]:
    """How many of the eight voxels around the one in front of each side exist: [6, N]."""
    exists = (table.cpu().numpy() >= 0).reshape(3, 3, 3, -1).view(np.uint8)
    around = np.empty((6, exists.shape[-1]), np.uint8)
    for n in range(6):  # in the order of DIRECTIONS
        layer: NDArray[np.uint8] = np.take(exists, 2 * (n % 2), axis=n // 2)
        np.subtract(layer.sum((0, 1), dtype=np.uint8), layer[1, 1], out=around[n])
    return around


def quads() -> NDArray[np.float64]:
    """Corners [6, 4, 3] of each side, in voxels from the center, in the order of DIRECTIONS."""
    square = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    return np.stack([np.insert(square, n // 2, n % 2 - 0.5, axis=1) for n in range(6)])
