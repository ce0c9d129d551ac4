"""Sorted arrays and their runs of equal values: the building blocks of topology on bricks."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from sparsevox import morton
from sparsevox._readback import read_back
from sparsevox.morton import Bricks


def true_indices(flags: Tensor) -> Tensor:
    """Indices of the True elements of a bool vector: int64, ascending."""
    if flags.device.type == "cpu":  # five times as fast as torch.nonzero
        return torch.from_numpy(np.flatnonzero(flags.numpy()))
    return flags.nonzero().squeeze(1)


def run_starts(values: Tensor) -> Tensor:
    """Index of the first element of every run of equal neighbors in `values` [M]: int64, ascending."""
    first = torch.ones(values.shape[0], dtype=torch.bool, device=values.device)
    torch.ne(values[1:], values[:-1], out=first[1:])
    return true_indices(first)


def sum_runs(values: Tensor, starts: Tensor) -> Tensor:
    """Sum of int64 `values` [M] over the runs that begin at `starts`, modulo 2^64. It is OR if no bit occurs twice."""
    if starts.shape[0] == 0:
        return values.new_empty(0)
    if values.device.type == "cpu":
        return torch.from_numpy(np.add.reduceat(values.numpy(), starts.numpy()))
    totals = values.cumsum(0)[torch.cat([starts[1:] - 1, starts.new_tensor([values.shape[0] - 1])])]
    return torch.cat([totals[:1], totals[1:] - totals[:-1]])


def popcount(words: Tensor) -> Tensor:
    """Number of set bits of each int64 word, as int64."""
    if words.device.type == "cpu":
        return torch.from_numpy(np.bitwise_count(words.numpy().view(np.uint64))).long()
    return morton.popcount(words)


def search(sorted_keys: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Index of each key [M] in `sorted_keys` (of any other, if absent), and whether it is present."""
    if sorted_keys.shape[0] == 0:
        return torch.zeros_like(keys), torch.zeros_like(keys, dtype=torch.bool)
    index = torch.searchsorted(sorted_keys, keys).clamp_(max=sorted_keys.shape[0] - 1)
    return index, sorted_keys.index_select(0, index) == keys


@cache
def spread_table(device: torch.device) -> Tensor:
    """`morton.spread` of all 2^18 values."""
    return morton.spread(torch.arange(1 << morton.AXIS_BITS, device=device))


def encode(coords: Tensor) -> Tensor:
    """Compute `morton.encode` three times faster, by a table of 2^18 entries that stays in the cache of a CPU core."""
    table = spread_table(coords.device)
    batch, *axes = coords.unbind(1)
    codes = (batch.long() - morton.BATCH_BIAS).bitwise_left_shift_(morton.CODE_BITS)
    for axis, values in enumerate(axes):
        index = (values - morton.COORD_MIN).bitwise_and_(table.shape[0] - 1)
        codes |= table.index_select(0, index).bitwise_left_shift_(2 - axis)
    return codes


PIECE = 12  # bits of a key that one table entry decodes
PIECES = morton.KEY_BITS // PIECE


@cache
def _corner_table(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Summands of the corner of a brick for each value of each piece of its key, int32 [PIECES * 2^PIECE, 4].

    The other tensors, [PIECES, 1], are the distance of each piece from the end of the key, and its first entry.
    """
    number = torch.arange(PIECES, device=device)[:, None]
    shifts = PIECE * number
    corners = morton.decode(torch.arange(1 << PIECE, device=device) << shifts + 6)  # [PIECES, 2^PIECE, 4]
    corners[1:] -= corners[0, 0].clone()  # the biases count once
    return corners.flatten(0, 1).int(), shifts, number << PIECE


def corners(keys: Tensor) -> Tensor:
    """Coordinates of the first voxel of each brick, int32 [L, 4]: `morton.decode(keys << 6)` in few calls."""
    table, shifts, first = _corner_table(keys.device)
    pieces = (keys >> shifts).bitwise_and_((1 << PIECE) - 1).add_(first)  # [PIECES, L]
    out = table.index_select(0, pieces.view(-1)).view(*pieces.shape, 4).sum(0, dtype=torch.int32)
    out[:, 0] += keys >> morton.KEY_BITS
    return out


def lanes(masks: Tensor) -> Tensor:
    """Brick row * 64 + bit of every voxel, in row order: int64 [N]."""
    if masks.device.type == "cpu":
        little_endian = masks.numpy().astype("<i8", copy=False).view(np.uint8)
        return torch.from_numpy(np.flatnonzero(np.unpackbits(little_endian, bitorder="little").view(bool)))
    bits = torch.arange(64, device=masks.device)
    return true_indices((masks[:, None] >> bits & 1).bool().flatten())


def pack_bits(bits: Tensor) -> Tensor:
    """Masks int64 [L] of flags bool [L, 64]; the first flag is the lowest bit."""
    if bits.device.type == "cpu":
        words = np.packbits(bits.numpy(), axis=1, bitorder="little").view("<i8").squeeze(1)
        return torch.from_numpy(words.astype(np.int64, copy=False))
    return (bits.long() << torch.arange(64, device=bits.device)).sum(1)


def single_bits(lane: Tensor) -> Tensor:
    """The word with only the bit of each voxel set."""
    return torch.ones_like(lane, dtype=torch.int64) << (lane & 63)


def assemble(keys: Tensor, masks: Tensor, batch_size: int) -> Bricks:
    """Number the voxels of bricks, whose keys are sorted and distinct. Bricks without a voxel are dropped."""
    counts = popcount(masks)
    if not counts.all():
        kept = true_indices(counts != 0)
        keys, masks, counts = keys[kept], masks[kept], counts[kept]
    ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    (total,) = read_back(ends[-1])
    morton.check_total(total)
    first_bricks = torch.searchsorted(keys, morton.batch_keys(batch_size, keys.device))
    rows = torch.empty((total, 0), dtype=torch.bool, device=keys.device)
    return Bricks(keys, masks, ends[:-1].int(), ends[first_bricks], rows)


def from_sorted_codes(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and masks of sorted codes of 64 or fewer bits; equal codes merge."""
    first = run_starts(codes)
    if first.shape[0] < codes.shape[0]:
        codes = codes[first]
    keys = codes >> 6
    starts = run_starts(keys)
    return keys[starts], sum_runs(single_bits(codes), starts)


def insert(keys: Tensor, masks: Tensor, new_keys: Tensor, new_masks: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Merge two brick lists with sorted, disjoint keys; `place` is searchsorted(keys, new_keys)."""
    total = keys.shape[0] + new_keys.shape[0]
    new = place + torch.arange(new_keys.shape[0], device=keys.device)
    is_old = torch.ones(total, dtype=torch.bool, device=keys.device).index_fill_(0, new, False)
    old = true_indices(is_old)
    out_keys = keys.new_empty(total).index_copy_(0, old, keys).index_copy_(0, new, new_keys)
    return out_keys, masks.new_empty(total).index_copy_(0, old, masks).index_copy_(0, new, new_masks)


def unite(keys: Tensor, masks: Tensor, *others: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Union of brick lists, each with distinct keys; only the first must be sorted."""
    masks = masks.clone()
    missing = []
    for more_keys, more_masks in others:
        place = torch.searchsorted(keys, more_keys)
        index = place.clamp(max=max(keys.shape[0] - 1, 0))
        found = keys[index] == more_keys if keys.shape[0] else torch.zeros_like(more_keys, dtype=torch.bool)
        index, absent = index[found], true_indices(~found)
        masks[index] |= more_masks[found]
        missing.append((more_keys[absent], more_masks[absent], place[absent]))
    if not any(part[0].shape[0] for part in missing):
        return keys.clone(), masks
    new_keys, new_masks, place = (torch.cat(part) for part in zip(*missing, strict=True))
    new_keys, order = torch.sort(new_keys)
    starts = run_starts(new_keys)
    return insert(keys, masks, new_keys[starts], or_runs(new_masks[order], starts, len(others)), place[order][starts])


def or_runs(words: Tensor, starts: Tensor, longest: int) -> Tensor:
    """OR of int64 `words` over the runs that begin at `starts`; no run is longer than `longest`."""
    ends = torch.cat([starts[1:], starts.new_tensor([words.shape[0]])])
    total = words[starts]
    for step in range(1, longest):
        index = starts + step
        total |= torch.where(index < ends, words[index.clamp(max=words.shape[0] - 1)], 0)
    return total
