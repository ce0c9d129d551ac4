"""Topology: coarser (downsampled) and finer (upsampled) grids, set operations, pruning and cropping.

Functions take bricks and return bricks; `Grid` keeps the transform. N voxels, B grids.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsevox import checks, kernels, morton
from sparsevox._readback import send
from sparsevox.morton import Bricks
from sparsevox.ops import _library
from sparsevox.ops.bricks import assemble, build, coords, empty, full_box
from sparsevox.reference import topology as reference


def _fake(keys: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
    return _library.fake_bricks(keys, offsets.shape[0] - 1)


_coarsen_bricks = _library.register(
    f"coarsen_bricks(Tensor keys, Tensor masks, Tensor offsets, int level) -> {_library.BRICKS}",
    reference=reference.coarsen_bricks,
    kernels=lambda: kernels.topology.coarsen_bricks,
    fake=lambda keys, masks, offsets, level: _fake(keys, offsets),
)
_subdivide_bricks = _library.register(
    "subdivide_bricks(Tensor keys, Tensor masks, Tensor starts, Tensor offsets, Tensor rows, int level, Tensor? keep)"
    f" -> {_library.BRICKS}",
    reference=reference.subdivide_bricks,
    kernels=lambda: kernels.topology.subdivide_bricks,
    fake=lambda keys, masks, starts, offsets, rows, level, keep: _fake(keys, offsets),
)
_combine_bricks = _library.register(
    "combine_bricks(Tensor keys_a, Tensor masks_a, Tensor keys_b, Tensor masks_b, Tensor offsets, str op)"
    f" -> {_library.BRICKS}",
    reference=reference.combine_bricks,
    kernels=lambda: kernels.topology.combine_bricks,
    fake=lambda keys_a, masks_a, keys_b, masks_b, offsets, op: _fake(keys_a, offsets),
)
_prune_bricks = _library.register(
    f"prune_bricks(Tensor keys, Tensor masks, Tensor starts, Tensor offsets, Tensor keep) -> {_library.BRICKS}",
    reference=reference.prune_bricks,
    kernels=lambda: kernels.topology.prune_bricks,
    fake=lambda keys, masks, starts, offsets, keep: _fake(keys, offsets),
)
_crop_bricks = _library.register(
    f"crop_bricks(Tensor keys, Tensor masks, Tensor offsets, int[3] lower, int[3] upper) -> {_library.BRICKS}",
    reference=reference.crop_bricks,
    kernels=lambda: kernels.topology.crop_bricks,
    fake=lambda keys, masks, offsets, lower, upper: _fake(keys, offsets),
)


def power_of_two(factors: Sequence[int]) -> int | None:
    """The exponent n if the factors are 2^n on all three axes, else None."""
    first = factors[0]
    isotropic = first == factors[1] == factors[2]
    return first.bit_length() - 1 if isotropic and first & (first - 1) == 0 else None


def coarsen(bricks: Bricks, factors: Sequence[int]) -> Bricks:
    """Return the voxels floor(ijk / factors): bit arithmetic for isotropic powers of two, else divided and sorted."""
    level = power_of_two(factors)
    if level == 0:
        return bricks
    if level is not None:
        return Bricks(*_coarsen_bricks(bricks.keys, bricks.masks, bricks.offsets, level))
    divisor = send([1, *factors], bricks.keys.device)
    return build(torch.div(coords(bricks), divisor, rounding_mode="floor"), bricks.offsets.shape[0] - 1)


def subdivide(bricks: Bricks, factors: Sequence[int], keep: Tensor | None = None) -> Bricks:
    """Return all children ijk * factors + [0, factors) of every voxel, or those that `keep` selects.

    Args:
        bricks: The coarse voxels.
        factors: Children per axis.
        keep: Voxels to subdivide, bool [N]; or, for factors of 2, children to keep, bool [N, 8] with z fastest.

    Raises:
        TypeError: If `keep` is not a bool tensor.
        ValueError: If `keep` has another shape, or a child would lie outside of [-2^17, 2^17).
    """
    if keep is not None:
        _check_keep(bricks, keep, children=power_of_two(factors) == 1)
    level = power_of_two(factors)
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
        raise ValueError(f"mask must have shape {expected}, one row per voxel, got {list(keep.shape)}")
    checks.same_device("mask", keep, "the grid", bricks.keys.device)


def _subdivide_by_coords(bricks: Bricks, factors: Sequence[int], keep: Tensor | None) -> Bricks:
    bricks = bricks if keep is None else prune(bricks, keep)
    voxels = coords(bricks).long()
    count = 1 if torch.compiler.is_compiling() else voxels.shape[0]  # unknown inside a graph
    if count * math.prod(factors) > morton.MAX_VOXELS:
        raise ValueError(f"factor {tuple(factors)} makes more than {morton.MAX_VOXELS} children of {count} voxels")
    if math.prod(factors) > morton.MAX_VOXELS:  # then there are no voxels
        return empty(bricks.offsets.shape[0] - 1, voxels.device)
    steps = [torch.arange(n, device=voxels.device) for n in (1, *factors)]
    children = (voxels * send([1, *factors], voxels.device))[:, None] + torch.cartesian_prod(*steps)
    try:
        return assemble(children.reshape(-1, 4), bricks.offsets.shape[0] - 1)
    except morton.VoxelError as error:
        raise _out_of_range(voxels[error.index // math.prod(factors)], factors) from None


def combine(a: Bricks, b: Bricks, op: str) -> Bricks:
    """Return the union "or", intersection "and", difference "sub" or symmetric difference "xor" of two batches."""
    return Bricks(*_combine_bricks(a.keys, a.masks, b.keys, b.masks, a.offsets, op))


def prune(bricks: Bricks, keep: Tensor) -> Bricks:
    """Return the voxels with `keep`, which must be bool [N]: else a TypeError or ValueError."""
    _check_keep(bricks, keep, children=False)
    return Bricks(*_prune_bricks(bricks.keys, bricks.masks, bricks.starts, bricks.offsets, keep))


def crop(bricks: Bricks, lower: object, upper: object) -> Bricks:
    """Return the voxels with lower <= ijk < upper."""
    low, up = checks.box(lower, upper)
    inside = [min(max(bound, morton.COORD_MIN), morton.COORD_MAX + 1) for bound in (*low, *up)]
    return Bricks(*_crop_bricks(bricks.keys, bricks.masks, bricks.offsets, inside[:3], inside[3:]))


def full(lower: object, upper: object, batch_size: int, device: torch.device | str | None = None) -> Bricks:
    """Return every voxel with lower <= ijk < upper, in every grid of the batch.

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
