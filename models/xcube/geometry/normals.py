"""Normals estimated from the occupancy of voxels alone, and normals that point outward as these do."""

from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from sparsevox import Grid, Voxels

BLUR = 1.0  # standard deviation in voxels
MIN_SLOPE = 1e-3  # gradient of the blurred solid below which a normal is unknown; at a plane it is 0.4


def estimated_normals(grid: Grid) -> Tensor:
    """Estimate outward normals: the negative gradient of the blurred solid that the voxels are or enclose.

    Cavities that cannot be reached from outside count as solid, so the normals of a closed shell of any thickness point
    out of the shape, on its inner side too. In a shell with holes they point away from the middle of the wall, on both
    of its sides. Deep inside a solid, and in a sheet one voxel thick, the gradient vanishes and the normals are zero.

    Args:
        grid: A batch of grids. Each is processed as a dense volume of its bounding box, on the CPU.

    Returns:
        Normals of unit length or zero, float32 [N, 3], on the device of the grid.

    Raises:
        ImportError: If scipy is not installed.
    """
    normals = [_normals_of_one(item.cpu(), _ndimage()) for item in grid]
    return torch.cat([torch.zeros(0, 3), *normals]).to(grid.device)


def outward_normals(voxels: Voxels) -> Voxels:
    """Reverse the attribute "normal", [N, 3], where it points away from the estimated normal.

    The faces of many meshes are oriented at random. The normals of their voxels then have the right axis, but not
    always the right sign.

    Raises:
        ImportError: If scipy is not installed.
    """
    normal = voxels.attributes["normal"]
    against = (normal * estimated_normals(voxels.grid).to(normal.dtype)).sum(1, keepdim=True) < 0  # [N, 1]
    return voxels.with_attributes(normal=torch.where(against, -normal, normal))


def _normals_of_one(grid: Grid, ndimage: ModuleType) -> Tensor:
    if not grid.num_voxels:
        return torch.zeros(0, 3)
    margin = 1 + int(4 * BLUR)  # where scipy truncates the blur
    lower, upper = (bound[0].tolist() for bound in grid.bounds())
    volume = np.zeros([u - low + 2 * margin for low, u in zip(lower, upper, strict=True)], dtype=bool)
    where = tuple((grid.ijk - torch.tensor(lower) + margin).long().numpy().T)
    volume[where] = True
    solid = ndimage.gaussian_filter(ndimage.binary_fill_holes(volume).astype(np.float32), BLUR, mode="constant")
    slope = -np.stack([part[where] for part in np.gradient(solid)], 1)
    known = np.linalg.norm(slope, axis=1, keepdims=True) > MIN_SLOPE
    normal = slope / np.array(grid.voxel_size)
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    return torch.from_numpy(np.where(known, normal / np.where(known, length, 1), 0)).float()


def _ndimage() -> ModuleType:
    try:
        from scipy import ndimage
    except ImportError as error:
        raise ImportError("estimating normals needs scipy: pip install 'sparsevox[io]'") from error
    return ndimage
