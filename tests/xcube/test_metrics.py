"""Metrics of sets of shapes: that they say what they should, against loops, and on sets whose answer is known."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsevox import Grid, Mesh, Voxels
from xcube.evaluation.metrics import (
    coverage,
    minimum_matching_distance,
    one_nna,
    one_nna_error,
    set_metrics,
    shape_validity,
)
from xcube.geometry.distances import distance_matrix

pytest.importorskip("scipy", reason="search trees and graphs")

INF = math.inf


def tensor(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def clouds(seed: int, count: int, size: int = 12) -> list[Tensor]:
    """Ellipsoids of random size and place, as points."""
    generator = torch.Generator().manual_seed(seed)
    extent, middle = torch.rand(count, 1, 3, generator=generator), torch.randn(count, 1, 3, generator=generator) * 0.2
    where = torch.nn.functional.normalize(torch.randn(size, 3, generator=generator), dim=1)
    return list((where * (0.5 + extent) + middle).double())


def metrics_of(a: list[Tensor], b: list[Tensor]) -> Any:
    return set_metrics(distance_matrix(a), distance_matrix(a, b), distance_matrix(b))


# Sets whose answer is known


def test_two_halves_of_one_set_cannot_be_told_apart() -> None:
    everything = distance_matrix(clouds(0, 80))
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(100):
        a, b = torch.randperm(80, generator=generator).chunk(2)
        found.append(one_nna(everything[a][:, a], everything[a][:, b], everything[b][:, b]))
    assert sum(found) / 100 == pytest.approx(39 / 79, abs=0.015)  # a shape has 39 others of its own set, and 40 not
    assert max(abs(value - 0.5) for value in found) < 4 * one_nna_error(80)


def test_disjoint_sets_are_told_apart() -> None:
    a = clouds(0, 20)
    b = [cloud + 100 for cloud in clouds(1, 20)]
    found = metrics_of(a, b)
    assert found.one_nna == 1
    assert found.mmd > 10000


def test_a_set_and_itself_are_copies() -> None:
    a = clouds(0, 20)
    found = metrics_of(a, a)
    assert (found.one_nna, found.coverage, found.mmd) == (0, 1, 0)


def test_a_collapsed_set_covers_little() -> None:
    real = clouds(0, 20)
    collapsed = [real[7] + 0.001 * cloud for cloud in clouds(1, 20)]
    found = metrics_of(collapsed, real)
    assert found.coverage == 1 / 20
    assert found.one_nna > 0.9
    assert found.mmd > metrics_of(clouds(2, 20), real).mmd


def test_equal_shapes_count_half() -> None:
    same = torch.zeros(5, 5)
    assert one_nna(same, same, same) == 0.5


# Against loops


def slow_one_nna(generated: list[list[float]], between: list[list[float]], real: list[list[float]]) -> float:
    n = len(generated)
    right = 0.0
    for i in range(n):
        for own, other in (
            ([generated[i][j] for j in range(n) if j != i], between[i]),
            ([real[i][j] for j in range(n) if j != i], [row[i] for row in between]),
        ):
            nearest, beyond = min(own, default=INF), min(other)
            if nearest == beyond == INF or nearest < beyond:
                right += 1
            elif nearest == beyond:
                right += 0.5
    return right / (2 * n)


@st.composite
def matrices(draw: st.DrawFn) -> list[list[list[float]]]:
    size = draw(st.integers(1, 5))
    value = st.sampled_from([0.0, 1.0, 2.0, 3.0, 4.5, INF])
    row = st.lists(value, min_size=size, max_size=size)
    return [draw(st.lists(row, min_size=size, max_size=size)) for _ in range(3)]


@given(matrices())
def test_one_nna_is_that_of_loops(made: list[list[list[float]]]) -> None:
    assert one_nna(*map(tensor, made)) == pytest.approx(slow_one_nna(*made))


@given(matrices(), st.integers(0, 99))
def test_order_and_side_do_not_matter(made: list[list[list[float]]], seed: int) -> None:
    generated, between, real = map(tensor, made)
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randperm(len(generated), generator=generator) for _ in range(2))
    mixed = (generated[a][:, a], between[a][:, b], real[b][:, b])
    assert one_nna(*mixed) == one_nna(generated, between, real) == one_nna(real, between.T, generated)
    assert minimum_matching_distance(mixed[1]) == minimum_matching_distance(between)


def test_coverage_and_distance_of_a_matrix() -> None:
    between = tensor([[3, 1, 2, 9], [8, 0.5, 7, 9], [4, 5, 3, 9]])
    assert coverage(between) == 2 / 4
    assert minimum_matching_distance(between) == (3 + 0.5 + 2 + 9) / 4
    assert coverage(between.T) == 2 / 3


def test_the_error_is_binomial() -> None:
    assert one_nna_error(128) == pytest.approx(0.0442, abs=5e-5)
    generator = torch.Generator().manual_seed(0)
    coins = (torch.rand(4000, 128, generator=generator) < 0.5).double().mean(1)
    assert float(coins.std()) == pytest.approx(one_nna_error(128), rel=0.05)
    with pytest.raises(ValueError, match="shapes must be at least 1, got 0"):
        one_nna_error(0)


# Empty shapes and bad matrices


def test_empty_samples_make_everything_worse() -> None:
    real, good = clouds(0, 10), clouds(1, 10)
    some = [*good[:5], *[torch.zeros(0, 3)] * 5]
    full, half, none = metrics_of(good, real), metrics_of(some, real), metrics_of([torch.zeros(0, 3)] * 10, real)
    assert half.one_nna > full.one_nna
    assert none.one_nna == 1
    assert none.coverage == 0 < half.coverage <= full.coverage
    assert none.mmd == INF > half.mmd >= full.mmd


def test_bad_matrices_are_named() -> None:
    good = torch.ones(2, 2)
    with pytest.raises(ValueError, match="sets must be equally large, got 2 generated shapes and 3 real ones"):
        one_nna(good, torch.ones(2, 3), torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"real must have shape \[2, 2\], got \[3, 3\]"):
        one_nna(good, good, torch.ones(3, 3))
    with pytest.raises(ValueError, match="between must hold distances of at least 0, got nan"):
        coverage(torch.full((2, 2), math.nan))
    with pytest.raises(ValueError, match="between must hold distances of at least 0, got -1"):
        minimum_matching_distance(-good)
    with pytest.raises(ValueError, match=r"between must hold at least one distance, got shape \[0, 3\]"):
        minimum_matching_distance(torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"between must have shape \[G, R\], got \[2\]"):
        coverage(torch.ones(2))
    with pytest.raises(TypeError, match="generated must hold floating-point"):
        one_nna(good.long(), good, good)


# Sound shapes


def ball(radius: float) -> Voxels:
    axis = torch.arange(-7, 7)
    ijk = torch.cartesian_prod(axis, axis, axis)
    shell = Grid.from_coords(ijk[((ijk + 0.5).square().sum(1).sqrt() - radius).abs() < 0.8])
    return Voxels(shell, {"normal": torch.nn.functional.normalize(shell.ijk + 0.5, dim=1)})


def test_sound_shapes() -> None:
    whole = ball(5)
    found = shape_validity(whole)
    assert (found.voxels, found.components, found.largest_fraction, found.watertight) == (
        whole.num_voxels,
        1,
        1.0,
        True,
    )
    assert found.valid
    holed = shape_validity(whole.prune(whole.grid.ijk[:, 0] < 2))
    assert (holed.components, holed.watertight, holed.valid) == (1, False, False)
    loose = torch.tensor([[7, 7, 7]], dtype=torch.int32)
    with_loose_voxel = Voxels(Grid.from_coords(torch.cat([whole.grid.ijk, loose])))
    found = shape_validity(with_loose_voxel)
    assert (found.components, found.watertight, found.valid) == (2, True, False)
    assert found.largest_fraction == whole.num_voxels / (whole.num_voxels + 1)


def test_a_given_surface_is_looked_at() -> None:
    triangle = Mesh(torch.eye(3), torch.tensor([[0, 1, 2]]))
    assert not shape_validity(Voxels(Grid.full((0, 0, 0), (1, 1, 1))), triangle).watertight
    assert shape_validity(Voxels(Grid.full((0, 0, 0), (1, 1, 1)))).watertight


def test_nothing_is_not_valid() -> None:
    found = shape_validity(Voxels(Grid.empty()))
    assert (found.voxels, found.components, found.largest_fraction, found.watertight, found.valid) == (
        0,
        0,
        0.0,
        False,
        False,
    )
