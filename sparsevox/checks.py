"""Checks of arguments, for this library and projects built on it.

Every function takes the name of an argument and its value, and returns the value in a known form. Every message gives
the argument, the expectation and the given value. A wrong type or dtype raises `TypeError`, others `ValueError`.
"""

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import SupportsIndex, TypeGuard

import numpy as np
import torch
from torch import Tensor

from sparsevox import morton
from sparsevox.conv_geometry import MAX_KERNEL_SIZE, Axes, Geometry, default_padding

Triple = tuple[float, float, float]

INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
MAX_STEP = 1 << morton.AXIS_BITS  # largest factor, stride, dilation or padding: the range of coordinates


# Tensors


def tensor(name: str, value: object) -> Tensor:
    """Return `value`, which must be a tensor.

    Raises:
        TypeError: If `value` is anything else.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    return value


def shape(name: str, value: object, *expected: int | str) -> Tensor:
    """Return `value`, which must be a tensor of the expected shape; a name stands for any size.

    `shape("feats", feats, "N", 3)` accepts a tensor [N, 3].

    Raises:
        TypeError: If `value` is not a tensor.
        ValueError: If it has another shape.
    """
    checked = tensor(name, value)
    sizes = checked.shape
    fits = len(sizes) == len(expected)
    for size, wanted in zip(sizes, expected, strict=False):
        fits = fits and (isinstance(wanted, str) or size == wanted)
    if not fits:
        raise ValueError(f"{name} must have shape [{', '.join(map(str, expected))}], got {list(sizes)}")
    return checked


def integers(name: str, value: Tensor) -> Tensor:
    """Return `value`, a tensor that must hold integers; dtypes shorter than 32 bits become int32.

    Raises:
        TypeError: If the tensor has another dtype.
    """
    if value.dtype not in INTEGERS:
        raise TypeError(f"{name} must hold integers (int32 or int64), got {value.dtype}")
    return value if value.dtype in (torch.int32, torch.int64) else value.int()


def floats(name: str, value: Tensor) -> Tensor:
    """Return `value`, a tensor that must be floating-point.

    Raises:
        TypeError: If the tensor has another dtype.
    """
    if not value.is_floating_point():
        raise TypeError(f"{name} must hold floating-point numbers, got {value.dtype}")
    return value


def booleans(name: str, value: Tensor) -> Tensor:
    """Return `value`, a tensor that must be bool.

    Raises:
        TypeError: If the tensor has another dtype.
    """
    if value.dtype != torch.bool:
        raise TypeError(f"{name} must be a bool tensor, got {value.dtype}")
    return value


def same_device(name: str, value: Tensor, other_name: str, device: torch.device) -> None:
    """Check that a tensor is on the device of another argument.

    Raises:
        ValueError: If the devices differ.
    """
    if value.device != device:
        raise ValueError(f"{name} must be on the device of {other_name}, {device}, got {value.device}")


def are_rows(value: object, count: int, device: torch.device) -> TypeGuard[Tensor]:
    """Test whether `value` is a floating-point tensor [count, C] on a device. This takes less time than `rows`."""
    return (
        isinstance(value, Tensor)
        and value.ndim == 2
        and value.is_floating_point()
        and value.shape[0] == count
        and value.device == device
    )


def rows(name: str, value: object, count: int, owner: str, device: torch.device, size: str = "N") -> Tensor:
    """Return `value`, which must be a floating-point tensor [count, C] on a device.

    Args:
        name: Name of the argument.
        value: Value of the argument.
        count: Expected number of rows.
        owner: Name of the thing that has one row each, for the message: "voxel of the grid" or "point".
        device: Device of the grid.
        size: Symbol of the number of rows, for the message.

    Raises:
        TypeError: If `value` is not a floating-point tensor.
        ValueError: If it is not [count, C], or on another device.
    """
    if are_rows(value, count, device):
        return value
    checked = floats(name, shape(name, value, size, "C"))
    if checked.shape[0] != count:
        raise ValueError(f"{name} must have {count} rows, one per {owner}, got {list(checked.shape)}")
    same_device(name, checked, "the grid", device)
    return checked


def last_axis(name: str, value: object) -> Tensor:
    """Return `value`, which must be a tensor of triples [..., 3].

    Raises:
        TypeError: If `value` is not a tensor.
        ValueError: If its last axis has another size.
    """
    checked = tensor(name, value)
    if checked.ndim == 0 or checked.shape[-1] != 3:
        raise ValueError(f"{name} must have shape [..., 3], got {list(checked.shape)}")
    return checked


# Numbers


def integer(name: str, value: object) -> int:
    """Return a Python or NumPy integer as an int. A bool is not an integer.

    Raises:
        TypeError: If `value` is anything else.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, SupportsIndex) and not isinstance(value, bool | Tensor | np.ndarray):
        return operator.index(value)
    raise TypeError(f"{name} must be an int, got {value!r}")


def batch_size(value: object) -> int:
    """Return a batch size, which must lie in [0, 1024].

    Raises:
        TypeError: If `value` is not an int.
        ValueError: If it is out of range.
    """
    size = integer("batch_size", value)
    if not 0 <= size <= morton.MAX_BATCH:
        raise ValueError(f"batch_size must be between 0 and {morton.MAX_BATCH}, got {size}")
    return size


def _triple(name: str, value: object) -> list[object]:
    parts = value.tolist() if isinstance(value, Tensor | np.ndarray) else value
    if not isinstance(parts, Sequence) or isinstance(parts, str | bytes):
        return [parts] * 3
    if len(parts) != 3:
        raise ValueError(f"{name} must be one number or three, got {value!r}")
    return list(parts)


def int_triple(name: str, value: object) -> list[int]:
    """Return three ints, one per axis; a single int stands for all three.

    Raises:
        TypeError: If `value` holds anything but ints.
        ValueError: If it is neither one number nor three.
    """
    return [integer(name, part) for part in _triple(name, value)]


def float_triple(name: str, value: object) -> Triple:
    """Return three finite floats, one per axis; a single number stands for all three.

    Raises:
        TypeError: If `value` holds anything but real numbers.
        ValueError: If it is neither one number nor three, or a number is not finite.
    """
    if type(value) is float and -math.inf < value < math.inf:
        return value, value, value
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


def _between(name: str, value: object, lowest: int, highest: int) -> Axes:
    x, y, z = int_triple(name, value)
    if min(x, y, z) < lowest or max(x, y, z) > highest:
        raise ValueError(f"{name} must be between {lowest} and {highest}, got {value!r}")
    return x, y, z


def factor(name: str, value: object) -> list[int]:
    """Return three factors between 1 and 2^18; a single int stands for all three.

    Raises:
        TypeError: If `value` holds anything but ints.
        ValueError: If it is neither one int nor three, or out of range.
    """
    return list(_between(name, value, 1, MAX_STEP))


def geometry(kernel_size: object, stride: object = 1, dilation: object = 1, padding: object = None) -> Geometry:
    """Return the geometry of a convolution; `padding=None` means `floor((kernel_size - 1) / 2) * dilation`.

    Raises:
        TypeError: If an argument holds anything but ints.
        ValueError: If an argument is neither one int nor three, or out of range: a kernel has 1 to 7 taps per axis.
    """
    size = _between("kernel_size", kernel_size, 1, MAX_KERNEL_SIZE)
    steps = _between("dilation", dilation, 1, MAX_STEP)
    around = default_padding(size, steps) if padding is None else _between("padding", padding, 0, MAX_STEP)
    return Geometry(size, _between("stride", stride, 1, MAX_STEP), steps, around)


def box(lower: object, upper: object) -> tuple[list[int], list[int]]:
    """Return two corners with lower <= upper on each axis.

    Raises:
        TypeError: If a corner holds anything but ints.
        ValueError: If a corner is neither one int nor three, or `lower` exceeds `upper`.
    """
    low, up = int_triple("lower", lower), int_triple("upper", upper)
    if any(a > b for a, b in zip(low, up, strict=True)):
        raise ValueError(f"lower must not exceed upper, got lower={tuple(low)} and upper={tuple(up)}")
    return low, up


def voxel_size(value: object) -> Triple:
    """Return three positive edge lengths; a single number stands for all three.

    Raises:
        TypeError: If `value` holds anything but real numbers.
        ValueError: If it is neither one number nor three, or a number is not positive and finite.
    """
    edges = float_triple("voxel_size", value)
    if min(edges) <= 0:
        raise ValueError(f"voxel_size must be positive, got {value!r}")
    return edges


def transform(voxel_size_: object, origin: object) -> tuple[Triple, Triple]:
    """Return edge lengths of a voxel and center of voxel (0, 0, 0). Raises as `voxel_size` and `float_triple` do."""
    return voxel_size(voxel_size_), float_triple("origin", origin)
