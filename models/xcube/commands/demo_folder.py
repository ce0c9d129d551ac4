"""The folder of a demo: its options, the meshes of the user, and the messages with times."""

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sparsevox.files import atomic_write
from sparsevox.shapes import Shape
from xcube.data import Source, file_sources
from xcube.data.axes import Up, upright

OPTIONS = "demo.json"
OWN = "yours"  # prefix of the names of the user's meshes

OwnMesh = tuple[Source, Path]  # a mesh of the user, and its file


def own_meshes(files: Sequence[Path], up: Up = "z") -> list[OwnMesh]:
    """The meshes of the user with z up, which all belong to the training split.

    Args:
        files: Their files.
        up: Axis that points up in the files.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a mesh cannot be used.
    """
    sources = file_sources(files) if files else []
    named = [
        replace(source, name=f"{OWN}/{source.name}", split="train", load=partial(_load_upright, source, up))
        for source in sources
    ]
    found = [(source, source.path) for source in named if source.path is not None]
    for source, path in found:
        try:
            source.load()
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be used: {error}") from error
    return found


def _load_upright(source: Source, up: Up) -> Shape:
    return upright(source.load(), up)


def prepare_demo(out: Path, options: dict[str, Any], restart: bool) -> None:
    """Create the folder, or check that it holds a demo with these options.

    Raises:
        ValueError: If it holds something else, or a demo with other options and this is no restart.
    """
    file = out / OPTIONS
    existing = read_json(file)
    if existing is None and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"out must be a new or empty folder, or that of a demo, got {out}")
    if existing is not None and existing != options and not restart:
        raise ValueError(
            f"{out} holds a demo of {existing}, not of {options}; use another folder, or restart from scratch"
        )
    if restart:
        from xcube.training.run_folder import prepare_folder  # slow to import, and only training needs it

        for run in (out / "runs").glob("*"):  # a call after an interruption must not resume them
            prepare_folder(run, restart=True)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as written:
        written.write((json.dumps(options, indent=2) + "\n").encode())


def read_json(file: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None if the file is missing or invalid."""
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def shell_lines(*commands: Sequence[object]) -> list[str]:
    """Subcommands of xcube as lines for a shell, with the path of `xcube` unless a shell finds it."""
    found = shutil.which("xcube") is not None
    program = "xcube" if found else os.path.relpath(Path(sys.executable).parent / "xcube")
    return [shlex.join([program, *map(str, words)]) for words in commands]


def logger(quiet: bool) -> Callable[[str], None]:
    """A function that prints a line with the time since now."""
    start = time.monotonic()

    def log(text: str) -> None:
        if not quiet:
            minutes, seconds = divmod(round(time.monotonic() - start), 60)
            sys.stdout.write(f"[{minutes:2}:{seconds:02}] {text}\n")
            sys.stdout.flush()

    return log
