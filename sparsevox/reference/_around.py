"""Neighbours of voxels and of bricks: the same question, asked of two grids of which one is four times as coarse.

N voxels, L bricks. A tap t stands for the offset (t // 9 - 1, t // 3 % 3 - 1, t % 3 - 1).
"""

from itertools import product

import torch
from torch import Tensor

from sparsevox import morton
from sparsevox.reference._runs import from_sorted_codes, lanes, search, true_indices

SEARCH_LIMIT = 256  # bricks; so few are searched for one by one
CHUNK = 1 << 16  # voxels whose addresses stay in the cache of a CPU core
STEPS = (-1, 0, 1)


def voxels_around(keys: Tensor, masks: Tensor, count: int) -> Tensor:
    """Row of the neighbour of each of the `count` voxels at each tap, -1 where there is none: int32 [27, N]."""
    bricks, device = keys.shape[0], keys.device
    dtype = (
        torch.int32 if 64 * (bricks + 1) < 1 << 31 else torch.int64
    )  # of addresses: half the bytes where they fit
    lane = lanes(masks)
    row_of_lane = torch.full((64 * (bricks + 1),), -1, dtype=torch.int32, device=device)
    row_of_lane.index_copy_(0, lane, torch.arange(count, dtype=torch.int32, device=device))
    # First lane of each neighbour brick. Absent ones point at an extra brick without voxels.
    near = bricks_around(keys).flatten().to(dtype)
    near = near.masked_fill_(near < 0, bricks).mul_(64)
    out = torch.empty((27, count), dtype=torch.int32, device=device)
    torch.arange(count, dtype=torch.int32, device=device, out=out[13])
    out[14:] = -1
    for first in range(0, count, CHUNK):
        _fill(out, first, lane[first : first + CHUNK].to(dtype), near, row_of_lane)
    return out


def _fill(out: Tensor, first: int, lane: Tensor, near: Tensor, row_of_lane: Tensor) -> None:
    """Enter the neighbours of the voxels `lane` [M], rows `first` and following, in the table `out` [27, N]."""
    brick, bit = _moves(lane, near.shape[0] // 27)
    for tap, (x, y, z) in enumerate(product(range(3), repeat=3)):
        if tap == 13:
            return
        if z == 0:
            plane_brick, plane_bit = brick[0][x] + brick[1][y], bit[0][x] + bit[1][y]
        target = near.index_select(0, plane_brick + brick[2][z]).add_(plane_bit).add_(bit[2][z])
        rows = out[tap, first : first + lane.shape[0]]
        torch.index_select(row_of_lane, 0, target, out=rows)
        # Where voxel a sees b at one tap, b sees a at the opposite one.
        found = true_indices(rows >= 0)
        out[26 - tap].index_copy_(0, rows.index_select(0, found).long(), found.add(first).int())


def _moves(lane: Tensor, bricks: int) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """What a step along an axis adds to the address of the neighbour: [axis][step + 1] of the brick, and of the bit.

    The brick at a tap is entry tap * L + own of `bricks_around`, here split in the parts of the three axes; the own row
    is in the part of the first axis.
    """
    brick, bit = [], []
    own_row = lane >> 6
    for axis, unit in enumerate(morton.AXIS_UNITS):
        mask, weight = 9 * unit, 3 ** (2 - axis) * bricks  # an axis has two of the six bits
        own = lane & mask
        start = own_row + weight if axis == 0 else torch.full_like(own_row, weight)
        brick.append([start - weight * (own == 0), start, start + weight * (own == mask)])
        bit.append([(own - unit) & mask, own, ((own | ~mask) + unit) & mask])
    return brick, bit


def bricks_around(keys: Tensor) -> Tensor:
    """Row of the brick at each tap around each brick, -1 where there is none: int32 [27, L]."""
    if keys.shape[0] > SEARCH_LIMIT:  # a brick is a voxel of the grid four times as coarse, in the same order
        coarse_keys, coarse_masks = from_sorted_codes(morton.key_as_code(keys))
        if 2 * coarse_keys.shape[0] <= keys.shape[0]:  # scattered bricks would never become fewer
            return voxels_around(coarse_keys, coarse_masks, keys.shape[0])
    moved = keys[None]
    for axis in range(3):
        moved = torch.stack([morton.step_keys(moved, axis, step) for step in STEPS], 1).flatten(0, 1)
    index, found = search(keys, moved)
    return torch.where(found, index, -1).int()
