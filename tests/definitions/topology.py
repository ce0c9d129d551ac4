"""Coarsening, subdivision, pruning and cropping of sets of voxels. Unions and the like are those of Python's sets."""

from collections.abc import Iterable, Sequence
from itertools import product

from sparsevox.testing import Voxel

Triple = Sequence[int]


def coarsen(voxels: Iterable[Voxel], factor: Triple) -> set[Voxel]:
    """Every parent of a voxel."""
    return {parent(voxel, factor) for voxel in voxels}


def parent(voxel: Voxel, factor: Triple) -> Voxel:
    """The coarse voxel that holds a voxel: floor(i / factor) along each axis, for negative i too."""
    b, *ijk = voxel
    return (b, *(i // f for i, f in zip(ijk, factor, strict=True)))


def children(voxel: Voxel, factor: Triple) -> list[Voxel]:
    """The voxels whose parent this is, the last axis fastest."""
    b, *ijk = voxel
    return [(b, *fine) for fine in product(*(range(i * f, (i + 1) * f) for i, f in zip(ijk, factor, strict=True)))]


def subdivide(voxels: Iterable[Voxel], factor: Triple) -> set[Voxel]:
    """All children of the voxels."""
    return {child for voxel in voxels for child in children(voxel, factor)}


def prune(rows: Sequence[Voxel], keep: Sequence[bool]) -> set[Voxel]:
    """The voxels whose entry is True. With `rows` the children of voxels, a subdivision to chosen children."""
    return {voxel for voxel, kept in zip(rows, keep, strict=True) if kept}


def box(lower: Triple, upper: Triple) -> list[tuple[int, ...]]:
    """All (i, j, k) from `lower` to `upper`, exclusive."""
    return list(product(*(range(a, b) for a, b in zip(lower, upper, strict=True))))


def crop(voxels: Iterable[Voxel], lower: Triple, upper: Triple) -> set[Voxel]:
    """The voxels from `lower` to `upper`, exclusive."""
    return {v for v in voxels if all(a <= i < b for a, i, b in zip(lower, v[1:], upper, strict=True))}
