"""Codes, keys and masks: Z-order (Morton order) and bricks as integer arithmetic. Only this file knows the bit layout.

The *code* of a voxel is one int64: its batch index above the 54-bit Morton code of its coordinates, 18 bits per axis, x
above y above z in every group of three. Batch and coordinates are biased, so that the signed order of the codes is the
order of the rows. A brick is a 4x4x4 block of voxels. Its *key* is the code of its voxels without the last six bits;
those six bits are the number of the voxel's bit in the 64-bit *mask* of the brick.

All functions are elementwise, on int64 tensors of any shape and device. `kernels/_bits.py` is the same in Triton.
N voxels, M other voxels, B grids, L bricks.
"""

from functools import cache, reduce
from typing import NamedTuple

import torch
from torch import Tensor

AXIS_BITS = 18
CODE_BITS = 3 * AXIS_BITS  # without the batch index
KEY_BITS = CODE_BITS - 6
COORD_MIN = -(1 << (AXIS_BITS - 1))
COORD_MAX = (1 << (AXIS_BITS - 1)) - 1
MAX_BATCH = 1024
BATCH_BIAS = 512
MAX_VOXELS = (1 << 31) - 1  # rows are int32
NONE = 1 << 62  # no brick has this key; it sorts after all others
GOLDEN = -7046029254386353131  # 2^64 / golden ratio, odd: Fibonacci hashing

# Bits of each axis (x, y, z) in a key, and the lowest of them.
AXIS_MASKS = tuple(sum(1 << (3 * i + 2 - axis) for i in range(AXIS_BITS - 2)) for axis in range(3))
AXIS_UNITS = (4, 2, 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _plane(axis: int, position: int) -> int:
    """The bits of a mask whose voxels are at `position` (0 to 3) along `axis`."""
    high, low = position >> 1, position & 1
    bits = (b for b in range(64) if (b >> (5 - axis)) & 1 == high and (b >> (2 - axis)) & 1 == low)
    return sum(1 << b for b in bits)


# PLANES[axis][position], as signed 64-bit words.
PLANES = tuple(tuple(_signed(_plane(axis, p)) for p in range(4)) for axis in range(3))
# RANGES[axis][p]: all planes below position p, for p in 0..4.
RANGES = tuple(tuple(_signed(sum(_plane(axis, q) for q in range(p))) for p in range(5)) for axis in range(3))


class Bricks(NamedTuple):
    """The topology of a batch of grids: the arrays that ops read and return.

    keys:    int64 [L], sorted and distinct.
    masks:   int64 [L], occupancy bits, none of them zero.
    starts:  int32 [L], row of the first voxel of each brick.
    offsets: int64 [B + 1], first row of each batch item, then N.
    rows:    bool [N, 0]. It holds no data, only its length: the number of voxels is a *shape*, which takes no memory
             and which `torch.compile` can track, unlike a number.
    """

    keys: Tensor
    masks: Tensor
    starts: Tensor
    offsets: Tensor
    rows: Tensor


class VoxelError(ValueError):
    """Row `index` of an input is out of the range of voxels. Ops catch this and name the input."""

    def __init__(self, index: int) -> None:
        super().__init__(f"row {index} is out of the range of voxels")
        self.index = index


def spread(x: Tensor) -> Tensor:
    """Move bit i of `x` (18 bits) to bit 3i."""
    x = x & 0x3FFFF
    x = (x | x << 32) & 0x001F00000000FFFF
    x = (x | x << 16) & 0x001F0000FF0000FF
    x = (x | x << 8) & 0x100F00F00F00F00F
    x = (x | x << 4) & 0x10C30C30C30C30C3
    return (x | x << 2) & 0x1249249249249249


def compact(x: Tensor) -> Tensor:
    """Move bit 3i of `x` to bit i: the inverse of `spread`."""
    x = x & 0x1249249249249249
    x = (x | x >> 2) & 0x10C30C30C30C30C3
    x = (x | x >> 4) & 0x100F00F00F00F00F
    x = (x | x >> 8) & 0x001F0000FF0000FF
    x = (x | x >> 16) & 0x001F00000000FFFF
    return (x | x >> 32) & 0x3FFFF


def encode(coords: Tensor) -> Tensor:
    """Codes int64 [...] of coordinates int64 [..., 4] = (b, i, j, k), which must be in range."""
    b, x, y, z = coords.long().unbind(-1)
    zyx = spread(x - COORD_MIN) << 2 | spread(y - COORD_MIN) << 1 | spread(z - COORD_MIN)
    return (b - BATCH_BIAS) << CODE_BITS | zyx


def decode(codes: Tensor) -> Tensor:
    """Coordinates int64 [..., 4] of codes int64 [...]."""
    axes = [compact(codes >> shift) + COORD_MIN for shift in (2, 1, 0)]
    return torch.stack([(codes >> CODE_BITS) + BATCH_BIAS, *axes], -1)


def in_range(coords: Tensor) -> Tensor:
    """Whether coordinates [..., 4] of any integer dtype have a code: bool [...]."""
    batch, ijk = coords[..., 0], coords[..., 1:]
    inside = ((ijk >= COORD_MIN) & (ijk <= COORD_MAX)).all(-1)
    return inside & (batch >= 0) & (batch < MAX_BATCH)


def _low(bits: int) -> int:
    return (1 << bits) - 1


def coarsen_codes(codes: Tensor) -> Tensor:
    """Codes of the voxels floor(ijk / 2). Sorted codes stay sorted."""
    return (codes & ~_low(CODE_BITS - 3)) | (((codes >> 3) & _low(CODE_BITS - 3)) ^ 7 << (CODE_BITS - 6))


def coarsen_keys(keys: Tensor) -> Tensor:
    """Keys of the bricks that hold the voxels of each brick after coarsening by 2. Sorted keys stay sorted."""
    halved = (keys >> 3).bitwise_and_(_low(KEY_BITS - 3)).bitwise_xor_(7 << (KEY_BITS - 6))
    return halved.bitwise_or_(keys & ~_low(KEY_BITS - 3))


def key_as_code(keys: Tensor) -> Tensor:
    """Codes of bricks as voxels of a grid that is coarser by 4. Sorted keys stay sorted."""
    return coarsen_codes(coarsen_codes(keys << 6))


def subdivide_codes(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of the first of the eight children (ijk * 2) of each voxel, and whether they are in range."""
    children = (codes & ~_low(CODE_BITS - 3)) | (codes & _low(CODE_BITS - 6)) << 3
    return children, ((codes >> (CODE_BITS - 3)) ^ (codes >> (CODE_BITS - 6))) & 7 == 7


def subdivide_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Keys of the first of the eight bricks with the children of each brick, and whether they are in range."""
    children = (keys & ~_low(KEY_BITS - 3)) | (keys & _low(KEY_BITS - 6)) << 3
    return children, ((keys >> (KEY_BITS - 3)) ^ (keys >> (KEY_BITS - 6))) & 7 == 7


def step_keys(keys: Tensor, axis: int, step: int) -> Tensor:
    """Keys of the next (`step=1`) or previous (`step=-1`) brick along an axis; NONE if that is out of range."""
    mask, unit = AXIS_MASKS[axis], AXIS_UNITS[axis]
    if step == 0:
        return keys
    own = keys & mask
    if step > 0:
        moved, border = ((keys | ~mask) + unit) & mask, mask
    else:
        moved, border = (own - unit) & mask, 0
    return torch.where((own == border) | (keys == NONE), NONE, moved | (keys & ~mask))


def shift_masks(masks: Tensor, axis: int, shift: int) -> tuple[Tensor, Tensor]:
    """Move every voxel by `shift` (-4 to 4) along an axis.

    Returns the voxels that stay in the brick, and those that enter the next brick in the direction of the shift.
    """
    inside, outside = _moves(axis, shift)
    return _moved(masks, inside), _moved(masks, outside)


@cache
def _moves(axis: int, shift: int) -> tuple[dict[int, int], dict[int, int]]:
    """Bits that move by each distance: those that stay in the brick, and those that leave it."""
    inside: dict[int, int] = {}
    outside: dict[int, int] = {}
    for position in range(4):
        target = position + shift
        distance = AXIS_UNITS[axis] * (_bit(target % 4) - _bit(position))
        planes = inside if 0 <= target < 4 else outside
        planes[distance] = planes.get(distance, 0) | PLANES[axis][position]
    return inside, outside


def _moved(masks: Tensor, planes: dict[int, int]) -> Tensor:
    if not planes:
        return torch.zeros_like(masks)
    return reduce(torch.bitwise_or, [_move(masks & plane, distance) for distance, plane in planes.items()])


def _bit(position: int) -> int:
    """Distance in bits, at axis weight 1, between position 0 and `position` (0 to 3)."""
    return (position & 1) + 8 * (position >> 1)


def _move(masks: Tensor, distance: int) -> Tensor:
    if distance >= 0:
        return masks << distance
    return masks >> -distance & _low(64 + distance)


def popcount(words: Tensor) -> Tensor:
    """Number of set bits of each int64 word, as int64."""
    words = words - (words >> 1 & 0x5555555555555555)
    words = (words & 0x3333333333333333) + (words >> 2 & 0x3333333333333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F0F0F0F0F
    return words * 0x0101010101010101 >> 56


def octant_bytes(masks: Tensor) -> Tensor:
    """Eight bits per mask: bit i says whether octant i (byte i, one voxel after coarsening by 2) has a voxel."""
    words = (masks >> 4).bitwise_and_(0x0F0F0F0F0F0F0F0F).bitwise_or_(masks)
    words.bitwise_or_(words >> 2)
    words.bitwise_or_(words >> 1).bitwise_and_(0x0101010101010101)
    return words.mul_(0x0102040810204080).bitwise_right_shift_(56).bitwise_and_(0xFF)


def table_capacity(num_bricks: int) -> int:
    """Number of slots of a hash table of bricks: a power of two, at most half of them in use."""
    return max(16, 1 << max(2 * num_bricks - 1, 0).bit_length())


def first_slots(keys: Tensor, capacity: int) -> Tensor:
    """First slot in the search for a key. Fold in the highest bits, the only ones that depend on the batch index."""
    product = keys * GOLDEN
    return (product >> 32 ^ product >> 48) & (capacity - 1)


def check_total(num_voxels: int) -> None:
    """Raise a ValueError if rows do not fit in int32."""
    if num_voxels > MAX_VOXELS:
        raise ValueError(f"a grid holds at most {MAX_VOXELS} voxels, got {num_voxels}")


def batch_keys(batch_size: int, device: torch.device) -> Tensor:
    """Lowest possible key of each batch item, and of the one after the last: int64 [B + 1]."""
    return (torch.arange(batch_size + 1, device=device) - BATCH_BIAS) << KEY_BITS
