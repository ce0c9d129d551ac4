"""Neighbors of voxels and of bricks: one algorithm, since bricks are the voxels of a grid that is coarser by 4.

N fine voxels, M coarse voxels, L bricks, K taps. At tap t of an axis, coarse voxel c meets the fine voxel
`stride * c + t * dilation - padding`; a neighbor is the special case of stride 1 within one grid.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from sparsevox import morton
from sparsevox.reference._runs import corners, from_sorted_codes, lanes, search, spread_table

SEARCH_LIMIT = 256  # with up to this many bricks, each neighbor is searched
CHUNK = 1 << 16  # voxels whose addresses fit in the cache of a CPU core
WHOLE = 3 << 16  # entries of a table that is filled at once
POSITIONS = 1 << morton.AXIS_BITS - 2  # of bricks along an axis
OUTSIDE = 1 << 58  # more than any difference of keys


class Moves(NamedTuple):
    """Fine bricks and bits that the taps of one axis reach, for each of the four positions in a coarse brick."""

    steps: tuple[int, ...]  # from the fine brick at the corner of the coarse brick to those reached; ascending
    bricks: Tensor  # int32 [k, 64], by tap and bit of the coarse voxel: index in `steps`
    bits: Tensor  # int32 [k, 64]: contribution of this axis to the bit of the fine voxel


@cache
def moves(axis: int, size: int, stride: int, dilation: int, padding: int, device: torch.device) -> Moves:
    """Moves of one axis. The corner 4 * B of a coarse brick is at the corner of the fine brick stride * B."""
    bit = torch.arange(64, device=device)
    position = (bit >> (5 - axis) & 1) << 1 | (bit >> (2 - axis) & 1)
    taps = torch.arange(size, device=device)[:, None]
    reached = stride * position + taps * dilation - padding  # [k, 64]
    steps, bricks = torch.unique(reached >> 2, return_inverse=True)
    bits = (reached >> 1 & 1) << (5 - axis) | (reached & 1) << (2 - axis)
    return Moves(tuple(steps.tolist()), bricks.int(), bits.int())


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
    # Addresses are int32 where they fit. Absent bricks are brick -1, which comes first and has no voxels.
    dtype = torch.int32 if max(64 * (bricks + 1), near.numel()) < 1 << 31 else torch.int64
    row_of_lane = torch.full((64 * (bricks + 1),), -1, dtype=torch.int32, device=device)
    row_of_lane[64:].index_copy_(0, lanes(fine_masks), torch.arange(fine_count, dtype=torch.int32, device=device))
    first_lane = near.flatten().add(1).to(dtype).mul_(64)
    y, z = len(axes[1].steps), len(axes[2].steps)
    weights = [y * z * near.shape[1], z * near.shape[1], near.shape[1]]
    far = [axis.bricks.to(dtype) * weight for axis, weight in zip(axes, weights, strict=True)]
    low = [axis.bits.to(dtype) for axis in axes]
    if out.numel() <= WHOLE:
        _fill_whole(out, lane, first_lane, row_of_lane, far, low)
        return
    for start in range(0, lane.shape[0], CHUNK):
        part = slice(start, min(start + CHUNK, lane.shape[0]))
        _fill_chunk(out[:, part], lane[part], first_lane, row_of_lane, far, low)


def _fill_whole(
    out: Tensor, lane: Tensor, first_lane: Tensor, row_of_lane: Tensor, far: list[Tensor], low: list[Tensor]
) -> None:
    """Fill all taps at once, for few voxels."""
    bit, own = lane & 63, (lane >> 6).to(first_lane.dtype)
    (x, y, z), (x_bit, y_bit, z_bit) = ([table.index_select(1, bit) for table in tables] for tables in (far, low))
    address = ((own + x)[:, None] + y)[:, :, None] + z  # [x, y, z, M]
    bits = (x_bit[:, None] + y_bit)[:, :, None] + z_bit
    target = first_lane.index_select(0, address.view(-1)).add_(bits.view(-1))
    torch.index_select(row_of_lane, 0, target, out=out.view(-1))


def _fill_chunk(
    out: Tensor, lane: Tensor, first_lane: Tensor, row_of_lane: Tensor, far: list[Tensor], low: list[Tensor]
) -> None:
    """Fill tap after tap, so that the addresses of many voxels stay in the cache."""
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


def near_bricks(
    keys: Tensor, coarse_keys: Tensor, stride: tuple[int, ...], steps: tuple[tuple[int, ...], ...]
) -> Tensor:
    """Rows of the fine bricks that are `steps` away from the corner of each coarse brick, on each axis.

    Returns:
        int32 [R, L], for all combinations of the steps; -1 where there is no brick.
    """
    scale, offset, shifts = _step_tables(stride, steps, keys.device)
    # 1. The bits of one axis in the keys of the fine bricks. A position out of range makes a key above all others.
    position = (corners(coarse_keys)[:, 1:].t()[:, None] * scale + offset) >> 2  # [3, S, L]
    parts = spread_table(keys.device)[position & POSITIONS - 1].bitwise_left_shift_(shifts)
    parts.add_(position >> morton.AXIS_BITS - 2 != 0, alpha=OUTSIDE)
    x, y, z = (part[: len(step)] for part, step in zip(parts, steps, strict=True))
    # 2. Their sums. Only some of the steps along x fit in the cache at once.
    x = x + (coarse_keys & -1 << morton.KEY_BITS)
    yz = y[:, None] + z  # [y, z, L]
    near = []
    for some in x.split(max(1, WHOLE // max(yz.numel(), 1))):
        index, found = search(keys, (some[:, None, None] + yz).view(-1))
        near.append(torch.where(found, index, -1).int())
    united = near[0] if len(near) == 1 else torch.cat(near)
    return united.view(math.prod(map(len, steps)), coarse_keys.shape[0])


@cache
def _step_tables(
    stride: tuple[int, ...], steps: tuple[tuple[int, ...], ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Factor and summand [3, S, 1] that take the corner of a coarse brick to biased positions, and shifts [3, 1, 1]."""
    most = max(map(len, steps))
    padded = [[*step, *[0] * (most - len(step))] for step in steps]
    offset = 4 * torch.tensor(padded, device=device) - morton.COORD_MIN
    shifts = torch.tensor([2, 1, 0], device=device)
    return torch.tensor(stride, device=device)[:, None, None], offset[:, :, None], shifts[:, None, None]


def bricks_around(keys: Tensor) -> Tensor:
    """Row of the brick at each of the 27 taps around each brick, -1 where there is none: int32 [27, L]."""
    if keys.shape[0] > SEARCH_LIMIT:  # bricks are the voxels of a grid that is coarser by 4, in the same order
        coarse_keys, coarse_masks = from_sorted_codes(morton.key_as_code(keys))
        if 2 * coarse_keys.shape[0] <= keys.shape[0]:  # the recursion ends only if bricks become fewer
            out = torch.empty((27, keys.shape[0]), dtype=torch.int32, device=keys.device)
            axes = [moves(axis, 3, 1, 1, 1, keys.device) for axis in range(3)]
            fill(out, lanes(coarse_masks), bricks_around(coarse_keys), coarse_masks, keys.shape[0], axes)
            return out
    return near_bricks(keys, keys, (1, 1, 1), ((-1, 0, 1),) * 3)
