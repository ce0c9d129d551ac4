"""The command `xcube`: `pip install 'sparsevox[xcube]'`.

Every subcommand is a function that returns the exit status. jsonargparse makes its options from the signature and its
help from the docstring.
"""

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xcube.data import build, file_sources, semantic_kitti_sources, shapenet_sources, voxel_sources, with_lists
from xcube.data.build import Engine
from xcube.data.hierarchy import Outside, as_box
from xcube.data.sources import SPLITS

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

Layout = Literal["files", "shapenet", "semantic-kitti", "voxels"]


class Integers(tuple[int, ...]):
    """16,128,512 on the command line."""


class Numbers(tuple[float, ...]):
    """102.4,102.4,25.6 on the command line."""


class Names(tuple[str, ...]):
    """normal,label on the command line."""


LEVELS, CUBE, NORMALS = Integers((16, 128, 512)), Numbers((1.0,)), Names(("normal",))


def data_build(
    shapes: list[str],
    out: Path,
    levels: Integers = LEVELS,
    size: Numbers = CUBE,
    layout: Layout = "files",
    lists: Path | None = None,
    attributes: Names = NORMALS,
    samples: int = 1_000_000,
    seed: int = 0,
    outside: Outside = "error",
    splits: dict[str, float] = dict(SPLITS),  # noqa: B006  (read only; help shows it)
    source: str = "",
    licence: str = "",
    workers: int | None = None,
    engine: Engine = "processes",
    overwrite: bool = False,
) -> int:
    """Build a data set from meshes, point clouds or voxels, or go on with one.

    What cannot be used is left out and listed in report.csv. The same command goes on after an interruption. The exit
    status is 1 if the data set stays empty and 2 if it cannot be built.

    Args:
        shapes: files, folders, or patterns such as 'scans/**/*.ply'; with another layout, one folder
        out: folder of the data set
        levels: voxels along the first axis of the box, from the coarsest level to the finest
        size: edges of the box around the origin, one for a cube or three
        layout: what the folder holds: files of any names; CATEGORY/MODEL of ShapeNet; sequences/ of SemanticKITTI;
            arrays of voxels of the finest level
        lists: folder of lists, train.lst and the like, that say which shapes belong to which split
        attributes: what to keep of each voxel, of normal, color, label, instance and intensity
        samples: points on the surface of a mesh, from which attributes come
        seed: of these points
        outside: what to do with shapes that do not fit into the box: leave them out, cut them off, or scale them
        splits: share of each split, where no list says
        source: where the shapes come from, for the card
        licence: under which licence they may be used, for the card
        workers: processes at work; as many as there are cores by default, 0 for this one
        engine: processes of this machine, or ray, a cluster whose nodes see the same files
        overwrite: remove the data set that is there first
    """
    box = as_box(levels, size[0] if len(size) == 1 else size)
    if layout == "files":
        sources = file_sources(shapes)
    else:
        folder = _one(shapes, layout)
        if layout == "shapenet":
            sources = shapenet_sources(folder)
        else:
            sources = semantic_kitti_sources(folder) if layout == "semantic-kitti" else voxel_sources(folder, box)
    if lists is not None:
        sources = with_lists(sources, lists)
    report = build(
        sources,
        out,
        box,
        attributes=attributes,
        samples=samples,
        seed=seed,
        outside=outside,
        splits=splits,
        source=source,
        licence=licence,
        workers=_cores() if workers is None else workers,
        engine=engine,
        overwrite=overwrite,
        progress=True,
    )
    sys.stdout.write(f"{report}\n")
    if report.skipped:
        sys.stdout.write(f"{out / 'report.csv'} says which and why\n")
    return 0 if report.built or report.kept else 1


def _one(shapes: Sequence[str], layout: str) -> str:
    if len(shapes) != 1:
        raise ValueError(f"shapes must be one folder with layout {layout!r}, got {len(shapes)}")
    return shapes[0]


# Groups of subcommands: what each does, and the functions that do it. The first argument of these is a list of words.
COMMANDS: dict[str, tuple[str, dict[str, Callable[..., int]]]] = {
    "data": ("data sets", {"build": data_build}),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = parser().parse_args(arguments)
    group = options[options.subcommand]
    chosen = group[group.subcommand].as_dict()
    try:
        return COMMANDS[options.subcommand][1][group.subcommand](**chosen)
    except (ImportError, OSError, ValueError) as error:
        sys.stderr.write(f"xcube: {error}\n")
        return 2


def parser() -> "ArgumentParser":
    """The parser of the command line.

    Raises:
        ImportError: If jsonargparse is not installed.
    """
    try:
        from jsonargparse import ArgumentParser
    except ImportError as error:
        raise ImportError("the command line needs jsonargparse: pip install 'sparsevox[xcube]'") from error
    _register_lists()
    top = ArgumentParser(prog="xcube", description="XCube: data sets and models of sparse voxels.")
    groups = top.add_subcommands()
    for name, (about, functions) in COMMANDS.items():
        group = ArgumentParser(description=about)
        groups.add_subcommand(name, group, help=about)
        commands = group.add_subcommands()
        for verb, function in functions.items():
            command, summary = _of_function(function)
            commands.add_subcommand(verb, command, help=summary)
    return top


def _of_function(function: Callable[..., int]) -> "tuple[ArgumentParser, str]":
    """A parser of the arguments of a function, and in a line what it does."""
    import docstring_parser
    from jsonargparse import ArgumentParser

    doc = docstring_parser.parse(function.__doc__ or "")
    about = {each.arg_name: each.description for each in doc.params}
    words, *others = inspect.signature(function).parameters.values()
    made = ArgumentParser(description=doc.description)
    made.add_argument(words.name, nargs="+", type=str, help=about[words.name])
    flags = [each.name for each in others if each.annotation is bool]
    made.add_function_arguments(function, as_group=False, skip={words.name, *flags})
    for name in flags:
        made.add_argument(f"--{name}", action="store_true", help=about[name])
    return made, doc.short_description or ""


def _register_lists() -> None:
    from jsonargparse.typing import register_type

    def as_text(values: Sequence[Any]) -> str:
        return ",".join(map(str, values))

    register_type(Integers, as_text, lambda text: Integers(map(int, text.split(","))))
    register_type(Numbers, as_text, lambda text: Numbers(map(float, text.split(","))))
    register_type(Names, as_text, lambda text: Names(text.split(",")))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
