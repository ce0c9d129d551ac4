"""What readers and writers share: paths, NumPy's files, and arrays as tensors. Nothing is ever unpickled."""

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

NUMBERS = "biufc"  # kinds of NumPy's types: bool, signed, unsigned, floating-point, complex

# Types that torch has no arithmetic for, and the smallest that holds them.
_WIDER = {"u2": np.int32, "u4": np.int64, "u8": np.int64}


def suffix_of(path: FilePath, *expected: str) -> str:
    """How the name of the file ends, in lower case; a ValueError unless it is one of those expected."""
    suffix = Path(fspath(path)).suffix.lower()
    if suffix not in expected:
        raise ValueError(f"path must end in {' or '.join(expected)}, got {fspath(path)!r}")
    return suffix


def existing(path: FilePath, *expected: str) -> Path:
    """The path of a file that is there, holds something and has one of the expected suffixes.

    Raises:
        FileNotFoundError, IsADirectoryError: If there is no such file.
        ValueError: If the name ends otherwise, or the file is empty.
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
    """The arrays of a .npz file by name, or the one of a .npy file under the name "".

    Raises:
        ValueError: If NumPy cannot read it, or it holds Python objects.
    """
    try:
        with path.open("rb") as file:  # NumPy leaves a damaged file open that it opened itself
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"": loaded}
            with loaded:
                members = {name: loaded[name] for name in loaded.files}
    except Exception as error:  # a damaged archive may raise nearly anything
        raise ValueError(f"{path}: NumPy cannot read it without unpickling: {error!r}") from error
    return {name: value for name, value in members.items() if isinstance(value, np.ndarray)}


def write_npz(path: FilePath, arrays: Mapping[str, Array], compress: bool = True) -> None:
    """Write arrays by name, all or nothing; equal arrays give equal bytes.

    `numpy.savez` does not take every name: it has arguments of its own.

    Raises:
        ValueError: If a name is empty or could be a path.
    """
    for name in arrays:
        if not name or not name.isprintable() or set(name) & set("/\\"):
            raise ValueError(f"names of attributes must be printable and without slashes, got {name!r}")
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", method) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def to_array(value: Tensor) -> Array:
    """A tensor as an array; bfloat16, which NumPy lacks, as float32."""
    value = value.detach().cpu()
    array: Array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return array


def to_tensor(name: str, array: Array) -> Tensor:
    """An array of numbers as a tensor. Unsigned integers of more than 8 bits become signed ones that hold them.

    Raises:
        ValueError: If it holds anything but numbers, or an integer beyond int64.
    """
    if array.dtype.kind not in NUMBERS or array.dtype.char in "gG":
        raise ValueError(f"{name} must hold numbers of at most 8 bytes, got {array.dtype}")
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if native.dtype.str[1:] in _WIDER:
        if native.dtype.itemsize == 8 and native.size and native.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{name} must fit into int64, got {native.max()}")
        native = native.astype(_WIDER[native.dtype.str[1:]])
    return torch.from_numpy(np.array(native, order="C"))


def rowwise(arrays: Mapping[str, Array], rows: int) -> dict[str, Tensor]:
    """Numbers [rows] or [rows, C] among arrays, as tensors; what has another shape is no attribute."""
    fits = {
        name: array
        for name, array in arrays.items()
        if array.ndim in (1, 2) and len(array) == rows and array.dtype.kind in NUMBERS
    }
    return {name: to_tensor(name, array) for name, array in fits.items()}
