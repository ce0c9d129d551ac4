"""Triangles to voxels, against clipping in rational arithmetic."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsevox.grid import Grid
from sparsevox.reference import voxelize
from sparsevox.reference.voxelize import mesh_voxels
from tests.definitions import voxelize as definition

trimesh = pytest.importorskip("trimesh", reason="meshes to voxelize")
ndimage = pytest.importorskip("scipy.ndimage", reason="an oracle")

HALF = Fraction(1, 2)
CENTER = (0.3, -7.1, 2.2)  # of the sphere


def voxel_set(vertices, faces):
    voxels = mesh_voxels(torch.as_tensor(vertices), torch.as_tensor(faces, dtype=torch.int64).reshape(-1, 3))
    assert voxels.dtype == torch.int32
    assert voxels.ndim == 2
    return set(map(tuple, voxels.tolist()))


def soup_voxels(triangles):
    """Voxels of triangles [F][3][3] that share no vertices."""
    vertices = torch.tensor(triangles, dtype=torch.float64).reshape(-1, 3)
    return voxel_set(vertices, torch.arange(len(vertices)))


# --- Triangles whose arithmetic is exact


def dyadics(bits, low=-3, high=3):
    """Multiples of 2^-bits. One bit is enough to lie on faces, edges and corners of voxels most of the time."""
    return st.integers(low << bits, high << bits).map(lambda n: n / (1 << bits))


def points(bits, low=-3, high=3):
    return st.tuples(*[dyadics(bits, low, high)] * 3)


@st.composite
def flat_triangles(draw):
    """In a plane between voxels, or through their centers."""
    axis, place = draw(st.integers(0, 2)), draw(dyadics(1))
    corners = [list(p) for p in draw(st.tuples(*[points(draw(st.integers(1, 3)))] * 3))]
    for p in corners:
        p[axis] = place
    return tuple(map(tuple, corners))


@st.composite
def collinear_triangles(draw):
    """Segments and points, with the corners in any order along the line."""
    start, step = draw(points(2, -2, 2)), draw(points(1, -1, 1))
    stops = draw(st.tuples(*[st.integers(-3, 3)] * 3))
    return tuple(tuple(a + n * d for a, d in zip(start, step, strict=True)) for n in stops)


@st.composite
def needles(draw):
    """Up to 60 voxels long, less than a voxel wide."""
    axis = draw(st.integers(0, 2))
    start, end = list(draw(points(3, -2, 2))), list(draw(points(3, -2, 2)))
    end[axis] += draw(st.integers(10, 60))
    third = [x + draw(dyadics(6, 0, 1)) / 4 for x in end]
    return tuple(start), tuple(end), tuple(third)


triangles = st.one_of(
    st.tuples(*[points(1)] * 3),
    st.tuples(*[points(6)] * 3),
    flat_triangles(),
    collinear_triangles(),
    needles(),
)
offsets = st.tuples(*[st.sampled_from((0, 0, 0, 7, -3, 1000, -131000, 130900))] * 3)


def moved(soup, offset):
    return [[[x + o for x, o in zip(p, offset, strict=True)] for p in triangle] for triangle in soup]


@settings(deadline=None)
@given(st.lists(triangles, min_size=1, max_size=3), offsets)
def test_dyadic_triangles_touch_exactly_the_voxels_of_the_oracle(soup, offset):
    soup = moved(soup, offset)
    assert soup_voxels(soup) == definition.mesh_voxels(soup)


@pytest.mark.parametrize(
    "triangle",
    [
        [(0, 0, 0), (200.5, 3, 5), (200.5, 3, 5)],
        [(0.25, 0, 0), (47, 71.5, 0), (34, 0.5, 40)],
        [(0, 0, 0), (33.5, 33.5, 33.5), (33.5, 33.5, 0)],
        [(-0.5, 0.5, 0.5), (39.5, 0.5, 0.5), (0.5, 0.5, 70.5)],
    ],
    ids=["segment", "general", "diagonal", "on faces"],
)
def test_large_triangles_descend_over_several_levels(triangle):
    assert soup_voxels([triangle]) == definition.mesh_voxels([triangle])


@pytest.mark.parametrize(
    ("point", "count"), [((0, 0, 0), 1), ((0.5, 0, 0), 2), ((0.5, -0.5, 0), 4), ((1.5, -0.5, 0.5), 8)]
)
def test_a_point_marks_every_voxel_whose_closed_box_holds_it(point, count):
    vertices = torch.tensor([point], dtype=torch.float64)
    voxels = voxel_set(vertices, [[0, 0, 0]])
    assert len(voxels) == count
    assert voxels == definition.mesh_voxels([[point] * 3])


def test_repeated_indices_mark_a_segment():
    vertices = [(0.0, 0.0, 0.0), (3.0, 1.0, 0.0)]
    expected = definition.mesh_voxels([[vertices[0], vertices[1], vertices[1]]])
    for face in ([0, 1, 1], [0, 0, 1], [1, 0, 1]):
        assert voxel_set(torch.tensor(vertices, dtype=torch.float64), face) == expected


def test_a_triangle_inside_one_box_marks_it_alone():
    assert soup_voxels([[(4.75, 5, 6), (5, 5.25, 6), (5, 5, 6.25)]]) == {(5, 5, 6)}


def test_no_faces_no_voxels():
    assert voxel_set(torch.zeros(5, 3, dtype=torch.float64), []) == set()
    assert mesh_voxels(torch.zeros(0, 3).double(), torch.zeros(0, 3).long()).shape == (0, 3)


# --- Triangles whose arithmetic is not exact


@settings(deadline=None)
@given(
    st.lists(st.one_of(triangles, collinear_triangles()), min_size=1, max_size=2),
    offsets,
    st.lists(st.floats(-1, 1), min_size=18, max_size=18),
    st.integers(4, 56),
)
def test_rounding_never_misses_a_voxel_and_adds_none_from_afar(soup, offset, noise, bits):
    noise = iter(noise)
    soup = [[[x + next(noise) * 2.0**-bits for x in p] for p in t] for t in moved(soup, offset)]
    found = soup_voxels(soup)
    assert found >= definition.mesh_voxels(soup)
    assert found <= definition.mesh_voxels(soup, HALF + Fraction(1, 1 << 20))


def long_vectors(rng, scale):
    """Of 46 significant bits: products of two of them do not fit into a float64."""
    return rng.integers(-(2**45), 2**45, (40, 3)) / 2.0**45 * scale


@pytest.mark.parametrize("scale", [1, 4, 16])
def test_corners_are_touched_whatever_the_rounding(scale):
    rng = np.random.default_rng(5)
    corner = np.array([0.5, 2.5, -1.5])
    for p, q in zip(long_vectors(rng, scale / 4), long_vectors(rng, scale / 4), strict=True):
        segment = [corner + p, corner - 2 * p, corner - 2 * p]
        on_a_side = [corner + p, corner - 2 * p, corner - 2 * p + q]
        in_the_plane = [corner + p, corner + q, corner - p - q]
        r = p / -2 + np.round(q * 2.0**22) / 2.0**46  # of a needle, whose normal is mostly rounding error
        needle = [corner + r, corner + p, corner - p - r]
        for triangle in (segment, on_a_side, in_the_plane, needle):
            triangle = np.array(triangle).tolist()
            assert soup_voxels([triangle]) >= definition.mesh_voxels([triangle])


def nearly_touching(rng, bits):
    """A triangle of multiples of 2^-bits, 16 voxels wide at most, whose plane misses a corner of voxels by the least
    that such numbers allow: normal . (corner - vertex) is one unit, either way."""
    while True:
        first, second = rng.integers(-(6 << bits), 6 << bits, (2, 3)).tolist()
        normal = [int(x) for x in np.cross(first, second)]
        if math.gcd(normal[0], normal[1]) == 1:
            break
    inverse = pow(normal[0], -1, abs(normal[1]))
    way = int(rng.choice((-1, 1)))
    step = [way * inverse, way * (1 - normal[0] * inverse) // normal[1], 0]  # normal . step = way
    # The same with the foot in the interior of the triangle: subtract a fraction of each side.
    squared = sum(x * x for x in normal)
    for side, other, sign in ((first, second, 1), (second, first, -1)):
        across = [int(x) for x in np.cross(np.array(other, object), np.array(normal, object))]
        share = Fraction(sign * sum(a * b for a, b in zip(across, step, strict=True)), squared)
        step = [x - (round(share - Fraction(1, 3))) * s for x, s in zip(step, side, strict=True)]
    assert sum(a * b for a, b in zip(normal, step, strict=True)) == way
    vertex = [0.5 - x / (1 << bits) for x in step]
    return [[v + s / (1 << bits) for v, s in zip(vertex, side, strict=True)] for side in ([0, 0, 0], first, second)]


def test_the_exactness_that_is_promised():
    rng = np.random.default_rng(7)
    soup = [nearly_touching(rng, 10) for _ in range(30)]
    assert max(np.ptp(triangle, axis=0).max() for triangle in soup) < 15  # 2^(14 - 10) voxels
    for triangle in soup:
        assert soup_voxels([triangle]) == definition.mesh_voxels([triangle])


def test_random_triangles_need_no_tolerance():
    rng = np.random.default_rng(1)
    soup = (rng.uniform(-50, 50, (40, 1, 3)) + rng.normal(0, 3, (40, 3, 3))).tolist()
    assert soup_voxels(soup) == definition.mesh_voxels(soup)


# --- Meshes


@pytest.fixture(scope="module")
def sphere():
    """Radius 12."""
    mesh = trimesh.creation.icosphere(subdivisions=3, radius=12.0)
    mesh.apply_translation(CENTER)
    return torch.tensor(np.asarray(mesh.vertices)), torch.tensor(np.asarray(mesh.faces)).long()


def test_sphere_is_covered_tight_and_closed(sphere):
    vertices, faces = sphere
    voxels = voxel_set(vertices, faces)

    weights = np.random.default_rng(2).dirichlet((0.3, 0.3, 0.3), (len(faces), 20))
    samples = np.einsum("fsc,fcx->fsx", weights, vertices[faces].numpy()).reshape(-1, 3)
    assert set(map(tuple, np.floor(samples + 0.5).astype(int).tolist())) <= voxels
    places = np.array(sorted(voxels))
    radii = np.linalg.norm(places - CENTER, axis=1)
    inner = np.linalg.norm(vertices[faces].numpy().mean(1) - CENTER, axis=1).min()  # planes' feet, nearly
    assert inner - 1e-3 - math.sqrt(3) / 2 <= radii.min()
    assert radii.max() <= 12 + math.sqrt(3) / 2
    lower = places.min(0) - 1
    dense = np.zeros(places.max(0) + 2 - lower, bool)
    dense[tuple((places - lower).T)] = True
    _, regions = ndimage.label(~dense, structure=np.ones((3, 3, 3)))
    assert regions == 2  # not even a diagonal step leads from the inside to the outside


@pytest.mark.parametrize("chunk", [1, 64, 1000])
@pytest.mark.parametrize("faces_at_once", [1000, 1 << 17])
def test_chunks_do_not_change_the_set(sphere, monkeypatch, chunk, faces_at_once):
    vertices, faces = sphere[0] * 2, sphere[1][::4]
    if chunk == 1:
        faces = faces[:20]
    expected = voxel_set(vertices, faces)
    monkeypatch.setattr(voxelize, "CHUNK", chunk)
    monkeypatch.setattr(voxelize, "FACES", faces_at_once)
    assert voxel_set(vertices, faces) == expected


def test_merging_drops_duplicates_only(sphere, monkeypatch):
    vertices, faces = sphere
    rows = mesh_voxels(vertices, faces)
    monkeypatch.setattr(voxelize, "MERGE", 100)
    monkeypatch.setattr(voxelize, "FACES", 64)
    merged = mesh_voxels(vertices, faces)
    assert len(merged) < len(rows)
    assert torch.equal(torch.unique(merged, dim=0), torch.unique(rows, dim=0))


@pytest.mark.parametrize("place", [-(2.0**17) - 0.5, -(2.0**17), 2.0**17 - 2.0**-30])
def test_merging_keeps_voxels_at_the_limits(monkeypatch, place):
    point = [[(place, place, place)] * 3]
    monkeypatch.setattr(voxelize, "MERGE", 0)
    assert soup_voxels(point) == definition.mesh_voxels(point)


def test_order_place_and_handedness_do_not_matter():
    rng = np.random.default_rng(3)
    vertices = torch.tensor(rng.integers(-64, 64, (30, 3)) / 8)
    faces = torch.tensor(rng.integers(0, 30, (25, 3)))
    expected = voxel_set(vertices, faces)
    for order in itertools.permutations(range(3)):
        assert voxel_set(vertices.flip(0), 29 - faces.flip(0)[:, order]) == expected
    shifted = {(i - 131, j + 77, k + 4096) for i, j, k in expected}
    assert voxel_set(vertices + torch.tensor([-131, 77, 4096]), faces) == shifted
    assert voxel_set(-vertices.flip(1), faces) == {(-k, -j, -i) for i, j, k in expected}


# --- Grid.from_mesh


def test_grid_holds_the_voxels_of_the_mesh(sphere):
    vertices, faces = sphere
    grid = Grid.from_mesh(vertices, faces, voxel_size=1.0)
    assert grid.batch_size == 1
    assert set(map(tuple, grid.ijk.tolist())) == voxel_set(vertices, faces)
    assert (grid.batch == 0).all()


def test_grid_measures_in_world_units():
    vertices, faces = torch.tensor([[10.0, 20.0, 30.0], [13.9, 20.0, 30.0], [10.0, 20.4, 30.0]]), [[0, 1, 2]]
    grid = Grid.from_mesh(vertices, torch.tensor(faces), voxel_size=(2.0, 1.0, 0.5), origin=(10, 20, 30))
    assert grid.voxel_size == (2.0, 1.0, 0.5)
    assert grid.origin == (10.0, 20.0, 30.0)
    assert grid.ijk.tolist() == [[0, 0, 0], [1, 0, 0], [2, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_grid_takes_any_floats_and_integers(dtype, index):
    vertices = torch.tensor([[0.0, 0.0, 0.0], [3.0, 1.0, 0.0], [0.0, 2.0, 2.5]], dtype=dtype)
    grid = Grid.from_mesh(vertices, torch.tensor([[0, 1, 2]], dtype=index), voxel_size=0.5)
    assert set(map(tuple, grid.ijk.tolist())) == definition.mesh_voxels([(vertices.double() * 2).tolist()])


def test_grid_of_no_faces_is_empty():
    for count in (0, 4):
        grid = Grid.from_mesh(torch.zeros(count, 3), torch.zeros(0, 3, dtype=torch.int64), voxel_size=1.0)
        assert (grid.num_voxels, grid.batch_size) == (0, 1)


CORNERS = torch.eye(3)
FACE = torch.tensor([[0, 1, 2]])


@pytest.mark.parametrize(
    ("vertices", "faces", "error", "match"),
    [
        (CORNERS.numpy(), FACE, TypeError, "vertices"),
        (CORNERS.long(), FACE, TypeError, "vertices"),
        (CORNERS[:, :2], FACE, ValueError, r"vertices .*\[V, 3\].*\[3, 2\]"),
        (CORNERS[None], FACE, ValueError, r"vertices .*\[V, 3\]"),
        (CORNERS, [[0, 1, 2]], TypeError, "faces"),
        (CORNERS, FACE.float(), TypeError, "faces"),
        (CORNERS, FACE[:, :2], ValueError, r"faces .*\[F, 3\].*\[1, 2\]"),
        (CORNERS, FACE[0], ValueError, r"faces .*\[F, 3\]"),
        (CORNERS, torch.tensor([[0, 1, 2], [0, 3, 1]]), ValueError, r"faces.*\[0, 3\).*faces\[1\].*0, 3, 1"),
        (CORNERS, torch.tensor([[0, -1, 2]]), ValueError, r"faces.*\[0, 3\).*faces\[0\].*0, -1, 2"),
        (CORNERS[:0], FACE, ValueError, "faces"),
        (CORNERS * math.nan, FACE, ValueError, r"vertices.*finite.*vertices\[0\]"),
        (CORNERS + torch.tensor([[0.0], [math.inf], [0.0]]), FACE, ValueError, r"vertices.*finite.*vertices\[1\]"),
        (CORNERS + 2.0**17, FACE, ValueError, r"vertices\[0\].*131071"),
        (CORNERS - 2.0**17 - 2, FACE, ValueError, r"vertices\[0\].*-131072"),
        (CORNERS * 1e30, FACE, ValueError, r"vertices\[0\].*131071"),
        (CORNERS * 1e5 - 5e4, FACE, ValueError, "at most 2147483647 voxels"),
    ],
)  # fmt: skip
def test_grid_names_what_is_wrong_with_the_mesh(vertices, faces, error, match):
    with pytest.raises(error, match=match):
        Grid.from_mesh(vertices, faces, voxel_size=1.0)


@pytest.mark.parametrize("voxel_size", [0, -1.0, (1.0, 0.0, 1.0), math.nan, math.inf, (1.0, 1.0)])
def test_grid_wants_a_positive_voxel_size(voxel_size):
    with pytest.raises(ValueError, match="voxel_size"):
        Grid.from_mesh(CORNERS, FACE, voxel_size=voxel_size)


def test_limits_are_those_of_voxels_not_of_the_world():
    vertices = CORNERS * 1e6
    with pytest.raises(ValueError, match="vertices"):
        Grid.from_mesh(vertices, FACE, voxel_size=1.0)
    assert Grid.from_mesh(vertices, FACE, voxel_size=1e5).num_voxels > 0
    edge = torch.full((1, 3), -(2.0**17))
    assert Grid.from_mesh(edge, FACE * 0, voxel_size=1.0).ijk.tolist() == [[-(2**17)] * 3]
