"""Grid through its public names, against Python sets and NumPy in float64."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsevox import Grid
from sparsevox.testing import LIMIT, Voxel, VoxelSet, as_coords, random_batch, row_order, shuffled, voxel_sets
from tests.definitions.voxelize import containing, enclosing
from tests.goldens import GoldenFile

INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CORNERS = list(itertools.product((0, 1), repeat=3))
Triple = tuple[float, float, float]
Index3 = tuple[int, int, int]

batches = voxel_sets()
inner_batches = voxel_sets(limits=False)
factors = st.one_of(st.integers(1, 5), st.sampled_from([8, 16]), st.tuples(*[st.integers(1, 4)] * 3))
small = st.tuples(*[st.integers(-9, 9)] * 3)
# Exact in float32 too, so that points often lie on the faces between voxels.
dyadic_points = st.lists(st.tuples(*[st.integers(-4000, 4000).map(lambda n: n / 64)] * 3), max_size=30)
dyadic_sizes = st.tuples(*[st.sampled_from([0.25, 0.5, 1.0, 2.0])] * 3)
dyadic_origins = st.tuples(*[st.integers(-32, 32).map(lambda n: n / 16)] * 3)


def make(case: VoxelSet, voxel_size: float | Triple = 1.0, origin: float | Triple = 0.0) -> Grid:
    coords = as_coords(case.voxels)
    return Grid.from_coords(coords, batch_size=case.batch_size, voxel_size=voxel_size, origin=origin)


def rows(grid: Grid) -> list[Voxel]:
    return [(b, i, j, k) for b, i, j, k in grid.coords.tolist()]


def item_of(case: VoxelSet, item: int) -> VoxelSet:
    return VoxelSet(frozenset((0, x, y, z) for b, x, y, z in case.voxels if b == item), 1)


def triple(factor: int | Index3) -> Index3:
    return (factor, factor, factor) if isinstance(factor, int) else factor


def assert_equal(grid: Grid, other: Grid) -> None:
    assert rows(grid) == rows(other)
    assert grid.same_voxels(other)
    assert torch.equal(grid.offsets, other.offsets)
    assert (grid.voxel_size, grid.origin) == (other.voxel_size, other.origin)


@pytest.fixture
def grid() -> Grid:
    return make(random_batch(seed=3, batch_size=4), voxel_size=(0.5, 1.0, 0.25), origin=(0.1, -0.2, 7.0))


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@given(batches)
def test_attributes(case: VoxelSet) -> None:
    grid, expected = make(case), row_order(case.voxels)
    assert rows(grid) == expected
    assert grid.coords.shape == (len(expected), 4)
    assert grid.coords.dtype == grid.ijk.dtype == torch.int32
    assert torch.equal(grid.ijk, grid.coords[:, 1:])
    assert grid.batch.tolist() == [v[0] for v in expected]
    counts = [sum(v[0] == b for v in expected) for b in range(case.batch_size)]
    assert grid.offsets.tolist() == [0, *itertools.accumulate(counts)]
    assert grid.batch.dtype == grid.offsets.dtype == torch.int64
    assert grid.num_voxels == len(expected)
    assert grid.num_bricks == len({(b, x >> 2, y >> 2, z >> 2) for b, x, y, z in expected})
    assert grid.batch_size == len(grid) == case.batch_size
    assert grid.device == torch.device("cpu")


@given(st.data())
def test_order_and_duplicates_of_coordinates_do_not_matter(data: st.DataObject) -> None:
    case = data.draw(batches)
    mixed = Grid.from_coords(as_coords(data.draw(shuffled(case.voxels))), batch_size=case.batch_size)
    assert_equal(mixed, make(case))
    assert all(torch.equal(a, b) for a, b in zip(mixed.bricks, make(case).bricks, strict=True))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_every_integer_dtype_builds_and_asks(dtype: torch.dtype, random: torch.Generator) -> None:
    coords = torch.randint(0 if dtype == torch.uint8 else -9, 100, (50, 3), generator=random).to(dtype)
    grid = Grid.from_coords(coords)
    assert set(rows(grid)) == {(0, i, j, k) for i, j, k in coords.tolist()}
    assert torch.equal(grid.ijk[grid.index(coords)].long(), coords.long())
    assert grid.index(torch.full((1, 3), 101, dtype=dtype)).tolist() == [-1]


@given(voxel_sets(max_batch=1))
def test_three_columns_are_batch_item_0(case: VoxelSet) -> None:
    grid, ijk = make(case), as_coords(case.voxels)[:, 1:]
    assert_equal(Grid.from_coords(ijk), grid)
    assert torch.equal(grid.index(ijk), grid.index(as_coords(case.voxels)))


def test_batch_size_is_the_largest_index_plus_one_unless_given() -> None:
    coords = torch.tensor([[3, 0, 0, 0], [1, 5, 5, 5]])
    assert Grid.from_coords(coords).offsets.tolist() == [0, 0, 1, 1, 2]
    assert Grid.from_coords(coords, batch_size=4).offsets.tolist() == [0, 0, 1, 1, 2]
    assert Grid.from_coords(coords, batch_size=6).offsets.tolist() == [0, 0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("columns", [3, 4])
@pytest.mark.parametrize("batch_size", [None, 0, 1, 5])
def test_no_coordinates(columns: int, batch_size: int | None) -> None:
    grid = Grid.from_coords(torch.empty(0, columns, dtype=torch.int64), batch_size=batch_size)
    assert grid.batch_size == (1 if batch_size is None else batch_size)
    assert grid.num_voxels == grid.num_bricks == 0
    assert grid.coords.shape == (0, 4)


def test_the_whole_range_is_legal() -> None:
    ijk = itertools.product((-LIMIT, -1, 0, LIMIT - 1), repeat=3)
    ends = [(b, x, y, z) for x, y, z in ijk for b in (1023, 0)]
    assert rows(Grid.from_coords(as_coords(ends))) == row_order(ends)
    for lower in (-LIMIT, LIMIT - 2):
        dense = Grid.from_dense(torch.ones(1, 2, 2, 2, dtype=torch.bool), lower=lower)
        assert rows(dense) == [(0, lower + x, lower + y, lower + z) for x, y, z in CORNERS]


def test_strides_of_coordinates_do_not_matter() -> None:
    coords = as_coords(random_batch(5, 2).voxels)
    expected = Grid.from_coords(coords)
    assert_equal(Grid.from_coords(coords.t().contiguous().t()), expected)
    assert_equal(Grid.from_coords(coords.repeat_interleave(2, 0)[::2]), expected)


def test_a_transform_is_two_triples_of_floats() -> None:
    coords = torch.zeros(1, 3, dtype=torch.int64)
    default, scalar = Grid.from_coords(coords), Grid.from_coords(coords, voxel_size=2, origin=-1)
    each = Grid.from_coords(coords, voxel_size=[1, 2, 3], origin=(0.5, 0, -0.5))
    assert (default.voxel_size, default.origin) == ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    assert (scalar.voxel_size, scalar.origin) == ((2.0, 2.0, 2.0), (-1.0, -1.0, -1.0))
    assert (each.voxel_size, each.origin) == ((1.0, 2.0, 3.0), (0.5, 0.0, -0.5))
    assert all(type(v) is float for g in (default, scalar, each) for v in (*g.voxel_size, *g.origin))


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_point_on_a_face_belongs_to_the_upper_voxel(dtype: torch.dtype) -> None:
    xs = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], dtype=dtype)
    points = torch.stack([xs, torch.zeros_like(xs), torch.zeros_like(xs)], 1)
    assert [v[1] for v in rows(Grid.from_points(points, voxel_size=1.0))] == [-2, -1, 0, 1, 2, 3]


@given(dyadic_points, dyadic_sizes, dyadic_origins, st.sampled_from([torch.float32, torch.float64]))
def test_both_rules_for_points(points: list[Triple], size: Triple, origin: Triple, dtype: torch.dtype) -> None:
    tensor = torch.tensor(points, dtype=dtype).reshape(-1, 3)
    places = ((np.array(points).reshape(-1, 3) - origin) / np.array(size)).tolist()
    grid = Grid.from_points(tensor, voxel_size=size, origin=origin)
    assert (grid.voxel_size, grid.origin) == (size, origin)
    assert rows(grid) == row_order((0, *ijk) for ijk in containing(places))
    grid = Grid.from_points(tensor, voxel_size=size, origin=origin, mode="enclosing")
    assert rows(grid) == row_order((0, *ijk) for ijk in enclosing(places))


@pytest.mark.parametrize(("mode", "name"), [("containing", "points"), ("enclosing", "nearest_voxels")])
def test_grids_of_points_are_those_of_fvdb(mode: Any, name: str) -> None:
    file = GoldenFile("fvdb_ops")
    grid = Grid.from_points(file["splat/points"], file["splat/points_batch"], voxel_size=0.1, origin=0.05, mode=mode)
    assert grid.same_voxels(Grid.from_coords(file[f"grid_from_{name}/coords"]))


def test_world_to_grid_is_a_division_in_float64(random: torch.Generator) -> None:
    points = (torch.randn(4000, 3, generator=random) * 10).requires_grad_()
    size, origin = (0.1, 0.3, 0.7), (0.05, -0.15, 0.35)
    at = (points.detach().numpy().astype(np.float64) - origin) / np.array(size)
    grid = Grid.from_points(points, voxel_size=size, origin=origin)
    assert np.array_equal(grid.to_ijk(points.detach()).numpy(), at)
    assert set(rows(grid)) == {(0, int(x), int(y), int(z)) for x, y, z in np.floor(at + 0.5)}


def test_lower_is_the_corner_of_voxel_0() -> None:
    points = torch.tensor([[-2.0, 1.0, 0.25], [-1.5, 1.99, 0.4], [2.0, 3.0, -0.01]])
    grid = Grid.from_points(points, voxel_size=(0.5, 1.0, 0.25), lower=(-2.0, 1.0, 0.25))
    assert grid.origin == (-1.75, 1.5, 0.375)
    assert set(rows(grid)) == {(0, 0, 0, 0), (0, 1, 0, 0), (0, 8, 2, -2)}


@pytest.mark.parametrize("mode", ["containing", "enclosing"])
def test_points_of_a_batch(mode: Any, random: torch.Generator) -> None:
    points, batch = torch.randn(60, 3, generator=random), torch.randint(0, 3, (60,), generator=random)
    grid = Grid.from_points(points, batch.to(torch.int16), voxel_size=0.5, batch_size=5, mode=mode)
    assert grid.batch_size == 5
    for item in range(5):
        assert_equal(grid[item], Grid.from_points(points[batch == item], voxel_size=0.5, mode=mode))
    assert Grid.from_points(points, batch, voxel_size=0.5, mode=mode).batch_size == 3
    assert Grid.from_points(points[:0], batch[:0], voxel_size=1.0, batch_size=3, mode=mode).batch_size == 3


def test_points_at_the_ends_of_the_range() -> None:
    ends = torch.tensor([[-LIMIT - 0.5] * 3, [LIMIT - 1.0] * 3], dtype=torch.float64)
    assert rows(Grid.from_points(ends, voxel_size=1.0)) == [(0, *[-LIMIT] * 3), (0, *[LIMIT - 1] * 3)]
    enclosing = Grid.from_points(ends + torch.tensor([[0.5], [-1.0]]), voxel_size=1.0, mode="enclosing")
    assert [b.tolist() for b in enclosing.bounds()] == [[[-LIMIT] * 3], [[LIMIT] * 3]]


@given(st.tuples(*[st.integers(0, 6)] * 4), small, st.integers(0, 1 << 16))
def test_from_dense(shape: tuple[int, ...], lower: Index3, seed: int) -> None:
    mask = np.random.default_rng(seed).random(shape) < 0.4
    grid = Grid.from_dense(torch.from_numpy(mask), lower=lower, voxel_size=2.0, origin=3.0)
    expected = [(b, x + lower[0], y + lower[1], z + lower[2]) for b, x, y, z in np.argwhere(mask).tolist()]
    assert rows(grid) == row_order(expected)
    assert (grid.batch_size, grid.voxel_size, grid.origin) == (shape[0], (2.0,) * 3, (3.0,) * 3)
    assert_equal(Grid.from_dense(torch.from_numpy(mask.T.copy().T), lower=lower, voxel_size=2, origin=3), grid)


@given(small, st.tuples(*[st.integers(0, 7)] * 3), st.integers(0, 3))
def test_full(lower: Index3, size: Index3, batch_size: int) -> None:
    upper = tuple(a + n for a, n in zip(lower, size, strict=True))
    grid = Grid.full(lower, upper, batch_size=batch_size, voxel_size=0.5, origin=1.0)
    xs, ys, zs = (range(a, b) for a, b in zip(lower, upper, strict=True))
    assert rows(grid) == row_order(itertools.product(range(batch_size), xs, ys, zs))
    assert (grid.batch_size, grid.voxel_size, grid.origin) == (batch_size, (0.5,) * 3, (1.0,) * 3)


def test_full_takes_ints_and_reaches_both_ends_of_the_range() -> None:
    assert Grid.full(-1, 2).num_voxels == 27
    line = Grid.full((-LIMIT, 0, 0), (LIMIT, 1, 1))
    assert line.num_voxels == 2 * LIMIT
    assert [b.tolist() for b in line.bounds()] == [[[-LIMIT, 0, 0]], [[LIMIT, 1, 1]]]


@pytest.mark.parametrize("batch_size", [0, 1, 3, 1024])
def test_empty(batch_size: int) -> None:
    grid = Grid.empty(batch_size, voxel_size=0.5, origin=2.0)
    assert (grid.batch_size, grid.voxel_size, grid.origin) == (batch_size, (0.5,) * 3, (2.0,) * 3)
    assert_equal(grid, Grid.from_coords(grid.coords, batch_size=batch_size, voxel_size=0.5, origin=2.0))
    assert len(list(grid)) == grid[:].batch_size == batch_size
    assert grid.index(torch.zeros(2, 4, dtype=torch.int32)).tolist() == [-1, -1]
    assert grid.index(grid.coords).shape == (0,)


@given(st.lists(voxel_sets(max_voxels=40), min_size=1, max_size=4))
def test_stack_is_along_the_batch(cases: list[VoxelSet]) -> None:
    firsts = [0, *itertools.accumulate(case.batch_size for case in cases)]
    expected = {(b + a, x, y, z) for a, case in zip(firsts, cases, strict=False) for b, x, y, z in case.voxels}
    stacked = Grid.stack([make(case, 0.5, 1.0) for case in cases])
    assert_equal(stacked, make(VoxelSet(frozenset(expected), firsts[-1]), 0.5, 1.0))


@given(voxel_sets(max_batch=4))
def test_items_of_a_batch(case: VoxelSet) -> None:
    grid = make(case, (0.5, 1.0, 2.0), 3.0)
    for index, iterated in enumerate(grid):
        expected = make(item_of(case, index), (0.5, 1.0, 2.0), 3.0)
        for item in (iterated, grid[index], grid[index - case.batch_size], grid[index : index + 1]):
            assert_equal(item, expected)
    assert_equal(Grid.stack(list(grid)), grid)


@pytest.mark.parametrize("start", [None, -5, -2, 0, 1, 3, 4, 9])
@pytest.mark.parametrize("stop", [None, -5, -2, 0, 1, 3, 4, 9])
def test_slices_of_a_batch(grid: Grid, start: int | None, stop: int | None) -> None:
    chosen, part = list(range(4))[start:stop], grid[start:stop]
    assert rows(part) == [(v[0] - chosen[0], *v[1:]) for v in rows(grid) if v[0] in chosen]
    assert part.batch_size == len(chosen)
    assert (part.voxel_size, part.origin) == (grid.voxel_size, grid.origin)
    assert torch.equal(part.index(part.coords), torch.arange(part.num_voxels))


@given(batches, batches)
def test_index_and_contains(case: VoxelSet, other: VoxelSet) -> None:
    grid, row = make(case), {voxel: n for n, voxel in enumerate(row_order(case.voxels))}
    near = [(b, x + dx, y, z + dz) for b, x, y, z in list(row)[:20] for dx in (-1, 1) for dz in (0, 4)]
    asked = [*row, *other.voxels, *near]
    assert grid.index(as_coords(asked)).tolist() == [row.get(voxel, -1) for voxel in asked]
    assert grid.index(as_coords(asked, torch.int32)).dtype == torch.int64
    assert grid.contains(as_coords(asked)).tolist() == [voxel in row for voxel in asked]


@pytest.mark.parametrize("far", [LIMIT, 2 * LIMIT, 1 << 31, 1 << 40, (1 << 62) + 1, (1 << 63) - 1])
@pytest.mark.parametrize("column", range(4))
def test_coordinates_out_of_range_are_absent(far: int, column: int) -> None:
    grid = Grid.from_coords(as_coords([(0, 0, 0, 0), (0, -LIMIT, -LIMIT, -LIMIT), (1, 1, 1, 1)]))
    asked = torch.zeros(2, 4, dtype=torch.int64)
    asked[:, column] = torch.tensor([far, -far - 1])
    assert grid.index(asked).tolist() == [-1, -1]


@given(batches)
def test_bounds(case: VoxelSet) -> None:
    lower, upper = make(case).bounds()
    assert lower.dtype == upper.dtype == torch.int32
    for b in range(case.batch_size):
        axes = list(zip(*(v[1:] for v in case.voxels if v[0] == b), strict=True))
        assert lower[b].tolist() == ([min(axis) for axis in axes] or [0, 0, 0])
        assert upper[b].tolist() == ([max(axis) + 1 for axis in axes] or [0, 0, 0])


@given(voxel_sets(max_batch=2), voxel_sets(max_batch=2))
def test_same_voxels(case: VoxelSet, other: VoxelSet) -> None:
    assert make(case).same_voxels(make(other)) == (case == other)
    assert make(case).same_voxels(make(case, voxel_size=3.0, origin=1.0))
    assert not make(case).same_voxels(make(VoxelSet(case.voxels, case.batch_size + 1)))
    assert not Grid.full(0, 1).same_voxels(Grid.full((0, 0, 1), (1, 1, 2)))


def test_the_position_of_a_voxel_is_its_center(grid: Grid) -> None:
    expected = np.array(grid.origin) + np.array(grid.voxel_size) * grid.ijk.numpy().astype(np.float64)
    np.testing.assert_allclose(grid.to_world(grid.ijk.double()).numpy(), expected, rtol=1e-15)
    np.testing.assert_allclose(grid.to_world(grid.ijk).numpy(), expected, rtol=1e-6)
    assert grid.to_world(grid.ijk).dtype == torch.float32


@pytest.mark.parametrize("shape", [(3,), (0, 3), (5, 3), (2, 4, 3)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_to_the_world_and_back(grid: Grid, shape: tuple[int, ...], dtype: torch.dtype, random: torch.Generator) -> None:
    ijk = (torch.randn(shape, dtype=torch.float64, generator=random) * 100).to(dtype)
    world, back = grid.to_world(ijk), grid.to_ijk(grid.to_world(ijk))
    assert (world.shape, world.dtype) == (shape, dtype)
    assert (back.shape, back.dtype) == (shape, torch.float64)
    torch.testing.assert_close(back, ijk.double(), rtol=0, atol=1e4 * torch.finfo(dtype).eps)


def test_positions_are_differentiable(grid: Grid) -> None:
    points = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(grid.to_world, points)
    assert torch.autograd.gradcheck(grid.to_ijk, points)


@given(inner_batches)
def test_centers_give_the_grid_back(case: VoxelSet) -> None:
    size, origin = (0.1, 0.2, 0.7), (0.03, -5.0, 100.0)
    grid = make(case, size, origin)
    points = grid.to_world(grid.ijk.double())
    again = Grid.from_points(points, grid.batch, voxel_size=size, origin=origin, batch_size=grid.batch_size)
    assert_equal(again, grid)


@given(inner_batches, factors, dyadic_sizes, dyadic_origins)
def test_a_coarse_voxel_is_at_the_centroid_of_its_block(
    case: VoxelSet, factor: int | Index3, size: Triple, origin: Triple
) -> None:
    grid, f = make(case, size, origin), triple(factor)
    coarse = grid.coarsen(factor)
    assert coarse.voxel_size == tuple(edge * n for edge, n in zip(size, f, strict=True))
    for voxel in coarse.ijk[:5]:
        spans = [range(c * n, c * n + n) for c, n in zip(voxel.tolist(), f, strict=True)]
        block = grid.to_world(torch.tensor(list(itertools.product(*spans)), dtype=torch.float64))
        torch.testing.assert_close(coarse.to_world(voxel.double()), block.mean(0), rtol=1e-12, atol=1e-12)


@given(voxel_sets(limits=False, max_voxels=20), factors)
def test_coarsen_inverts_subdivide(case: VoxelSet, factor: int | Index3) -> None:
    grid, f = make(case, (0.3, 0.1, 7.0), 0.2), triple(factor)
    fine = grid.subdivide(factor)
    assert fine.num_voxels == grid.num_voxels * f[0] * f[1] * f[2]
    assert fine.voxel_size == pytest.approx([edge / n for edge, n in zip(grid.voxel_size, f, strict=True)])
    again = fine.coarsen(factor)
    assert again.same_voxels(grid)
    assert again.voxel_size == pytest.approx(grid.voxel_size, rel=1e-14)
    assert again.origin == pytest.approx(grid.origin, rel=1e-13)


def test_the_corner_of_voxel_0_stays_where_it_is() -> None:
    grid = Grid.from_points(torch.zeros(1, 3), voxel_size=(0.1, 0.2, 0.4), lower=(1.0, 2.0, 3.0))
    for other in (grid.coarsen((2, 3, 5)), grid.coarsen(8).coarsen(3), grid.subdivide((2, 3, 5))):
        corner = other.to_world(torch.full((3,), -0.5, dtype=torch.float64)).tolist()
        assert corner == pytest.approx([1.0, 2.0, 3.0], rel=1e-13)


# Voxels at depth d of XCube's hash tree are 2^d wide, and voxel 0 is the first block. In their coordinates the center
# of the fine voxel i is (i + 1/2) / 2^d - 1/2. Early dilation takes the eight voxels whose centers enclose each of
# those points.


@pytest.mark.parametrize("depth", [1, 2, 3])
@given(case=inner_batches)
def test_early_dilation_is_the_enclosing_rule(depth: int, case: VoxelSet) -> None:
    early = make(case).coarsen(2 ** (depth - 1)).dilate(1).coarsen(2)
    below = [(b, *((2 * c + 1 - 2**depth) // 2 ** (depth + 1) for c in ijk)) for b, *ijk in case.voxels]
    assert rows(early) == row_order({(b, x + i, y + j, z + k) for b, x, y, z in below for i, j, k in CORNERS})


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_early_dilation_encloses_points_in_the_world(depth: int) -> None:
    size = 0.0025
    grid = make(random_batch(1, 3, kinds=("clustered", "planar", "linear")), size, size / 2)
    early = grid.coarsen(2 ** (depth - 1)).dilate(1).coarsen(2)
    assert early.voxel_size == pytest.approx([size * 2**depth] * 3)
    assert early.origin == pytest.approx([size * 2**depth / 2] * 3)
    transform: dict[str, Any] = {"voxel_size": early.voxel_size, "origin": early.origin}
    centers = grid.to_world(grid.ijk.double())
    assert_equal(Grid.from_points(centers, grid.batch, batch_size=3, mode="enclosing", **transform), early)
