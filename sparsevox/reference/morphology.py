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
    stays = masks if lower <= 0 <= upper else torch.zeros_like(masks)
    arriving: dict[int, Tensor] = {}  # in the next brick up or down
    for shift in range(lower, upper + 1):
        if shift == 0:
            continue
        inside, leaves = morton.shift_masks(masks, axis, shift)
        stays = stays | inside
        step = 1 if shift > 0 else -1
        arriving[step] = arriving[step] | leaves if step in arriving else leaves
    moved = []
    for step, words in arriving.items():
        moving = true_indices(words != 0)
        targets = morton.step_keys(keys[moving], axis, step)
        if (targets == morton.NONE).any():
            raise morton.VoxelError(-1)
        moved.append((targets, words[moving]))
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
