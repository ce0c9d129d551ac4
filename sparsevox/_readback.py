"""Transfers of small numbers between host and device. This is the one place where the host waits for the device.

A grid is a data-dependent object: its numbers of bricks and voxels are known only once it is built. The host reads
them back in one copy, here, so that tests can count the copies.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

calls = 0


def read_back(*values: Tensor) -> list[int]:
    """Copy integer tensors to the host in one transfer and return their elements as one list."""
    global calls
    calls += 1
    numbers: list[int] = torch.cat([v.reshape(-1).long() for v in values]).tolist()
    return numbers


def send(numbers: Sequence[Any], device: torch.device) -> Tensor:
    """Copy ints as int64, or floats as float64, to a device. `torch.tensor(..., device=...)` would wait for it."""
    dtype = torch.float64 if isinstance(numbers[0], float) else torch.int64
    return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)
