"""Solids against membership and nearest points that share no code with them."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from xcube.data.hierarchy import Box, build_hierarchy
from xcube.procedural import surface
from xcube.procedural.poses import Lattice, Pose, rotation
from xcube.procedural.primitives import (
    Capsule,
    Cuboid,
    Ellipsoid,
    Extrusion,
    Frustum,
    Lathe,
    Torus,
    capsule,
    cuboid,
    prism,
    rod,
)
from xcube.procedural.solids import Difference, Intersection, Labeled, Solid, Union, union
from xcube.procedural.surface import voxelize_solid

STEP = 0.05
C20, S20 = math.cos(math.radians(20)), math.sin(math.radians(20))
AXIS = np.arange(-1.3, 1.3 + STEP / 2, STEP)
GRID = np.stack(np.meshgrid(AXIS, AXIS, AXIS, indexing="ij"), -1).reshape(-1, 3)
ELL = ((-0.5, -0.5), (0.6, -0.5), (0.6, 0.0), (0.0, 0.0), (0.0, 0.7), (-0.5, 0.7))


def in_ell(x, y):
    return ((x > -0.5) & (x < 0.6) & (y > -0.5) & (y < 0)) | ((x > -0.5) & (x < 0) & (y > -0.5) & (y < 0.7))


def radius(p):
    return np.hypot(p[:, 0], p[:, 1])


# Each primitive, and whether points are inside of it.
CASES: dict[str, tuple[Solid, Callable[[np.ndarray], Any]]] = {
    "block": (Cuboid((0.7, 0.4, 0.5)), lambda p: (abs(p) < (0.7, 0.4, 0.5)).all(1)),
    "ball": (Ellipsoid((0.8, 0.8, 0.8)), lambda p: (p**2).sum(1) < 0.64),
    "capsule": (
        Capsule(0.5, radius=0.4),
        lambda p: radius(p) ** 2 + np.maximum(abs(p[:, 2]) - 0.5, 0) ** 2 < 0.16,
    ),
    "cylinder": (Frustum(0.6, 0.6, 0.5), lambda p: (radius(p) < 0.6) & (abs(p[:, 2]) < 0.5)),
    "frustum": (Frustum(0.9, 0.3, 0.6), lambda p: (radius(p) < 0.6 - p[:, 2] / 2) & (abs(p[:, 2]) < 0.6)),
    "torus": (Torus(0.7, radius=0.3), lambda p: (radius(p) - 0.7) ** 2 + p[:, 2] ** 2 < 0.09),
    "extrusion": (Extrusion(ELL, 0.6), lambda p: in_ell(p[:, 0], p[:, 1]) & (abs(p[:, 2]) < 0.6)),
    "clockwise": (Extrusion(ELL[::-1], 0.6), lambda p: in_ell(p[:, 0], p[:, 1]) & (abs(p[:, 2]) < 0.6)),
    "lathe": (
        Lathe(((0.8, -0.6), (0.4, 0.0), (0.4, 0.5))),
        lambda p: (radius(p) < np.where(p[:, 2] < 0, 0.4 - p[:, 2] * 2 / 3, 0.4)) & (p[:, 2] > -0.6) & (p[:, 2] < 0.5),
    ),
    "ring": (
        Lathe(((0.4, -0.4), (0.9, -0.4), (0.9, 0.4), (0.4, 0.4)), ring=True),
        lambda p: (radius(p) > 0.4) & (radius(p) < 0.9) & (abs(p[:, 2]) < 0.4),
    ),
}


def clearance(inside: np.ndarray, points: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Distance of points to the nearest sample of the other side."""
    there = {side: cKDTree(GRID[inside == side]) for side in (False, True)}
    return np.where(own, there[False].query(points)[0], there[True].query(points)[0])


@pytest.mark.parametrize("name", CASES)
def test_distance_is_that_to_the_nearest_point_of_the_other_side(name: str) -> None:
    solid, member = CASES[name]
    points = np.random.default_rng(0).uniform(-1.2, 1.2, (400, 3))
    distance = solid.distance(torch.from_numpy(points)).numpy()
    own = member(points)
    clear = abs(distance) > 1e-9
    assert (own[clear] == (distance < 0)[clear]).all()
    # The nearest sample is beyond the surface by at most the diagonal of a cell.
    found = clearance(member(GRID), points, own)
    assert (found >= abs(distance) - 1e-9).all()
    assert (found <= abs(distance) + STEP * math.sqrt(3)).all()


def test_an_ellipsoid_is_never_further_than_it_says() -> None:
    solid = Ellipsoid((0.9, 0.5, 0.3))
    points = np.random.default_rng(0).uniform(-1.2, 1.2, (400, 3))
    distance = solid.distance(torch.from_numpy(points)).numpy()
    own = ((points / (0.9, 0.5, 0.3)) ** 2).sum(1) < 1
    assert (own == (distance < 0)).all()
    assert (clearance(((GRID / (0.9, 0.5, 0.3)) ** 2).sum(1) < 1, points, own) >= abs(distance)).all()


@pytest.mark.parametrize("name", CASES)
def test_bounds_hold_a_placed_primitive_and_are_tight_along_the_axes(name: str) -> None:
    solid, member = CASES[name]
    inside = GRID[member(GRID)]
    assert (inside >= solid.bounds[0]).all()
    assert (inside <= solid.bounds[1]).all()
    assert (inside.min(0) - solid.bounds[0] < 2 * STEP).all()
    turned = solid.turned("x", 30).turned("z", 50).moved(0.3, -0.2, 0.1)
    points = torch.from_numpy(np.random.default_rng(1).uniform(-2, 2, (20_000, 3)))
    found = points[turned.distance(points) < 0]
    low, high = (torch.tensor(corner) for corner in turned.bounds)
    assert len(found) > 100
    assert bool(((found >= low) & (found <= high)).all())


@given(
    st.sampled_from(sorted(CASES)),
    st.tuples(*(st.floats(-180, 180) for _ in range(3))),
    st.tuples(*(st.floats(-2, 2) for _ in range(3))),
    st.floats(0.1, 5),
)
def test_a_placed_solid_is_the_same_solid_elsewhere(name: str, angles, shift, factor: float) -> None:
    points = torch.from_numpy(np.random.default_rng(2).uniform(-1.2, 1.2, (40, 3)))
    solid = CASES[name][0]
    placed, moved = solid.scaled(factor), points * factor
    for axis, angle in zip("xyz", angles, strict=True):
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
        columns = list(moved.unbind(1))
        columns[i], columns[j] = c * moved[:, i] - s * moved[:, j], s * moved[:, i] + c * moved[:, j]
        placed, moved = placed.turned(axis, angle), torch.stack(columns, 1)
    placed, moved = placed.moved(*shift), moved + torch.tensor(shift, dtype=torch.float64)
    torch.testing.assert_close(placed.distance(moved), factor * solid.distance(points), rtol=1e-9, atol=1e-9)


def bored() -> Solid:
    """A block with a bore, a ball on it, and a corner cut off."""
    body = cuboid((-0.6, -0.5, -0.4), (0.6, 0.5, 0.4), 1, radius=0.05) - rod((0, 0, -1), (0, 0, 1), 0.2, None, 2)
    rest = cuboid((-0.5, -9, -9), (9, 9, 9), 4).turned("z", 20)
    return (body | Ellipsoid((0.3, 0.3, 0.3), part=3, pose=Pose(translation=(0.6, 0.5, 0.4)))) & rest


def test_set_operations_are_those_of_sets() -> None:
    a, b = CASES["block"][0], CASES["torus"][0]
    inside = {name: member(GRID) for name, (_, member) in CASES.items()}
    points = torch.from_numpy(GRID)
    away = (a.distance(points).abs() > 1e-9) & (b.distance(points).abs() > 1e-9)
    for solid, expected in (
        (a | b, inside["block"] | inside["torus"]),
        (a & b, inside["block"] & inside["torus"]),
        (a - b, inside["block"] & ~inside["torus"]),
    ):
        assert bool(((solid.distance(points) < 0).numpy() == expected)[away].all())


def test_distance_never_grows_faster_than_the_way() -> None:
    a, b = torch.from_numpy(np.random.default_rng(3).uniform(-1.5, 1.5, (2, 4000, 3)))
    b = a + 0.2 * b
    solid = bored()
    grown = (solid.distance(a) - solid.distance(b)).abs()
    assert bool((grown <= torch.linalg.vector_norm(a - b, dim=1) + 1e-12).all())


def test_labels_are_those_of_the_surface_that_is_there() -> None:
    solid = bored()
    cut = (-0.5 * C20 - 0.1 * S20, 0.1 * C20 - 0.5 * S20, 0.0)
    at = torch.tensor([(0.3, -0.5, 0.0), (0.2, 0.0, 0.0), (0.6, 0.5, 0.7), cut], dtype=torch.float64)
    assert float(solid.distance(at).abs().max()) < 1e-9
    assert solid.label(at + 1e-6).tolist() == [1, 2, 3, 4]
    one = Labeled(solid, 7)
    points = torch.from_numpy(GRID[::97])
    assert one.label(points).unique().tolist() == [7]
    assert torch.equal(one.distance(points), solid.distance(points))


def test_normals_look_away_from_the_surface() -> None:
    points = torch.from_numpy(np.random.default_rng(4).uniform(-1, 1, (100, 3)))
    ball = Ellipsoid((0.5, 0.5, 0.5), pose=Pose(translation=(0.1, 0.2, 0.3)))
    away = points - torch.tensor([0.1, 0.2, 0.3])
    expected = away / torch.linalg.vector_norm(away, dim=1, keepdim=True)
    torch.testing.assert_close(ball.normal(points), expected, atol=1e-6, rtol=0)
    leaning = Cuboid((0.5, 0.2, 0.9)).turned("x", 30)
    face = torch.tensor([[0.1, 0.2 * math.cos(math.pi / 6), 0.2 * math.sin(math.pi / 6)]])
    torch.testing.assert_close(leaning.normal(face), torch.tensor([[0, 0.8660254, 0.5]]).double(), atol=1e-6, rtol=0)
    exact = torch.linalg.vector_norm(CASES["lathe"][0].normal(points), dim=1)
    assert float((exact - 1).abs().max()) < 1e-9
    assert Ellipsoid((1.0, 1.0, 1.0)).normal(torch.zeros(1, 3)).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("solid", [bored(), union([case[0] for case in CASES.values()])], ids=["bored", "all"])
def test_a_lattice_has_the_side_everywhere_and_the_distance_near_the_surface(solid: Solid) -> None:
    solid = Labeled(solid.turned("y", 20), 3)
    lattice = Lattice.of((-13, -12, -11), (26, 25, 24), 0.1, torch.device("cpu"))
    x, y, z = (axis.reshape(-1) for axis in lattice.axes)
    expected = solid.distance(torch.cartesian_prod(x, y, z)).view(26, 25, 24)
    made = solid.lattice(lattice)
    clear = expected.abs() > 1e-9
    assert torch.equal((made < 0)[clear], (expected < 0)[clear])
    near = expected.abs() < 0.1
    assert int(near.sum()) > 500
    torch.testing.assert_close(made[near], expected[near], rtol=0, atol=1e-12)


def test_a_clipped_solid_is_the_same_in_its_box() -> None:
    solid = bored()
    points = torch.from_numpy(np.random.default_rng(5).uniform(0.3, 0.7, (500, 3)))
    clipped = solid.clipped(((0.3, 0.3, 0.3), (0.7, 0.7, 0.7)))
    assert clipped is not None
    assert torch.equal(clipped.distance(points) < 0, solid.distance(points) < 0)
    parts = Union((cuboid((0, 0, 0), (1, 1, 1)), cuboid((5, 0, 0), (6, 1, 1))))
    assert parts.clipped(((4, 0, 0), (7, 1, 1))) == parts.parts[1]
    assert parts.clipped(((2, 0, 0), (3, 1, 1))) is None
    cut = parts.parts[0] - parts.parts[1]
    assert cut.clipped(((0, 0, 0), (1, 1, 1))) == parts.parts[0]


def test_builders_put_primitives_where_they_say() -> None:
    points = torch.from_numpy(GRID)
    tilted = rod((-0.5, 0.2, -0.4), (0.7, -0.3, 0.6), 0.2)
    way = np.array([1.2, -0.5, 1.0])
    along = (GRID - (-0.5, 0.2, -0.4)) @ way / (way @ way)
    off = np.linalg.norm(GRID - (-0.5, 0.2, -0.4) - along[:, None] * way, axis=1)
    inside = (along > 0) & (along < 1) & (off < 0.2)
    assert ((tilted.distance(points) < 0).numpy() == inside).all()
    ends = capsule((0, 0, 0), (1, 0, 0), 0.1).distance(torch.tensor([[1.2, 0, 0], [-0.3, 0, 0], [0.5, 0.3, 0]]))
    torch.testing.assert_close(ends, torch.tensor([0.1, 0.2, 0.2]).double())
    for axis, (u, v, w) in {"x": (1, 2, 0), "y": (0, 2, 1), "z": (0, 1, 2)}.items():
        drawn = prism(ELL, axis, 0.1, 0.83)
        expected = in_ell(GRID[:, u], GRID[:, v]) & (GRID[:, w] > 0.1) & (GRID[:, w] < 0.83)
        clear = drawn.distance(points).abs() > 1e-9
        assert bool(((drawn.distance(points) < 0).numpy() == expected)[clear].all())
    low, high = cuboid((0, 0, 0), (1, 2, 3), radius=0.2).bounds
    assert [*low, *high] == pytest.approx([0, 0, 0, 1, 2, 3])


def test_a_quarter_turn_is_exact() -> None:
    assert rotation("z", 90).rotation == (0, -1, 0, 1, 0, 0, 0, 0, 1)
    assert rotation("y", -90).to_world((0.0, 0.0, 1.0)) == (-1, 0, 0)


# Voxels


def dense(solid: Solid, box: Box) -> set[tuple[int, int, int]]:
    """Voxels whose corners lie on both sides, one by one from the whole volume."""
    size, shape = box.voxel_size(-1), box.shape(-1)
    lines = [np.arange(-(n // 2), n - n // 2 + 1) for n in shape]
    corners = np.stack(np.meshgrid(*lines, indexing="ij"), -1)
    inside = (solid.distance(torch.from_numpy(corners.reshape(-1, 3) * size)) < 0).numpy().reshape(corners.shape[:3])
    eight = [inside[i : i + shape[0], j : j + shape[1], k : k + shape[2]] for i, j, k in product((0, 1), repeat=3)]
    crossed = np.any(eight, axis=0) & ~np.all(eight, axis=0)
    return {(i + lines[0][0], j + lines[1][0], k + lines[2][0]) for i, j, k in np.argwhere(crossed).tolist()}


@pytest.mark.parametrize("tile", [8, 13, 64])
def test_voxels_are_those_of_the_whole_volume(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surface, "TILE", tile)
    box = Box((8, 32), (1.0, 1.0, 0.75))
    for solid in (bored().scaled(0.5), bored().turned("x", 40).scaled(0.8), CASES["ring"][0].scaled(0.4)):
        made = voxelize_solid(solid, box)
        assert {tuple(row) for row in made.grid.ijk.tolist()} == dense(solid, box)
        centers = made.grid.to_world(made.grid.ijk)
        assert torch.equal(made.attributes["label"], solid.label(centers))
        assert float((torch.linalg.vector_norm(made.attributes["normal"], dim=1) - 1).abs().max()) < 1e-6


def test_normals_of_voxels_are_those_of_the_solid() -> None:
    ball = Ellipsoid((0.4, 0.4, 0.4))
    made = voxelize_solid(ball, Box((64,)))
    normal = ball.normal(made.grid.to_world(made.grid.ijk)).float()
    assert float((made.attributes["normal"] * normal).sum(1).min()) > 0.999
    # Between two walls in one voxel the distance has no slope over the voxel, and still there is a normal.
    sheet = cuboid((-0.3, -0.3, 0.249), (0.3, 0.3, 0.251))
    assert voxelize_solid(sheet, Box((32,))).num_voxels > 0
    thin = voxelize_solid(sheet.moved(z=0.001), Box((32,)))
    assert bool(torch.isfinite(thin.attributes["normal"]).all())


def test_levels_tiles_and_hierarchies_fit_together() -> None:
    box = Box((16, 128))
    solid = bored().scaled(0.5)
    coarse = voxelize_solid(solid, box, level=0)
    assert coarse.grid.voxel_size == (1 / 16,) * 3
    levels = build_hierarchy(voxelize_solid(solid, box), box)
    assert bool(levels[0].grid.contains(coarse.grid.ijk).all())
    nothing = voxelize_solid(solid.moved(5, 0, 0), box)
    assert nothing.num_voxels == 0
    assert nothing.attributes["normal"].shape == (0, 3)


# Errors


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: rotation("w", 1), "axis must be"),
        (lambda: Union(()), "parts must hold"),
        (lambda: Intersection(()), "parts must hold"),
        (lambda: Extrusion(((0, 0), (1, 0)), 1), "three vertices"),
        (lambda: Extrusion(((0, 0), (1, 0), (1, 0), (0, 1)), 1), "twice in a row"),
        (lambda: Lathe(((-1, 0), (1, 1), (0, 2))), "negative radius"),
        (lambda: cuboid((0, 0, 0), (1, 0, 1)), "upper must be more than"),
        (lambda: cuboid((0, 0, 0), (1, 1, 1), radius=0.5), "upper must be more than 1.0 above"),
        (lambda: prism(ELL, "w", 0, 1), "axis must be"),
        (lambda: prism(ELL, "z", 1, 1), "high must be more than"),
        (lambda: capsule((1, 1, 1), (1, 1, 1), 1), "end must differ"),
        (lambda: Torus(1).scaled(0), "factor must be positive"),
        (lambda: Torus(1).normal(torch.zeros(1, 3), step=0), "step must be positive"),
        (lambda: Torus(1).distance(torch.zeros(3)), "points must have shape"),
        (lambda: Torus(1).label(torch.zeros(2, 2)), "points must have shape"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_points_are_floating_point() -> None:
    with pytest.raises(TypeError, match="points must hold floating-point"):
        Torus(1).distance(torch.zeros(2, 3, dtype=torch.int64))


def test_no_points_have_no_distances() -> None:
    for solid in (Torus(1), bored(), Difference(Torus(1), Torus(2))):
        assert solid.distance(torch.zeros(0, 3)).shape == (0,)
        assert solid.label(torch.zeros(0, 3)).dtype == torch.int64
