"""Partial observations of shapes: which voxels are known to exist, and which are known to be empty.

M latent voxels, S finer voxels in each of them, B shapes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sparsevox import Grid, Voxels
from xcube.geometry.distances import require_scipy

FULL, UNKNOWN, EMPTY = 1.0, 0.0, -1.0  # the states of a voxel
HOLLOW = 0.5  # the state of a full voxel with a solid fraction of 0


def children(coords: Tensor, factor: Sequence[int]) -> Tensor:
    """Coordinates of the finer voxels in each latent voxel: int [M, S, 4], batch and ijk, in C order of their place.

    Args:
        coords: Coordinates of latent voxels, batch and ijk, int [M, 4].
        factor: Number of finer voxels along each axis of a latent voxel. The finer voxel (0, 0, 0) lies at the lower
            corner of the latent voxel (0, 0, 0).
    """
    offsets = torch.cartesian_prod(*[torch.arange(n) for n in factor]).view(-1, 3).to(coords.device)
    places = coords[:, None, 1:] * torch.tensor(factor, device=coords.device) + offsets
    batch = coords[:, None, :1].expand(-1, len(offsets), -1)
    return torch.cat([batch, places.to(coords.dtype)], 2)


def full_states(fill: Tensor) -> Tensor:
    """States of full voxels by their solid fractions [N]: from 0.5 for 0 to 1 for 1, and 0.75 where it is unknown, -1.

    They tell where in a voxel the surface lies.
    """
    return torch.where(fill >= 0, HOLLOW + (FULL - HOLLOW) * fill, (HOLLOW + FULL) / 2)


def states(
    latent: Tensor, factor: Sequence[int], full: Grid, empty: Grid | None = None, fill: Tensor | None = None
) -> Tensor:
    """The state of the finer voxels in each latent voxel, float32 [M, S]: 1 for full, -1 for empty, 0 for unknown.

    Args:
        latent: Coordinates of latent voxels, batch and ijk, int [M, 4].
        factor: Number of finer voxels along each axis of a latent voxel.
        full: Voxels that are known to exist.
        empty: Voxels that are known to be empty, apart from those of `full`; all others by default.
        fill: Solid fractions of the full voxels [N], -1 where they are unknown, for states by them (`full_states`).
    """
    coords = children(latent, factor)
    flat = coords.view(-1, 4)  # [M * S, 4]
    rows = full.index(flat)
    exists = rows >= 0
    vacant = ~exists if empty is None else empty.contains(flat) & ~exists
    value: Tensor | float = FULL
    if fill is not None:
        value = torch.cat([full_states(fill.float()), fill.new_zeros(1)])[rows]  # row -1 is the last one
    made = torch.where(exists, value, torch.where(vacant, EMPTY, UNKNOWN))
    return made.view(coords.shape[:2])


def to_volume(latent: Grid, rows: Tensor, factor: Sequence[int]) -> Tensor:
    """Values [M, S] of the finer voxels in full boxes of latent voxels as volumes [B, X, Y, Z]."""
    low, high = (bound.to(torch.int64) for bound in latent.bounds())
    first, size = low[0], (high - low)[0].tolist()
    place = latent.ijk.long() - first
    a, b, c = factor
    cells = rows.new_zeros((latent.batch_size, *size, a, b, c))
    cells[latent.batch.long(), place[:, 0], place[:, 1], place[:, 2]] = rows.view(-1, a, b, c)
    x, y, z = size
    return cells.permute(0, 1, 4, 2, 5, 3, 6).reshape(latent.batch_size, x * a, y * b, z * c)


def from_volume(latent: Grid, volume: Tensor, factor: Sequence[int]) -> Tensor:
    """The inverse of `to_volume`: values [M, S] from volumes [B, X, Y, Z]."""
    a, b, c = factor
    count, x, y, z = volume.shape
    cells = volume.view(count, x // a, a, y // b, b, z // c, c).permute(0, 1, 3, 5, 2, 4, 6)
    place = latent.ijk.long() - latent.bounds()[0][0].to(torch.int64)
    rows = cells[latent.batch.long(), place[:, 0], place[:, 1], place[:, 2]]
    return rows.reshape(latent.num_voxels, a * b * c)


def inside_parts(full: Voxels, empty: Grid) -> Grid:
    """The parts of known empty space that lie inside of a shape, by the normals of the observed voxels next to them.

    Parts of empty space are connected across faces. For each face between a part and an observed voxel, the component
    of the normal along the direction to the part votes: a normal that points to it means outside.

    Args:
        full: Observed voxels of one shape, with normals.
        empty: Voxels that are known to be empty.

    Raises:
        ImportError: If scipy is not installed.
    """
    if not empty.num_voxels or not full.num_voxels:
        return empty.prune(torch.zeros(empty.num_voxels, dtype=torch.bool, device=empty.device))
    # 1. Label the parts.
    ijk = empty.ijk.cpu().numpy()
    corner = ijk.min(0) - 1
    volume = np.zeros(tuple(ijk.max(0) - corner + 2), bool)
    volume[tuple((ijk - corner).T)] = True
    label, count = require_scipy().ndimage.label(volume)
    part = torch.from_numpy(label[tuple((ijk - corner).T)]).long()  # [N], from 1 on
    # 2. Let the normals vote.
    votes = torch.zeros(count + 1, dtype=torch.float64)
    normals = full.attributes["normal"].double().cpu()
    for axis in range(3):
        for side in (-1, 1):
            step = empty.coords.new_zeros(4)
            step[1 + axis] = side
            rows = full.grid.index(empty.coords + step).cpu()  # the observed voxel on this side of each empty one
            found = rows >= 0
            votes.index_add_(0, part[found], -side * normals[rows[found], axis])
    return empty.prune((votes < 0)[part].to(empty.device))
