"""Sources for `build` from furniture libraries of Sweet Home 3D: .sh3f files, which are zip files of OBJ models.

`PluginFurnitureCatalog.properties` in the zip file lists the models, each with a number N: model#N is its path in the
zip file, name#N, category#N, creator#N and license#N describe it, and modelRotation#N is a matrix that rotates it. The
license of the whole library is `license`.
"""

import re
import unicodedata
import zlib
from collections.abc import Iterator
from functools import partial
from os import PathLike
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from zipfile import BadZipFile, ZipFile

import torch

from sparsevox.io import load_mesh
from sparsevox.shapes import Mesh
from xcube.data.dataset import About
from xcube.data.sources import Source, as_name, unique

SUFFIX = ".sh3f"
CATALOG = "PluginFurnitureCatalog.properties"

_ENTRY = re.compile(r"(?:id|name|model)#([1-9][0-9]*)")  # keys that every model has
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_LETTERS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}  # escapes; any other escaped character stands for itself


def sh3f_sources(*roots: str | PathLike[str]) -> list[Source]:
    """Find the models of furniture libraries; their names are LIBRARY/N-NAME, such as "Scopia/001-washbasin".

    LIBRARY is the name of the .sh3f file, N the number in its catalog, and NAME the name there, without accents and
    signs. The sources have a title, a category, a license and a creator. Models have y up and face along z: pass
    `up="y"` to `build`. Each has its parts in one mesh, rotated as the catalog says.

    Args:
        roots: Libraries, and folders that hold libraries at any depth.

    Raises:
        FileNotFoundError: If a file or folder does not exist.
        ValueError: If a folder holds no library, or a file is no library or lists no model.
    """
    sources: list[Source] = []
    for root in map(Path, roots):
        if not root.exists():
            raise FileNotFoundError(f"{root}: no such file or folder")
        found = sorted(filter(Path.is_file, root.rglob(f"*{SUFFIX}"))) if root.is_dir() else [root]
        if not found:
            raise ValueError(f"{root} must hold furniture libraries of Sweet Home 3D (*{SUFFIX}), got none")
        for path in found:
            sources += _sources_of(path, path.parent if path == root else root)
    return unique(sources)


def _sources_of(path: Path, root: Path) -> Iterator[Source]:
    """The models of one library."""
    checksums, catalog = _read(path)
    numbers = sorted({int(found[1]) for key in catalog if (found := _ENTRY.fullmatch(key))})
    listed = [number for number in numbers if catalog.get(f"ignored#{number}") != "true"]
    if not listed:
        raise ValueError(f"{path}: {CATALOG} must list models (model#1 and so on), got none")
    for number in listed:
        model = catalog.get(f"model#{number}", "").lstrip("/")
        title, category, creator = (catalog.get(f"{key}#{number}", "") for key in ("name", "category", "creator"))
        license = catalog.get(f"license#{number}") or catalog.get("license", "")
        last = "-".join(filter(None, (f"{number:03}", _plain(title))))
        yield Source(
            as_name([*path.relative_to(root).with_suffix("").parts, last]),
            partial(load_model, path, model, catalog.get(f"modelRotation#{number}")),
            path,
            about=About(title, category, license, creator),
            content=checksums.get(model, b""),
        )


def _read(path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """The checksums of the files in a library by their paths, and its catalog."""
    try:
        with ZipFile(path) as archive:
            checksums = {file.filename: file.CRC.to_bytes(4, "big") for file in archive.infolist()}
            if CATALOG not in checksums:
                others = sorted(name for name in checksums if name.endswith(".properties")) or sorted(checksums)
                raise ValueError(f"{path} must hold {CATALOG}, got {', '.join(others[:3]) or 'an empty zip file'}")
            return checksums, parse_properties(archive.read(CATALOG))
    except (BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise ValueError(f"{path} must be a zip file, as furniture libraries of Sweet Home 3D are: {error}") from error


def parse_properties(data: bytes) -> dict[str, str]:
    r"""Parse a .properties file of Java: keys and values in ISO-8859-1 with escapes such as `\u00e9`."""
    found: dict[str, str] = {}
    lines = iter(re.split(r"\r\n|\r|\n", data.decode("latin-1")))
    for first in lines:
        line = first.lstrip(" \t\f")
        if line.startswith(("#", "!")):
            continue
        while _continues(line):
            line = line[:-1] + next(lines, "").lstrip(" \t\f")
        # The key ends at the first =, : or space without a backslash before it.
        parts = re.fullmatch(r"((?:\\.|[^\\=: \t\f])*)[ \t\f]*[=:]?[ \t\f]*(.*)", line, re.DOTALL)
        if line and parts:
            found[_unescaped(parts[1])] = _unescaped(parts[2])
    return found


def _continues(line: str) -> bool:
    """Whether a line ends in a backslash that no other one escapes."""
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def _unescaped(text: str) -> str:
    def character(found: re.Match[str]) -> str:
        escape = found[1]
        return chr(int(escape[1:], 16)) if len(escape) > 1 else _LETTERS.get(escape, escape)

    # Characters beyond 16 bits are written as two escapes, which become one character here.
    return _ESCAPE.sub(character, text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _plain(title: str) -> str:
    """A title in lower case, with hyphens for all that is no ASCII letter or digit after removal of accents."""
    letters = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", letters).strip("-")


def load_model(path: Path, model: str, rotation: str | None) -> Mesh:
    """Load one model of a library as one mesh, with y up.

    Args:
        path: The .sh3f file.
        model: Path of the model in it.
        rotation: The nine numbers of a matrix by which the model is rotated, row by row; None for no rotation.

    Raises:
        FileNotFoundError: If the library does not hold the model.
        ValueError: If the model or its rotation is damaged.
    """
    folder = PurePosixPath(model).parent
    with ZipFile(path) as archive, TemporaryDirectory() as unpacked:
        if not model or model not in archive.namelist():
            raise FileNotFoundError(f"{path} must hold the model {model!r} of its catalog, got no such file")
        for name in archive.namelist():  # the model, and materials and pictures next to it
            if PurePosixPath(name).parent == folder and not name.endswith("/"):
                archive.extract(name, unpacked)
        try:
            mesh = load_mesh(Path(unpacked, model))
        except ValueError as error:
            raise ValueError(str(error).replace(unpacked, str(path))) from error
    if not rotation:
        return mesh
    matrix = _matrix(rotation)
    return mesh.transform(lambda positions: positions @ matrix.T)


def _matrix(rotation: str) -> torch.Tensor:
    """The matrix [3, 3] that a text of nine numbers describes."""
    try:
        matrix = torch.tensor([float(word) for word in rotation.split()], dtype=torch.float64).reshape(3, 3)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"modelRotation must be nine numbers, got {rotation!r}") from error
    if not bool(matrix.isfinite().all()):
        raise ValueError(f"modelRotation must be finite, got {rotation!r}")
    return matrix
