"""Pairs of kernel maps: tables of Python lists, and the definitions."""

import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsevox import Grid
from sparsevox.ops import plans
from tests.definitions import plans as definition

Table = list[list[int]]


def some_table(taps: int, rows: int, sources: int, density: float, seed: int = 0) -> Table:
    """Source of each row at each tap, -1 for none; at one tap no source comes twice."""
    rng = random.Random(f"{taps} {rows} {sources} {density} {seed}")
    table = []
    for _ in range(taps):
        drawn = iter(rng.sample(range(sources), min(rows, sources)))
        table.append([next(drawn, -1) if rng.random() < density else -1 for _ in range(rows)])
    return table


def as_table(table: Table) -> Tensor:
    return torch.tensor(table, dtype=torch.int32).reshape(len(table), -1)


@st.composite
def tables(draw: st.DrawFn) -> tuple[Table, int]:
    sizes = [draw(st.integers(low, high)) for low, high in ((1, 27), (0, 40), (0, 40))]
    density = draw(st.sampled_from((0.0, 0.1, 0.6, 1.0)))
    return some_table(sizes[0], sizes[1], sizes[2], density, draw(st.integers(0, 99))), sizes[2]


@given(tables())
def test_the_adjoint_is_the_inverse(case: tuple[Table, int]) -> None:
    table, sources = case
    adjoint = plans.adjoint_table(as_table(table), torch.empty(sources, 0))
    assert adjoint.dtype == torch.int32
    assert adjoint.tolist() == definition.adjoint_table(table, sources)
    assert plans.adjoint_table(adjoint, torch.empty(len(table[0]), 0)).tolist() == table


@given(tables(), st.sampled_from((1, 4, 8, 64)))
def test_pairs_are_those_of_the_table_in_order(case: tuple[Table, int], block: int) -> None:
    table, _ = case
    results = torch.ops.sparsevox.pair_lists(as_table(table), block)
    assert [r.dtype for r in results] == [torch.int32, torch.int32, torch.int64]
    assert [r.tolist() for r in results] == list(definition.pair_lists(table, block))


@given(tables(), st.sampled_from((1, 4, 8, 64)))
def test_bags_hold_the_pairs_of_each_row_by_tap(case: tuple[Table, int], block: int) -> None:
    table, _ = case
    _, dst, starts = (torch.tensor(part) for part in definition.pair_lists(table, block))
    order, bags = torch.ops.sparsevox.pair_bags(dst.int(), starts, as_table(table), block)
    assert (order.dtype, bags.dtype) == (torch.int32, torch.int32)
    found = []
    for number, (begin, end) in enumerate(itertools.pairwise(starts[:: len(table)].tolist())):
        bounds = bags[number * (block + 1) : (number + 1) * (block + 1)].tolist()  # of the rows of the block
        found += [(order[begin:end][a:b] + begin).tolist() for a, b in itertools.pairwise(bounds)]
    assert found == definition.pair_bags(table, block)


@pytest.mark.parametrize(("taps", "block"), [(1, 8192), (8, 8192), (27, 8192), (125, 1024), (343, 512)])
def test_blocks_of_pairs(taps: int, block: int) -> None:
    """The last block is not full; the size of a block depends on the number of taps only."""
    table = some_table(taps, block + 100, 500, 0.02)
    pairs = plans.pair_lists(as_table(table))
    assert [part.tolist() for part in pairs] == list(definition.pair_lists(table, block))
    bags = plans.bags(as_table(table), pairs)
    order, row_starts = torch.ops.sparsevox.pair_bags(pairs.targets, pairs.starts, as_table(table), block)
    assert torch.equal(bags.order, order)
    assert torch.equal(bags.row_starts, row_starts)
    assert bags.sources is pairs.sources
    assert pairs.sources.numel() > 100


def test_a_direction_makes_plans_once() -> None:
    grid = Grid.full(0, 5)
    kernel_map = grid.kernel_map(3, target=grid.crop(1, 9))
    for direction in (kernel_map.down, kernel_map.up):
        assert direction.pairs is direction.pairs
        assert direction.plan is direction.plan
        assert [t.tolist() for t in direction.pairs] == list(definition.pair_lists(direction.table.tolist(), 4096))
    assert kernel_map.up is kernel_map.up
