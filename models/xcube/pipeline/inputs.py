"""What a cascade begins with: noise in a box, or grids that a user gives.

N voxels, B shapes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsevox import Grid, Voxels, checks
from sparsevox.io.voxelize import normalized
from xcube.geometry.normals import estimated_normals
from xcube.geometry.pyramid import check_voxels
from xcube.pipeline.checkpoint import Size, Stage, latent_sizes, same_size


def box_size(stage: Stage, size: Sequence[float] | None) -> Size:
    """Edges of the box of a cascade with this first level: that of its latents if they fill one, else the given one.

    Raises:
        TypeError: If the given edges are no numbers.
        ValueError: If they are not three, not positive, or another box than that of the latents.
    """
    config = stage.vae.config
    given = None if size is None else checks.float_triple("size", tuple(size))
    if given is not None and min(given) <= 0:
        raise ValueError(f"size must be positive, got {given}")
    if config.dense_neck is None:
        return (1.0, 1.0, 1.0) if given is None else given
    x, y, z = (2 * half * edge for half, edge in zip(config.dense_neck, latent_sizes(config), strict=True))
    if given is not None and not same_size(given, (x, y, z)):
        raise ValueError(f"size must be that of the box of latents, {(x, y, z)}, got {given}")
    return x, y, z


def full_box(stage: Stage) -> Voxels:
    """The latent grid of a first level whose latents fill a box.

    Raises:
        ValueError: If they do not.
    """
    config = stage.vae.config
    if config.dense_neck is None:
        raise ValueError("the latents of the first level fill no box, so it needs a grid to begin with: upsample")
    x, y, z = (size / 2 for size in latent_sizes(config))
    upper = list(config.dense_neck)
    return Voxels(Grid.full([-u for u in upper], upper, voxel_size=latent_sizes(config), origin=(x, y, z)))


def from_shape(stages: Sequence[Stage], size: Size, shape: object, level: int | None) -> tuple[int, Voxels]:
    """The level that a shape is for, and the shape with the attributes that this level takes and no others.

    Args:
        stages: All levels.
        size: Edges of the box.
        shape: A Grid or Voxels, a batch of shapes.
        level: The level; None for the one whose latent voxels have the size of those of the shape.

    Raises:
        ImportError: If normals are to be estimated and scipy is not installed.
        TypeError: If `shape` is neither a Grid nor Voxels, or `level` no integer.
        ValueError: If there is no such level, or voxels have another size, lie outside of the box or lack an attribute.
    """
    if not isinstance(shape, Grid | Voxels):
        raise TypeError(f"shape must be a sparsevox.Grid or Voxels, got {type(shape).__name__}")
    voxels = shape if isinstance(shape, Voxels) else Voxels(shape)
    chosen = _level_of(stages, voxels.grid, level)
    outside = ~in_box(voxels.grid, size)
    if bool(outside.any()):
        row = int(outside.int().argmax())
        raise ValueError(
            f"shape must lie in the box {size} around the origin, got {int(outside.sum())} voxels beyond, the first "
            f"{tuple(voxels.grid.ijk[row].tolist())}"
        )
    return chosen, _told(voxels, stages[chosen], chosen)


def in_box(grid: Grid, size: Size) -> Tensor:
    """Which voxels lie in a box around the origin, bool [N]."""
    half = torch.tensor([round(e / (2 * s)) for e, s in zip(size, grid.voxel_size, strict=True)], device=grid.device)
    ijk = grid.ijk
    return ((ijk >= -half) & (ijk < half)).all(1)


def _level_of(stages: Sequence[Stage], grid: Grid, level: int | None) -> int:
    """The level that has a grid as its latent one."""
    wanted = [latent_sizes(stage.vae.config) for stage in stages]
    first = 0 if stages[0].vae.config.dense_neck is None else 1
    fitting = [n for n in range(first, len(wanted)) if same_size(grid.voxel_size, wanted[n])]
    if level is None and not fitting:
        raise ValueError(f"shape must have a voxel_size of {wanted[first:]}, got {grid.voxel_size}")
    chosen = fitting[0] if level is None else checks.integer("level", level)
    if not first <= chosen < len(wanted):
        reason = "; level 0 begins with noise in a box: sample" if first else ""
        raise ValueError(f"level must lie in [{first}, {len(wanted)}), got {chosen}{reason}")
    check_voxels(grid, wanted[chosen], "shape")
    return chosen


def _told(voxels: Voxels, stage: Stage, level: int) -> Voxels:
    """Voxels with the attributes that a level takes from those of the one before, and no others."""
    needed = [name for name in ("normal", "label") if name in stage.denoiser.config.conditions]
    made: dict[str, Tensor] = {name: voxels.attributes[name] for name in needed if name in voxels.attributes}
    if "normal" in made:
        given = checks.floats("normal", checks.shape("normal", made["normal"], voxels.num_voxels, 3))
        made["normal"] = normalized(given.float())
    elif "normal" in needed:
        made["normal"] = estimated_normals(voxels.grid)
    missing = [name for name in needed if name not in made]
    if missing:
        raise ValueError(f"shape must have the attributes {needed} that level {level} takes, got none of {missing}")
    return Voxels(voxels.grid, made)
