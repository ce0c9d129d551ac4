"""Coarsening, subdivision, set operations, pruning, cropping: definition, reference, kernels."""

import operator
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsevox import Grid, morton
from sparsevox.morton import Bricks
from sparsevox.reference import topology as reference
from sparsevox.reference.bricks import build_bricks
from sparsevox.testing import LIMIT, Voxel, VoxelSet, as_coords, row_order, voxel_sets
from tests.definitions import topology as definition


@pytest.fixture
def kernels() -> Any:
    return pytest.importorskip("sparsevox.kernels.topology", reason="kernels need Triton")


factors = st.one_of(
    st.sampled_from([2, 4, 8, 16, 1 << 17]),
    st.integers(3, 7),
    st.tuples(*[st.integers(1, 5)] * 3),
    st.just((2, 2, 1)),
)
small_factors = st.one_of(st.sampled_from([2, 4, 8]), st.just(3), st.tuples(*[st.integers(1, 3)] * 3))
OPS = {"or": operator.or_, "and": operator.and_, "sub": operator.sub, "xor": operator.xor}


def grid_of(data: VoxelSet) -> Grid:
    return Grid.from_coords(as_coords(data.voxels), batch_size=data.batch_size)


def assert_holds(grid: Grid, voxels: AbstractSet[Voxel]) -> None:
    assert [tuple(v) for v in grid.coords.tolist()] == row_order(voxels)


def triple(factor: int | tuple[int, int, int]) -> tuple[int, int, int]:
    return (factor, factor, factor) if isinstance(factor, int) else factor


@given(voxel_sets(), factors)
def test_coarsen(data: VoxelSet, factor: int | tuple[int, int, int]) -> None:
    assert_holds(grid_of(data).coarsen(factor), definition.coarsen(data.voxels, triple(factor)))


@given(voxel_sets(max_voxels=30, limits=False), small_factors, st.data())
def test_subdivide(data: VoxelSet, factor: int | tuple[int, int, int], draw: st.DataObject) -> None:
    grid, f = grid_of(data), triple(factor)
    assert_holds(grid.subdivide(factor), definition.subdivide(data.voxels, f))
    rows = row_order(data.voxels)
    keep = draw.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    kept = definition.subdivide(definition.prune(rows, keep), f)
    assert_holds(grid.subdivide(factor, torch.tensor(keep, dtype=torch.bool)), kept)


@given(voxel_sets(max_voxels=60, limits=False), st.integers(0, 1 << 20))
def test_subdivide_to_chosen_children(data: VoxelSet, seed: int) -> None:
    rows = row_order(data.voxels)
    keep = torch.rand(len(rows), 8, generator=torch.Generator().manual_seed(seed)) < 0.3
    children = [child for voxel in rows for child in definition.children(voxel, (2, 2, 2))]
    assert_holds(grid_of(data).subdivide(2, keep), definition.prune(children, keep.flatten().tolist()))


@given(voxel_sets(max_voxels=30, limits=False), small_factors)
def test_coarsen_inverts_subdivide(data: VoxelSet, factor: int | tuple[int, int, int]) -> None:
    grid = grid_of(data)
    assert grid.subdivide(factor).coarsen(factor).same_voxels(grid)


@given(voxel_sets(), voxel_sets(), st.integers(0, 5), st.sampled_from(list(OPS)))
def test_set_operations(a: VoxelSet, b: VoxelSet, shared: int, name: str) -> None:
    size = max(a.batch_size, b.batch_size)
    left, right = set(a.voxels), set(b.voxels) | set(row_order(a.voxels)[::shared] if shared else [])
    grids = [Grid.from_coords(as_coords(s), batch_size=size) for s in (left, right)]
    assert_holds(OPS[name](*grids), OPS[name](left, right))


@given(voxel_sets(), st.integers(0, 1 << 20))
def test_prune(data: VoxelSet, seed: int) -> None:
    rows = row_order(data.voxels)
    keep = torch.rand(len(rows), generator=torch.Generator().manual_seed(seed)) < 0.5
    assert_holds(grid_of(data).prune(keep), definition.prune(rows, keep.tolist()))


@given(voxel_sets(), st.data())
def test_crop(data: VoxelSet, draw: st.DataObject) -> None:
    near = st.sampled_from(sorted({c for v in data.voxels for c in v[1:]} | {0}))
    bound = st.one_of(near, near.map(lambda c: c + 3), st.integers(-(1 << 40), 1 << 40))
    pairs = [sorted(draw.draw(st.tuples(bound, bound))) for _ in range(3)]
    lower, upper = [p[0] for p in pairs], [p[1] for p in pairs]
    assert_holds(grid_of(data).crop(lower, upper), definition.crop(data.voxels, lower, upper))


@given(st.integers(1, 3), st.tuples(*[st.integers(-9, 9)] * 3), st.tuples(*[st.integers(0, 7)] * 3))
def test_full(batch_size: int, lower: tuple[int, ...], size: tuple[int, ...]) -> None:
    upper = tuple(a + s for a, s in zip(lower, size, strict=True))
    expected = {(b, *ijk) for ijk in definition.box(lower, upper) for b in range(batch_size)}
    assert_holds(Grid.full(lower, upper, batch_size=batch_size), expected)


def test_full_reaches_the_corners_of_the_range() -> None:
    assert Grid.full(-LIMIT, 3 - LIMIT).num_voxels == 27
    assert_holds(Grid.full(LIMIT - 1, LIMIT), {(0, LIMIT - 1, LIMIT - 1, LIMIT - 1)})


def test_kernels_equal_reference(bricks: Bricks, agree: Callable[..., Any]) -> None:
    keys, masks, starts, offsets, rows = bricks
    random = torch.Generator().manual_seed(0)
    keep = (torch.rand(rows.shape[0], generator=random) < 0.4).to(keys.device)
    chosen = (torch.rand(rows.shape[0], 8, generator=random) < 0.3).to(keys.device)
    for level in (1, 2, 3, 5):
        agree("topology", "coarsen_bricks", keys, masks, offsets, level)
    few = keep & (keep.cumsum(0) < 30)
    for level, mask in ((1, None), (1, keep), (1, chosen), (2, keep), (3, few)):
        agree("topology", "subdivide_bricks", keys, masks, starts, offsets, rows, level, mask)
    pruned = agree("topology", "prune_bricks", keys, masks, starts, offsets, keep)
    moved = Bricks(*agree("morphology", "dilate_bricks", keys, masks, offsets, [0, 1, 0], [0, 1, 0]))
    for op in OPS:
        agree("topology", "combine_bricks", keys, masks, moved.keys, moved.masks, offsets, op)
        agree("topology", "combine_bricks", pruned[0], pruned[1], keys, masks, offsets, op)
    agree("topology", "crop_bricks", keys, masks, offsets, [-3, -4, 1], [6, 5, 9])
    agree("topology", "crop_bricks", keys, masks, offsets, [-LIMIT] * 3, [LIMIT] * 3)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_children_out_of_range_name_the_first_voxel(level: int, device: torch.device, kernels: Any) -> None:
    edge = LIMIT >> level
    voxels = [(0, 0, 0, 0), (0, edge - 1, 0, 0), (0, edge, 0, 0), (1, 0, -edge - 1, 0), (1, 0, -edge, 0)]
    bricks = [t.to(device) for t in build_bricks(as_coords(voxels), 2)]
    keep = torch.tensor([True, True, False, True, True], device=device)
    assert row_order(voxels)[2] == (0, edge, 0, 0)
    assert row_order(voxels)[3] == (1, 0, -edge - 1, 0)
    for module in (reference, kernels):
        for mask, expected in ((None, 2), (keep, 3)):
            with pytest.raises(morton.VoxelError) as error:
                module.subdivide_bricks(*bricks, level, mask)
            assert error.value.index == expected
        module.subdivide_bricks(*bricks, level, torch.tensor([True, True, False, False, True], device=device))
