"""Neighbours of voxels and of bricks: the same question, asked of two grids of which one is four times as coarse.

N voxels, L bricks. A tap t stands for the offset (t // 9 - 1, t // 3 % 3 - 1, t % 3 - 1).
"""

import torch
from torch import Tensor

from sparsevox import morton
from sparsevox.reference._runs import from_sorted_codes, lanes, search

SEARCH_LIMIT = 256  # bricks; so few are searched for one by one
CHUNK = 1 << 16  # voxels whose addresses stay in the cache of a CPU core


def voxels_around(keys: Tensor, masks: Tensor, count: int) -> Tensor:
    """Row of the neighbour of each of the `count` voxels at each tap, -1 where there is none: int32 [27, N]."""
    bricks, device = keys.shape[0], keys.device
    # Addresses take half the bytes where they fit.
    dtype = torch.int32 if 64 * (bricks + 1) < 1 << 31 else torch.int64
    lane = lanes(masks)
    row_of_lane = torch.full((64 * (bricks + 1),), -1, dtype=torch.int32, device=device)
    row_of_lane.index_copy_(0, lane, torch.arange(count, dtype=torch.int32, device=device))
    # First lane of each neighbour brick. Absent ones point at an extra brick without voxels.
    near = bricks_around(keys).flatten().to(dtype)
    near = near.masked_fill_(near < 0, bricks).mul_(64)
    out = torch.empty((27, count), dtype=torch.int32, device=device)
    for first in range(0, count, CHUNK):
        part = slice(first, min(first + CHUNK, count))
        _fill(out[:, part], lane[part].to(dtype), near, row_of_lane)
    return out


def _fill(out: Tensor, lane: Tensor, near: Tensor, row_of_lane: Tensor) -> None:
    """Write the neighbours of the voxels `lane` [M], the columns `out` [27, M] of the table."""
    bricks = near.shape[0] // 27
    own = (lane >> 6) + 13 * bricks
    x_moves, y_moves, z_moves = (_moves(lane, axis, 3 ** (2 - axis) * bricks) for axis in range(3))
    address, target = torch.empty_like(lane), torch.empty_like(lane)
    taps = iter(out)
    for x_brick, x_bit in x_moves:
        for y_brick, y_bit in y_moves:
            brick, bit = own + x_brick + y_brick, x_bit + y_bit
            for z_brick, z_bit in z_moves:
                torch.add(brick, z_brick, out=address)
                torch.index_select(near, 0, address, out=target)
                target.add_(bit).add_(z_bit)
                torch.index_select(row_of_lane, 0, target, out=next(taps))


def _moves(lane: Tensor, axis: int, weight: int) -> list[tuple[Tensor | int, Tensor]]:
    """For a step of -1, 0 and 1 along an axis: by how much the brick changes, and the new bits."""
    unit = morton.AXIS_UNITS[axis]
    mask = 9 * unit  # an axis has two of the six bits
    own = lane & mask
    below, above = own - unit, (own | ~mask) + unit
    # Negative where the step down leaves the brick, and where the step up does not.
    sign = 8 * lane.element_size() - 1
    return [((below >> sign) & -weight, below & mask), (0, own), (~(above >> sign) & weight, above & mask)]


def bricks_around(keys: Tensor) -> Tensor:
    """Row of the brick at each tap around each brick, -1 where there is none: int32 [27, L]."""
    if keys.shape[0] > SEARCH_LIMIT:  # a brick is a voxel of the grid four times as coarse, in the same order
        coarse_keys, coarse_masks = from_sorted_codes(morton.key_as_code(keys))
        if 2 * coarse_keys.shape[0] <= keys.shape[0]:  # scattered bricks would never become fewer
            return voxels_around(coarse_keys, coarse_masks, keys.shape[0])
    moved = keys[None]
    for axis in range(3):
        moved = torch.stack([morton.step_keys(moved, axis, step) for step in (-1, 0, 1)], 1).flatten(0, 1)
    index, found = search(keys, moved)
    return torch.where(found, index, -1).int()
