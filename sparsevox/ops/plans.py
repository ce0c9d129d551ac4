"""Plans: a kernel table in the orders in which convolutions run through it. `KernelMap` makes them when needed.

M output rows, N input rows, K taps, P pairs, T blocks of output rows.
"""

import torch
from torch import Tensor

from sparsevox.geometry import TILE_ROWS, pair_block
from sparsevox.ops import _library


def _fake_pairs(table: Tensor, block: int) -> tuple[Tensor, ...]:
    pairs = _library.dynamic_size()
    starts = (table.shape[1] + block - 1) // block * table.shape[0] + 1
    return table.new_empty(pairs), table.new_empty(pairs), table.new_empty(starts, dtype=torch.int64)


def _fake_plan(table: Tensor) -> tuple[Tensor, ...]:
    tiles = (table.shape[1] + TILE_ROWS - 1) // TILE_ROWS
    return table.new_empty(table.shape[1]), table.new_empty((tiles, table.shape[0])), table.new_empty(tiles)


_adjoint_table = _library.register(
    "adjoint_table(Tensor table, Tensor rows) -> Tensor",
    stem="plans",
    fake=lambda table, rows: table.new_empty((table.shape[0], rows.shape[0])),
)
_pair_lists = _library.register(
    "pair_lists(Tensor table, int block) -> (Tensor src, Tensor dst, Tensor starts)", stem="plans", fake=_fake_pairs
)
_pair_bags = _library.register(
    "pair_bags(Tensor dst, Tensor starts, Tensor table, int block) -> (Tensor order, Tensor bags)",
    stem="plans",
    fake=lambda dst, starts, table, block: (
        torch.empty_like(dst),
        table.new_empty(table.shape[1] + 1, dtype=torch.int64),
    ),
    kernels=False,
)
_row_plan = _library.register(
    "row_plan(Tensor table) -> (Tensor order, Tensor taps, Tensor lengths)", stem="plans", fake=_fake_plan
)


def adjoint_table(table: Tensor, rows: Tensor) -> Tensor:
    """The table int32 [K, N] of the other direction.

    Args:
        table: Input row of each output row at each tap, -1 where there is none: int32 [K, M]. At one tap no input row
            comes twice.
        rows: Any tensor [N, ...], for its length.

    Returns:
        Output row of each input row at each tap, -1 where there is none.
    """
    result: Tensor = _adjoint_table(table, rows)
    return result


def pair_lists(table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Input and output rows of all pairs, int32 [P], and where those of each (block, tap) start, int64 [T * K + 1].

    Pairs are sorted by block of `pair_block(K)` output rows, then tap, then output row.
    """
    src, dst, starts = _pair_lists(table, pair_block(table.shape[0]))
    return src, dst, starts


def pair_bags(dst: Tensor, starts: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs of each output row: their numbers in the block, int32 [P], and where each row starts, int64 [M + 1]."""
    order, bags = _pair_bags(dst, starts, table, pair_block(table.shape[0]))
    return order, bags


def row_plan(table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The output rows in the order in which tiles of a kernel take them.

    A tile is 128 rows and runs through all taps that any of them has, so rows with the same taps should share one.
    Inside windows of 16384 rows, whose inputs lie close together, rows are sorted by the taps that they have: by their
    place in the Gray sequence, the rarest tap in the highest bit. Maps of more than 62 taps keep the order of rows.

    Returns:
        Rows, int32 [M]; taps of each tile, ascending, then zeros, int32 [tiles, K]; how many taps, int32 [tiles].
    """
    order, taps, lengths = _row_plan(table)
    return order, taps, lengths
