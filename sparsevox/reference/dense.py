"""Dense volumes to bricks. B grids, X Y Z voxels an axis."""

import torch
from torch import Tensor

from sparsevox.morton import Bricks
from sparsevox.reference.bricks import build_bricks


def dense_bricks(mask: Tensor, lower: list[int]) -> Bricks:
    """Bricks of the True voxels of `mask` bool [B, X, Y, Z], whose first voxel is `lower`."""
    coords = mask.nonzero() + torch.tensor([0, *lower], device=mask.device)
    return build_bricks(coords, mask.shape[0])
