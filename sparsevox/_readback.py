"""Where host and device meet: the one place where the host waits, and the way small numbers take to the device.

A grid is a data-dependent object: its number of bricks and voxels is known only once it is built. Everything that the
host has to know of a grid travels in one copy, here, so that tests can count the copies.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

calls = 0


def read_back(*values: Tensor) -> list[int]:
    """Copy integer tensors to the host in one transfer and return their elements, one after the other."""
    global calls
    calls += 1
    numbers: list[int] = torch.cat([v.reshape(-1).long() for v in values]).tolist()
    return numbers


def send(numbers: Sequence[Any], device: torch.device) -> Tensor:
    """Python ints as int64, floats as float64, on a device; `torch.tensor(..., device=...)` would wait for a GPU."""
    dtype = torch.float64 if isinstance(numbers[0], float) else torch.int64
    return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)
