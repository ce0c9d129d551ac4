"""Faces of voxels as meshes: closed, of the right area and volume, with the attributes of their voxels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsevox import Grid, Mesh, Voxels
from sparsevox.io.faces import voxel_faces
from sparsevox.testing import KINDS, as_coords, cloud

SCALE = {"voxel_size": (0.5, 1.0, 2.0), "origin": (3.0, -1.0, 0.25)}
STEPS = ((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1))


def directed(mesh: Mesh) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """All directed edges, and all of them turned round."""
    faces = mesh.faces.tolist()
    edges = [(f[n], f[(n + 1) % 3]) for f in faces for n in range(3)]
    return sorted(edges), sorted((b, a) for a, b in edges)


def corners_of(mesh: Mesh) -> np.ndarray:
    """[3, F, 3]."""
    return mesh.vertices.numpy()[mesh.faces.numpy()].transpose(1, 0, 2)


def volume(mesh: Mesh) -> float:
    a, b, c = corners_of(mesh)
    return float((np.cross(a, b) * c).sum() / 6)


def vector_areas(mesh: Mesh) -> np.ndarray:
    a, b, c = corners_of(mesh)
    return np.cross(b - a, c - a) / 2


def grids(limits: bool = True) -> st.SearchStrategy[Grid]:
    kinds = st.sampled_from([kind for kind in KINDS if limits or kind != "limits"])
    clouds = st.builds(cloud, kinds, st.integers(1, 80), st.integers(0, 1 << 20))
    return clouds.map(lambda voxels: Grid.from_coords(as_coords(voxels), batch_size=1, **SCALE))


def exposed_area(grid: Grid) -> np.ndarray:
    """Of each of the six directions, counted in a set."""
    voxels = {tuple(v) for v in grid.ijk.tolist()}
    count = [sum((i + x, j + y, k + z) not in voxels for i, j, k in voxels) for x, y, z in STEPS]
    x, y, z = grid.voxel_size
    return np.array(count) * np.repeat([y * z, x * z, x * y], 2)


@given(grid=grids(), merge=st.booleans())
def test_area_and_volume(grid, merge):
    mesh = voxel_faces(grid, merge=merge)
    areas = vector_areas(mesh)
    found = [np.maximum(sign * areas[:, axis], 0).sum() for axis in range(3) for sign in (-1, 1)]
    np.testing.assert_allclose(found, exposed_area(grid))
    assert ((areas != 0).sum(1) == 1).all()
    here = mesh.transform(lambda v: v - mesh.bounds[0]) if len(mesh.faces) else mesh
    span = float(here.bounds[1].prod()) if len(mesh.faces) else 0.0
    assert volume(here) == pytest.approx(grid.num_voxels * np.prod(grid.voxel_size), abs=1e-9 * span)
    assert (mesh.vertices.dtype, mesh.faces.dtype) == (torch.float64, torch.int64)


@given(grid=grids())
def test_unmerged_faces_are_closed(grid):
    edges, turned = directed(voxel_faces(grid, merge=False))
    assert edges == turned


@given(grid=grids(limits=False), merge=st.booleans())
def test_faces_lie_between_a_voxel_and_an_empty_neighbor(grid, merge):
    """A point on each triangle, half a voxel inwards and outwards."""
    mesh = voxel_faces(grid, merge=merge)
    areas = vector_areas(mesh)
    normal = areas / np.linalg.norm(areas, axis=1, keepdims=True).clip(1e-300)
    inner = np.einsum("cfd,c->fd", corners_of(mesh), [0.5345, 0.2937, 0.1718])  # on no edge between voxels
    voxels = {tuple(v) for v in grid.ijk.tolist()}
    for sign, expected in ((-1, True), (1, False)):
        ijk = np.rint((inner + sign * normal * np.array(grid.voxel_size) / 2 - grid.origin) / grid.voxel_size)
        assert all((tuple(v) in voxels) is expected for v in ijk.astype(int).tolist())


@pytest.mark.parametrize("merge", [True, False])
def test_no_voxels(merge):
    mesh = voxel_faces(Voxels(Grid.empty(), {"label": torch.zeros(0, dtype=torch.int64)}), merge=merge)
    assert (len(mesh.vertices), len(mesh.faces), len(mesh.face_attributes["label"])) == (0, 0, 0)


def test_a_box_is_six_rectangles():
    mesh = voxel_faces(Grid.full((-2, 0, 1), (3, 4, 9)))
    assert (len(mesh.vertices), len(mesh.faces)) == (8, 12)
    assert mesh.bounds.tolist() == [[-2.5, -0.5, 0.5], [2.5, 3.5, 8.5]]
    assert volume(mesh) == pytest.approx(5 * 4 * 8)


def test_a_frame_is_cut_into_runs():
    """A plate of 5 x 5 with a hole: above and below four rectangles each, and eight sides."""
    grid = Grid.full((0, 0, 0), (5, 5, 1)) - Grid.full((2, 1, 0), (3, 4, 1))
    assert len(voxel_faces(grid).faces) == 2 * (4 + 4 + 8)
    assert len(voxel_faces(grid, merge=False).faces) == 2 * (22 + 22 + 20 + 8)


@pytest.mark.parametrize("second", [(1, 1, 0), (1, 0, 1), (0, 1, -1), (1, 1, 1), (-1, 1, 1)])
@pytest.mark.parametrize("merge", [True, False])
def test_voxels_that_touch_at_an_edge_or_corner_share_no_vertex(second, merge):
    grid = Grid.from_coords(torch.tensor([(0, 0, 0), second]))
    mesh = voxel_faces(grid, merge=merge)
    edges, turned = directed(mesh)
    assert (len(mesh.vertices), len(mesh.faces)) == (16, 24)
    assert edges == turned
    assert len(set(edges)) == len(edges)


def test_holes_that_touch_at_a_corner_share_no_vertex():
    solid = Grid.full((0, 0, 0), (4, 4, 4))
    mesh = voxel_faces(solid - Grid.from_coords(torch.tensor([(1, 1, 1), (2, 2, 2)])), merge=False)
    assert len(mesh.vertices) == len(voxel_faces(solid, merge=False).vertices) + 16
    assert volume(mesh) == pytest.approx(62)


@settings(max_examples=20)
@given(grid=grids(limits=False))
def test_watertight_unless_voxels_meet_around_an_edge(grid):
    """trimesh counts two faces at every edge, unless both voxels on its sides are joined around both of its ends."""
    trimesh = pytest.importorskip("trimesh", reason="needs the extra io")
    mesh = voxel_faces(grid, merge=False)
    edges, _ = directed(mesh)
    made = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
    if grid.num_voxels:
        assert made.is_watertight is (len(set(edges)) == len(edges))


def test_a_ring_around_an_edge_stays_closed_though_not_manifold():
    """Two voxels meet at an edge and are joined around both of its ends: no vertex can be split."""
    ring = [(0, 0, 0), (1, 1, 0), *((0, 0, k) for k in (-1, 1)), *((1, 1, k) for k in (-1, 1))]
    ring += [(0, 1, k) for k in (-1, 1)]
    mesh = voxel_faces(Grid.from_coords(torch.tensor(ring)), merge=False)
    edges, turned = directed(mesh)
    assert edges == turned
    assert len(set(edges)) == len(edges) - 2


@given(grid=grids(), seed=st.integers(0, 1000), merge=st.booleans())
def test_attributes_are_those_of_the_voxel(grid, seed, merge):
    draw = np.random.default_rng(seed)
    label = torch.from_numpy(draw.integers(0, 2, grid.num_voxels))
    color = torch.from_numpy(draw.integers(0, 2, (grid.num_voxels, 3))).float()
    voxels = Voxels(grid, {"label": label, "color": color, "normal": torch.zeros(grid.num_voxels, 3)})
    mesh = voxel_faces(voxels, merge=merge)
    assert set(mesh.face_attributes) == {"label", "color"}
    areas = np.linalg.norm(vector_areas(mesh), axis=1)
    for value in (0, 1):
        of_value = grid.prune(label == value)
        lost = voxel_area_within(grid, of_value)
        found = areas[mesh.face_attributes["label"].numpy() == value].sum()
        assert found == pytest.approx(exposed_area(of_value).sum() - lost)
    middle = corners_of(mesh).mean(0) - 1e-3 * np.sign(vector_areas(mesh))
    rows = grid.index(torch.from_numpy(np.rint((middle - grid.origin) / grid.voxel_size).astype(int)))
    assert torch.equal(mesh.face_attributes["color"], color[rows])
    assert torch.equal(mesh.face_attributes["label"], label[rows])


def voxel_area_within(grid: Grid, part: Grid) -> float:
    """Of the sides of a part that look at other voxels of the grid."""
    voxels, own = ({tuple(v) for v in g.ijk.tolist()} for g in (grid, part))
    x, y, z = grid.voxel_size
    areas = np.repeat([y * z, x * z, x * y], 2)
    others = voxels - own
    return sum(float(areas[n]) for n, d in enumerate(STEPS) for v in own if tuple(np.add(v, d).tolist()) in others)


def test_attributes_are_chosen_by_name():
    voxels = Voxels(Grid.full(0, 2), {"density": torch.arange(8.0)[:, None], "label": torch.zeros(8).long()})
    assert list(voxel_faces(voxels, attributes=["density"]).face_attributes) == ["density"]
    assert len(voxel_faces(voxels, attributes=["density"]).faces) == 2 * 24
    assert len(voxel_faces(voxels, attributes=()).faces) == 12


def test_the_same_bits_every_time():
    grid = Grid.from_coords(as_coords(cloud("clustered", 60, 1)))
    first, second = voxel_faces(grid), voxel_faces(grid)
    assert torch.equal(first.vertices, second.vertices)
    assert torch.equal(first.faces, second.faces)


def test_errors():
    with pytest.raises(ValueError, match="voxels must be one grid, got a batch of 2: select an item"):
        voxel_faces(Grid.full(0, 2, batch_size=2))
    with pytest.raises(TypeError, match=r"voxels must be a sparsevox\.Voxels or Grid, got Tensor"):
        voxel_faces(torch.zeros(3))  # type: ignore[arg-type]
