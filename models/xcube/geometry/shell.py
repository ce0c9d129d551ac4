"""Inside and outside of shells of voxels, and shells without holes.

A shell separates the empty space around a shape into an outside and insides, where empty voxels are connected if they
share a face (6-connectivity). N voxels, M candidates.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sparsevox import Grid
from xcube.geometry.distances import require_scipy
from xcube.geometry.pyramid import TOLERANCE

Place = tuple[np.ndarray, ...]  # the indices of candidates in a volume, [M] for each axis

FACES = [(1, 0, 0), (0, 1, 0), (0, 0, 1)]


def is_solid(candidates: Grid, shell: Grid) -> Tensor:
    """Whether each candidate lies in a shell of voxels or inside of it: bool [M].

    Space is inside where no path across faces leads out of it. An open shell has no inside.

    Raises:
        ImportError: If scipy is not installed.
    """
    return solid_fractions(candidates, shell) > 0


def solid_fractions(grid: Grid, shell: Grid) -> Tensor:
    """The fraction of the volume of each voxel that lies in a shell of voxels or inside of it: float32 [M].

    Space is inside where no path across faces leads out of it. An open shell has no inside.

    Args:
        grid: Voxels of the size of those of the shell, or larger by an integer factor along each axis.
        shell: Voxels of the shells, one grid for each of the batch.

    Raises:
        ImportError: If scipy is not installed.
        ValueError: If the voxels of `grid` are not aligned with those of the shell.
    """
    label = require_scipy().ndimage.label
    factor = _factor(grid, shell)
    made = np.zeros(grid.num_voxels, np.float32)
    ours, theirs = (_by_shape(each) for each in (grid, shell))
    for (first, last), (begin, end) in zip(ours, theirs, strict=True):
        if first == last or begin == end:
            continue
        places, voxels = (each.ijk[a:b].cpu().numpy() for each, a, b in ((grid, first, last), (shell, begin, end)))
        # 1. What is not connected to the outside of a box with an empty layer on all sides.
        corner = np.minimum(places.min(0), voxels.min(0) // factor) - 1
        size = np.maximum(places.max(0), voxels.max(0) // factor) - corner + 2
        empty = np.ones(tuple(size * factor), bool)
        empty[tuple((voxels - corner * factor).T)] = False
        region, _ = label(empty)
        solid = region != region[0, 0, 0]
        # 2. Its mean over the voxels of the grid.
        blocks = solid.reshape([n for pair in zip(size, factor, strict=True) for n in pair])
        made[first:last] = blocks.mean((1, 3, 5), dtype=np.float32)[tuple((places - corner).T)]
    return torch.from_numpy(made).to(grid.device)


def _factor(grid: Grid, shell: Grid) -> np.ndarray:
    """The size of the voxels of a grid in voxels of a shell, along each axis."""
    fine, coarse = np.array(shell.voxel_size), np.array(grid.voxel_size)
    factor = np.rint(coarse / fine).astype(np.int64)
    corners = np.array(grid.origin) - coarse / 2 - (np.array(shell.origin) - fine / 2)
    if (factor < 1).any() or (abs(factor * fine - coarse) > TOLERANCE * coarse).any():
        raise ValueError(
            f"grid must have the voxel_size of the shell, {shell.voxel_size}, times integers, got {grid.voxel_size}"
        )
    if (abs(corners) > TOLERANCE * fine).any():
        raise ValueError(f"the lower corner of voxel (0, 0, 0) must be that of the shell, got a distance of {corners}")
    return factor


def sealed(candidates: Grid, shell: Tensor, solid: Tensor) -> Tensor:
    """Make a shell of candidates without holes: bool [M].

    The candidates on the solid side of each face between solid and empty space belong to the shell, and so do those of
    `shell` that are connected to them by others (26-connectivity). The rest of `shell` does not: it is not solid, or
    deep inside. Space without candidates belongs to the outside where it reaches the edge of the box
    around the candidates. Elsewhere it is solid if most of the candidates next to it are. Empty space that solid space
    encloses is solid, too. A face between solid space without candidates and an empty candidate is closed by that
    candidate.

    Args:
        candidates: Candidates of each shape.
        shell: Which candidates are predicted to be in the shell, bool [M].
        solid: Which candidates are predicted to be inside or in the shell, bool [M].

    Raises:
        ImportError: If scipy is not installed.
    """
    return _each_shape(_sealed_one, candidates, shell, solid)


def certain_parts(candidates: Grid, chosen: Tensor, certain: Tensor) -> Tensor:
    """Leave out the parts of each shape without a certain voxel: bool [M].

    This is hysteresis thresholding (Canny 1986). Parts are connected across faces, edges and corners (26-connectivity).
    A shape without any certain voxel keeps all of its parts.

    Args:
        candidates: Candidates of each shape.
        chosen: Which candidates are predicted to exist, bool [M].
        certain: Which candidates are predicted to exist with near certainty, bool [M].

    Raises:
        ImportError: If scipy is not installed.
    """
    return _each_shape(_certain_parts_of_one, candidates, chosen, certain & chosen)


def _each_shape(function: Callable[..., np.ndarray], candidates: Grid, *masks: Tensor) -> Tensor:
    """Apply a function of coordinates [M, 3] and masks [M] of one shape to each of a batch: bool [M]."""
    ijk, *parts = (each.cpu().numpy() for each in (candidates.ijk, *masks))
    made = np.zeros(len(ijk), bool)
    for first, last in _by_shape(candidates):
        if first < last:
            made[first:last] = function(ijk[first:last], *(each[first:last] for each in parts))
    return torch.from_numpy(made).to(candidates.device)


def _certain_parts_of_one(ijk: np.ndarray, chosen: np.ndarray, certain: np.ndarray) -> np.ndarray:
    if not certain.any():
        return chosen
    corner = ijk.min(0) - 1
    return _connected(chosen, certain, tuple((ijk - corner).T), tuple(ijk.max(0) - corner + 2))


def _sealed_one(ijk: np.ndarray, shell: np.ndarray, solid: np.ndarray) -> np.ndarray:
    """Which candidates [M] of one shape belong to its shell."""
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
    # 2. Space that no path from outside reaches is solid.
    reached, _ = label(~filled)
    filled = reached != reached[0, 0, 0]
    # 3. The candidates at faces between solid and empty space.
    needed = np.zeros(size, bool)
    for below, above in _pairs():
        differ = filled[below] != filled[above]
        for ours, theirs in ((below, above), (above, below)):
            mine = differ & filled[ours]
            needed[ours] |= mine & (state[ours] >= 0)
            needed[theirs] |= mine & (state[ours] < 0)
    # 4. The shell that is connected to them.
    needed = needed[place]
    return _connected(needed | (shell & filled[place]), needed, place, size)


def _connected(part: np.ndarray, seeds: np.ndarray, place: Place, size: tuple[int, ...]) -> np.ndarray:
    """Which candidates [M] of a part of a shape are connected to seeds by others, with 26-connectivity."""
    volume = np.zeros(size, bool)
    volume[place] = part
    region, count = require_scipy().ndimage.label(volume, np.ones((3, 3, 3), bool))
    has_seed = np.zeros(count + 1, bool)
    has_seed[region[place][seeds & part]] = True
    found: np.ndarray = part & has_seed[region[place]]
    return found


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
