"""Data sets from shapes: in parallel, to be taken up again after a kill at any moment."""

import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path
from shutil import rmtree
from typing import Any, Literal, NamedTuple

import sparsevox as sv
from sparsevox import checks
from sparsevox.io import describe
from sparsevox.shapes import Mesh, Points, Shape
from xcube.data.dataset import (
    ATTRIBUTES,
    CARD,
    INDEX,
    REPORT,
    SHAPES,
    Attribute,
    Card,
    Entry,
    is_data_set,
    level_path,
    read_card,
    read_index,
    remove_parts,
    write_card,
    write_csv,
    write_index,
    write_shape,
)
from xcube.data.engines import run_here, run_processes, run_ray
from xcube.data.hierarchy import Box, Outside, build_hierarchy
from xcube.data.sources import SPLITS, Source, Splits, seed_of, split_of, unique

Engine = Literal["processes", "ray"]

SAVE_SECONDS = 10.0  # how much work a kill may cost: the index is written so often


class Skipped(NamedTuple):
    """A shape that was left out.

    name: What it would be called.
    path: Its file, "" if it has none.
    reason: In a few words.
    detail: In full.
    """

    name: str
    path: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Report:
    """What a build did.

    built: Shapes that it made.
    kept: How many of the others were there already.
    skipped: What it left out, by name.
    """

    built: Sequence[Entry] = ()
    kept: int = 0
    skipped: Sequence[Skipped] = field(default=())

    def __str__(self) -> str:
        there = f", {self.kept:,} were there already" if self.kept else ""
        lines = [f"{len(self.built):,} shapes built{there}, {len(self.skipped):,} skipped"]
        lines += [f"  {count:,} {reason}" for reason, count in Counter(s.reason for s in self.skipped).most_common()]
        undefined = sum(entry.closed is False for entry in self.built)
        lines += [f"{undefined:,} meshes built are open: their inside is undefined"] * (undefined > 0)
        return "\n".join(lines)


def build(
    sources: Sequence[Source],
    out: str | PathLike[str],
    box: Box,
    *,
    attributes: Sequence[str] | Mapping[str, Attribute] = ("normal",),
    samples: int = 1_000_000,
    seed: int = 0,
    outside: Outside = "error",
    splits: Splits = SPLITS,
    source: str = "",
    license: str = "",
    workers: int = 0,
    engine: Engine = "processes",
    overwrite: bool = False,
    progress: bool = False,
) -> Report:
    """Build a data set, or what it still lacks, from shapes.

    A shape that cannot be used is left out and reported; the others do not suffer. The result does not depend on the
    number of workers, the order of the sources, or on how often the work was broken off, to the byte. Shapes in the
    index are not built again, also if their file has changed, and stay if they are no longer among the sources; those
    skipped are tried again.

    A script that uses workers needs `if __name__ == "__main__":`, as with every pool of processes.

    Args:
        sources: Shapes with names, as those of `file_sources` and of the converters.
        out: The folder of the data set; made if it does not exist. `xcube.data.dataset` says what lies in it.
        box: Its levels and its size.
        attributes: Which attributes to keep. A shape that lacks one is left out. A mapping says how they are stored;
            names alone are those of `ATTRIBUTES`.
        samples: Points on the surface of a mesh, from which attributes come.
        seed: Of these points, together with name and file of the shape.
        outside: What to do with shapes that do not fit into the box (`build_hierarchy`); "error" leaves them out.
        splits: Share of each split, for sources that name none.
        source: Where the shapes come from, for the card.
        license: Under which license they may be used, for the card.
        workers: How many processes. 0 does the work in this one.
        engine: "processes" of this machine, or "ray", a cluster whose nodes see the same files.
        overwrite: Whether to remove what is in the folder, if it is a data set.
        progress: Whether to show a bar.

    Raises:
        ImportError: If a package is missing that the engine or the bar needs.
        OSError: If a file of the data set cannot be written: the disk is full, for example. What is in the index by
            then is whole; the same call goes on from there.
        ValueError: If an argument is wrong, two sources have one name, the folder holds something else, or the data
            set in it was built with other options.
    """
    if engine not in ("processes", "ray"):
        raise ValueError(f"engine must be 'processes' or 'ray', got {engine!r}")
    if outside not in ("error", "clip", "rescale"):
        raise ValueError(f"outside must be 'error', 'clip' or 'rescale', got {outside!r}")
    for name, number, least in (("samples", samples, 1), ("workers", workers, int(engine == "ray"))):
        if checks.integer(name, number) < least:
            raise ValueError(f"{name} must be at least {least}, got {number}")
    if not splits or min(splits.values()) < 0 or not sum(splits.values()) > 0:
        raise ValueError(f"splits must have shares that are not negative, and not all 0, got {dict(splits)}")
    options = {"samples": samples, "seed": checks.integer("seed", seed), "outside": outside, "splits": dict(splits)}
    ordered = unique(sources)
    card = Card(box, _as_stored(attributes), options, source, license)
    folder = Path(out)
    entries = {entry.name: entry for entry in _open(folder, card, overwrite)}
    for each in ordered:
        if each.name in entries:
            entries[each.name] = entries[each.name]._replace(split=split_of(each, splits))
    waiting = [each for each in ordered if each.name not in entries]
    make = partial(build_one, out=folder, card=card)
    if engine == "ray":
        results = run_ray(make, waiting, workers)
    else:
        results = run_processes(make, waiting, workers) if workers else run_here(make, waiting)
    kept = len(ordered) - len(waiting)
    with closing(_shown(results, len(ordered), kept) if progress else results) as shown:
        built, skipped = _collect(shown, folder, card, entries)
    write_csv(folder / REPORT, Skipped._fields, sorted(skipped))
    return Report(sorted(built), kept, sorted(skipped))


def build_one(source: Source, *, out: Path, card: Card) -> Entry | Skipped:
    """Load one shape and write its levels: its entry in the index, or why it has none.

    Raises:
        OSError: If a file cannot be written.
    """

    def skipped(reason: str, error: BaseException | str) -> Skipped:
        detail = str(error) or type(error).__name__
        return Skipped(source.name, "" if source.path is None else str(source.path), reason, detail)

    try:
        seed = seed_of(source, card.options["seed"])
        shape = source.load()
    except ImportError:
        raise  # nothing is wrong with the file
    except Exception as error:  # noqa: BLE001  (readers of damaged files raise everything)
        return skipped("unreadable", error)
    reason = _unusable(shape)
    if reason:
        return skipped(*reason)
    try:
        samples, outside = card.options["samples"], card.options["outside"]
        levels = build_hierarchy(shape, card.box, samples=samples, seed=seed, outside=outside)
    except ImportError:
        raise
    except ValueError as error:
        return skipped("out of the box", error)
    except Exception as error:  # noqa: BLE001  (no memory, for example; one shape must not end the run)
        return skipped("failed", repr(error))
    try:
        write_shape(out, card, source.name, levels)
    except ValueError as error:
        return skipped("other attributes", error)
    metadata = describe(shape) if isinstance(shape, Mesh) else None
    closed = None if metadata is None else metadata.closed and metadata.oriented
    voxels = tuple(level.num_voxels for level in levels)
    return Entry(source.name, split_of(source, card.options["splits"]), closed, voxels)


def _unusable(shape: Shape) -> tuple[str, str] | None:
    if not isinstance(shape, Shape):
        return "unreadable", f"expected a Mesh, Points or Voxels, got {type(shape).__name__}"
    if isinstance(shape, sv.Voxels):
        return None if shape.num_voxels else ("empty", "there are no voxels")
    positions = shape.positions if isinstance(shape, Points) else shape.vertices[shape.faces.reshape(-1).long()]
    if not len(positions):
        return "empty", "there are no points" if isinstance(shape, Points) else "the mesh has no faces"
    if not bool(positions.isfinite().all()):
        return "not finite", "a position is not finite"
    return None


def _as_stored(attributes: Sequence[str] | Mapping[str, Attribute]) -> dict[str, Attribute]:
    if isinstance(attributes, Mapping):
        return dict(attributes)
    unknown = [name for name in attributes if name not in ATTRIBUTES]
    if unknown or isinstance(attributes, str):
        raise ValueError(
            f"attributes must be names of {', '.join(ATTRIBUTES)}, or a mapping from any names to how they are stored, "
            f"got {attributes!r}"
        )
    return {name: ATTRIBUTES[name] for name in attributes}


def _open(folder: Path, card: Card, overwrite: bool) -> list[Entry]:
    """Make the folder ready for a card, and return the entries that are there with all their files."""
    if overwrite and is_data_set(folder):
        (folder / INDEX).unlink(missing_ok=True)  # first, so that it never points to what is gone
        if (folder / SHAPES).exists():
            rmtree(folder / SHAPES)
        (folder / REPORT).unlink(missing_ok=True)
        (folder / CARD).unlink()  # last, so that this can be broken off too
    if not (folder / CARD).exists():
        folder.mkdir(parents=True, exist_ok=True)
        remove_parts(folder)
        if any(folder.iterdir()):
            raise ValueError(f"out must be a new or empty folder, or a data set, got {folder}")
        write_card(folder, card)
    _check_same(folder, read_card(folder), card)
    remove_parts(folder)
    if not (folder / INDEX).exists():
        return []
    return [
        entry
        for entry in read_index(folder, card)
        if all(level_path(folder, entry.name, resolution).is_file() for resolution in card.box.levels)
    ]


def _check_same(folder: Path, there: Card, card: Card) -> None:
    old, new = there.as_json(), card.as_json()
    other = [key for key in new if key != "creator" and old[key] != new[key]]
    if other:
        key = other[0]
        raise ValueError(
            f"out must be built with the options it has, and {', '.join(other)} differ: {key} of {folder} is "
            f"{old[key]!r}, got {new[key]!r}. Another folder, or overwriting, takes them"
        )


def _collect(
    results: Iterator[tuple[Source, Entry | Skipped | None]], folder: Path, card: Card, entries: dict[str, Entry]
) -> tuple[list[Entry], list[Skipped]]:
    """Take results as they come, and write the index now and then, whatever happens at the end."""
    built: list[Entry] = []
    skipped: list[Skipped] = []
    saved = time.monotonic()
    try:
        for source, result in results:
            if isinstance(result, Entry):
                built.append(result)
                entries[result.name] = result
            else:
                path = "" if source.path is None else str(source.path)
                died = Skipped(source.name, path, "worker died", "its process was killed, perhaps for want of memory")
                skipped.append(result or died)
            if time.monotonic() - saved > SAVE_SECONDS:
                write_index(folder, card, entries.values())
                saved = time.monotonic()
    finally:
        write_index(folder, card, entries.values())
    return built, skipped


def _shown(results: Generator[Any], total: int, kept: int) -> Generator[Any]:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("the progress bar needs tqdm: pip install 'sparsevox[xcube]'") from error
    yield from tqdm(results, total=total, initial=kept, unit="shape", disable=None)
