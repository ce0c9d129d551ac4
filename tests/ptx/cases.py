"""Calls of every launcher of `sparsevox.kernels` on small inputs, as a table: what tests/ptx/test_kernels.py runs."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsevox.morton import Bricks
from sparsevox.reference import bricks as reference
from sparsevox.reference import neighbors, plans, pool, topology
from sparsevox.testing import LIMIT, as_coords, cloud

HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
# Largest error, relative to the largest element.
TOLERANCES = {DOUBLE: 1e-12, SINGLE: 1e-5, HALF: 2e-3, BRAIN: 1e-2}
CHANNELS = {DOUBLE: 3, SINGLE: 33, HALF: 5, BRAIN: 40}  # some that fill no block, on both sides of the narrow one


class Case(NamedTuple):
    """A call of a launcher, which the function of the same name in `sparsevox.reference` must agree with.

    tolerance: Largest error, relative to the largest element; 0: equal bits.
    num_warps: Warps per program in place of the launchers' choice, if it is one.
    results: How many of the results are compared; None: all.
    """

    module: str
    function: str
    arguments: Sequence[Any]
    tolerance: float = 0
    num_warps: int | None = None
    results: int | None = None


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def flags(*shape: int) -> Tensor:
    return random(*shape, seed=1) < 0


def grid(batch_size: int = 2, count: int = 90, seed: int = 0) -> tuple[Tensor, Bricks]:
    """Coordinates in random order, some twice, and their bricks."""
    kinds = ("clustered", "planar", "isolated", "solid")
    coords = torch.cat([as_coords(cloud(kinds[b % 4], count, seed, b)) for b in range(batch_size)])
    order = torch.randint(len(coords), (2 * len(coords),), generator=torch.Generator().manual_seed(seed))
    return coords[order], reference.build_bricks(coords[order], batch_size)


def geometry(size: int, stride: int = 1) -> list[list[int]]:
    """Kernel size, stride, dilation and padding."""
    return [[size] * 3, [stride] * 3, [1] * 3, [(size - 1) // 2 if stride == 1 else 0] * 3]


def within(bricks: Bricks) -> Tensor:
    """The table of a 3x3x3 kernel within a grid."""
    lookup = (bricks.keys, bricks.masks, bricks.starts, bricks.rows)
    return neighbors.kernel_table(*lookup, None, *lookup, *geometry(3))


def bricks_cases() -> list[Case]:
    coords, bricks = grid()
    _, one = grid(1)  # all bricks of a program are of one batch item
    keys, masks, starts = bricks.keys, bricks.masks, bricks.starts
    beyond = torch.cat([coords, coords.new_tensor([[0, 0, LIMIT, 0]])])
    asked = torch.cat([coords[::3], coords[::3] + 1, beyond[-1:]])
    return [
        Case("bricks", "build_bricks", (coords, 2, "sort")),
        Case("bricks", "build_bricks", (coords.int(), None, "hash")),
        Case("bricks", "build_bricks", (coords, 2, "hash"), num_warps=4),
        Case("bricks", "build_bricks", (beyond, 2, "sort")),
        Case("bricks", "brick_coords", (keys, masks, starts, bricks.rows)),
        Case("bricks", "brick_bounds", (keys, masks, bricks.offsets)),
        Case("bricks", "brick_bounds", (one.keys, one.masks, one.offsets)),
        Case("bricks", "find_rows", (asked, keys, masks, starts, None)),
        Case("bricks", "find_rows", (asked.int(), keys, masks, starts, None), num_warps=4),
        Case("bricks", "neighbor_bricks", (keys, None)),
        Case("bricks", "neighbor_bricks", (keys, None), num_warps=4),
    ]


def topology_cases() -> list[Case]:
    _, bricks = grid()
    _, other = grid(seed=3)
    far = reference.build_bricks(as_coords([(0, LIMIT - 1, 0, 0), (0, 1, 2, 3)]), 1)
    n = len(bricks.rows)
    bare, keep = (bricks.keys, bricks.masks, bricks.offsets), flags(n)
    keys, masks = bricks.keys[::2].contiguous(), bricks.masks[::2].contiguous()
    both = topology.combine_bricks(keys, masks, other.keys, other.masks, other.offsets, "or")
    whole, too_far = ((b.keys, b.masks, b.starts, b.offsets, b.rows) for b in (bricks, far))
    return [
        *(Case("topology", "coarsen_bricks", (*bare, level)) for level in (1, 2, 3)),
        *(Case("topology", "subdivide_bricks", (*whole, 1, kept)) for kept in (None, keep, flags(n, 8))),
        *(Case("topology", "subdivide_bricks", (*whole, 2, kept)) for kept in (None, keep)),
        *(Case("topology", "subdivide_bricks", (*too_far, level, None)) for level in (1, 2)),
        Case("topology", "subdivide_bricks", (*too_far, 1, torch.ones(2, dtype=torch.bool))),
        *(
            Case("topology", "combine_bricks", (*bare[:2], both.keys, both.masks, bricks.offsets, op))
            for op in ("or", "and", "sub", "xor")
        ),
        Case("topology", "prune_bricks", (bricks.keys, bricks.masks, bricks.starts, bricks.offsets, keep)),
        Case("topology", "crop_bricks", (*bare, [-3, -2, 0], [5, 4, 7])),
    ]


def morphology_cases() -> list[Case]:
    _, bricks = grid()
    far = reference.build_bricks(as_coords([(0, LIMIT - 1, 0, 0)]), 1)
    bare, too_far = ((b.keys, b.masks, b.offsets) for b in (bricks, far))
    return [
        Case("morphology", "dilate_bricks", (*bare, [-1, 0, -4], [1, 2, 0])),
        Case("morphology", "dilate_bricks", (*bare, [1, -2, 0], [2, -1, 0])),
        Case("morphology", "dilate_bricks", (*too_far, [0, 0, 0], [1, 0, 0])),
        Case("morphology", "erode_bricks", (*bare, None, [-1, 0, 0], [0, 1, 0])),
        Case("morphology", "erode_bricks", (*bare, None, [0, -1, -1], [1, 0, 0]), num_warps=4),
    ]


def neighbors_cases() -> list[Case]:
    _, bricks = grid()
    coarse = topology.coarsen_bricks(bricks.keys, bricks.masks, bricks.offsets, 1)
    fine = (bricks.keys, bricks.masks, bricks.starts, bricks.rows)
    target = (coarse.keys, coarse.masks, coarse.starts, coarse.rows)
    uneven = [[3, 1, 2], [1, 1, 1], [2, 1, 1], [2, 0, 1]]
    return [
        Case("neighbors", "kernel_table", (*fine, None, *fine, *geometry(3))),
        Case("neighbors", "kernel_table", (*fine, None, *target, *geometry(2, 2))),
        Case("neighbors", "kernel_table", (*fine, None, *fine, *uneven), num_warps=4),
    ]


def plans_cases() -> list[Case]:
    _, bricks = grid(count=200)
    table = within(bricks)
    few, many = table[:1].contiguous(), torch.cat([table, table, table])  # 81 taps fit in no word
    return [
        Case("plans", "adjoint_table", (table, bricks.rows)),
        Case("plans", "pair_lists", (table, 256)),
        Case("plans", "pair_lists", (table, 2048)),
        Case("plans", "row_plan", (table,)),
        Case("plans", "row_plan", (few,)),
        Case("plans", "row_plan", (many,)),
    ]


def reduce_cases() -> list[Case]:
    _, bricks = grid()
    coarse = topology.coarsen_bricks(bricks.keys, bricks.masks, bricks.offsets, 1)
    table, n = within(bricks), len(bricks.rows)
    own, children = (bricks.keys, bricks.masks, bricks.starts, bricks.rows), torch.randperm(n).int()
    parents, ranges = pool.child_ranges(*own, coarse.rows, 1)
    met, counts = (table >= 0).sum(0), ranges.diff().long()
    halves = torch.tensor([0, 700, 700, 1300], dtype=torch.int32)  # too long for one piece
    cases = [Case("pool", "child_ranges", (*own, coarse.rows, 1))]
    farther = topology.coarsen_bricks(bricks.keys, bricks.masks, bricks.offsets, 3)
    cases.append(Case("pool", "child_ranges", (*own, farther.rows, 3)))
    for dtype, tolerance in TOLERANCES.items():
        feats, values = random(n, CHANNELS[dtype]).to(dtype), random(1300, CHANNELS[dtype]).to(dtype)
        winners = pool.max_table(feats, table, table)[1]
        cases += [
            Case("pool", "sum_table", (feats, table, None, None, met, False, 27), tolerance),
            Case("pool", "max_table", (feats, table, table)),
            Case("pool", "place_rows", (feats, winners, table), tolerance),
            Case("segment", "sum_ranges", (feats, ranges, children, None, counts, 8), tolerance),
            Case("segment", "extreme_ranges", (feats, ranges, children, parents, False, 8)),
        ]
        if dtype in (SINGLE, BRAIN):
            first, last = table[:1].contiguous(), table[-1:].contiguous()  # the same pairs in both directions
            lone = pool.max_table(feats, first, last)[1]
            cases += [
                Case("pool", "sum_table", (feats, first, None, None, None, False, 1), tolerance),
                Case("pool", "place_rows", (feats, lone, last), tolerance),
                Case("segment", "sum_ranges", (values, halves, None, None, None, 0), tolerance),
                Case("segment", "extreme_ranges", (values, halves, None, parents, True, 0)),
            ]
    return cases


def sample_cases() -> list[Case]:
    cases = []
    points, corners, n = 90, 8, 70
    rows = torch.randint(-1, n, (points, corners), generator=torch.Generator().manual_seed(0)).int()
    for dtype in (BRAIN, SINGLE, DOUBLE):
        tolerance, channels = TOLERANCES[dtype], CHANNELS[dtype]
        feats, values = random(n, channels).to(dtype), random(points, channels, seed=1).to(dtype)
        weights = random(points, corners, seed=2).to(DOUBLE if dtype == DOUBLE else SINGLE)
        cases += [
            Case("sample", "gather_rows", (feats, rows, weights), tolerance),
            Case("sample", "sum_rows", (values, rows, weights, n), tolerance),
            Case("sample", "dot_rows", (feats, rows, values), tolerance),
        ]
    return cases


def norm_cases() -> list[Case]:
    cases = []
    few, many = [5, 0, 200, 7], [600, 0, 423, 7]  # the latter in chunks, the former not
    for sizes, dtype, channels, groups, affine in (
        (few, BRAIN, 40, 2, True),
        (few, SINGLE, 6, 3, False),
        (few, DOUBLE, 33, 11, True),
        (many, BRAIN, 40, 2, True),
        (many, SINGLE, 6, 3, True),
        (many, DOUBLE, 33, 11, False),
    ):
        offsets = torch.tensor(list(accumulate(sizes, initial=0)))
        exact, tolerance = DOUBLE if dtype == DOUBLE else SINGLE, TOLERANCES[dtype]
        feats, grad = ((random(sum(sizes), channels, seed=seed) * 2 + 3).to(dtype) for seed in (0, 1))
        weight, bias = (random(channels, seed=seed).to(exact) if affine else None for seed in (2, 3))
        mean, rstd = (random(4, groups, seed=seed).to(exact).abs() for seed in (4, 5))
        cases += [
            Case("norm", "group_norm", (feats, offsets, weight, bias, groups, 1e-5), tolerance),
            Case("norm", "group_norm_backward", (grad, feats, offsets, weight, mean, rstd), 5 * tolerance),
        ]
    return cases


def dense_cases() -> list[Case]:
    cases = [
        Case("dense", "dense_bricks", (flags(2, 5, 6, 7), [-3, 5, 14])),
        Case("dense", "dense_bricks", (flags(1, 3, 4, 2), [LIMIT - 2, 0, 0])),
    ]
    size, n = [7, 8, 9], 60
    cells = torch.randperm(2 * 504, generator=torch.Generator().manual_seed(0))[:n]
    cells[::7] = -1
    for dtype, channels in {BRAIN: 20, SINGLE: 3, DOUBLE: 16}.items():
        feats, volume = random(n, channels).to(dtype), random(2, channels, *size).to(dtype)
        cases += [
            Case("dense", "scatter_dense", (feats, cells, 2, size)),
            Case("dense", "gather_dense", (volume, cells)),
        ]
    return cases


# Modules whose kernels the cases run, all of them.
FAMILIES: dict[str, tuple[tuple[str, ...], Callable[[], list[Case]]]] = {
    "bricks": (("bricks", "_finish"), bricks_cases),
    "topology": (("topology",), topology_cases),
    "morphology": (("morphology",), morphology_cases),
    "neighbors": (("neighbors",), neighbors_cases),
    "plans": (("plans",), plans_cases),
    "reduce": (("pool", "_reduce"), reduce_cases),
    "sample": (("sample",), sample_cases),
    "norm": (("norm",), norm_cases),
    "dense": (("dense",), dense_cases),
}


class Conv(NamedTuple):
    """Channels of all groups, groups and dtype of a convolution, and the warps of its two kernels."""

    c: int
    d: int
    dtype: torch.dtype
    groups: int = 1
    tf32: bool = False
    bias: bool = True
    num_warps: tuple[int, int] = (4, 4)


CONVS = [
    Conv(64, 64, HALF),
    Conv(64, 128, BRAIN, num_warps=(8, 4)),
    Conv(48, 24, HALF, bias=False),
    Conv(3, 32, HALF),
    Conv(33, 65, BRAIN, num_warps=(8, 4)),
    Conv(32, 16, HALF, groups=2),
    Conv(64, 64, SINGLE, tf32=True),
    Conv(20, 40, SINGLE, groups=2, tf32=True),
    Conv(16, 32, SINGLE),
    Conv(33, 7, SINGLE),
    Conv(12, 12, SINGLE, groups=12),
    Conv(6, 18, HALF, groups=6),
    Conv(8, 12, BRAIN, groups=4),
    Conv(8, 24, DOUBLE),
    Conv(4, 6, DOUBLE, groups=2, bias=False),
]


class Problem(NamedTuple):
    """The arguments of a convolution: two tiles of output rows, one of them partial; three blocks of pairs."""

    feats: Tensor
    weight: Tensor
    bias: Tensor | None
    grads: Tensor
    table: Tensor
    plan: tuple[Tensor, ...]
    pairs: tuple[Tensor, ...]


def conv_problem(case: Conv) -> Problem:
    taps, rows, inputs = 3, 140, 120
    generator = torch.Generator().manual_seed(case.c)
    table = torch.stack([torch.randperm(rows, generator=generator) for _ in range(taps)]).int()
    table[(table >= inputs) | (torch.rand(table.shape, generator=generator) < 0.4)] = -1
    table[1] = -1
    feats, grads, weight = random(inputs, case.c), random(rows, case.d, seed=1), random(taps, case.c, case.d, seed=2)
    return Problem(
        feats.to(case.dtype),
        weight[:, : case.c // case.groups].contiguous().to(case.dtype),
        random(case.d, seed=3).float() if case.bias else None,
        grads.to(case.dtype),
        table,
        (table, *plans.row_plan(table)),
        plans.pair_lists(table, 64),
    )
