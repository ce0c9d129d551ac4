"""`xcube data`: data sets."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from xcube.commands.options import Integers, Names, Numbers
from xcube.data import (
    Report,
    Source,
    build,
    file_sources,
    semantic_kitti_sources,
    shapenet_sources,
    voxel_sources,
    with_lists,
)
from xcube.data.build import Engine
from xcube.data.engines import cores
from xcube.data.hierarchy import Box, Outside, as_box
from xcube.data.sources import SPLITS
from xcube.procedural.scenes import CLASSES, scene_voxels
from xcube.procedural.shapes import procedural_sources

Layout = Literal["files", "shapenet", "semantic-kitti", "voxels"]

# Defaults of options.
CUBE = Numbers((1.0,))
STREET = Numbers((51.2, 51.2, 12.8))
PAPER = Integers((16, 128, 512))
DEMO = Integers((16, 64))
BLOCKS = Integers((128, 512))
NORMALS = Names(("normal",))
PARTS = Names(("normal", "label"))


def build_files(
    shapes: list[str],
    out: Path,
    levels: Integers = PAPER,
    size: Numbers = CUBE,
    layout: Layout = "files",
    lists: Path | None = None,
    attributes: Names = NORMALS,
    samples: int = 1_000_000,
    seed: int = 0,
    outside: Outside = "error",
    splits: dict[str, float] = dict(SPLITS),  # noqa: B006  (read only; help shows it)
    source: str = "",
    license: str = "",
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
        license: under which license they may be used, for the card
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
        license=license,
        workers=cores() if workers is None else workers,
        engine=engine,
        overwrite=overwrite,
        progress=True,
    )
    return _say(report, out)


def build_parts(
    out: Path,
    count: int = 1400,
    levels: Integers = DEMO,
    attributes: Names = PARTS,
    workers: int | None = None,
    overwrite: bool = False,
) -> int:
    """Build a data set of chairs, tables, sofas, lamps, airplanes and cars that are made by rule.

    The exit status is 1 if the data set stays empty and 2 if it cannot be built.

    Args:
        out: folder of the data set
        count: how many shapes, as many of each family
        levels: voxels along the box, from the coarsest level to the finest
        attributes: what to keep of each voxel, of normal and label
        workers: processes at work; as many as there are cores by default, 0 for this one
        overwrite: remove the data set that is there first
    """
    box = as_box(levels)
    return _by_rule(procedural_sources(count, box), out, box, attributes, "xcube.procedural.shapes", workers, overwrite)


def build_scenes(
    out: Path,
    count: int = 100,
    levels: Integers = BLOCKS,
    size: Numbers = STREET,
    attributes: Names = PARTS,
    workers: int | None = None,
    overwrite: bool = False,
) -> int:
    """Build a data set of streets with houses, trees and vehicles that are made by rule.

    The exit status is 1 if the data set stays empty and 2 if it cannot be built.

    Args:
        out: folder of the data set
        count: how many scenes
        levels: voxels along the first axis of the box, from the coarsest level to the finest
        size: edges of the box, meters
        attributes: what to keep of each voxel, of normal and label
        workers: processes at work; as many as there are cores by default, 0 for this one
        overwrite: remove the data set that is there first
    """
    box = as_box(levels, size[0] if len(size) == 1 else size)
    names = [f"scene-{seed:06}" for seed in range(count)]
    sources = [Source(name, partial(scene_voxels, name, box)) for name in names]
    about = f"xcube.procedural.scenes, {len(CLASSES)} classes"
    return _by_rule(sources, out, box, attributes, about, workers, overwrite)


def _by_rule(
    sources: Sequence[Source],
    out: Path,
    box: Box,
    attributes: Sequence[str],
    about: str,
    workers: int | None,
    overwrite: bool,
) -> int:
    """Build a data set of shapes that are ours, and fit."""
    report = build(
        sources,
        out,
        box,
        attributes=attributes,
        source=about,
        license="Apache-2.0",
        workers=cores() if workers is None else workers,
        overwrite=overwrite,
        progress=True,
    )
    return _say(report, out)


def _say(report: Report, out: Path) -> int:
    sys.stdout.write(f"{report}\n")
    if report.skipped:
        sys.stdout.write(f"{out / 'report.csv'} says which and why\n")
    return 0 if report.built or report.kept else 1


def _one(shapes: Sequence[str], layout: str) -> str:
    if len(shapes) != 1:
        raise ValueError(f"shapes must be one folder with layout {layout!r}, got {len(shapes)}")
    return shapes[0]
