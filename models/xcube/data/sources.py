"""Sources of a dataset: named shapes that are loaded on demand."""

import glob
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from os import PathLike
from pathlib import Path
from urllib.parse import quote

from sparsevox.io import load_mesh, load_points
from sparsevox.io.meshes import READS
from sparsevox.shapes import Shape
from xcube.data.dataset import UNKNOWN, About, check_name, is_dataset

Splits = Mapping[str, float]

SPLITS: Splits = {"train": 0.8, "val": 0.1, "test": 0.1}
POINTS = (".ply", ".npz", ".npy", ".bin")
LIST = ".lst"
LONGEST = 180  # characters of a part of a name


@dataclass(frozen=True)
class Source:
    """A named shape that is loaded later.

    name: Name of the shape in the dataset.
    load: Function that loads or makes the shape. It must be picklable: a module-level function, or a
        `functools.partial` of one.
    path: File of the shape, if any. The random seed of its sample points depends on the name and the bytes of the file.
    split: Split of the shape; by default it is derived from a hash of the name.
    about: Title, category, license and creator of the shape, for the index.
    content: Bytes that the seed depends on instead of those of the file, such as the checksum of a part of the file.

    Raises:
        ValueError: If the name is invalid (`check_name`).
    """

    name: str
    load: Callable[[], Shape]
    path: Path | None = None
    split: str | None = None
    about: About = UNKNOWN
    content: bytes | None = None

    def __post_init__(self) -> None:
        check_name(self.name)


def file_sources(paths: Iterable[str | PathLike[str]]) -> list[Source]:
    """Find meshes and point clouds in files, folders and patterns such as "scans/**/*.ply".

    The name of a shape is its path without suffix below the given folder, or below the part of the pattern before the
    first wildcard; for a given file it is the file name.

    Raises:
        FileNotFoundError: If a path does not exist or a pattern matches nothing.
        ValueError: If there are no meshes or point clouds, two have the same name, or a given file is neither.
    """
    sources: list[Source] = []
    for path in map(Path, paths):
        if path.is_dir():
            found, root = sorted(path.rglob("*")), path
        elif path.exists():
            found, root = [path], path.parent
        else:
            root = _before_wildcards(path)
            found = sorted(root.glob(str(path.relative_to(root))))
        if not found and not path.is_dir():
            raise FileNotFoundError(f"{path}: no such file or folder, and no match for a pattern")
        kept = [file for file in found if file.suffix.lower() in (*READS, *POINTS) and not file.is_dir()]
        kept = _without_buffers(_outside_datasets(kept, root))
        if found == [path] and not kept:
            raise ValueError(f"{path} must end in one of {', '.join(sorted({*READS, *POINTS}))}")
        sources += [file_source(file, root) for file in kept if not _hidden(file.relative_to(root))]
    if not sources:
        raise ValueError("paths must lead to meshes or point clouds, got none")
    return unique(sources)


def file_source(path: Path, root: Path, load: Callable[[Path], Shape] | None = None) -> Source:
    """Make a source of a file, named by its path below `root` without the suffix."""
    name = path.relative_to(root).with_suffix("").parts
    return Source(as_name(name), partial(load or load_shape, path), path)


def load_shape(path: Path) -> Shape:
    """Load a mesh or points from a file; a .ply file is a mesh if it has faces.

    Raises:
        ImportError: If a package that reads the file is not installed.
        OSError: If the file cannot be read.
        ValueError: If the file is damaged.
    """
    suffix = path.suffix.lower()
    if suffix == ".ply":
        with path.open("rb") as file:
            head = file.read(1 << 16).partition(b"end_header")[0]
        return load_mesh(path) if re.search(rb"element\s+face\s+0*[1-9]", head) else load_points(path)
    return load_mesh(path) if suffix in READS else load_points(path)


def as_name(parts: Sequence[str]) -> str:
    """Make a name of the parts of a path; characters that names cannot have are percent-encoded, `%20` for a space."""
    return "/".join(map(_legal, parts))


def _legal(part: str) -> str:
    """One part of a name: it does not begin with a dot or end in .npz, and is not too long."""
    name = quote(part, safe="")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if name.lower().endswith(".npz"):
        name = f"{name[:-4]}%2E{name[-3:]}"
    if len(name) > LONGEST:
        name = f"{name[: LONGEST - 20]}~{hashlib.sha256(part.encode()).hexdigest()[:16]}"
    return name


def unique(sources: Sequence[Source]) -> list[Source]:
    """Return the sources in the order of their names.

    Raises:
        ValueError: If two have the same name, apart from upper and lower case.
    """
    seen: dict[str, Source] = {}
    for source in sources:
        first = seen.setdefault(source.name.lower(), source)
        if first is not source and (first.path is None or first.path != source.path):
            raise ValueError(
                f"names must differ, got {first.name!r} and {source.name!r} for {first.path} and {source.path}; pass "
                "the folder above them, or a pattern that matches one of them"
            )
    return sorted(seen.values(), key=lambda source: source.name)


def with_lists(sources: Sequence[Source], folder: str | PathLike[str]) -> list[Source]:
    """Return the sources that are named by the lists in a folder, with their splits; others are left out.

    The file train.lst names the shapes of the split "train", one per line: a name or its last parts, with or without a
    suffix. A line without a source becomes a source that fails to load, so that the build reports it.

    Raises:
        FileNotFoundError: If there is no list in the folder.
        ValueError: If two lists name one shape, or a line matches several.
    """
    lists = sorted(Path(folder).glob(f"*{LIST}"))
    if not lists:
        raise FileNotFoundError(f"{folder} must hold lists such as train{LIST}, got none")
    tails: dict[str, list[Source]] = {}
    for source in sources:
        parts = source.name.split("/")
        for first in range(len(parts)):
            tails.setdefault("/".join(parts[first:]), []).append(source)
    chosen: dict[str, Source] = {}
    for path in lists:
        for line in filter(None, map(str.strip, path.read_text(encoding="utf-8").splitlines())):
            name = as_name(Path(line).parts)
            found = tails.get(line) or tails.get(name) or tails.get(as_name(Path(line).with_suffix("").parts)) or []
            if len(found) > 1:
                raise ValueError(f"{path}: {line!r} matches both {found[0].name!r} and {found[1].name!r}")
            source = found[0] if found else Source(name, partial(_no_source, line, path))
            if chosen.setdefault(source.name, replace(source, split=path.stem)).split != path.stem:
                raise ValueError(f"{source.name!r} is on two lists of {folder}, the second is {path.name}")
    return unique(list(chosen.values()))


def split_of(source: Source, splits: Splits) -> str:
    """Return the split of a source, by default from a hash of its name, so that it does not depend on other sources."""
    if source.split is not None:
        return source.split
    digest = hashlib.sha256(source.name.encode()).digest()
    at = int.from_bytes(digest[:6], "big") / 2**48 * sum(splits.values())
    return next(split for split, end in zip(splits, accumulate(splits.values()), strict=True) if at < end)


def seed_of(source: Source, seed: int) -> int:
    """Derive a seed from that of the dataset, the name of the source and its content, by default its file."""
    content = source.content or b""
    if source.content is None and source.path is not None:
        with source.path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
    digest = hashlib.sha256(f"{seed}\0{source.name}\0".encode() + content).digest()
    return int.from_bytes(digest[:8], "big")


def _no_source(line: str, path: Path) -> Shape:
    raise FileNotFoundError(f"{path} lists {line!r}, which does not exist")


def _before_wildcards(pattern: Path) -> Path:
    return next(path for path in pattern.parents if not glob.has_magic(str(path)))


def _outside_datasets(files: list[Path], root: Path) -> list[Path]:
    """Drop the files of datasets below the root, such as one that is built inside its input."""
    inside = {folder: is_dataset(folder) for file in files for folder in file.parents if folder.is_relative_to(root)}
    return [file for file in files if not any(inside.get(folder) for folder in file.parents)]


def _without_buffers(files: list[Path]) -> list[Path]:
    """Drop the .bin files that belong to .gltf files in the same folder."""
    scenes = {file.parent for file in files if file.suffix.lower() == ".gltf"}
    return [file for file in files if file.suffix.lower() != ".bin" or file.parent not in scenes]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
