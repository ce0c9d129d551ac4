"""`xcube data`: build datasets."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from xcube.commands.list_types import Integers, Names, Numbers
from xcube.data import (
    BuildReport,
    Source,
    build,
    file_sources,
    semantic_kitti_sources,
    sh3f_sources,
    shapenet_sources,
    voxel_sources,
    with_lists,
)
from xcube.data.axes import Up
from xcube.data.build import Engine
from xcube.data.engines import cores
from xcube.data.hierarchy import Box, Outside, as_box
from xcube.data.sources import SPLITS
from xcube.procedural.scenes import CLASSES, scene_voxels
from xcube.procedural.shapes import procedural_sources

Layout = Literal["files", "shapenet", "sh3f", "semantic-kitti", "voxels"]
UPRIGHT: tuple[Layout, ...] = ("semantic-kitti", "voxels")  # layouts in which z always points up

# Defaults of options.
CUBE = Numbers((1.0,))
STREET = Numbers((51.2, 51.2, 12.8))
PAPER = Integers((16, 128, 512))
DEMO = Integers((16, 64))
BLOCKS = Integers((128, 512))
NORMALS = Names(("normal",))
NORMALS_LABELS = Names(("normal", "label"))
OF_SOLIDS = Names(("normal", "label", "fill"))


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
    up: Up | None = None,
    splits: dict[str, float] = dict(SPLITS),  # noqa: B006  (read only; shown by --help)
    source: str = "",
    license: str = "",
    workers: int | None = None,
    engine: Engine = "processes",
    overwrite: bool = False,
) -> int:
    """Build a dataset from meshes, point clouds or voxels, or resume one.

    Shapes that cannot be used are skipped and listed in report.csv. The same command resumes after an interruption. The
    exit status is 1 if no shape could be used and 2 if the dataset cannot be built.

    Args:
        shapes: Files, folders, or patterns such as 'scans/**/*.ply'; .sh3f files or folders of them with layout "sh3f",
            and one folder with the other layouts.
        out: Output folder of the dataset.
        levels: Number of voxels along the first axis of the box at each level, coarsest first, separated by commas.
        size: Edge lengths of the box, centered at the origin, in world units: one number for a cube, or three.
        layout: Layout of the input: "files" with any names, "shapenet" folders CATEGORY/MODEL, "sh3f" furniture
            libraries of Sweet Home 3D, "semantic-kitti" folders sequences/NUMBER, or "voxels", arrays of the voxels of
            the finest level.
        lists: Folder of lists such as train.lst, which name the shapes of each split.
        attributes: Voxel attributes to store: any of normal, color, label, instance, intensity and fill (the solid
            fraction of each voxel at the next finer level), separated by commas.
        samples: Number of points to sample on the surface of a mesh, from which attributes are computed.
        seed: Random seed of the sampled points.
        outside: Treatment of shapes that do not fit into the box: "error" skips and "clip" crops them, "rescale" moves
            and scales every mesh and point cloud to fill the box.
        up: Axis that points up in the input, "y" or "z", by default "y" with layout "sh3f" and "z" with the others.
            Shapes with y up are rotated so that z points up, and the side that faced along z faces along x.
        splits: Fraction of shapes in each split, for shapes that no list names.
        source: Source of the shapes, written to card.json.
        license: License of the shapes, written to card.json.
        workers: Number of worker processes, by default one per core; 0 builds in the main process.
        engine: Where workers run: "processes" on this machine, or a "ray" cluster whose nodes see the same files.
        overwrite: Delete an existing dataset first.
    """
    box = as_box(levels, size[0] if len(size) == 1 else size)
    if up == "y" and layout in UPRIGHT:
        raise ValueError(f"up must be 'z' with layout {layout!r}, got 'y'")
    if layout == "files":
        sources = file_sources(shapes)
    elif layout == "sh3f":
        sources = sh3f_sources(*shapes)
    else:
        folder = _one_folder(shapes, layout)
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
        up=up or ("y" if layout == "sh3f" else "z"),
        splits=splits,
        source=source,
        license=license,
        workers=cores() if workers is None else workers,
        engine=engine,
        overwrite=overwrite,
        progress=True,
    )
    return _print_report(report, out)


def build_procedural(
    out: Path,
    count: int = 1400,
    levels: Integers = DEMO,
    attributes: Names = OF_SOLIDS,
    workers: int | None = None,
    overwrite: bool = False,
) -> int:
    """Build a dataset of procedural chairs, tables, sofas, lamps, airplanes, cars, beds and cabinets.

    The exit status is 1 if no shape could be used and 2 if the dataset cannot be built.

    Args:
        out: Output folder of the dataset.
        count: Number of shapes, divided equally among the families.
        levels: Number of voxels along an edge of the box at each level, coarsest first, separated by commas.
        attributes: Voxel attributes to store: any of normal, label and fill, separated by commas.
        workers: Number of worker processes, by default one per core; 0 builds in the main process.
        overwrite: Delete an existing dataset first.
    """
    box = as_box(levels)
    sources = procedural_sources(count, box)
    return _build_generated(sources, out, box, attributes, "xcube.procedural.shapes", workers, overwrite)


def build_scenes(
    out: Path,
    count: int = 100,
    levels: Integers = BLOCKS,
    size: Numbers = STREET,
    attributes: Names = NORMALS_LABELS,
    workers: int | None = None,
    overwrite: bool = False,
) -> int:
    """Build a dataset of procedural streets with houses, trees and vehicles.

    The exit status is 1 if no shape could be used and 2 if the dataset cannot be built.

    Args:
        out: Output folder of the dataset.
        count: Number of scenes.
        levels: Number of voxels along the first axis of the box at each level, coarsest first, separated by commas.
        size: Edge lengths of the box in meters, separated by commas.
        attributes: Voxel attributes to store: normal, label or both, separated by a comma.
        workers: Number of worker processes, by default one per core; 0 builds in the main process.
        overwrite: Delete an existing dataset first.
    """
    box = as_box(levels, size[0] if len(size) == 1 else size)
    names = [f"scene-{seed:06}" for seed in range(count)]
    sources = [Source(name, partial(scene_voxels, name, box)) for name in names]
    about = f"xcube.procedural.scenes, {len(CLASSES)} classes"
    return _build_generated(sources, out, box, attributes, about, workers, overwrite)


def _build_generated(
    sources: Sequence[Source],
    out: Path,
    box: Box,
    attributes: Sequence[str],
    about: str,
    workers: int | None,
    overwrite: bool,
) -> int:
    """Build a dataset of procedural shapes."""
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
    return _print_report(report, out)


def _print_report(report: BuildReport, out: Path) -> int:
    sys.stdout.write(f"{report}\n")
    if report.skipped:
        sys.stdout.write(f"{out / 'report.csv'} lists the skipped shapes\n")
    return 0 if report.built or report.kept else 1


def _one_folder(shapes: Sequence[str], layout: str) -> str:
    if len(shapes) != 1:
        raise ValueError(f"shapes must be one folder with layout {layout!r}, got {len(shapes)} paths")
    return shapes[0]
