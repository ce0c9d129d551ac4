"""Dense volumes to bricks, and features to volumes and back.

B grids, N voxels, C channels, X Y Z voxels per axis.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsevox import morton
from sparsevox._readback import read_back
from sparsevox.kernels._bits import NONE, as_mask, encode, in_range, items, local
from sparsevox.kernels._finish import finish, no_bad
from sparsevox.kernels._launch import cdiv, launch
from sparsevox.morton import Bricks, VoxelError

MAX_BATCH = tl.constexpr(morton.MAX_BATCH)
COLUMNS = 16


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
    """Compute keys and masks of all bricks that a volume touches, and its first voxel out of range."""
    i = items(BLOCK)
    bit = tl.arange(0, 64).to(tl.int64)[None, :]
    item = i // bricks_z // bricks_y // bricks_x
    # Coordinates of the first voxel of each brick; the volume may begin anywhere within a brick.
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


@triton.jit(do_not_specialize=["n_pairs", "n_cells"])
def cells_kernel(
    feats_ptr,
    places_ptr,
    out_feats_ptr,
    n_pairs,
    n_cells,
    channels,
    GATHER: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Copy rows to cells of a volume, or with GATHER back, 0 where there is no cell. An item is COLUMNS channels."""
    i = items(BLOCK)
    blocks = tl.cdiv(channels, COLUMNS)
    row = i // blocks
    column = ((i % blocks) * COLUMNS)[:, None] + tl.arange(0, COLUMNS)[None, :]
    wanted = (i < n_pairs)[:, None] & (column < channels)
    cell = tl.load(places_ptr + row, mask=i < n_pairs, other=-1)[:, None]
    met = wanted & (cell >= 0)
    own = row[:, None] * channels + column
    element = (cell // n_cells * channels + column) * n_cells + cell % n_cells
    if GATHER:
        tl.store(out_feats_ptr + own, tl.load(feats_ptr + element, mask=met, other=0), mask=wanted)
    else:
        tl.store(out_feats_ptr + element, tl.load(feats_ptr + own, mask=met, other=0), mask=met)


def dense_bricks(mask: Tensor, lower: list[int]) -> Bricks:
    """Bricks of the True voxels of `mask` bool [B, X, Y, Z], whose first voxel has the coordinates `lower`."""
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
        # The index of a voxel is its row in `mask.nonzero()`.
        raise VoxelError(read_back(volume.flatten()[: error.index].sum())[0]) from None


def scatter_dense(feats: Tensor, cells: Tensor, batch_size: int, size: Sequence[int]) -> Tensor:
    """Write rows [N, C] to the cells [N] of a volume [B, C, X, Y, Z] of 0; rows with cell -1 are dropped."""
    out = feats.new_zeros((batch_size, feats.shape[1], *size))
    _move(feats, cells, out, size, feats.shape[1], False)
    return out


def gather_dense(volume: Tensor, cells: Tensor) -> Tensor:
    """Read rows [N, C] from the cells [N] of a volume [B, C, X, Y, Z]; 0 where the cell is -1."""
    out = volume.new_empty((cells.shape[0], volume.shape[1]))
    _move(volume, cells, out, volume.shape[2:], volume.shape[1], True)
    return out


def _move(feats: Tensor, cells: Tensor, out: Tensor, size: Sequence[int], channels: int, gather: bool) -> None:
    n = cells.shape[0] * cdiv(channels, COLUMNS)
    n_cells = max(size[0] * size[1] * size[2], 1)
    arguments = (feats.contiguous(), cells, out, n, n_cells, channels)
    launch(cells_kernel, n, *arguments, GATHER=gather, COLUMNS=COLUMNS, block=32, lanes=COLUMNS)
