"""Dense volumes to bricks. B grids, X Y Z voxels an axis, L bricks."""

import torch
from torch import Tensor

from sparsevox import morton
from sparsevox.morton import Bricks
from sparsevox.reference._runs import assemble, pack_bits, true_indices


def dense_bricks(mask: Tensor, lower: list[int]) -> Bricks:
    """Bricks of the True voxels of `mask` bool [B, X, Y, Z], whose first voxel is `lower`."""
    batch_size, *size = mask.shape
    borders = [(low & 3, -(low + length) & 3) for low, length in zip(lower, size, strict=True)]
    mask = torch.nn.functional.pad(mask, [n for border in borders[::-1] for n in border])
    bricks = [length // 4 for length in mask.shape[1:]]
    # Two bits of each coordinate lie in the brick, and the high ones of all three come before the low ones.
    bits = mask.reshape(batch_size, bricks[0], 2, 2, bricks[1], 2, 2, bricks[2], 2, 2)
    bits = bits.permute(0, 1, 4, 7, 2, 5, 8, 3, 6, 9).reshape(-1, 64)
    occupied = true_indices(bits.any(1))
    axes = [torch.arange(n, device=mask.device) + (low >> 2) for n, low in zip(bricks, lower, strict=True)]
    corners = torch.cartesian_prod(
        torch.arange(batch_size, device=mask.device), *(axis << 2 for axis in axes)
    )
    keys, order = torch.sort(morton.encode(corners[occupied]) >> 6)
    return assemble(keys, pack_bits(bits[occupied][order]), batch_size)
