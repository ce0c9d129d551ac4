"""Dilation and erosion, by boxes (on the words of the bricks) and by any other stencil.

Dilation of A by S is {a + s}, erosion {x : x + s in A for all s in S}: Minkowski's operations, adjoint to each other.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsevox import morton
from sparsevox._readback import send
from sparsevox.morton import Bricks
from sparsevox.ops import _checks, _library
from sparsevox.ops.bricks import build, coords, find_rows
from sparsevox.ops.topology import prune

MAX_STEP = 4  # a voxel moves by one brick at most

_dilate_bricks = _library.register(
    f"dilate_bricks(Tensor keys, Tensor masks, Tensor offsets, int[3] lower, int[3] upper) -> {_library.BRICKS}",
    stem="morphology",
    fake=lambda keys, masks, offsets, lower, upper: _library.fake_bricks(keys, offsets.shape[0] - 1),
)
_erode_bricks = _library.register(
    "erode_bricks(Tensor keys, Tensor masks, Tensor offsets, Tensor? table, int[3] lower, int[3] upper)"
    f" -> {_library.BRICKS}",
    stem="morphology",
    fake=lambda keys, masks, offsets, table, lower, upper: _library.fake_bricks(keys, offsets.shape[0] - 1),
)


def box_of(radius: object, lower: object, upper: object) -> tuple[list[int], list[int]]:
    """The box that a call describes: by a radius, or by its two corners, upper inclusive."""
    if (lower is None) != (upper is None):
        raise ValueError(f"lower and upper come together, got lower={lower!r} and upper={upper!r}")
    if lower is not None:
        low, up = _checks.box(lower, upper)
    else:
        up = _checks.int_triple("radius", radius)
        if min(up) < 0:
            raise ValueError(f"radius must not be negative, got {radius!r}")
        low = [-r for r in up]
    limit = 1 << morton.AXIS_BITS
    if min(low) < -limit or max(up) > limit:
        raise ValueError(
            f"a stencil reaches at most {limit} voxels, got lower={tuple(low)} and upper={tuple(up)}"
        )
    return low, up


def stencil_offsets(stencil: object) -> list[list[int]]:
    """Offsets of the True entries of a bool [a, b, c] from its centre, entry (size - 1) // 2 of each axis."""
    mask = _checks.booleans("stencil", _checks.shape("stencil", stencil, "a", "b", "c"))
    centre = torch.tensor([(size - 1) // 2 for size in mask.shape])
    offsets: list[list[int]] = (mask.cpu().nonzero() - centre).tolist()
    if not offsets:
        raise ValueError("stencil must have at least one True entry")
    return offsets


def dilate(bricks: Bricks, lower: Sequence[int], upper: Sequence[int]) -> Bricks:
    """Dilation by the box from lower to upper inclusive, in steps of at most four voxels."""
    try:
        for low, up in _steps(lower, upper):
            bricks = Bricks(*_dilate_bricks(bricks.keys, bricks.masks, bricks.offsets, low, up))
    except morton.VoxelError:
        raise ValueError(
            f"dilation from {tuple(lower)} to {tuple(upper)} takes voxels out of the range "
            f"[{morton.COORD_MIN}, {morton.COORD_MAX}]"
        ) from None
    return bricks


def erode(bricks: Bricks, table: Tensor | None, lower: Sequence[int], upper: Sequence[int]) -> Bricks:
    """Erosion by the box from lower to upper inclusive; `table` is the hash table of `bricks`."""
    # Seen from its point nearest to the origin the box holds the origin, so the result lies in the set.
    base = [min(max(0, low), up) for low, up in zip(lower, upper, strict=True)]
    for low, up in _steps(_minus(lower, base), _minus(upper, base)):
        bricks = Bricks(*_erode_bricks(bricks.keys, bricks.masks, bricks.offsets, table, low, up))
        table = None  # it belongs to the bricks of the first step
    moved = _minus([0, 0, 0], base)
    return dilate(bricks, moved, moved) if any(base) else bricks


def dilate_stencil(bricks: Bricks, offsets: Sequence[Sequence[int]]) -> Bricks:
    """Dilation by any set of offsets: codes of all the sums, sorted."""
    stencil = send(offsets, bricks.keys.device)
    moved = coords(bricks).long()[:, None] + torch.nn.functional.pad(stencil, (1, 0))
    return build(moved.reshape(-1, 4), bricks.offsets.shape[0] - 1, name="dilated coords")


def erode_stencil(bricks: Bricks, table: Tensor | None, offsets: Sequence[Sequence[int]]) -> Bricks:
    """Erosion by any set of offsets: a look-up for each."""
    base = [0, 0, 0] if [0, 0, 0] in offsets else list(offsets[0])
    voxels = coords(bricks)
    keep = torch.ones(voxels.shape[0], dtype=torch.bool, device=voxels.device)
    for offset in offsets:
        step = send([0, *_minus(offset, base)], voxels.device)
        keep &= find_rows(bricks, table, voxels + step) >= 0
    moved = _minus([0, 0, 0], base)
    kept = prune(bricks, keep)
    return dilate(kept, moved, moved) if any(base) else kept


def _minus(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [x - y for x, y in zip(a, b, strict=True)]


def _steps(lower: Sequence[int], upper: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Boxes with bounds within four voxels whose Minkowski sum is the box; one at least."""
    steps: list[tuple[list[int], list[int]]] = []
    while not steps or any(lower) or any(upper):
        low = [min(max(bound, -MAX_STEP), MAX_STEP) for bound in lower]
        up = [min(max(bound, -MAX_STEP), MAX_STEP) for bound in upper]
        steps.append((low, up))
        lower, upper = _minus(lower, low), _minus(upper, up)
    return steps
