"""Marching cubes of scikit-image, on dense blocks of a sparse field.

N voxels, V vertices, F faces, S cubes along a block.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsevox import ops
from sparsevox.grid import Grid
from sparsevox.io import _cells
from sparsevox.morton import COORD_MIN
from sparsevox.shapes import Mesh
from sparsevox.tensor import SparseTensor

BLOCK = 64  # cubes along a block, a power of two
NEAREST = 2.0**-14  # minimum distance of a vertex to a voxel, in edges: float32 does not resolve less
BITS = 18  # per coordinate

Floats = NDArray[np.float64]


class Block(NamedTuple):
    """The surface in one block."""

    keys: Tensor  # voxel and axis of the edge of each vertex, packed: int64 [V]
    places: Tensor  # positions in voxels: float64 [V, 3]
    faces: Tensor  # int64 [F, 3]


def marching_cubes(field: SparseTensor, level: float = 0.0) -> Mesh:
    """Extract a level set by marching cubes (Lewiner et al. 2003). Inside is where the field is at most `level`.

    The corners of a cube are the centers of eight voxels, all of which must exist, so the surface ends where the field
    ends. scikit-image processes the field in blocks of 64^3 cubes, skipping those without voxels. Vertices are
    identified by the edge that they lie on, so blocks join without gaps. Positions are computed in float64.

    Args:
        field: One value per voxel of a single grid, floating-point [N, 1].
        level: Value of the field on the surface. Triangles around a voxel of exactly this value have no area.

    Returns:
        Vertices float64 [V, 3] in world coordinates, faces int64 [F, 3], counter-clockwise seen from outside.

    Raises:
        ImportError: If scikit-image is not installed.
        TypeError: If `field` is not a SparseTensor or `level` is not a number.
        ValueError: If `field` is a batch of several grids, does not have one channel, or is not finite, or if `level`
            is not finite.
    """
    field, level = _cells.check_field("field", field, level)
    measure = _library()
    grid, values = field.grid, field.feats.detach().double() - level
    found = []
    for corner in (grid.coarsen(BLOCK).ijk.long() * BLOCK).tolist():
        block = _march(measure, grid, values, corner)
        if block is not None:
            found.append(block)
    if not found:
        return _cells.empty_mesh(grid.device)
    sizes = torch.tensor([len(block.keys) for block in found])
    starts = (sizes.cumsum(0) - sizes).tolist()
    keys, vertex = torch.unique(torch.cat([block.keys for block in found]), return_inverse=True)
    faces = vertex[torch.cat([block.faces + start for block, start in zip(found, starts, strict=True)])]
    places = torch.empty(len(keys), 3, dtype=torch.float64)
    places[vertex] = torch.cat([block.places for block in found])  # blocks agree on the vertices that they share
    return Mesh(grid.to_world(places.to(grid.device)), faces.to(grid.device))


def _library() -> Any:
    try:
        from skimage import measure
    except ImportError as error:
        raise ImportError("marching cubes need scikit-image: pip install 'sparsevox[io]'") from error
    return measure


def _march(measure: Any, grid: Grid, values: Tensor, corner: list[int]) -> Block | None:
    lower, upper = [c - 1 for c in corner], [c + BLOCK + 2 for c in corner]
    part = grid.crop(lower, upper)
    own = values[grid.index(part.coords)]
    both = torch.cat([own, torch.ones_like(own)], 1)
    volume, exists = ops.to_dense(both, part, lower, upper)[0].cpu().numpy()
    cubes = _cubes(volume, exists > 0)
    if not cubes.any():
        return None
    inner = (slice(1, -1),) * 3
    mask = np.zeros([BLOCK + 1] * 3, bool)
    mask[1:, 1:, 1:] = cubes  # scikit-image indexes a cube by its upper corner
    spread = _apart(volume)[inner]
    vertices, faces, _, _ = measure.marching_cubes(spread.astype(np.float32), 0.0, allow_degenerate=True, mask=mask)
    keys, places = _named(vertices.astype(np.float64), volume[inner])
    origin = torch.tensor(corner)
    packed = torch.from_numpy(keys[:, :3]) + origin - COORD_MIN
    key = ((packed[:, 0] << BITS | packed[:, 1]) << BITS | packed[:, 2]) << 2 | torch.from_numpy(keys[:, 3])
    return Block(key, torch.from_numpy(places) + origin, torch.from_numpy(faces.astype(np.int64)))


def _cubes(volume: Floats, exists: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark the cubes [S, S, S] whose corners all exist, some inside and some outside."""
    whole, some, every = (np.ones([BLOCK] * 3, bool), np.zeros([BLOCK] * 3, bool), np.ones([BLOCK] * 3, bool))
    for x, y, z in _cells.CORNERS:
        corner = (slice(1 + x, BLOCK + 1 + x), slice(1 + y, BLOCK + 1 + y), slice(1 + z, BLOCK + 1 + z))
        inside = volume[corner] <= 0
        whole &= exists[corner]
        some |= inside
        every &= inside
    return whole & some & ~every


def _apart(volume: Floats) -> Floats:
    """Move values away from zero until no vertex rounds to a voxel. Signs are kept, and zero counts as inside.

    The result depends only on a voxel and its six neighbors, so all blocks agree on it.
    """
    size = np.abs(volume)
    largest = size.copy()
    for axis in range(3):
        for step in (-1, 1):
            np.maximum(largest, np.roll(size, step, axis), out=largest)
    return np.where(volume > 0, 1.0, -1.0) * np.maximum(size, NEAREST * largest)


def _named(vertices: Floats, volume: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Find lower voxel and axis of the edge of each vertex, int64 [V, 4], and its position in voxels, float64 [V, 3].

    Axis 3 marks a vertex inside a cube, which Lewiner's method adds to some cubes.
    """
    lower = np.floor(vertices).astype(np.int64)
    inside = vertices != lower
    single = inside.sum(1) == 1
    axis = np.where(single, inside.argmax(1), 3)
    places = vertices.copy()
    at, along = lower[single], axis[single]
    step = np.eye(3, dtype=np.int64)[along]
    a, b = volume[tuple(at.T)], volume[tuple((at + step).T)]
    places[single] = at + step * (a / (a - b))[:, None]
    return np.concatenate([lower, axis[:, None]], 1), places
