"""Fields of voxels, from normals and from occupancy, and their surfaces: against sums over voxels and known shapes."""

import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench.scenes import sphere_mesh
from sparsevox import Grid, Mesh, SparseTensor, Voxels
from sparsevox.io import voxelize
from sparsevox.io.signed_field import signed_field, solid_field
from sparsevox.io.surface_nets import surface_nets
from sparsevox.io.surfaces import Method, to_mesh
from sparsevox.testing import KINDS, as_coords, cloud

pytest.importorskip("scipy", reason="needs the extra io")

SCALE = {"voxel_size": (0.5, 0.4, 0.25), "origin": (3.0, -1.0, 0.25)}
CUBE = list(product((-1, 0, 1), repeat=3))


def is_closed(mesh: Mesh) -> bool:
    """Whether each edge is run through as often in one direction as in the other."""
    start, end = mesh.faces.flatten(), mesh.faces.roll(-1, 1).flatten()
    count = len(mesh.vertices)
    return torch.equal((start * count + end).sort().values, (end * count + start).sort().values)


def pieces(mesh: Mesh) -> int:
    from scipy.sparse import coo_array, csgraph

    start, end = mesh.faces.flatten().numpy(), mesh.faces.roll(-1, 1).flatten().numpy()
    count = len(mesh.vertices)
    return csgraph.connected_components(coo_array((np.ones(len(start)), (start, end)), shape=(count, count)))[0]


def volume(mesh: Mesh) -> float:
    a, b, c = mesh.vertices[mesh.faces].unbind(1)
    return float((a.cross(b, dim=1) * c).sum() / 6)


def ball(p: Tensor) -> Tensor:
    return p.norm(dim=-1) - 13.3


def ring(p: Tensor) -> Tensor:
    return torch.hypot(p[..., :2].norm(dim=-1) - 11.2, p[..., 2]) - 5.1


def shell(function, thickness: float) -> Voxels:
    """Voxels near zero of a distance, with its gradient as normals."""
    grid = Grid.full(-20, 21)
    grid = grid.prune(function(grid.ijk.double()).abs() <= thickness / 2)
    p = grid.ijk.double().requires_grad_()
    (normal,) = torch.autograd.grad(function(p).sum(), p)
    return Voxels(grid, {"normal": normal.float()})


def plate(thickness: int) -> Voxels:
    """A solid plate with the normals of its sides."""
    grid = Grid.full((0, 0, 0), (12, 12, thickness))
    above, below = (grid.ijk == torch.tensor([11, 11, thickness - 1])), grid.ijk == 0
    return Voxels(grid, {"normal": torch.nn.functional.normalize(above.float() - below.float(), dim=1)})


def clouds() -> st.SearchStrategy[Grid]:
    kinds = st.sampled_from([kind for kind in KINDS if kind != "limits"])
    made = st.builds(cloud, kinds, st.integers(1, 40), st.integers(0, 1 << 20))
    return made.map(lambda voxels: Grid.from_coords(as_coords(voxels), batch_size=1, **SCALE))


def weights() -> Tensor:
    """Of each of the 27 voxels around one."""
    return torch.tensor([0.5 ** (3 + abs(i) + abs(j) + abs(k)) for i, j, k in CUBE], dtype=torch.float64)


# From normals


@given(grid=clouds(), seed=st.integers(0, 1000))
def test_means_of_plane_distances(grid, seed):
    """In the voxels that are given, without steps of relaxation, the field is the mean that its docstring says."""
    draw = np.random.default_rng(seed)
    normal = torch.from_numpy(draw.normal(size=(grid.num_voxels, 3))) * torch.from_numpy(
        draw.choice([0, 0.3, 1, 4], (grid.num_voxels, 1))
    )
    field = signed_field(Voxels(grid, {"normal": normal}), relax=0)
    size = torch.tensor(grid.voxel_size, dtype=torch.float64)
    rows = {tuple(v): n for n, v in enumerate(grid.ijk.tolist())}
    band = field.grid.ijk.tolist()
    assert {tuple(v) for v in band} == {tuple(np.add(v, d).tolist()) for v in rows for d in CUBE}
    for (i, j, k), value in zip(band, field.feats[:, 0].tolist(), strict=True):
        if (i, j, k) not in rows:
            continue
        total = mean = 0.0
        for (a, b, c), weight in zip(CUBE, weights().tolist(), strict=True):
            row = rows.get((i + a, j + b, k + c), -1)
            if row >= 0:
                length = max(float(normal[row].norm()), 1.0)
                way = -torch.tensor([a, b, c]) * size
                total += weight * float(normal[row].norm()) / length
                mean += weight * float(normal[row] @ way) / length
        expected = mean / total if total > 1e-5 else -0.125
        assert value == pytest.approx(expected if abs(expected) > 2.6e-4 else value, abs=1e-5)
        assert abs(value) > 2.4e-4


def test_a_plane():
    """Oblique planes and steps of relaxation: the distance stays, within what the normals say."""
    grid = Grid.full(-8, 9)
    normal = torch.tensor([2.0, -1.0, 2.0]) / 3
    near = (grid.ijk.float() @ normal).abs() < 0.8
    grid = grid.prune(near)
    field = signed_field(Voxels(grid, {"normal": normal.expand(grid.num_voxels, 3)}), relax=40)
    ijk = field.grid.ijk.float()
    inner = ijk.abs().amax(1) < 6
    assert float((field.feats[:, 0] - ijk @ normal)[inner].abs().max()) < 0.2


@pytest.mark.parametrize(("thickness", "out"), [(1.5, 0.08), (2, 0.1), (3, 0.25)])
@pytest.mark.parametrize("function", [ball, ring])
def test_shells(function, thickness, out):
    expected = {ball: 4 / 3 * np.pi * 13.3**3, ring: 2 * np.pi**2 * 11.2 * 5.1**2}[function]
    mesh = to_mesh(shell(function, thickness))
    assert is_closed(mesh)
    assert len(mesh.vertices) - len(mesh.faces) // 2 == {ball: 2, ring: 0}[function]
    assert volume(mesh) == pytest.approx(expected, rel=0.08)
    assert float(function(mesh.vertices).abs().mean()) < out
    assert float(function(mesh.vertices).abs().max()) < out + 0.2


def test_relaxation_removes_the_staircase():
    mesh = [surface_nets(signed_field(shell(ball, 1.5), relax=relax)) for relax in (0, 40)]
    rough, smooth = (float(ball(m.vertices).std()) for m in mesh)
    assert smooth < 0.6 * rough


@pytest.mark.parametrize("thickness", [2, 3, 4])
def test_thin_plates_are_closed(thickness):
    """Normals of both sides are near each other, and the region around the plate has one sign."""
    field = signed_field(plate(thickness))
    assert field.feats.isfinite().all()
    assert float(field.feats.abs().max()) < 4
    mesh = surface_nets(field)
    assert is_closed(mesh)
    assert 0 < volume(mesh) < 14 * 14 * (thickness + 2)


@given(grid=clouds())
def test_without_normals_the_surface_is_around_the_voxels(grid):
    field = signed_field(Voxels(grid, {"normal": torch.zeros(grid.num_voxels, 3)}))
    full = grid.contains(field.grid.coords)
    assert (field.feats[~full] > 0).all()
    mesh = surface_nets(field)
    assert is_closed(mesh)
    assert mesh.vertices.isfinite().all()


@given(grid=clouds(), seed=st.integers(0, 1000))
def test_any_normals_give_a_finite_surface(grid, seed):
    normal = torch.randn(grid.num_voxels, 3, generator=torch.Generator().manual_seed(seed))
    field = signed_field(Voxels(grid, {"normal": normal / normal.norm(dim=1, keepdim=True)}))
    assert field.feats.isfinite().all()
    assert surface_nets(field).vertices.isfinite().all()


def test_wrong_signs_are_outvoted():
    """A tenth of the normals the wrong way round, in patches: outside and inside keep their signs."""
    voxels = shell(ball, 2.0)
    wrong = voxels.grid.ijk[:, 0] > 11
    assert 0.02 < float(wrong.float().mean()) < 0.15
    normal = torch.where(wrong[:, None], -1, 1) * voxels.attributes["normal"]
    field = signed_field(Voxels(voxels.grid, {"normal": normal}))
    empty = ~voxels.grid.contains(field.grid.coords)
    assert torch.equal(field.feats[empty, 0] > 0, ball(field.grid.ijk.double())[empty] > 0)
    assert is_closed(surface_nets(field))


def test_an_enclosed_space_is_closed_whatever_its_normals() -> None:
    ijk = torch.cartesian_prod(*[torch.arange(-8, 9)] * 3)
    layer = 8 - ijk.abs().amax(1)
    grid = Grid.from_coords(ijk[layer < 2])
    outward = torch.nn.functional.normalize(grid.ijk.float(), dim=1)
    inner = grid.ijk.abs().amax(1) < 8
    generator = torch.Generator().manual_seed(0)
    sign = torch.where(inner & (torch.rand(grid.num_voxels, generator=generator) < 0.5), -1, 1)
    voxels = Voxels(grid, {"normal": outward * sign[:, None]})
    assert is_closed(surface_nets(signed_field(voxels)))
    # With a hole in it, the space inside is no longer enclosed.
    open_ = grid.prune(~((grid.ijk[:, :2].abs().amax(1) < 4) & (grid.ijk[:, 2] > 0)))
    rows = grid.index(open_.coords)
    assert not is_closed(surface_nets(signed_field(Voxels(open_, {"normal": voxels.attributes["normal"][rows]}))))


def test_a_large_hole_stays_a_hole():
    voxels = shell(ball, 2.0)
    mesh = to_mesh(voxels.prune(voxels.grid.ijk[:, 2] < 6))
    assert not is_closed(mesh)
    assert float(ball(mesh.vertices)[mesh.vertices[:, 2] < 4].abs().max()) < 0.5


# From occupancy


@given(grid=clouds())
def test_solid_fields_by_loops(grid):
    field = solid_field(grid)
    voxels = {tuple(v) for v in grid.ijk.tolist()}
    expected = []
    for voxel in field.grid.ijk.tolist():
        there = torch.tensor([tuple(np.add(voxel, d).tolist()) in voxels for d in CUBE], dtype=torch.float64)
        value = 1 - 2 * float(there @ weights())
        expected.append(min(value, -0.1) if tuple(voxel) in voxels else max(value, 0.1))
    torch.testing.assert_close(field.feats[:, 0].double(), torch.tensor(expected, dtype=torch.float64))


@given(grid=clouds(), smooth=st.integers(0, 2))
def test_surfaces_of_solids_are_closed_and_enclose_them(grid, smooth):
    mesh = surface_nets(solid_field(grid), smooth=smooth)
    assert is_closed(mesh)
    if grid.num_voxels:
        assert (mesh.bounds[0] >= grid.to_world(grid.ijk.amin(0).double() - 1)).all()
        assert (mesh.bounds[1] <= grid.to_world(grid.ijk.amax(0).double() + 1)).all()


def test_a_solid_ball():
    grid = Grid.full(-20, 21)
    mesh = surface_nets(solid_field(grid.prune(ball(grid.ijk.double()) < 0)))
    assert volume(mesh) == pytest.approx(4 / 3 * np.pi * 13.3**3, rel=0.03)
    assert float(ball(mesh.vertices).abs().max()) < 1
    assert pieces(mesh) == 1


@pytest.mark.parametrize("second", [(1, 1, 0), (1, 1, 1)])
def test_solids_that_touch_at_an_edge_or_corner_stay_two(second):
    mesh = surface_nets(solid_field(Grid.from_coords(torch.tensor([(0, 0, 0), second]))))
    assert pieces(mesh) == 2
    assert is_closed(mesh)


# All of it


def test_auto_selects_the_method_by_the_attributes():
    voxels = shell(ball, 2.0)
    grid = voxels.grid
    assert torch.equal(to_mesh(voxels).vertices, surface_nets(signed_field(voxels)).vertices)
    assert torch.equal(to_mesh(voxels, "faces").vertices, to_mesh(grid).vertices)
    assert torch.equal(to_mesh(grid, "nets").vertices, surface_nets(solid_field(grid), smooth=2).vertices)
    assert len(to_mesh(grid).faces) == len(to_mesh(Voxels(grid), "faces").faces)


@pytest.mark.parametrize("method", ["nets", "marching_cubes", "faces"])
def test_colors_and_labels(method: Method):
    if method == "marching_cubes":
        pytest.importorskip("skimage", reason="needs the extra io")
    voxels = shell(ball, 2.0)
    ijk = voxels.grid.ijk
    label = (ijk[:, 0] > 0).long() + 7
    voxels = voxels.with_attributes(label=label, color=torch.rand(len(ijk), 3), density=torch.ones(len(ijk), 1))
    mesh = to_mesh(voxels, method)
    attributes = mesh.face_attributes if method == "faces" else mesh.vertex_attributes
    assert set(attributes) == {"label", "color"}
    if method != "faces":
        near = (mesh.vertices[:, None] - ijk.double()).norm(dim=2).argmin(1)
        assert torch.equal(attributes["label"], label[near])
        assert torch.equal(attributes["color"], voxels.attributes["color"][near])


@pytest.mark.parametrize("method", ["auto", "faces", "nets", "marching_cubes"])
@pytest.mark.parametrize("attributes", [{}, {"normal": torch.zeros(0, 3), "label": torch.zeros(0).long()}])
def test_no_voxels(method, attributes):
    if method == "marching_cubes":
        pytest.importorskip("skimage", reason="needs the extra io")
    mesh = to_mesh(Voxels(Grid.empty(), attributes), method)
    assert (mesh.vertices.shape, mesh.faces.shape) == ((0, 3), (0, 3))
    assert mesh.vertices.dtype == torch.float64


def test_a_mesh_round_trip():
    pytest.importorskip("trimesh", reason="needs the extra io")
    vertices, faces = sphere_mesh(0.4, 60)
    mesh = to_mesh(voxelize(Mesh(vertices, faces.flip(1)), voxel_size=1 / 32, origin=1 / 64))
    assert is_closed(mesh)
    assert volume(mesh) == pytest.approx(4 / 3 * np.pi * 0.4**3, rel=0.02)
    assert float((mesh.vertices.norm(dim=1) - 0.4).abs().max()) < 0.5 / 32


@pytest.mark.parametrize("name", ["bottle", "bowl"])
def test_a_real_mesh_round_trip(name):
    trimesh = pytest.importorskip("trimesh", reason="needs the extra io")
    from scipy.spatial import cKDTree

    loaded = trimesh.load(Path(__file__).parent / "meshes" / f"{name}.obj", force="mesh")
    loaded.merge_vertices(merge_tex=True, merge_norm=True)
    given_ = Mesh(torch.from_numpy(np.array(loaded.vertices)), torch.from_numpy(np.array(loaded.faces)).long())
    mesh = to_mesh(voxelize(given_, voxel_size=1 / 64))
    assert is_closed(mesh)
    assert volume(mesh) == pytest.approx(loaded.volume, rel=0.02)
    surface = trimesh.sample.sample_surface(loaded, 100_000, seed=0)[0]
    assert float(cKDTree(surface).query(mesh.vertices.numpy())[0].mean()) * 64 < 0.2


def test_the_same_bits_every_time():
    voxels = shell(ring, 2.0)
    assert torch.equal(signed_field(voxels).feats, signed_field(voxels).feats)


def test_errors():
    grid, batch = Grid.full(0, 2), Grid.full(0, 2, batch_size=2)
    normal = torch.zeros(8, 3)
    with pytest.raises(TypeError, match=r"voxels must be a sparsevox\.Voxels, got Grid"):
        signed_field(grid)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"voxels must have the attribute 'normal', got \['color'\]"):
        signed_field(Voxels(grid, {"color": normal}))
    with pytest.raises(ValueError, match=r"normal must have shape \[8, 3\], got \[8\]"):
        signed_field(Voxels(grid, {"normal": normal[:, 0]}))
    with pytest.raises(TypeError, match="normal must hold floating-point numbers"):
        signed_field(Voxels(grid, {"normal": normal.long()}))
    with pytest.raises(ValueError, match="normal must be finite"):
        signed_field(Voxels(grid, {"normal": normal / 0}))
    with pytest.raises(ValueError, match="relax must not be negative, got -2"):
        signed_field(Voxels(grid, {"normal": normal}), relax=-2)
    with pytest.raises(ValueError, match="out of the range"):
        solid_field(Grid.full((1 << 17) - 2, 1 << 17))
    with pytest.raises(TypeError, match=r"grid must be a sparsevox\.Grid, got Tensor"):
        solid_field(normal)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"voxels must be a sparsevox\.Voxels or Grid, got SparseTensor"):
        to_mesh(SparseTensor(grid, normal))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="method must be one of 'auto', 'faces', 'nets', 'marching_cubes', got 'mc'"):
        to_mesh(grid, "mc")  # type: ignore[arg-type]
    for call in (to_mesh, solid_field, lambda b: signed_field(Voxels(b, {"normal": torch.zeros(16, 3)}))):
        with pytest.raises(ValueError, match="must be one grid, got a batch of 2: select an item"):
            call(batch)


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(ImportError, match=r"pip install 'sparsevox\[io\]'"):
        signed_field(shell(ball, 1.0))
