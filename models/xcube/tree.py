"""Early dilation: the coarse grids of one level of XCube, all made from its finest grid (section 3.4 of the paper)."""

from sparsevox import Grid


def enclosing_coarsen(grid: Grid, factor: int) -> Grid:
    """The coarse voxels whose centres enclose the centre of some voxel of the grid: eight for each.

    Equal to `Grid.from_points(centres, mode="enclosing")` at `factor` times the voxel size, for voxels whose corners
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
    """Grids at depth 0, which is the grid itself, to `depth`; each is twice as coarse as the one before."""
    return [enclosing_coarsen(grid, 1 << d) for d in range(depth + 1)]
