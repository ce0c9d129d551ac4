"""Building bricks from coordinates, and looking up voxels and bricks through a hash table.

N voxels, M coordinates, B grids, L bricks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsevox import morton
from sparsevox.kernels._bits import (
    COORD_MAX,
    COORD_MIN,
    NONE,
    decode,
    encode,
    find_bricks,
    first_slot,
    in_range,
    items,
    local,
    planes,
    rank,
    step_key,
    voxels,
)
from sparsevox.kernels._finish import finish, merge_hashed, merge_sorted, no_bad, one_voxel_bricks
from sparsevox.kernels._launch import launch
from sparsevox.morton import Bricks

MAX_BATCH = tl.constexpr(morton.MAX_BATCH)


@triton.jit(do_not_specialize=["n_rows", "batch_size"])
def encode_kernel(coords_ptr, codes_ptr, bad_ptr, last_batch_ptr, n_rows, batch_size, BLOCK: tl.constexpr):
    """Compute codes of coordinates, the first row out of range, and the largest batch index."""
    row = items(BLOCK)
    active = row < n_rows
    b = tl.load(coords_ptr + row * 4, mask=active, other=0).to(tl.int64)
    x = tl.load(coords_ptr + row * 4 + 1, mask=active, other=0).to(tl.int64)
    y = tl.load(coords_ptr + row * 4 + 2, mask=active, other=0).to(tl.int64)
    z = tl.load(coords_ptr + row * 4 + 3, mask=active, other=0).to(tl.int64)
    tl.store(codes_ptr + row, encode(b, x, y, z), mask=active)
    bad = tl.min(tl.where(active & (in_range(b, x, y, z, batch_size) == 0), row, NONE), axis=0)
    if bad != NONE:
        tl.atomic_min(bad_ptr, bad, sem="relaxed")
    tl.atomic_max(last_batch_ptr, tl.max(tl.where(active, b, -1), axis=0), sem="relaxed")


@triton.jit(do_not_specialize=["n_bricks"])
def coords_kernel(keys_ptr, masks_ptr, starts_ptr, out_coords_ptr, n_bricks, BLOCK: tl.constexpr):
    """Write the coordinates of all voxels, in row order."""
    brick = items(BLOCK)
    keys = tl.load(keys_ptr + brick, mask=brick < n_bricks, other=0)
    masks = tl.load(masks_ptr + brick, mask=brick < n_bricks, other=0)
    starts = tl.load(starts_ptr + brick, mask=brick < n_bricks, other=0)
    bit, occupied, row = voxels(masks, starts)
    b, x, y, z = decode(keys << 6)
    tl.store(out_coords_ptr + row * 4, b[:, None] + 0 * bit, mask=occupied)
    tl.store(out_coords_ptr + row * 4 + 1, x[:, None] + local(bit, 0), mask=occupied)
    tl.store(out_coords_ptr + row * 4 + 2, y[:, None] + local(bit, 1), mask=occupied)
    tl.store(out_coords_ptr + row * 4 + 3, z[:, None] + local(bit, 2), mask=occupied)


@triton.jit(do_not_specialize=["n_bricks", "capacity"])
def table_kernel(keys_ptr, table_ptr, n_bricks, capacity, BLOCK: tl.constexpr):
    """Insert the rows of distinct keys into a hash table whose empty slots hold -1: open addressing, linear probing."""
    row = items(BLOCK)
    pending = row < n_bricks
    slot = first_slot(tl.load(keys_ptr + row, mask=pending, other=0), capacity)
    while tl.max(pending.to(tl.int32), axis=0) > 0:
        # Compare-and-swap takes no mask: lanes that are done expect a row that no slot ever holds.
        held = tl.atomic_cas(table_ptr + slot, tl.where(pending, -1, -2), row.to(tl.int32), sem="relaxed")
        pending = pending & (held != -1)
        slot = tl.where(pending, (slot + 1) & (capacity - 1), slot)


@triton.jit(do_not_specialize=["n_rows", "capacity"])
def rows_kernel(
    coords_ptr, keys_ptr, masks_ptr, starts_ptr, table_ptr, rows_ptr, n_rows, capacity, BLOCK: tl.constexpr
):
    """Look up the row of the voxel at each coordinate, or -1."""
    i = items(BLOCK)
    active = i < n_rows
    b = tl.load(coords_ptr + i * 4, mask=active, other=-1).to(tl.int64)
    x = tl.load(coords_ptr + i * 4 + 1, mask=active, other=0).to(tl.int64)
    y = tl.load(coords_ptr + i * 4 + 2, mask=active, other=0).to(tl.int64)
    z = tl.load(coords_ptr + i * 4 + 3, mask=active, other=0).to(tl.int64)
    codes = encode(b, x, y, z)
    brick = find_bricks(codes >> 6, in_range(b, x, y, z, MAX_BATCH), keys_ptr, table_ptr, capacity)
    mask = tl.load(masks_ptr + brick, mask=brick >= 0, other=0)
    start = tl.load(starts_ptr + brick, mask=brick >= 0, other=0).to(tl.int64)
    occupied = (mask >> (codes & 63) & 1) != 0
    tl.store(rows_ptr + i, tl.where(occupied, start + rank(mask, codes & 63), -1), mask=active)


@triton.jit(do_not_specialize=["n_pairs", "capacity"])
def around_kernel(keys_ptr, table_ptr, bricks_ptr, n_pairs, capacity, BLOCK: tl.constexpr):
    """Look up the row of the brick at each of the 27 places around each brick, or -1. One lane per pair."""
    i = items(BLOCK)
    active = i < n_pairs
    brick, place = i // 27, i % 27
    keys = tl.load(keys_ptr + brick, mask=active, other=NONE)
    keys = step_key(keys, place // 9 - 1, 0)
    keys = step_key(keys, place // 3 % 3 - 1, 1)
    keys = step_key(keys, place % 3 - 1, 2)
    found = find_bricks(keys, active & (keys != NONE), keys_ptr, table_ptr, capacity)
    tl.store(bricks_ptr + i, found, mask=active)


@triton.jit(do_not_specialize=["n_bricks"])
def bounds_kernel(keys_ptr, masks_ptr, lower_ptr, upper_ptr, n_bricks, BLOCK: tl.constexpr):
    """Smallest and largest coordinate along each axis of each batch item."""
    brick = items(BLOCK)
    active = brick < n_bricks
    keys = tl.load(keys_ptr + brick, mask=active, other=NONE)
    masks = tl.load(masks_ptr + brick, mask=active, other=0)
    b, x, y, z = decode(keys << 6)
    first_item = tl.min(tl.where(active, b, MAX_BATCH), axis=0)
    alone = first_item == tl.max(tl.where(active, b, -1), axis=0)
    for axis in tl.static_range(3):
        corner = x if axis == 0 else (y if axis == 1 else z)
        first, last = planes(masks, axis)
        if alone:
            # Most programs see a single item: two atomics instead of many at one address.
            lower = tl.min(tl.where(active, corner + first, COORD_MAX), axis=0)
            upper = tl.max(tl.where(active, corner + last, COORD_MIN), axis=0)
            tl.atomic_min(lower_ptr + first_item * 3 + axis, lower, sem="relaxed")
            tl.atomic_max(upper_ptr + first_item * 3 + axis, upper, sem="relaxed")
        else:
            tl.atomic_min(lower_ptr + b * 3 + axis, corner + first, mask=active, sem="relaxed")
            tl.atomic_max(upper_ptr + b * 3 + axis, corner + last, mask=active, sem="relaxed")


def build_bricks(coords: Tensor, batch_size: int | None, method: str = "sort") -> Bricks:
    """Bricks of coordinates [M, 4] in any order, duplicates allowed.

    "sort" sorts the codes of all coordinates; "hash" inserts the bricks into a hash table and sorts those.
    """
    n, device = coords.shape[0], coords.device
    codes = torch.empty(n, dtype=torch.int64, device=device)
    bad = no_bad(device)
    last_batch = torch.full((1,), -1, device=device)
    limit = morton.MAX_BATCH if batch_size is None else min(batch_size, morton.MAX_BATCH)
    launch(encode_kernel, n, coords.contiguous(), codes, bad, last_batch, n, limit, block=512)
    if method == "hash":
        keys, masks = merge_hashed(*one_voxel_bricks(codes))
    else:
        keys, masks = merge_sorted(*one_voxel_bricks(codes.sort().values))
    return finish(keys, masks, batch_size, sort=method == "hash", bad=bad, last_batch=last_batch)


def brick_coords(keys: Tensor, masks: Tensor, starts: Tensor, rows: Tensor) -> Tensor:
    """Coordinates int32 [N, 4] in row order."""
    n = keys.shape[0]
    coords = torch.empty((rows.shape[0], 4), dtype=torch.int32, device=keys.device)
    launch(coords_kernel, n, keys, masks, starts, coords, n, block=16, lanes=64)
    return coords


def brick_bounds(keys: Tensor, masks: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest ijk of each batch item: two int64 [B, 3]; largest < smallest in empty items."""
    n, shape = keys.shape[0], (offsets.shape[0] - 1, 3)
    lower = torch.full(shape, morton.COORD_MAX, device=keys.device)
    upper = torch.full(shape, morton.COORD_MIN, device=keys.device)
    launch(bounds_kernel, n, keys, masks, lower, upper, n, block=256)
    return lower, upper


def brick_table(keys: Tensor) -> Tensor:
    """Hash table int32 [capacity] of brick rows: open addressing, linear probing, -1 where empty."""
    n = keys.shape[0]
    table = torch.full((morton.table_capacity(n),), -1, dtype=torch.int32, device=keys.device)
    launch(table_kernel, n, keys, table, n, table.shape[0], block=64, num_warps=1)
    return table


def find_rows(coords: Tensor, keys: Tensor, masks: Tensor, starts: Tensor, table: Tensor | None) -> Tensor:
    """Row of each coordinate [M, 4], -1 where there is no voxel: int64 [M]."""
    table = brick_table(keys) if table is None else table
    n = coords.shape[0]
    rows = torch.empty(n, dtype=torch.int64, device=coords.device)
    launch(
        rows_kernel,
        n,
        *(coords.contiguous(), keys, masks, starts, table, rows, n, table.shape[0]),
        block=64,
        num_warps=1,
    )
    return rows


def neighbor_bricks(keys: Tensor, table: Tensor | None) -> Tensor:
    """Rows of the 27 bricks around each brick, -1 if absent: int32 [L, 27], z fastest, its own in column 13."""
    table = brick_table(keys) if table is None else table
    bricks = torch.empty((keys.shape[0], 27), dtype=torch.int32, device=keys.device)
    n = bricks.numel()
    launch(around_kernel, n, keys, table, bricks, n, table.shape[0], block=64, num_warps=1)
    return bricks
