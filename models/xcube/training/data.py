"""Batches without end, the same ones whenever training is taken up again."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, get_worker_info

import sparsevox as sv
from sparsevox.data import VoxelBudgetSampler
from sparsevox.shapes import Voxels
from xcube.data.loading import ShapeFolder
from xcube.training.config import TrainConfig


class Endless(IterableDataset[list[Voxels]]):
    """Batches of a data set, epoch after epoch, from the batch number `start` on.

    It has no length, so that nobody counts the batches that an earlier run has seen.
    """

    def __init__(self, shapes: ShapeFolder[Voxels], sampler: VoxelBudgetSampler, start: int) -> None:
        self.shapes, self.sampler, self.start = shapes, sampler, start

    def batches(self) -> Iterator[list[int]]:
        """Numbers of the shapes of each batch."""
        left = self.start
        for epoch in itertools.count():
            self.sampler.set_epoch(epoch)
            count = len(self.sampler)
            if left >= count:
                left -= count
                continue
            self.sampler.set_epoch(epoch, start=left)
            left = 0
            yield from self.sampler

    def __iter__(self) -> Iterator[list[Voxels]]:
        # Every worker walks through all batches and makes its share of them: the loader takes from them in turn.
        worker = get_worker_info()
        share = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for batch in itertools.islice(self.batches(), share[0], None, share[1]):
            yield [self._voxels(item) for item in batch]

    def _voxels(self, item: int) -> Voxels:
        voxels = self.shapes[item]
        assert isinstance(voxels, Voxels), "one level"
        return voxels


def training_batches(
    shapes: ShapeFolder[Voxels], config: TrainConfig, start: int, rank: int, replicas: int
) -> DataLoader[Any]:
    """Stacked batches of the given rank, from number `start` on."""
    sampler = VoxelBudgetSampler(
        shapes.sizes, config.voxels, seed=config.seed, max_items=config.batch_size, rank=rank, replicas=replicas
    )
    if not len(sampler):
        raise ValueError(f"{shapes} has no shape to train on")
    data = Endless(shapes, sampler, start)
    return DataLoader(data, batch_size=None, collate_fn=sv.collate, num_workers=config.workers)


def validation_batches(shapes: ShapeFolder[Voxels], config: TrainConfig) -> DataLoader[Any]:
    """Some shapes of a split, in batches. They are spread over it: names that belong together are neighbors."""
    count = min(config.val_shapes, len(shapes))
    chosen = torch.linspace(0, len(shapes) - 1, count, dtype=torch.float64).round().long().tolist()
    some, sizes = Subset(shapes, chosen), [shapes.sizes[item] for item in chosen]
    sampler = VoxelBudgetSampler(sizes, config.voxels, max_items=config.batch_size, shuffle=False, rank=0, replicas=1)
    return DataLoader(some, batch_sampler=sampler, collate_fn=sv.collate, num_workers=0)
