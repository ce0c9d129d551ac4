"""Coarsening, subdivision, set operations, pruning and cropping, as arithmetic on keys and masks of bricks.

N voxels, B grids, L bricks.
"""

from functools import cache

import torch
from torch import Tensor

from sparsevox import morton
from sparsevox.morton import Bricks
from sparsevox.reference._runs import (
    assemble,
    from_sorted_codes,
    insert,
    lanes,
    pack_bits,
    run_starts,
    search,
    sum_runs,
    true_indices,
    unite,
)


def coarsen_bricks(keys: Tensor, masks: Tensor, offsets: Tensor, level: int) -> Bricks:
    """Bricks of the voxels floor(ijk / 2^level)."""
    batch_size = offsets.shape[0] - 1
    if level > 1:  # a brick becomes one voxel at level 2
        codes = morton.key_as_code(keys)
        for _ in range(level - 2):
            codes = morton.coarsen_codes(codes)
        return assemble(*from_sorted_codes(codes), batch_size)
    parents = morton.coarsen_keys(keys)
    starts = run_starts(parents)
    words = morton.octant_bytes(masks).bitwise_left_shift_((keys & 7).mul_(8))
    return assemble(parents.index_select(0, starts), sum_runs(words, starts), batch_size)


def subdivide_bricks(
    keys: Tensor,
    masks: Tensor,
    starts: Tensor,
    offsets: Tensor,
    rows: Tensor,
    level: int,
    keep: Tensor | None,
) -> Bricks:
    """Bricks of the 8^level children of every voxel with `keep` [N], or of the children with `keep` [N, 8]."""
    batch_size = offsets.shape[0] - 1
    if keep is not None:
        voxels = keep if keep.ndim == 1 else keep.any(1)
        _check_children(keys, masks, starts, level, voxels)
        if keep.ndim == 2:
            return assemble(*_selected_children(keys, masks, keep), batch_size)
        masks = kept_masks(masks, keep)
    else:
        _check_children(keys, masks, starts, level, None)
    if level == 1:
        return assemble(*_children(keys, masks), batch_size)
    lane = lanes(masks)
    morton.check_total(lane.shape[0] << 3 * level)
    codes = keys[lane >> 6] << 6 | lane & 63
    children = morton.subdivide_codes(morton.subdivide_codes(codes)[0])[0] >> 6
    for _ in range(level - 2):
        children = _octants(morton.subdivide_keys(children)[0])
    return assemble(children, torch.full_like(children, -1), batch_size)


def _check_children(keys: Tensor, masks: Tensor, starts: Tensor, level: int, voxels: Tensor | None) -> None:
    """Raise for the first voxel whose children are out of range; the border of the range is a border of bricks."""
    legal = torch.ones_like(keys, dtype=torch.bool)
    codes = keys << 6
    for _ in range(level):
        codes, inside = morton.subdivide_codes(codes)
        legal &= inside
    if legal.all():
        return
    lane = lanes(masks)
    outside = ~legal[lane >> 6]
    offenders = true_indices(outside if voxels is None else outside & voxels)
    if offenders.shape[0]:
        raise morton.VoxelError(int(offenders[0]))


def _octants(first: Tensor) -> Tensor:
    """The eight consecutive keys, or codes, from each first one on."""
    return (first[:, None] + torch.arange(8, device=first.device)).flatten()


@cache
def _bit_to_byte(device: torch.device) -> Tensor:
    """For each byte, the word whose byte i is 0xFF where bit i of the byte is set: the children of one octant."""
    values = torch.arange(256, device=device)
    bits = values[:, None] >> torch.arange(8, device=device) & 1
    return (bits * (255 << 8 * torch.arange(8, device=device))).sum(1)


def _children(keys: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    first, _ = morton.subdivide_keys(keys)
    octants = (masks[:, None] >> 8 * torch.arange(8, device=keys.device) & 0xFF).flatten()
    return _octants(first), _bit_to_byte(keys.device)[octants]


def _selected_children(keys: Tensor, masks: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    lane = lanes(masks)
    first, _ = morton.subdivide_keys(keys)
    starts = run_starts(lane >> 3)  # one octant of a brick becomes one brick
    chosen = (keep.long() << torch.arange(8, device=keys.device)).sum(1) << 8 * (lane & 7)
    child = lane[starts] >> 3
    return first[child >> 3] | child & 7, sum_runs(chosen, starts)


def combine_bricks(
    keys_a: Tensor, masks_a: Tensor, keys_b: Tensor, masks_b: Tensor, offsets: Tensor, op: str
) -> Bricks:
    """Bricks of "or", "and", "sub" (in a, not in b) or "xor" of two sets of voxels."""
    batch_size = offsets.shape[0] - 1
    if op == "or":
        return assemble(*unite(keys_a, masks_a, (keys_b, masks_b)), batch_size)
    index, found = search(keys_b, keys_a)
    other = torch.where(found, masks_b[index], 0) if keys_b.shape[0] else torch.zeros_like(masks_a)
    if op == "and":
        return assemble(keys_a.clone(), masks_a & other, batch_size)
    if op == "sub":
        return assemble(keys_a.clone(), masks_a & ~other, batch_size)
    alone = torch.ones_like(keys_b, dtype=torch.bool)
    alone[index[found]] = False
    more_keys = keys_b[alone]
    place = torch.searchsorted(keys_a, more_keys)
    return assemble(*insert(keys_a, masks_a ^ other, more_keys, masks_b[alone], place), batch_size)


def kept_masks(masks: Tensor, keep: Tensor) -> Tensor:
    """Masks without the voxels whose `keep` [N] is False."""
    bits = torch.zeros(64 * masks.shape[0], dtype=torch.bool, device=masks.device)
    return pack_bits(bits.index_copy_(0, lanes(masks), keep).view(-1, 64))


def prune_bricks(keys: Tensor, masks: Tensor, starts: Tensor, offsets: Tensor, keep: Tensor) -> Bricks:
    """Bricks of the voxels with `keep` [N]."""
    return assemble(keys.clone(), kept_masks(masks, keep), offsets.shape[0] - 1)


def crop_bricks(keys: Tensor, masks: Tensor, offsets: Tensor, lower: list[int], upper: list[int]) -> Bricks:
    """Bricks of the voxels with lower <= ijk < upper."""
    corners = morton.decode(keys << 6)
    for axis in range(3):
        below = torch.tensor(morton.RANGES[axis], device=keys.device)
        corner = corners[:, axis + 1]
        masks = masks & below[(upper[axis] - corner).clamp(0, 4)] & ~below[(lower[axis] - corner).clamp(0, 4)]
    return assemble(keys.clone(), masks, offsets.shape[0] - 1)
