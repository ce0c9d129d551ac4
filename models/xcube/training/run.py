"""Runs: a folder that holds the logs, the checkpoints and, in the end, the network."""

import logging
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor

from sparsevox import Voxels
from xcube.data.folder import read_card, read_index
from xcube.data.loading import ShapeFolder
from xcube.pretrained import save_pretrained
from xcube.training.config import TrainConfig
from xcube.training.data import training_batches, validation_batches
from xcube.training.modules import Trained

CHECKPOINT = "last.ckpt"

# What Lightning warns of though it is meant to be so, or is its own affair.
EXPECTED = (
    ".*LeafSpec.* is deprecated",
    ".*does not have many workers",
    "Checkpoint directory .* exists and is not empty",
    "Found .* in eval mode at the start of training",
    "GPU available but not used",
    "Total length of `list` across ranks is zero",
    "Experiment logs directory .* exists",
)


class Average(WeightAveraging):
    """Exponential moving average of the weights, short at first: the decay of step n is (1 + n) / (10 + n) at most."""

    def __init__(self, decay: float) -> None:
        def update(averages: Sequence[Tensor], weights: Sequence[Tensor], number: Tensor | int) -> None:
            n = int(number)
            rate = 1 - min(decay, (1 + n) / (10 + n))
            torch._foreach_lerp_(list(averages), list(weights), rate)

        super().__init__(multi_avg_fn=update)


class Progress(TQDMProgressBar):
    """A bar of all steps, with the time left, the loss and the voxels of a second."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=1)
        self.voxels = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin where an earlier run has stopped."""
        super().on_train_start(trainer, pl_module)
        self.start = trainer.global_step

    def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
        """All steps are one epoch."""
        self.train_progress_bar.reset(trainer.max_steps)
        self.train_progress_bar.initial = self.start
        self.train_progress_bar.set_description("train")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count."""
        self.voxels += batch.num_voxels
        bar = self.train_progress_bar
        bar.n = trainer.global_step
        rate = self.voxels / max(pl_module.elapsed - pl_module.earlier, 1e-9)
        bar.set_postfix({"loss": f"{float(outputs['loss']):.3f}", "voxels/s": f"{rate:,.0f}"})


def train(
    module: Trained,
    data: Path,
    out: Path,
    *,
    level: int = -1,
    resume: bool = True,
    progress: bool = True,
    **facts: Any,
) -> Trained:
    """Train a network on one level of a data set, and write it to a folder.

    The folder gets `last.ckpt` as training goes, from which the same call goes on if it was interrupted, logs for
    TensorBoard and as CSV, and in the end what `save_pretrained` writes: the averaged weights.

    Args:
        module: The network and how to train it.
        data: A folder that `xcube data build` made, with a split "train"; "val", if it is there, is for validation.
        out: Folder of the run.
        level: Which level; 0 is the coarsest.
        resume: Whether to go on from `last.ckpt` if it is there.
        progress: Whether to show a bar.
        facts: What to write beside the network.

    Returns:
        The module with the averaged weights.
    """
    config = module.config
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / CHECKPOINT
    before = checkpoint if resume and checkpoint.is_file() else None
    splits = {entry.split for entry in read_index(data, read_card(data))}
    held_out = ShapeFolder[Voxels](data, "val", level=level) if "val" in splits else None
    batches = Batches(ShapeFolder(data, "train", level=level), held_out, config)
    with warnings.catch_warnings():
        for message in EXPECTED:
            warnings.filterwarnings("ignore", message)
        trainer = trainer_for(config, out, progress=progress)
        trainer.fit(module, batches, ckpt_path=before, weights_only=False if before else None)
    if trainer.is_global_zero:
        save_pretrained(module.net.eval(), out, steps=trainer.global_step, **facts)
    return module


class Batches(lightning.LightningDataModule):
    """Data of a run: batches from where training stands."""

    def __init__(self, train: ShapeFolder[Voxels], val: ShapeFolder[Voxels] | None, config: TrainConfig) -> None:
        super().__init__()
        self.train, self.val, self.config = train, val, config

    def train_dataloader(self) -> Any:
        """Of this rank."""
        trainer = self.trainer
        assert trainer is not None
        start = trainer.global_step * self.config.accumulate
        return training_batches(self.train, self.config, start, trainer.global_rank, trainer.world_size)

    def val_dataloader(self) -> Any:
        """The same on all ranks."""
        return [] if self.val is None else validation_batches(self.val, self.config)


def trainer_for(config: TrainConfig, out: Path, *, progress: bool) -> lightning.Trainer:
    """A trainer that counts steps, not epochs."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    callbacks: list[Any] = [
        ModelCheckpoint(out, filename="last", every_n_train_steps=config.save_every, enable_version_counter=False)
    ]
    if config.ema:
        callbacks.append(Average(config.ema))
    if progress:
        callbacks.append(Progress())
    return lightning.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        strategy="ddp" if config.devices > 1 else "auto",
        precision=config.precision,
        max_steps=config.steps,
        max_time=None if config.minutes is None else timedelta(minutes=config.minutes),
        accumulate_grad_batches=config.accumulate,
        val_check_interval=config.val_every * config.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        logger=[CSVLogger(out, name="", version="logs"), TensorBoardLogger(out, name="", version="logs")],
        log_every_n_steps=10,
        enable_progress_bar=progress,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
