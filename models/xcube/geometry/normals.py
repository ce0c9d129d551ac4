"""Normals of voxels of which only is known that they exist."""

from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from sparsevox import Grid

BLUR = 1.0  # voxels
LEAST = 1e-3  # of the slope of a blurred solid, below which nothing is known: at a plane it is 0.4


def estimated_normals(grid: Grid) -> Tensor:
    """Normals out of the solid that voxels are, or enclose: the slope of it, blurred.

    What no path from outside reaches counts as solid, so that a closed shell of any thickness has normals out of the
    shape, also on its inside. Those of a shell with holes point away from its middle, on either side. Deep in a solid,
    or in a sheet of a single layer, nothing is known and they are zero.

    Args:
        grid: A batch of grids. Each is computed as a volume of its bounds, on the CPU.

    Returns:
        Of unit length or zero, float32 [N, 3], on the device of the grid.

    Raises:
        ImportError: If scipy is not installed.
    """
    made = [_of_one(item.cpu(), _images()) for item in grid]
    return torch.cat([torch.zeros(0, 3), *made]).to(grid.device)


def _of_one(grid: Grid, images: ModuleType) -> Tensor:
    if not grid.num_voxels:
        return torch.zeros(0, 3)
    margin = 1 + int(4 * BLUR)  # as far as the blur reaches
    lower, upper = (bound[0].tolist() for bound in grid.bounds())
    volume = np.zeros([u - low + 2 * margin for low, u in zip(lower, upper, strict=True)], dtype=bool)
    where = tuple((grid.ijk - torch.tensor(lower) + margin).long().numpy().T)
    volume[where] = True
    solid = images.gaussian_filter(images.binary_fill_holes(volume).astype(np.float32), BLUR, mode="constant")
    slope = -np.stack([part[where] for part in np.gradient(solid)], 1)
    known = np.linalg.norm(slope, axis=1, keepdims=True) > LEAST
    normal = slope / np.array(grid.voxel_size)
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    return torch.from_numpy(np.where(known, normal / np.where(known, length, 1), 0)).float()


def _images() -> ModuleType:
    try:
        from scipy import ndimage
    except ImportError as error:
        raise ImportError("normals of voxels without any need scipy: pip install 'sparsevox[io]'") from error
    return ndimage
