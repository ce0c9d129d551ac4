"""Checks of arguments. Every message names the argument, what was expected and what came."""

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import SupportsIndex

import numpy as np
import torch
from torch import Tensor

from sparsevox import morton
from sparsevox.geometry import MAX_KERNEL_SIZE, Geometry, default_padding

INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


def tensor(name: str, value: object) -> Tensor:
    """`value`, if it is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    return value


def shape(name: str, value: object, *expected: int | str) -> Tensor:
    """A tensor of the expected shape, in which names stand for any size."""
    checked = tensor(name, value)
    sizes = checked.shape
    fits = len(sizes) == len(expected) and all(
        isinstance(e, str) or s == e for s, e in zip(sizes, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, expected))
        raise ValueError(f"{name} must have shape [{wanted}], got {list(sizes)}")
    return checked


def integers(name: str, value: Tensor) -> Tensor:
    """A tensor of integers, as int32 or int64."""
    if value.dtype not in INTEGERS:
        raise TypeError(f"{name} must hold integers (int32 or int64), got {value.dtype}")
    return value if value.dtype in (torch.int32, torch.int64) else value.int()


def floats(name: str, value: Tensor) -> Tensor:
    """A tensor of floating-point numbers."""
    if not value.is_floating_point():
        raise TypeError(f"{name} must hold floating-point numbers, got {value.dtype}")
    return value


def booleans(name: str, value: Tensor) -> Tensor:
    """A tensor of booleans."""
    if value.dtype != torch.bool:
        raise TypeError(f"{name} must be a bool tensor, got {value.dtype}")
    return value


def same_device(name: str, value: Tensor, other_name: str, device: torch.device) -> None:
    """The tensor lies where the other argument does."""
    if value.device != device:
        raise ValueError(f"{name} must be on the device of {other_name}, {device}, got {value.device}")


def integer(name: str, value: object) -> int:
    """An int, of Python or NumPy; bool is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, SupportsIndex) and not isinstance(value, bool | Tensor | np.ndarray):
        return operator.index(value)
    raise TypeError(f"{name} must be an int, got {value!r}")


def _triple(name: str, value: object) -> list[object]:
    parts = value.tolist() if isinstance(value, Tensor | np.ndarray) else value
    if not isinstance(parts, Sequence) or isinstance(parts, str | bytes):
        return [parts] * 3
    if len(parts) != 3:
        raise ValueError(f"{name} must be one number or three, got {value!r}")
    return list(parts)


def int_triple(name: str, value: object) -> list[int]:
    """Three ints, one an axis; one int stands for all."""
    return [integer(name, part) for part in _triple(name, value)]


def factor(name: str, value: object) -> list[int]:
    """Three factors of at least 1, not larger than the range of coordinates."""
    factors = int_triple(name, value)
    if min(factors) < 1 or max(factors) > 1 << morton.AXIS_BITS:
        raise ValueError(f"{name} must be between 1 and {1 << morton.AXIS_BITS}, got {value!r}")
    return factors


def geometry(kernel_size: object, stride: object, dilation: object, padding: object) -> Geometry:
    """The geometry of a convolution; `padding=None` is `floor((kernel_size - 1) / 2) * dilation`."""
    size = _between("kernel_size", kernel_size, 1, MAX_KERNEL_SIZE)
    steps = _between("dilation", dilation, 1, 1 << morton.AXIS_BITS)
    around = default_padding(size, steps) if padding is None else _between("padding", padding, 0, 1 << morton.AXIS_BITS)
    return Geometry(size, _between("stride", stride, 1, 1 << morton.AXIS_BITS), steps, around)


def _between(name: str, value: object, lowest: int, highest: int) -> tuple[int, int, int]:
    x, y, z = int_triple(name, value)
    if min(x, y, z) < lowest or max(x, y, z) > highest:
        raise ValueError(f"{name} must be between {lowest} and {highest}, got {value!r}")
    return x, y, z


def box(lower: object, upper: object) -> tuple[list[int], list[int]]:
    """Two corners with lower <= upper."""
    low, up = int_triple("lower", lower), int_triple("upper", upper)
    if any(a > b for a, b in zip(low, up, strict=True)):
        raise ValueError(f"lower must not exceed upper, got lower={tuple(low)} and upper={tuple(up)}")
    return low, up


def float_triple(name: str, value: object) -> tuple[float, float, float]:
    """Three finite numbers; one number stands for all."""
    numbers = []
    for part in _triple(name, value):
        if isinstance(part, bool) or not isinstance(part, Real):
            raise TypeError(f"{name} must hold numbers, got {value!r}")
        try:
            number = float(part)
        except OverflowError:  # an int of more than 308 digits
            number = math.inf
        if not -math.inf < number < math.inf:  # torch.compile does not trace math.isfinite
            raise ValueError(f"{name} must be finite, got {value!r}")
        numbers.append(number)
    return numbers[0], numbers[1], numbers[2]


def voxel_size(value: object) -> tuple[float, float, float]:
    """Three positive edge lengths."""
    edges = float_triple("voxel_size", value)
    if min(edges) <= 0:
        raise ValueError(f"voxel_size must be positive, got {value!r}")
    return edges


def transform(voxel_size_: object, origin: object) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Edges of a voxel and the center of voxel (0, 0, 0)."""
    return voxel_size(voxel_size_), float_triple("origin", origin)


def last_axis(name: str, value: object) -> Tensor:
    """A tensor of triples [..., 3]."""
    checked = tensor(name, value)
    if checked.ndim == 0 or checked.shape[-1] != 3:
        raise ValueError(f"{name} must have shape [..., 3], got {list(checked.shape)}")
    return checked


def batch_size(value: object) -> int:
    """A number of grids."""
    size = integer("batch_size", value)
    if not 0 <= size <= morton.MAX_BATCH:
        raise ValueError(f"batch_size must be between 0 and {morton.MAX_BATCH}, got {size}")
    return size
