"""Inside and outside of shells of voxels, and shells without holes.

A shell separates the empty space around a shape into an outside and insides, where empty voxels are connected if they
share a face (6-connectivity). N voxels, M candidates.
"""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sparsevox import Grid
from xcube.geometry.distances import require_scipy

FACES = [(1, 0, 0), (0, 1, 0), (0, 0, 1)]


def is_solid(candidates: Grid, shell: Grid) -> Tensor:
    """Whether each candidate lies in a shell of voxels or inside of it: bool [M].

    Space is inside where no path across faces leads out of it. An open shell has no inside.

    Raises:
        ImportError: If scipy is not installed.
    """
    label = require_scipy().ndimage.label
    made = np.zeros(candidates.num_voxels, bool)
    ours, theirs = (_by_shape(grid) for grid in (candidates, shell))
    for (first, last), (begin, end) in zip(ours, theirs, strict=True):
        if first == last or begin == end:
            continue
        places, voxels = (
            grid.ijk[a:b].cpu().numpy() for grid, a, b in ((candidates, first, last), (shell, begin, end))
        )
        corner = np.minimum(places.min(0), voxels.min(0)) - 1
        size = np.maximum(places.max(0), voxels.max(0)) - corner + 2  # an empty layer on all sides
        empty = np.ones(tuple(size), bool)
        empty[tuple((voxels - corner).T)] = False
        region, _ = label(empty)
        made[first:last] = region[tuple((places - corner).T)] != region[0, 0, 0]
    return torch.from_numpy(made).to(candidates.device)


def sealed(candidates: Grid, shell: Tensor, solid: Tensor) -> Tensor:
    """Make a shell of candidates without holes: bool [M].

    The candidates on the solid side of each face between solid and empty space belong to the shell; those of `shell`
    that are not solid do not. Space without candidates belongs to the outside where it reaches the edge of the box
    around the candidates. Elsewhere it is solid if most of the candidates next to it are. A face between solid space
    without candidates and an empty candidate is closed by that candidate.

    Args:
        candidates: Candidates of each shape.
        shell: Which candidates are thought to be in the shell, bool [M].
        solid: Which candidates are thought to be inside or in the shell, bool [M].

    Raises:
        ImportError: If scipy is not installed.
    """
    keep = shell & solid
    ijk, masks = candidates.ijk.cpu().numpy(), solid.cpu().numpy()
    made = keep.cpu().numpy().copy()
    for first, last in _by_shape(candidates):
        if first < last:
            made[first:last] |= _on_faces(ijk[first:last], masks[first:last])
    return torch.from_numpy(made).to(keep.device)


def _on_faces(ijk: np.ndarray, solid: np.ndarray) -> np.ndarray:
    """Whether each candidate [M] of one shape is needed for a closed shell."""
    label = require_scipy().ndimage.label
    corner = ijk.min(0) - 1
    place = tuple((ijk - corner).T)
    size = tuple(ijk.max(0) - corner + 2)  # an empty layer on all sides
    state = np.full(size, -1, np.int8)  # -1: no candidate, 0: empty, 1: solid
    state[place] = solid
    # 1. Solid or empty: each connected region of space without candidates.
    region, count = label(state < 0)
    votes = np.zeros((2, count + 1), np.int64)
    for below, above in _pairs():
        for ours, theirs in ((below, above), (above, below)):
            adjacent = (state[ours] < 0) & (state[theirs] >= 0)
            for value in (0, 1):
                np.add.at(votes[value], region[ours][adjacent & (state[theirs] == value)], 1)
    inside = votes[1] > votes[0]
    inside[region[0, 0, 0]] = False
    filled = np.where(state < 0, inside[region], state > 0)
    # 2. The candidates at faces between solid and empty space.
    needed = np.zeros(size, bool)
    for below, above in _pairs():
        differ = filled[below] != filled[above]
        for ours, theirs in ((below, above), (above, below)):
            mine = differ & filled[ours]
            needed[ours] |= mine & (state[ours] >= 0)
            needed[theirs] |= mine & (state[ours] < 0)
    return needed[place]


def _by_shape(grid: Grid) -> list[tuple[int, int]]:
    """The first voxel of each shape and the end of its voxels."""
    return list(pairwise(grid.offsets.tolist()))


def _pairs() -> list[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """The lower and upper voxels of all pairs that share a face, as slices of a volume."""
    return [
        (
            tuple(slice(None, -1) if step else slice(None) for step in face),
            tuple(slice(1, None) if step else slice(None) for step in face),
        )
        for face in FACES
    ]
