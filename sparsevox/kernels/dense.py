"""Dense volumes to bricks. B grids, X Y Z voxels an axis."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsevox import morton
from sparsevox._readback import read_back
from sparsevox.kernels._bits import NONE, as_mask, encode, in_range, items, local
from sparsevox.kernels._finish import finish, no_bad
from sparsevox.kernels._launch import launch
from sparsevox.morton import Bricks, VoxelError

MAX_BATCH = tl.constexpr(morton.MAX_BATCH)


@triton.jit(
    do_not_specialize=[
        "n_pairs",
        *(f"{name}_{axis}" for name in ("bricks", "size", "lower") for axis in "xyz"),
    ]
)
def dense_kernel(
    volume_ptr,
    out_keys_ptr,
    out_masks_ptr,
    bad_ptr,
    n_pairs,
    bricks_x,
    bricks_y,
    bricks_z,
    size_x,
    size_y,
    size_z,
    lower_x,
    lower_y,
    lower_z,
    BLOCK: tl.constexpr,
):
    """Keys and masks of all bricks that a volume touches, and its first voxel out of range."""
    i = items(BLOCK)
    bit = tl.arange(0, 64).to(tl.int64)[None, :]
    item = i // bricks_z // bricks_y // bricks_x
    # Coordinates of the first voxel of each brick; those of a volume begin anywhere in a brick.
    corner_x = (i // bricks_z // bricks_y % bricks_x + (lower_x >> 2)) * 4
    corner_y = (i // bricks_z % bricks_y + (lower_y >> 2)) * 4
    corner_z = (i % bricks_z + (lower_z >> 2)) * 4
    b = item[:, None]
    x = corner_x[:, None] + local(bit, 0)
    y = corner_y[:, None] + local(bit, 1)
    z = corner_z[:, None] + local(bit, 2)
    inside = (x >= lower_x) & (x - lower_x < size_x) & (y >= lower_y) & (y - lower_y < size_y)
    inside = inside & (z >= lower_z) & (z - lower_z < size_z) & (i < n_pairs)[:, None]
    voxel = ((b * size_x + x - lower_x) * size_y + y - lower_y) * size_z + z - lower_z
    occupied = tl.load(volume_ptr + voxel, mask=inside, other=0) != 0
    tl.store(out_keys_ptr + i, encode(item, corner_x, corner_y, corner_z) >> 6, mask=i < n_pairs)
    tl.store(out_masks_ptr + i, as_mask(occupied, bit), mask=i < n_pairs)
    illegal = occupied & (in_range(b, x, y, z, MAX_BATCH) == 0)
    bad = tl.min(tl.min(tl.where(illegal, voxel, NONE), axis=1), axis=0)
    if bad != NONE:
        tl.atomic_min(bad_ptr, bad, sem="relaxed")


def dense_bricks(mask: Tensor, lower: list[int]) -> Bricks:
    """Bricks of the True voxels of `mask` bool [B, X, Y, Z], whose first voxel is `lower`."""
    volume = mask.contiguous().view(torch.int8)
    batch_size, *size = mask.shape
    bricks = [((low + length - 1) >> 2) - (low >> 2) + 1 for low, length in zip(lower, size, strict=True)]
    n = batch_size * bricks[0] * bricks[1] * bricks[2] if mask.numel() else 0
    keys = torch.empty(n, dtype=torch.int64, device=mask.device)
    masks = torch.empty_like(keys)
    bad = no_bad(mask.device)
    launch(dense_kernel, n, volume, keys, masks, bad, n, *bricks, *size, *lower, block=8, lanes=64)
    try:
        return finish(keys, masks, batch_size, sort=True, bad=bad)
    except VoxelError as error:
        # Rows are those of `mask.nonzero()`.
        raise VoxelError(read_back(volume.flatten()[: error.index].sum())[0]) from None
