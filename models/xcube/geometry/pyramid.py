"""Grids at all depths of one level of XCube, made from its finest grid."""

from collections.abc import Sequence
from typing import Literal

from sparsevox import Grid

TOLERANCE = 1e-5  # of a voxel, between the sizes that a model and a grid have

Dilation = Literal["all", "latent", "none"]
Triple = tuple[int, int, int]


def check_voxels(grid: Grid, sizes: Sequence[float], name: str) -> None:
    """Raise ValueError unless the voxels of a grid have these sizes, and corners that meet at the origin."""
    for got, want, start in zip(grid.voxel_size, sizes, grid.origin, strict=True):
        if abs(got - want) > TOLERANCE * want or abs(start - want / 2) > TOLERANCE * want:
            raise ValueError(
                f"{name} must have voxel_size {tuple(sizes)} and an origin of half of it, got {grid.voxel_size} and "
                f"{grid.origin}"
            )


def enclosing_coarsen(grid: Grid, factor: int) -> Grid:
    """Early dilation (section 3.4 of the paper): the eight coarse voxels whose centers enclose that of each voxel.

    Equal to `Grid.from_points(centers, mode="enclosing")` at `factor` times the voxel size, for voxels whose corners
    meet: half a coarse voxel is a whole number of fine ones.

    Args:
        grid: The finest grid.
        factor: A power of two. 1 returns the grid itself.

    Raises:
        ValueError: If `factor` is no power of two, or a voxel would be out of range.
    """
    if factor < 1 or factor & (factor - 1):
        raise ValueError(f"factor must be a power of two, got {factor}")
    return grid if factor == 1 else grid.coarsen(factor // 2).dilate(1).coarsen(2)


def hash_tree(grid: Grid, depth: int) -> list[Grid]:
    """Grids at depth 0, which is the grid itself, to `depth`, all dilated from depth 0 directly."""
    return [enclosing_coarsen(grid, 1 << d) for d in range(depth + 1)]


def pooling_tree(grid: Grid, strides: Sequence[Triple], dilation: Dilation) -> list[Grid]:
    """The grids onto which an encoder pools, depth 0 to `len(strides)`."""
    if dilation == "all":
        return hash_tree(grid, len(strides))
    tree = [grid]
    for stride in strides:
        tree.append(tree[-1].coarsen(stride))
    if dilation == "latent":
        tree[-1] = enclosing_coarsen(grid, 1 << len(strides))
    return tree


def truth_tree(grid: Grid, strides: Sequence[Triple], dilation: Dilation) -> list[Grid]:
    """The grids that a decoder should predict, depth 0 to `len(strides)`: dilated only with "all"."""
    return pooling_tree(grid, strides, "all" if dilation == "all" else "none")
