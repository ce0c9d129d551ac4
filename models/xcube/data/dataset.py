"""Datasets on disk: a folder of voxels that NumPy, csv and json can read without this package.

    card.json                        box and levels, voxel sizes, origins, attributes, license, build options
    index.csv                        a row for each shape: name, split, watertight, number of voxels of each level, and
                                     title, category, license and creator if they are known for some shape
    report.csv                       the shapes that the last build skipped, and why
    shapes/NAME/RESOLUTION.npz       one level of one shape, as `sv.io.save_voxels` writes it

Every file is written completely or not at all, and the index after the files that it names.

N voxels of a level, C channels.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sparsevox as sv
from sparsevox.files import PARTIAL_SUFFIX, atomic_write
from sparsevox.io import load_voxels, save_voxels
from xcube.data.hierarchy import Box

FORMAT, VERSION = "xcube shapes", 1
CARD, INDEX, REPORT, SHAPES = "card.json", "index.csv", "report.csv", "shapes"
ABOUT = ["title", "category", "license", "creator"]  # columns of the index with the fields of `About`
OLD_COLUMNS = {"watertight": "closed"}  # names in indices of earlier versions

DTYPES = ("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")

# A part of a name is a valid and visible file name on every system, and cannot be mistaken for the file of a level.
_PART = re.compile(r"(?!.*\.npz$)[A-Za-z0-9_~%-][A-Za-z0-9._~%-]{0,199}", re.DOTALL)


class Attribute(NamedTuple):
    """The storage format of an attribute.

    dtype: NumPy name of the type. An integer type scales colors from [0, 1] to its range.
    channels: Number of channels C of [N, C]; None for [N].
    """

    dtype: str
    channels: int | None


# Half precision has three digits: a twentieth of a degree for normals.
ATTRIBUTES: Mapping[str, Attribute] = {
    "normal": Attribute("float16", 3),
    "color": Attribute("uint8", 3),
    "label": Attribute("int16", None),
    "instance": Attribute("int32", None),
    "intensity": Attribute("float16", 1),
    "fill": Attribute("float16", None),
    "observed": Attribute("uint8", None),
    "occluded": Attribute("uint8", None),
}


@dataclass(frozen=True)
class Card:
    """The description of a dataset.

    box: The box and its levels.
    attributes: Storage format of each attribute.
    options: Options of the build.
    source: Source of the shapes.
    license: License of the shapes.
    creator: The software that wrote the folder.

    Raises:
        ValueError: If the type of an attribute is not one of `DTYPES`.
    """

    box: Box
    attributes: Mapping[str, Attribute]
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    license: str = ""
    creator: str = f"sparsevox {sv.__version__}"

    def __post_init__(self) -> None:
        for name, attribute in self.attributes.items():
            if attribute.dtype not in DTYPES:
                raise ValueError(f"attribute {name!r} must have a dtype of {DTYPES}, got {attribute.dtype!r}")

    def as_json(self) -> dict[str, Any]:
        """Return the content of card.json."""
        sizes = [self.box.voxel_size(level) for level in range(len(self.box.levels))]
        return {
            "format": FORMAT,
            "version": VERSION,
            "creator": self.creator,
            "source": self.source,
            "license": self.license,
            "levels": list(self.box.levels),
            "size": list(self.box.size),
            **({"thin": list(self.box.thin)} if self.box.thin else {}),
            "voxel_sizes": sizes,
            "origins": [size / 2 for size in sizes],
            "attributes": {name: attribute._asdict() for name, attribute in self.attributes.items()},
            "options": dict(self.options),
        }


@dataclass(frozen=True, order=True)
class About:
    """A description of a shape by its source. White space in it becomes single spaces.

    title: Name for people, in any script.
    category: Category, as the source names it.
    license: License of this shape.
    creator: Author of this shape.
    """

    title: str = ""
    category: str = ""
    license: str = ""
    creator: str = ""

    def __post_init__(self) -> None:
        for column in ABOUT:
            object.__setattr__(self, column, " ".join(getattr(self, column).split()))

    def __bool__(self) -> bool:
        """Whether anything is known."""
        return self != UNKNOWN


UNKNOWN = About()


class Entry(NamedTuple):
    """A shape in the index.

    name: Name of the shape, its path below shapes/.
    split: Split, such as "train".
    watertight: Whether the mesh has no open edge and consistently oriented faces; otherwise its inside is undefined.
        None if the shape is not a mesh.
    voxels: Number of voxels at each level, the coarsest first.
    about: Title, category, license and creator, each "" if it is unknown.
    """

    name: str
    split: str
    watertight: bool | None
    voxels: tuple[int, ...]
    about: About = UNKNOWN


def check_name(name: str) -> str:
    """Return the name of a shape if it is valid: parts of letters, digits and ._~%- between slashes.

    Raises:
        ValueError: If the name could leave the folder, hide a file or be mistaken for one.
    """
    if not all(_PART.fullmatch(part) for part in name.split("/")):
        raise ValueError(
            "name must consist of parts of letters, digits and ._~%- between slashes, none of which begins with a dot, "
            f"ends in .npz or has more than 200 letters, got {name!r}"
        )
    return name


def level_path(root: str | PathLike[str], name: str, resolution: int) -> Path:
    """Return the file of a shape at a resolution."""
    return Path(root, SHAPES, check_name(name), f"{resolution}.npz")


def write_card(root: str | PathLike[str], card: Card) -> None:
    """Write card.json."""
    with atomic_write(Path(root, CARD)) as file:
        file.write((json.dumps(card.as_json(), indent=2) + "\n").encode())


def read_card(root: str | PathLike[str]) -> Card:
    """Read card.json.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is damaged, or of another format or version. The message names the file.
    """
    path = Path(root, CARD)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, so {root} is not a dataset")
    try:
        data = json.loads(path.read_bytes())
        if data["format"] != FORMAT or data["version"] != VERSION:
            raise ValueError(
                f"must be {FORMAT!r} of version {VERSION}, got {data['format']!r} of version {data['version']!r}; "
                "rebuild the dataset, or read it with the version of sparsevox that wrote it"
            )
        (terms,) = (data[name] for name in data if name.startswith("licen"))  # earlier versions spelled it otherwise
        return Card(
            Box(tuple(data["levels"]), tuple(data["size"]), tuple(data.get("thin", ()))),
            {name: Attribute(**attribute) for name, attribute in data["attributes"].items()},
            license=terms,
            **{name: data[name] for name in ("options", "source", "creator")},
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def is_dataset(root: str | PathLike[str]) -> bool:
    """Whether a folder has a card of this format, in any version."""
    try:
        return bool(json.loads(Path(root, CARD).read_bytes())["format"] == FORMAT)
    except (OSError, KeyError, TypeError, ValueError):
        return False


def write_index(root: str | PathLike[str], card: Card, entries: Iterable[Entry]) -> None:
    """Write index.csv, ordered by name. It has columns for `Entry.about` if something is known about a shape."""
    ordered = sorted(entries)
    rows = [[e.name, e.split, "" if e.watertight is None else int(e.watertight), *e.voxels] for e in ordered]
    header = _header(card)
    if any(entry.about for entry in ordered):
        header += ABOUT
        rows = [[*row, *astuple(entry.about)] for row, entry in zip(rows, ordered, strict=True)]
    write_csv(Path(root, INDEX), header, rows)


def read_index(root: str | PathLike[str], card: Card) -> list[Entry]:
    """Read index.csv.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is damaged or does not fit the card. The message names the file and the line.
    """
    path = Path(root, INDEX)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: no shape of the dataset has been built yet")
    header, columns = _header(card), 0
    entries: list[Entry] = []
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not rows:
        raise ValueError(f"{path}: the file is empty")
    for number, row in enumerate(rows, 1):
        try:
            if number == 1:
                if row not in (header, [*header, *ABOUT], [OLD_COLUMNS.get(column, column) for column in header]):
                    raise ValueError(f"expected the columns {header}, and perhaps {ABOUT}, got {row}")
                columns = len(row)
            else:
                name, split, watertight, *others = row
                known = {"": None, "0": False, "1": True}[watertight]
                voxels, about = others[: len(card.box.levels)], others[len(card.box.levels) :]
                if len(row) != columns:
                    raise ValueError(f"expected {columns} columns, got {len(row)}")
                entries.append(Entry(check_name(name), split, known, tuple(map(int, voxels)), About(*about)))
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: {next(name for name in names if names.count(name) > 1)!r} is listed twice")
    return entries


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table, completely or not at all."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def write_shape(root: str | PathLike[str], card: Card, name: str, levels: Sequence[sv.Voxels]) -> None:
    """Write one shape, a file for each level.

    Raises:
        OSError: If a file cannot be written.
        ValueError: If an attribute of the card is missing, has other channels, or a value outside the range of its
            type.
    """
    stored = [sv.Voxels(level.grid, _encoded(level, card.attributes)) for level in levels]
    folder = level_path(root, name, 0).parent
    folder.mkdir(parents=True, exist_ok=True)
    remove_partial_files(folder)
    for resolution, level in zip(card.box.levels, stored, strict=True):
        save_voxels(level, level_path(root, name, resolution))


def read_shape(root: str | PathLike[str], card: Card, entry: Entry, level: int) -> sv.Voxels:
    """Read one level of one shape as one grid; floats become float32, colors lie in [0, 1], other integers are int64.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is damaged or does not fit the card or the index. The message names the file.
    """
    path = level_path(root, entry.name, card.box.levels[level])
    voxels = load_voxels(path)
    size = card.box.voxel_size(level)
    grid = voxels.grid
    off = [abs(a - b) for a, b in zip((*grid.voxel_size, *grid.origin), (size,) * 3 + (size / 2,) * 3, strict=True)]
    if grid.batch_size != 1 or max(off) > 1e-5 * size:
        raise ValueError(f"{path}: expected one grid with voxel_size={size}, origin={size / 2}, got {grid}")
    if grid.num_voxels != entry.voxels[level]:
        raise ValueError(f"{path}: expected the {entry.voxels[level]} voxels of the index, got {grid.num_voxels}")
    kept = {name: Attribute(*_stored_as(value)) for name, value in voxels.attributes.items()}
    if kept != card.attributes:
        raise ValueError(f"{path}: expected the attributes {dict(card.attributes)}, got {kept}")
    return sv.Voxels(grid, {name: _decoded(name, value) for name, value in voxels.attributes.items()})


def remove_partial_files(folder: Path) -> None:
    """Remove the incomplete files that a killed process left in a folder."""
    for part in folder.glob(f".*{PARTIAL_SUFFIX}"):
        part.unlink(missing_ok=True)


def _header(card: Card) -> list[str]:
    """The columns of index.csv, without those of `Entry.about`."""
    return ["name", "split", "watertight", *(f"voxels_{resolution}" for resolution in card.box.levels)]


def _encoded(voxels: sv.Voxels, attributes: Mapping[str, Attribute]) -> dict[str, Tensor]:
    made = {}
    for name, attribute in attributes.items():
        if name not in voxels.attributes:
            raise ValueError(f"there is no attribute {name!r}, only {sorted(voxels.attributes)}")
        value = voxels.attributes[name]
        if (value.shape[1] if value.ndim == 2 else None) != attribute.channels:
            raise ValueError(f"attribute {name!r} must have {attribute.channels} channels, got {list(value.shape)}")
        made[name] = _cast(name, value, getattr(torch, attribute.dtype))
    return made


def _cast(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    if name == "color" and value.is_floating_point() and not dtype.is_floating_point:
        value = (value.clamp(0, 1) * torch.iinfo(dtype).max).round()
    made = value.to(dtype)
    # A value out of range comes back as another number; a float only has to come back finite.
    fits = made.isfinite() | ~value.isfinite() if dtype.is_floating_point else made.to(value.dtype) == value
    if not bool(fits.all()):
        worst = value.reshape(-1)[int((~fits).reshape(-1).int().argmax())].item()
        raise ValueError(f"attribute {name!r} must fit into {dtype}, got {worst}")
    return made


def _decoded(name: str, value: Tensor) -> Tensor:
    if value.is_floating_point():
        return value.float()
    return value.float() / torch.iinfo(value.dtype).max if name == "color" else value.long()


def _stored_as(value: Tensor) -> tuple[str, int | None]:
    return str(value.dtype).removeprefix("torch."), value.shape[1] if value.ndim == 2 else None
