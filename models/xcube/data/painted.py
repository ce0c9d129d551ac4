"""Voxels that were painted by hand, in MagicaVoxel files (.vox), as shapes of a level."""

from pathlib import Path

from sparsevox import Voxels
from sparsevox.io import load_voxels
from xcube.data.hierarchy import Box
from xcube.geometry.normals import estimated_normals
from xcube.geometry.solids import solid, surface

SUFFIX = ".vox"


def load_scaled(path: Path, box: Box, level: int) -> Voxels:
    """Load a .vox file, which has no voxel size, as voxels of one level of a box: the origin is the center of the box.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged.
    """
    size = box.voxel_size(level)
    return load_voxels(path, voxel_size=size, origin=size / 2)


def load_painted(path: Path, box: Box, level: int) -> Voxels:
    """Load a .vox file as a shell with normals, made of voxels of one level of a box.

    The file has no voxel size. Its scene has the coordinates of the level: the origin is the center of the box, and z
    points up. The voxels are a solid or its shell; deep inside there are none in the result. Normals are estimated.

    Args:
        path: File to load.
        box: The box with its levels.
        level: Level whose voxels the file holds.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If scipy is not installed.
        ValueError: If the file is damaged, or does not hold one shape.
    """
    voxels = load_scaled(path, box, level)
    if voxels.batch_size != 1 or not voxels.num_voxels:
        raise ValueError(f"{path} must hold one shape, got {voxels.batch_size} of {voxels.num_voxels} voxels in all")
    low, high = (end[0].tolist() for end in voxels.grid.bounds())
    if any(a < -count // 2 or b > count // 2 for a, b, count in zip(low, high, box.shape(level), strict=True)):
        raise ValueError(
            f"{path} must hold voxels in a box of {box.shape(level)} around the origin of its scene, "
            f"got {low} to {high}"
        )
    whole = solid(voxels.grid)
    shell = surface(whole)
    return Voxels(shell, {"normal": estimated_normals(whole)[whole.index(shell.coords)]})
