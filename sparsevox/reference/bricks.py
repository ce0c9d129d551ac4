"""Building bricks from coordinates, and looking up voxels and bricks.

N voxels, M queries, B grids, L bricks.
"""

from functools import cache

import torch
from torch import Tensor

from sparsevox import morton
from sparsevox.morton import Bricks
from sparsevox.reference._around import bricks_around
from sparsevox.reference._runs import (
    assemble,
    corners,
    encode,
    from_sorted_codes,
    lanes,
    popcount,
    search,
    true_indices,
)

MAX_PROBES = 32
NARROW_BITS = 31
MAX_BLOCKS = 1 << 16


def build_bricks(coords: Tensor, batch_size: int | None, method: str = "sort") -> Bricks:
    """Bricks of coordinates [M, 4] in any order, duplicates allowed. Here both methods sort the codes."""
    lower, upper = _extent(coords, batch_size)
    if batch_size is None:
        batch_size = upper[0] + 1
    blocks = _Blocks.largest(lower, upper)
    if blocks is None:
        keys, masks = from_sorted_codes(torch.sort(encode(coords)).values)
    else:
        keys, masks = from_sorted_codes(torch.sort(blocks.encode(coords)).values)
        keys, masks = blocks.widen(keys, masks)
    return assemble(keys, masks, batch_size)


def _extent(coords: Tensor, batch_size: int | None) -> tuple[list[int], list[int]]:
    """Smallest and largest coordinates, once all are known to be in range."""
    if coords.shape[0] == 0:
        return [0, 0, 0, 0], [-1, 0, 0, 0]
    limits = torch.aminmax(coords, dim=0)
    lower, upper = limits.min.tolist(), limits.max.tolist()
    batches = morton.MAX_BATCH if batch_size is None else min(batch_size, morton.MAX_BATCH)
    inside = min(lower[1:]) >= morton.COORD_MIN and max(upper[1:]) <= morton.COORD_MAX
    if not inside or lower[0] < 0 or upper[0] >= batches:
        legal = morton.in_range(coords) & (coords[:, 0] < batches)
        raise morton.VoxelError(int(true_indices(~legal)[0]))
    return lower, upper


class _Blocks:
    """Codes of 31 bits for coordinates in a small box, which sort more than twice as fast as 64 bits.

    Space is cut into aligned blocks of 2^level voxels per axis. A narrow code is the number of the block, in row-major
    order, above the Morton code within the block.
    """

    def __init__(self, level: int, lower: list[int], upper: list[int]) -> None:
        self.level, self.lower, self.upper = level, lower, upper
        self.first = [lower[0], *(low >> level for low in lower[1:])]
        last = [upper[0], *(up >> level for up in upper[1:])]
        self.shape = [b - a + 1 for a, b in zip(self.first, last, strict=True)]
        self.count = self.shape[0] * self.shape[1] * self.shape[2] * self.shape[3]

    @classmethod
    def largest(cls, lower: list[int], upper: list[int]) -> "_Blocks | None":
        """The largest blocks (at least one brick) whose codes fit, or None."""
        for level in range(NARROW_BITS // 3, 1, -1):
            blocks = cls(level, lower, upper)
            if (blocks.count - 1).bit_length() + 3 * level <= NARROW_BITS and blocks.count <= MAX_BLOCKS:
                return blocks
        return None

    def encode(self, coords: Tensor) -> Tensor:
        """Narrow codes, int32 [M]: the sum of one table entry per axis."""
        codes = torch.zeros(coords.shape[0], dtype=torch.int32, device=coords.device)
        stride = 1 << 3 * self.level
        for axis in (3, 2, 1, 0):
            low, up = self.lower[axis], self.upper[axis]
            if low < up or axis:
                values = torch.arange(low, up + 1, device=coords.device)
                table = ((values >> self.level if axis else values) - self.first[axis]) * stride
                if axis:
                    table |= morton.spread(values & ((1 << self.level) - 1)) << (3 - axis)
                codes += table.int().index_select(0, coords[:, axis] - low)
            stride *= self.shape[axis]
        return codes

    def widen(self, keys: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Brick keys int64, sorted, with their masks, from narrow codes without their last six bits."""
        inner = 3 * self.level - 6
        axes = [torch.arange(n, device=keys.device) + a for n, a in zip(self.shape, self.first, strict=True)]
        axes[1:] = [a << self.level for a in axes[1:]]
        corners = morton.encode(torch.cartesian_prod(*axes)) >> 6
        keys = corners[keys >> inner] | (keys & ((1 << inner) - 1))
        if (corners[1:] > corners[:-1]).all():
            return keys, masks
        keys, order = torch.sort(keys)
        return keys, masks[order]


def brick_coords(keys: Tensor, masks: Tensor, starts: Tensor, rows: Tensor) -> Tensor:
    """Coordinates int32 [N, 4] in row order."""
    lane = lanes(masks)
    return corners(keys).index_select(0, lane >> 6).add_(_places(keys.device).index_select(0, lane & 63))


@cache
def _places(device: torch.device) -> Tensor:
    """Coordinates of the 64 voxels of a brick relative to its corner: int32 [64, 4]."""
    coords = morton.decode(torch.arange(64, device=device))
    return (coords - coords[0]).int()


def brick_bounds(keys: Tensor, masks: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest ijk of each batch item: two int64 [B, 3]; largest < smallest in empty items."""
    corner = corners(keys).long()
    item = corner[:, :1].expand(-1, 3)
    first, last = [], []
    for axis in range(3):
        planes = torch.tensor(morton.PLANES[axis], device=keys.device)
        empty = masks[:, None] & planes == 0
        first.append(corner[:, axis + 1] + empty.int().cumprod(1).sum(1))
        last.append(corner[:, axis + 1] + 3 - empty.flip(1).int().cumprod(1).sum(1))
    shape = (offsets.shape[0] - 1, 3)
    lower = torch.full(shape, morton.COORD_MAX, device=keys.device)
    upper = torch.full(shape, morton.COORD_MIN, device=keys.device)
    return (
        lower.scatter_reduce(0, item, torch.stack(first, -1), "amin"),
        upper.scatter_reduce(0, item, torch.stack(last, -1), "amax"),
    )


def brick_table(keys: Tensor) -> Tensor:
    """Hash table int32 [capacity] of brick rows: open addressing, linear probing, -1 where empty.

    Keys, in the order of their first slots, go to that slot or, if it is taken, to the slot after the previous key. The
    keys are placed twice in a row, so that the last ones of the first round displace the first ones of the second.
    """
    count, capacity = keys.shape[0], morton.table_capacity(keys.shape[0])
    first, order = torch.sort(morton.first_slots(keys, capacity), stable=True)
    twice = torch.cat([first, first + capacity]) - torch.arange(2 * count, device=keys.device)
    slots = twice.cummax(0).values[count:] + torch.arange(count, 2 * count, device=keys.device)
    table = torch.full((capacity,), -1, dtype=torch.int32, device=keys.device)
    return table.index_copy_(0, slots & (capacity - 1), order.int())


def find_bricks(keys: Tensor, table: Tensor, wanted: Tensor) -> Tensor:
    """Row of the brick with each key, -1 where there is none: int64 [M]."""
    rows = torch.full_like(wanted, -1)
    pending, slots = (
        torch.arange(wanted.shape[0], device=keys.device),
        morton.first_slots(wanted, table.shape[0]),
    )
    for _ in range(MAX_PROBES):
        if pending.shape[0] == 0:
            return rows
        row = table.index_select(0, slots).long()
        hit = (row < 0) | (keys.index_select(0, row.clamp(min=0)) == wanted)
        rows[pending] = row  # preliminary for keys that are still pending
        left = true_indices(~hit)
        pending, wanted, slots = pending[left], wanted[left], slots[left] + 1 & (table.shape[0] - 1)
    # Adversarial keys that all collide cost a binary search, not a scan.
    index, found = search(keys, wanted)
    rows[pending] = torch.where(found, index, -1)
    return rows


def find_rows(coords: Tensor, keys: Tensor, masks: Tensor, starts: Tensor, table: Tensor | None) -> Tensor:
    """Row of each coordinate [M, 4], -1 where there is no voxel: int64 [M]. Without a table, keys are searched."""
    if keys.shape[0] == 0 or coords.shape[0] == 0:
        return keys.new_full(coords.shape[:1], -1)
    codes = encode(coords)
    if table is None:
        brick, found = search(keys, codes >> 6)
    else:
        brick = find_bricks(keys, table, codes >> 6)
        found = brick >= 0
        brick.clamp_(min=0)
    if not _all_in_range(coords):  # codes out of range are those of other voxels
        found &= morton.in_range(coords)
    bit = torch.bitwise_left_shift(1, codes.bitwise_and_(63))
    mask = masks.index_select(0, brick)
    found &= (mask & bit) != 0
    rows = popcount(bit.sub_(1).bitwise_and_(mask)).add_(starts.index_select(0, brick))
    return torch.where(found, rows, -1)


def _all_in_range(coords: Tensor) -> bool:
    limits = torch.aminmax(coords, dim=0)
    lower, upper = limits.min.tolist(), limits.max.tolist()
    inside = min(lower[1:]) >= morton.COORD_MIN and max(upper[1:]) <= morton.COORD_MAX
    return inside and lower[0] >= 0 and upper[0] < morton.MAX_BATCH


def neighbor_bricks(keys: Tensor, table: Tensor | None) -> Tensor:
    """Rows of the 27 bricks around each brick, -1 if absent: int32 [L, 27], z fastest, its own in column 13."""
    return bricks_around(keys).t().contiguous()
