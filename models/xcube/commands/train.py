"""`xcube train`. Options and help are those of the functions of `xcube.training`."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec

from torch.nn import Module

from xcube.training import cascade, train
from xcube.training import train_finetune as finetune

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
train_finetune = _trains(finetune.train_finetune)


@functools.wraps(cascade.train_all)
def train_all(data: Path, out: Path, **options: Any) -> int:
    """Train all networks of a cascade and print where they are."""
    cascade.train_all(data, out, **options)
    sys.stdout.write(f"networks saved to {out}; generate shapes with: xcube sample --model {out}\n")
    return 0
