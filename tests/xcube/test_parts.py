"""Bridges between the parts of predicted shapes, against plain searches in Python."""

import math
from heapq import heappop, heappush
from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sparsevox import Grid
from xcube.geometry.parts import STEP_COST, bridged, spanning_paths, widened

pytest.importorskip("scipy", reason="finds the parts")

Voxel = tuple[int, ...]
Shape = dict[Voxel, float]  # probability of each candidate
BOX = sorted(product(range(9), range(3), range(2)))
STEPS = [step for step in product((-1, 0, 1), repeat=3) if any(step)]
INFINITE = math.inf


def near(voxel: Voxel, among: set[Voxel]) -> list[Voxel]:
    """The neighbors of a voxel among others."""
    moved = (tuple(a + b for a, b in zip(voxel, step, strict=True)) for step in STEPS)
    return [other for other in moved if other in among]


def parts_of(voxels: set[Voxel]) -> list[set[Voxel]]:
    """Connected components."""
    left, found = set(voxels), []
    while left:
        todo = [left.pop()]
        part = set(todo)
        while todo:
            for other in near(todo.pop(), left):
                left.remove(other)
                part.add(other)
                todo.append(other)
        found.append(part)
    return found


def cheapest(start: set[Voxel], end: set[Voxel], cost: Shape) -> float:
    """Cost of the cheapest path: of the voxels on it, and of its length."""
    queue, done = [(0.0, voxel) for voxel in sorted(start)], set[Voxel]()
    while queue:
        spent, voxel = heappop(queue)
        if voxel in end:
            return spent
        if voxel not in done:
            done.add(voxel)
            for other in near(voxel, set(cost)):
                step = (cost[voxel] + cost[other]) / 2 + STEP_COST * math.dist(voxel, other)
                heappush(queue, (spent + step, other))
    return INFINITE


def spanning_forest(parts: list[set[Voxel]], cost: Shape) -> float:
    """Total cost of a minimum spanning forest of parts, by the algorithm of Kruskal."""
    pairs = {(a, b): cheapest(parts[a], parts[b], cost) for a, b in combinations(range(len(parts)), 2)}
    tree, total = list(range(len(parts))), 0.0
    for (a, b), price in sorted(pairs.items(), key=lambda item: item[1]):
        if price < INFINITE and tree[a] != tree[b]:
            total += price
            tree = [tree[a] if each == tree[b] else each for each in tree]
    return total


def grid_of(*shapes: Shape) -> tuple[Grid, torch.Tensor]:
    """The candidates of a batch, and their probabilities."""
    rows = [(number, *voxel) for number, shape in enumerate(shapes) for voxel in shape]
    grid = Grid.from_coords(torch.tensor(rows, dtype=torch.int32).reshape(-1, 4), batch_size=len(shapes))
    known = [shapes[number][(x, y, z)] for number, x, y, z in grid.coords.tolist()]
    return grid, torch.tensor(known, dtype=torch.float32)


def voxels_of(grid: Grid, mask: torch.Tensor) -> list[set[Voxel]]:
    """The voxels of each shape of a batch."""
    found: list[set[Voxel]] = [set() for _ in range(grid.batch_size)]
    for number, *voxel in grid.coords[mask].tolist():
        found[number].add(tuple(voxel))
    return found


# Most candidates are improbable, so that there are several parts.
probabilities = st.sampled_from([0.0, 0.02, 0.05, 0.1, 0.1, 0.2, 0.3, 0.45, 0.9, 1.0])
shapes = st.dictionaries(st.sampled_from(BOX), probabilities, min_size=10, max_size=len(BOX))


@settings(max_examples=60)
@given(st.lists(shapes, min_size=1, max_size=3), st.sampled_from([0.02, 0.1, 0.3]))
def test_bridges_connect_what_can_be_connected(batch: list[Shape], minimum: float) -> None:
    batch = [*batch[:1], {}, *batch[1:]]
    grid, probability = grid_of(*batch)
    chosen = probability > 0.5
    before = chosen.clone()
    found = voxels_of(grid, bridged(grid, chosen, probability, minimum))
    assert torch.equal(chosen, before)
    for shape, after in zip(batch, found, strict=True):
        old = {voxel for voxel, p in shape.items() if p > 0.5}
        allowed = {voxel for voxel, p in shape.items() if p > minimum - 1e-6}
        assert old <= after <= allowed
        parts, possible = parts_of(old), parts_of(allowed)
        assert len(parts_of(after)) == sum(bool(each & old) for each in possible)
        # A part that is alone among the candidates is left as it is.
        for each in possible:
            if sum(bool(each & part) for part in parts) < 2:
                assert after & each == old & each


@settings(max_examples=60)
@given(shapes)
def test_paths_are_those_of_a_minimum_spanning_forest(shape: Shape) -> None:
    parts = parts_of({voxel for voxel, p in shape.items() if p > 0.5})
    assume(len(parts) > 1)
    cost = {voxel: 0.0 if p > 0.5 else -math.log(p) for voxel, p in shape.items() if p}
    nodes = sorted(cost)
    number = [next((n for n, part in enumerate(parts) if voxel in part), -1) for voxel in nodes]
    pairs = [(a, b) for a, b in combinations(range(len(nodes)), 2) if nodes[b] in near(nodes[a], set(cost))]
    pairs = [(a, b) for a, b in pairs if number[a] < 0 or number[b] < 0]
    source, target = np.array(pairs, np.int64).reshape(-1, 2).T
    prices = [cost[voxel] for voxel in nodes]
    weight = [(prices[a] + prices[b]) / 2 + STEP_COST * math.dist(nodes[a], nodes[b]) for a, b in pairs]
    path = spanning_paths(np.array(number), source, target, np.array(weight))
    new = {voxel for voxel, is_new in zip(nodes, path, strict=True) if is_new}
    assert not any(new & part for part in parts)
    # 1. The paths connect the parts as cheaply as all candidates do.
    least = spanning_forest(parts, cost)
    assert spanning_forest(parts, {voxel: cost[voxel] for part in (new, *parts) for voxel in part}) == pytest.approx(
        least
    )
    # 2. There are no others: their candidates cost no more than the paths.
    assert sum(cost[voxel] for voxel in new) <= least + 1e-9
    assert sum(cost[voxel] + STEP_COST for voxel in new) <= least + 1e-9


def test_candidates_far_from_all_parts() -> None:
    far: Shape = {(20, 0, 0): 0.2, (21, 0, 0): 0.2}
    shape: Shape = {(x, 0, 0): 0.9 if x in (0, 4) else 0.2 for x in range(5)}
    grid, probability = grid_of(shape | far)
    assert voxels_of(grid, bridged(grid, probability > 0.5, probability, 0.1)) == [set(shape)]
    apart: Shape = {(0, 0, 0): 0.9, (5, 0, 0): 0.9}
    grid, probability = grid_of(apart | far)
    assert voxels_of(grid, bridged(grid, probability > 0.5, probability, 0.1)) == [set(apart)]


def test_a_bridge_is_widened_by_probable_neighbors() -> None:
    column: Shape = {}
    for x, y, z in product(range(-1, 2), range(-1, 2), range(8)):
        other = 0.151 if y == 0 else 0.149
        column[(x, y, z)] = 0.9 if z < 2 or z > 5 else 0.3 if (x, y) == (0, 0) else other
    grid, probability = grid_of(column)
    [found] = voxels_of(grid, bridged(grid, probability > 0.5, probability, 0.1))
    assert found == {voxel for voxel, p in column.items() if p > 0.15}
    for minimum, expected in ((0.15, 0.15), (0.16, 0.2), (0.31, 0.5)):
        [found] = voxels_of(grid, bridged(grid, probability > 0.5, probability, minimum))
        assert found == {voxel for voxel, p in column.items() if p > expected}


def test_the_limit_of_a_neighbor_is_that_of_its_least_probable_path_node() -> None:
    cost = np.array([3.0, 1.0, 3.2, 1.8])
    path = np.array([True, True, False, False])
    source, target = np.array([0, 2, 3, 0]), np.array([2, 1, 1, 1])
    assert widened(path, source, target, cost).tolist() == [True, True, True, False]
    assert widened(path, source[::-1].copy(), target[::-1].copy(), cost).tolist() == [True, True, True, False]


def test_nothing_changes_without_a_gap() -> None:
    grid, probability = grid_of({(x, 0, 0): 0.9 if x < 4 else 0.4 for x in range(8)}, {}, {(0, 0, 0): 0.1})
    chosen = probability > 0.5
    assert torch.equal(bridged(grid, chosen, probability, 0.01), chosen)
    assert torch.equal(bridged(grid, chosen, probability, 1.0), chosen)
    assert not bridged(grid, torch.zeros_like(chosen), probability, 0.01).any()
    empty, none = grid_of({})
    assert bridged(empty, none > 0.5, none, 0.5).shape == (0,)


@pytest.mark.parametrize("minimum", [0.0, 1.5, -1.0])
def test_a_minimum_is_a_probability(minimum: float) -> None:
    grid, probability = grid_of({(0, 0, 0): 0.1})
    with pytest.raises(ValueError, match=rf"minimum must lie in \(0, 1\], got {minimum}"):
        bridged(grid, probability > 0.5, probability, minimum)


def test_masks_of_another_shape_are_refused() -> None:
    grid, probability = grid_of({(0, 0, 0): 0.1})
    with pytest.raises(ValueError, match="chosen must have shape"):
        bridged(grid, probability[:0] > 0.5, probability, 0.1)
    with pytest.raises(ValueError, match="probability must have shape"):
        bridged(grid, probability > 0.5, probability[:, None], 0.1)
