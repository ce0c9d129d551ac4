"""Sources for `build` from common layouts: ShapeNet-style folders, SemanticKITTI, arrays of voxels, colored cubes."""

from collections.abc import Iterable, Mapping
from functools import partial
from os import PathLike, fspath
from pathlib import Path

import numpy as np
import torch

import sparsevox as sv
from sparsevox.io import load_points, load_voxels, voxel_faces
from sparsevox.io.meshes import READS
from sparsevox.shapes import Mesh, Points, Voxels
from xcube.data.colors import unit_colors
from xcube.data.hierarchy import Box
from xcube.data.sources import LIST, Source, as_name, file_source, load_shape, unique, with_lists

# Path of the mesh of a model in ShapeNetCore, version 2 and version 1.
SHAPENET_MESHES = ("models/model_normalized.obj", "model.obj")

SEMANTIC_KITTI_VAL = ("08",)
SEMANTIC_KITTI_TRAIN = ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10")

# Labels of SemanticKITTI -> the 19 classes of its single-scan benchmark, which does not distinguish moving objects. All
# other labels become 0, which the benchmark ignores.
SEMANTIC_KITTI: Mapping[int, int] = {
    label: number
    for number, labels in enumerate(
        [
            (10, 252),  # car
            (11,),  # bicycle
            (15,),  # motorcycle
            (18, 258),  # truck
            (13, 16, 20, 256, 257, 259),  # other vehicle
            (30, 254),  # person
            (31, 253),  # bicyclist
            (32, 255),  # motorcyclist
            (40, 60),  # road
            (44,),  # parking
            (48,),  # sidewalk
            (49,),  # other ground
            (50,),  # building
            (51,),  # fence
            (70,),  # vegetation
            (71,),  # trunk
            (72,),  # terrain
            (80,),  # pole
            (81,),  # traffic sign
        ],
        start=1,
    )
    for label in labels
}


def shapenet_sources(root: str | PathLike[str]) -> list[Source]:
    """Find meshes in folders of categories; their names are CATEGORY/MODEL.

    A model is a mesh file such as CATEGORY/MODEL.obj, or a folder CATEGORY/MODEL with one mesh, or with one at the path
    of ShapeNetCore. If a category has lists (CATEGORY/train.lst and so on), they give the splits, and models that
    no list names are left out.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If there is no model, or a model has several meshes.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"root must be a folder, got {root}, which does not exist")
    sources: list[Source] = []
    for category in sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."):
        found = []
        for model in sorted(category.iterdir()):
            mesh = _shapenet_mesh(model)
            if mesh:
                name = as_name([category.name, model.name if model.is_dir() else model.stem])
                found.append(Source(name, partial(load_shape, mesh), mesh))
        sources += with_lists(unique(found), category) if any(category.glob(f"*{LIST}")) else found
    if not sources:
        expected = f"CATEGORY/MODEL{READS[0]} or CATEGORY/MODEL/{SHAPENET_MESHES[0]}"
        raise ValueError(f"{root} must hold {expected}, got neither")
    return unique(sources)


def _shapenet_mesh(model: Path) -> Path | None:
    if model.is_file():
        return model if model.suffix.lower() in READS else None
    for place in SHAPENET_MESHES:
        if (model / place).is_file():
            return model / place
    meshes = sorted(path for path in model.rglob("*") if path.suffix.lower() in READS)
    if len(meshes) > 1:
        raise ValueError(f"{model}: expected one mesh, got {meshes[0].name} and {meshes[1].name}")
    return meshes[0] if meshes else None


def semantic_kitti_sources(
    root: str | PathLike[str], *, classes: Mapping[int, int] | None = SEMANTIC_KITTI
) -> list[Source]:
    """Find scans of SemanticKITTI; their names are SEQUENCE/NUMBER.

    A scan is sequences/SEQUENCE/velodyne/NUMBER.bin and gives points with "intensity"; sequences/SEQUENCE/labels/
    NUMBER.label, if it exists, gives "label". Positions are in meters around the scanner. The splits are those of the
    benchmark: sequence 08 is "val", the others of 00 to 10 are "train", all others "test".

    Args:
        root: The folder that holds sequences/.
        classes: The class of each label; missing labels become 0. None keeps the original labels.

    Raises:
        FileNotFoundError: If there are no scans.
    """
    sources = []
    for scan in sorted(Path(root).glob("sequences/*/velodyne/*.bin")):
        sequence = scan.parents[1]
        labels = sequence / "labels" / f"{scan.stem}.label"
        load = partial(load_scan, scan, labels if labels.is_file() else None, classes)
        train, val = sequence.name in SEMANTIC_KITTI_TRAIN, sequence.name in SEMANTIC_KITTI_VAL
        split = "train" if train else "val" if val else "test"
        sources.append(Source(as_name([sequence.name, scan.stem]), load, scan, split))
    if not sources:
        raise FileNotFoundError(f"{root} must hold sequences/*/velodyne/*.bin, got none")
    return unique(sources)


def load_scan(path: Path, labels: Path | None, classes: Mapping[int, int] | None) -> Points:
    """Load a scan of SemanticKITTI and map its labels to classes."""
    points = load_points(path, labels=labels)
    if labels is None or classes is None:
        return points
    table = torch.zeros(1 << 16, dtype=torch.int64)
    table[list(classes)] = torch.tensor(list(classes.values()))
    return Points(points.positions, {**points.attributes, "label": table[points.attributes["label"]]})


def voxel_sources(root: str | PathLike[str], box: Box, *, centered: bool = False) -> list[Source]:
    """Find voxels of the finest level of a box in .npy and .npz files; their names are the paths below the folder.

    A .npy file holds integers [N, 3], a .npz file such an array called "ijk" and arrays of attributes. Both count from
    the lower corner of the box. Files of `sv.io.save_voxels` hold their own voxel size and origin.

    Args:
        root: The folder, or one file.
        box: The box of the dataset.
        centered: Whether coordinates count from the center of the box, as in the grids of this package.

    Raises:
        FileNotFoundError: If there is no such folder, or no such file in it.
    """
    folder = Path(root)
    files: Iterable[Path] = [folder] if folder.is_file() else sorted(folder.rglob("*.np[yz]"))
    x, y, z = (0, 0, 0) if centered else box.shape(-1)
    load = partial(load_box_voxels, size=box.voxel_size(-1), lower=(-x // 2, -y // 2, -z // 2))
    base = folder.parent if folder.is_file() else folder
    sources = [file_source(path, base, load) for path in files]
    if not sources:
        raise FileNotFoundError(f"{fspath(root)} must hold .npy or .npz files, got none")
    return unique(sources)


def cube_sources(root: str | PathLike[str]) -> list[Source]:
    """Find colored voxel models in .vox and .npz files; their names are the paths below the folder.

    A .npz file holds integers [N, 3] called "ijk" and "color", uint8 [N, 3].

    Args:
        root: The folder, or one file.

    Raises:
        FileNotFoundError: If there is no such folder, or no such file in it.
    """
    folder = Path(root)
    files = [folder] if folder.is_file() else sorted(folder.rglob("*"))
    base = folder.parent if folder.is_file() else folder
    sources = [file_source(path, base, load_cubes) for path in files if path.suffix.lower() in (".vox", ".npz")]
    if not sources:
        raise FileNotFoundError(f"{fspath(root)} must hold .vox or .npz files, got none")
    return unique(sources)


def load_cubes(path: Path) -> Mesh:
    """Load voxels with colors as a mesh of cubes with edge 1: their exposed faces, with "color" float32 [F, 3].

    Raises:
        ValueError: If the file is damaged, has no colors, or does not hold one grid with voxels.
    """
    voxels = load_voxels(path)
    if voxels.batch_size != 1 or not voxels.num_voxels:
        raise ValueError(f"{path} must hold one shape, got {voxels.batch_size} of {voxels.num_voxels} voxels in all")
    color = voxels.attributes.get("color")
    if color is None or color.shape != (voxels.num_voxels, 3):
        raise ValueError(f"{path} must have colors [{voxels.num_voxels}, 3], got {voxels}")
    return voxel_faces(voxels.with_attributes(color=unit_colors(color)), merge=False, attributes=("color",))


def _is_ours(path: Path) -> bool:
    """Whether `save_voxels` wrote a file."""
    if path.suffix.lower() != ".npz":
        return False
    with np.load(path, allow_pickle=False) as file:
        return "sparsevox_voxels" in file.files


def load_box_voxels(path: Path, *, size: float, lower: tuple[int, int, int]) -> Voxels:
    """Load voxels of edge length `size` whose coordinates count from the voxel `lower` of a box."""
    voxels = load_voxels(path)
    grid = voxels.grid
    if (grid.voxel_size, grid.origin) != ((1.0,) * 3, (0.0,) * 3) or _is_ours(path):
        return voxels  # the file has its own voxel size and origin
    if grid.batch_size != 1:
        raise ValueError(f"{path} must hold one grid, got a batch of {grid.batch_size}")
    ijk = grid.ijk + torch.tensor(lower, dtype=torch.int32)
    moved = sv.Grid.from_coords(ijk, voxel_size=size, origin=size / 2)
    order = moved.index(ijk).argsort()  # the Z-order depends on the coordinates
    return Voxels(moved, {name: value[order] for name, value in voxels.attributes.items()})
