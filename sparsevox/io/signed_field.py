"""Fields that are negative inside and positive outside: from the normals of voxels, or from which voxels exist.

N voxels, M voxels of the band, which reaches one voxel farther to all sides; C channels.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsevox import checks
from sparsevox.geometry import Axes, Geometry
from sparsevox.grid import Grid
from sparsevox.io import _cells
from sparsevox.io.sampling import check_finite
from sparsevox.ops.neighbors import kernel_table
from sparsevox.shapes import Voxels
from sparsevox.tensor import SparseTensor

KERNEL = (0.25, 0.5, 0.25)  # weights along each axis
REACHED = 1e-6  # a sum of weights from which a mean is taken; elsewhere no normal is near
AGREED = 0.75  # the share of the empty voxels of a region whose sign the others then take
SURE = 0.05  # of a voxel: how far from zero the field is kept where its sign was taken from a region
NOISE = 1e-3  # of a voxel: what is closer to zero counts as inside, lest rounding fold the surface
SOLID_SURE = 0.1  # of the field of a solid, which reaches from -1 to 1

Pair = tuple[Tensor, Tensor]


def signed_field(voxels: Voxels, *, relax: int = 40) -> SparseTensor:
    """Distance to the surface that voxels and their normals describe, negative inside, on the voxels and those around.

    The voxels are a shell around the surface, one to three thick, such as `voxelize` or XCube make. First each finds
    how high above the middle of the shell its center lies: its neighbors tell it, by their own height and the normals
    between, a few times. That irons out the steps of the voxels, and no detail that normals show. Then the field at p
    is the mean of `height_i + n_i . (p - c_i)`, weighted by how near the centers are and how long the normals, 1 at
    most. A thick shell that is strongly curved comes out larger, by a fraction of a voxel.

    Empty voxels of the band that hang together take the sign of the most of them, if three quarters agree. Where all
    such regions agree, as on both sides of a shell without holes, the surface is closed, even if the shape is thin and
    normals are zero or opposite. Otherwise it may end at the border of the band, as it does beside large holes. Where
    no normal is near, voxels are inside, and what is around them takes the sign of its region, else is outside.

    Args:
        voxels: One grid with the attribute "normal", out of the surface.
        relax: How often neighbors tell; more is smoother.

    Returns:
        Values float32 [M, 1] in world units. Voxels of the band lie within one of those given, diagonals included.

    Raises:
        ImportError: If scipy is not installed.
        TypeError: If `voxels` is no Voxels, or its normals are not floating-point.
        ValueError: If it is a batch, lacks normals [N, 3] or has one that is not finite, if `relax` is negative, or if
            the band would be out of range.
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
    library = _library()
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
    field = _agreed(library, field, reached, ~full, band, edge)
    return SparseTensor(band, torch.where(field.abs() < NOISE * edge, -NOISE * edge, field)[:, None])


def solid_field(grid: Grid) -> SparseTensor:
    """A field that is negative in the voxels and positive around them, blurred a little: for the surface of a solid.

    Its surface is closed and separates voxels from empty space, whatever the grid. A shell has two, one inside.

    Args:
        grid: One grid.

    Returns:
        Values float32 [M, 1] between -1 and 1, without a unit. Voxels of the band lie within one of those given,
        diagonals included.

    Raises:
        TypeError: If `grid` is no Grid.
        ValueError: If it is a batch, or the band would be out of range.
    """
    if not isinstance(grid, Grid):
        raise TypeError(f"grid must be a sparsevox.Grid, got {type(grid).__name__}")
    _cells.check_one("grid", grid)
    band, sums = _around(torch.ones(grid.num_voxels, 1, device=grid.device), grid)
    field = 1 - 2 * sums
    full = grid.contains(band.coords)[:, None]
    return SparseTensor(band, torch.where(full, field.clamp(max=-SOLID_SURE), field.clamp(min=SOLID_SURE)))


def _library() -> Any:
    try:
        from scipy.sparse import coo_array, csgraph
    except ImportError as error:
        raise ImportError("signed fields need scipy: pip install 'sparsevox[io]'") from error
    return lambda edges, count: csgraph.connected_components(
        coo_array((np.ones(edges.shape[1], np.int8), edges), shape=(count, count)), directed=False
    )


def _around(feats: Tensor, grid: Grid) -> tuple[Grid, Tensor]:
    """The band, and for each of its voxels the weighted sum of the features [N, C] of those around it, itself included.

    With four channels or more, to the fourth is added what the first three, a vector, make with the way from a voxel.
    """
    here = grid
    for axis in range(3):
        there = here.dilate(_along(axis, 1, 0))
        sums = feats.new_zeros(there.num_voxels, feats.shape[1])
        padded = torch.cat([feats, feats.new_zeros(1, feats.shape[1])])  # the row -1
        for tap, rows in enumerate(_table(here, there, axis, (-1, 0, 1))):
            part = padded[rows.long()]
            if part.shape[1] > 3:
                part[:, 3] += part[:, axis] * ((1 - tap) * grid.voxel_size[axis])
            sums += KERNEL[tap] * part
        here, feats = there, sums
    return here, feats


def _heights(normal: Tensor, known: Tensor, grid: Grid, steps: int) -> Tensor:
    """How far above the middle of the shell each voxel lies: [N], 0 where there is no normal.

    From zero each moves, in each step, half-way to the mean of what its neighbors and the normals between expect. That
    leaves the mean over the shell where it is.
    """
    height, ways, count = (normal.new_zeros(grid.num_voxels) for _ in range(3))
    pairs: list[Pair] = []
    there = torch.cat([known, known.new_zeros(1)])  # and of the row -1
    for axis in range(3):
        below, above = _table(grid, grid, axis, (-1, 1)).long()
        pairs.append((below, above))
        for rows, way in ((below, grid.voxel_size[axis]), (above, -grid.voxel_size[axis])):
            count += there[rows]
            ways += torch.where(there[rows], (normal[:, axis] + normal[rows, axis]) * (way / 2), 0)
    moving, count = known & (count > 0), count.clamp(min=1)
    for _ in range(steps):
        told = torch.cat([height, height.new_zeros(1)])
        expected = ways.clone()
        for below, above in pairs:
            expected += told[below] + told[above]
        height = torch.where(moving, (height + expected / count) / 2, 0)
    return height


def _agreed(components: Any, field: Tensor, votes: Tensor, empty: Tensor, band: Grid, edge: float) -> Tensor:
    """The field with one sign in each region of empty voxels, joined by sides, in which most votes agree."""
    rows = empty.nonzero().squeeze(1)
    number = torch.full((band.num_voxels + 1,), -1, dtype=torch.int64, device=field.device)  # and of the row -1
    number[rows] = torch.arange(len(rows), device=field.device)
    edges = []
    for axis in range(3):
        above = number[_table(band, band, axis, (1,))[0].long()]
        joined = (above >= 0) & empty
        edges.append(torch.stack([number[:-1][joined], above[joined]]))
    count, region = components(torch.cat(edges, 1).cpu().numpy(), len(rows)) if len(rows) else (0, np.zeros(0, int))
    voting = votes[rows].cpu().numpy()
    inside = np.bincount(region, voting & (field[rows] <= 0).cpu().numpy(), count)
    share = torch.from_numpy(1 - inside / np.maximum(np.bincount(region, voting, count), 1))
    share = share[torch.from_numpy(region).long()].to(field.device)
    distance = field[rows].abs().clamp(min=SURE * edge)
    field = field.clone()
    field[rows] = torch.where(share >= AGREED, distance, torch.where(share <= 1 - AGREED, -distance, field[rows]))
    return field


def _along(axis: int, value: int, others: int) -> Axes:
    x, y, z = (value if a == axis else others for a in range(3))
    return x, y, z


def _table(fine: Grid, coarse: Grid, axis: int, steps: tuple[int, ...]) -> Tensor:
    """Rows of the voxels of one grid that lie evenly spaced steps along an axis from those of another: int32 [., M]."""
    spacing = steps[1] - steps[0] if len(steps) > 1 else 1
    ones = (1, 1, 1)
    geometry = Geometry(_along(axis, len(steps), 1), ones, _along(axis, spacing, 1), _along(axis, -steps[0], 0))
    return kernel_table(fine, coarse, geometry)
