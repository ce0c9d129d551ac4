"""Runs: a folder that holds the logs, the checkpoints and, in the end, the network."""

import json
import logging
import signal
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from sparsevox import Voxels
from sparsevox.files import atomic_write
from xcube.data.dataset import read_index
from xcube.data.loading import ShapeFolder
from xcube.networks.pretrained import load_weights, save_pretrained
from xcube.training.callbacks import LOGS, Average, Progress, Report, WholeFiles, table
from xcube.training.config import TrainConfig
from xcube.training.data import training_batches, validation_batches
from xcube.training.modules import Trained
from xcube.training.run_folder import CHECKPOINT, METRICS, finished, prepare, steps_of
from xcube.training.status import LISTENER

# What Lightning warns of though it is meant to be so, or is its own affair.
EXPECTED = (
    ".*LeafSpec.* is deprecated",
    ".*does not have many workers",
    "Checkpoint directory .* exists and is not empty",
    "Found .* in eval mode at the start of training",
    "GPU available but not used",
    "Total length of `list` across ranks is zero",
    "Experiment logs directory .* exists",
    "The dirpath has changed from",
)


def train(
    module: Trained, data: Path, out: Path, *, level: int = -1, restart: bool = False, quiet: bool = False
) -> Trained:
    """Train a network on one level of a data set, and write it to a folder.

    The folder gets `last.ckpt` as training goes, from which the same call goes on if it was interrupted, logs for
    TensorBoard and as CSV, and in the end `metrics.json`, with steps, seconds and the last validation, and what
    `save_pretrained` writes: the averaged weights. A call whose run has come to its end there reads it.

    Args:
        module: The network and how to train it.
        data: A folder that `xcube data build` made, with a split "train"; "val", if it is there, is for validation.
        out: Folder of the run.
        level: Which level; 0 is the coarsest.
        restart: Whether to begin anew, whatever is in the folder.
        quiet: Whether to show no bar.

    Returns:
        The module with the averaged weights.

    Raises:
        FileNotFoundError: If `data` is no data set.
        IndexError: If there is no such level.
        KeyboardInterrupt: If it was interrupted.
        OSError: If `out` cannot be written to.
        ValueError: If `data` is damaged or has nothing to train on, or `out` holds something damaged, another network,
            or a run with other options. Steps, minutes, and how often to look and save may be others.
    """
    shapes = ShapeFolder[Voxels](data, "train", level=level)
    box, number = shapes.card.box, level % len(shapes.card.box.levels)
    place = {"level": number, "resolution": box.levels[number], "levels": list(box.levels), "size": list(box.size)}
    module.options["data"] = place
    prepare(out, restart)
    if not restart and finished(out, module.options):
        load_weights(module.net, out)
        return module
    start = None if restart else steps_of(out, module.options)
    splits = {entry.split for entry in read_index(data, shapes.card)}
    held_out = ShapeFolder[Voxels](data, "val", level=level) if "val" in splits else None
    trainer = _fitted(module, Batches(shapes, held_out, module.config), out, start, quiet)
    if trainer.is_global_zero:
        options = {name: value for name, value in module.options.items() if name not in ("kind", "model", "data")}
        end = {"steps": trainer.global_step, "seconds": round(module.elapsed, 1)}
        module.to(trainer.strategy.root_device)
        metadata = module.metadata(training_batches(shapes, module.config, 0, 0, 1), len(shapes))
        with atomic_write(out / METRICS) as file:
            file.write((json.dumps(end | module.metrics, indent=2) + "\n").encode())
        metadata = place | {"attributes": sorted(shapes.card.attributes)} | end | metadata | {"options": options}
        save_pretrained(module.cpu().net.eval(), out, **metadata)
    trainer.strategy.barrier()  # nobody reads the folder before it is written
    return module


def _fitted(module: Trained, batches: "Batches", out: Path, start: int | None, quiet: bool) -> lightning.Trainer:
    """The trainer that has trained the module, from the checkpoint of a step on or from the beginning."""
    handler = signal.getsignal(signal.SIGINT)
    with warnings.catch_warnings():
        for message in EXPECTED:
            warnings.filterwarnings("ignore", message)
        try:
            trainer = trainer_for(module.config, out, start=start or 0, quiet=quiet)
        except MisconfigurationException as error:  # no such accelerator, or not as many
            raise ValueError(f"train.accelerator and train.devices must fit the machine: {error}") from error
        try:
            trainer.fit(module, batches, ckpt_path=None if start is None else out / CHECKPOINT, weights_only=True)
        except SystemExit as end:  # what Lightning makes of an interrupt
            if trainer.interrupted:
                raise KeyboardInterrupt from end
            raise
        finally:
            signal.signal(signal.SIGINT, handler)  # after an interrupt Lightning leaves it ignored
    return trainer


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


def trainer_for(config: TrainConfig, out: Path, *, start: int, quiet: bool) -> lightning.Trainer:
    """A trainer that counts steps, not epochs, from `start` on."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    checkpoints: dict[str, Any] = {"dirpath": out, "filename": "last", "enable_version_counter": False}
    callbacks: list[Any] = [
        ModelCheckpoint(**checkpoints, every_n_train_steps=config.save_every),
        ModelCheckpoint(**checkpoints, every_n_epochs=1, save_on_train_epoch_end=True),  # after the last step
    ]
    if config.ema:
        callbacks.append(Average(config.ema))
    listener = LISTENER.get()
    if listener is not None:
        callbacks.append(Report(listener))
    elif not quiet:
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
        plugins=[WholeFiles()],
        logger=[table(out, start), TensorBoardLogger(out, name="", version=LOGS, purge_step=start or None)],
        log_every_n_steps=10,
        enable_progress_bar=not quiet and listener is None,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
