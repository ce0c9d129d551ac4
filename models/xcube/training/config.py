"""Settings of the optimization, the same for all networks."""

import math
from dataclasses import dataclass
from typing import Literal

from xcube.config import Config


@dataclass(frozen=True)
class TrainConfig(Config):
    """Optimizer, learning rate schedule, batches, and how often to validate and save.

    Args:
        steps: Number of optimizer steps.
        minutes: Time limit of training in minutes. The learning rate schedule follows the steps or the time, whichever
            is closer to its limit.
        batch_size: Maximum number of shapes in a batch.
        voxels: Maximum number of voxels in a batch at the trained level, or of latent voxels if latents are cached. A
            larger shape is a batch of its own.
        learning_rate: Peak learning rate of AdamW.
        warmup: Number of steps over which the learning rate rises from 0 to its peak.
        schedule: Learning rate schedule: "cosine" decays to the fraction `final` of the peak, "constant" stays at the
            peak, "official" multiplies by 0.7 every 50,000 shapes, down to a hundredth of the peak, without warm-up.
        final: Fraction of the peak learning rate at the end of the cosine schedule.
        weight_decay: Weight decay of AdamW.
        amsgrad: Whether to use the AMSGrad variant of AdamW.
        clip_norm: Maximum norm of the gradient; 0 for no limit.
        clip_value: Maximum absolute value of an entry of the gradient; 0 for no limit.
        ema: Decay of the exponential moving average (EMA) of the weights, at step n at most (1 + n) / (10 + n). The
            averaged weights are saved. 0 disables averaging.
        precision: Numerical precision: "32-true", or "bf16-mixed" for autocast to bfloat16.
        seed: Random seed of the weights, the order of shapes and the noise.
        val_every: Number of steps between validations.
        val_shapes: Number of shapes in a validation.
        save_every: Number of steps between checkpoints.
        workers: Number of processes that load data; 0 loads data in the training process.
        devices: Number of GPUs, or of training processes on the CPU, each with its own batches; gradients are averaged.
        accelerator: Device type: "auto", "cpu" or "gpu".
        accumulate: Number of batches whose gradients are accumulated for one step.

    Raises:
        ValueError: If a setting is out of range.
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
        """The learning rate as a fraction of its peak, at a step and after `elapsed` seconds of training."""
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
