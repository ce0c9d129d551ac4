"""The voxels that a convolution reaches: output grids of strided convolutions and of their transposes.

On each axis, coarse voxel c meets the fine voxels `stride * c + t * dilation - padding`. Where the taps leave no gap
they form a window. Then the output is a dilation and a coarsening, or a subdivision and a dilation, all of them bit
arithmetic. Otherwise, and at the border of the range, the taps of all voxels are listed. N voxels, K taps.
"""

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from sparsevox import morton
from sparsevox._readback import send
from sparsevox.conv_geometry import Geometry
from sparsevox.morton import Bricks
from sparsevox.ops import morphology, topology
from sparsevox.ops.bricks import assemble, coords, table
from sparsevox.ops.neighbors import kernel_table

MAX_ROWS = 1 << 22  # coordinates listed at once


class _Bare(NamedTuple):
    """Bricks with the attributes of a grid that `kernel_table` uses."""

    bricks: Bricks

    @property
    def table(self) -> Tensor:
        """Hash table of the bricks."""
        return table(self.bricks)


def strided(bricks: Bricks, geometry: Geometry) -> Bricks:
    """Return every coarse voxel that meets a voxel at a tap. Raises ValueError if one is out of range."""
    if _gapless(geometry):
        # The window [s * c - p, s * c - p + k - 1] is the block [s * c, s * c + s - 1], widened.
        lower = [p + s - k for k, s, _, p in zip(*geometry, strict=True)]
        try:
            return topology.coarsen(morphology.dilate(bricks, lower, geometry.padding), geometry.stride)
        except ValueError:  # the dilated fine grid leaves the range; the coarse one may still fit
            pass
    listed = _listed(bricks, geometry, up=False)
    if not torch.compiler.is_compiling():
        return listed
    # In a graph, voxels that no tap meets exactly were listed too.
    return topology.prune(listed, (kernel_table(_Bare(bricks), _Bare(listed), geometry) >= 0).any(0))


def generative(bricks: Bricks, geometry: Geometry) -> Bricks:
    """Return every fine voxel that a voxel meets at a tap. Raises ValueError if one is out of range."""
    if _gapless(geometry):
        lower = [-p for p in geometry.padding]
        upper = [k - s - p for k, s, _, p in zip(*geometry, strict=True)]
        try:
            return morphology.dilate(topology.subdivide(bricks, geometry.stride), lower, upper)
        except ValueError:  # children out of range may be back in range with the padding
            pass
    return _listed(bricks, geometry, up=True)


def _gapless(geometry: Geometry) -> bool:
    return all((d == 1 or k == 1) and k >= s for k, s, d, _ in zip(*geometry, strict=True))


def _listed(bricks: Bricks, geometry: Geometry, *, up: bool) -> Bricks:
    """Voxels from their coordinates, for at most MAX_ROWS pairs of a voxel and a tap at once."""
    voxels, items = coords(bricks).long(), bricks.offsets.shape[0] - 1
    _, _, dilation, padding = geometry
    taps = [
        [0, *(t * d - p for t, d, p in zip(tap, dilation, padding, strict=True))]
        for tap in product(*map(range, geometry.kernel_size))
    ]
    stride = send([1, *geometry.stride], voxels.device)
    at_once = len(taps) if torch.compiler.is_compiling() else max(1, MAX_ROWS // max(1, voxels.shape[0]))
    parts = []
    for first in range(0, len(taps), at_once):
        steps = send(taps[first : first + at_once], voxels.device)
        reached = voxels[:, None] * stride + steps if up else _coarse(voxels[:, None] - steps, stride)
        parts.append(_assembled(reached.reshape(-1, 4), items))
    united = parts[0]
    for part in parts[1:]:
        united = topology.combine(united, part, "or")
    return united


def _coarse(fine: Tensor, stride: Tensor) -> Tensor:
    """Divide by the stride; outside of compiled graphs, drop voxels with a remainder."""
    quotients = torch.div(fine, stride, rounding_mode="floor")
    return quotients if torch.compiler.is_compiling() else quotients[(quotients * stride == fine).all(-1)]


def _assembled(voxels: Tensor, items: int) -> Bricks:
    try:
        return assemble(voxels, items)
    except morton.VoxelError as error:
        reached = tuple(voxels[error.index].tolist())
        raise ValueError(
            f"a tap reaches voxel (b, i, j, k) = {reached} out of the range [{morton.COORD_MIN}, {morton.COORD_MAX}]"
        ) from None
