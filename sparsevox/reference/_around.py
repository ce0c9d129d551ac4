"""Neighbours of voxels and of bricks: the same question, asked of two grids of which one is four times as coarse.

N voxels, L bricks. A tap t stands for the offset (t // 9 - 1, t // 3 % 3 - 1, t % 3 - 1).
"""

from itertools import product

import torch
from torch import Tensor

from sparsevox import morton
from sparsevox.reference._runs import from_sorted_codes, lanes, search

SEARCH_LIMIT = 256  # bricks; so few are searched for one by one
STEPS = (-1, 0, 1)


def voxels_around(keys: Tensor, masks: Tensor, count: int) -> Tensor:
    """Row of the neighbour of each of the `count` voxels at each tap, -1 where there is none: int32 [27, N]."""
    bricks, device = keys.shape[0], keys.device
    dtype = torch.int32 if 64 * (bricks + 1) < 1 << 31 else torch.int64  # of addresses: half the bytes where they fit
    lane = lanes(masks)
    row_of_lane = torch.full((64 * (bricks + 1),), -1, dtype=torch.int32, device=device)
    row_of_lane.index_copy_(0, lane, torch.arange(count, dtype=torch.int32, device=device))
    # First lane of each neighbour brick. Absent ones point at an extra brick without voxels.
    near = bricks_around(keys).flatten().to(dtype)
    near = near.masked_fill_(near < 0, bricks).mul_(64)
    lane = lane.to(dtype)
    brick, bit = _moves(lane, bricks)
    out = torch.empty((27, count), dtype=torch.int32, device=device)
    for tap, (x, y, z) in enumerate(product(range(3), repeat=3)):
        if z == 0:
            plane_brick, plane_bit = brick[0][x] + brick[1][y], bit[0][x] + bit[1][y]
        target = near.index_select(0, plane_brick + brick[2][z]).add_(plane_bit).add_(bit[2][z])
        torch.index_select(row_of_lane, 0, target, out=out[tap])
    return out


def _moves(lane: Tensor, bricks: int) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """What a step along an axis adds to the address of the neighbour: [axis][step + 1] of the brick, and of the bit.

    The brick at a tap is entry tap * L + own of `bricks_around`, here split in the parts of the three axes; the own row
    is in the part of the first axis.
    """
    brick, bit = [], []
    for axis in range(3):
        position = lane >> (5 - axis) & 1  # 0 to 3, from its two bits in the code
        position = position << 1 | (lane >> (2 - axis) & 1)
        moved = [position + step for step in STEPS]
        weight = 3 ** (2 - axis) * bricks
        brick.append([((p >> 2) + 1) * weight + (lane >> 6 if axis == 0 else 0) for p in moved])
        bit.append([((p & 2) << (4 - axis)) | ((p & 1) << (2 - axis)) for p in moved])
    return brick, bit


def bricks_around(keys: Tensor) -> Tensor:
    """Row of the brick at each tap around each brick, -1 where there is none: int32 [27, L]."""
    if keys.shape[0] > SEARCH_LIMIT:  # a brick is a voxel of the grid four times as coarse, in the same order
        return voxels_around(*from_sorted_codes(morton.key_as_code(keys)), keys.shape[0])
    near = torch.full((27, keys.shape[0]), -1, dtype=torch.int32, device=keys.device)
    for tap, steps in enumerate(product(STEPS, repeat=3)):
        moved = keys
        for axis, step in enumerate(steps):
            moved = morton.step_keys(moved, axis, step)
        index, found = search(keys, moved)
        near[tap] = torch.where(found, index, -1)
    return near
