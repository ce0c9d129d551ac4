"""The exact nearest active voxel center of each point.

P points, N voxels, B grids.
"""

from torch import Tensor

from sparsevox import checks, morton
from sparsevox.checks import Triple
from sparsevox.morton import Bricks
from sparsevox.ops import _library
from sparsevox.ops.voxelize import check_points, to_grid
from sparsevox.reference import nearest as reference

_nearest_rows = _library.register(
    "nearest_rows(Tensor points, Tensor batch, Tensor keys, Tensor masks, Tensor starts, Tensor offsets, Tensor rows, "
    "float[3] voxel_size) -> Tensor",
    reference=reference.nearest_rows,
    kernels=None,  # a search level by level, in tensor ops that serve every device
    fake=lambda points, batch, keys, masks, starts, offsets, rows, voxel_size: batch.new_empty(points.shape[0]),
)


def nearest(bricks: Bricks, points: object, batch: object, voxel_size: Triple, origin: Triple) -> Tensor:
    """Find the voxel whose center is nearest to each point, in world distance, in the point's own batch item.

    Args:
        bricks: The voxels.
        points: World positions, floating point [P, 3].
        batch: Batch item of each point, integers [P], 0 by default.
        voxel_size: Edge lengths of a voxel.
        origin: Center of voxel (0, 0, 0).

    Returns:
        Rows int64 [P]; the lowest of equally near ones, -1 where the item has no voxel or does not exist.

    Raises:
        TypeError: If points are not floating-point or batch indices not integers.
        ValueError: If shapes or devices do not fit, or a point is not finite.
    """
    positions, items = check_points(points, batch)
    checks.same_device("points", positions, "the grid", bricks.keys.device)
    ijk = to_grid(positions.detach(), voxel_size, origin)
    try:
        result: Tensor = _nearest_rows(ijk, items, *bricks, list(voxel_size))
    except morton.VoxelError as error:
        point = tuple(positions[error.index].tolist())
        raise ValueError(f"points must be finite, got points[{error.index}] = {point}") from None
    return result
