"""Bricks: building them from coordinates, searching them through a hash table, stacking and splitting batches.

N voxels, M coordinates, B grids, L bricks.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from sparsevox import checks, kernels, morton
from sparsevox._readback import read_back
from sparsevox.morton import Bricks
from sparsevox.ops import _library
from sparsevox.reference import bricks as reference

FEW_BRICKS = 1024  # that the reference searches faster than it builds and probes a hash table

_build_bricks = _library.register(
    f"build_bricks(Tensor coords, SymInt? batch_size, str method) -> {_library.BRICKS}",
    reference=reference.build_bricks,
    kernels=lambda: kernels.bricks.build_bricks,
    fake=lambda coords, batch_size, method: _library.fake_bricks(coords, batch_size),
)
_brick_coords = _library.register(
    "brick_coords(Tensor keys, Tensor masks, Tensor starts, Tensor rows) -> Tensor",
    reference=reference.brick_coords,
    kernels=lambda: kernels.bricks.brick_coords,
    fake=lambda keys, masks, starts, rows: keys.new_empty((rows.shape[0], 4), dtype=torch.int32),
)
_brick_bounds = _library.register(
    "brick_bounds(Tensor keys, Tensor masks, Tensor offsets) -> (Tensor lower, Tensor upper)",
    reference=reference.brick_bounds,
    kernels=lambda: kernels.bricks.brick_bounds,
    fake=lambda keys, masks, offsets: tuple(keys.new_empty((offsets.shape[0] - 1, 3)) for _ in range(2)),
)
_brick_table = _library.register(
    "brick_table(Tensor keys) -> Tensor",
    reference=reference.brick_table,
    kernels=lambda: kernels.bricks.brick_table,
    fake=lambda keys: keys.new_empty(_library.dynamic_size(), dtype=torch.int32),
)
_find_rows = _library.register(
    "find_rows(Tensor coords, Tensor keys, Tensor masks, Tensor starts, Tensor? table) -> Tensor",
    reference=reference.find_rows,
    kernels=lambda: kernels.bricks.find_rows,
    fake=lambda coords, keys, masks, starts, table: keys.new_empty(coords.shape[0]),
)
_neighbor_bricks = _library.register(
    "neighbor_bricks(Tensor keys, Tensor? table) -> Tensor",
    reference=reference.neighbor_bricks,
    kernels=lambda: kernels.bricks.neighbor_bricks,
    fake=lambda keys, table: keys.new_empty((keys.shape[0], 27), dtype=torch.int32),
)


def build(coords: Tensor, batch_size: int | None = None, *, name: str = "coords", method: str = "sort") -> Bricks:
    """Build the bricks of a set of coordinates.

    Args:
        coords: Integers [M, 4] = (b, i, j, k) or [M, 3] = (i, j, k) of batch item 0, in any order; duplicates merge.
        batch_size: Number of grids; None takes the largest batch index plus one, or 1 if there are no coordinates.
        name: Name of the first argument in error messages.
        method: On a GPU, "sort" sorts the codes of all voxels; "hash" inserts the bricks in a hash table and sorts only
            those. The result is the same. The CPU always sorts.

    Raises:
        TypeError: If `coords` does not hold integers.
        ValueError: If its shape is wrong, the method is unknown, a coordinate lies outside of [-2^17, 2^17), a batch
            index lies outside of [0, batch_size), or there are more than 2^31 - 1 voxels.
    """
    coords = _as_rows(name, coords)
    if method not in ("sort", "hash"):
        raise ValueError(f"method must be 'sort' or 'hash', got {method!r}")
    if batch_size is not None:
        batch_size = checks.batch_size(batch_size)
    elif coords.shape[0] == 0:
        batch_size = 1
    try:
        return assemble(coords, batch_size, method)
    except morton.VoxelError as error:
        row = tuple(coords[error.index].tolist())
        raise ValueError(f"{name}[{error.index}] = {row} is out of range: {limits(batch_size)}") from None


def assemble(coords: Tensor, batch_size: int | None, method: str = "sort") -> Bricks:
    """Build bricks of integers [M, 4]; raises `morton.VoxelError` for the first row out of range."""
    return Bricks(*_build_bricks(coords, batch_size, method))


def _as_rows(name: str, coords: object) -> Tensor:
    checked = checks.integers(name, checks.tensor(name, coords))
    if checked.ndim != 2 or checked.shape[1] not in (3, 4):
        raise ValueError(f"{name} must have shape [M, 4] or [M, 3], got {list(checked.shape)}")
    return checked if checked.shape[1] == 4 else torch.nn.functional.pad(checked, (1, 0))


def limits(batch_size: int | None) -> str:
    """Describe the range of coordinates, for error messages."""
    batches = morton.MAX_BATCH if batch_size is None else batch_size
    return (
        f"batch indices lie in [0, {batches}) and voxel coordinates in "
        f"[{morton.COORD_MIN}, {morton.COORD_MAX}], that is [-2^17, 2^17)"
    )


def empty(batch_size: int, device: torch.device | str | None = None) -> Bricks:
    """Bricks of a batch of grids without voxels."""
    size = checks.batch_size(batch_size)
    keys = torch.empty(0, dtype=torch.int64, device=device)
    offsets = torch.zeros(size + 1, dtype=torch.int64, device=device)
    return Bricks(keys, keys.clone(), keys.int(), offsets, keys.new_empty((0, 0), dtype=torch.bool))


def full_box(
    lower: Sequence[int], upper: Sequence[int], batch_size: int, device: torch.device | str | None
) -> tuple[Tensor, Tensor]:
    """Sorted keys and full masks of all bricks that reach into the box from lower to upper, upper exclusive."""
    axes = [torch.arange(a >> 2, b + 3 >> 2, device=device) << 2 for a, b in zip(lower, upper, strict=True)]
    corners = torch.cartesian_prod(torch.arange(batch_size, device=device), *axes)
    keys = torch.sort(morton.encode(corners) >> 6).values
    return keys, torch.full_like(keys, -1)


def coords(bricks: Bricks) -> Tensor:
    """Coordinates int32 [N, 4] = (b, i, j, k) in row order."""
    return _brick_coords(bricks.keys, bricks.masks, bricks.starts, bricks.rows)


def bounds(bricks: Bricks) -> tuple[Tensor, Tensor]:
    """Smallest ijk and, exclusive, largest ijk of each grid: two int32 [B, 3]; both 0 where a grid is empty."""
    lower, upper = _brick_bounds(bricks.keys, bricks.masks, bricks.offsets)
    occupied = lower <= upper
    return torch.where(occupied, lower, 0).int(), torch.where(occupied, upper + 1, 0).int()


def table(bricks: Bricks) -> Tensor:
    """Build the hash table int32 [capacity] from brick keys to brick rows: open addressing, at most half full."""
    return _brick_table(bricks.keys)


class HasBricks(Protocol):
    """The attributes of a grid that ops use."""

    @property
    def bricks(self) -> Bricks:
        """All arrays of the topology."""

    @property
    def table(self) -> Tensor:
        """Hash table of the bricks."""


def walking_table(grid: HasBricks) -> Tensor | None:
    """The hash table for finding the neighbors of every brick; None on the CPU, which searches the sorted keys."""
    return None if grid.bricks.keys.device.type == "cpu" else grid.table


def lookup_table(grid: HasBricks) -> Tensor | None:
    """The hash table for looking up voxels; None where the reference searches the keys, because they are few."""
    keys = grid.bricks.keys
    if torch.compiler.is_compiling() or keys.shape[0] > FEW_BRICKS or _library.uses_kernels(keys):
        return grid.table
    return None


def table_bytes(num_bricks: int) -> int:
    """Bytes of the hash table, whose slots are int32."""
    return 4 * morton.table_capacity(num_bricks)


def find_rows(bricks: Bricks, table: Tensor | None, coords: Tensor) -> Tensor:
    """Look up the row of each of the coordinates [M, 4] or [M, 3], -1 where there is no voxel: int64 [M]."""
    rows = _as_rows("coords", coords)
    checks.same_device("coords", rows, "the grid", bricks.keys.device)
    return _find_rows(rows, bricks.keys, bricks.masks, bricks.starts, table)


def neighbor_bricks(bricks: Bricks, table: Tensor | None) -> Tensor:
    """Look up the rows of the 27 bricks around each brick, -1 where there is none: int32 [L, 27], z fastest."""
    return _neighbor_bricks(bricks.keys, table)


def stack(parts: Sequence[Bricks]) -> Bricks:
    """Concatenate batches to one batch. All sizes are known, so nothing waits for the device."""
    first_item, first_row = 0, 0
    keys, starts, offsets = [], [], [parts[0].offsets[:1]]
    for part in parts:
        keys.append(part.keys + (first_item << morton.KEY_BITS))
        starts.append(part.starts + first_row)
        offsets.append(part.offsets[1:] + first_row)
        first_item += part.offsets.shape[0] - 1
        first_row += part.rows.shape[0]
    if first_item > morton.MAX_BATCH or first_row > morton.MAX_VOXELS:
        raise ValueError(
            f"a batch holds at most {morton.MAX_BATCH} grids and {morton.MAX_VOXELS} voxels, "
            f"got {first_item} grids with {first_row} voxels"
        )
    masks, rows = torch.cat([part.masks for part in parts]), torch.cat([part.rows for part in parts])
    return Bricks(torch.cat(keys), masks, torch.cat(starts), torch.cat(offsets), rows)


def split(bricks: Bricks, ranges: Sequence[tuple[int, int]]) -> list[Bricks]:
    """Take the batch items [a, b) of each range out of a batch. One read-back serves all ranges."""
    size = bricks.offsets.shape[0] - 1
    first_bricks = torch.searchsorted(bricks.keys, morton.batch_keys(size, bricks.keys.device))
    numbers = read_back(first_bricks, bricks.offsets)
    brick, row = numbers[: size + 1], numbers[size + 1 :]
    return [
        Bricks(
            bricks.keys[brick[a] : brick[b]] - (a << morton.KEY_BITS),
            bricks.masks[brick[a] : brick[b]].clone(),
            bricks.starts[brick[a] : brick[b]] - row[a],
            bricks.offsets[a : b + 1] - row[a],
            bricks.rows[row[a] : row[b]].clone(),
        )
        for a, b in ranges
    ]
