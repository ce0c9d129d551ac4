"""The nearest voxel of a point, by comparing all distances."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def nearest_row(point: Sequence[float], item: int, rows: NDArray[np.int64], voxel_size: Sequence[float]) -> int:
    """The row of the voxel of an item whose center is nearest to a point in voxels; of several, the lowest row.

    `rows` holds the voxels [N, 4]. The result is -1 where the item has none.
    """
    own = np.flatnonzero(rows[:, 0] == item)
    if len(own) == 0:
        return -1
    x, y, z = ((np.asarray(point) - rows[own, 1:]) * voxel_size).T
    return int(own[np.argmin(x * x + y * y + z * z)])  # of equals, argmin takes the first
