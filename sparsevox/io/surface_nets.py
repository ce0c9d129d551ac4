"""Surface nets: a smooth mesh of the level set of a sparse field.

N voxels, M cells that the surface crosses, V vertices, Q quads.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sparsevox import checks, ops
from sparsevox.geometry import Geometry
from sparsevox.io import _cells
from sparsevox.ops.neighbors import kernel_table
from sparsevox.shapes import Mesh
from sparsevox.tensor import SparseTensor

CELL = Geometry((2, 2, 2), (1, 1, 1), (1, 1, 1), (0, 0, 0))


class Cells(NamedTuple):
    """Cells that the surface crosses."""

    corners: Tensor  # rows of their voxels: int64 [8, M]
    crossed: Tensor  # bool [M, 12]
    vertex: Tensor  # that each edge belongs to, if it is crossed: int64 [M, 12]
    owner: Tensor  # the cell of each vertex: int64 [V]


def surface_nets(field: SparseTensor, level: float = 0.0, *, smooth: int = 0) -> Mesh:
    """The surface where a field passes a level, by naive surface nets; inside is where it is not above the level.

    A cell lies between the centers of eight voxels that all exist. Every sheet of the surface in a cell has a vertex,
    at the mean of where its edges pass the level, and every edge that passes the level and has its four cells gives a
    quad around it, cut along its shorter diagonal. Where the field ends, so does the surface; elsewhere it is closed:
    each edge is run through as often in one direction as in the other.

    Args:
        field: One value for each voxel of one grid, [N, 1].
        level: Its value on the surface.
        smooth: How often each vertex moves to the mean of its neighbors, though never out of its cell. For fields
            that jump, such as occupancy.

    Returns:
        Vertices float64 [V, 3] in world coordinates, faces int64 [F, 3], counter-clockwise seen from outside.

    Raises:
        TypeError: If `field` is no SparseTensor or `level` no number.
        ValueError: If it is a batch or has other than one channel, a value or the level is not finite, or `smooth` is
            negative.
    """
    field, level = _cells.check_field("field", field, level)
    if checks.integer("smooth", smooth) < 0:
        raise ValueError(f"smooth must not be negative, got {smooth}")
    grid, values = field.grid, field.feats.detach().squeeze(1).double() - level
    inside = values <= 0
    corners = kernel_table(grid, grid, CELL)  # [8, N]
    mask = _corners_inside(corners, inside)
    lower = ((mask > 0) & (mask < 255)).nonzero().squeeze(1)  # voxels at the lower corners of cells: [M]
    cells = _cells_of(mask[lower], corners[:, lower].long())
    local = _means(values, cells)
    quads = _quads(cells, inside)
    corner = grid.ijk[lower].double()[cells.owner]
    if smooth:
        local = _relaxed(local, corner, quads, smooth)
    vertices = grid.to_world(corner + local)
    return Mesh(vertices, _cells.triangles(quads, vertices))


def _corners_inside(corners: Tensor, inside: Tensor) -> Tensor:
    """Which corners of the cell above each voxel are inside, as bits: int64 [N]; 0 where a corner is missing."""
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
    """The mean of where the edges of a sheet pass zero, in voxels from the lower corner of its cell: float64 [V, 3]."""
    sums = values.new_zeros(len(cells.owner), 4)
    for edge, (start, end) in enumerate(zip(_cells.FROM, _cells.TO, strict=True)):
        chosen = cells.crossed[:, edge].nonzero().squeeze(1)
        a, b = values[cells.corners[start, chosen]], values[cells.corners[end, chosen]]
        point = values.new_tensor([*_cells.CORNERS[start], 1]).repeat(len(chosen), 1)
        point[:, edge // 4] += a / (a - b)
        sums[cells.vertex[chosen, edge]] += point  # an edge has one sheet, so no vertex comes twice
    return sums[:, :3] / sums[:, 3:]


def _quads(cells: Cells, inside: Tensor) -> Tensor:
    """The four vertices around every edge that is crossed and has its four cells: int64 [Q, 4]."""
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
    """Vertices moved, again and again, to the mean of those that share an edge of a quad, within their cells."""
    count = len(local)
    ends = torch.cat([quads, quads.roll(1, 1)]).flatten(), torch.cat([quads.roll(1, 1), quads]).flatten()
    edges = torch.unique(ends[0] * count + ends[1])
    offsets = torch.searchsorted(edges, torch.arange(count + 1, device=edges.device) * count)
    alone = (offsets.diff() == 0)[:, None]
    for _ in range(steps):
        mean = ops.segment_reduce((corner + local)[edges % count], offsets, "mean") - corner
        local = torch.where(alone, local, mean.clamp(0, 1))
    return local
