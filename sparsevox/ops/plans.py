"""Functions that make the plans of a kernel map. `KernelMap` calls them when a plan is first needed.

N input rows, M output rows, K taps, P pairs, T blocks of output rows.
"""

import torch
from torch import Tensor

from sparsevox import kernels
from sparsevox.ops import _library
from sparsevox.plans import TILE_ROWS, Bags, PairLists, RowPlan, pair_block
from sparsevox.reference import plans as reference


def _fake_pairs(table: Tensor, block: int) -> tuple[Tensor, ...]:
    pairs = _library.dynamic_size()
    starts = (table.shape[1] + block - 1) // block * table.shape[0] + 1
    return table.new_empty(pairs), table.new_empty(pairs), table.new_empty(starts, dtype=torch.int64)


def _fake_plan(table: Tensor) -> tuple[Tensor, ...]:
    tiles = (table.shape[1] + TILE_ROWS - 1) // TILE_ROWS
    return table.new_empty(table.shape[1]), table.new_empty((tiles, table.shape[0])), table.new_empty(tiles)


_adjoint_table = _library.register(
    "adjoint_table(Tensor table, Tensor rows) -> Tensor",
    reference=reference.adjoint_table,
    kernels=lambda: kernels.plans.adjoint_table,
    fake=lambda table, rows: table.new_empty((table.shape[0], rows.shape[0])),
)
_pair_lists = _library.register(
    "pair_lists(Tensor table, int block) -> (Tensor sources, Tensor targets, Tensor starts)",
    reference=reference.pair_lists,
    kernels=lambda: kernels.plans.pair_lists,
    fake=_fake_pairs,
)
_pair_bags = _library.register(
    "pair_bags(Tensor targets, Tensor starts, Tensor table, int block) -> (Tensor order, Tensor row_starts)",
    reference=reference.pair_bags,
    kernels=None,  # only the reference convolution sums bags
    fake=lambda targets, starts, table, block: (
        torch.empty_like(targets),
        table.new_empty(table.shape[1] + (table.shape[1] + block - 1) // block),
    ),
)
_row_plan = _library.register(
    "row_plan(Tensor table) -> (Tensor order, Tensor taps, Tensor lengths)",
    reference=reference.row_plan,
    kernels=lambda: kernels.plans.row_plan,
    fake=_fake_plan,
)


def adjoint_table(table: Tensor, rows: Tensor) -> Tensor:
    """Turn a table around: output row of each input row at each tap, -1 where there is none, int32 [K, N].

    Args:
        table: Input row of each output row at each tap, -1 where there is none: int32 [K, M]. No input row occurs twice
            at one tap.
        rows: Any tensor [N, ...]; only its length is used.
    """
    return _adjoint_table(table, rows)


def pair_lists(table: Tensor) -> PairLists:
    """List the pairs of a table int32 [K, M], by block of output rows and by tap."""
    return PairLists(*_pair_lists(table, pair_block(table.shape[0])))


def bags(table: Tensor, pairs: PairLists) -> Bags:
    """Make the plan of the reference convolution from a table int32 [K, M] and its pairs."""
    order, row_starts = _pair_bags(pairs.targets, pairs.starts, table, pair_block(table.shape[0]))
    return Bags(table, pairs.sources, pairs.starts, order, row_starts)


def row_plan(table: Tensor) -> RowPlan:
    """Make the plan of the Triton convolution from a table int32 [K, M]: the order in which tiles take output rows.

    A tile is 128 rows and visits every tap that any of them has, so rows with the same taps should share a tile. Within
    windows of 16384 rows, whose inputs are close together, rows are sorted by their taps: by the place of the set of
    taps in the Gray sequence, with the rarest tap as the highest bit. Maps of more than 62 taps keep the order of rows.
    """
    return RowPlan(table, *_row_plan(table))
