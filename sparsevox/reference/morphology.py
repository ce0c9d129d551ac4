"""Dilation and erosion by a box, axis by axis, as shifts of the masks.

L bricks, B grids. All bounds lie within [-4, 4], so that a voxel moves by at most one brick.
"""

import torch
from torch import Tensor

from sparsevox import morton
from sparsevox.morton import Bricks
from sparsevox.reference._runs import assemble, search, true_indices, unite


def dilate_bricks(keys: Tensor, masks: Tensor, offsets: Tensor, lower: list[int], upper: list[int]) -> Bricks:
    """Bricks of {a + s}: a is a voxel, s is in the box from lower to upper inclusive."""
    for axis in range(3):
        keys, masks = _dilate_axis(keys, masks, axis, lower[axis], upper[axis])
    return assemble(keys, masks, offsets.shape[0] - 1)


def _dilate_axis(keys: Tensor, masks: Tensor, axis: int, lower: int, upper: int) -> tuple[Tensor, Tensor]:
    stays, up, down = torch.zeros_like(masks), torch.zeros_like(masks), torch.zeros_like(masks)
    for shift in range(lower, upper + 1):
        inside, leaves = morton.shift_masks(masks, axis, shift) if shift else (masks, None)
        stays |= inside
        if leaves is not None:
            arriving = up if shift > 0 else down
            arriving |= leaves
    moved = []
    for step, arriving in ((1, up), (-1, down)):
        moving = true_indices(arriving != 0)
        targets = morton.step_keys(keys[moving], axis, step)
        if (targets == morton.NONE).any():
            raise morton.VoxelError(-1)
        moved.append((targets, arriving[moving]))
    return unite(keys, stays, *moved)


def erode_bricks(
    keys: Tensor, masks: Tensor, offsets: Tensor, table: Tensor | None, lower: list[int], upper: list[int]
) -> Bricks:
    """Bricks of {x : x + s is a voxel for all s in the box}. As lower <= 0 <= upper, there are no new bricks."""
    for axis in range(3):
        masks = _erode_axis(keys, masks, axis, lower[axis], upper[axis])
    return assemble(keys.clone(), masks, offsets.shape[0] - 1)


def _erode_axis(keys: Tensor, masks: Tensor, axis: int, lower: int, upper: int) -> Tensor:
    out = masks.clone()
    for step, shifts in ((-1, range(lower, 0)), (1, range(1, upper + 1))):
        if not shifts or keys.shape[0] == 0:
            continue
        index, found = search(keys, morton.step_keys(keys, axis, step))
        near = torch.where(found, masks[index], 0)
        for shift in shifts:  # the voxel at x + shift must arrive at x
            out &= morton.shift_masks(masks, axis, -shift)[0] | morton.shift_masks(near, axis, -shift)[1]
    return out
