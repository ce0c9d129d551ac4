"""Dilation and erosion, by boxes (as bit operations on the masks of bricks) and by arbitrary stencils.

Dilation of A by S is {a + s}, erosion is {x : x + s in A for all s in S}: Minkowski sum and difference.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsevox import checks, kernels, morton
from sparsevox._readback import read_back, send
from sparsevox.morton import Bricks
from sparsevox.ops import _library
from sparsevox.ops.bricks import assemble, coords, find_rows
from sparsevox.ops.topology import combine, prune
from sparsevox.reference import morphology as reference

Box = tuple[list[int], list[int]]

MAX_STEP = 4  # voxels; so a voxel moves by one brick at most
MAX_ROWS = 1 << 24  # sums of voxels and stencil offsets that are sorted at once, 32 bytes each

_dilate_bricks = _library.register(
    f"dilate_bricks(Tensor keys, Tensor masks, Tensor offsets, int[3] lower, int[3] upper) -> {_library.BRICKS}",
    reference=reference.dilate_bricks,
    kernels=lambda: kernels.morphology.dilate_bricks,
    fake=lambda keys, masks, offsets, lower, upper: _library.fake_bricks(keys, offsets.shape[0] - 1),
)
_erode_bricks = _library.register(
    "erode_bricks(Tensor keys, Tensor masks, Tensor offsets, Tensor? table, int[3] lower, int[3] upper)"
    f" -> {_library.BRICKS}",
    reference=reference.erode_bricks,
    kernels=lambda: kernels.morphology.erode_bricks,
    fake=lambda keys, masks, offsets, table, lower, upper: _library.fake_bricks(keys, offsets.shape[0] - 1),
)


def structuring_element(
    radius: object, lower: object, upper: object, stencil: object
) -> tuple[Box | None, list[list[int]]]:
    """Return the box that the arguments describe, both corners inclusive; or, if it is no box, the set of offsets.

    Raises:
        TypeError: If bounds are not ints or the stencil not bool.
        ValueError: If bounds contradict each other, reach too far, or come with a stencil; or if the stencil is empty.
    """
    alone = checks.int_triple("radius", radius) == [1, 1, 1]
    if stencil is not None:
        if lower is not None or upper is not None or not alone:
            raise ValueError(f"stencil must come without a box, got {radius=}, {lower=} and {upper=}")
        offsets = _offsets(stencil)
        return _filled_box(offsets), offsets
    if (lower is None) != (upper is None):
        raise ValueError(f"lower and upper must be given together, got lower={lower!r} and upper={upper!r}")
    if lower is None:
        up = checks.int_triple("radius", radius)
        if min(up) < 0:
            raise ValueError(f"radius must not be negative, got {radius!r}")
        low = [-r for r in up]
    elif alone:
        low, up = checks.box(lower, upper)
    else:
        raise ValueError(f"give either radius or lower and upper, got radius={radius!r} and lower={lower!r}")
    limit = 1 << morton.AXIS_BITS
    if min(low) < -limit or max(up) > limit:
        raise ValueError(f"a stencil reaches at most {limit} voxels, got lower={tuple(low)} and upper={tuple(up)}")
    return (low, up), []


def _offsets(stencil: object) -> list[list[int]]:
    """Offsets of the True entries of a bool [a, b, c] from its center, entry (size - 1) // 2 of each axis."""
    mask = checks.booleans("stencil", checks.shape("stencil", stencil, "a", "b", "c"))
    center = torch.tensor([(size - 1) // 2 for size in mask.shape], device="cpu")
    offsets: list[list[int]] = (mask.cpu().nonzero() - center).tolist()
    if not offsets:
        raise ValueError("stencil must have at least one True entry")
    return offsets


def _filled_box(offsets: Sequence[Sequence[int]]) -> Box | None:
    """The box that the offsets fill, or None."""
    low, up = ([bound(axis) for axis in zip(*offsets, strict=True)] for bound in (min, max))
    volume = math.prod([b - a + 1 for a, b in zip(low, up, strict=True)])
    return (low, up) if volume == len(offsets) else None


def dilate(bricks: Bricks, lower: Sequence[int], upper: Sequence[int], *, verb: str = "dilation") -> Bricks:
    """Dilate by the box from lower to upper inclusive.

    A box within four voxels takes one step. A larger one is a sum of such boxes, and of a shift if it is far away.

    Args:
        bricks: The voxels.
        lower: Smallest offset of the box.
        upper: Largest offset of the box.
        verb: Name of the operation in error messages.

    Raises:
        ValueError: If a voxel would be out of range, or the box alone has more voxels than a grid.
    """
    base = _nearest_to_origin(lower, upper)
    if max(map(abs, base)) <= MAX_STEP:
        base = [0, 0, 0]
    first, *others = _steps(_minus(lower, base), _minus(upper, base))
    if (others or any(base)) and not torch.compiler.is_compiling():
        _check_reach(bricks, lower, upper, verb)
        _check_volume(bricks, lower, upper)
    if any(base):
        bricks = _moved_by_all(coords(bricks).long(), [base], bricks)
    try:
        grown = Bricks(*_dilate_bricks(bricks.keys, bricks.masks, bricks.offsets, *first))
    except morton.VoxelError:
        _check_reach(bricks, lower, upper, verb)
        raise
    for low, up in others:
        if _is_empty(grown):
            break
        grown = Bricks(*_dilate_bricks(grown.keys, grown.masks, grown.offsets, low, up))
    return grown


def _nearest_to_origin(lower: Sequence[int], upper: Sequence[int]) -> list[int]:
    return [min(max(0, low), up) for low, up in zip(lower, upper, strict=True)]


def _check_volume(bricks: Bricks, lower: Sequence[int], upper: Sequence[int]) -> None:
    volume = math.prod([b - a + 1 for a, b in zip(lower, upper, strict=True)])
    if bricks.rows.shape[0]:
        morton.check_total(volume)


def _check_reach(bricks: Bricks, lower: Sequence[int], upper: Sequence[int], verb: str) -> None:
    """Raise for the first voxel that the box takes out of the range."""
    voxels = coords(bricks).long()
    if voxels.shape[0] == 0:
        return
    device = voxels.device
    low, up = voxels + send([0, *lower], device), voxels + send([0, *upper], device)
    outside = ~(morton.in_range(low) & morton.in_range(up))
    some, row = read_back(outside.any(), outside.int().argmax())
    if some:
        raise _out_of_reach(voxels[row], lower, upper, verb)


def _out_of_reach(voxel: Tensor, lower: Sequence[int], upper: Sequence[int], verb: str = "dilation") -> ValueError:
    return ValueError(
        f"{verb} from {tuple(lower)} to {tuple(upper)} takes voxel (b, i, j, k) = {tuple(voxel.tolist())} out of the "
        f"range [{morton.COORD_MIN}, {morton.COORD_MAX}]"
    )


def _is_empty(bricks: Bricks) -> bool:
    """Whether there is nothing left to do; unknown, and so False, inside a compiled graph."""
    return not torch.compiler.is_compiling() and bricks.rows.shape[0] == 0


def erode(bricks: Bricks, table: Tensor | None, lower: Sequence[int], upper: Sequence[int]) -> Bricks:
    """Erode by the box from lower to upper inclusive; `table` is the hash table of `bricks`."""
    # Shifted by its point nearest to the origin, the box contains the origin, so the result is a subset.
    base = _nearest_to_origin(lower, upper)
    for low, up in _steps(_minus(lower, base), _minus(upper, base)):
        bricks = Bricks(*_erode_bricks(bricks.keys, bricks.masks, bricks.offsets, table, low, up))
        if _is_empty(bricks):
            return bricks
        table = None  # it belongs to the bricks of the first step
    return _moved_back(bricks, base)


def dilate_stencil(bricks: Bricks, offsets: Sequence[Sequence[int]]) -> Bricks:
    """Dilate by any set of offsets: codes of all sums, sorted. Raises ValueError as `dilate` does."""
    voxels = coords(bricks).long()
    at_once = max(1, MAX_ROWS // max(1, voxels.shape[0]))
    parts = [offsets[first : first + at_once] for first in range(0, len(offsets), at_once)]
    grown = _moved_by_all(voxels, parts[0], bricks)
    for part in parts[1:]:
        grown = combine(grown, _moved_by_all(voxels, part, bricks), "or")
    return grown


def _moved_by_all(voxels: Tensor, offsets: Sequence[Sequence[int]], bricks: Bricks) -> Bricks:
    moved = voxels[:, None] + torch.nn.functional.pad(send(offsets, voxels.device), (1, 0))
    try:
        return assemble(moved.reshape(-1, 4), bricks.offsets.shape[0] - 1)
    except morton.VoxelError as error:
        row, index = divmod(error.index, len(offsets))
        raise _out_of_reach(voxels[row], offsets[index], offsets[index]) from None


def erode_stencil(bricks: Bricks, table: Tensor | None, offsets: Sequence[Sequence[int]]) -> Bricks:
    """Erode by any set of offsets, with one look-up per offset."""
    base = [0, 0, 0] if [0, 0, 0] in offsets else list(offsets[0])
    voxels = coords(bricks)
    keep = torch.ones(voxels.shape[0], dtype=torch.bool, device=voxels.device)
    for offset in offsets:
        step = send([0, *_minus(offset, base)], voxels.device)
        keep &= find_rows(bricks, table, voxels + step) >= 0
    return _moved_back(prune(bricks, keep), base)


def _moved_back(bricks: Bricks, offset: Sequence[int]) -> Bricks:
    moved = _minus([0, 0, 0], offset)
    return dilate(bricks, moved, moved, verb="erosion, with a shift") if any(offset) else bricks


def _minus(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [x - y for x, y in zip(a, b, strict=True)]


def _steps(lower: Sequence[int], upper: Sequence[int]) -> list[Box]:
    """Boxes with bounds within four voxels whose Minkowski sum is the box; at least one."""
    steps: list[Box] = []
    while not steps or any(lower) or any(upper):
        low = [min(max(bound, -MAX_STEP), MAX_STEP) for bound in lower]
        up = [min(max(bound, -MAX_STEP), MAX_STEP) for bound in upper]
        steps.append((low, up))
        lower, upper = _minus(lower, low), _minus(upper, up)
    return steps
