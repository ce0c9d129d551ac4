"""Cells of the dual grid, whose corners are the centers of eight voxels, and how a surface passes through them.

Corner 4 x + 2 y + z of a cell lies at (x, y, z), like the taps of a kernel of size 2. Edge 4 a + 2 u + v runs along
axis a, from the corner with coordinates u and v on axes (a + 1) % 3 and (a + 2) % 3.
"""

from functools import cache
from itertools import product
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from sparsevox.grid import Grid
from sparsevox.shapes import Mesh
from sparsevox.tensor import SparseTensor

BIT = (4, 2, 1)  # of each axis in the index of a corner
CORNERS = tuple((x, y, z) for x, y, z in product((0, 1), repeat=3))
FROM = tuple(u * BIT[(a + 1) % 3] + v * BIT[(a + 2) % 3] for a, u, v in product(range(3), (0, 1), (0, 1)))
TO = tuple(corner + BIT[edge // 4] for edge, corner in enumerate(FROM))


def check_one(name: str, grid: Grid) -> None:
    """Raise unless the grid is a single batch item."""
    if grid.batch_size != 1:
        raise ValueError(f"{name} must be one grid, got a batch of {grid.batch_size}: select an item first")


def check_field(name: str, field: object, level: object) -> tuple[SparseTensor, float]:
    """Check a field of one finite value per voxel of a single batch item, and a finite level."""
    if not isinstance(field, SparseTensor):
        raise TypeError(f"{name} must be a sparsevox.SparseTensor, got {type(field).__name__}")
    check_one(name, field.grid)
    if field.channels != 1:
        raise ValueError(f"{name} must have one channel, got {field.channels}")
    if isinstance(level, bool) or not isinstance(level, int | float):
        raise TypeError(f"level must be a number, got {level!r}")
    if not isfinite(level):
        raise ValueError(f"level must be finite, got {level}")
    finite = field.feats.isfinite()
    if not bool(finite.all()):
        row = int((~finite).int().argmax())
        raise ValueError(f"{name} must be finite, got {field.feats[row].item()} in row {row}")
    return field, float(level)


def empty_mesh(device: torch.device) -> Mesh:
    """Create a mesh without vertices and faces."""
    vertices = torch.zeros(0, 3, dtype=torch.float64, device=device)
    return Mesh(vertices, torch.zeros(0, 3, dtype=torch.int64, device=device))


class Sheets(NamedTuple):
    """Tables of how the surface passes through a cell, for all 256 combinations of corners inside and outside."""

    crossed: Tensor  # whether the surface crosses each edge: bool [256, 12]
    number: Tensor  # index of the sheet that crosses it, 0 if none does: int64 [256, 12]
    total: Tensor  # number of sheets, 0 to 4: int64 [256]


def sheets(device: torch.device) -> Sheets:
    """Look up the connected pieces (sheets) of the surface in a cell. Bit c of the row is set if corner c is inside.

    On an ambiguous face, whose corners alternate between inside and outside, the surface separates the corners inside.
    Cells that share a face agree on that. With one vertex per sheet rather than per cell, most surfaces are manifold.
    """
    return Sheets(*(array.to(device) for array in _sheets()))


@cache
def _sheets() -> Sheets:
    inside = (torch.arange(256)[:, None] >> torch.arange(8) & 1).bool()  # [256, 8]
    crossed = inside[:, FROM] != inside[:, TO]  # [256, 12]
    joined = torch.diag_embed(crossed)  # pairs of edges in the same sheet: [256, 12, 12]
    for axis, side in product(range(3), (0, 1)):
        u, v = BIT[(axis + 1) % 3], BIT[(axis + 2) % 3]
        ring = [side * BIT[axis] + corner for corner in (0, u, u + v, v)]
        edges = [_edge(ring[n], ring[(n + 1) % 4]) for n in range(4)]
        once = crossed[:, edges].sum(1) == 2
        for n, m in product(range(4), range(4)):
            around = inside[:, ring[n]] if (n - m) % 4 == 1 else torch.zeros_like(once)  # corner that both edges share
            both = crossed[:, edges[n]] & crossed[:, edges[m]] & (once | around)
            joined[:, edges[n], edges[m]] |= both
            joined[:, edges[m], edges[n]] |= both
    for _ in range(4):  # transitive closure: paths of up to 16 steps
        joined = (joined.float() @ joined.float()) > 0
    first = joined.int().argmax(2)  # the lowest edge of the sheet
    begins = crossed & (first == torch.arange(12))
    number = (begins.cumsum(1) - 1).gather(1, first)
    return Sheets(crossed, torch.where(crossed, number, 0), begins.sum(1))


def _edge(corner: int, other: int) -> int:
    low, high = min(corner, other), max(corner, other)
    return next(e for e in range(12) if (FROM[e], TO[e]) == (low, high))


def triangles(quads: Tensor, vertices: Tensor | None = None) -> Tensor:
    """Split quads [Q, 4] into triangles [2 Q, 3], along the shorter diagonal if vertices are given."""
    first = quads[:, [0, 1, 2, 0, 2, 3]]
    if vertices is not None and len(quads):
        corners = vertices[quads]  # [Q, 4, 3]
        lengths = (corners[:, :2] - corners[:, 2:]).square().sum(2)  # of the diagonals, squared: [Q, 2]
        first = torch.where((lengths[:, 1] < lengths[:, 0])[:, None], quads[:, [1, 2, 3, 1, 3, 0]], first)
    return first.reshape(-1, 3)
