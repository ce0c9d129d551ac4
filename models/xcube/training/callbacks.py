"""Callbacks of the trainer: an average of the weights, a progress bar, and files that survive a kill."""

import csv
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from tqdm import tqdm

from sparsevox.files import atomic_write

LOGS = "logs"
TABLE = "metrics.csv"
PERIOD = 0.25  # seconds between updates of the progress bar: reading the loss waits for the device

T = TypeVar("T")


class WeightEMA(WeightAveraging):
    """Exponential moving average of the weights; the decay of step n is at most (1 + n) / (10 + n)."""

    def __init__(self, decay: float) -> None:
        def update(averages: Sequence[Tensor], weights: Sequence[Tensor], number: Tensor | int) -> None:
            n = int(number)
            rate = 1 - min(decay, (1 + n) / (10 + n))
            torch._foreach_lerp_(list(averages), list(weights), rate)

        super().__init__(multi_avg_fn=update)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._device = trainer.strategy.root_device  # the module moves there only later
        super().setup(trainer, pl_module, stage)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        pass  # too early: a run that is resumed after its last step does not get here

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_end(trainer, pl_module)  # copies the average into the module


class Progress(Callback):
    """Shows a progress bar of all steps in a terminal, with the loss, the voxels per second and the time left.

    line: Line of the terminal, counted from the cursor; `train_all` gives each of its processes another one.
    """

    line: ClassVar[int] = 0

    def __init__(self, title: str) -> None:
        self.title = title

    def iterate(self, items: Sequence[T], title: str) -> Iterator[T]:
        """Iterate over items with a bar of their own."""
        yield from self._bar(items, desc=f"{self.title}, {title}")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.voxels, self.shown = 0, 0.0
        self.start = trainer.global_step  # steps of an earlier run do not count for the speed
        form = "{desc}: {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{postfix}"
        hidden = None if trainer.is_global_zero else True  # None hides it where there is no terminal
        self.bar = self._bar(None, desc=self.title, total=pl_module.config.steps, bar_format=form, disable=hidden)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.voxels += batch.num_voxels
        if self.bar.disable or time.monotonic() - self.shown < PERIOD:
            return
        self.shown = time.monotonic()
        seconds = pl_module.elapsed - pl_module.earlier
        rate = self.voxels / max(seconds, 1e-9)
        left = tqdm.format_interval(self._seconds_left(trainer, pl_module, seconds))
        self.bar.set_postfix_str(f"loss {float(outputs['loss']):.3f}, {rate:,.0f} voxels/s, {left} left", refresh=False)
        self.bar.n = trainer.global_step
        self.bar.refresh()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.bar.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if hasattr(self, "bar"):
            self.bar.close()

    def _seconds_left(self, trainer: Any, pl_module: Any, seconds: float) -> float:
        config, step = pl_module.config, trainer.global_step
        left = seconds / max(step - self.start, 1) * (config.steps - step)
        return left if config.minutes is None else min(left, max(60 * config.minutes - pl_module.elapsed, 0.0))

    def _bar(self, items: Any, **options: Any) -> Any:
        return tqdm(items, position=self.line, leave=False, **{"disable": None} | options)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint completely or not at all, also where Lightning would copy it from another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with atomic_write(path) as file:
            torch.save(checkpoint, file)


def csv_logger(out: Path, start: int) -> CSVLogger:
    """Return a logger that appends to `logs/metrics.csv`; rows of an earlier run before step `start` stay."""
    file, rows = out / LOGS / TABLE, []
    if start and file.is_file():
        with file.open(newline="") as text:
            rows = [row for row in csv.DictReader(text) if row["step"].isdigit() and int(row["step"]) < start]
    logger = CSVLogger(out, name="", version=LOGS)
    # On ranks other than the first the writer does nothing.
    if rows:
        writer = logger.experiment
        writer.metrics = [{name: value for name, value in row.items() if value} for row in rows]
        writer.save()
    return logger
