"""File helpers for this library and projects built on it: atomic writes, and errors that name their file."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import BinaryIO

PARTIAL_SUFFIX = ".part"  # ends the name of a file that is still being written


@contextmanager
def atomic_write(path: str | PathLike[str]) -> Iterator[BinaryIO]:
    """Open a binary file that replaces `path` only after all of it has reached the disk.

    The data goes to a hidden file in the same folder, whose name ends in ".part". If the block raises, that file is
    deleted and `path` is left as it was, so readers of `path` see either the old file or the complete new one. Only a
    killed process leaves its ".part" file behind.

    Raises:
        FileNotFoundError: If the folder of `path` does not exist.
        IsADirectoryError: If `path` is a folder.

    Example:
        >>> with atomic_write("metrics.json") as file:
        ...     file.write(b"{}")
    """
    target = Path(os.path.realpath(path))  # replaces the file that a symbolic link points to, not the link
    if target.is_dir():
        raise IsADirectoryError(f"path must name a file, got the folder {path}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path must lie in an existing folder, got {path}: there is no folder {target.parent}")
    part = target.with_name(f".{secrets.token_hex(8)}{PARTIAL_SUFFIX}")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:  # also on KeyboardInterrupt
        with suppress(OSError):
            part.unlink()
        raise


@contextmanager
def prefix_errors(path: str | PathLike[str]) -> Iterator[None]:
    """Turn a TypeError or ValueError raised in the block into a ValueError whose message starts with the path."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error
