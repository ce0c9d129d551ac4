"""Coarsening, subdivision, set operations, pruning and cropping, as arithmetic on keys and masks of bricks.

N voxels, B grids, L bricks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsevox import morton
from sparsevox._readback import read_back
from sparsevox.kernels._bits import (
    CODE_BITS,
    KEY_BITS,
    NONE,
    as_mask,
    coarsen,
    decode,
    items,
    octant_bytes,
    octant_words,
    planes_below,
    rank,
    subdivide,
    voxels,
)
from sparsevox.kernels._finish import check_bad, finish, merge_sorted, no_bad, number, pack
from sparsevox.kernels._launch import launch
from sparsevox.morton import Bricks


@triton.jit(do_not_specialize=["n_bricks", "level"])
def coarsen_kernel(
    keys_ptr, masks_ptr, out_keys_ptr, out_masks_ptr, n_bricks, level, HALF: tl.constexpr, BLOCK: tl.constexpr
):
    """Turn each brick into a part of a coarse brick: into an octant if HALF (level 1), else into a single voxel."""
    brick = items(BLOCK)
    keys = tl.load(keys_ptr + brick, mask=brick < n_bricks, other=0)
    if HALF:
        masks = tl.load(masks_ptr + brick, mask=brick < n_bricks, other=0)
        masks = octant_bytes(masks) << 8 * (keys & 7)
        keys = coarsen(keys, KEY_BITS)
    else:
        codes = keys << 6
        for _ in range(level):
            codes = coarsen(codes, CODE_BITS)
        masks = tl.full([BLOCK], 1, tl.int64) << (codes & 63)
        keys = codes >> 6
    tl.store(out_keys_ptr + brick, keys, mask=brick < n_bricks)
    tl.store(out_masks_ptr + brick, masks, mask=brick < n_bricks)


@triton.jit(do_not_specialize=["n_pairs"])
def children_kernel(
    keys_ptr,
    masks_ptr,
    starts_ptr,
    keep_ptr,
    out_keys_ptr,
    out_masks_ptr,
    bad_ptr,
    n_pairs,
    KEEP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Turn each octant of each brick into a brick of its children. An item is a (brick, octant) pair.

    KEEP is the number of flags per voxel: none, one for all of its children, or one for each of the eight.
    """
    i = items(BLOCK)
    brick, octant = i >> 3, i & 7
    active = i < n_pairs
    keys = tl.load(keys_ptr + brick, mask=active, other=0)
    masks = tl.load(masks_ptr + brick, mask=active, other=0)
    starts = tl.load(starts_ptr + brick, mask=active, other=0).to(tl.int64)
    first_bit = octant * 8
    if KEEP == 0:
        children = octant_words(masks >> first_bit)
        row = starts + rank(masks, first_bit)
    else:
        child = tl.arange(0, 64).to(tl.int64)[None, :]
        parent = first_bit[:, None] + (child >> 3)
        rows = starts[:, None] + rank(masks[:, None], parent)
        occupied = (masks[:, None] >> parent & 1) != 0
        flags = rows if KEEP == 1 else rows * 8 + (child & 7)
        occupied = tl.load(keep_ptr + flags, mask=occupied, other=0) != 0
        children = as_mask(occupied, child)
        row = tl.min(tl.where(occupied, rows, NONE), axis=1)
    first_key, legal = subdivide(keys, KEY_BITS)
    tl.store(out_keys_ptr + i, first_key + octant, mask=active)
    tl.store(out_masks_ptr + i, children, mask=active)
    bad = tl.min(tl.where((children != 0) & (legal == 0), row, NONE), axis=0)
    if bad != NONE:
        tl.atomic_min(bad_ptr, bad, sem="relaxed")


@triton.jit(do_not_specialize=["n_bricks", "level"])
def blocks_kernel(
    keys_ptr,
    masks_ptr,
    starts_ptr,
    keep_ptr,
    out_keys_ptr,
    out_masks_ptr,
    bad_ptr,
    n_bricks,
    level,
    KEEP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the first of the bricks into which each voxel is subdivided at `level` >= 2; mask 0 for rows not kept."""
    brick = items(BLOCK)
    keys = tl.load(keys_ptr + brick, mask=brick < n_bricks, other=0)
    masks = tl.load(masks_ptr + brick, mask=brick < n_bricks, other=0)
    starts = tl.load(starts_ptr + brick, mask=brick < n_bricks, other=0)
    bit, occupied, row = voxels(masks, starts)
    codes = keys[:, None] << 6 | bit
    legal = codes == codes
    for _ in range(level):
        codes, inside = subdivide(codes, CODE_BITS)
        legal = legal & inside
    kept = occupied
    if KEEP:
        kept = tl.load(keep_ptr + row, mask=occupied, other=0) != 0
    tl.store(out_keys_ptr + row, codes >> 6, mask=occupied)
    tl.store(out_masks_ptr + row, -kept.to(tl.int64), mask=occupied)
    bad = tl.min(tl.min(tl.where(kept & (legal == 0), row, NONE), axis=1), axis=0)
    if bad != NONE:
        tl.atomic_min(bad_ptr, bad, sem="relaxed")


@triton.jit(do_not_specialize=["n_bricks", "n_others"])
def combine_kernel(
    keys_ptr,
    masks_ptr,
    other_keys_ptr,
    other_masks_ptr,
    places_ptr,
    out_keys_ptr,
    out_masks_ptr,
    n_bricks,
    n_others,
    OP: tl.constexpr,
    PART: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the bricks of one of two sorted operands to their places among the bricks of both.

    `places_ptr` holds the number of bricks of the other operand that come before. PART "first" combines the masks and
    precedes the equal key of the second operand; "second" only adds bricks that the first does not have.
    """
    i = items(BLOCK)
    active = i < n_bricks
    keys = tl.load(keys_ptr + i, mask=active, other=NONE)
    masks = tl.load(masks_ptr + i, mask=active, other=0)
    before = tl.load(places_ptr + i, mask=active, other=0)
    equal = before if PART == "first" else before - 1
    inside = active & (equal >= 0) & (equal < n_others)
    found = inside & (tl.load(other_keys_ptr + equal, mask=inside, other=NONE) == keys)
    if PART == "second":
        masks = tl.where(found, 0, masks)
    else:
        others = tl.load(other_masks_ptr + equal, mask=found, other=0)
        if OP == "or":
            masks = masks | others
        elif OP == "and":
            masks = masks & others
        elif OP == "sub":
            masks = masks & ~others
        else:
            masks = masks ^ others
    place = i if (OP == "and" or OP == "sub") else i + before
    tl.store(out_keys_ptr + place, keys, mask=active)
    tl.store(out_masks_ptr + place, masks, mask=active)


@triton.jit(do_not_specialize=["n_bricks"])
def prune_kernel(masks_ptr, starts_ptr, keep_ptr, out_masks_ptr, n_bricks, BLOCK: tl.constexpr):
    """Clear the bits of voxels that are not kept."""
    brick = items(BLOCK)
    masks = tl.load(masks_ptr + brick, mask=brick < n_bricks, other=0)
    starts = tl.load(starts_ptr + brick, mask=brick < n_bricks, other=0)
    bit, occupied, row = voxels(masks, starts)
    kept = tl.load(keep_ptr + row, mask=occupied, other=0) != 0
    tl.store(out_masks_ptr + brick, as_mask(kept, bit), mask=brick < n_bricks)


@triton.jit(do_not_specialize=["n_bricks", *(f"{name}_{axis}" for name in ("lower", "upper") for axis in "xyz")])
def crop_kernel(
    keys_ptr,
    masks_ptr,
    out_masks_ptr,
    n_bricks,
    lower_x,
    lower_y,
    lower_z,
    upper_x,
    upper_y,
    upper_z,
    BLOCK: tl.constexpr,
):
    """Clear the bits of voxels outside of a box."""
    brick = items(BLOCK)
    keys = tl.load(keys_ptr + brick, mask=brick < n_bricks, other=0)
    masks = tl.load(masks_ptr + brick, mask=brick < n_bricks, other=0)
    _, x, y, z = decode(keys << 6)
    masks = masks & planes_below(upper_x - x, 0) & ~planes_below(lower_x - x, 0)
    masks = masks & planes_below(upper_y - y, 1) & ~planes_below(lower_y - y, 1)
    masks = masks & planes_below(upper_z - z, 2) & ~planes_below(lower_z - z, 2)
    tl.store(out_masks_ptr + brick, masks, mask=brick < n_bricks)


def coarsen_bricks(keys: Tensor, masks: Tensor, offsets: Tensor, level: int) -> Bricks:
    """Bricks of the voxels floor(ijk / 2^level)."""
    n = keys.shape[0]
    out_keys, out_masks = torch.empty_like(keys), torch.empty_like(masks)
    launch(coarsen_kernel, n, keys, masks, out_keys, out_masks, n, level, HALF=level == 1, block=256)
    return finish(*merge_sorted(out_keys, out_masks), offsets.shape[0] - 1)


def subdivide_bricks(
    keys: Tensor,
    masks: Tensor,
    starts: Tensor,
    offsets: Tensor,
    rows: Tensor,
    level: int,
    keep: Tensor | None,
) -> Bricks:
    """Bricks of the 8^level children of voxels with `keep` [N], or (level 1) of children with `keep` [N, 8]."""
    flags = masks if keep is None else keep.contiguous().view(torch.int8)  # not read if there is no keep
    bad = no_bad(keys.device)
    if level == 1:
        n = 8 * keys.shape[0]
        out_keys = torch.empty(n, dtype=torch.int64, device=keys.device)
        out_masks = torch.empty_like(out_keys)
        arrays = (keys, masks, starts, flags, out_keys, out_masks, bad)
        if keep is None:
            launch(children_kernel, n, *arrays, n, KEEP=0, block=256)
        else:
            launch(children_kernel, n, *arrays, n, KEEP=1 if keep.ndim == 1 else 8, block=16, lanes=64)
        return finish(out_keys, out_masks, offsets.shape[0] - 1, bad=bad)
    n = keys.shape[0]
    out_keys = torch.empty(rows.shape[0], dtype=torch.int64, device=keys.device)
    out_masks = torch.empty_like(out_keys)
    arrays = (keys, masks, starts, flags, out_keys, out_masks, bad)
    launch(blocks_kernel, n, *arrays, n, min(level, morton.AXIS_BITS), KEEP=keep is not None, block=8, lanes=64)
    return _full_bricks(*pack(out_keys, out_masks), bad, offsets.shape[0] - 1, level - 2)


def _full_bricks(first_keys: Tensor, masks: Tensor, bad: Tensor, batch_size: int, level: int) -> Bricks:
    """Full bricks, 8^level of them from each first key on; the number of first keys is that of nonzero masks."""
    n, first_bad = read_back((masks != 0).sum(), bad)
    check_bad(first_bad)
    morton.check_total(n * 64 << 3 * level)
    children = torch.arange(8**level if n else 0, device=masks.device)
    keys = (first_keys[:n, None] + children).flatten()
    masks = torch.full_like(keys, -1)
    return number(keys, masks, torch.full_like(keys, 64), 64 * keys.shape[0], batch_size)


def combine_bricks(
    keys_a: Tensor, masks_a: Tensor, keys_b: Tensor, masks_b: Tensor, offsets: Tensor, op: str
) -> Bricks:
    """Bricks of "or", "and", "sub" (in a, not in b) or "xor" of two sets of voxels."""
    n_a, n_b = keys_a.shape[0], keys_b.shape[0]
    with_b = op in ("or", "xor")
    out_keys = torch.empty(n_a + n_b * with_b, dtype=torch.int64, device=keys_a.device)
    out_masks = torch.empty_like(out_keys)
    # Both operands are sorted: the place of a brick follows from the number of smaller keys in the other operand.
    places = torch.searchsorted(keys_b, keys_a)
    arrays = (keys_a, masks_a, keys_b, masks_b, places, out_keys, out_masks)
    launch(combine_kernel, n_a, *arrays, n_a, n_b, OP=op, PART="first", block=512)
    if with_b:
        places = torch.searchsorted(keys_a, keys_b, right=True)
        arrays = (keys_b, masks_b, keys_a, masks_a, places, out_keys, out_masks)
        launch(combine_kernel, n_b, *arrays, n_b, n_a, OP=op, PART="second", block=512)
    return finish(out_keys, out_masks, offsets.shape[0] - 1)


def prune_bricks(keys: Tensor, masks: Tensor, starts: Tensor, offsets: Tensor, keep: Tensor) -> Bricks:
    """Bricks of the voxels with `keep` [N]."""
    n = keys.shape[0]
    out_masks = torch.empty_like(masks)
    launch(prune_kernel, n, masks, starts, keep.contiguous().view(torch.int8), out_masks, n, block=16, lanes=64)
    return finish(keys, out_masks, offsets.shape[0] - 1)


def crop_bricks(keys: Tensor, masks: Tensor, offsets: Tensor, lower: list[int], upper: list[int]) -> Bricks:
    """Bricks of the voxels with lower <= ijk < upper."""
    n = keys.shape[0]
    out_masks = torch.empty_like(masks)
    launch(crop_kernel, n, keys, masks, out_masks, n, *lower, *upper, block=256)
    return finish(keys, out_masks, offsets.shape[0] - 1)
