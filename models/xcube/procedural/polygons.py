"""Signed distances to polygons in the plane, for extrusions and solids of revolution.

V vertices.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Polygon = Sequence[tuple[float, float]]

EDGES = 1 << 18  # pairs of a point and an edge evaluated at a time, which bounds the memory


def polygon_distance(u: Tensor, v: Tensor, polygon: Polygon) -> Tensor:
    """Signed distance to a polygon without self-intersections, whose vertices run in either direction."""
    a = torch.tensor(polygon, dtype=u.dtype, device=u.device)
    edges = a.roll(-1, 0) - a
    scaled = edges / (edges * edges).sum(1, keepdim=True)
    count = torch.broadcast_shapes(u.shape, v.shape).numel()
    step = max(1, EDGES // max(count, 1))
    squared, crossings = _edges(u, v, a[:step], edges[:step], scaled[:step])
    for i in range(step, len(a), step):
        part = _edges(u, v, *(rows[i : i + step] for rows in (a, edges, scaled)))
        squared, crossings = torch.minimum(squared, part[0]), crossings ^ part[1]
    nearest = squared.sqrt()
    return torch.where(crossings, -nearest, nearest)


def _edges(u: Tensor, v: Tensor, a: Tensor, edges: Tensor, scaled: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance to the nearest of some edges, and whether a ray along u crosses an odd number of them."""
    shape = (2, -1, *(1 for _ in range(max(u.ndim, v.ndim))))
    (au, av), (eu, ev), (su, sv) = (each.T.reshape(shape) for each in (a, edges, scaled))
    wu, wv = u - au, v - av
    along = (wu * su + wv * sv).clamp_(0, 1)
    du, dv = wu - along * eu, wv - along * ev
    squared = (du * du + dv * dv).amin(0)
    crossed = ((wv >= 0) != (v - (av + ev) >= 0)) & ((eu * wv > ev * wu) == (ev > 0))
    return squared, crossed.sum(0) % 2 == 1


def check_polygon(name: str, vertices: Polygon) -> None:
    """Raise ValueError for fewer than three vertices, or for two successive equal ones."""
    if len(vertices) < 3:
        raise ValueError(f"{name} must have at least three vertices, got {len(vertices)}")
    for index, vertex in enumerate(vertices):
        if vertex == vertices[index - 1]:
            raise ValueError(f"{name} must not have a vertex twice in a row, got {vertex} again in row {index}")
