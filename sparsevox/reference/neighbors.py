"""Neighbour tables: the rows of the 27 voxels around every voxel.

N voxels, L bricks. A tap t stands for the offset (t // 9 - 1, t // 3 % 3 - 1, t % 3 - 1).
"""

from functools import cache

import torch
from torch import Tensor

from sparsevox import morton
from sparsevox.reference._runs import lanes
from sparsevox.reference.bricks import neighbor_bricks


@cache
def _tap_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """For a tap and a bit of a mask: the neighbour brick, 0 to 26, and the bit in it. Two int64 [27, 64]."""
    bit = torch.arange(64, device=device)
    local = torch.stack([bit >> 4 & 2 | bit >> 2 & 1, bit >> 3 & 2 | bit >> 1 & 1, bit >> 2 & 2 | bit & 1], -1)
    tap = torch.arange(27, device=device)
    offset = torch.stack([tap // 9 - 1, tap // 3 % 3 - 1, tap % 3 - 1], -1)
    moved = local + offset[:, None]  # [27, 64, 3] in -1..4
    brick = ((moved >> 2) + 1) @ torch.tensor([9, 3, 1], device=device)
    inside = torch.nn.functional.pad(moved & 3, (1, 0))
    return brick, morton.encode(inside) & 63


def neighbor_table(keys: Tensor, masks: Tensor, starts: Tensor, rows: Tensor, table: Tensor | None) -> Tensor:
    """Row of the neighbour of each voxel at each tap, -1 where there is none: int32 [27, N]."""
    count, device = rows.shape[0], keys.device
    lane = lanes(masks)
    own = torch.arange(count, dtype=torch.int32, device=device)
    row_of_lane = torch.full(((keys.shape[0] + 1) << 6,), -1, dtype=torch.int32, device=device)
    row_of_lane[lane] = own
    # Absent bricks point at an extra one without voxels.
    near = neighbor_bricks(keys, table).long()
    near = torch.where(near < 0, keys.shape[0], near).flatten() << 6
    brick, bit = (lane >> 6) * 27, lane & 63
    near_brick, near_bit = _tap_tables(device)
    out = torch.full((27, count), -1, dtype=torch.int32, device=device)
    out[13] = own
    for tap in range(13):
        target = near[brick + near_brick[tap][bit]] + near_bit[tap][bit]
        torch.index_select(row_of_lane, 0, target, out=out[tap])
        # Where voxel a sees b at one tap, b sees a at the opposite one.
        found = out[tap] >= 0
        out[26 - tap, out[tap][found].long()] = own[found]
    return out
