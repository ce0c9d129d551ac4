"""Plans: the pairs of a kernel table in the orders in which convolutions visit them.

M output rows, N input rows, K taps, P pairs, T blocks of output rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsevox import morton
from sparsevox._readback import read_back
from sparsevox.kernels._bits import items
from sparsevox.kernels._launch import cdiv, launch
from sparsevox.plans import MASK_TAPS, TILE_ROWS, WINDOW_ROWS


@triton.jit(do_not_specialize=["n_rows", "n_others", "taps"])
def adjoint_kernel(table_ptr, sources_ptr, n_rows, n_others, taps, BLOCK: tl.constexpr):
    """Turn the table [taps, n_rows] around; the result [taps, n_others] is filled with -1 before."""
    row = items(BLOCK)
    for tap in range(taps):
        tap = tl.cast(tap, tl.int64)
        target = tl.load(table_ptr + tap * n_rows + row, mask=row < n_rows, other=-1).to(tl.int64)
        tl.store(sources_ptr + tap * n_others + target, row, mask=target >= 0)


@triton.jit(do_not_specialize=["n_pairs", "n_rows", "taps", "length"])
def pairs_kernel(
    table_ptr,
    places_ptr,
    sources_ptr,
    targets_ptr,
    n_pairs,
    n_rows,
    taps,
    length,
    WRITE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count the pairs of each segment, or WRITE them from its start in `places_ptr` on.

    A segment is a (block of `length` output rows, tap); there are `n_pairs` of them, and an item is one segment.
    """
    segment = items(BLOCK)
    active = segment < n_pairs
    first = segment // taps * length
    address = segment % taps * n_rows
    place = tl.zeros([BLOCK], tl.int64)
    if WRITE:
        place = tl.load(places_ptr + segment, mask=active, other=0)
    for start in range(0, length, ROWS):
        step = start + tl.arange(0, ROWS)
        row = first[:, None] + step[None, :]
        inside = active[:, None] & (step < length)[None, :] & (row < n_rows)
        source = tl.load(table_ptr + address[:, None] + row, mask=inside, other=-1)
        found = (source >= 0).to(tl.int32)
        if WRITE:
            at = place[:, None] + tl.cumsum(found, axis=1) - 1
            tl.store(sources_ptr + at, source, mask=source >= 0)
            tl.store(targets_ptr + at, row, mask=source >= 0)
        place += tl.sum(found, axis=1)
    if WRITE == 0:
        tl.store(places_ptr + segment, place, mask=active)


@triton.jit(do_not_specialize=["n_rows", "taps"])
def tap_masks_kernel(table_ptr, ranks_ptr, masks_ptr, n_rows, taps, BLOCK: tl.constexpr):
    """Sort key of each output row: rows with the same taps get equal keys, rows with similar taps close ones.

    Bit `ranks[t]` of a Gray code says whether tap t has an input row; the key is the place of the Gray code in the Gray
    sequence.
    """
    row = items(BLOCK)
    words = tl.zeros([BLOCK], tl.int64)
    for tap in range(taps):
        source = tl.load(table_ptr + tl.cast(tap, tl.int64) * n_rows + row, mask=row < n_rows, other=-1)
        words |= (source >= 0).to(tl.int64) << tl.load(ranks_ptr + tap)
    for i in tl.static_range(6):
        words ^= words >> 2**i
    tl.store(masks_ptr + row, words, mask=row < n_rows)


@triton.jit(do_not_specialize=["n_items", "n_rows", "taps"])
def tile_taps_kernel(
    table_ptr, order_ptr, taps_ptr, lengths_ptr, n_items, n_rows, taps, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """List the taps that any of the ROWS rows of a tile has, ascending, and count them. The lists are filled with 0."""
    tile = items(BLOCK)
    place = tile[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
    row = tl.load(order_ptr + place, mask=place < n_rows, other=0)
    length = tl.zeros([BLOCK], tl.int32)
    for tap in range(taps):
        address = tl.cast(tap, tl.int64) * n_rows + row
        source = tl.load(table_ptr + address, mask=place < n_rows, other=-1)
        active = tl.max(source, axis=1) >= 0
        tl.store(taps_ptr + tile * taps + length, tap, mask=active)
        length += active.to(tl.int32)
    tl.store(lengths_ptr + tile, length, mask=tile < n_items)


def adjoint_table(table: Tensor, rows: Tensor) -> Tensor:
    """Table int32 [K, N] of the other direction: entry n of tap t is m where entry m of tap t in `table` is n."""
    (taps, n), count = table.shape, rows.shape[0]
    adjoint = torch.full((taps, count), -1, dtype=torch.int32, device=table.device)
    launch(adjoint_kernel, n, table, adjoint, n, count, taps, block=256)
    return adjoint


def pair_lists(table: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Input and output rows of all pairs, int32 [P], and the start of each (block, tap), int64 [T * K + 1].

    Pairs are sorted by block of output rows, then tap, then output row.
    """
    taps, n = table.shape
    segments = cdiv(n, block) * taps
    starts = torch.zeros(segments + 1, dtype=torch.int64, device=table.device)
    counts = starts[1:]
    sizes = (segments, n, taps, block)
    launch(pairs_kernel, segments, table, counts, table, table, *sizes, WRITE=False, ROWS=1024, block=1, lanes=1024)
    counts.cumsum_(0)
    (total,) = read_back(starts[-1])
    sources, targets = table.new_empty(total), table.new_empty(total)
    launch(pairs_kernel, segments, table, starts, sources, targets, *sizes, WRITE=True, ROWS=1024, block=1, lanes=1024)
    return sources, targets, starts


def row_plan(table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows in the order of tiles, int32 [M]; taps of each tile, int32 [tiles, K]; their number, int32 [tiles]."""
    taps, n = table.shape
    tiles = cdiv(n, TILE_ROWS)
    order = _order(table)
    lists = torch.zeros((tiles, taps), dtype=torch.int32, device=table.device)
    lengths = torch.empty(tiles, dtype=torch.int32, device=table.device)
    launch(
        tile_taps_kernel,
        tiles,
        *(table, order, lists, lengths, tiles, n, taps),
        ROWS=TILE_ROWS,
        block=1,
        lanes=TILE_ROWS,
    )
    return order, lists, lengths


def _order(table: Tensor) -> Tensor:
    taps, n = table.shape
    if taps > MASK_TAPS:
        return torch.arange(n, dtype=torch.int32, device=table.device)
    rarest_first = torch.sort((table >= 0).sum(1), stable=True).indices
    ranks = taps - 1 - torch.sort(rarest_first).indices
    # Padding sorts after all rows.
    windows = cdiv(n, WINDOW_ROWS)
    masks = torch.full((windows, WINDOW_ROWS), morton.NONE, device=table.device)
    launch(tap_masks_kernel, n, table, ranks, masks, n, taps, block=256)
    first = torch.arange(0, windows * WINDOW_ROWS, WINDOW_ROWS, device=table.device)
    order = torch.sort(masks, dim=1, stable=True).indices + first[:, None]
    return order.flatten()[:n].int()
