"""Building of datasets: in parallel, and resumable after a kill at any moment."""

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
from xcube.data.axes import Up, upright
from xcube.data.dataset import (
    ATTRIBUTES,
    CARD,
    INDEX,
    REPORT,
    SHAPES,
    Attribute,
    Card,
    Entry,
    is_dataset,
    level_path,
    read_card,
    read_index,
    remove_partial_files,
    write_card,
    write_csv,
    write_index,
    write_shape,
)
from xcube.data.engines import run_here, run_processes, run_ray
from xcube.data.hierarchy import Box, Outside, build_hierarchy
from xcube.data.sources import SPLITS, Source, Splits, seed_of, split_of, unique
from xcube.geometry.normals import outward_normals

Engine = Literal["processes", "ray"]

SAVE_SECONDS = 10.0  # between writes of the index: the work that a kill may cost


class Skipped(NamedTuple):
    """A shape that was skipped.

    name: Name of the shape.
    path: File of the shape, "" if it has none.
    reason: Reason in a few words.
    detail: Full error message.
    """

    name: str
    path: str
    reason: str
    detail: str


@dataclass(frozen=True)
class BuildReport:
    """The result of a build.

    built: The shapes that were built.
    kept: Number of shapes that the dataset already had.
    skipped: The shapes that were skipped, by name.
    """

    built: Sequence[Entry] = ()
    kept: int = 0
    skipped: Sequence[Skipped] = field(default=())

    def __str__(self) -> str:
        kept = f", {self.kept:,} already existed" if self.kept else ""
        lines = [f"{len(self.built):,} shapes built{kept}, {len(self.skipped):,} skipped"]
        lines += [f"  {count:,} {reason}" for reason, count in Counter(s.reason for s in self.skipped).most_common()]
        undefined = sum(entry.watertight is False for entry in self.built)
        lines += [f"{undefined:,} meshes are not watertight, so their inside is undefined"] * (undefined > 0)
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
    up: Up = "z",
    outward: bool = False,
    splits: Splits = SPLITS,
    source: str = "",
    license: str = "",
    workers: int = 0,
    engine: Engine = "processes",
    overwrite: bool = False,
    progress: bool = False,
) -> BuildReport:
    """Build a dataset from shapes, or resume one.

    Shapes that cannot be used are skipped and reported. The result is byte-identical for any number of workers, any
    order of the sources and any number of interruptions. Shapes in the index are not built again, even if their
    file has changed, and stay if they are no longer among the sources; skipped ones are tried again.

    A script that uses workers needs `if __name__ == "__main__":`, as with every process pool.

    Args:
        sources: Named shapes, such as those of `file_sources` and of the converters.
        out: Folder of the dataset, created if it does not exist; `xcube.data.dataset` describes its layout.
        box: The box with its levels.
        attributes: Attributes to store: names of `ATTRIBUTES`, or a mapping from any name to its `Attribute`. A shape
            that lacks one of them is skipped.
        samples: Number of points to sample on the surface of a mesh, from which attributes are computed.
        seed: Random seed of these points, combined with name and file of the shape.
        outside: Treatment of shapes that do not fit into the box (`build_hierarchy`); "error" skips them.
        up: Axis that points up in the meshes and point clouds, "y" or "z". Those with y up are rotated (`upright`); in
            the dataset z points up.
        outward: Whether to reverse normals of meshes that point inward (`outward_normals`), for meshes whose faces are
            not oriented.
        splits: Fraction of each split, for sources without a split.
        source: Source of the shapes, written to card.json.
        license: License of the shapes, written to card.json.
        workers: Number of worker processes; 0 builds in the main process.
        engine: "processes" on this machine, or "ray", a cluster whose nodes see the same files.
        overwrite: Whether to delete an existing dataset in the folder first.
        progress: Whether to show a progress bar.

    Raises:
        ImportError: If a package that the engine or the progress bar needs is not installed.
        OSError: If a file of the dataset cannot be written, for example because the disk is full. Shapes in the index
            are complete; the same call resumes.
        ValueError: If an argument is invalid, two sources have the same name, the folder holds something else, or a
            dataset built with other options.
    """
    if engine not in ("processes", "ray"):
        raise ValueError(f"engine must be 'processes' or 'ray', got {engine!r}")
    if outside not in ("error", "clip", "rescale"):
        raise ValueError(f"outside must be 'error', 'clip' or 'rescale', got {outside!r}")
    if up not in ("y", "z"):
        raise ValueError(f"up must be 'y' or 'z', got {up!r}")
    for name, number, least in (("samples", samples, 1), ("workers", workers, int(engine == "ray"))):
        if checks.integer(name, number) < least:
            raise ValueError(f"{name} must be at least {least}, got {number}")
    if not splits or min(splits.values()) < 0 or not sum(splits.values()) > 0:
        raise ValueError(f"splits must be fractions that are not negative, and not all 0, got {dict(splits)}")
    options: dict[str, Any] = {
        "samples": samples,
        "seed": checks.integer("seed", seed),
        "outside": outside,
        "splits": dict(splits),
    }
    options |= {"up": up} if up != "z" else {}  # cards of earlier versions have no such options
    options |= {"outward": True} if outward else {}
    ordered = unique(sources)
    card = Card(box, _as_stored(attributes), options, source, license)
    folder = Path(out)
    entries = {entry.name: entry for entry in _open(folder, card, overwrite)}
    for each in ordered:
        if each.name in entries:
            entry = entries[each.name]
            entries[each.name] = entry._replace(split=split_of(each, splits), about=each.about or entry.about)
    waiting = [each for each in ordered if each.name not in entries]
    make = partial(build_one, out=folder, card=card)
    if engine == "ray":
        results = run_ray(make, waiting, workers)
    else:
        results = run_processes(make, waiting, workers) if workers else run_here(make, waiting)
    kept = len(ordered) - len(waiting)
    with closing(_with_progress(results, len(ordered), kept) if progress else results) as found:
        built, skipped = _collect(found, folder, card, entries)
    write_csv(folder / REPORT, Skipped._fields, sorted(skipped))
    return BuildReport(sorted(built), kept, sorted(skipped))


def build_one(source: Source, *, out: Path, card: Card) -> Entry | Skipped:
    """Load one shape and write its levels. Return its entry in the index, or the reason why it was skipped.

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
        raise  # the file is not at fault
    except Exception as error:  # noqa: BLE001  (readers of damaged files raise all kinds of errors)
        return skipped("unreadable", error)
    reason = _unusable(shape)
    if reason:
        return skipped(*reason)
    try:
        shape = upright(shape, card.options.get("up", "z"))
        samples, outside = card.options["samples"], card.options["outside"]
        levels = build_hierarchy(
            shape, card.box, samples=samples, seed=seed, outside=outside, fill="fill" in card.attributes
        )
        if card.options.get("outward") and isinstance(shape, Mesh):
            levels = [outward_normals(level) for level in levels]
    except ImportError:
        raise
    except ValueError as error:
        return skipped("out of the box", error)
    except Exception as error:  # noqa: BLE001  (such as out of memory; one shape must not end the build)
        return skipped("failed", repr(error))
    try:
        write_shape(out, card, source.name, levels)
    except ValueError as error:
        return skipped("other attributes", error)
    metadata = describe(shape) if isinstance(shape, Mesh) else None
    watertight = None if metadata is None else metadata.closed and metadata.oriented
    voxels = tuple(level.num_voxels for level in levels)
    return Entry(source.name, split_of(source, card.options["splits"]), watertight, voxels, source.about)


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
            f"attributes must be names of {', '.join(ATTRIBUTES)}, or a mapping from any name to its Attribute, "
            f"got {attributes!r}"
        )
    return {name: ATTRIBUTES[name] for name in attributes}


def _open(folder: Path, card: Card, overwrite: bool) -> list[Entry]:
    """Prepare the folder for a card, and return the entries whose files all exist."""
    if overwrite and is_dataset(folder):
        (folder / INDEX).unlink(missing_ok=True)  # first, so that it never points to missing files
        if (folder / SHAPES).exists():
            rmtree(folder / SHAPES)
        (folder / REPORT).unlink(missing_ok=True)
        (folder / CARD).unlink()  # last, so that this can be interrupted too
    if not (folder / CARD).exists():
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial_files(folder)
        if any(folder.iterdir()):
            raise ValueError(f"out must be a new or empty folder, or a dataset, got {folder}")
        write_card(folder, card)
    _check_same(folder, read_card(folder), card)
    remove_partial_files(folder)
    if not (folder / INDEX).exists():
        return []
    return [
        entry
        for entry in read_index(folder, card)
        if all(level_path(folder, entry.name, resolution).is_file() for resolution in card.box.levels)
    ]


def _check_same(folder: Path, existing: Card, card: Card) -> None:
    old, new = existing.as_json(), card.as_json()
    other = [key for key in new if key != "creator" and old[key] != new[key]]
    if other:
        key = other[0]
        raise ValueError(
            f"a dataset must be resumed with its own options, but {', '.join(other)} differ: {key} of {folder} is "
            f"{old[key]!r}, got {new[key]!r}; use another folder, or overwrite"
        )


def _collect(
    results: Iterator[tuple[Source, Entry | Skipped | None]], folder: Path, card: Card, entries: dict[str, Entry]
) -> tuple[list[Entry], list[Skipped]]:
    """Collect results, and write the index every few seconds and at the end."""
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
                died = Skipped(source.name, path, "worker died", "its process was killed, perhaps out of memory")
                skipped.append(result or died)
            if time.monotonic() - saved > SAVE_SECONDS:
                write_index(folder, card, entries.values())
                saved = time.monotonic()
    finally:
        write_index(folder, card, entries.values())
    return built, skipped


def _with_progress(results: Generator[Any], total: int, kept: int) -> Generator[Any]:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("the progress bar needs tqdm: pip install 'sparsevox[xcube]'") from error
    yield from tqdm(results, total=total, initial=kept, unit="shape", disable=None)
