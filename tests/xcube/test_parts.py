"""Which parts of predicted shapes are left out, and bridges between the others, against plain searches in Python."""

import math
from heapq import heappop, heappush
from itertools import combinations, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsevox import Grid
from xcube.geometry.parts import STEP_COST, bridged, certain_parts

pytest.importorskip("scipy", reason="finds the parts")

Voxel = tuple[int, ...]
BOX = sorted(product(range(4), range(3), range(2)))
STEPS = [step for step in product((-1, 0, 1), repeat=3) if any(step)]


def near(voxel: Voxel, among: set[Voxel]) -> list[Voxel]:
    """The neighbors of a voxel among others."""
    return [there for step in STEPS if (there := tuple(a + b for a, b in zip(voxel, step, strict=True))) in among]


def parts_of(voxels: set[Voxel]) -> list[set[Voxel]]:
    """Connected components."""
    left, found = set(voxels), []
    while left:
        todo = [left.pop()]
        part = set(todo)
        while todo:
            for there in near(todo.pop(), left):
                left.remove(there)
                part.add(there)
                todo.append(there)
        found.append(part)
    return found


def cheapest(start: set[Voxel], end: set[Voxel], cost: dict[Voxel, float]) -> float:
    """Cost of the cheapest path: of the voxels on the way, and of its length."""
    queue, done = [(0.0, voxel) for voxel in sorted(start)], set[Voxel]()
    while queue:
        spent, here = heappop(queue)
        if here in end:
            return spent
        if here not in done:
            done.add(here)
            for there in near(here, set(cost)):
                heappush(queue, (spent + (cost[here] + cost[there]) / 2 + STEP_COST * math.dist(here, there), there))
    return math.inf


def grid_of(*shapes: dict[Voxel, float]) -> tuple[Grid, torch.Tensor]:
    """The candidates of a batch, and their probabilities."""
    rows = [(number, *voxel) for number, shape in enumerate(shapes) for voxel in shape]
    grid = Grid.from_coords(torch.tensor(rows, dtype=torch.int32).reshape(-1, 4), batch_size=len(shapes))
    known = [shapes[number][(x, y, z)] for number, x, y, z in grid.coords.tolist()]
    return grid, torch.tensor(known, dtype=torch.float32)


def made(grid: Grid, mask: torch.Tensor) -> list[set[Voxel]]:
    """The voxels of each shape of a batch."""
    found: list[set[Voxel]] = [set() for _ in range(grid.batch_size)]
    for number, *voxel in grid.coords[mask].tolist():
        found[number].add(tuple(voxel))
    return found


# Shares of a 16th are exact, and sums of their logarithms differ.
shapes = st.lists(st.dictionaries(st.sampled_from(BOX), st.sampled_from([n / 16 for n in range(17)])), max_size=3)


@given(shapes, st.sampled_from([1 / 16, 3 / 16, 6 / 16]))
def test_bridges_are_the_cheapest_that_connect_all_parts(batch: list[dict[Voxel, float]], minimum: float) -> None:
    grid, probability = grid_of(*batch)
    found = made(grid, bridged(grid, probability > 0.5, probability, minimum))
    for shape, after in zip(batch, found, strict=True):
        before = {voxel for voxel, p in shape.items() if p > 0.5}
        assert before <= after <= {voxel for voxel, p in shape.items() if p >= minimum}
        # 1. As many parts as if all candidates that may be a bridge existed, not counting those without a part.
        allowed = parts_of({voxel for voxel, p in shape.items() if p >= minimum})
        parts = parts_of(before)
        assert len(parts_of(after)) == sum(bool(each & before) for each in allowed)
        if len(parts) < 2:
            assert after == before
        # 2. No path between two parts that is cheaper at every step was left out (minimum bottleneck, of which each
        # minimum spanning tree consists).
        cost = {voxel: 0.0 if voxel in before else -math.log(p) for voxel, p in shape.items() if p >= minimum}
        ways = {(a, b): cheapest(parts[a], parts[b], cost) for a, b in combinations(range(len(parts)), 2)}
        new = {voxel: cost[voxel] for voxel in after}
        for (a, b), direct in ways.items():
            if direct < math.inf:
                assert bottleneck(a, b, {pair: cheapest(parts[pair[0]], parts[pair[1]], new) for pair in ways}) <= (
                    bottleneck(a, b, ways) + 1e-9
                )


def bottleneck(a: int, b: int, ways: dict[tuple[int, int], float]) -> float:
    """The least maximum of the steps of a way from a to b over others."""
    joined = {a}
    for cost in sorted(set(ways.values())):
        grew = True
        while grew:
            more = {n for pair, c in ways.items() if c <= cost and joined & set(pair) for n in pair}
            grew = not more <= joined
            joined |= more
        if b in joined:
            return cost
    return math.inf


def test_a_bridge_is_widened_by_probable_neighbors() -> None:
    column: dict[Voxel, float] = {}
    for x, y in product(range(-1, 2), repeat=2):
        for z in range(8):
            whole = z < 2 or z > 5
            column[(x, y, z)] = 0.9 if whole else 0.3 if (x, y) == (0, 0) else 0.16 if y == 0 else 0.14
    grid, probability = grid_of(column)
    (found,) = made(grid, bridged(grid, probability > 0.5, probability, 0.1))
    assert found == {voxel for voxel, p in column.items() if p > 0.15}
    assert made(grid, bridged(grid, probability > 0.5, probability, 0.31)) == made(grid, probability > 0.5)


def test_nothing_changes_without_a_gap() -> None:
    grid, probability = grid_of({(x, 0, 0): 0.9 if x < 4 else 0.4 for x in range(8)}, {}, {(0, 0, 0): 0.1})
    chosen = probability > 0.5
    assert torch.equal(bridged(grid, chosen, probability, 0.01), chosen)
    nothing = torch.zeros_like(chosen)
    assert not bridged(grid, nothing, probability, 0.01).any()
    empty, none = grid_of({})
    assert bridged(empty, none > 0.5, none, 0.5).shape == (0,)
    for minimum in (0.0, 1.5, -1.0):
        with pytest.raises(ValueError, match=f"minimum must lie in .0, 1., got {minimum}"):
            bridged(grid, chosen, probability, minimum)


@given(shapes)
def test_parts_without_a_certain_voxel_are_left_out(batch: list[dict[Voxel, float]]) -> None:
    grid, probability = grid_of(*batch)
    found = made(grid, certain_parts(grid, probability > 0.4, probability > 0.8))
    for shape, after in zip(batch, found, strict=True):
        parts = parts_of({voxel for voxel, p in shape.items() if p > 0.4})
        certain = [part for part in parts if any(shape[voxel] > 0.8 for voxel in part)]
        assert after == set().union(*(certain or parts))
