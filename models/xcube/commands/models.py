"""`xcube train`, `convert` and `reconstruct`. Options and help are those of the functions that they call."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

from torch.nn import Module

import xcube.pipeline.reconstruct
from xcube.checkpoints import convert as convert_checkpoint
from xcube.training import cascade, train

P = ParamSpec("P")


def _trains(function: Callable[P, Module]) -> Callable[P, int]:
    """Make a command of a function that trains a network."""

    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> int:
        function(*args, **kwargs)
        sys.stdout.write(f"network saved to {kwargs['out']}\n")
        return 0

    return command


train_vae = _trains(train.train_vae)
train_refiner = _trains(train.train_refiner)
train_denoiser = _trains(train.train_denoiser)


@functools.wraps(cascade.train_all)
def train_all(data: Path, out: Path, **options: Any) -> int:
    """Train all networks of a cascade and print where they are."""
    cascade.train_all(data, out, **options)
    sys.stdout.write(f"networks saved to {out}; generate shapes with: xcube sample --model {out}\n")
    return 0


@functools.wraps(convert_checkpoint)
def convert(checkpoint: Path, out: Path, hparams: Path | None = None) -> int:
    """Convert a checkpoint and print the size and the configuration of the network."""
    model = convert_checkpoint(checkpoint, out, hparams)
    sys.stdout.write(f"{out}: {sum(p.numel() for p in model.parameters()):,} parameters, {model.config}\n")
    return 0


@functools.wraps(xcube.pipeline.reconstruct.reconstruct_file)
def reconstruct(shape: Path, model: Path, out: Path, **options: Any) -> int:
    """Reconstruct a shape and print the metrics."""
    metrics = xcube.pipeline.reconstruct.reconstruct_file(shape, model, out, **options)
    for name, value in metrics.items():
        sys.stdout.write(f"{name:>16}  {value:,.4g}\n" if isinstance(value, float) else f"{name:>16}  {value:,}\n")
    sys.stdout.write(f"look at {out / 'reconstruction.png'}, or open {out / 'reconstruction.html'}\n")
    return 0
