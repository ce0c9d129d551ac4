"""Surfaces of fields: against formulas, scikit-image on whole volumes, and loops over cells."""

import sys
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsevox import Grid, Mesh, SparseTensor
from sparsevox.io.marching_cubes import marching_cubes
from sparsevox.io.surface_nets import surface_nets

CORNERS = list(product((0, 1), repeat=3))


def directed(mesh: Mesh) -> tuple[Tensor, Tensor]:
    """All directed edges as sorted numbers, and all of them turned round."""
    start, end = mesh.faces.flatten(), mesh.faces.roll(-1, 1).flatten()
    count = len(mesh.vertices)
    return (start * count + end).sort().values, (end * count + start).sort().values


def is_closed(mesh: Mesh) -> bool:
    return torch.equal(*directed(mesh))


def is_manifold(mesh: Mesh) -> bool:
    edges, turned = directed(mesh)
    return torch.equal(edges, turned) and len(edges.unique()) == len(edges)


def euler(mesh: Mesh) -> int:
    """Of a closed mesh in which every vertex has a face."""
    assert len(mesh.faces.unique()) == len(mesh.vertices)
    return len(mesh.vertices) - len(mesh.faces) // 2


def volume(mesh: Mesh) -> float:
    a, b, c = mesh.vertices[mesh.faces].unbind(1)
    return float((a.cross(b, dim=1) * c).sum() / 6)


def area(mesh: Mesh) -> float:
    a, b, c = mesh.vertices[mesh.faces].unbind(1)
    return float((b - a).cross(c - a, dim=1).norm(dim=1).sum() / 2)


def ball(p: Tensor, radius: float = 11.3) -> Tensor:
    return p.norm(dim=-1) - radius


def ring(p: Tensor) -> Tensor:
    return torch.hypot(p[..., :2].norm(dim=-1) - 10.2, p[..., 2]) - 4.1


def sample(function, half_width: float = 2.5, lower: int = -20, upper: int = 20) -> SparseTensor:
    """A distance on the voxels near zero."""
    grid = Grid.full(lower, upper)
    values = function(grid.to_world(grid.ijk.double()))
    near = values.abs() < half_width
    return SparseTensor(grid.prune(near), values[near][:, None])


def noise(grid: Grid, seed: int = 0) -> SparseTensor:
    return SparseTensor(grid, torch.rand(grid.num_voxels, 1, generator=torch.Generator().manual_seed(seed)) - 0.5)


@pytest.fixture
def measure():
    return pytest.importorskip("skimage.measure", reason="needs the extra io")


@pytest.fixture(params=[surface_nets, marching_cubes], ids=lambda function: function.__name__)
def extract(request):
    if request.param is marching_cubes:
        request.getfixturevalue("measure")
    return request.param


# Both ways to a surface


@pytest.mark.parametrize(("function", "characteristic"), [(ball, 2), (ring, 0)])
def test_a_narrow_band(extract, function, characteristic):
    mesh = extract(sample(function))
    expected = {ball: 4 / 3 * np.pi * 11.3**3, ring: 2 * np.pi**2 * 10.2 * 4.1**2}[function]
    assert is_manifold(mesh)
    assert euler(mesh) == characteristic
    assert volume(mesh) == pytest.approx(expected, rel=0.03)
    assert float(function(mesh.vertices).abs().max()) < 0.06


@pytest.mark.parametrize("level", [0.0, 1.37])
def test_a_plane_in_world_coordinates(extract, level):
    grid = Grid.full((-3, -4, -5), (4, 5, 6), voxel_size=(0.5, 0.4, 0.25), origin=(3.0, -1.0, 0.25))
    normal = torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64)
    middle = grid.to_world(torch.zeros(3, dtype=torch.float64))
    field = SparseTensor(grid, ((grid.to_world(grid.ijk.double()) - middle) @ normal + 0.1337 + level)[:, None])
    mesh = extract(field, level)
    assert len(mesh.faces) > 100
    torch.testing.assert_close((mesh.vertices - middle) @ normal, torch.full((len(mesh.vertices),), -0.1337).double())
    a, b, c = mesh.vertices[mesh.faces].unbind(1)
    along = (b - a).cross(c - a, dim=1) @ normal
    assert (along > 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_noise_within_a_wall_is_closed(extract, seed):
    """Positive outermost voxels, so that no cell is missing where the surface passes. All 256 kinds of cell occur."""
    field = noise(Grid.full(-7, 7), seed)
    outermost = (field.grid.ijk.float() + 0.5).abs().amax(1) > 6
    mesh = extract(field.replace(torch.where(outermost[:, None], 1.0, field.feats)))
    assert is_closed(mesh)
    assert volume(mesh) > 0


def test_values_at_the_level_count_as_inside(extract):
    grid = Grid.full(-3, 4)
    values = (grid.ijk.abs().amax(1) - 1).double()[:, None]
    mesh = extract(SparseTensor(grid, values))
    assert is_closed(mesh)
    assert volume(mesh) == pytest.approx(8, rel=0.3)


def test_the_surface_ends_with_the_field(extract):
    field = sample(ball)
    half = extract(field.prune(field.grid.ijk[:, 2] >= 0))
    edges, turned = directed(half)
    border = edges[~torch.isin(edges, turned)]
    assert len(border) > 50
    heights = half.vertices[border // len(half.vertices), 2]
    assert float(heights.max()) < 1


@pytest.mark.parametrize(
    "field",
    [
        SparseTensor(Grid.empty(), torch.zeros(0, 1)),
        SparseTensor(Grid.full(0, 1), torch.zeros(1, 1)),
        SparseTensor(Grid.full(0, 3), torch.ones(27, 1)),
        noise(Grid.full((0, 0, 0), (9, 9, 1))),
    ],
    ids=["empty", "one", "outside", "flat"],
)
def test_no_voxels(extract, field):
    mesh = extract(field)
    assert (mesh.vertices.shape, mesh.faces.shape) == ((0, 3), (0, 3))
    assert (mesh.vertices.dtype, mesh.faces.dtype) == (torch.float64, torch.int64)


def test_the_limits_of_coordinates(extract):
    limit = 1 << 17
    for lower in (-limit, limit - 8):
        field = noise(Grid.full(lower, lower + 8))
        moved = extract(SparseTensor(Grid.full(0, 8), field.feats))
        mesh = extract(field)
        assert torch.equal(mesh.faces, moved.faces)
        torch.testing.assert_close(mesh.vertices - lower, moved.vertices, atol=1e-5, rtol=0)


def test_the_same_bits_every_time(extract):
    first, second = extract(noise(Grid.full(0, 8))), extract(noise(Grid.full(0, 8)))
    assert torch.equal(first.vertices, second.vertices)
    assert torch.equal(first.faces, second.faces)


def test_errors_of_fields(extract):
    good = noise(Grid.full(0, 2))
    with pytest.raises(TypeError, match=r"field must be a sparsevox\.SparseTensor, got Grid"):
        extract(good.grid)
    with pytest.raises(ValueError, match="field must be one grid, got a batch of 2: select an item"):
        extract(noise(Grid.full(0, 2, batch_size=2)))
    with pytest.raises(ValueError, match="field must have one channel, got 2"):
        extract(good.replace(torch.zeros(8, 2)))
    with pytest.raises(ValueError, match="field must be finite, got nan in row 3"):
        extract(good.replace(torch.zeros(8, 1).index_fill(0, torch.tensor([3]), torch.nan)))
    with pytest.raises(TypeError, match="level must be a number, got '0'"):
        extract(good, "0")
    with pytest.raises(ValueError, match="level must be finite, got inf"):
        extract(good, float("inf"))


# Surface nets


def nets_by_loops(volume: np.ndarray) -> tuple[set[tuple[float, ...]], int]:
    """Vertices of each cell: the crossed edges that a walk over the faces of the cell joins. And how many quads."""
    found = set()
    for cell in product(*(range(n - 1) for n in volume.shape)):
        value = {c: volume[tuple(np.add(cell, c))] for c in CORNERS}
        edges = {
            (a, b): np.add(cell, a) + np.subtract(b, a) * value[a] / (value[a] - value[b])
            for a, b in product(CORNERS, CORNERS)
            if sum(b) == sum(a) + 1 and np.abs(np.subtract(a, b)).sum() == 1 and (value[a] <= 0) != (value[b] <= 0)
        }
        groups = [{edge} for edge in edges]
        for axis, side in product(range(3), (0, 1)):
            face = [e for e in edges if all(c[axis] == side for c in e)]
            pairs = [face] if len(face) == 2 else [[e for e in face if c in e] for c in CORNERS if value[c] <= 0]
            for pair in (p for p in pairs if len(p) == 2):
                touched = [g for g in groups if g & set(pair)]
                groups = [g for g in groups if g not in touched] + [set().union(*touched)]
        found |= {tuple(np.mean([edges[e] for e in group], 0).round(6)) for group in groups}
    quads = 0
    for axis in range(3):
        inside = np.moveaxis(volume <= 0, axis, 0)[:, 1:-1, 1:-1]
        quads += int((inside[1:] != inside[:-1]).sum())
    return found, quads


@pytest.mark.parametrize("seed", range(3))
def test_nets_by_loops(seed):
    field = noise(Grid.full(0, (6, 7, 5)), seed).to(torch.float64)
    mesh = surface_nets(field)
    vertices, quads = nets_by_loops(field.dense()[0, 0].numpy())
    assert len(mesh.faces) == 2 * quads
    assert len(mesh.vertices) == len(vertices)
    assert {tuple(v) for v in mesh.vertices.numpy().round(6).tolist()} == vertices


def test_quads_are_cut_along_the_shorter_diagonal():
    mesh = surface_nets(noise(Grid.full(0, 8)))
    quads = mesh.faces.reshape(-1, 6)
    corners = mesh.vertices[quads]
    assert torch.equal(quads[:, [0, 2]], quads[:, [3, 4]])
    cut, other = corners[:, 0] - corners[:, 2], corners[:, 1] - corners[:, 5]
    assert (cut.norm(dim=1) <= other.norm(dim=1)).all()


def test_smoothing_stays_in_the_cells():
    grid = Grid.full(-9, 10)
    field = SparseTensor(grid, ball(grid.ijk.double(), 7.6).sign()[:, None])
    rough, smooth = surface_nets(field), surface_nets(field, smooth=5)
    cell = rough.vertices.floor()
    assert (smooth.vertices >= cell).all()
    assert (smooth.vertices <= cell + 1).all()
    assert is_closed(smooth)
    assert area(smooth) < 0.95 * area(rough)
    assert volume(smooth) == pytest.approx(4 / 3 * np.pi * 7.6**3, rel=0.1)


def test_errors_of_smoothing():
    with pytest.raises(ValueError, match="smooth must not be negative, got -1"):
        surface_nets(noise(Grid.full(0, 2)), smooth=-1)
    with pytest.raises(TypeError, match=r"smooth must be an int, got 0\.5"):
        surface_nets(noise(Grid.full(0, 2)), smooth=0.5)  # type: ignore[arg-type]


# Marching cubes


def same_triangles(mesh: Mesh, vertices: np.ndarray, faces: np.ndarray) -> bool:
    """Whether two meshes are equal but for the order of vertices and faces."""
    from scipy.spatial import cKDTree

    distance, match = cKDTree(vertices).query(mesh.vertices.numpy())
    assert distance.max() < 1e-4
    assert len(set(match)) == len(vertices) == len(mesh.vertices)

    def turned(rows: np.ndarray) -> set[tuple[int, ...]]:
        return {tuple(np.roll(row, -int(row.argmin()))) for row in rows}

    return len(faces) == len(mesh.faces) and turned(match[mesh.faces.numpy()]) == turned(faces)


@pytest.mark.parametrize("lower", [(-9, -70, 0), (60, -3, 120)])
def test_as_scikit_image_on_the_whole_volume(measure, lower):
    """Noise, in which each kind of cube occurs, across the borders of blocks."""
    grid = Grid.full(lower, [a + n for a, n in zip(lower, (12, 80, 10), strict=True)])
    field = noise(grid)
    vertices, faces, *_ = measure.marching_cubes(field.dense()[0, 0].numpy(), 0.0, allow_degenerate=True)
    assert same_triangles(marching_cubes(field), vertices + lower, faces)


def test_cubes_with_a_missing_voxel_are_left_out(measure):
    grid = Grid.full(0, 9)
    field = noise(grid).prune(torch.rand(grid.num_voxels, generator=torch.Generator().manual_seed(1)) < 0.9)
    exists = SparseTensor(grid, field.grid.contains(grid.coords)[:, None].float()).dense()[0, 0].numpy() > 0
    mask = np.zeros(exists.shape, bool)
    mask[1:, 1:, 1:] = np.lib.stride_tricks.sliding_window_view(exists, (2, 2, 2)).all((3, 4, 5))
    volume = field.dense(0, 9)[0, 0].numpy()
    vertices, faces, *_ = measure.marching_cubes(volume, 0.0, allow_degenerate=True, mask=mask)
    assert same_triangles(marching_cubes(field), vertices, faces)


def test_marching_cubes_without_scikit_image(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match=r"pip install 'sparsevox\[io\]'"):
        marching_cubes(noise(Grid.full(0, 2)))
