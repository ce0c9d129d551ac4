"""Batches for training: what a `torch.utils.data.DataLoader` needs to know of grids and sparse tensors."""

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
    """One batch of samples: `DataLoader(dataset, batch_size=8, collate_fn=sv.collate)`.

    Grids, sparse tensors and voxels with attributes are stacked along the batch; tuples, lists, dicts, tensors and
    numbers are treated as by `torch.utils.data.default_collate`. What has one row a voxel, such as labels, goes along
    in a `sv.Voxels(grid, {"label": labels})`.

    Raises:
        ValueError: If there are no samples.
    """
    if not len(samples):
        raise ValueError("samples must hold one sample at least, got none")
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
    """Batches of items whose voxels sum to at most a budget: `DataLoader(dataset, batch_sampler=sampler)`.

    What a training step needs, in time and memory, follows from its voxels and not from its items, so batches of a
    budget are alike where batches of a size are not. The batches follow from the sizes, the seed and the epoch alone.
    Every rank of a distributed run takes another share of them, all of the same length: a few come twice if their
    number does not divide.

    Args:
        sizes: Voxels of each item.
        budget: Voxels of a batch, at most.
        oversize: What becomes of items with more voxels than that. "alone": each is a batch. "drop": they are left out.
            "error": ValueError.
        shuffle: Whether every epoch has another order. Else items come in theirs.
        seed: Of the orders.
        max_items: Items of a batch, at most.
        rank: Of this process among `replicas`; by default that of `torch.distributed`, if that is initialized.
        replicas: Number of processes, by default alike.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If a size is negative, `budget` is not positive, `max_items` is not between 1 and the largest batch
            of a grid, `rank` is none of `replicas`, `oversize` is unknown, or it is "error" and an item is too large.
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
        """Choose the epoch, and how many batches of this rank to leave out at its start: those of a run cut short.

        Raises:
            ValueError: If one of them is negative.
        """
        for name, value in (("epoch", epoch), ("start", start)):
            if checks.integer(name, value) < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        self._start = start
        self._batches = self._share(self._filled(self._order(epoch)))

    def __iter__(self) -> Iterator[list[int]]:
        return iter([list(batch) for batch in self._batches[self._start :]])

    def __len__(self) -> int:
        """Batches of this rank in the chosen epoch, without those left out; other epochs may have more or fewer."""
        return max(0, len(self._batches) - self._start)

    def _order(self, epoch: int) -> list[int]:
        if not self._shuffle:
            return self._items
        # One stream of numbers for each seed and epoch: neighbors of either share none.
        stream = np.random.default_rng([self._seed % (1 << 64), epoch])
        return [self._items[n] for n in stream.permutation(len(self._items))]

    def _filled(self, order: Sequence[int]) -> list[list[int]]:
        """Items in order; one that does not fit any more begins a batch."""
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

    def _share(self, batches: list[list[int]]) -> list[list[int]]:
        """Every so many-th batch, from that of the rank; the first ones again where the last round is not full."""
        missing = -len(batches) % self._replicas
        again = [batches[n % len(batches)] for n in range(missing)] if batches else []
        return (batches + again)[self._rank :: self._replicas]
