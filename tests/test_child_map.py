"""Child maps: dictionaries of voxels, reference, kernels; which are the same and how long they live."""

import gc
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsevox import ChildMap, Grid, _readback
from sparsevox.morton import Bricks
from sparsevox.ops import max_pool3d
from sparsevox.testing import LIMIT, VoxelSet, as_coords, random_batch, voxel_sets
from tests.definitions.pool import child_rows

FACTORS: list[Any] = [1, 2, 4, 8, 3, (2, 2, 1), (1, 4, 2)]
TARGETS: dict[str, Callable[[Grid, Any], Grid | None]] = {
    "coarsened": lambda g, f: None,
    "the same by another way": lambda g, f: Grid(g.coarsen(f).bricks, g.coarsen(f).voxel_size),
    "dilated": lambda g, f: g.coarsen(f).dilate(1),
    "cropped": lambda g, f: g.coarsen(f).crop(-2, 3),
    "none": lambda g, f: Grid.empty(g.batch_size, voxel_size=g.coarsen(f).voxel_size),
}


def grid_of(case: VoxelSet) -> Grid:
    return Grid.from_coords(as_coords(case.voxels), batch_size=case.batch_size + 1)  # the last item is empty


def some_grid(seed: int = 4, count: int = 40) -> Grid:
    kinds = ("clustered", "solid", "planar")
    return grid_of(random_batch(seed, 3, count=count, kinds=kinds))


def triple(value: Any) -> tuple[int, ...]:
    return (value,) * 3 if isinstance(value, int) else tuple(value)


def check_map(grid: Grid, factor: Any, target: Grid | None) -> ChildMap:
    coarse = grid.coarsen(factor) if target is None else target
    child_map = grid.child_map(factor, target)
    fine_rows, coarse_rows = ([tuple(v) for v in g.coords.tolist()] for g in (grid, coarse))
    expected = child_rows(fine_rows, coarse_rows, triple(factor))
    parents = [-1] * grid.num_voxels
    for row, family in enumerate(expected):
        for child in family:
            parents[child] = row
    assert child_map.parents.tolist() == parents
    assert child_map.parents.dtype == child_map.ranges.dtype == torch.int32
    order = range(grid.num_voxels) if child_map.children is None else child_map.children.tolist()
    edges = child_map.ranges.tolist()
    assert [list(order[a:b]) for a, b in itertools.pairwise(edges)] == expected
    assert sorted(order) == list(range(grid.num_voxels))
    assert (child_map.num_fine, child_map.num_coarse) == (grid.num_voxels, coarse.num_voxels)
    return child_map


@given(voxel_sets(limits=False), st.sampled_from(FACTORS), st.sampled_from(sorted(TARGETS)))
def test_child_map(case: VoxelSet, factor: Any, target: str) -> None:
    grid = grid_of(case)
    child_map = check_map(grid, factor, TARGETS[target](grid, factor))
    blocks = factor in (1, 2, 4, 8)
    assert (child_map.children is None) == (target == "coarsened" and blocks)


@given(voxel_sets(), st.sampled_from([2, 4, 16, 1 << 16, 1 << 17, 1 << 18, (1 << 18, 1, 1)]))
def test_child_map_at_the_limits(case: VoxelSet, factor: Any) -> None:
    corners = {(0, *ijk) for ijk in itertools.product((-LIMIT, -1, 0, LIMIT - 1), repeat=3)}
    check_map(grid_of(VoxelSet(case.voxels | corners, case.batch_size)), factor, None)


def test_child_map_in_a_hash_tree() -> None:
    grid = some_grid()
    tree = [grid, *(grid.coarsen(2 ** (d - 1)).dilate(1).coarsen(2) for d in (1, 2, 3))]
    for fine, coarse in itertools.pairwise(tree):
        check_map(fine, 2, coarse)


def test_equal_calls_give_one_map() -> None:
    grid = some_grid()
    coarse, third = grid.coarsen(2), grid.coarsen(2).dilate(1)
    first = grid.child_map(2)
    assert grid.child_map(2, coarse) is first
    assert grid.child_map([2, 2, 2], target=coarse) is first
    assert grid.child_map(2, third) is not first
    assert grid.child_map(2, third) is grid.child_map(2, third)
    assert grid.child_map(2, coarse) is first
    assert grid.child_map(1) is grid.child_map((1, 1, 1), grid)
    one = grid.child_map(2)
    grid.clear_cache()
    again = grid.child_map(2, coarse)
    assert again is not one
    assert torch.equal(again.parents, one.parents)  # although the cache no longer knows how `coarse` was made
    assert repr(grid.child_map(1)) == f"ChildMap(factor=1, N={grid.num_voxels}, M={grid.num_voxels}, cpu)"
    assert one.nbytes == 4 * (grid.num_voxels + coarse.num_voxels + 1)
    listed = grid.child_map((2, 2, 1))
    assert repr(listed).startswith("ChildMap(factor=(2, 2, 1), N=")
    assert listed.nbytes == 4 * (2 * grid.num_voxels + listed.num_coarse + 1)


def test_a_child_map_keeps_no_grid() -> None:
    gc.collect()
    gc.disable()
    try:
        grid = some_grid()
        coarse = grid.coarsen(2).dilate(1)
        child_map = grid.child_map(2, coarse)
        parents, gone = weakref.ref(child_map), weakref.ref(coarse)
        del coarse
        assert gone() is None
        del child_map
        assert parents() is None
        gone, kept, coarse = weakref.ref(grid), grid.child_map(3), grid.coarsen(2)
        parents = weakref.ref(grid.child_map(2, coarse))
        grid.child_map(1)
        del grid
        assert gone() is None
        assert parents() is None
        assert kept.num_fine == kept.parents.shape[0]
    finally:
        gc.enable()


def test_child_maps_do_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = some_grid()
    targets = [grid.coarsen(2), grid.coarsen(2).dilate(1)]
    before = _readback.calls
    for target in targets:
        max_pool3d(torch.ones(grid.num_voxels, 3), grid.child_map(2, target))
    assert _readback.calls == before


@pytest.mark.parametrize("level", [0, 1, 2, 3, 5, 17])
def test_child_kernel_equals_reference(bricks: Bricks, level: int, agree: Callable[..., Any]) -> None:
    coarse = Grid(bricks).coarsen(1 << level).bricks
    agree("pool", "child_ranges", *bricks[:3], bricks.rows, coarse.rows, level, read_backs=0)


def test_errors_of_child_maps() -> None:
    grid = Grid.full(0, 4, batch_size=2)
    with pytest.raises(TypeError, match=r"factor must be an int, got 2\.0"):
        grid.child_map(2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="factor must be between 1 and 262144, got 0"):
        grid.child_map(0)
    with pytest.raises(TypeError, match="target must be a Grid, got int"):
        grid.child_map(2, 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="target must have the batch size of this grid, 2, got 3"):
        grid.child_map(2, Grid.full(0, 4, batch_size=3, voxel_size=2))
    with pytest.raises(ValueError, match=r"target must have \(2, 2, 2\) times the voxel_size of the fine grid, .* got"):
        grid.child_map(2, grid)
    with pytest.raises(ValueError, match=r"target must have \(2, 2, 2\) times the voxel_size of the fine grid, .* got"):
        grid.child_map(2, Grid.full(0, 2, batch_size=2, voxel_size=2.001))
    with pytest.raises(ValueError, match="target must be on the device of this grid, cpu, got meta"):
        grid.child_map(2, grid.coarsen(2).to("meta"))
    grid.child_map(2, Grid.full(0, 2, batch_size=2, voxel_size=2.00001))  # as rounding in a file would have it
