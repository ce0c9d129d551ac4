"""Scalar fields that are negative inside and positive outside, from voxels with normals or from occupancy.

N voxels, M voxels of the band (the voxels dilated by 1), C channels.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparsevox import checks
from sparsevox.conv_geometry import Axes, Geometry
from sparsevox.grid import Grid
from sparsevox.io import _cells
from sparsevox.io.sampling import check_finite
from sparsevox.ops.neighbors import kernel_table
from sparsevox.shapes import Voxels
from sparsevox.tensor import SparseTensor

KERNEL = (0.25, 0.5, 0.25)  # weights along each axis
REACHED = 1e-6  # minimum sum of weights for a mean; below it, no normal is near
AGREED = 0.75  # fraction of the empty voxels of a region with the same sign, from which all take it
LARGEST = 1 << 27  # maximum volume, in voxels, of the box in which it is tested whether a component is enclosed
SURE = 0.05  # minimum distance to zero, in voxels, where the sign was taken from the region
NOISE = 1e-3  # distance to zero, in voxels, below which a voxel counts as inside: rounding would fold the surface
SOLID_SURE = 0.1  # minimum distance to zero of the field of a solid, which ranges from -1 to 1

Pair = tuple[Tensor, Tensor]


def signed_field(voxels: Voxels, *, relax: int = 40) -> SparseTensor:
    """Compute the signed distance to the surface that voxels with normals describe, negative inside.

    The voxels form a shell around the surface, one to three voxels thick, such as `voxelize` or XCube produce.

    1. Each voxel estimates the height of its center above the middle of the shell, by relaxation: it repeatedly moves
       toward the mean of the predictions from its neighbors' heights and the normals between them. This removes the
       staircase of the voxels, but no detail of the normals. A thick shell of high curvature grows by a fraction of a
       voxel.
    2. The field at p is the mean of `height_i + n_i . (p - c_i)` over nearby voxels i with center c_i and normal n_i,
       weighted by their distance and by the length of n_i, at most 1.
    3. In each connected component of the empty voxels of the band, all voxels take the sign of the majority, if that is
       at least three quarters, or if the shell encloses them. If every component has such a majority, as on both sides
       of a shell without holes, the surface is closed, even if the shape is thin and normals vanish or cancel.
       Otherwise it may end at the border of the band, as it does next to large holes.

    Where no normal is near, voxels are inside, and empty ones take the sign of their component, or else are outside.

    Args:
        voxels: A single grid with the attribute "normal", floating-point [N, 3], pointing outward.
        relax: Number of relaxation steps. More steps give a smoother surface.

    Returns:
        Values float32 [M, 1] in world units, on the band: the voxels dilated by 1, diagonals included.

    Raises:
        ImportError: If scipy is not installed.
        TypeError: If `voxels` is not a Voxels, or its normals are not floating-point.
        ValueError: If `voxels` is a batch of several grids, has no finite normals [N, 3], or touches the coordinate
            limits, or if `relax` is negative.
    """
    if not isinstance(voxels, Voxels):
        raise TypeError(f"voxels must be a sparsevox.Voxels, got {type(voxels).__name__}")
    grid = voxels.grid
    _cells.check_one("voxels", grid)
    if "normal" not in voxels.attributes:
        raise ValueError(f"voxels must have the attribute 'normal', got {sorted(voxels.attributes)}")
    normal = checks.floats("normal", checks.shape("normal", voxels.attributes["normal"], grid.num_voxels, 3))
    check_finite("normal", normal)
    if checks.integer("relax", relax) < 0:
        raise ValueError(f"relax must not be negative, got {relax}")
    components = _import_components()
    normal = normal.detach().float()
    normal = normal / torch.linalg.vector_norm(normal, dim=1, keepdim=True).clamp(min=1)
    length = torch.linalg.vector_norm(normal, dim=1, keepdim=True)

    heights = length * _heights(normal, length[:, 0] > 0, grid, relax)[:, None]
    band, sums = _around(torch.cat([normal, heights, length], 1), grid)
    full = grid.contains(band.coords)
    edge = min(grid.voxel_size)
    reached = sums[:, 4] > REACHED
    field = sums[:, 3] / sums[:, 4].clamp(min=REACHED)
    field = torch.where(reached, field, torch.where(full, -edge / 2, edge / 2))
    field = _agreed(components, field, reached, ~full, band, edge)
    return SparseTensor(band, torch.where(field.abs() < NOISE * edge, -NOISE * edge, field)[:, None])


def solid_field(grid: Grid) -> SparseTensor:
    """Compute a blurred occupancy field, negative in the voxels and positive outside, to mesh a solid.

    The zero level set is always closed and separates voxels from empty space. For a shell of voxels it has two parts,
    one on each side.

    Args:
        grid: A single grid.

    Returns:
        Values float32 [M, 1] in [-1, 1], without a unit, on the band: the voxels dilated by 1, diagonals included.

    Raises:
        TypeError: If `grid` is not a Grid.
        ValueError: If `grid` is a batch of several grids, or touches the coordinate limits.
    """
    if not isinstance(grid, Grid):
        raise TypeError(f"grid must be a sparsevox.Grid, got {type(grid).__name__}")
    _cells.check_one("grid", grid)
    band, sums = _around(torch.ones(grid.num_voxels, 1, device=grid.device), grid)
    field = 1 - 2 * sums
    full = grid.contains(band.coords)[:, None]
    return SparseTensor(band, torch.where(full, field.clamp(max=-SOLID_SURE), field.clamp(min=SOLID_SURE)))


class Components(NamedTuple):
    """Functions of scipy: connected components of a graph of edges [2, E] and nodes, and of a volume by faces."""

    of_graph: Callable[[np.ndarray, int], tuple[int, np.ndarray]]
    of_volume: Callable[[np.ndarray], tuple[np.ndarray, int]]


def _import_components() -> Components:
    try:
        from scipy.ndimage import label
        from scipy.sparse import coo_array, csgraph
    except ImportError as error:
        raise ImportError("signed fields need scipy: pip install 'sparsevox[io]'") from error

    def of_graph(edges: np.ndarray, count: int) -> tuple[int, np.ndarray]:
        ones = np.ones(edges.shape[1], np.int8)
        found: tuple[int, np.ndarray] = csgraph.connected_components(
            coo_array((ones, edges), shape=(count, count)), directed=False
        )
        return found

    return Components(of_graph, label)


def _around(feats: Tensor, grid: Grid) -> tuple[Grid, Tensor]:
    """Build the band, and sum the features [N, C] around each of its voxels, weighted by `KERNEL` along each axis.

    With four channels or more, the first three are a vector v, and the fourth is summed plus v . (p - c), where c is
    the center of the source voxel and p that of the band voxel.
    """
    source = grid
    for axis in range(3):  # the kernel is separable
        dilated = source.dilate(_along(axis, 1, 0))
        sums = feats.new_zeros(dilated.num_voxels, feats.shape[1])
        padded = torch.cat([feats, feats.new_zeros(1, feats.shape[1])])  # for row -1
        for tap, rows in enumerate(_table(source, dilated, axis, (-1, 0, 1))):
            part = padded[rows.long()]
            if part.shape[1] > 3:
                part[:, 3] += part[:, axis] * ((1 - tap) * grid.voxel_size[axis])
            sums += KERNEL[tap] * part
        source, feats = dilated, sums
    return source, feats


def _heights(normal: Tensor, known: Tensor, grid: Grid, steps: int) -> Tensor:
    """Estimate the height of each voxel above the middle of the shell: [N], 0 where there is no normal.

    Starting from zero, each step moves a voxel halfway to the mean of the heights that its neighbors and the normals
    between them predict. This preserves the mean height of the shell.
    """
    height, steps_up, count = (normal.new_zeros(grid.num_voxels) for _ in range(3))
    pairs: list[Pair] = []
    has_normal = torch.cat([known, known.new_zeros(1)])  # [N + 1], the last one for row -1
    for axis in range(3):
        below, above = _table(grid, grid, axis, (-1, 1)).long()
        pairs.append((below, above))
        for rows, step in ((below, grid.voxel_size[axis]), (above, -grid.voxel_size[axis])):
            count += has_normal[rows]
            steps_up += torch.where(has_normal[rows], (normal[:, axis] + normal[rows, axis]) * (step / 2), 0)
    moving, count = known & (count > 0), count.clamp(min=1)
    for _ in range(steps):
        padded = torch.cat([height, height.new_zeros(1)])
        predicted = steps_up.clone()  # summed over the neighbors
        for below, above in pairs:
            predicted += padded[below] + padded[above]
        height = torch.where(moving, (height + predicted / count) / 2, 0)
    return height


def _agreed(components: Components, field: Tensor, votes: Tensor, empty: Tensor, band: Grid, edge: float) -> Tensor:
    """Give the majority sign to each connected component of empty voxels (by faces) that is enclosed or agrees."""
    rows = empty.nonzero().squeeze(1)
    number = torch.full((band.num_voxels + 1,), -1, dtype=torch.int64, device=field.device)  # the last one for row -1
    number[rows] = torch.arange(len(rows), device=field.device)
    edges = []
    for axis in range(3):
        above = number[_table(band, band, axis, (1,))[0].long()]
        joined = (above >= 0) & empty
        edges.append(torch.stack([number[:-1][joined], above[joined]]))
    if not len(rows):
        return field
    count, region = components.of_graph(torch.cat(edges, 1).cpu().numpy(), len(rows))
    voting = votes[rows].cpu().numpy()
    inside = np.bincount(region, voting & (field[rows] <= 0).cpu().numpy(), count)
    fraction = 1 - inside / np.maximum(np.bincount(region, voting, count), 1)  # of the votes, for outside
    unclear = (fraction < AGREED) & (fraction > 1 - AGREED)
    if unclear.any():
        ijk, walls = band.ijk[rows].cpu().numpy(), band.ijk[~empty].cpu().numpy()
        low, high = ijk.min(0), ijk.max(0)
        for component in unclear.nonzero()[0]:
            own = ijk[region == component]
            at_border = (own.min(0) == low).any() or (own.max(0) == high).any()
            if not at_border and _enclosed(components, own, walls):
                fraction[component] = fraction[component] > 0.5
    outside = torch.from_numpy(fraction)
    outside = outside[torch.from_numpy(region).long()].to(field.device)
    distance = field[rows].abs().clamp(min=SURE * edge)
    field = field.clone()
    field[rows] = torch.where(outside >= AGREED, distance, torch.where(outside <= 1 - AGREED, -distance, field[rows]))
    return field


def _enclosed(components: Components, ijk: np.ndarray, walls: np.ndarray) -> bool:
    """Whether no path by faces leads from empty voxels [M, 3] out of the box around them, past walls [N, 3]."""
    corner, end = ijk.min(0) - 1, ijk.max(0) + 2
    if np.prod((end - corner).astype(np.float64)) > LARGEST:
        return False
    empty = np.ones(end - corner, bool)
    near = ((walls >= corner) & (walls < end)).all(1)
    empty[tuple((walls[near] - corner).T)] = False
    region, _ = components.of_volume(empty)
    number = region[tuple(ijk[0] - corner)]
    sides = [np.take(region, (0, -1), axis) for axis in range(3)]
    return not any((side == number).any() for side in sides)


def _along(axis: int, value: int, others: int) -> Axes:
    x, y, z = (value if a == axis else others for a in range(3))
    return x, y, z


def _table(fine: Grid, coarse: Grid, axis: int, steps: tuple[int, ...]) -> Tensor:
    """Look up the voxels of `fine` at evenly spaced steps along an axis from those of `coarse`: rows int32 [., M]."""
    spacing = steps[1] - steps[0] if len(steps) > 1 else 1
    ones = (1, 1, 1)
    geometry = Geometry(_along(axis, len(steps), 1), ones, _along(axis, spacing, 1), _along(axis, -steps[0], 0))
    return kernel_table(fine, coarse, geometry)
