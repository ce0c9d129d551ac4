"""Topology: coarser and finer grids, set operations, pruning and cropping.

N voxels, B grids. Bricks in, bricks out; the transform is the business of `Grid`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsevox import checks, morton
from sparsevox._readback import send
from sparsevox.morton import Bricks
from sparsevox.ops import _library
from sparsevox.ops.bricks import assemble, build, coords, empty, full_box


def _fake(keys: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
    return _library.fake_bricks(keys, offsets.shape[0] - 1)


_coarsen_bricks = _library.register(
    f"coarsen_bricks(Tensor keys, Tensor masks, Tensor offsets, int level) -> {_library.BRICKS}",
    stem="topology",
    fake=lambda keys, masks, offsets, level: _fake(keys, offsets),
)
_subdivide_bricks = _library.register(
    "subdivide_bricks(Tensor keys, Tensor masks, Tensor starts, Tensor offsets, Tensor rows, int level, Tensor? keep)"
    f" -> {_library.BRICKS}",
    stem="topology",
    fake=lambda keys, masks, starts, offsets, rows, level, keep: _fake(keys, offsets),
)
_combine_bricks = _library.register(
    "combine_bricks(Tensor keys_a, Tensor masks_a, Tensor keys_b, Tensor masks_b, Tensor offsets, str op)"
    f" -> {_library.BRICKS}",
    stem="topology",
    fake=lambda keys_a, masks_a, keys_b, masks_b, offsets, op: _fake(keys_a, offsets),
)
_prune_bricks = _library.register(
    f"prune_bricks(Tensor keys, Tensor masks, Tensor starts, Tensor offsets, Tensor keep) -> {_library.BRICKS}",
    stem="topology",
    fake=lambda keys, masks, starts, offsets, keep: _fake(keys, offsets),
)
_crop_bricks = _library.register(
    f"crop_bricks(Tensor keys, Tensor masks, Tensor offsets, int[3] lower, int[3] upper) -> {_library.BRICKS}",
    stem="topology",
    fake=lambda keys, masks, offsets, lower, upper: _fake(keys, offsets),
)


def _level(factors: Sequence[int]) -> int | None:
    """n, if the factors are 2^n on all three axes."""
    first = factors[0]
    isotropic = first == factors[1] == factors[2]
    return first.bit_length() - 1 if isotropic and first & (first - 1) == 0 else None


def coarsen(bricks: Bricks, factors: Sequence[int]) -> Bricks:
    """Voxels floor(ijk / factors). Isotropic powers of two take the bit path, others are divided, coded and sorted."""
    level = _level(factors)
    if level == 0:
        return bricks
    if level is not None:
        return Bricks(*_coarsen_bricks(bricks.keys, bricks.masks, bricks.offsets, level))
    divisor = send([1, *factors], bricks.keys.device)
    return build(torch.div(coords(bricks), divisor, rounding_mode="floor"), bricks.offsets.shape[0] - 1)


def subdivide(bricks: Bricks, factors: Sequence[int], keep: Tensor | None = None) -> Bricks:
    """All children ijk * factors + [0, factors) of every voxel, or of those that `keep` selects.

    Args:
        bricks: The coarse voxels.
        factors: Children an axis.
        keep: None, bool [N] (voxels that become children) or, for factors of 2, bool [N, 8] (children, z fastest).

    Raises:
        TypeError: If `keep` is not a bool tensor.
        ValueError: If `keep` has another shape, or a child would lie outside [-2^17, 2^17).
    """
    if keep is not None:
        _check_keep(bricks, keep, children=_level(factors) == 1)
    level = _level(factors)
    if level == 0:
        return bricks if keep is None else prune(bricks, keep)
    if level is None:
        return _subdivide_by_coords(bricks, factors, keep)
    try:
        return Bricks(*_subdivide_bricks(*bricks, level, keep))
    except morton.VoxelError as error:
        raise _out_of_range(coords(bricks)[error.index], factors) from None


def _out_of_range(voxel: Tensor, factors: Sequence[int]) -> ValueError:
    return ValueError(
        f"factor {tuple(factors)} takes the children of voxel (b, i, j, k) = {tuple(voxel.tolist())} out of the range "
        f"[{morton.COORD_MIN}, {morton.COORD_MAX}]"
    )


def _check_keep(bricks: Bricks, keep: Tensor, *, children: bool) -> None:
    checks.booleans("mask", checks.tensor("mask", keep))
    count = bricks.rows.shape[0]
    if keep.shape != (count,) and not (children and keep.shape == (count, 8)):
        expected = f"[{count}] or [{count}, 8]" if children else f"[{count}]"
        raise ValueError(f"mask must have shape {expected}, one row a voxel, got {list(keep.shape)}")
    checks.same_device("mask", keep, "the grid", bricks.keys.device)


def _subdivide_by_coords(bricks: Bricks, factors: Sequence[int], keep: Tensor | None) -> Bricks:
    bricks = bricks if keep is None else prune(bricks, keep)
    voxels = coords(bricks).long()
    count = 1 if torch.compiler.is_compiling() else voxels.shape[0]  # inside a graph nobody knows
    if count * math.prod(factors) > morton.MAX_VOXELS:
        raise ValueError(f"{count} voxels have more than {morton.MAX_VOXELS} children at {tuple(factors)}")
    if math.prod(factors) > morton.MAX_VOXELS:  # then there are no voxels
        return empty(bricks.offsets.shape[0] - 1, voxels.device)
    steps = [torch.arange(n, device=voxels.device) for n in (1, *factors)]
    children = (voxels * send([1, *factors], voxels.device))[:, None] + torch.cartesian_prod(*steps)
    try:
        return assemble(children.reshape(-1, 4), bricks.offsets.shape[0] - 1)
    except morton.VoxelError as error:
        raise _out_of_range(voxels[error.index // math.prod(factors)], factors) from None


def combine(a: Bricks, b: Bricks, op: str) -> Bricks:
    """Union "or", intersection "and", difference "sub" or symmetric difference "xor" of two batches of one size."""
    return Bricks(*_combine_bricks(a.keys, a.masks, b.keys, b.masks, a.offsets, op))


def prune(bricks: Bricks, keep: Tensor) -> Bricks:
    """Voxels with `keep` bool [N]. Raises TypeError or ValueError if it is no such mask."""
    _check_keep(bricks, keep, children=False)
    return Bricks(*_prune_bricks(bricks.keys, bricks.masks, bricks.starts, bricks.offsets, keep))


def crop(bricks: Bricks, lower: object, upper: object) -> Bricks:
    """Voxels with lower <= ijk < upper."""
    low, up = checks.box(lower, upper)
    inside = [min(max(bound, morton.COORD_MIN), morton.COORD_MAX + 1) for bound in (*low, *up)]
    return Bricks(*_crop_bricks(bricks.keys, bricks.masks, bricks.offsets, inside[:3], inside[3:]))


def full(lower: object, upper: object, batch_size: int, device: torch.device | str | None = None) -> Bricks:
    """Every voxel with lower <= ijk < upper, in every grid of the batch.

    Raises:
        ValueError: If the box leaves [-2^17, 2^17) or holds more than 2^31 - 1 voxels.
    """
    low, up = checks.box(lower, upper)
    bricks = empty(batch_size, device)
    volume = batch_size * math.prod([b - a for a, b in zip(low, up, strict=True)])
    if volume == 0:
        return bricks
    if min(low) < morton.COORD_MIN or max(up) > morton.COORD_MAX + 1:
        raise ValueError(
            f"the box from lower={tuple(low)} to upper={tuple(up)} (exclusive) must lie in "
            f"[{morton.COORD_MIN}, {morton.COORD_MAX}]"
        )
    if volume > morton.MAX_VOXELS:
        raise ValueError(f"a grid holds at most {morton.MAX_VOXELS} voxels, the box has {volume}")
    keys, masks = full_box(low, up, batch_size, device)
    return Bricks(*_crop_bricks(keys, masks, bricks.offsets, low, up))
