"""Colors of voxels as floats. N voxels."""

import torch
from torch import Tensor


def unit_colors(values: Tensor) -> Tensor:
    """Colors in [0, 1], float32 [N, 3], from floats in [0, 1], or from integers up to the maximum of their type.

    Raises:
        ValueError: If a float is outside of [0, 1].
    """
    if not values.is_floating_point():
        return values.float() / torch.iinfo(values.dtype).max
    colors = values.float()
    if not bool(((colors >= 0) & (colors <= 1)).all()):
        raise ValueError(f"color must lie in [0, 1], got {float(colors.min())} to {float(colors.max())}")
    return colors
