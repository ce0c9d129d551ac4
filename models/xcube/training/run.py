"""A training run: the Lightning trainer, and the folder with logs, checkpoints and finally the network."""

import json
import logging
import signal
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from sparsevox import Voxels
from sparsevox.files import atomic_write
from xcube.data.augment import Augment, AugmentedShapes
from xcube.data.dataset import read_index
from xcube.data.loading import ShapeFolder
from xcube.networks.pretrained import load_weights, save_pretrained
from xcube.training.callbacks import LOGS, AtomicCheckpointIO, Progress, WeightEMA, csv_logger
from xcube.training.config import TrainConfig
from xcube.training.data import ShapeDataModule, training_batches
from xcube.training.modules import NetworkModule
from xcube.training.run_folder import CHECKPOINT, METRICS, checkpoint_step, is_finished, prepare_folder

M = TypeVar("M", bound=NetworkModule)

# Warnings of Lightning about intended behavior, or about its own code.
EXPECTED_WARNINGS = (
    ".*LeafSpec.* is deprecated",
    ".*does not have many workers",
    "Checkpoint directory .* exists and is not empty",
    "Found .* in eval mode at the start of training",
    "GPU available but not used",
    "Total length of `list` across ranks is zero",
    "Experiment logs directory .* exists",
    "The dirpath has changed from",
)


def train_module(
    module: M,
    data: Path,
    out: Path,
    *,
    level: int = -1,
    augment: Augment = Augment(),  # noqa: B008  (immutable)
    restart: bool = False,
    quiet: bool = False,
) -> M:
    """Train a network on one level of a dataset and save it to a folder.

    During training, the folder holds `last.ckpt`, from which the same call resumes after an interruption, and logs for
    TensorBoard and as CSV. At the end, `metrics.json` (steps, seconds and the metrics of the last validation) and the
    network with averaged weights (`save_pretrained`) are written. If the run is finished, its network is loaded.

    Args:
        module: The Lightning module of the network.
        data: Folder of a dataset with a split "train" and, for validation, "val".
        out: Folder of the run.
        level: Level of the dataset; 0 is the coarsest.
        augment: Random changes of the training shapes, but not of those of the validation.
        restart: Whether to train from scratch, even if the folder holds a run.
        quiet: Whether to hide the progress bar.

    Returns:
        The module with the averaged weights.

    Raises:
        FileNotFoundError: If `data` is not a dataset.
        IndexError: If there is no such level.
        KeyboardInterrupt: If training was interrupted.
        OSError: If `out` cannot be written to.
        ValueError: If `data` is damaged, has no training shapes or a box that does not allow `augment`, or `out` holds
            a damaged file, another network, or a run with other options. Only those in `run_folder.CHANGEABLE` may
            differ.
    """
    shapes = ShapeFolder[Voxels](data, "train", level=level)
    box, number = shapes.card.box, level % len(shapes.card.box.levels)
    trained_on = {"level": number, "resolution": box.levels[number], "levels": list(box.levels), "size": list(box.size)}
    if box.thin:
        trained_on["thin"] = list(box.thin)
    module.options["data"] = trained_on
    if augment.active:  # runs of earlier versions have no such option
        module.options["augment"] = augment.to_dict()
    augmented = AugmentedShapes(shapes, augment, module.config.seed)
    prepare_folder(out, restart)
    if not restart and is_finished(out, module.options):
        load_weights(module.net, out)
        return module
    start = None if restart else checkpoint_step(out, module.options)
    module.resumed = start is not None
    splits = {entry.split for entry in read_index(data, shapes.card)}
    held_out = ShapeFolder[Voxels](data, "val", level=level) if "val" in splits else None
    trainer = _fit(module, ShapeDataModule(augmented, held_out, module.config), out, start, quiet)
    if trainer.is_global_zero:
        options = {name: value for name, value in module.options.items() if name not in ("kind", "model", "data")}
        end = {"steps": trainer.global_step, "seconds": round(module.elapsed, 1)}
        module.to(trainer.strategy.root_device)
        found = module.metadata(training_batches(augmented, module.config, 0, 0, 1), len(shapes))
        with atomic_write(out / METRICS) as file:
            file.write((json.dumps(end | module.metrics, indent=2) + "\n").encode())
        metadata: dict[str, Any] = trained_on | {"attributes": sorted(shapes.card.attributes)} | end | found
        metadata["options"] = options
        save_pretrained(module.cpu().net.eval(), out, **metadata)
    trainer.strategy.barrier()  # no rank reads the folder before it is written
    return module


def _fit(module: NetworkModule, data: ShapeDataModule, out: Path, start: int | None, quiet: bool) -> lightning.Trainer:
    """Train from the checkpoint of step `start`, or from the beginning, and return the trainer."""
    handler = signal.getsignal(signal.SIGINT)
    with warnings.catch_warnings():
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        try:
            trainer = make_trainer(module.config, out, start=start or 0, quiet=quiet)
        except MisconfigurationException as error:  # no such accelerator, or fewer devices
            raise ValueError(f"train.accelerator and train.devices must fit the machine: {error}") from error
        try:
            trainer.fit(module, data, ckpt_path=None if start is None else out / CHECKPOINT, weights_only=True)
        except SystemExit as end:  # Lightning turns an interrupt into this
            if trainer.interrupted:
                raise KeyboardInterrupt from end
            raise
        finally:
            signal.signal(signal.SIGINT, handler)  # after an interrupt Lightning leaves the signal ignored
    return trainer


def make_trainer(config: TrainConfig, out: Path, *, start: int, quiet: bool) -> lightning.Trainer:
    """Return a trainer that counts steps, not epochs, from `start` on."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    checkpoints: dict[str, Any] = {"dirpath": out, "filename": "last", "enable_version_counter": False}
    callbacks: list[Any] = [
        ModelCheckpoint(**checkpoints, every_n_train_steps=config.save_every),
        ModelCheckpoint(**checkpoints, every_n_epochs=1, save_on_train_epoch_end=True),  # after the last step
    ]
    if config.ema:
        callbacks.append(WeightEMA(config.ema))
    if not quiet:
        callbacks.append(Progress(out.name))
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
        plugins=[AtomicCheckpointIO()],
        logger=[csv_logger(out, start), TensorBoardLogger(out, name="", version=LOGS, purge_step=start or None)],
        log_every_n_steps=10,
        enable_progress_bar=False,  # `Progress` is ours
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
