"""Plans of a kernel map: its pairs in the order in which a convolution runs through them, and the sizes of blocks.

The table of a kernel map holds all pairs; a plan lists the same pairs in the order that suits one computation. The
functions that make plans are in `ops/plans.py`; `KernelMap` calls them when a plan is first needed.
N input rows, M output rows, K taps, P pairs (input row, output row), T blocks of output rows.
"""

from typing import NamedTuple

from torch import Tensor

PAIR_ROWS = 1 << 13  # output rows of a block of pairs, at most
PAIR_SLOTS = 27 << 13  # (tap, row) slots of a block of pairs, about: as many as fit in the cache of a CPU
TILE_ROWS = 128  # output rows that share a list of taps
WINDOW_ROWS = 1 << 14  # output rows that may share a tile: close together in space, so their input rows are too
MASK_TAPS = 62  # taps that fit in one word; with more of them, rows stay in Z-order


class RowPlan(NamedTuple):
    """Plan of the Triton kernel: output rows in the order of tiles, and the taps that each tile visits.

    table:   int32 [K, M], input row of each output row at each tap, -1 where there is none.
    order:   int32 [M], output rows; TILE_ROWS consecutive ones are a tile.
    taps:    int32 [tiles, K], the taps that any row of the tile has, ascending, then zeros.
    lengths: int32 [tiles], number of those taps.
    """

    table: Tensor
    order: Tensor
    taps: Tensor
    lengths: Tensor


class Bags(NamedTuple):
    """Plan of the reference: input rows to gather, block by block and tap by tap, and the products of each output row.

    table:      int32 [K, M], as in `RowPlan`.
    sources:    int32 [P], input rows, in the order of `PairLists`.
    starts:     int64 [T * K + 1], as in `PairLists`.
    order:      int32 [P], numbers of pairs within their block, by output row and then by tap.
    row_starts: int32 [M + T], where the pairs of each output row start, and the end of the last, in the part of `order`
        that belongs to the block.
    """

    table: Tensor
    sources: Tensor
    starts: Tensor
    order: Tensor
    row_starts: Tensor


class PairLists(NamedTuple):
    """All pairs, sorted by block of `pair_block(K)` output rows, then tap, then output row: for weight gradients.

    sources: int32 [P], input rows.
    targets: int32 [P], output rows.
    starts:  int64 [T * K + 1], where the pairs of each (block, tap) start, and the end.
    """

    sources: Tensor
    targets: Tensor
    starts: Tensor


def pair_block(taps: int) -> int:
    """Output rows of a block of pairs: a power of two that depends on K only."""
    return min(PAIR_ROWS, 1 << (PAIR_SLOTS // taps).bit_length() - 1)
