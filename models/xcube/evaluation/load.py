"""Reading of generated shapes from files, for comparison with a dataset."""

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
class NamedShape:
    """A shape to compare.

    name: Name of the shape.
    voxels: One grid, with or without the attribute "normal".
    surface: The mesh that was read; None if voxels were read.
    """

    name: str
    voxels: Voxels
    surface: Mesh | None = None


def read_samples(folder: Path, box: Box, level: int) -> list[NamedShape]:
    """Read the shapes in a folder and its subfolders, in the order of their names.

    .npz files hold voxels, as `sv.io.save_voxels` writes them: one grid or a batch, of one level of the box. Files of
    other levels are skipped. If there are no .npz files, meshes are read and voxelized at the level. A grid without
    voxels counts as a shape.

    Args:
        folder: The folder. Hidden files are ignored.
        box: The box of the dataset.
        level: The level of the dataset; -1 is the finest.

    Raises:
        FileNotFoundError: If there is no such folder, or no shape in it.
        ImportError: If there are meshes and trimesh is not installed.
        ValueError: If a file is damaged, its voxels are of no level of the box, its normals are not finite or not
            [N, 3], a mesh lies outside of the box, or no file is of the level. The message names the file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"samples must be a folder, got {folder}, which does not exist")
    wanted = level % len(box.levels)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _hidden(path.relative_to(folder))]
    voxels = [path for path in files if path.suffix.lower() == VOXELS]
    meshes = [path for path in files if path.suffix.lower() in READS]
    if not voxels and not meshes:
        raise FileNotFoundError(f"{folder} must hold voxels ({VOXELS}) or meshes ({', '.join(READS)}), got neither")
    if not voxels:
        return [_from_mesh(path, _name(path, folder), box, wanted) for path in meshes]
    found = [item for path in voxels for item in _from_voxels(path, _name(path, folder), box, wanted)]
    if not found:
        size = box.voxel_size(wanted)
        raise ValueError(f"{folder} must hold voxels of size {size}, got {len(voxels)} files, all of other levels")
    return found


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _from_voxels(path: Path, name: str, box: Box, level: int) -> list[NamedShape]:
    voxels = load_voxels(path)
    with prefix_errors(path):
        if level_of(voxels.grid, box) != level:
            return []
        kept = {key: value.float() for key, value in voxels.attributes.items() if key == "normal"}
        for normal in kept.values():
            if normal.shape != (voxels.num_voxels, 3) or not bool(normal.isfinite().all()):
                raise ValueError(f"normals must be [N, 3] and finite, got {list(normal.shape)}, or NaN or infinity")
    items = Voxels(voxels.grid, kept).unbind()
    return [NamedShape(name if len(items) == 1 else f"{name}[{n}]", item) for n, item in enumerate(items)]


def level_of(grid: Grid, box: Box) -> int:
    """Return the level of a box that a grid belongs to; 0 is the coarsest.

    Raises:
        ValueError: If it belongs to none.
    """
    for level in range(len(box.levels)):
        size = box.voxel_size(level)
        pairs = zip((*grid.voxel_size, *grid.origin), (size,) * 3 + (size / 2,) * 3, strict=True)
        if max(abs(got - want) for got, want in pairs) <= 1e-5 * size:
            return level
    sizes = ", ".join(str(box.voxel_size(level)) for level in range(len(box.levels)))
    raise ValueError(
        f"voxel_size must be one of {sizes} and origin half of it, as in the dataset, got {grid.voxel_size} and "
        f"{grid.origin}"
    )


def _from_mesh(path: Path, name: str, box: Box, level: int) -> NamedShape:
    mesh, size = load_mesh(path), box.voxel_size(level)
    corners = mesh.vertices[mesh.faces.long()]
    reach = torch.tensor(box.size, dtype=torch.float64) / 2 + size  # smooth surfaces may reach a little beyond
    if bool((corners.abs() > reach).any()):
        low, high = (tuple(bound.tolist()) for bound in corners.reshape(-1, 3).aminmax(dim=0))
        raise ValueError(f"{path}: the mesh must lie in the box {box.size} around the origin, got {low} to {high}")
    voxels = voxelize(mesh, voxel_size=size, origin=size / 2)
    return NamedShape(name, Voxels(voxels.grid, {"normal": voxels.attributes["normal"]}), mesh)
