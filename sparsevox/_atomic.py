"""Files that are there whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import BinaryIO

PART = ".part"  # how the name of a file ends that is still being written


@contextmanager
def atomic(path: str | PathLike[str]) -> Iterator[BinaryIO]:
    """Open a binary file that takes the place of `path` once all of it is on the disk.

    It is written beside `path` under a hidden name that ends in ".part". If anything goes wrong before the end, it is
    deleted and what was at `path` stays. Whoever reads `path` sees the old file or the new one. Only a process that is
    killed leaves its part behind, which nobody reads.

    Raises:
        FileNotFoundError: If the folder of `path` does not exist.
        IsADirectoryError: If `path` is a folder.
    """
    target = Path(os.path.realpath(path))  # a link stays one
    if target.is_dir():
        raise IsADirectoryError(f"{path}: a folder is in the way")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {target.parent}")
    part = target.with_name(f".{secrets.token_hex(8)}{PART}")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:  # an interrupt too leaves nothing behind
        with suppress(OSError):
            part.unlink()
        raise
