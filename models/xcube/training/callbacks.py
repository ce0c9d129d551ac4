"""What a run does beside its steps: an average of the weights, a bar, and files that outlive a kill."""

import csv
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, TQDMProgressBar, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from sparsevox.files import atomic_write
from xcube.training.status import Status

LOGS = "logs"
TABLE = "metrics.csv"
PERIOD = 0.5  # seconds between two reports


class Report(Callback):
    """Tells a listener how far training is."""

    def __init__(self, tell: Callable[[Status], None]) -> None:
        self.tell, self.told, self.start = tell, 0.0, 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Steps of an earlier run say nothing about the speed of this one."""
        self.start = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Now and then."""
        now, config = time.monotonic(), pl_module.config
        if now - self.told < PERIOD and trainer.global_step < config.steps:
            return
        self.told = now
        taken = (pl_module.elapsed - pl_module.earlier) / max(trainer.global_step - self.start, 1)
        left = taken * (config.steps - trainer.global_step)
        if config.minutes is not None:
            left = min(left, max(60 * config.minutes - pl_module.elapsed, 0.0))
        self.tell(Status("train", trainer.global_step, config.steps, left, float(outputs["loss"])))


class Average(WeightAveraging):
    """Exponential moving average of the weights, short at first: the decay of step n is (1 + n) / (10 + n) at most."""

    def __init__(self, decay: float) -> None:
        def update(averages: Sequence[Tensor], weights: Sequence[Tensor], number: Tensor | int) -> None:
            n = int(number)
            rate = 1 - min(decay, (1 + n) / (10 + n))
            torch._foreach_lerp_(list(averages), list(weights), rate)

        super().__init__(multi_avg_fn=update)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """The average lies where the module will be, which moves there only later."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Too early: a run that is taken up after its last step does not come here."""

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """The module gets the average."""
        super().on_train_end(trainer, pl_module)


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


class WholeFiles(TorchCheckpointIO):
    """Checkpoints that are there whole or not at all, also where Lightning's own would be copied from another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write one."""
        with atomic_write(path) as file:
            torch.save(checkpoint, file)


def table(out: Path, start: int) -> CSVLogger:
    """A logger that goes on with `logs/metrics.csv`: rows of an earlier run before step `start` stay."""
    file, rows = out / LOGS / TABLE, []
    if start and file.is_file():
        with file.open(newline="") as text:
            rows = [row for row in csv.DictReader(text) if row["step"].isdigit() and int(row["step"]) < start]
    logger = CSVLogger(out, name="", version=LOGS)
    # On other ranks than the first there is no writer, but one that does nothing.
    if rows:
        writer = logger.experiment
        writer.metrics = [{name: value for name, value in row.items() if value} for row in rows]
        writer.save()
    return logger
