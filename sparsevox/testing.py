"""Test utilities for this library and projects built on it: sets of voxels, their order, and hypothesis strategies.

They use no code of the library, so that they can serve as an oracle: a voxel is a Python tuple (b, i, j, k), a grid
is a set of voxels.
"""

import random
from collections.abc import Iterable
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

LIMIT = 1 << 17
Voxel = tuple[int, ...]  # (b, i, j, k)
KINDS = ("clustered", "solid", "planar", "linear", "scattered", "isolated", "limits", "empty")


class VoxelSet(NamedTuple):
    """The voxels of a batch, and the number of its items."""

    voxels: frozenset[Voxel]
    batch_size: int


def row_order(voxels: Iterable[Voxel]) -> list[Voxel]:
    """Sort voxels as the rows of a grid: by batch item, then in Z-order."""
    return sorted(voxels, key=lambda v: (v[0], _interleave(v[1:])))


def _interleave(ijk: tuple[int, ...]) -> int:
    digits = [f"{c + LIMIT:018b}" for c in ijk]
    return int("".join(x + y + z for x, y, z in zip(*digits, strict=True)), 2)


def as_coords(voxels: Iterable[Voxel], dtype: torch.dtype = torch.int64) -> Tensor:
    """Stack voxels into coordinates [M, 4], in the order given."""
    return torch.tensor([list(v) for v in voxels], dtype=dtype).reshape(-1, 4)


def cloud(kind: str, count: int, seed: int, item: int = 0) -> set[Voxel]:
    """Draw at most `count` voxels of one batch item, distributed as one of `KINDS`."""
    rng = random.Random(f"{kind} {count} {seed}")
    center = [rng.choice((0, 0, -5, 1000, -12001)) for _ in range(3)]
    extent = max(2, round(count ** (1 / 3) * rng.choice((1, 2, 4))))

    def near(spread: int) -> list[int]:
        return [c + rng.randint(-spread, spread) for c in center]

    points: list[list[int]]
    if kind == "clustered":
        points = [near(extent) for _ in range(count)]
    elif kind == "solid":
        side = range(max(1, int(count ** (1 / 3))))
        points = [[center[0] + x, center[1] + y, center[2] + z] for x in side for y in side for z in side]
    elif kind == "planar":
        axis = rng.randrange(3)
        points = [[center[a] if a == axis else p[a] for a in range(3)] for p in (near(extent) for _ in range(count))]
    elif kind == "linear":
        step = [rng.randint(-2, 2) for _ in range(3)]
        points = [[c + t * s for c, s in zip(center, step, strict=True)] for t in range(count)]
    elif kind == "scattered":
        points = [[rng.randint(-LIMIT, LIMIT - 1) for _ in range(3)] for _ in range(count)]
    elif kind == "isolated":  # one voxel per brick, at multiples of a power of two: hard on weak hashes
        stride = 1 << rng.randint(2, 12)
        points = [[stride * rng.randint(-4, 4) + rng.randint(0, 1) for _ in range(3)] for _ in range(count)]
    elif kind == "limits":
        corner = [rng.choice((-LIMIT, LIMIT - 1)) for _ in range(3)]
        points = [[c + rng.randint(0, 6) * (1 if c < 0 else -1) for c in corner] for _ in range(count)]
    else:
        points = []
    return {(item, x, y, z) for x, y, z in points}


def random_batch(seed: int, batch_size: int, count: int = 24, kinds: tuple[str, ...] = KINDS) -> VoxelSet:
    """Draw a batch of small clouds of random kinds, some of them empty."""
    rng = random.Random(seed)
    items = [cloud(rng.choice(kinds), rng.randint(1, count), rng.getrandbits(30), b) for b in range(batch_size)]
    return VoxelSet(frozenset().union(*items), batch_size)


@st.composite
def voxel_sets(draw: st.DrawFn, max_voxels: int = 150, max_batch: int = 3, limits: bool = True) -> VoxelSet:
    """Generate batches of voxels: a few single ones, which shrink well, and clouds of all kinds. Items may be empty.

    With `limits=False`, coordinates stay in [-16384, 16384), so that the voxels can be subdivided by 8.
    """
    batch_size = draw(st.integers(1, max_batch))
    reach = LIMIT if limits else 16000
    coordinate = st.one_of(st.integers(-9, 9), st.integers(-reach, reach - 1))
    voxel = st.tuples(st.integers(0, batch_size - 1), coordinate, coordinate, coordinate)
    voxels: set[Voxel] = set(draw(st.sets(voxel, max_size=6)))
    kinds = KINDS if limits else ("clustered", "solid", "planar", "linear", "empty")
    for item in draw(st.sets(st.integers(0, batch_size - 1))):
        kind, count = draw(st.sampled_from(kinds)), draw(st.integers(1, max_voxels))
        voxels |= cloud(kind, count, draw(st.integers(0, 1 << 20)), item)
    return VoxelSet(frozenset(voxels), batch_size)


@st.composite
def shuffled(draw: st.DrawFn, voxels: frozenset[Voxel]) -> list[Voxel]:
    """Shuffle the voxels and repeat some of them."""
    rows = row_order(voxels)
    rng = random.Random(draw(st.integers(0, 1 << 20)))
    rows += rng.sample(rows, len(rows) // 3)
    rng.shuffle(rows)
    return rows
