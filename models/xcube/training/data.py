"""Batches of training and validation; those of training have no end and are the same ones when a run is resumed."""

import itertools
from collections.abc import Iterator
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, get_worker_info

import sparsevox as sv
from sparsevox.data import VoxelBudgetSampler
from sparsevox.shapes import Voxels
from xcube.data.augment import AugmentedShapes
from xcube.data.loading import ShapeFolder
from xcube.training.config import TrainConfig
from xcube.training.latents import LatentDataset


class EndlessBatches(IterableDataset[list[Voxels]]):
    """The batches of a dataset, epoch after epoch, from batch `start` on.

    Each shape has the change of its epoch. There is no length, so that Lightning does not count the batches of an
    earlier run.
    """

    def __init__(self, shapes: AugmentedShapes | LatentDataset, sampler: VoxelBudgetSampler, start: int) -> None:
        self.shapes, self.sampler, self.start = shapes, sampler, start

    def batches(self) -> Iterator[tuple[int, list[int]]]:
        """Yield the epoch and the indices of the shapes of each batch."""
        skip = self.start
        for epoch in itertools.count():
            self.sampler.set_epoch(epoch)
            count = len(self.sampler)
            if skip >= count:
                skip -= count
                continue
            self.sampler.set_epoch(epoch, start=skip)
            skip = 0
            yield from ((epoch, items) for items in self.sampler)

    def __iter__(self) -> Iterator[list[Voxels]]:
        # Worker k of n loads batches k, k + n, and so on; the data loader takes from the workers in turn.
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for epoch, items in itertools.islice(self.batches(), first, None, step):
            yield [self.shapes.variant(item, epoch) for item in items]


def training_batches(
    shapes: ShapeFolder[Voxels] | AugmentedShapes | LatentDataset,
    config: TrainConfig,
    start: int,
    rank: int,
    replicas: int,
) -> DataLoader[Any]:
    """Return a loader of the batches of one rank, from batch `start` on.

    Raises:
        ValueError: If the dataset has no shapes.
    """
    sampler = VoxelBudgetSampler(
        shapes.sizes, config.voxels, seed=config.seed, max_items=config.batch_size, rank=rank, replicas=replicas
    )
    if not len(sampler):
        raise ValueError(f"data must have shapes to train on, got {shapes}")
    changed = AugmentedShapes(shapes) if isinstance(shapes, ShapeFolder) else shapes
    batches = EndlessBatches(changed, sampler, start)
    return DataLoader(batches, batch_size=None, collate_fn=sv.collate, num_workers=config.workers)


def validation_batches(shapes: ShapeFolder[Voxels], config: TrainConfig) -> DataLoader[Any]:
    """Return a loader of `val_shapes` shapes, spread evenly over the split, since neighboring names are alike."""
    count = min(config.val_shapes, len(shapes))
    chosen = torch.linspace(0, len(shapes) - 1, count, dtype=torch.float64).round().long().tolist()
    some, sizes = Subset(shapes, chosen), [shapes.sizes[item] for item in chosen]
    sampler = VoxelBudgetSampler(sizes, config.voxels, max_items=config.batch_size, shuffle=False, rank=0, replicas=1)
    return DataLoader(some, batch_sampler=sampler, collate_fn=sv.collate, num_workers=0)


class ShapeDataModule(lightning.LightningDataModule):
    """The data of a run; training batches begin where the run stands."""

    def __init__(self, train: AugmentedShapes, val: ShapeFolder[Voxels] | None, config: TrainConfig) -> None:
        super().__init__()
        self.train, self.val, self.config = train, val, config

    def train_dataloader(self) -> Any:
        trainer = self.trainer
        assert trainer is not None
        start = trainer.global_step * self.config.accumulate
        return training_batches(self.train, self.config, start, trainer.global_rank, trainer.world_size)

    def val_dataloader(self) -> Any:
        return [] if self.val is None else validation_batches(self.val, self.config)
