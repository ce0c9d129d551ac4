"""Sources for `build` from labeled occupancy of street scenes: SemanticKITTI's scene completion, and Occ3D-nuScenes.

Both are dense volumes [X, Y, Z] of labels in a file per scan. Their voxels, centered in the box, are the shape.
"""

import zipfile
from collections.abc import Mapping
from functools import partial
from os import PathLike
from pathlib import Path

import numpy as np
import torch

from sparsevox import Grid
from sparsevox.shapes import Voxels
from xcube.data.converters import SEMANTIC_KITTI, SEMANTIC_KITTI_TRAIN, SEMANTIC_KITTI_VAL
from xcube.data.hierarchy import Box
from xcube.data.sources import Source, as_name, unique
from xcube.geometry.normals import estimated_normals

KITTI_SHAPE, KITTI_SIZE = (256, 256, 32), 0.2  # meters; x from 0 to 51.2, y from -25.6, z from -2
OCC3D_SHAPE, OCC3D_SIZE = (200, 200, 16), 0.4  # meters; x and y from -40, z from -1
OCC3D_FREE = 17  # the label of free space; 0 is "others", 1 to 16 are the classes of nuScenes
UNLABELED = 0

Labels = Mapping[int, int] | None


def semantic_kitti_voxel_sources(
    root: str | PathLike[str], box: Box, *, classes: Labels = SEMANTIC_KITTI
) -> list[Source]:
    """Find scenes of SemanticKITTI's scene completion (Behley et al. 2019); their names are SEQUENCE/NUMBER.

    A scene is sequences/SEQUENCE/voxels/NUMBER.bin, which has the voxels that one scan hits, and files of the same name
    with the voxels that many scans hit: .label has their labels, .invalid those that no scan sees, and .occluded those
    that this scan does not see. The splits are those of the benchmark, as of `semantic_kitti_sources`.

    Args:
        root: The folder that holds sequences/.
        box: The box of the dataset, with 256 x 256 x 32 voxels of 0.2 m at its finest level.
        classes: The class of each label; missing labels become 0. None keeps the original labels.

    Raises:
        FileNotFoundError: If there are no scenes.
        ValueError: If the box has other voxels.
    """
    _check_box(box, KITTI_SHAPE, KITTI_SIZE)
    sources = []
    for scan in sorted(Path(root).glob("sequences/*/voxels/*.bin")):
        sequence = scan.parents[1].name
        train, val = sequence in SEMANTIC_KITTI_TRAIN, sequence in SEMANTIC_KITTI_VAL
        split = "train" if train else "val" if val else "test"
        load = partial(load_kitti_voxels, scan, classes)
        sources.append(Source(as_name([sequence, scan.stem]), load, scan, split))
    if not sources:
        raise FileNotFoundError(f"{root} must hold sequences/*/voxels/*.bin, got none")
    return unique(sources)


def load_kitti_voxels(scan: Path, classes: Labels = SEMANTIC_KITTI) -> Voxels:
    """Load a scene of SemanticKITTI.

    Args:
        scan: Its .bin file. Without a .label file, the voxels that the scan hits are the shape.
        classes: The class of each label; missing labels become 0. None keeps the original labels.

    Returns:
        Labeled voxels that are not invalid, with estimated normals, "label", int64 [N], and the uint8 [N] "observed",
        whether this scan hits a voxel, and "occluded", whether it does not see it; only "observed" without labels.

    Raises:
        ValueError: If a file has another size, or no voxel is left.
    """
    count = int(np.prod(KITTI_SHAPE))
    bits = {suffix: _read(scan.with_suffix(suffix), "u1", count // 8) for suffix in (".bin", ".invalid", ".occluded")}
    full = {suffix: np.unpackbits(found).reshape(KITTI_SHAPE) for suffix, found in bits.items() if found is not None}
    if ".bin" not in full:
        raise ValueError(f"{scan} does not exist")
    labels = _read(scan.with_suffix(".label"), "<u2", count)
    if labels is None:
        return _voxels(scan, full[".bin"] > 0, KITTI_SIZE, {"observed": full[".bin"]})
    volume = labels.astype(np.int64).reshape(KITTI_SHAPE)
    exists = volume != UNLABELED
    if ".invalid" in full:
        exists &= full[".invalid"] == 0
    if classes is not None:
        table = np.zeros(1 << 16, dtype=np.int64)
        table[list(classes)] = list(classes.values())
        volume = table[volume]
    made: dict[str, np.ndarray] = {"label": volume, "observed": full[".bin"]}
    if ".occluded" in full:
        made["occluded"] = full[".occluded"]
    return _voxels(scan, exists, KITTI_SIZE, made)


def occ3d_sources(root: str | PathLike[str], box: Box) -> list[Source]:
    """Find scenes of Occ3D-nuScenes (Tian et al. 2023, arXiv:2304.14365) in files labels.npz, at any depth.

    The names are the paths of their folders, such as scene-0001/TOKEN.

    Args:
        root: The folder.
        box: The box of the dataset, with 200 x 200 x 16 voxels of 0.4 m at its finest level.

    Raises:
        FileNotFoundError: If there are no scenes.
        ValueError: If the box has other voxels.
    """
    _check_box(box, OCC3D_SHAPE, OCC3D_SIZE)
    folder = Path(root)
    files = sorted(folder.rglob("labels.npz"))
    if not files:
        raise FileNotFoundError(f"{root} must hold files labels.npz, got none")
    named = [(file.parent.relative_to(folder).parts or (folder.name,), file) for file in files]
    return unique([Source(as_name(parts), partial(load_occ3d, file), file) for parts, file in named])


def load_occ3d(path: Path) -> Voxels:
    """Load a scene of Occ3D-nuScenes.

    Returns:
        The voxels that are not free, with estimated normals, "label", int64 [N] from 0 to 16, and "observed", uint8
        [N]: whether the LiDAR sees a voxel, if the file has mask_lidar.

    Raises:
        ValueError: If the file is damaged, or no voxel is left.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in ("semantics", "mask_lidar") if name in file.files}
    except (EOFError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    wrong = [f"{name} {value.shape}" for name, value in found.items() if value.shape != OCC3D_SHAPE]
    if "semantics" not in found or wrong:
        got = ", ".join(wrong) if wrong else "none"
        raise ValueError(f"{path} must have semantics of shape {OCC3D_SHAPE}, and mask_lidar if it has one, got {got}")
    labels = found["semantics"].astype(np.int64)
    made = {"label": labels}
    if "mask_lidar" in found:
        made["observed"] = (found["mask_lidar"] > 0).astype(np.uint8)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > OCC3D_FREE:
        raise ValueError(f"{path} must have labels from 0 to {OCC3D_FREE}, which is free space, got {low} to {high}")
    return _voxels(path, labels != OCC3D_FREE, OCC3D_SIZE, made)


def _check_box(box: Box, shape: tuple[int, int, int], size: float) -> None:
    if box.shape(-1) != shape or abs(box.voxel_size(-1) - size) > 1e-6:
        expected, got = (" x ".join(map(str, each)) for each in (shape, box.shape(-1)))
        edges = ",".join(f"{count * size:g}" for count in shape)
        raise ValueError(
            f"levels and size must give {expected} voxels of {size} m, as levels that end in {shape[0]} with the size "
            f"{edges} do, got {got} of {box.voxel_size(-1):g}"
        )


def _read(path: Path, dtype: str, count: int) -> np.ndarray | None:
    """The content of a file of `count` numbers; None if it does not exist."""
    if not path.is_file():
        return None
    found = np.fromfile(path, dtype)
    if len(found) != count or path.stat().st_size != found.nbytes:
        expected = count * np.dtype(dtype).itemsize
        raise ValueError(f"{path} must have {expected:,} bytes, got {path.stat().st_size:,}")
    return found


def _voxels(path: Path, exists: np.ndarray, size: float, values: Mapping[str, np.ndarray]) -> Voxels:
    """The voxels of a volume that exist, centered in the box, with their values and estimated normals."""
    place = np.argwhere(exists)
    if not len(place):
        raise ValueError(f"{path} must have a voxel, got none")
    ijk = torch.from_numpy(place - np.array(exists.shape) // 2).int()
    grid = Grid.from_coords(ijk, voxel_size=size, origin=size / 2)
    rows = tuple((grid.ijk.numpy() + np.array(exists.shape) // 2).T)
    found = {name: torch.from_numpy(value[rows]) for name, value in values.items()}
    return Voxels(grid, {"normal": estimated_normals(grid)} | found)
