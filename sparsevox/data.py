"""Batches of grids and sparse tensors for `torch.utils.data.DataLoader`."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch.distributed
from torch.utils.data import Sampler
from torch.utils.data._utils.collate import collate as _collate
from torch.utils.data._utils.collate import default_collate_fn_map

from sparsevox import checks, morton
from sparsevox.grid import Grid
from sparsevox.shapes import Voxels
from sparsevox.tensor import SparseTensor, stack


def collate(samples: Sequence[Any]) -> Any:
    """Collate samples into one batch: `DataLoader(dataset, batch_size=8, collate_fn=sv.collate)`.

    `Grid`, `SparseTensor` and `Voxels` are stacked along the batch. Tuples, lists, dicts, tensors and numbers are
    handled as in `torch.utils.data.default_collate`. A tensor with one row per voxel, such as labels, must not be
    stacked: wrap it in `sv.Voxels(grid, {"label": labels})`.

    Raises:
        ValueError: If there are no samples.
    """
    if not len(samples):
        raise ValueError("samples must hold at least one sample, got none")
    return _collate(list(samples), collate_fn_map=_RULES)


def _stack_tensors(batch: list[SparseTensor], *, collate_fn_map: object = None) -> SparseTensor:
    return stack(batch)


def _stack_grids(batch: list[Grid], *, collate_fn_map: object = None) -> Grid:
    return Grid.stack(batch)


def _stack_voxels(batch: list[Voxels], *, collate_fn_map: object = None) -> Voxels:
    return Voxels.stack(batch)


_RULES: dict[type | tuple[type, ...], Any] = {
    SparseTensor: _stack_tensors,
    Grid: _stack_grids,
    Voxels: _stack_voxels,
    **default_collate_fn_map,
}


class VoxelBudgetSampler(Sampler[list[int]]):
    """Batch sampler that limits the number of voxels per batch: `DataLoader(dataset, batch_sampler=sampler)`.

    The time and memory of a training step depend on its number of voxels, which varies widely between batches with a
    fixed number of items. The batches are a function of sizes, seed and epoch only. In a distributed run the batches
    are split evenly among the ranks; if their number is not divisible, the first few are repeated.

    Args:
        sizes: Number of voxels of each item of the dataset.
        budget: Maximum number of voxels per batch.
        oversize: Treatment of items larger than the budget: "alone" puts each into its own batch, "drop" leaves them
            out, "error" raises a ValueError.
        shuffle: Whether to shuffle the items in every epoch.
        seed: Seed of the shuffling.
        max_items: Maximum number of items per batch.
        rank: Rank of this process, in [0, replicas). By default that of `torch.distributed` if initialized, else 0.
        replicas: Number of processes. By default that of `torch.distributed` if initialized, else 1.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If a size is negative, `budget` is not positive, `max_items` is not between 1 and the maximum batch
            size of a grid, `rank` is not in [0, replicas), `oversize` is unknown, or `oversize` is "error" and an item
            is larger than the budget.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        budget: int,
        *,
        oversize: Literal["alone", "drop", "error"] = "alone",
        shuffle: bool = True,
        seed: int = 0,
        max_items: int = morton.MAX_BATCH,
        rank: int | None = None,
        replicas: int | None = None,
    ) -> None:
        if oversize not in ("alone", "drop", "error"):
            raise ValueError(f"oversize must be 'alone', 'drop' or 'error', got {oversize!r}")
        if checks.integer("budget", budget) < 1:
            raise ValueError(f"budget must be positive, got {budget}")
        if not 1 <= checks.integer("max_items", max_items) <= morton.MAX_BATCH:
            raise ValueError(f"max_items must be between 1 and {morton.MAX_BATCH}, got {max_items}")
        self._sizes = [checks.integer(f"sizes[{item}]", size) for item, size in enumerate(sizes)]
        for item, size in enumerate(self._sizes):
            if size < 0 or (size > budget and oversize == "error"):
                raise ValueError(f"sizes[{item}] must lie in [0, {budget}], got {size}")
        self._items = [n for n, size in enumerate(self._sizes) if size <= budget or oversize == "alone"]
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if replicas is None:
            replicas = torch.distributed.get_world_size() if distributed else 1
        if rank is None:
            rank = torch.distributed.get_rank() if distributed else 0
        if not 0 <= checks.integer("rank", rank) < checks.integer("replicas", replicas):
            raise ValueError(f"rank must be in [0, {replicas}), got {rank}")
        self._budget, self._max_items, self._shuffle = budget, max_items, shuffle
        self._seed, self._rank, self._replicas = checks.integer("seed", seed), rank, replicas
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch to iterate over.

        Args:
            epoch: Number of the epoch, from 0.
            start: Number of batches of this rank to skip, for a run that resumes in the middle of an epoch.

        Raises:
            ValueError: If a number is negative.
        """
        for name, value in (("epoch", epoch), ("start", start)):
            if checks.integer(name, value) < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        self._start = start
        self._batches = self._of_rank(self._filled(self._order(epoch)))

    def __iter__(self) -> Iterator[list[int]]:
        return iter([list(batch) for batch in self._batches[self._start :]])

    def __len__(self) -> int:
        """Number of batches of this rank in the chosen epoch, less those skipped. It may vary between epochs."""
        return max(0, len(self._batches) - self._start)

    def _order(self, epoch: int) -> list[int]:
        if not self._shuffle:
            return self._items
        # A list as the seed keeps epochs independent, where seed + epoch would repeat an order of the next seed.
        generator = np.random.default_rng([self._seed % (1 << 64), epoch])
        return [self._items[n] for n in generator.permutation(len(self._items))]

    def _filled(self, order: Sequence[int]) -> list[list[int]]:
        """Fill batches in order. An item that exceeds the remaining budget starts the next batch."""
        batches: list[list[int]] = []
        room = 0
        for item in order:
            size = self._sizes[item]
            if not batches or size > room or len(batches[-1]) == self._max_items:
                batches.append([])
                room = self._budget
            batches[-1].append(item)
            room -= size
        return batches

    def _of_rank(self, batches: list[list[int]]) -> list[list[int]]:
        """Select every `replicas`-th batch from `rank` on, after repeating the first ones to a full round."""
        missing = -len(batches) % self._replicas
        repeated = [batches[n % len(batches)] for n in range(missing)] if batches else []
        return (batches + repeated)[self._rank :: self._replicas]
