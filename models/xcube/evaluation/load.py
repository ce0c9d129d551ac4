"""Generated shapes in files, for comparison with a data set."""

from dataclasses import dataclass
from pathlib import Path

import torch

from sparsevox import Grid, Mesh, Voxels
from sparsevox.files import prefix_errors
from sparsevox.io import load_mesh, load_voxels, voxelize
from sparsevox.io.meshes import READS
from xcube.data.hierarchy import Box

VOXELS = ".npz"


@dataclass(frozen=True, eq=False)
class Item:
    """A shape to compare.

    name: What it is called.
    voxels: One grid, with or without the attribute "normal".
    surface: The mesh that it came as; None for voxels.
    """

    name: str
    voxels: Voxels
    surface: Mesh | None = None


def read_samples(folder: Path, box: Box, level: int) -> list[Item]:
    """The shapes in a folder and the folders in it, in the order of their names.

    .npz files hold voxels, as `sv.io.save_voxels` writes them. They are of one level of the box: those of the wanted
    level are taken, those of other levels left alone. A batch is as many shapes. Meshes are read where there is no such
    file, and cut into voxels of the level. Empty voxels are a shape as well.

    Args:
        folder: Where to look. What is hidden is left alone.
        box: That of the data set.
        level: Which level of it; -1 is the finest.

    Raises:
        FileNotFoundError: If there is no such folder, or nothing in it.
        ImportError: If there are meshes and trimesh is not installed.
        ValueError: If a file is damaged, its voxels are of no level of the box, its normals are not finite or not
            [N, 3], or a mesh lies outside of the box; if no file is of the wanted level. It names the file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder")
    wanted = level % len(box.levels)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _hidden(path.relative_to(folder))]
    voxels = [path for path in files if path.suffix.lower() == VOXELS]
    meshes = [path for path in files if path.suffix.lower() in READS]
    if not voxels and not meshes:
        raise FileNotFoundError(f"{folder}: there are neither voxels, {VOXELS}, nor meshes, {', '.join(READS)}")
    if not voxels:
        return [_from_mesh(path, _name(path, folder), box, wanted) for path in meshes]
    found = [item for path in voxels for item in _from_voxels(path, _name(path, folder), box, wanted)]
    if not found:
        size = box.voxel_size(wanted)
        raise ValueError(f"{folder}: expected voxels of {size}, got {len(voxels)} files, all of other levels")
    return found


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _from_voxels(path: Path, name: str, box: Box, level: int) -> list[Item]:
    voxels = load_voxels(path)
    with prefix_errors(path):
        if level_of(voxels.grid, box) != level:
            return []
        kept = {key: value.float() for key, value in voxels.attributes.items() if key == "normal"}
        for normal in kept.values():
            if normal.shape != (voxels.num_voxels, 3) or not bool(normal.isfinite().all()):
                raise ValueError(f"normals must be finite [N, 3], got {list(normal.shape)}, or NaN or infinity in them")
    items = Voxels(voxels.grid, kept).unbind()
    return [Item(name if len(items) == 1 else f"{name}[{n}]", item) for n, item in enumerate(items)]


def level_of(grid: Grid, box: Box) -> int:
    """The level of a box that a grid lies on; 0 is the coarsest.

    Raises:
        ValueError: If it lies on none.
    """
    for level in range(len(box.levels)):
        size = box.voxel_size(level)
        pairs = zip((*grid.voxel_size, *grid.origin), (size,) * 3 + (size / 2,) * 3, strict=True)
        if max(abs(got - want) for got, want in pairs) <= 1e-5 * size:
            return level
    sizes = ", ".join(str(box.voxel_size(level)) for level in range(len(box.levels)))
    raise ValueError(
        f"voxel_size must be one of {sizes} and origin half of it, as in the data set, got {grid.voxel_size} and "
        f"{grid.origin}"
    )


def _from_mesh(path: Path, name: str, box: Box, level: int) -> Item:
    mesh, size = load_mesh(path), box.voxel_size(level)
    corners = mesh.vertices[mesh.faces.long()]
    reach = torch.tensor(box.size, dtype=torch.float64) / 2 + size  # smooth surfaces swell a little
    if bool((corners.abs() > reach).any()):
        low, high = (tuple(bound.tolist()) for bound in corners.reshape(-1, 3).aminmax(dim=0))
        raise ValueError(f"{path}: the mesh must lie in the box {box.size} around the origin, got {low} to {high}")
    voxels = voxelize(mesh, voxel_size=size, origin=size / 2)
    return Item(name, Voxels(voxels.grid, {"normal": voxels.attributes["normal"]}), mesh)
