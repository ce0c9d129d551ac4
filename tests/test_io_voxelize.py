"""Voxels with attributes from meshes and points, against sums of fractions in dictionaries."""

import math
from collections import Counter, defaultdict
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsevox import Grid, Mesh, Points, Voxels
from sparsevox.io import fit, sample_surface, splat_attributes, voxelize
from sparsevox.io.voxelize import SAMPLES_PER_VOXEL, Splat

SIZE, ORIGIN = (0.5, 0.25, 1.0), (0.125, -1.0, 3.0)  # powers of two, so that fractions are what floats compute

SQUARE = Mesh(
    torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]), torch.tensor([[0, 1, 2], [0, 2, 3]])
)  # looks up


@st.composite
def scenes(draw) -> tuple[Grid, torch.Tensor, torch.Tensor]:
    """A batch of grids, and points in and around them with their batch items."""
    coordinate = st.tuples(st.integers(0, 2), *[st.integers(-2, 2)] * 3)
    voxels = draw(st.sets(coordinate, max_size=30))
    coords = torch.tensor(sorted(voxels), dtype=torch.int64).reshape(-1, 4)
    grid = Grid.from_coords(coords, batch_size=3, voxel_size=SIZE, origin=ORIGIN)
    # In sixteenths of a voxel: centers, faces, edges and corners of voxels are all among them.
    place = st.tuples(st.integers(0, 2), *[st.integers(-40, 40)] * 3)
    places = draw(st.lists(place, max_size=40))
    rows = [[o + s * n / 16 for o, s, n in zip(ORIGIN, SIZE, p[1:], strict=True)] for p in places]
    batch = torch.tensor([p[0] for p in places], dtype=torch.int64)
    return grid, torch.tensor(rows, dtype=torch.float64).reshape(-1, 3), batch


def in_grid(position: list[float]) -> list[Fraction]:
    return [(Fraction(p) - Fraction(o)) / Fraction(s) for p, o, s in zip(position, ORIGIN, SIZE, strict=True)]


def containing(positions: torch.Tensor, batch: torch.Tensor) -> list[tuple[int, ...]]:
    """The voxel of each point."""
    return [
        (b, *(math.floor(c + Fraction(1, 2)) for c in in_grid(p)))
        for p, b in zip(positions.tolist(), batch.tolist(), strict=True)
    ]


def weights(
    positions: torch.Tensor, batch: torch.Tensor, splat: str
) -> dict[tuple[int, ...], list[tuple[int, Fraction]]]:
    """For each voxel the points that count for it, and how much."""
    made = defaultdict(list)
    if splat == "nearest":
        for n, voxel in enumerate(containing(positions, batch)):
            made[voxel].append((n, Fraction(1)))
        return made
    for n, (p, b) in enumerate(zip(positions.tolist(), batch.tolist(), strict=True)):
        c = in_grid(p)
        low = [math.floor(x) for x in c]
        for corner in np.ndindex(2, 2, 2):
            ijk = [x + d for x, d in zip(low, corner, strict=True)]
            weight = math.prod((1 - abs(x - v) for x, v in zip(c, ijk, strict=True)), start=Fraction(1))
            if weight:
                made[(b, *ijk)].append((n, weight))
    return made


def nearest_row(coords: list[list[int]], row: int, among: set[int]) -> int | None:
    """The lowest row among those at the smallest distance within the batch item of `row`."""
    if row in among:
        return row
    item, *ijk = coords[row]
    far = [
        (sum((Fraction(s) * (a - b)) ** 2 for s, a, b in zip(SIZE, coords[n][1:], ijk, strict=True)), n)
        for n in among
        if coords[n][0] == item
    ]
    return min(far)[1] if far else None


# Splatting against fractions


@given(scenes(), st.sampled_from(["trilinear", "nearest"]), st.integers(0, 99))
def test_means_of_floats(scene, splat, seed):
    grid, positions, batch = scene
    generator = torch.Generator().manual_seed(seed)
    color = torch.randint(0, 17, (len(positions), 3), generator=generator).double() / 16
    flat = torch.randint(0, 17, (len(positions),), generator=generator).float()
    made = splat_attributes(Points(positions, {"color": color, "flat": flat}), grid, batch, splat=splat)
    assert (made.attributes["color"].shape, made.attributes["color"].dtype) == ((grid.num_voxels, 3), torch.float64)
    assert (made.attributes["flat"].shape, made.attributes["flat"].dtype) == ((grid.num_voxels,), torch.float32)
    around = weights(positions, batch, splat)
    coords = grid.coords.tolist()
    reached = {row for row, voxel in enumerate(coords) if tuple(voxel) in around}
    for row in range(grid.num_voxels):
        source = nearest_row(coords, row, reached)
        mean = [0.0] * 4
        if source is not None:
            nearby = around[tuple(coords[source])]
            total = sum(w for _, w in nearby)
            values = [color[:, 0], color[:, 1], color[:, 2], flat]
            mean = [float(sum(Fraction(v[n].item()) * w for n, w in nearby) / total) for v in values]
        assert made.attributes["color"][row].tolist() == pytest.approx(mean[:3], abs=1e-12)
        assert made.attributes["flat"][row].item() == pytest.approx(mean[3], rel=1e-6)


@given(scenes(), st.sampled_from(["trilinear", "nearest"]), st.integers(0, 99))
def test_sums_of_normals(scene, splat, seed):
    grid, positions, batch = scene
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randint(-2, 3, (len(positions), 3), generator=generator).double()
    made = splat_attributes(Points(positions, {"normal": normal}), grid, batch, splat=splat).attributes["normal"]
    around = weights(positions, batch, splat)
    for row, voxel in enumerate(grid.coords.tolist()):
        nearby = around.get(tuple(voxel), [])
        total = [float(sum(Fraction(normal[n, c].item()) * w for n, w in nearby)) for c in range(3)]
        expected = [t / (math.hypot(*total) + 1e-6) for t in total]
        assert made[row].tolist() == pytest.approx(expected, abs=1e-12)


@given(scenes(), st.integers(0, 99), st.sampled_from([torch.int64, torch.uint8, torch.int16, torch.bool]))
def test_majorities_of_integers(scene, seed, dtype):
    grid, positions, batch = scene
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randint(0, 3, (len(positions), 2), generator=generator).to(dtype)
    made = splat_attributes(Points(positions, {"label": pair[:, 0], "pair": pair}), grid, batch).attributes
    assert (made["label"].dtype, made["label"].shape) == (dtype, (grid.num_voxels,))
    assert (made["pair"].dtype, made["pair"].shape) == (dtype, (grid.num_voxels, 2))
    assert torch.equal(made["pair"][:, 0], made["label"])
    votes: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for voxel, label in zip(containing(positions, batch), pair[:, 1].tolist(), strict=True):
        votes[voxel][label] += 1
    coords = grid.coords.tolist()
    voted = {row for row, voxel in enumerate(coords) if tuple(voxel) in votes}
    for row in range(grid.num_voxels):
        source = nearest_row(coords, row, voted)
        counts = Counter() if source is None else votes[tuple(coords[source])]
        expected = min(counts, key=lambda label: (-counts[label], label), default=0)
        assert made["pair"][row, 1].item() == expected


@given(scenes())
def test_densities(scene):
    grid, positions, batch = scene
    made = splat_attributes(Points(positions), grid, batch, density=True).attributes
    counts = Counter(containing(positions, batch))
    assert list(made) == ["density"]
    assert made["density"].shape == (grid.num_voxels, 1)
    assert made["density"].flatten().tolist() == [counts[tuple(voxel)] for voxel in grid.coords.tolist()]


def test_order_and_number_of_attributes():
    points = Points(torch.zeros(2, 3), {"label": torch.tensor([1, 1]), "a": torch.ones(2), "density": torch.ones(2)})
    made = splat_attributes(points, Grid.full((0, 0, 0), (1, 1, 1)))
    assert list(made.attributes) == ["label", "a", "density"]
    assert splat_attributes(Points(torch.zeros(2, 3)), Grid.full((0, 0, 0), (1, 1, 1))).attributes == {}


def test_many_points_of_low_precision_in_one_voxel():
    """Their sum is beyond float16, and their number beyond what it counts."""
    value = torch.full((5000, 1), 100.0, dtype=torch.float16)
    for splat in ("trilinear", "nearest"):
        made = splat_attributes(
            Points(torch.zeros(5000, 3), {"v": value}), Grid.full((0, 0, 0), (1, 1, 1)), splat=splat
        )
        assert made.attributes["v"].dtype == torch.float16
        assert made.attributes["v"].tolist() == [[100.0]]


def test_far_from_the_origin_of_the_world():
    """Where float32 has steps of half a meter, as in maps: the nearest voxel is still the nearest."""
    origin = (5_000_000.0, 400_000.0, 100.0)
    ijk = torch.tensor([[0, 0, 0], [4, 0, 0], [9, 0, 0]])
    grid = Grid.from_coords(ijk, voxel_size=0.1, origin=origin)
    positions = torch.tensor([origin, (origin[0] + 0.9, origin[1], origin[2])], dtype=torch.float64)
    points = Points(positions, {"label": torch.tensor([7, 9]), "v": torch.tensor([7.0, 9.0])})
    made = splat_attributes(points, grid)
    rows = grid.index(ijk)
    assert made.attributes["label"][rows].tolist() == [7, 7, 9]
    assert made.attributes["v"][rows].tolist() == [7, 7, 9]


def test_gradients_reach_the_attributes():
    value = torch.rand(9, 2, dtype=torch.float64, requires_grad=True)
    positions = torch.rand(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3

    def loss(v: torch.Tensor, splat: Splat) -> torch.Tensor:
        made: torch.Tensor = splat_attributes(
            Points(positions, {"v": v}), Grid.full((0, 0, 0), (3, 3, 3)), splat=splat
        ).attributes["v"]
        return made

    for splat in ("trilinear", "nearest"):
        assert torch.autograd.gradcheck(lambda v, s=splat: loss(v, s), value)


@pytest.mark.parametrize("splat", ["trilinear", "nearest"])
def test_errors_of_splatting(splat):
    grid, points = (
        Grid.full((0, 0, 0), (2, 2, 2)),
        Points(torch.zeros(3, 3), {"label": torch.zeros(3, dtype=torch.int64)}),
    )
    with pytest.raises(ValueError, match="splat must be 'trilinear' or 'nearest', got 'cubic'"):
        splat_attributes(points, grid, splat="cubic")  # type: ignore[arg-type]  # what is tested
    for batch in (torch.zeros(2, dtype=torch.int64), torch.zeros(3, 1, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"batch must have shape \[3\]"):
            splat_attributes(points, grid, batch, splat=splat)
    with pytest.raises(TypeError, match="batch must hold integers"):
        splat_attributes(points, grid, torch.zeros(3), splat=splat)
    bad = Points(torch.tensor([[0.0, 0, 0], [0, math.nan, 0]]), {"label": torch.tensor([1, 2])})
    with pytest.raises(ValueError, match=r"points\.positions must be finite, got .*nan.* in row 1"):
        splat_attributes(bad, grid, splat=splat)
    with pytest.raises(ValueError, match="device"):
        splat_attributes(points.to("meta"), grid, splat=splat)


# Sampling


def test_samples_lie_on_the_surface_and_spread_evenly():
    mesh = Mesh(SQUARE.vertices * 2 + 5, SQUARE.faces)
    points = sample_surface(mesh, 4000, seed=3)
    assert points.positions.dtype == torch.float64
    assert torch.equal(points.positions[:, 2], torch.full((4000,), 5.0, dtype=torch.float64))
    cells = ((points.positions[:, :2] - 5) / 0.5).floor().long()
    assert cells.min() >= 0
    assert cells.max() <= 3
    counts = torch.bincount(cells[:, 0] * 4 + cells[:, 1], minlength=16)
    assert counts.min() > 180  # 250 expected, 15 the standard deviation
    assert counts.max() < 320
    assert points.attributes["normal"].unique(dim=0).tolist() == [[0, 0, 1]]


def test_equal_seeds_give_equal_points():
    a, b, c = (sample_surface(SQUARE, 50, seed=seed).positions for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_attributes_of_samples():
    vertex = {"color": SQUARE.vertices.clone(), "height": SQUARE.vertices[:, 0].double(), "corner": torch.arange(4)}
    mesh = Mesh(SQUARE.vertices, SQUARE.faces.int(), vertex, {"part": torch.tensor([5, 7]), "tint": torch.eye(2)})
    points = sample_surface(mesh, 500)
    a, xy = points.attributes, points.positions[:, :2]
    assert list(a) == ["normal", "part", "tint", "color", "height", "corner"]
    assert torch.allclose(a["color"].double(), points.positions, atol=1e-6)
    assert torch.allclose(a["height"], points.positions[:, 0])
    first = xy[:, 1] < xy[:, 0]  # below the diagonal
    assert torch.equal(a["part"], torch.where(first, 5, 7))
    assert torch.equal(a["tint"], torch.eye(2)[(~first).long()])
    for n in range(500):
        x, y = xy[n].tolist()
        weights = {0: 1 - x, 1: x - y, 2: y} if x > y else {0: 1 - y, 2: x, 3: y - x}
        assert a["corner"][n].item() == max(weights, key=lambda corner: weights[corner])


def test_normals_of_small_and_thin_triangles():
    for scale in (1e-5, 1e5):
        points = sample_surface(Mesh(SQUARE.vertices.double() * scale, SQUARE.faces), 20)
        assert points.attributes["normal"].unique(dim=0).tolist() == [[0, 0, 1]]
    thin = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0.5, 1e-7, 0]], dtype=torch.float64)
    mesh = Mesh(thin, torch.tensor([[0, 1, 2]]), {"v": torch.tensor([1.0, 1.0, 1.0])})
    points = sample_surface(mesh, 20)
    assert torch.allclose(points.attributes["v"], torch.ones(20), atol=1e-4)


def test_degenerate_faces_get_no_samples():
    faces = torch.tensor([[0, 0, 1], [0, 1, 2], [3, 3, 3]])
    points = sample_surface(Mesh(SQUARE.vertices, faces, {}, {"face": torch.arange(3)}), 100)
    assert points.attributes["face"].unique().tolist() == [1]
    nothing = sample_surface(Mesh(SQUARE.vertices, faces[[0, 2]], {"v": torch.ones(4, 2)}, {"f": torch.ones(2)}), 100)
    assert len(nothing) == 0
    assert {name: tuple(v.shape) for name, v in nothing.attributes.items()} == {
        "normal": (0, 3),
        "f": (0,),
        "v": (0, 2),
    }
    assert len(sample_surface(Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64)), 5)) == 0


def test_errors_of_sampling():
    with pytest.raises(ValueError, match="count must not be negative, got -1"):
        sample_surface(SQUARE, -1)
    with pytest.raises(TypeError, match="count must be an int"):
        sample_surface(SQUARE, 1.5)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match=r"mesh\.vertices must be finite, got .*nan.* in row 0"):
        sample_surface(Mesh(SQUARE.vertices / 0 + torch.inf, SQUARE.faces), 5)


# Fitting


@pytest.mark.parametrize("make", [lambda p: Points(p), lambda p: Mesh(p, torch.zeros(0, 3, dtype=torch.int64))])
@pytest.mark.parametrize(("lower", "upper"), [(-0.5, 0.5), ((0, 0, 0), (1, 4, 9)), ((-3, -2, -9), (-2.5, 7, 0))])
def test_a_shape_fills_a_box(make, lower, upper):
    generator = torch.Generator().manual_seed(0)
    positions = torch.rand(40, 3, generator=generator) * torch.tensor([3.0, 1.0, 2.0]) + 100
    bounds = fit(make(positions), lower, upper).bounds
    low, high = (torch.tensor(lower).expand(3).float(), torch.tensor(upper).expand(3).float())
    assert torch.allclose(bounds.mean(0), (low + high) / 2, atol=1e-4)
    fraction = (bounds[1] - bounds[0]) / (high - low)
    assert fraction.max().item() == pytest.approx(1, abs=1e-4)
    ratio = (bounds[1] - bounds[0]) / (positions.amax(0) - positions.amin(0))
    assert torch.allclose(ratio, ratio[0].expand(3), rtol=1e-4)


def test_shapes_without_extent_are_moved_only():
    assert fit(Points(torch.tensor([[5.0, 6, 7]])), 0, 2).positions.tolist() == [[1, 1, 1]]
    line = fit(Points(torch.tensor([[5.0, 6, 7], [9, 6, 7]])), -1, 1).positions
    assert line.tolist() == [[-1, 0, 0], [1, 0, 0]]
    assert len(fit(Points(torch.zeros(0, 3)))) == 0


def test_errors_of_fitting():
    for lower, upper in ((1, 1), (0, -1), ((0, 0, 0), (1, 1, 0))):
        with pytest.raises(ValueError, match="lower must lie below upper on every axis"):
            fit(Points(torch.zeros(1, 3)), lower, upper)
    with pytest.raises(ValueError, match="shape must be finite"):
        fit(Points(torch.full((1, 3), math.nan)))


# Voxelization


def test_points_to_voxels():
    generator = torch.Generator().manual_seed(0)
    positions = torch.rand(300, 3, generator=generator, dtype=torch.float64) * 4
    label = torch.randint(0, 3, (300,), generator=generator)
    made = voxelize(Points(positions, {"label": label}), voxel_size=SIZE, origin=ORIGIN, density=True)
    votes: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for voxel, n in zip(containing(positions, torch.zeros(300)), label.tolist(), strict=True):
        votes[tuple(map(int, voxel))][n] += 1
    assert {tuple(v) for v in made.grid.coords.tolist()} == set(votes)
    for row, voxel in enumerate(made.grid.coords.tolist()):
        counts = votes[tuple(voxel)]
        assert made.attributes["density"][row].item() == counts.total()
        assert made.attributes["label"][row].item() == min(counts, key=lambda k: (-counts[k], k))


def test_a_mesh_to_voxels():
    mesh = Mesh(SQUARE.vertices, SQUARE.faces, {"color": SQUARE.vertices}, {"part": torch.tensor([1, 2])})
    made = voxelize(mesh, voxel_size=0.1, origin=(0.05, 0.05, 0.0), density=True)
    assert made.grid.same_voxels(Grid.from_mesh(mesh.vertices, mesh.faces, voxel_size=0.1, origin=(0.05, 0.05, 0.0)))
    assert list(made.attributes) == ["normal", "part", "color", "density"]
    inside = (made.grid.ijk[:, :2] > 0).all(1) & (made.grid.ijk[:, :2] < 9).all(1) & (made.grid.ijk[:, 2] == 0)
    ijk = made.grid.ijk[inside]
    assert torch.allclose(made.attributes["normal"][inside], torch.tensor([0.0, 0, 1]), atol=1e-3)
    assert torch.allclose(made.attributes["color"][inside][:, :2], ijk[:, :2] * 0.1 + 0.05, atol=0.03)
    off_diagonal = ijk[:, 0] != ijk[:, 1]
    expected = torch.where(ijk[:, 1] < ijk[:, 0], 1, 2)
    assert torch.equal(made.attributes["part"][inside][off_diagonal], expected[off_diagonal])
    assert made.attributes["density"].sum() <= SAMPLES_PER_VOXEL * made.num_voxels


def test_a_given_grid():
    grid = Grid.full((0, 0, 0), (12, 12, 1), voxel_size=0.1)
    made = voxelize(SQUARE, grid=grid, samples=5000, density=True)
    assert made.grid is grid
    assert made.attributes["density"].sum() == 5000
    assert made.attributes["density"][grid.index(torch.tensor([[11, 11, 0]]))].item() == 0
    assert voxelize(Points(torch.zeros(4, 3)), grid=grid, density=True).attributes["density"].sum() == 4
    again = voxelize(SQUARE, grid=grid, samples=5000, density=True)
    assert torch.equal(again.attributes["normal"], made.attributes["normal"])
    other = voxelize(SQUARE, grid=grid, samples=5000, density=True, seed=1)
    assert not torch.equal(other.attributes["density"], made.attributes["density"])


def test_empty_shapes():
    nothing = voxelize(Points(torch.zeros(0, 3), {"label": torch.zeros(0, dtype=torch.int64)}), voxel_size=1.0)
    assert (nothing.num_voxels, nothing.attributes["label"].shape) == (0, (0,))
    mesh = voxelize(Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64)), voxel_size=1.0, density=True)
    assert (mesh.num_voxels, list(mesh.attributes)) == (0, ["normal", "density"])
    grid = Grid.full((0, 0, 0), (2, 2, 2), batch_size=2)
    blank = splat_attributes(Points(torch.zeros(0, 3), {"v": torch.zeros(0, 2), "n": torch.zeros(0).int()}), grid)
    assert blank.attributes["v"].tolist() == [[0, 0]] * 16
    assert blank.attributes["n"].tolist() == [0] * 16


def test_errors_of_voxelization():
    with pytest.raises(TypeError, match="shape must be a Mesh or Points, got Voxels"):
        voxelize(Voxels(Grid.empty()), voxel_size=1.0)  # type: ignore[arg-type]  # what is tested
    both: dict[str, Any] = {"voxel_size": 1.0, "grid": Grid.empty()}
    for options in ({}, both):
        with pytest.raises(ValueError, match="exactly one of voxel_size and grid must be given"):
            voxelize(SQUARE, **options)
    with pytest.raises(ValueError, match="splat must be"):
        voxelize(SQUARE, voxel_size=0.5, splat="cubic")  # type: ignore[arg-type]  # what is tested
    for bad in (math.nan, 1e9):
        shape = Points(torch.tensor([[bad, 0.0, 0.0]]))
        with pytest.raises(ValueError, match=r"finite|outside the grid"):
            voxelize(shape, voxel_size=1.0)
    with pytest.raises(ValueError, match="finite"):
        voxelize(Points(torch.tensor([[math.nan, 0.0, 0.0]])), grid=Grid.full((0, 0, 0), (1, 1, 1)))
