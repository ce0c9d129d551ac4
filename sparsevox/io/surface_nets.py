"""Surface nets: a smooth mesh of a level set of a sparse field.

N voxels, M cells that the surface crosses, V vertices, Q quads.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sparsevox import checks, ops
from sparsevox.conv_geometry import Geometry
from sparsevox.io import _cells
from sparsevox.ops.neighbors import kernel_table
from sparsevox.shapes import Mesh
from sparsevox.tensor import SparseTensor

CELL = Geometry((2, 2, 2), (1, 1, 1), (1, 1, 1), (0, 0, 0))


class Cells(NamedTuple):
    """Cells that the surface crosses."""

    corners: Tensor  # rows of the voxels at the corners: int64 [8, M]
    crossed: Tensor  # whether the surface crosses each edge: bool [M, 12]
    vertex: Tensor  # vertex of each crossed edge: int64 [M, 12]
    owner: Tensor  # cell of each vertex: int64 [V]


def surface_nets(field: SparseTensor, level: float = 0.0, *, smooth: int = 0) -> Mesh:
    """Extract a level set by naive surface nets (Gibson 1998). Inside is where the field is at most `level`.

    The corners of a cell are the centers of eight voxels, all of which must exist. Each connected piece (sheet) of the
    surface in a cell gets one vertex, at the mean of the crossings of its edges. Each crossed edge with four cells gets
    a quad, split along its shorter diagonal. The surface is closed except where the field ends.

    Args:
        field: One value per voxel of a single grid, floating-point [N, 1].
        level: Value of the field on the surface.
        smooth: Number of smoothing steps, which move each vertex to the mean of its neighbors without leaving its cell.
            Use it for discontinuous fields, such as occupancy.

    Returns:
        Vertices float64 [V, 3] in world coordinates, faces int64 [F, 3], counter-clockwise seen from outside.

    Raises:
        TypeError: If `field` is not a SparseTensor or `level` is not a number.
        ValueError: If `field` is a batch of several grids, does not have one channel, or is not finite, if `level` is
            not finite, or if `smooth` is negative.
    """
    field, level = _cells.check_field("field", field, level)
    if checks.integer("smooth", smooth) < 0:
        raise ValueError(f"smooth must not be negative, got {smooth}")
    grid, values = field.grid, field.feats.detach().squeeze(1).double() - level
    inside = values <= 0
    corners = kernel_table(grid, grid, CELL)  # [8, N]
    mask = _corners_inside(corners, inside)
    lower = ((mask > 0) & (mask < 255)).nonzero().squeeze(1)  # row of the voxel at the lower corner of each cell: [M]
    cells = _cells_of(mask[lower], corners[:, lower].long())
    local = _means(values, cells)
    quads = _quads(cells, inside)
    corner = grid.ijk[lower].double()[cells.owner]
    if smooth:
        local = _relaxed(local, corner, quads, smooth)
    vertices = grid.to_world(corner + local)
    return Mesh(vertices, _cells.triangles(quads, vertices))


def _corners_inside(corners: Tensor, inside: Tensor) -> Tensor:
    """Mark which corners of the cell above each voxel are inside, as bits: int64 [N], 0 where a corner is missing."""
    mask = torch.zeros(corners.shape[1], dtype=torch.int64, device=corners.device)
    whole = torch.ones_like(mask, dtype=torch.bool)
    for bit, rows in enumerate(corners):
        whole &= rows >= 0
        mask |= inside[rows.clamp(min=0).long()].long() << bit
    return torch.where(whole, mask, 0)


def _cells_of(mask: Tensor, corners: Tensor) -> Cells:
    sheets = _cells.sheets(mask.device)
    count = sheets.total[mask]
    first = count.cumsum(0) - count
    owner = torch.repeat_interleave(count)
    return Cells(corners, sheets.crossed[mask], first[:, None] + sheets.number[mask], owner)


def _means(values: Tensor, cells: Cells) -> Tensor:
    """Average the zero crossings of each sheet, in voxels from the lower corner of its cell: float64 [V, 3]."""
    sums = values.new_zeros(len(cells.owner), 4)  # x, y, z and their number
    for edge, (start, end) in enumerate(zip(_cells.FROM, _cells.TO, strict=True)):
        chosen = cells.crossed[:, edge].nonzero().squeeze(1)
        a, b = values[cells.corners[start, chosen]], values[cells.corners[end, chosen]]
        point = values.new_tensor([*_cells.CORNERS[start], 1]).repeat(len(chosen), 1)
        point[:, edge // 4] += a / (a - b)
        sums[cells.vertex[chosen, edge]] += point  # no vertex occurs twice, since an edge belongs to one sheet
    return sums[:, :3] / sums[:, 3:]


def _quads(cells: Cells, inside: Tensor) -> Tensor:
    """Connect the four vertices around every crossed edge that has four cells: int64 [Q, 4]."""
    found = []
    for axis in range(3):
        around = torch.full((len(inside), 4), -1, dtype=torch.int64, device=inside.device)
        for place, (u, v) in enumerate(((1, 1), (0, 1), (0, 0), (1, 0))):  # counter-clockwise, seen from up the axis
            edge = 4 * axis + 2 * u + v
            chosen = cells.crossed[:, edge].nonzero().squeeze(1)
            around[cells.corners[_cells.FROM[edge], chosen], place] = cells.vertex[chosen, edge]
        row = (around >= 0).all(1).nonzero().squeeze(1)
        found.append(torch.where(inside[row, None], around[row], around[row].flip(1)))
    return torch.cat(found)


def _relaxed(local: Tensor, corner: Tensor, quads: Tensor, steps: int) -> Tensor:
    """Move each vertex to the mean of its neighbors along edges of quads, repeatedly, clamped to its cell."""
    count = len(local)
    ends = torch.cat([quads, quads.roll(1, 1)]).flatten(), torch.cat([quads.roll(1, 1), quads]).flatten()  # [8 Q] each
    edges = torch.unique(ends[0] * count + ends[1])
    offsets = torch.searchsorted(edges, torch.arange(count + 1, device=edges.device) * count)
    alone = (offsets.diff() == 0)[:, None]
    for _ in range(steps):
        mean = ops.segment_reduce((corner + local)[edges % count], offsets, "mean") - corner
        local = torch.where(alone, local, mean.clamp(0, 1))
    return local
