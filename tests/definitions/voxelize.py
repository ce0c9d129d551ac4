"""Voxels of triangles and of points, in exact arithmetic. Positions are in voxels, with centers at the integers."""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import product

Point = Sequence[float | Fraction]
HALF = Fraction(1, 2)


def mesh_voxels(triangles: Iterable[Sequence[Point]], half: Fraction = HALF) -> set[tuple[int, ...]]:
    """The voxels whose closed boxes, of edge 2 * half, touch a triangle."""
    polygons = [[tuple(Fraction(x) for x in p) for p in triangle] for triangle in triangles]
    return set().union(*(polygon_voxels(polygon, half) for polygon in polygons))


def polygon_voxels(polygon: list[tuple[Fraction, ...]], half: Fraction, axis: int = 0) -> set[tuple[int, ...]]:
    """Cuts a convex polygon into the slabs of one axis after the other; what is left lies in one box."""
    if axis == 3 or not polygon:
        return {()} if polygon else set()
    places = [p[axis] for p in polygon]
    voxels: set[tuple[int, ...]] = set()
    for i in range(math.floor(min(places) - half), math.ceil(max(places) + half) + 1):
        slab = clip(clip(polygon, axis, i - half, 1), axis, i + half, -1)
        voxels |= {(i, *rest) for rest in polygon_voxels(slab, half, axis + 1)}
    return voxels


def clip(polygon: list[tuple[Fraction, ...]], axis: int, bound: Fraction, sign: int) -> list[tuple[Fraction, ...]]:
    """The part of a closed convex polygon where sign * (p[axis] - bound) >= 0 (Sutherland and Hodgman 1974)."""
    kept = []
    for p, q in zip(polygon[-1:] + polygon[:-1], polygon, strict=True):
        before, after = sign * (p[axis] - bound), sign * (q[axis] - bound)
        if (before >= 0) != (after >= 0):
            t = before / (before - after)
            kept.append(tuple(a + t * (b - a) for a, b in zip(p, q, strict=True)))
        if after >= 0:
            kept.append(q)
    return kept


def containing(points: Iterable[Point]) -> set[tuple[int, ...]]:
    """The voxels whose boxes hold a point; a point on a face belongs to the upper voxel."""
    return {tuple(math.floor(Fraction(x) + HALF) for x in p) for p in points}


def enclosing(points: Iterable[Point]) -> set[tuple[int, ...]]:
    """The eight voxels whose centers enclose each point."""
    return {ijk for p in points for ijk in product(*((math.floor(x), math.floor(x) + 1) for x in p))}
