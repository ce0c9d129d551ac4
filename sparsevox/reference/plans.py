"""Plans: a kernel table in the orders in which convolutions run through it.

M output rows, N input rows, K taps, P pairs, T blocks of output rows.
"""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sparsevox.reference._runs import true_indices


def adjoint_table(table: Tensor, rows: Tensor) -> Tensor:
    """The table int32 [K, N] of the other direction: entry n of tap t is m where entry m of `table` is n."""
    taps, count = table.shape[0], rows.shape[0]
    pair = true_indices(table.flatten() >= 0)
    tap, row = pair // max(table.shape[1], 1), pair % max(table.shape[1], 1)
    adjoint = torch.full((taps * count,), -1, dtype=torch.int32, device=table.device)
    adjoint[tap * count + table.flatten()[pair]] = row.int()
    return adjoint.view(taps, count)


def pair_lists(table: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Input and output rows of all pairs, int32 [P], and where those of each (block, tap) start, int64 [T * K + 1].

    Pairs are sorted by block of output rows, then tap, then output row.
    """
    sources, targets, counts = [], [], [torch.zeros(1, dtype=torch.int64, device=table.device)]
    for first in range(0, table.shape[1], block):
        part = table[:, first : first + block]
        slots = part.flatten()
        numbers = torch.arange(first, first + part.shape[1], dtype=torch.int32, device=table.device)
        found = true_indices(slots >= 0)
        sources.append(slots.index_select(0, found))
        targets.append(numbers.repeat(table.shape[0]).index_select(0, found))
        counts.append((part >= 0).sum(1))
    empty = table.new_empty(0)
    return torch.cat([empty, *sources]), torch.cat([empty, *targets]), torch.cat(counts).cumsum(0)


def pair_bags(dst: Tensor, starts: Tensor, table: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The pairs of each output row: their numbers in the block, int32 [P], and where each row starts, int64 [M + 1].

    Rows are in order, and the pairs of a row in the order of taps.
    """
    count = table.shape[1]
    edges = starts[:: table.shape[0]].tolist()
    orders = [dst.new_empty(0)]
    for first, last in pairwise(edges):
        local = dst[first:last] % block
        if dst.device.type == "cpu":  # a radix sort of 16 bits
            orders.append(torch.from_numpy(np.argsort(local.numpy().astype(np.int16), kind="stable")).int())
        else:
            orders.append(torch.sort(local, stable=True).indices.int())
    bags = torch.zeros(count + 1, dtype=torch.int64, device=table.device)
    torch.cumsum((table >= 0).sum(0), 0, out=bags[1:])
    return torch.cat(orders), bags
