"""The start of sampling: a full box of latent voxels, or grids given by the user.

N voxels, B shapes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsevox import Grid, Voxels, checks
from sparsevox.io.voxelize import normalized
from xcube.data.colors import unit_colors
from xcube.geometry.normals import estimated_normals
from xcube.geometry.pyramid import check_voxels
from xcube.networks.conditions import NO_FILL, OF_VOXELS
from xcube.pipeline.level import Level, Size, in_box, latent_voxel_size, same_size


def box_size(level: Level, size: Sequence[float] | None) -> Size:
    """Edge lengths of the box of a cascade with this first level: of the box that its latents fill, or the given ones.

    Raises:
        TypeError: If the given edge lengths are not numbers.
        ValueError: If they are not three, not positive, or not the box of the latents.
    """
    config = level.vae.config
    given = None if size is None else checks.float_triple("size", tuple(size))
    if given is not None and min(given) <= 0:
        raise ValueError(f"size must be positive, got {given}")
    if config.dense_neck is None:
        return (1.0, 1.0, 1.0) if given is None else given
    x, y, z = (2 * half * edge for half, edge in zip(config.dense_neck, latent_voxel_size(config), strict=True))
    if given is not None and not same_size(given, (x, y, z)):
        raise ValueError(f"size must be that of the box of latents, {(x, y, z)}, got {given}")
    return x, y, z


def check_cubes(sizes: Sequence[Size]) -> None:
    """Raise ValueError unless the voxels of all levels, with these edge lengths, are cubes."""
    if any(len(set(each)) > 1 for each in sizes):
        raise ValueError(f"voxels of all levels must be cubes for hierarchies of a shape, got {tuple(sizes)}")


def full_box(level: Level) -> Voxels:
    """The latent grid of a first level whose latents fill a box.

    Raises:
        ValueError: If its latent grid is sparse.
    """
    config = level.vae.config
    if config.dense_neck is None:
        raise ValueError("the latents of the first level fill no box, so it needs a grid to start from: use upsample")
    x, y, z = (size / 2 for size in latent_voxel_size(config))
    upper = list(config.dense_neck)
    return Voxels(Grid.full([-u for u in upper], upper, voxel_size=latent_voxel_size(config), origin=(x, y, z)))


def latent_grid_of(levels: Sequence[Level], size: Size, shape: object, number: int | None) -> tuple[int, Voxels]:
    """Find the level to start at, and return it with the shape and the attributes that this level takes.

    Args:
        levels: All levels of the cascade.
        size: Edge lengths of the box.
        shape: A batch of shapes, Grid or Voxels: latent grids of the level.
        number: Number of the level; None for the level whose latent voxels have the voxel size of the shape.

    Raises:
        ImportError: If normals are to be estimated and scipy is not installed.
        TypeError: If `shape` is neither a Grid nor Voxels, or `number` is not an integer.
        ValueError: If there is no such level, or voxels have another size, lie outside of the box or lack an attribute.
    """
    if not isinstance(shape, Grid | Voxels):
        raise TypeError(f"shape must be a sparsevox.Grid or Voxels, got {type(shape).__name__}")
    voxels = shape if isinstance(shape, Voxels) else Voxels(shape)
    chosen = _level_number(levels, voxels.grid, number)
    outside = ~in_box(voxels.grid, size)
    if bool(outside.any()):
        row = int(outside.int().argmax())
        raise ValueError(
            f"shape must lie in the box {size} around the origin, got {int(outside.sum())} voxels outside, the first "
            f"{tuple(voxels.grid.ijk[row].tolist())}"
        )
    return chosen, _with_needed_attributes(voxels, levels[chosen], chosen)


def _level_number(levels: Sequence[Level], grid: Grid, number: int | None) -> int:
    wanted = [latent_voxel_size(level.vae.config) for level in levels]
    first = 0 if levels[0].vae.config.dense_neck is None else 1
    fitting = [n for n in range(first, len(wanted)) if same_size(grid.voxel_size, wanted[n])]
    if number is None and not fitting:
        raise ValueError(f"shape must have a voxel_size of {wanted[first:]}, got {grid.voxel_size}")
    chosen = fitting[0] if number is None else checks.integer("level", number)
    if not first <= chosen < len(wanted):
        reason = "; level 0 starts from noise in a box: use sample" if first else ""
        raise ValueError(f"level must lie in [{first}, {len(wanted)}), got {chosen}{reason}")
    check_voxels(grid, wanted[chosen], "shape")
    return chosen


def _with_needed_attributes(voxels: Voxels, level: Level, number: int) -> Voxels:
    """The voxels with the attributes that a level takes from the one before, and no others."""
    needed = [name for name in OF_VOXELS if name in level.denoiser.config.conditions]
    attributes: dict[str, Tensor] = {name: voxels.attributes[name] for name in needed if name in voxels.attributes}
    if "normal" in attributes:
        given = checks.floats("normal", checks.shape("normal", attributes["normal"], voxels.num_voxels, 3))
        attributes["normal"] = normalized(given.float())
    elif "normal" in needed:
        attributes["normal"] = estimated_normals(voxels.grid)
    if "color" in attributes:
        attributes["color"] = unit_colors(checks.shape("color", attributes["color"], voxels.num_voxels, 3))
    if "fill" in attributes:
        given = checks.floats("fill", checks.shape("fill", attributes["fill"], voxels.num_voxels))
        if not bool((((given >= 0) & (given <= 1)) | (given == NO_FILL)).all()):
            raise ValueError("fill must lie in [0, 1], or be -1 where it is unknown, got other values")
        attributes["fill"] = given.float()
    elif "fill" in needed:
        attributes["fill"] = torch.full((voxels.num_voxels,), NO_FILL, device=voxels.device)
    missing = [name for name in needed if name not in attributes]
    if missing:
        raise ValueError(f"shape must have the attributes {needed} that level {number} takes, got none of {missing}")
    return Voxels(voxels.grid, attributes)
