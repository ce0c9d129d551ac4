"""Batches that fit into memory: at most a budget of voxels each, and halved when the memory of a GPU runs out."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from sparsevox.data import VoxelBudgetSampler

T = TypeVar("T")
R = TypeVar("R")


def in_batches(
    function: Callable[[Sequence[T]], list[R]], items: Sequence[T], sizes: Sequence[int], budget: int
) -> list[R]:
    """Apply a function of batches to all items: a list of one result per item, in order.

    Args:
        function: Takes the items of a batch and returns a list of one result per item.
        items: Items of all batches.
        sizes: Number of voxels of each item.
        budget: Maximum number of voxels per batch. A larger item is a batch of its own.

    Raises:
        torch.OutOfMemoryError: If a single item does not fit into memory.
    """
    results: list[R] = []
    pending = [] if not items else list(VoxelBudgetSampler(sizes, budget, shuffle=False, rank=0, replicas=1))[::-1]
    while pending:
        batch = pending.pop()
        try:
            results += function([items[n] for n in batch])
            continue
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        # Halve the batch outside of the handler, which keeps the tensors of the failed attempt alive.
        middle = len(batch) // 2
        pending += [batch[middle:], batch[:middle]]
    return results
