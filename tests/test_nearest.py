"""The nearest voxel of a point, against all distances."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsevox.grid import Grid
from sparsevox.reference import nearest
from sparsevox.reference.bricks import build_bricks
from sparsevox.reference.nearest import nearest_rows
from sparsevox.testing import row_order
from tests.definitions.nearest import nearest_row

cKDTree = pytest.importorskip("scipy.spatial", reason="an oracle").cKDTree

UNIT = (1.0, 1.0, 1.0)


def z_order(coords):
    """Distinct coordinates in row order."""
    return row_order(set(map(tuple, coords)))


def find(points, batch, coords, batch_size, voxel_size=UNIT):
    bricks = build_bricks(torch.tensor(coords, dtype=torch.int64).reshape(-1, 4), batch_size)
    points = torch.tensor(np.array(points, dtype=float)).reshape(-1, 3)
    rows = nearest_rows(points, torch.tensor(batch, dtype=torch.int64), *bricks, list(voxel_size))
    assert rows.dtype == torch.int64
    return rows.numpy()


def check(points, batch, coords, batch_size, voxel_size=UNIT):
    rows = np.array(z_order(coords), dtype=np.int64).reshape(-1, 4)
    expected = [nearest_row(p, b, rows, voxel_size) for p, b in zip(points, batch, strict=True)]
    np.testing.assert_array_equal(find(points, batch, coords, batch_size, voxel_size), expected)


@st.composite
def clouds(draw):
    """Voxels in up to three clusters in three items, one of which may be empty, and the centers of the clusters."""
    centers = draw(st.lists(st.tuples(*[st.sampled_from((0, -5, 40, 1000, -(2**17) + 9, 2**17 - 9))] * 3), min_size=1))
    near = st.integers(-8, 8)
    one = st.tuples(st.integers(0, 2), st.sampled_from(centers), near, near, near)
    rows = draw(st.lists(one, max_size=60))
    return [(b, c[0] + i, c[1] + j, c[2] + k) for b, c, i, j, k in rows], centers


@st.composite
def questions(draw, centers):
    """Points on voxel centers, half way between two, anywhere near, and anywhere at all; and their items."""
    half = st.integers(-20, 20).map(lambda n: n / 2)
    offset = draw(st.sampled_from((half, st.floats(-12, 12), st.floats(-1e6, 1e6))))
    one = st.tuples(st.integers(-1, 3), st.sampled_from(centers), st.tuples(offset, offset, offset))
    rows = draw(st.lists(one, min_size=1, max_size=20))
    return [[a + b for a, b in zip(c, o, strict=True)] for _, c, o in rows], [b for b, _, _ in rows]


sizes = st.sampled_from((UNIT, (0.25, 0.25, 0.25), (1.0, 3.0, 0.5), (0.1, 0.07, 0.3), (1e-3, 10.0, 1.0)))


@given(st.data(), clouds(), sizes)
def test_agrees_with_all_distances(data, cloud, voxel_size):
    coords, centers = cloud
    points, batch = data.draw(questions(centers))
    check(points, batch, coords, 3, voxel_size)


@pytest.mark.parametrize("voxel_size", [UNIT, (0.3, 0.2, 0.7)])
def test_many_points_and_voxels_in_several_items(voxel_size):
    rng = np.random.default_rng(0)
    coords = np.concatenate([rng.integers(0, 5, (3000, 1)), rng.integers(-40, 40, (3000, 3))], 1)
    coords = coords[coords[:, 0] != 2]
    points, batch = rng.uniform(-60, 60, (500, 3)), rng.integers(0, 5, 500)
    check(points, batch, coords.tolist(), 5, voxel_size)
    check(points.round(), batch, coords.tolist(), 5, voxel_size)


def test_every_voxel_is_its_own_nearest():
    rng = np.random.default_rng(1)
    voxels = z_order(np.concatenate([rng.integers(0, 2, (500, 1)), rng.integers(-9, 9, (500, 3))], 1).tolist())
    places = np.array(voxels)
    np.testing.assert_array_equal(find(places[:, 1:], places[:, 0], voxels, 2), np.arange(len(voxels)))


@pytest.mark.parametrize("shift", [(0.5, 0, 0), (0, 0.5, 0.5), (0.5, 0.5, 0.5)])
@pytest.mark.parametrize("base", [(0, 0, 0), (-1, -1, -1), (3, 3, 3), (15, -1, 63)])  # one brick, several
def test_a_tie_goes_to_the_lowest_row(shift, base):
    cube = [(0, *(np.array(base) + step)) for step in itertools.product((0, 1), repeat=3)]
    point = np.add(base, shift)
    tied = [v for v in cube if (abs(np.subtract(v[1:], point)) == shift).all()]
    assert len(tied) == 2 ** np.count_nonzero(shift)
    assert find(point, [0], cube, 1) == [min(z_order(cube).index(v) for v in tied)]


@pytest.mark.parametrize("edge", [0.1, 0.3, 1 / 3, 0.7])
def test_squares_are_summed_from_x_to_z(edge):
    """Voxels equally far but for the rounding, which depends on the order of the sum."""
    for steps in ((1, 2, 3), (1, 4, 6), (2, 5, 7), (3, 8, 9), (1, 5, 11), (4, 6, 13)):
        coords = [(0, *order) for order in itertools.permutations(steps)]
        check([(0, 0, 0)], [0], coords, 1, (edge, edge, edge))


def sphere(radius):
    places = np.stack(np.meshgrid(*[np.arange(-radius - 1, radius + 2)] * 3, indexing="ij"), -1).reshape(-1, 3)
    shell = places[abs(np.linalg.norm(places, axis=1) - radius) < 0.6]
    return np.concatenate([np.zeros((len(shell), 1), int), shell], 1)


def test_center_of_a_sphere():
    rng = np.random.default_rng(2)
    shell = sphere(25)
    points = np.concatenate([np.zeros((2, 3)), np.full((1, 3), 0.5), rng.uniform(-2, 2, (20, 3))])
    check(points, [0] * len(points), shell.tolist(), 1)


def test_voxels_that_are_all_equally_far():
    """Lattice points of one sphere: no bound tells one from the others."""
    places = np.stack(np.meshgrid(*[np.arange(-33, 34)] * 3, indexing="ij"), -1).reshape(-1, 3)
    shell = places[(places**2).sum(1) == 1089]
    coords = [(0, *p) for p in shell.tolist()]
    assert len(coords) > 50
    np.testing.assert_array_equal(find(np.zeros((1000, 3)), [0] * 1000, coords, 1), 0)


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e9])
def test_points_far_away(scale):
    rng = np.random.default_rng(3)
    points = rng.normal(0, scale, (50, 3))
    points[:6] = np.concatenate([np.eye(3), -np.eye(3)]) * scale
    check(points, [0] * len(points), sphere(12).tolist(), 1)


def test_against_a_tree_of_scipy():
    rng = np.random.default_rng(4)
    shell = sphere(30)
    voxels = np.array(z_order(shell.tolist()))[:, 1:]
    points = rng.uniform(-45, 45, (5000, 3))
    rows = find(points, [0] * len(points), shell.tolist(), 1)
    distances, _ = cKDTree(voxels).query(points)
    np.testing.assert_allclose(np.linalg.norm(points - voxels[rows], axis=1), distances, rtol=1e-12)


@pytest.mark.parametrize(("pairs", "points"), [(1, 7), (16, 100), (1000, 1)])
def test_chunks_do_not_change_the_rows(monkeypatch, pairs, points):
    rng = np.random.default_rng(5)
    coords = np.concatenate([rng.integers(0, 3, (300, 1)), rng.integers(-20, 20, (300, 3))], 1).tolist()
    places, batch = rng.integers(-50, 50, (40, 3)) / 2, rng.integers(0, 3, 40)
    expected = find(places, batch, coords, 3)
    monkeypatch.setattr(nearest, "PAIRS", pairs)
    monkeypatch.setattr(nearest, "POINTS", points)
    np.testing.assert_array_equal(find(places, batch, coords, 3), expected)


@pytest.mark.parametrize("place", [(0, 0, 0), (-(2**17), 2**17 - 1, -1)])
def test_a_single_voxel_is_the_nearest_of_all_points(place):
    points = np.random.default_rng(6).normal(0, 1e5, (30, 3))
    np.testing.assert_array_equal(find(points, [0] * 30, [(0, *place)], 1), 0)


def test_the_first_and_the_last_item_of_the_largest_batch():
    coords = [(0, 5, 5, 5), (1023, -5, 0, 0), (1023, 9, 0, 0)]
    rows = find([[4.0, 0, 0]] * 4, [0, 1023, 1, 1024], coords, 1024)
    np.testing.assert_array_equal(rows, [0, 2, -1, -1])


def test_nothing_to_find_and_nothing_to_ask():
    assert find([[0.0, 0, 0]] * 3, [0, 1, 5], [], 2).tolist() == [-1, -1, -1]
    assert find([[0.0, 0, 0]], [0], [], 0).tolist() == [-1]
    assert find([], [], [(0, 1, 2, 3)], 1).shape == (0,)


# --- Grid.nearest


def test_grid_measures_in_world_units():
    coords = torch.tensor([[0, 0, 0, 4], [0, 3, 0, 0]])
    point = torch.tensor([[10.0, 20.0, 30.0]])  # where voxel (0, 0, 0) would be
    wide = Grid.from_coords(coords, voxel_size=(2.0, 1.0, 1.0), origin=(10, 20, 30))
    assert wide.coords[wide.nearest(point)].tolist() == [[0, 0, 0, 4]]
    cubic = Grid.from_coords(coords, voxel_size=2.0, origin=(10, 20, 30))
    assert cubic.coords[cubic.nearest(point)].tolist() == [[0, 3, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_grid_finds_its_own_centers(dtype):
    rng = np.random.default_rng(7)
    coords = torch.tensor(np.concatenate([rng.integers(0, 4, (200, 1)), rng.integers(-9, 9, (200, 3))], 1))
    grid = Grid.from_coords(coords, batch_size=5, voxel_size=0.5, origin=(1.0, -2.0, 0.25))
    points = grid.to_world(grid.ijk.double()).to(dtype)
    rows = torch.arange(grid.num_voxels)
    assert torch.equal(grid.nearest(points, grid.batch), rows)
    assert torch.equal(grid.nearest(points, grid.batch.int()), rows)
    assert torch.equal(grid.nearest(points[grid.batch == 0]), rows[grid.batch == 0])
    assert (grid.nearest(points, torch.full_like(grid.batch, 4)) == -1).all()


def test_grid_names_what_is_wrong_with_the_points():
    grid = Grid.from_coords(torch.tensor([[0, 0, 0, 0]]))
    with pytest.raises(ValueError, match="points"):
        grid.nearest(torch.zeros(3))
    with pytest.raises(TypeError, match="points"):
        grid.nearest(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match="points"):
        grid.nearest([[0.0, 0.0, 0.0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch"):
        grid.nearest(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(TypeError, match="batch"):
        grid.nearest(torch.zeros(2, 3), torch.zeros(2))
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match=r"points.*finite"):
            grid.nearest(torch.tensor([[0.0, 0.0, 0.0], [0.0, bad, 0.0]]))
