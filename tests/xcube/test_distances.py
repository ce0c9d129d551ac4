"""Distances between shapes, against plain loops over points and voxels."""

import math
from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sparsevox as sv
from sparsevox import Grid, Mesh, Points, Voxels
from sparsevox.testing import as_coords, voxel_sets
from xcube.geometry.distances import (
    chamfer,
    distance_matrix,
    earth_movers,
    iou_matrix,
    normal_consistency,
    shape_points,
    with_progress,
)

pytest.importorskip("scipy", reason="search trees and assignments")

Place = tuple[float, float, float]

coordinates = st.integers(-40, 40).map(lambda n: n / 8)
places = st.tuples(coordinates, coordinates, coordinates)
clouds = st.lists(places, min_size=1, max_size=7)
pairs_of_five = st.tuples(st.lists(places, min_size=5, max_size=5), st.lists(places, min_size=5, max_size=5))
NONE = torch.zeros(0, 3)


def points(rows: list[Place]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)


def squared(x: Place, y: Place) -> float:
    return sum((p - q) ** 2 for p, q in zip(x, y, strict=True))


def slow_chamfer(a: list[Place], b: list[Place]) -> float:
    there = sum(min(squared(x, y) for y in b) for x in a) / len(a)
    return there + sum(min(squared(x, y) for x in a) for y in b) / len(b)


def slow_earth_movers(a: list[Place], b: list[Place]) -> float:
    costs = [
        sum(math.sqrt(squared(x, b[n])) for x, n in zip(a, order, strict=True)) for order in permutations(range(5))
    ]
    return min(costs) / 5


# Between two sets


@given(clouds, clouds)
def test_chamfer_is_that_of_loops(a: list[Place], b: list[Place]) -> None:
    assert chamfer(points(a), points(b)) == pytest.approx(slow_chamfer(a, b), abs=1e-12)


@given(pairs_of_five)
def test_earth_movers_is_that_of_all_orders(sets: tuple[list[Place], list[Place]]) -> None:
    a, b = sets
    assert earth_movers(points(a), points(b)) == pytest.approx(slow_earth_movers(a, b), abs=1e-12)


@pytest.mark.parametrize("distance", [chamfer, earth_movers])
@given(sets=pairs_of_five, step=places, seed=st.integers(0, 99))
def test_neither_order_nor_side_nor_place_matter(distance: Any, sets: Any, step: Place, seed: int) -> None:
    a, b = map(points, sets)
    mixed = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    expected = pytest.approx(distance(a, b), abs=1e-9)
    assert distance(b, a) == expected
    assert distance(a[mixed], b) == expected
    assert distance(a + points([step]), b + points([step])) == expected
    assert distance(a[mixed], a) == 0


def test_both_are_means_over_points() -> None:
    line = points([(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3)])
    outlier = line + points([(3, 0, 0)])
    assert chamfer(line, outlier) == 18  # 9 there, 9 back
    assert earth_movers(line, outlier) == 3
    assert chamfer(line.repeat(2, 1), outlier) == 18
    assert chamfer(line[:1], line) == (0 + 1 + 4 + 9) / 4


@pytest.mark.parametrize("distance", [chamfer, earth_movers])
def test_nothing_is_infinitely_far(distance: Any) -> None:
    one = torch.ones(4, 3)
    assert distance(one, NONE) == distance(NONE, one) == distance(NONE, NONE) == math.inf


# Between many


@pytest.mark.parametrize("metric", ["chamfer", "emd"])
def test_a_matrix_holds_every_pair(metric: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    a = [torch.rand(6, 3, generator=generator) for _ in range(3)] + [NONE]
    b = [torch.rand(6, 3, generator=generator) for _ in range(2)]
    single = chamfer if metric == "chamfer" else earth_movers
    expected = torch.tensor([[single(x, y) for y in b] for x in a], dtype=torch.float64)
    assert torch.equal(distance_matrix(a, b, metric=metric), expected)
    own = distance_matrix(a, metric=metric)
    assert torch.equal(own, distance_matrix(a, a, metric=metric))
    assert own.diagonal().tolist() == [0, 0, 0, math.inf]


def test_no_sets_make_an_empty_matrix() -> None:
    assert distance_matrix([], [torch.ones(2, 3)]).shape == (0, 1)
    assert distance_matrix([]).shape == (0, 0)


def test_a_title_shows_a_bar_only_in_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(with_progress([1, 2], "")) == list(with_progress([1, 2], "some")) == [1, 2]
    assert capsys.readouterr().err == ""


def test_bad_points_are_named() -> None:
    good = torch.ones(4, 3)
    with pytest.raises(ValueError, match="metric must be one of 'chamfer', 'emd', got 'f1'"):
        distance_matrix([good], metric="f1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"a\[1\] must have shape \[P, 3\], got \[4, 2\]"):
        distance_matrix([good, good[:, :2]])
    with pytest.raises(TypeError, match=r"b\[0\] must hold floating-point"):
        distance_matrix([good], [good.long()])
    with pytest.raises(ValueError, match=r"b\[0\] must be finite"):
        distance_matrix([good], [good * math.nan])
    with pytest.raises(ValueError, match=r"needs point sets of one size, got sizes \[3, 4\]"):
        distance_matrix([good], [good[:3]], metric="emd")


# Points of shapes


def row_of_voxels(count: int) -> Voxels:
    grid = Grid.full((0, 0, 0), (count, 1, 1), voxel_size=0.5, origin=0.25)
    return Voxels(grid, {"normal": torch.eye(3)[torch.arange(count) % 3].half(), "label": torch.arange(count)})


def test_voxels_are_drawn_without_replacement() -> None:
    made = shape_points(row_of_voxels(40), 30)
    assert made.positions.dtype == torch.float64
    assert len(made.positions.unique(dim=0)) == len(made) == 30
    assert set(made.positions[:, 0].tolist()) <= {0.25 + 0.5 * n for n in range(40)}
    numbers = ((made.positions[:, 0] - 0.25) / 0.5).long()
    assert torch.equal(made.attributes["normal"], torch.eye(3)[numbers % 3])
    assert list(made.attributes) == ["normal"]
    assert torch.equal(shape_points(row_of_voxels(40), 30).positions, made.positions)
    assert not torch.equal(shape_points(row_of_voxels(40), 30, seed=1).positions, made.positions)


def test_few_voxels_come_equally_often() -> None:
    made = shape_points(row_of_voxels(3), 11)
    _, counts = made.positions.unique(dim=0, return_counts=True)
    assert sorted(counts.tolist()) == [3, 4, 4]


def test_points_of_clouds_meshes_and_nothing() -> None:
    cloud = Points(torch.rand(9, 3), {"label": torch.arange(9)})
    assert len(shape_points(cloud, 4)) == 4
    assert not shape_points(cloud, 4).attributes
    pytest.importorskip("trimesh", reason="samples meshes")
    triangle = Mesh(torch.eye(3), torch.tensor([[0, 1, 2]]))
    on = shape_points(triangle, 50)
    assert torch.allclose(on.positions.sum(1), torch.ones(50, dtype=torch.float64))
    assert torch.allclose(on.attributes["normal"], torch.full((50, 3), 3**-0.5))
    assert len(shape_points(Voxels(Grid.empty()), 5)) == 0
    assert len(shape_points(Mesh(torch.zeros(3, 3), triangle.faces), 5)) == 0


def test_bad_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        shape_points(row_of_voxels(3), 0)
    with pytest.raises(ValueError, match="shape must be one grid, got a batch of 2"):
        shape_points(Voxels(Grid.empty(2)), 5)
    with pytest.raises(TypeError, match="shape must be Voxels, a Mesh or Points, got Grid"):
        shape_points(Grid.empty(), 5)  # type: ignore[arg-type]


# Normals


def slow_consistency(a: list[Place], na: list[Place], b: list[Place], nb: list[Place]) -> float:
    def agreement(i: int, j: int) -> float:
        return abs(sum(p * q for p, q in zip(na[i], nb[j], strict=True)))

    there = [agreement(i, min(range(len(b)), key=lambda j: squared(a[i], b[j]))) for i in range(len(a))]
    back = [agreement(min(range(len(a)), key=lambda i: squared(a[i], b[j])), j) for j in range(len(b))]
    return sum(there) / len(there) / 2 + sum(back) / len(back) / 2


def test_normal_consistency_is_that_of_loops() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.rand(7, 3, generator=generator), torch.rand(5, 3, generator=generator)
    na, nb = (torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=1) for n in (7, 5))
    expected = slow_consistency(a.tolist(), na.tolist(), b.tolist(), nb.tolist())
    first, second = Points(a, {"normal": na * 3}), Points(b, {"normal": -nb})
    assert normal_consistency(first, second) == pytest.approx(expected, abs=1e-6)
    assert normal_consistency(second, first) == pytest.approx(expected, abs=1e-6)
    assert normal_consistency(first, first) == pytest.approx(1)


def test_no_normal_agrees_with_none() -> None:
    one = Points(torch.rand(4, 3), {"normal": torch.tensor([[0.0, 0.0, 1.0]]).repeat(4, 1)})
    flat = Points(one.positions, {"normal": torch.zeros(4, 3)})
    assert normal_consistency(one, flat) == 0
    assert normal_consistency(one, one[:0]) == 0
    with pytest.raises(KeyError, match="b must have the attribute 'normal'"):
        normal_consistency(one, Points(one.positions))
    with pytest.raises(ValueError, match="a must be finite"):
        normal_consistency(Points(one.positions * math.inf, one.attributes), one)


# Shared voxels


@given(voxel_sets(max_voxels=40, max_batch=4))
def test_shared_voxels_are_those_of_sets(data: Any) -> None:
    grids = list(Grid.from_coords(as_coords(data.voxels), batch_size=data.batch_size))
    sets = [{v[1:] for v in data.voxels if v[0] == item} for item in range(data.batch_size)]
    others = [grids[0].dilate(1) if len(sets[0]) and all(abs(c) < 1000 for v in sets[0] for c in v) else grids[0]]
    of_others = [{tuple(v) for v in others[0].ijk.tolist()}]
    expected = [[len(a & b) / len(a | b) if a | b else 1.0 for b in [*sets, *of_others]] for a in sets]
    assert iou_matrix(grids, [*grids, *others]).tolist() == expected


def test_shared_voxels_of_nothing() -> None:
    full = Grid.full((0, 0, 0), (2, 2, 2))
    assert iou_matrix([Grid.empty(), full], [Grid.empty(), full]).tolist() == [[1, 0], [0, 1]]
    assert iou_matrix([], [full]).shape == (0, 1)
    with pytest.raises(ValueError, match=r"b\[0\] must be one grid, got a batch of 2"):
        iou_matrix([full], [Grid.empty(2)])
    assert iou_matrix([full], [sv.Grid.full((0, 0, 0), (2, 2, 1), voxel_size=3.0)]).tolist() == [[0.5]]
