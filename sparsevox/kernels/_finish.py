"""From candidate bricks to a grid: the last steps of every op that builds one.

Candidates are arrays of keys and masks, int64 [P], of the largest possible length of the result; a mask of 0 means that
there is no such brick. The host does not know how many there are until `finish` reads the number back.

B grids, L bricks, P candidates.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsevox import morton
from sparsevox._readback import read_back
from sparsevox.kernels._bits import NONE, first_slot, items, popcount
from sparsevox.kernels._launch import launch
from sparsevox.morton import Bricks, VoxelError


@triton.jit(do_not_specialize=["n_pairs"])
def count_kernel(masks_ptr, counts_ptr, n_pairs, BLOCK: tl.constexpr):
    """Number of voxels of each mask."""
    i = items(BLOCK)
    masks = tl.load(masks_ptr + i, mask=i < n_pairs, other=0)
    tl.store(counts_ptr + i, popcount(masks), mask=i < n_pairs)


@triton.jit(do_not_specialize=["n_pairs"])
def one_voxel_kernel(codes_ptr, out_keys_ptr, out_masks_ptr, n_pairs, BLOCK: tl.constexpr):
    """A brick of one voxel for each code."""
    i = items(BLOCK)
    codes = tl.load(codes_ptr + i, mask=i < n_pairs, other=0)
    tl.store(out_keys_ptr + i, codes >> 6, mask=i < n_pairs)
    tl.store(out_masks_ptr + i, tl.full([BLOCK], 1, tl.int64) << (codes & 63), mask=i < n_pairs)


@triton.jit(do_not_specialize=["n_pairs"])
def scatter_kernel(
    keys_ptr,
    masks_ptr,
    places_ptr,
    out_keys_ptr,
    out_masks_ptr,
    n_pairs,
    MERGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write present bricks to their places, which count from 1. MERGE takes the OR of the masks of one place."""
    i = items(BLOCK)
    masks = tl.load(masks_ptr + i, mask=i < n_pairs, other=0)
    present = masks != 0
    place = tl.load(places_ptr + i, mask=present, other=1) - 1
    # With MERGE, stores to one place collide on purpose: they write the same key.
    tl.store(out_keys_ptr + place, tl.load(keys_ptr + i, mask=present, other=0), mask=present)
    if MERGE:
        tl.atomic_or(out_masks_ptr + place, masks, mask=present, sem="relaxed")
    else:
        tl.store(out_masks_ptr + place, masks, mask=present)


@triton.jit(do_not_specialize=["n_pairs", "capacity"])
def insert_kernel(keys_ptr, masks_ptr, out_keys_ptr, out_masks_ptr, n_pairs, capacity, BLOCK: tl.constexpr):
    """Insert present bricks into a hash table whose empty slots hold NONE; equal keys share a slot."""
    i = items(BLOCK)
    keys = tl.load(keys_ptr + i, mask=i < n_pairs, other=0)
    masks = tl.load(masks_ptr + i, mask=i < n_pairs, other=0)
    slot = first_slot(keys, capacity)
    pending = masks != 0
    while tl.max(pending.to(tl.int32), axis=0) > 0:
        # Compare-and-swap takes no mask: lanes that are done expect a key that no slot ever holds.
        held = tl.atomic_cas(out_keys_ptr + slot, tl.where(pending, NONE, NONE + 1), keys, sem="relaxed")
        pending = pending & (held != NONE) & (held != keys)
        slot = tl.where(pending, (slot + 1) & (capacity - 1), slot)
    tl.atomic_or(out_masks_ptr + slot, masks, mask=masks != 0, sem="relaxed")


def one_voxel_bricks(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and masks of one-voxel bricks, int64 [P], for codes int64 [P]."""
    keys, masks = torch.empty_like(codes), torch.empty_like(codes)
    launch(one_voxel_kernel, codes.shape[0], codes, keys, masks, codes.shape[0], block=1024)
    return keys, masks


def merge_sorted(keys: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Make keys distinct: take the OR of the masks of equal keys, which must be consecutive."""
    first = torch.ones(keys.shape, dtype=torch.bool, device=keys.device)
    torch.ne(keys[1:], keys[:-1], out=first[1:])
    return _scatter(keys, masks, first.cumsum(0), merge=True)


def merge_hashed(keys: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Make keys distinct, in no particular order: take the OR of the masks of equal keys."""
    capacity = morton.table_capacity(keys.shape[0])
    out_keys = torch.full((capacity,), morton.NONE, device=keys.device)
    out_masks = torch.zeros_like(out_keys)
    launch(
        insert_kernel,
        keys.shape[0],
        *(keys, masks, out_keys, out_masks, keys.shape[0], capacity),
        block=64,
        num_warps=1,
    )
    return out_keys, out_masks


def pack(keys: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Move present candidates to the front, in order; after them masks are 0 and keys undefined."""
    return _scatter(keys, masks, (masks != 0).cumsum(0), merge=False)


def finish(
    keys: Tensor,
    masks: Tensor,
    batch_size: int | None,
    *,
    sort: bool = False,
    bad: Tensor | None = None,
    last_batch: Tensor | None = None,
) -> Bricks:
    """Build the grid of candidates with distinct keys, which must be in order unless `sort` is given.

    bad: int64 [1], first row of the input that is out of range; NONE if there is none.
    last_batch: int64 [1], largest batch index, from which `batch_size=None` follows.
    """
    keys, masks = pack(keys, masks)
    counts = count_voxels(masks)
    extra = [x for x in (bad, last_batch) if x is not None]
    n_bricks, n_voxels, *limits = read_back((masks != 0).sum(), counts.sum(), *extra)
    if bad is not None:
        check_bad(limits[0])
    morton.check_total(n_voxels)
    if batch_size is None:
        batch_size = limits[-1] + 1
    # Clones free the arrays of candidates.
    keys, masks, counts = keys[:n_bricks].clone(), masks[:n_bricks].clone(), counts[:n_bricks]
    if sort:
        keys, order = torch.sort(keys)
        masks, counts = masks[order], counts[order]
    return number(keys, masks, counts, n_voxels, batch_size)


def number(keys: Tensor, masks: Tensor, counts: Tensor, n_voxels: int, batch_size: int) -> Bricks:
    """Build the grid of sorted, nonempty bricks from the numbers of their voxels, int64 [L], and the total."""
    ends = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    first_bricks = torch.searchsorted(keys, morton.batch_keys(batch_size, keys.device))
    rows = torch.empty((n_voxels, 0), dtype=torch.bool, device=keys.device)
    return Bricks(keys, masks, ends[:-1].int(), ends[first_bricks], rows)


def count_voxels(masks: Tensor) -> Tensor:
    """Number of voxels of each mask: int64 [P]."""
    counts = torch.empty_like(masks)
    launch(count_kernel, masks.shape[0], masks, counts, masks.shape[0], block=1024)
    return counts


def no_bad(device: torch.device) -> Tensor:
    """Make the tensor int64 [1] in which kernels report the first row that is out of range; NONE so far."""
    return torch.full((1,), morton.NONE, device=device)


def check_bad(index: int) -> None:
    """Raise a VoxelError if a kernel has reported a row in `no_bad`."""
    if index != morton.NONE:
        raise VoxelError(index)


def _scatter(keys: Tensor, masks: Tensor, places: Tensor, *, merge: bool) -> tuple[Tensor, Tensor]:
    """Move present candidates to their places, which count from 1. Other masks are 0, other keys undefined."""
    n = keys.shape[0]
    out_keys, out_masks = torch.empty_like(keys), torch.zeros_like(masks)
    launch(scatter_kernel, n, keys, masks, places, out_keys, out_masks, n, MERGE=merge, block=1024)
    return out_keys, out_masks
