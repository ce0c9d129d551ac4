"""Helpers of readers and writers: paths, .npy and .npz files, arrays to tensors. Nothing is ever unpickled."""

import zipfile
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsevox.files import atomic_write

FilePath = str | PathLike[str]
Array = NDArray[Any]

NUMBERS = "biufc"  # kinds of NumPy dtypes: bool, signed, unsigned, floating-point, complex

# Dtypes that torch has no arithmetic for, and the smallest signed ones that hold their values.
_WIDER = {"u2": np.int32, "u4": np.int64, "u8": np.int64}


def suffix_of(path: FilePath, *expected: str) -> str:
    """Return the suffix of the file name in lower case. Raise ValueError unless it is one of those expected."""
    suffix = Path(fspath(path)).suffix.lower()
    if suffix not in expected:
        raise ValueError(f"path must end in {' or '.join(expected)}, got {fspath(path)!r}")
    return suffix


def existing(path: FilePath, *expected: str) -> Path:
    """Check that a path names an existing file that is not empty and has one of the expected suffixes.

    Raises:
        FileNotFoundError: If there is no such file.
        IsADirectoryError: If it is a folder.
        ValueError: If the suffix is not one of those expected, or the file is empty.
    """
    suffix_of(path, *expected)
    found = Path(path)
    if found.is_dir():
        raise IsADirectoryError(f"{found}: expected a file, got a folder")
    if not found.exists():
        raise FileNotFoundError(f"{found}: there is no such file")
    if not found.stat().st_size:
        raise ValueError(f"{found}: the file is empty")
    return found


def read_numpy(path: Path) -> dict[str, Array]:
    """Read the arrays of a .npz file by name, or the array of a .npy file under the name "".

    Raises:
        ValueError: If the file is damaged, or holds Python objects.
    """
    try:
        with path.open("rb") as file:  # np.load(path) would not close a damaged file
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"": loaded}
            with loaded:
                members = {name: loaded[name] for name in loaded.files}
    except Exception as error:  # damaged archives raise exceptions of many types
        raise ValueError(f"{path}: NumPy cannot read it without unpickling: {error!r}") from error
    return {name: value for name, value in members.items() if isinstance(value, np.ndarray)}


def write_npz(path: FilePath, arrays: Mapping[str, Array], compress: bool = True) -> None:
    """Write arrays by name, atomically. Equal arrays give equal bytes.

    Unlike `numpy.savez`, it accepts every name, also those of the arguments of `savez`.

    Raises:
        ValueError: If a name is empty, is not printable or contains a slash.
    """
    for name in arrays:
        if not name or not name.isprintable() or set(name) & set("/\\"):
            raise ValueError(f"attribute names must be printable and without slashes, got {name!r}")
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", method) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def to_array(value: Tensor) -> Array:
    """Convert a tensor to an array. bfloat16, which NumPy lacks, becomes float32."""
    value = value.detach().cpu()
    array: Array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return array


def to_tensor(name: str, array: Array) -> Tensor:
    """Convert an array of numbers to a tensor. uint16, uint32 and uint64 become signed integers that hold the values.

    Raises:
        ValueError: If the dtype is not numeric or is longer than torch supports, or an integer exceeds int64.
    """
    if array.dtype.kind not in NUMBERS or array.dtype.char in "gG":
        raise ValueError(f"{name} must hold numbers of a dtype that torch supports, got {array.dtype}")
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if native.dtype.str[1:] in _WIDER:
        if native.dtype.itemsize == 8 and native.size and native.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{name} must fit in int64, got {native.max()}")
        native = native.astype(_WIDER[native.dtype.str[1:]])
    return torch.from_numpy(np.array(native, order="C"))


def rowwise(arrays: Mapping[str, Array], rows: int) -> dict[str, Tensor]:
    """Select the numeric arrays of shape [rows] or [rows, C] and convert them to tensors."""
    fits = {
        name: array
        for name, array in arrays.items()
        if array.ndim in (1, 2) and len(array) == rows and array.dtype.kind in NUMBERS
    }
    return {name: to_tensor(name, array) for name, array in fits.items()}
