"""Bricks: blocks of 4x4x4 voxels in Z-order, with one occupancy bit per voxel."""

from collections.abc import Iterable, Sequence
from itertools import product

from sparsevox.testing import Voxel


def code(voxel: Voxel) -> int:
    """Batch index - 512 above 54 bits: the bits of i, j and k, each plus 2^17, in turns, highest first."""
    b, *ijk = voxel
    i, j, k = (f"{c + 2**17:018b}" for c in ijk)
    bits = "".join(x + y + z for x, y, z in zip(i, j, k, strict=True))
    return (b - 512) * 2**54 + int(bits, 2)


def bricks(voxels: Iterable[Voxel]) -> dict[int, tuple[int, int]]:
    """Occupancy mask (64 bits) and first row of the brick of each key, in the order of the keys."""
    found: dict[int, tuple[int, int]] = {}
    for row, c in enumerate(sorted(code(v) for v in set(voxels))):
        key, bit = divmod(c, 64)
        mask, start = found.get(key, (0, row))
        found[key] = mask | 1 << bit, start
    return found


def index(rows: Sequence[Voxel], queries: Iterable[Voxel]) -> list[int]:
    """The row of each voxel, -1 if it is absent."""
    row = {voxel: n for n, voxel in enumerate(rows)}
    return [row.get(query, -1) for query in queries]


def neighbor_bricks(voxels: Iterable[Voxel]) -> list[list[int]]:
    """For each brick, the numbers of the 27 bricks around it, the last axis fastest; -1 if a brick is absent."""
    corners = sorted({(b, i // 4, j // 4, k // 4) for b, i, j, k in voxels}, key=code)
    number = {corner: n for n, corner in enumerate(corners)}
    steps = list(product((-1, 0, 1), repeat=3))
    return [[number.get((b, i + x, j + y, k + z), -1) for x, y, z in steps] for b, i, j, k in corners]


def bounds(voxels: Iterable[Voxel], batch_size: int) -> list[tuple[list[int], list[int]]]:
    """The lowest coordinates of each batch item, and one more than the highest; zeros for an empty item."""
    found = []
    for item in range(batch_size):
        axes = list(zip(*(ijk for b, *ijk in voxels if b == item), strict=True)) or [(0,)] * 3
        empty = all(b != item for b, *_ in voxels)
        found.append(([min(axis) for axis in axes], [max(axis) + (not empty) for axis in axes]))
    return found
