"""Plans: the pairs of a kernel table in the orders in which convolutions visit them.

M output rows, N input rows, K taps, P pairs, T blocks of output rows.
"""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sparsevox.plans import MASK_TAPS, TILE_ROWS, WINDOW_ROWS
from sparsevox.reference._runs import true_indices


def adjoint_table(table: Tensor, rows: Tensor) -> Tensor:
    """Table int32 [K, N] of the other direction: entry n of tap t is m where entry m of tap t in `table` is n."""
    taps, count = table.shape[0], rows.shape[0]
    pair = _present(table)
    tap, row = pair // max(table.shape[1], 1), pair % max(table.shape[1], 1)
    adjoint = torch.full((taps * count,), -1, dtype=torch.int32, device=table.device)
    adjoint[tap * count + table.flatten()[pair]] = row.int()
    return adjoint.view(taps, count)


def pair_lists(table: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Input and output rows of all pairs, int32 [P], and the start of each (block, tap), int64 [T * K + 1].

    Pairs are sorted by block of output rows, then tap, then output row. `block` is a power of two.
    """
    taps, device = table.shape[0], table.device
    sources, targets, starts, total = [table.new_empty(0)], [table.new_empty(0)], [], 0
    for first in range(0, table.shape[1], block):
        slots = table[:, first : first + block].contiguous()  # [K, rows of the block]
        rows = slots.shape[1]
        found = _present(slots)
        sources.append(slots.flatten().index_select(0, found))
        starts.append(torch.searchsorted(found, rows * torch.arange(taps, device=device)) + total)
        local = found.bitwise_and_(block - 1) if rows == block else found.remainder_(rows)
        targets.append(local.int().add_(first))
        total += found.shape[0]
    starts.append(torch.tensor([total], device=device))
    return torch.cat(sources), torch.cat(targets), torch.cat(starts)


def pair_bags(targets: Tensor, starts: Tensor, table: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Pairs by output row: their numbers within the block, int32 [P], and where each row starts, int32 [M + T].

    Rows are in order, and the pairs of a row in the order of taps. Each block has the starts of its rows, counted from
    its first pair, and their end. `block` is a power of two.
    """
    edges, rows = starts[:: table.shape[0]].tolist(), table.shape[1]
    order = torch.empty_like(targets)
    row_starts = torch.zeros(rows + len(edges) - 1, dtype=torch.int32, device=table.device)
    for number, (first, last) in enumerate(pairwise(edges)):
        part = (targets[first:last] & (block - 1)).short()
        if targets.device.type == "cpu":  # a radix sort
            order[first:last] = torch.from_numpy(np.argsort(part.numpy(), kind="stable"))
        else:
            order[first:last] = torch.sort(part, stable=True).indices
        begin, end = number * block, min((number + 1) * block, rows)
        counts = torch.bincount(part, minlength=end - begin)
        torch.cumsum(counts, 0, out=row_starts[begin + number + 1 : end + number + 1])
    return order, row_starts


def row_plan(table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows in the order of tiles, int32 [M]; taps of each tile, int32 [tiles, K]; their number, int32 [tiles].

    Within windows, rows with similar taps come together: they are sorted by the place of their set of taps in the Gray
    sequence, where the rarest tap is the highest bit. Equal ones stay in order.
    """
    has = table >= 0
    (taps, count), device = has.shape, table.device
    order = torch.arange(count, device=device)
    if taps <= MASK_TAPS:
        words = torch.zeros(count, dtype=torch.int64, device=device)
        for tap in torch.sort(has.sum(1), stable=True).indices.tolist():  # decode the Gray code: prefix parities
            words = words << 1 | ((words & 1) ^ has[tap])
        windows = [torch.sort(part, stable=True).indices for part in words.split(WINDOW_ROWS)]
        order = torch.cat([part + i * WINDOW_ROWS for i, part in enumerate(windows)])
    padded = torch.nn.functional.pad(has[:, order], (0, -count % TILE_ROWS))
    active = padded.unflatten(1, (padded.shape[1] // TILE_ROWS, TILE_ROWS)).any(2).t()  # [tiles, K]
    # A stable sort puts the taps of a tile first, in ascending order.
    lists, lengths = torch.sort((~active).int(), dim=1, stable=True).indices, active.sum(1)
    lists[torch.arange(taps, device=device) >= lengths[:, None]] = 0
    return order.int(), lists.int().contiguous(), lengths.int()


def _present(slots: Tensor) -> Tensor:
    """Indices of the entries of `slots` that are not -1: int64, ascending."""
    if slots.device.type == "cpu":  # NumPy compares six times as fast as PyTorch
        return torch.from_numpy(np.flatnonzero(slots.numpy() >= 0))
    return true_indices((slots >= 0).flatten())
