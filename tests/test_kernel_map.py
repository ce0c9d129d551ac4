"""Kernel maps: every pair obeys the rule of coordinates, and every pair that obeys it is there.

The oracle looks for `stride * c + t * dilation - padding` in a dictionary of tuples.
"""

import itertools
import random
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsevox import Grid, KernelMap
from sparsevox.conv_geometry import Geometry
from sparsevox.plans import Bags
from sparsevox.testing import LIMIT, Voxel, VoxelSet, as_coords, cloud, row_order, voxel_sets
from tests.definitions.neighbors import kernel_table, taps
from tests.definitions.plans import adjoint_table

Axes = tuple[int, int, int]
Table = list[list[int]]


def options(geometry: Geometry) -> dict[str, Any]:
    return {"stride": geometry.stride, "dilation": geometry.dilation, "padding": geometry.padding}


def grid_of(voxels: list[Voxel], batch_size: int, voxel_size: Axes = (1, 1, 1)) -> Grid:
    return Grid.from_coords(as_coords(voxels), batch_size=batch_size, voxel_size=voxel_size)


class Case(NamedTuple):
    fine: list[Voxel]
    coarse: list[Voxel]
    batch_size: int
    geometry: Geometry


def axes(lowest: int, highest: int) -> st.SearchStrategy[Axes]:
    numbers = st.integers(lowest, highest)
    return st.one_of(st.tuples(numbers, numbers, numbers), numbers.map(lambda n: (n, n, n)))


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    kernel = draw(st.one_of(axes(1, 3), st.sampled_from([(7, 2, 1), (1, 7, 3), (5, 1, 4), (4, 4, 4)])))
    stride, dilation = draw(axes(1, 4)), draw(st.one_of(st.just((1, 1, 1)), axes(1, 9)))
    x, y, z = ((k - 1) // 2 * d for k, d in zip(kernel, dilation, strict=True))
    return Geometry(kernel, stride, dilation, draw(st.one_of(st.just((x, y, z)), axes(0, 9))))


@st.composite
def maps(draw: st.DrawFn) -> Case:
    """Coarse voxels that meet fine ones, and some that need not."""
    data, geometry = draw(voxel_sets(max_voxels=60)), draw(geometries())
    rng = random.Random(draw(st.integers(0, 1 << 20)))
    coarse: set[Voxel] = set()
    for b, *ijk in data.voxels:
        tap = rng.choice(taps(geometry))
        per_axis = zip(ijk, tap, geometry.stride, geometry.dilation, geometry.padding, strict=True)
        near = [(f + p - t * d) // s + rng.choice((0, 0, 0, 1)) for f, t, s, d, p in per_axis]
        coarse.add((b, *(min(max(c, -LIMIT), LIMIT - 1) for c in near)))
    coarse |= draw(voxel_sets(max_voxels=20, max_batch=1)).voxels
    return Case(row_order(data.voxels), row_order(coarse), data.batch_size, geometry)


def check_map(kernel_map: KernelMap, fine: list[Voxel], coarse: list[Voxel], geometry: Geometry) -> None:
    expected = kernel_table(fine, coarse, geometry)
    assert kernel_map.geometry == geometry
    assert kernel_map.table.dtype == kernel_map.up.table.dtype == torch.int32
    assert (kernel_map.num_fine, kernel_map.num_coarse) == (len(fine), len(coarse))
    assert kernel_map.table.tolist() == expected
    assert kernel_map.up.table.tolist() == adjoint_table(expected, len(fine))


@given(maps())
def test_a_map_between_two_grids_holds_every_pair(case: Case) -> None:
    fine, coarse = grid_of(case.fine, case.batch_size), grid_of(case.coarse, case.batch_size, case.geometry.stride)
    kernel_map = fine.kernel_map(case.geometry.kernel_size, **options(case.geometry), target=coarse)
    check_map(kernel_map, case.fine, case.coarse, case.geometry)
    assert not kernel_map.symmetric


@given(voxel_sets(max_voxels=60), geometries())
def test_a_map_within_a_grid_holds_every_pair(data: VoxelSet, geometry: Geometry) -> None:
    geometry = geometry._replace(stride=(1, 1, 1))
    rows = row_order(data.voxels)
    kernel_map = grid_of(rows, data.batch_size).kernel_map(geometry.kernel_size, **options(geometry))
    check_map(kernel_map, rows, rows, geometry)
    if kernel_map.symmetric:
        assert torch.equal(kernel_map.table.flip(0), kernel_map.up.table)


@given(voxel_sets(max_voxels=60), axes(1, 7).map(lambda k: [n - 1 + n % 2 for n in k]), axes(1, 5))
def test_odd_kernels_with_the_default_padding_are_symmetric(data: VoxelSet, kernel: list[int], dilation: Axes) -> None:
    rows = row_order(data.voxels)
    kernel_map = grid_of(rows, data.batch_size).kernel_map(kernel, dilation=dilation)
    assert kernel_map.symmetric
    assert torch.equal(kernel_map.table.flip(0), kernel_map.up.table)
    assert kernel_map.table[len(kernel_map.table) // 2].tolist() == list(range(len(rows)))


@pytest.mark.parametrize(
    ("kernel", "options", "expected"),
    [
        (3, {}, True),
        ((3, 1, 5), {"dilation": (2, 9, 1)}, True),
        (2, {"dilation": 2, "padding": 1}, True),
        (2, {}, False),
        (3, {"padding": 0}, False),
        (3, {"padding": (1, 1, 2)}, False),
    ],
)
def test_which_maps_are_symmetric(kernel: Any, options: dict[str, Any], expected: bool) -> None:
    assert Grid.full(0, 3).kernel_map(kernel, **options).symmetric == expected
    assert not Grid.full(0, 3).kernel_map(kernel, **options, target=Grid.full(0, 3)).symmetric
    assert not Grid.full(0, 3).kernel_map(kernel, **options).geometry._replace(stride=(1, 2, 1)).symmetric


@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (6, 2), (7, 3)])
def test_the_default_padding(kernel: int, padding: int) -> None:
    grid = Grid.full(0, 4)
    assert grid.kernel_map(kernel, dilation=(1, 2, 3)).geometry.padding == (padding, 2 * padding, 3 * padding)
    assert grid.kernel_map(kernel) is grid.kernel_map(kernel, padding=padding)
    for verb in (grid.strided, grid.generative):
        made = verb(kernel, 2)
        assert made is verb(kernel, 2, padding=padding)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 7])
def test_every_geometry_of_one_axis(kernel: int, axis: int) -> None:
    """Steps of any length lead from any position in a brick to any other."""

    def along(value: int, other: int) -> Axes:
        x, y, z = (value if a == axis else other for a in range(3))
        return x, y, z

    def line(places: list[int]) -> list[Voxel]:
        return row_order((0, *along(place, 5)) for place in places)

    rng = random.Random(kernel)
    fine = line([x for x in range(-30, 31) if rng.random() < 0.8])
    coarse = line([x for x in range(-14, 14) if rng.random() < 0.9])
    grid = grid_of(fine, 1)
    targets = {stride: grid_of(coarse, 1, along(stride, 1)) for stride in (1, 2, 3, 4)}
    for stride, dilation, padding in itertools.product(targets, (1, 2, 3, 4, 7, 8), (0, 1, 2, 4, 8)):
        geometry = Geometry(along(kernel, 1), along(stride, 1), along(dilation, 1), along(padding, 0))
        kernel_map = grid.kernel_map(geometry.kernel_size, **options(geometry), target=targets[stride])
        assert kernel_map.table.tolist() == kernel_table(fine, coarse, geometry), geometry
        if stride == 1:
            own = grid.kernel_map(geometry.kernel_size, **options(geometry))
            assert own.table.tolist() == kernel_table(fine, fine, geometry), geometry


CORNERS = [(0, *ijk) for ijk in itertools.product((-LIMIT, -1, 0, LIMIT - 1), repeat=3)]


@pytest.mark.parametrize("geometry", [(3, 1, 1, 1), (3, 1, 1 << 17, 1 << 17), (2, 1, (1 << 18) - 1, 0), (3, 2, 1, 1)])
def test_nothing_wraps_around_at_the_limits(geometry: tuple[int, int, int, int]) -> None:
    k, s, d, p = ((n, n, n) for n in geometry)
    fine = row_order(CORNERS)
    coarse = row_order((0, *(c // s[0] for c in v[1:])) for v in CORNERS) if s[0] > 1 else fine
    target = grid_of(coarse, 1, s)
    kernel_map = grid_of(fine, 1).kernel_map(k, stride=s, dilation=d, padding=p, target=target)
    coarse = [tuple(v) for v in target.coords.tolist()]
    check_map(kernel_map, fine, coarse, Geometry(k, s, d, p))


@pytest.mark.parametrize("kernel", [(5, 5, 5), (7, 7, 7)])
def test_many_taps(kernel: Axes) -> None:
    rows = row_order(cloud("clustered", 60, 3) | cloud("solid", 30, 4, item=2))
    x, y, z = (k // 2 for k in kernel)
    check_map(grid_of(rows, 3).kernel_map(kernel), rows, rows, Geometry(kernel, (1, 1, 1), (1, 1, 1), (x, y, z)))


def test_many_bricks() -> None:
    """More bricks than are searched one by one: within a grid, and to a grid of other bricks."""
    rng = random.Random(0)
    rows = row_order((rng.randrange(2), *(rng.randrange(-25, 25) for _ in range(3))) for _ in range(4000))
    rows = list(dict.fromkeys(rows))
    grid = grid_of(rows, 2)
    assert grid.num_bricks > 1000
    geometry = Geometry((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1))
    assert grid.kernel_map(3).table.tolist() == kernel_table(rows, rows, geometry)
    others = rows[::3]
    assert grid.kernel_map(3, target=grid_of(others, 2)).table.tolist() == kernel_table(rows, others, geometry)


def test_the_default_target_is_the_grid_or_what_is_reached() -> None:
    grid = grid_of(row_order(cloud("clustered", 60, 3)), 1)
    assert grid.kernel_map(3).num_coarse == grid.num_voxels
    reached = grid.strided(3, 2)
    kernel_map = grid.kernel_map(3, stride=2)
    assert kernel_map.num_coarse == reached.num_voxels
    assert torch.equal(kernel_map.table, grid.kernel_map(3, stride=2, target=reached).table)
    assert (kernel_map.table >= 0).any(0).all()


def test_a_coarse_grid_may_share_the_bricks_of_the_fine_one() -> None:
    rows = row_order(cloud("clustered", 60, 3))
    fine, geometry = grid_of(rows, 1), Geometry((3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1))
    kernel_map = fine.kernel_map(3, stride=2, target=Grid(fine.bricks, voxel_size=(2.0, 2.0, 2.0)))
    check_map(kernel_map, rows, rows, geometry)


def test_two_grids_may_have_as_many_bricks() -> None:
    fine: list[Voxel] = [(0, 3, 0, 0)]
    coarse: list[Voxel] = [(0, 4, 0, 0)]
    kernel_map = grid_of(fine, 1).kernel_map(3, target=grid_of(coarse, 1))
    check_map(kernel_map, fine, coarse, Geometry((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)))


def test_repr_says_what_it_is() -> None:
    text = repr(Grid.full(0, 10).kernel_map((3, 1, 1), stride=2))
    assert text == "KernelMap(kernel_size=(3, 1, 1), stride=2, dilation=1, padding=(1, 0, 0), N=1,000, M=150, cpu)"


def test_nbytes_counts_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEVOX_BACKEND", "reference")  # the tensors of its plans are counted
    grid = Grid.full(0, 10)
    kernel_map = grid.kernel_map(3)
    table = 27 * 1000 * 4
    assert kernel_map.nbytes == table
    pairs = (28**3) * 4  # each axis has 10 + 9 + 9 pairs
    assert (kernel_map.table >= 0).sum() == 28**3
    starts = kernel_map.down.pairs.starts.numel() * 8
    assert kernel_map.nbytes == table + 2 * pairs + starts
    assert kernel_map.up.table.shape == (27, 1000)
    assert kernel_map.nbytes == 2 * table + 2 * pairs + starts
    assert isinstance(kernel_map.down.plan, Bags)  # shares three tensors; new are the order and the starts of 1000 rows
    assert kernel_map.nbytes == 2 * table + 3 * pairs + starts + 1001 * 4
