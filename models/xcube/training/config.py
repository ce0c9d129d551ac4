"""How to train: what all networks have in common."""

import math
from dataclasses import dataclass
from typing import Literal

from xcube.config import Config


@dataclass(frozen=True)
class TrainConfig(Config):
    """Optimization, its schedule, and how often to look.

    Args:
        steps: Optimizer steps.
        minutes: Time after which training ends all the same; the learning rate follows whatever is nearer its end.
        batch_size: Shapes of a batch, at most.
        voxels: Voxels of a batch, at most: the finest level of its shapes. A larger shape is a batch of its own.
        learning_rate: Of AdamW.
        warmup: Steps in which it rises from 0.
        schedule: "cosine": falls to `final` of itself; "constant"; "official": falls by 0.7 every 50,000 shapes, to a
            hundredth at least.
        final: Share of the learning rate that is left at the end.
        weight_decay: Of AdamW.
        amsgrad: Of AdamW.
        clip_norm: Largest norm of the gradient; 0 for no limit.
        clip_value: Largest entry of the gradient; 0 for no limit.
        ema: Decay of the average of weights, which is what is kept; at first it is (1 + n) / (10 + n). 0 for none.
        precision: "32-true", or "bf16-mixed": autocast.
        seed: Of weights, order and noise.
        val_every: Steps between validations.
        val_shapes: Shapes of a validation.
        save_every: Steps between checkpoints.
        workers: Processes that load data.
        devices: Processes that train, or GPUs. Each has batches of its own; the gradient is the mean of theirs.
        accelerator: "auto", "cpu" or "gpu".
        accumulate: Batches that make one step.
    """

    steps: int = 1000
    minutes: float | None = None
    batch_size: int = 8
    voxels: int = 1_000_000
    learning_rate: float = 1e-3
    warmup: int = 50
    schedule: Literal["cosine", "constant", "official"] = "cosine"
    final: float = 0.05
    weight_decay: float = 0.0
    amsgrad: bool = False
    clip_norm: float = 1.0
    clip_value: float = 0.0
    ema: float = 0.995
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    seed: int = 0
    val_every: int = 200
    val_shapes: int = 32
    save_every: int = 200
    workers: int = 0
    devices: int = 1
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    accumulate: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "voxels", "val_every", "val_shapes", "save_every", "devices", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warmup", "final", "weight_decay", "clip_norm", "clip_value", "workers", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        choices = {
            "schedule": ("cosine", "constant", "official"),
            "precision": ("32-true", "bf16-mixed"),
            "accelerator": ("auto", "cpu", "gpu"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not self.learning_rate > 0 or not 0 <= self.ema < 1:
            raise ValueError(f"learning_rate must be positive and ema in [0, 1), got {self.learning_rate}, {self.ema}")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes must be positive, got {self.minutes}")

    def rate(self, step: int, elapsed: float) -> float:
        """Share of the learning rate at a step, after so many seconds of training."""
        progress = step / self.steps
        if self.minutes is not None:
            progress = max(progress, elapsed / (60 * self.minutes))
        rising = min(1.0, (step + 1) / (self.warmup + 1))
        if self.schedule == "constant":
            return rising
        if self.schedule == "official":
            shapes = step * self.batch_size * self.accumulate * self.devices
            return max(0.7 ** (shapes // 50_000), 0.01)
        return rising * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))
