"""`xcube data`: build datasets."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from xcube.commands.list_types import Integers, Names, Numbers
from xcube.data import (
    BuildReport,
    Source,
    build,
    cube_sources,
    file_sources,
    furniture_sources,
    occ3d_sources,
    semantic_kitti_sources,
    semantic_kitti_voxel_sources,
    sh3f_sources,
    shapenet_sources,
    voxel_sources,
    with_lists,
)
from xcube.data.axes import Up
from xcube.data.build import Engine
from xcube.data.credits import credits_text
from xcube.data.dataset import Entry, read_card, read_index
from xcube.data.engines import cores
from xcube.data.furniture import model_name
from xcube.data.hierarchy import Box, Outside, as_box
from xcube.data.sources import SPLITS
from xcube.procedural.scenes import CLASSES, scene_voxels
from xcube.procedural.shapes import FAMILIES, procedural_sources

Layout = Literal["files", "shapenet", "sh3f", "semantic-kitti", "semantic-kitti-voxels", "occ3d", "voxels", "cubes"]
UPRIGHT: tuple[Layout, ...] = (
    "semantic-kitti",
    "semantic-kitti-voxels",
    "occ3d",
    "voxels",
)  # layouts in which z always points up

# Defaults of options.
CUBE = Numbers((1.0,))
STREET = Numbers((51.2, 51.2, 12.8))
PAPER = Integers((16, 128, 512))
DEMO = Integers((16, 64))
BLOCKS = Integers((128, 512))
NORMALS = Names(("normal",))
NORMALS_LABELS = Names(("normal", "label"))
NORMALS_FILL = Names(("normal", "fill"))
NORMALS_LABELS_FILL = Names(("normal", "label", "fill"))

LICENSE = "Apache-2.0"  # of procedural shapes


def build_files(
    shapes: list[str],
    out: Path,
    levels: Integers = PAPER,
    size: Numbers = CUBE,
    thin: Integers = Integers(),  # noqa: B008  (immutable)
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
        thin: Levels, by their numbers of voxels, whose voxels are exactly those that contain voxels of the next finer
            level, without early dilation; for a level that is trained as the finest one and refined later.
        layout: Layout of the input: "files" with any names, "shapenet" folders CATEGORY/MODEL, "sh3f" furniture
            libraries of Sweet Home 3D, "semantic-kitti" scans in folders sequences/NUMBER, "semantic-kitti-voxels" the
            labeled volumes of its scene completion, "occ3d" those of Occ3D-nuScenes (labels.npz), "voxels", arrays of
            the voxels of the finest level, or "cubes", colored voxel models (.vox, .npz) of any size, whose voxels
            become cubes.
        lists: Folder of lists such as train.lst, which name the shapes of each split.
        attributes: Voxel attributes to store: any of normal, color, label, instance, intensity, fill (the solid
            fraction of each voxel at the next finer level), observed and occluded (by a single scan), separated by
            commas.
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
    box = as_box(levels, size[0] if len(size) == 1 else size, thin)
    if up == "y" and layout in UPRIGHT:
        raise ValueError(f"up must be 'z' with layout {layout!r}, got 'y'")
    if layout == "files":
        sources = file_sources(shapes)
    elif layout == "sh3f":
        sources = sh3f_sources(*shapes)
    else:
        folder = _one_folder(shapes, layout)
        makers: dict[str, Callable[[str], list[Source]]] = {
            "shapenet": shapenet_sources,
            "semantic-kitti": semantic_kitti_sources,
            "semantic-kitti-voxels": partial(semantic_kitti_voxel_sources, box=box),
            "occ3d": partial(occ3d_sources, box=box),
            "voxels": partial(voxel_sources, box=box),
            "cubes": cube_sources,
        }
        sources = makers[layout](folder)
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
    thin: Integers = Integers(),  # noqa: B008  (immutable)
    attributes: Names = NORMALS_LABELS_FILL,
    workers: int | None = None,
    overwrite: bool = False,
) -> int:
    """Build a dataset of procedural chairs, tables, sofas, lamps, airplanes, cars, beds and cabinets.

    The exit status is 1 if no shape could be used and 2 if the dataset cannot be built.

    Args:
        out: Output folder of the dataset.
        count: Number of shapes, divided equally among the families.
        levels: Number of voxels along an edge of the box at each level, coarsest first, separated by commas.
        thin: Levels, by their numbers of voxels, whose voxels are exactly those that contain voxels of the next finer
            level, without early dilation; for a level that is trained as the finest one and refined later.
        attributes: Voxel attributes to store: any of normal, label and fill, separated by commas.
        workers: Number of worker processes, by default one per core; 0 builds in the main process.
        overwrite: Delete an existing dataset first.
    """
    box = as_box(levels, thin=thin)
    sources = procedural_sources(count, box)
    return _build_generated(sources, out, box, attributes, "xcube.procedural.shapes", workers, overwrite)


def build_shapes(
    out: Path,
    furniture: list[Path] = [],  # noqa: B006  (read only)
    count: int = 12000,
    copies: int = 6,
    levels: Integers = DEMO,
    thin: Integers = Integers(),  # noqa: B008  (immutable)
    attributes: Names = NORMALS_FILL,
    samples: int = 200_000,
    seed: int = 0,
    workers: int | None = None,
    overwrite: bool = False,
) -> int:
    """Build a dataset of procedural shapes and furniture in eight categories, or resume one.

    The categories are chair, table, sofa, lamp, airplane, car, bed and cabinet; the name of each shape begins with its
    category. Models of other kinds in the furniture libraries are left out. Shapes that cannot be used are skipped and
    listed in report.csv. The exit status is 1 if no shape could be used and 2 if the dataset cannot be built.

    Args:
        out: Output folder of the dataset.
        furniture: Furniture libraries of Sweet Home 3D (.sh3f), or folders of them; without this option, all shapes
            are procedural.
        count: Number of procedural shapes, divided equally among the categories.
        copies: Number of changed copies of each training model of the furniture, with other proportions, every second
            one mirrored.
        levels: Number of voxels along an edge of the box at each level, coarsest first, separated by commas.
        thin: Levels, by their numbers of voxels, whose voxels are exactly those that contain voxels of the next finer
            level, without early dilation; for a level that is trained as the finest one and refined later.
        attributes: Voxel attributes to store: normal, fill or both, separated by a comma.
        samples: Number of points to sample on the surface of a model, from which attributes are computed.
        seed: Random seed of the sampled points and of the changed copies.
        workers: Number of worker processes, by default one per core; 0 builds in the main process.
        overwrite: Delete an existing dataset first.
    """
    if not set(attributes) <= set(NORMALS_FILL):
        raise ValueError(f"attributes must be among {', '.join(NORMALS_FILL)}, got {', '.join(attributes)}")
    box = as_box(levels, thin=thin)
    models = furniture_sources(*furniture, copies=copies, seed=seed) if furniture else []
    source, license = "procedural shapes (xcube.procedural.shapes)", LICENSE
    if models:
        libraries = sorted({model.name.split("/")[1] for model in models})
        source += f" and furniture libraries of Sweet Home 3D, with changed copies: {', '.join(libraries)}"
        terms = sorted({model.about.license or "unknown" for model in models})
        license = f"procedural shapes: {LICENSE}; furniture, each model as index.csv says: {'; '.join(terms)}"
    report = build(
        [*procedural_sources(count, box), *models],
        out,
        box,
        attributes=attributes,
        samples=samples,
        seed=seed,
        outside="rescale",
        outward=True,
        source=source,
        license=license,
        workers=cores() if workers is None else workers,
        overwrite=overwrite,
        progress=True,
    )
    status = _print_report(report, out)
    sys.stdout.write(_counts(read_index(out, read_card(out))))
    return status


def print_credits(dataset: Path, split: str | None = None) -> int:
    """Print who made the shapes of a dataset, under which license, as Markdown.

    The exit status is 2 if the dataset or its split does not exist.

    Args:
        dataset: Folder of the dataset.
        split: Split whose shapes are listed, such as train; by default all shapes are.
    """
    entries = read_index(dataset, read_card(dataset))
    known = sorted({entry.split for entry in entries})
    if split is not None and split not in known:
        raise ValueError(f"split must be one of {', '.join(known)}, got {split!r}")
    text = credits_text(entry for entry in entries if split in (None, entry.split))
    sys.stdout.write(text or "index.csv names no license or creator of a shape\n")
    return 0


def _counts(entries: Sequence[Entry]) -> str:
    """A table: for each category and split, the number of procedural shapes, and of models with and without copies."""
    found: Counter[tuple[str, str, str]] = Counter()
    for entry in entries:
        kind = "procedural" if "/" not in entry.name else "model" if model_name(entry.name) == entry.name else "copy"
        found[entry.name.split("/")[0].split("-")[0], entry.split, kind] += 1
    lines = ["shapes per category: procedural + models of furniture + changed copies of these"]
    for category in FAMILIES:
        parts = [
            f"{split} {' + '.join(str(found[category, split, kind]) for kind in ('procedural', 'model', 'copy'))}"
            for split in SPLITS
        ]
        lines.append(f"  {category:<10}{', '.join(parts)}")
    return "\n".join(lines) + "\n"


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
        license=LICENSE,
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
