"""Neighbors of voxels and of bricks: one algorithm, since bricks are the voxels of a grid that is coarser by 4.

N fine voxels, M coarse voxels, L bricks, K taps. At tap t of an axis, coarse voxel c meets the fine voxel
`stride * c + t * dilation - padding`; a neighbor is the special case of stride 1 within one grid.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from sparsevox import morton
from sparsevox.reference._runs import from_sorted_codes, lanes, search

SEARCH_LIMIT = 256  # with up to this many bricks, each neighbor is searched
CHUNK = 1 << 16  # voxels whose addresses fit in the cache of a CPU core


class Moves(NamedTuple):
    """Fine bricks and bits that the taps of one axis reach, for each of the four positions in a coarse brick."""

    steps: tuple[int, ...]  # from the fine brick at the corner of the coarse brick to those reached; ascending
    bricks: Tensor  # int64 [k, 64], by tap and bit of the coarse voxel: index in `steps`
    bits: Tensor  # int64 [k, 64]: contribution of this axis to the bit of the fine voxel


@cache
def moves(axis: int, size: int, stride: int, dilation: int, padding: int, device: torch.device) -> Moves:
    """Moves of one axis. The corner 4 * B of a coarse brick is at the corner of the fine brick stride * B."""
    bit = torch.arange(64, device=device)
    position = (bit >> (5 - axis) & 1) << 1 | (bit >> (2 - axis) & 1)
    taps = torch.arange(size, device=device)[:, None]
    reached = stride * position + taps * dilation - padding  # [k, 64]
    steps, bricks = torch.unique(reached >> 2, return_inverse=True)
    bits = (reached >> 1 & 1) << (5 - axis) | (reached & 1) << (2 - axis)
    return Moves(tuple(steps.tolist()), bricks, bits)


def fill(out: Tensor, lane: Tensor, near: Tensor, fine_masks: Tensor, fine_count: int, axes: Sequence[Moves]) -> None:
    """Write the table int32 [K, M] of fine rows, -1 where there is no voxel.

    Args:
        out: The table to write to.
        lane: Brick row * 64 + bit of each coarse voxel, int64 [M].
        near: Rows of the fine bricks around each coarse brick, -1 where there is none: integers [R, L].
        fine_masks: Masks of the fine bricks.
        fine_count: N.
        axes: Moves of the three axes.
    """
    bricks, device = fine_masks.shape[0], lane.device
    # Addresses are int32 where they fit. Absent bricks become an extra brick without voxels.
    dtype = torch.int32 if max(64 * (bricks + 1), near.numel()) < 1 << 31 else torch.int64
    row_of_lane = torch.full((64 * (bricks + 1),), -1, dtype=torch.int32, device=device)
    row_of_lane.index_copy_(0, lanes(fine_masks), torch.arange(fine_count, dtype=torch.int32, device=device))
    first_lane = torch.where(near < 0, bricks, near).flatten().to(dtype).mul_(64)
    y, z = len(axes[1].steps), len(axes[2].steps)
    weights = [y * z * near.shape[1], z * near.shape[1], near.shape[1]]
    far = [(axis.bricks * weight).to(dtype) for axis, weight in zip(axes, weights, strict=True)]
    low = [axis.bits.to(dtype) for axis in axes]
    for start in range(0, lane.shape[0], CHUNK):
        part = slice(start, min(start + CHUNK, lane.shape[0]))
        _fill_chunk(out[:, part], lane[part], first_lane, row_of_lane, far, low)


def _fill_chunk(
    out: Tensor, lane: Tensor, first_lane: Tensor, row_of_lane: Tensor, far: list[Tensor], low: list[Tensor]
) -> None:
    bit, own = lane & 63, (lane >> 6).to(first_lane.dtype)
    steps = [
        [(b.index_select(0, bit), w.index_select(0, bit)) for b, w in zip(bricks, bits, strict=True)]
        for bricks, bits in zip(far, low, strict=True)
    ]
    address, target = torch.empty_like(own), torch.empty_like(own)
    taps = iter(out)
    for x_brick, x_bit in steps[0]:
        for y_brick, y_bit in steps[1]:
            brick, bits = own + x_brick + y_brick, x_bit + y_bit
            for z_brick, z_bit in steps[2]:
                torch.add(brick, z_brick, out=address)
                torch.index_select(first_lane, 0, address, out=target)
                target.add_(bits).add_(z_bit)
                torch.index_select(row_of_lane, 0, target, out=next(taps))


def bricks_around(keys: Tensor) -> Tensor:
    """Row of the brick at each of the 27 taps around each brick, -1 where there is none: int32 [27, L]."""
    if keys.shape[0] > SEARCH_LIMIT:  # bricks are the voxels of a grid that is coarser by 4, in the same order
        coarse_keys, coarse_masks = from_sorted_codes(morton.key_as_code(keys))
        if 2 * coarse_keys.shape[0] <= keys.shape[0]:  # the recursion ends only if bricks become fewer
            out = torch.empty((27, keys.shape[0]), dtype=torch.int32, device=keys.device)
            axes = [moves(axis, 3, 1, 1, 1, keys.device) for axis in range(3)]
            fill(out, lanes(coarse_masks), bricks_around(coarse_keys), coarse_masks, keys.shape[0], axes)
            return out
    moved = keys[None]
    for axis in range(3):
        moved = torch.stack([morton.step_keys(moved, axis, step) for step in (-1, 0, 1)], 1).flatten(0, 1)
    index, found = search(keys, moved)
    return torch.where(found, index, -1).int()
