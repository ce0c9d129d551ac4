"""Meshes of the exposed faces of voxels.

N voxels, F exposed faces (between a voxel and an empty neighbor), R rectangles merged from them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparsevox.grid import Grid
from sparsevox.io import _cells
from sparsevox.morton import COORD_MIN
from sparsevox.ops import neighbor_table
from sparsevox.shapes import Attributes, Mesh, Voxels

BITS = 19  # per coordinate of a corner, one more than for a voxel
CARRIED = ("color", "label")


class Rectangles(NamedTuple):
    """Rectangles of exposed faces, at least one face each."""

    side: Tensor  # 2 * axis, plus 1 if the face points up the axis: int64 [R]
    corners: Tensor  # rows of the voxels at the corners (0, 0) (0, 1) (1, 0) (1, 1) of the other two axes: [R, 4]


def voxel_faces(voxels: Voxels | Grid, *, merge: bool = True, attributes: Sequence[str] = CARRIED) -> Mesh:
    """Mesh the exposed faces of voxels, those with an empty neighbor.

    Without `merge`, each face becomes two triangles and the mesh is closed. Voxels that touch only along an edge or at
    a corner do not share vertices there, so the mesh is manifold, except where such voxels are also connected around
    both ends of the edge.

    With `merge`, coplanar faces with equal attributes become rectangles: runs along one axis first, then equal runs
    along the other. Area and volume do not change, but there are T-junctions: a corner of one rectangle may lie on an
    edge of another.

    Args:
        voxels: A single grid, with or without attributes.
        merge: Whether to merge faces into rectangles.
        attributes: Names of the voxel attributes that become face attributes. Missing ones are skipped.

    Returns:
        Vertices float64 [V, 3] in world coordinates, faces int64 [F, 3], oriented outward.

    Raises:
        TypeError: If `voxels` is neither a Voxels nor a Grid.
        ValueError: If `voxels` is a batch of several grids.
    """
    if not isinstance(voxels, Voxels | Grid):
        raise TypeError(f"voxels must be a sparsevox.Voxels or Grid, got {type(voxels).__name__}")
    grid = voxels.grid if isinstance(voxels, Voxels) else voxels
    _cells.check_one("voxels", grid)
    carried = {} if isinstance(voxels, Grid) else {k: v for k, v in voxels.attributes.items() if k in attributes}
    table = neighbor_table(grid)
    ijk = grid.ijk.long()
    found = _exposed(table)
    if merge:
        found = _merged(found, ijk, carried)
    keys = _corner_keys(found, ijk, _occupied(table))
    used, quads = torch.unique(keys, return_inverse=True)
    vertices = _positions(used, grid)
    rows = found.corners[:, 0].repeat_interleave(2)
    return Mesh(vertices, _cells.triangles(quads), {}, {name: value[rows] for name, value in carried.items()})


def _exposed(table: Tensor) -> Rectangles:
    center, steps = 13, (9, 3, 1)
    taps = [center + sign * step for step in steps for sign in (-1, 1)]
    side, row = (table[taps] < 0).nonzero(as_tuple=True)
    return Rectangles(side, row[:, None].expand(-1, 4))


def _merged(faces: Rectangles, ijk: Tensor, attributes: Attributes) -> Rectangles:
    """Merge faces into runs along v, then equal runs along u, where u and v are the axes after that of the side."""
    along = _in_plane(faces.side, ijk[faces.corners[:, 0]])  # side, plane, u, v: [F, 4]
    order = torch.argsort(_packed(along, (0, 1, 2, 3)))
    along, rows = along[order], faces.corners[order, 0]
    begins = _begins(along, 3) | _differ(rows, attributes)
    starts = begins.nonzero().squeeze(1)
    ends = torch.cat([starts[1:], starts.new_full((1,), len(rows))])[: len(starts)] - 1

    runs, length = along[starts], ends - starts
    order = torch.argsort(_packed(runs, (0, 1, 3, 2)))
    runs, length, first, last = runs[order], length[order], rows[starts][order], rows[ends][order]
    begins = _begins(runs[:, [0, 1, 3, 2]], 3) | _differ(first, attributes)
    begins[1:] |= length[1:] != length[:-1]
    starts = begins.nonzero().squeeze(1)
    ends = torch.cat([starts[1:], starts.new_full((1,), len(runs))])[: len(starts)] - 1
    return Rectangles(runs[starts, 0], torch.stack([first[starts], last[starts], first[ends], last[ends]], 1))


def _in_plane(side: Tensor, ijk: Tensor) -> Tensor:
    """Stack side, coordinate along its axis, and coordinates along the next two axes, from 0 on: int64 [F, 4]."""
    axis = side // 2
    turned = torch.stack([ijk.gather(1, ((axis + n) % 3)[:, None]).squeeze(1) for n in range(3)], 1) - COORD_MIN
    return torch.cat([side[:, None], turned], 1)


def _packed(columns: Tensor, order: Sequence[int]) -> Tensor:
    key = torch.zeros_like(columns[:, 0])
    for column in order:
        key = key << BITS | columns[:, column]
    return key


def _begins(columns: Tensor, last: int) -> Tensor:
    """Mark rows that do not continue the previous row, by a step of 1 in column `last` with all others equal."""
    begins = torch.ones(len(columns), dtype=torch.bool, device=columns.device)
    step = columns[1:] - columns[:-1]
    step[:, last] -= 1
    begins[1:] = (step != 0).any(1)
    return begins


def _differ(rows: Tensor, attributes: Attributes) -> Tensor:
    """Mark rows whose attributes differ from those of the previous row."""
    differ = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for value in attributes.values():
        changes = value[rows[1:]] != value[rows[:-1]]
        differ[1:] |= changes if value.ndim == 1 else changes.any(1)
    return differ


def _occupied(table: Tensor) -> Tensor:
    """Mark which of the eight voxels around each corner of a voxel exist, as bits in corner order: uint8 [8, N]."""
    masks = torch.zeros((8, table.shape[1]), dtype=torch.uint8, device=table.device)
    for corner, (x, y, z) in enumerate(_cells.CORNERS):
        for bit, (i, j, k) in enumerate(_cells.CORNERS):
            masks[corner] |= (table[9 * (x + i) + 3 * (y + j) + z + k] >= 0).to(torch.uint8) << bit
    return masks


def _corner_keys(rectangles: Rectangles, ijk: Tensor, occupied: Tensor) -> Tensor:
    """Compute a key per vertex, its position and its sheet of the surface: int64 [R, 4], counter-clockwise outside."""
    numbers = _cells.sheets(ijk.device).number
    keys = ijk.new_zeros(rectangles.corners.shape)
    for side in range(6):
        chosen = (rectangles.side == side).nonzero().squeeze(1)
        axis, up = divmod(side, 2)
        turn = ((0, 0), (1, 0), (1, 1), (0, 1)) if up else ((0, 0), (0, 1), (1, 1), (1, 0))
        for place, (u, v) in enumerate(turn):
            row = rectangles.corners[chosen, 2 * u + v]
            corner = up * _cells.BIT[axis] + u * _cells.BIT[(axis + 1) % 3] + v * _cells.BIT[(axis + 2) % 3]
            edge = 4 * axis + 2 * (1 - u) + (1 - v)  # edge, of the cell around the corner, that leads out of the voxel
            sheet = numbers[occupied[corner, row].long(), edge]
            at = ijk[row] + torch.tensor(_cells.CORNERS[corner], device=ijk.device) - COORD_MIN
            keys[chosen, place] = _packed(at, (0, 1, 2)) << 2 | sheet
    return keys


def _positions(keys: Tensor, grid: Grid) -> Tensor:
    at = torch.stack([keys >> (2 + BITS * shift) & (1 << BITS) - 1 for shift in (2, 1, 0)], 1)
    return grid.to_world(at.double() + (COORD_MIN - 0.5))
