"""The folder of a demo: its options, the meshes of the user, and the messages with times."""

import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sparsevox.files import atomic_write
from sparsevox.shapes import Shape
from xcube.data import Source, file_sources
from xcube.data.axes import Up, upright
from xcube.data.hierarchy import Box, build_hierarchy
from xcube.pipeline.checkpoint import fingerprint
from xcube.pipeline.output import SETTINGS

OPTIONS = "demo.json"
KIND = "preset"  # an option of demos that train, and of no others
CHECK_SAMPLES = 1000  # points on a mesh
OWN = "yours"  # prefix of the names of the user's meshes

OwnMesh = tuple[Source, Path]  # a mesh of the user, and its file


def own_meshes(files: Sequence[Path], up: Up, box: Box) -> list[OwnMesh]:
    """The meshes of the user with z up, for the training split, after a check that they can be voxelized.

    Args:
        files: Their files.
        up: Axis that points up in the files.
        box: The box of the cascade.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a mesh cannot be used, or `up` is given without meshes.
    """
    if up != "z" and not files:
        raise ValueError(f"up must be 'z' without --mesh, got {up!r}")
    sources = file_sources(files) if files else []
    named = [
        replace(source, name=f"{OWN}/{source.name}", split="train", load=partial(_load_upright, source, up))
        for source in sources
    ]
    found = [(source, source.path) for source in named if source.path is not None]
    for source, path in found:
        try:
            voxels = build_hierarchy(source.load(), box, samples=CHECK_SAMPLES, outside="rescale")[-1]
            if "normal" not in voxels.attributes:
                raise ValueError("it has no normals, which points need")
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be used: {error}") from error
    return found


def _load_upright(source: Source, up: Up) -> Shape:
    return upright(source.load(), up)


def prepare_demo(out: Path, options: Mapping[str, Any], restart: bool) -> None:
    """Create the folder, or check that it holds a demo with these options.

    Raises:
        ValueError: If it holds something else, another kind of demo, which has other options, or a demo with other
            values of the options and this is no restart.
    """
    file = out / OPTIONS
    existing = read_json(file)
    if existing is None and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"out must be a new or empty folder, or that of a demo, got {out}")
    if existing is not None and (KIND in existing) != (KIND in options):
        kinds = ("without", "with") if KIND in existing else ("with", "without")
        raise ValueError(f"{out} holds a demo {kinds[1]} --train, and this is one {kinds[0]} it; use another folder")
    if existing is not None and existing != options and not restart:
        raise ValueError(f"{out} holds a demo of {existing}, not of {options}; use another folder, or --restart")
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as written:
        written.write((json.dumps(options, indent=2) + "\n").encode())


def other_samples(samples: Path, model: Path, seed: int) -> bool:
    """Whether a folder of samples holds those of other networks or another seed."""
    existing = read_json(samples / SETTINGS)
    wanted = {"model": fingerprint(model), "seed": seed, "min_component": 0.0}
    return existing is not None and wanted != {name: existing.get(name) for name in wanted}


def read_json(file: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None if the file is missing or invalid."""
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def shell_lines(*commands: Sequence[object]) -> list[str]:
    """Subcommands of xcube as lines for a shell."""
    return [shlex.join([*_program(), *map(str, words)]) for words in commands]


def _program() -> list[str]:
    """The command `xcube` of this environment: its name if a shell finds it, else its path."""
    folder = Path(sys.executable).parent
    found = shutil.which("xcube", path=str(folder))
    if found is None:
        return [sys.executable, "-m", "xcube.cli"]
    if shutil.which("xcube") == found:
        return ["xcube"]
    path, here = Path(found), Path.cwd()
    return [str(path.relative_to(here) if path.is_relative_to(here) else path)]


def logger(quiet: bool) -> Callable[[str], None]:
    """A function that prints a line with the time since now."""
    start = time.monotonic()

    def log(text: str) -> None:
        if not quiet:
            minutes, seconds = divmod(round(time.monotonic() - start), 60)
            sys.stdout.write(f"[{minutes:2}:{seconds:02}] {text}\n")
            sys.stdout.flush()

    return log
