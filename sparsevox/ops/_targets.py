"""The voxels that a convolution reaches: output grids of strided convolutions, and of their transposes.

On each axis coarse voxel c meets the fine voxels `stride * c + t * dilation - padding`. Where the taps leave no gap
they are a window, and what is reached is a dilation and a coarsening, or a subdivision and a dilation. Elsewhere that
is too much, and the kernel table tells which voxels meet none.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from sparsevox.geometry import Geometry
from sparsevox.morton import Bricks
from sparsevox.ops import morphology, topology
from sparsevox.ops.bricks import table
from sparsevox.ops.neighbors import kernel_table
from sparsevox.ops.plans import adjoint_table


class _Bare(NamedTuple):
    """Bricks as a grid."""

    bricks: Bricks

    @property
    def table(self) -> Tensor:
        """Their hash table."""
        return table(self.bricks)


def strided(bricks: Bricks, geometry: Geometry) -> Bricks:
    """Every coarse voxel that meets a voxel of `bricks` at one tap at least."""
    if _gapless(geometry):
        # The window [s * c - p, s * c - p + k - 1] is the block [s * c, s * c + s - 1], widened.
        lower = [p + s - k for k, s, _, p in zip(*geometry, strict=True)]
        try:
            return topology.coarsen(morphology.dilate(bricks, lower, geometry.padding), geometry.stride)
        except ValueError:  # at the border of the range the wider fine grid does not exist; the coarse one does
            pass
    lower = [-(((k - 1) * d - p) // s) for k, s, d, p in zip(*geometry, strict=True)]
    upper = [(s - 1 + p) // s for _, s, _, p in zip(*geometry, strict=True)]
    coarse = morphology.dilate(topology.coarsen(bricks, geometry.stride), *_box(lower, upper))
    return topology.prune(coarse, (kernel_table(_Bare(bricks), _Bare(coarse), geometry) >= 0).any(0))


def generative(bricks: Bricks, geometry: Geometry) -> Bricks:
    """Every fine voxel that a voxel of `bricks` meets at one tap at least. Raises ValueError if one is out of range."""
    lower = [-p for p in geometry.padding]
    upper = [(k - 1) * d + 1 - s - p for k, s, d, p in zip(*geometry, strict=True)]
    fine = morphology.dilate(topology.subdivide(bricks, geometry.stride), *_box(lower, upper))
    if _gapless(geometry):
        return fine
    found = kernel_table(_Bare(fine), _Bare(bricks), geometry)
    return topology.prune(fine, (adjoint_table(found, fine.rows) >= 0).any(0))


def _gapless(geometry: Geometry) -> bool:
    return all((d == 1 or k == 1) and k >= s for k, s, d, _ in zip(*geometry, strict=True))


def _box(lower: Sequence[int], upper: Sequence[int]) -> tuple[list[int], list[int]]:
    return list(lower), [max(a, b) for a, b in zip(lower, upper, strict=True)]
