"""Device functions: `morton.py` in Triton, and the look-up of bricks.

Codes, keys and masks are int64, so `>>` is arithmetic and literals must fit in the signed type.
"""

import triton
import triton.language as tl

from sparsevox import morton

CODE_BITS = tl.constexpr(morton.CODE_BITS)
KEY_BITS = tl.constexpr(morton.KEY_BITS)
COORD_MIN = tl.constexpr(morton.COORD_MIN)
COORD_MAX = tl.constexpr(morton.COORD_MAX)
BATCH_BIAS = tl.constexpr(morton.BATCH_BIAS)
NONE = tl.constexpr(morton.NONE)
AXIS_MASKS = tl.constexpr(morton.AXIS_MASKS)
AXIS_UNITS = tl.constexpr(morton.AXIS_UNITS)
PLANES = tl.constexpr(morton.PLANES)
RANGES = tl.constexpr(morton.RANGES)

GOLDEN = tl.constexpr(morton.GOLDEN)


# Coordinates and codes


@triton.jit
def spread(x):
    """Move bit i of `x` (18 bits) to bit 3i."""
    x = x & 0x3FFFF
    x = (x | x << 32) & 0x001F00000000FFFF
    x = (x | x << 16) & 0x001F0000FF0000FF
    x = (x | x << 8) & 0x100F00F00F00F00F
    x = (x | x << 4) & 0x10C30C30C30C30C3
    return (x | x << 2) & 0x1249249249249249


@triton.jit
def compact(x):
    """Move bit 3i of `x` to bit i: the inverse of `spread`."""
    x = x & 0x1249249249249249
    x = (x | x >> 2) & 0x10C30C30C30C30C3
    x = (x | x >> 4) & 0x100F00F00F00F00F
    x = (x | x >> 8) & 0x001F0000FF0000FF
    x = (x | x >> 16) & 0x001F00000000FFFF
    return (x | x >> 32) & 0x3FFFF


@triton.jit
def encode(b, x, y, z):
    """Codes of int64 coordinates that are in range."""
    zyx = spread(x - COORD_MIN) << 2 | spread(y - COORD_MIN) << 1 | spread(z - COORD_MIN)
    return (b - BATCH_BIAS) << CODE_BITS | zyx


@triton.jit
def decode(codes):
    """Coordinates (b, x, y, z) of codes."""
    b = (codes >> CODE_BITS) + BATCH_BIAS
    return b, compact(codes >> 2) + COORD_MIN, compact(codes >> 1) + COORD_MIN, compact(codes) + COORD_MIN


@triton.jit
def in_range(b, x, y, z, batch_size):
    """Whether coordinates have a code and a batch index below `batch_size`."""
    low = tl.minimum(tl.minimum(x, y), z) >= COORD_MIN
    high = tl.maximum(tl.maximum(x, y), z) <= COORD_MAX
    return low & high & (b >= 0) & (b < batch_size)


@triton.jit
def coarsen(words, BITS: tl.constexpr):
    """Halve coordinates, rounding down, in codes (`BITS = CODE_BITS`) or in keys (`KEY_BITS`)."""
    low: tl.constexpr = 2 ** (BITS - 3) - 1
    return (words & ~low) | ((words >> 3) & low) ^ 7 * 2 ** (BITS - 6)


@triton.jit
def subdivide(words, BITS: tl.constexpr):
    """The first of the eight children of codes or keys, and whether they are in range."""
    low: tl.constexpr = 2 ** (BITS - 3) - 1
    kept: tl.constexpr = 2 ** (BITS - 6) - 1
    legal = (((words >> (BITS - 3)) ^ (words >> (BITS - 6))) & 7) == 7
    return (words & ~low) | (words & kept) << 3, legal


@triton.jit
def step_key(keys, step, AXIS: tl.constexpr):
    """Keys of the bricks `step` (an int64 tensor of -1, 0, 1) away along an axis; NONE beyond the range."""
    mask: tl.constexpr = AXIS_MASKS[AXIS]
    own = keys & mask
    # Filling the bits of the other axes lets a carry ripple through them.
    filler = tl.where(step > 0, keys | ~mask, own)
    moved = (filler + step * AXIS_UNITS[AXIS]) & mask
    beyond = ((step > 0) & (own == mask)) | ((step < 0) & (own == 0)) | (keys == NONE)
    return tl.where(beyond, NONE, moved | (keys & ~mask))


# Masks


@triton.jit
def popcount(words):
    """Number of set bits, as int64."""
    words = words - (words >> 1 & 0x5555555555555555)
    words = (words & 0x3333333333333333) + (words >> 2 & 0x3333333333333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F0F0F0F0F
    return words * 0x0101010101010101 >> 56


@triton.jit
def octant_bytes(masks):
    """Eight bits per mask: bit i says whether octant i (byte i) has a voxel."""
    words = masks | (masks >> 4 & 0x0F0F0F0F0F0F0F0F)
    words = words | (words >> 2)
    words = (words | (words >> 1)) & 0x0101010101010101
    return words * 0x0102040810204080 >> 56 & 0xFF


@triton.jit
def octant_words(masks):
    """Masks of the children of the first octants: byte i is 0xFF where bit i of the low byte is set."""
    # The product with all eight bits would carry, so bit 7 is handled separately.
    words = ((masks & 0x7F) * 0x0002040810204081 & 0x0101010101010101) | (masks & 0x80) << 49
    return (words << 8) - words


@triton.jit
def rank(masks, bit):
    """Number of voxels before that of `bit` (int64) in its brick."""
    return popcount(masks & ((1 << bit) - 1))


@triton.jit
def local(bit, AXIS: tl.constexpr):
    """Coordinate (0 to 3) along an axis, within the brick, of the voxel of a bit."""
    return (bit >> (5 - AXIS) & 1) << 1 | (bit >> (2 - AXIS) & 1)


@triton.jit
def planes(masks, AXIS: tl.constexpr):
    """First and last position (0 to 3) along an axis at which there is a voxel; 4 and -1 in empty masks."""
    first = tl.full(masks.shape, 4, tl.int64)
    last = tl.full(masks.shape, -1, tl.int64)
    for p in tl.static_range(4):
        occupied = (masks & PLANES[AXIS][p]) != 0
        first = tl.where(occupied & (first == 4), p, first)
        last = tl.where(occupied, p, last)
    return first, last


@triton.jit
def planes_below(position, AXIS: tl.constexpr):
    """Masks of the voxels whose position along an axis is less than `position` (int64, any value)."""
    masks = tl.zeros_like(position)
    for p in tl.static_range(4):
        masks = tl.where(position > p, RANGES[AXIS][p + 1], masks)
    return masks


@triton.jit
def step_mask(masks, AXIS: tl.constexpr, STEP: tl.constexpr):
    """Move voxels by STEP (1 or -1): those that stay in the brick, and those that arrive in the next one."""
    even: tl.constexpr = PLANES[AXIS][0] | PLANES[AXIS][2]
    unit: tl.constexpr = AXIS_UNITS[AXIS]
    if STEP > 0:
        stays = (masks & even) << unit | (masks & PLANES[AXIS][1]) << 7 * unit
        leaves = (masks >> 9 * unit) & PLANES[AXIS][0]
    else:
        stays = (masks >> unit) & even | (masks >> 7 * unit) & PLANES[AXIS][1]
        leaves = (masks & PLANES[AXIS][0]) << 9 * unit
    return stays, leaves


# Programs and look-ups


@triton.jit
def items(BLOCK: tl.constexpr):
    """The items of this program, int64 [BLOCK]."""
    return tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def voxels(masks, starts):
    """Lanes [BLOCK, 64] of bricks [BLOCK]: the bits [1, 64], whether they are occupied, and their rows."""
    bit = tl.arange(0, 64).to(tl.int64)[None, :]
    occupied = (masks[:, None] >> bit & 1) != 0
    return bit, occupied, starts.to(tl.int64)[:, None] + rank(masks[:, None], bit)


@triton.jit
def as_mask(occupied, bit):
    """Words [BLOCK] of lanes [BLOCK, 64]: the inverse of `voxels`."""
    return tl.sum(occupied.to(tl.int64) << bit, axis=1)


@triton.jit
def first_slot(keys, capacity):
    """First slot in the search for a key. `capacity` is a power of two.

    Fold in the highest bits, the only ones that depend on the batch index.
    """
    product = keys * GOLDEN
    return (product >> 32 ^ product >> 48) & (capacity - 1)


@triton.jit
def find_bricks(keys, wanted, keys_ptr, table_ptr, capacity):
    """Rows int64 of the bricks with these keys; -1 for absent keys and for lanes that are not `wanted`.

    A table is at most half full, so every search reaches an empty slot. All lanes wait for the slowest one: launch with
    one warp and small blocks.
    """
    slot = first_slot(keys, capacity)
    found = tl.full(keys.shape, -1, tl.int64)
    pending = wanted
    while tl.max(pending.to(tl.int32), axis=0) > 0:
        row = tl.load(table_ptr + slot, mask=pending, other=-1).to(tl.int64)
        pending = pending & (row >= 0)
        hit = pending & (tl.load(keys_ptr + row, mask=pending, other=0) == keys)
        found = tl.where(hit, row, found)
        pending = pending & (hit == 0)
        slot = (slot + 1) & (capacity - 1)
    return found
