"""The grids of one VAE at every resolution, from its finest grid (resolution 0) to its latent grid."""

from collections.abc import Sequence
from typing import Literal

from sparsevox import Grid

TOLERANCE = 1e-5  # fraction of a voxel by which the voxel sizes of a model and a grid may differ

Dilation = Literal["all", "latent", "none"]
Triple = tuple[int, int, int]


def check_voxels(grid: Grid, sizes: Sequence[float], name: str) -> None:
    """Raise ValueError unless a grid has these voxel sizes, and a corner of its voxels lies at the world origin."""
    for got, want, start in zip(grid.voxel_size, sizes, grid.origin, strict=True):
        if abs(got - want) > TOLERANCE * want or abs(start - want / 2) > TOLERANCE * want:
            raise ValueError(
                f"{name} must have voxel_size {tuple(sizes)} and an origin of half a voxel, got {grid.voxel_size} and "
                f"{grid.origin}"
            )


def same_lattice(a: Grid, b: Grid) -> bool:
    """Whether two grids have the same voxel size and origin, up to rounding."""
    pairs = zip(a.voxel_size * 2, a.voxel_size + a.origin, b.voxel_size + b.origin, strict=True)
    return all(abs(mine - theirs) <= TOLERANCE * size for size, mine, theirs in pairs)


def enclosing_coarsen(grid: Grid, factor: int) -> Grid:
    """Early dilation (section 3.4 of the paper): the eight coarse voxels whose centers enclose each fine voxel center.

    Equals `Grid.from_points(centers, mode="enclosing")` at `factor` times the voxel size, if a corner of the voxels
    lies at the world origin.

    Args:
        grid: The finest grid.
        factor: Ratio of the voxel sizes, a power of two. 1 returns the grid itself.

    Raises:
        ValueError: If `factor` is not a power of two, or a voxel would be out of range.
    """
    if factor < 1 or factor & (factor - 1):
        raise ValueError(f"factor must be a power of two, got {factor}")
    return grid if factor == 1 else grid.coarsen(factor // 2).dilate(1).coarsen(2)


def hash_tree(grid: Grid, resolution: int) -> list[Grid]:
    """Grids at resolutions 0, the grid itself, to `resolution`, each dilated directly from the finest grid."""
    return [enclosing_coarsen(grid, 1 << d) for d in range(resolution + 1)]


def pooling_tree(grid: Grid, strides: Sequence[Triple], dilation: Dilation) -> list[Grid]:
    """Grids onto which an encoder pools, at resolutions 0 to `len(strides)`."""
    if dilation == "all":
        return hash_tree(grid, len(strides))
    tree = [grid]
    for stride in strides:
        tree.append(tree[-1].coarsen(stride))
    if dilation == "latent":
        tree[-1] = enclosing_coarsen(grid, 1 << len(strides))
    return tree


def truth_tree(grid: Grid, strides: Sequence[Triple], dilation: Dilation) -> list[Grid]:
    """Grids that a decoder should predict, at resolutions 0 to `len(strides)`; dilated only if `dilation` is "all"."""
    return pooling_tree(grid, strides, "all" if dilation == "all" else "none")
