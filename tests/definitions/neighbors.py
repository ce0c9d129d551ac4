"""Kernel maps: which fine voxel each tap of a kernel meets from each coarse voxel, and the grids that a kernel reaches.

There is one rule, that of `torch.nn.functional.conv3d`: fine = stride * coarse + tap * dilation - padding, per axis.
"""

from collections.abc import Iterable, Sequence
from itertools import product

from sparsevox.testing import Voxel

Axes = tuple[int, int, int]
Geometry = tuple[Axes, Axes, Axes, Axes]  # kernel size, stride, dilation, padding


def taps(geometry: Geometry) -> list[Axes]:
    """The kernel offsets, the last axis fastest."""
    i, j, k = geometry[0]
    return list(product(range(i), range(j), range(k)))


def fine_voxel(coarse: Voxel, tap: Axes, geometry: Geometry) -> Voxel:
    """The fine voxel that a tap meets from a coarse voxel."""
    b, *ijk = coarse
    _, stride, dilation, padding = geometry
    axes = zip(ijk, tap, stride, dilation, padding, strict=True)
    return (b, *(s * c + t * d - p for c, t, s, d, p in axes))


def kernel_table(fine: Sequence[Voxel], coarse: Sequence[Voxel], geometry: Geometry) -> list[list[int]]:
    """For each tap and each coarse row, the row of the fine voxel that the tap meets, -1 if it is absent."""
    rows = {voxel: row for row, voxel in enumerate(fine)}
    return [[rows.get(fine_voxel(c, tap, geometry), -1) for c in coarse] for tap in taps(geometry)]


def generative(coarse: Iterable[Voxel], geometry: Geometry) -> set[Voxel]:
    """Every fine voxel that a tap meets from some coarse voxel: the output grid of a transposed convolution."""
    return {fine_voxel(c, tap, geometry) for c in coarse for tap in taps(geometry)}


def strided(fine: Iterable[Voxel], geometry: Geometry) -> set[Voxel]:
    """Every coarse voxel from which some tap meets a fine voxel: the output grid of a strided convolution."""
    _, stride, dilation, padding = geometry
    reached = set()
    for b, *ijk in fine:
        for tap in taps(geometry):
            axes = zip(ijk, tap, stride, dilation, padding, strict=True)
            quotients = [divmod(x + p - t * d, s) for x, t, s, d, p in axes]
            if not any(rest for _, rest in quotients):
                reached.add((b, *(c for c, _ in quotients)))
    return reached
