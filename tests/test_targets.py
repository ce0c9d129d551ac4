"""Grids that convolutions reach: strided ones, and generative ones. The oracle divides tuples, tap by tap."""

import itertools
import random
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsevox import Grid
from sparsevox.conv_geometry import Geometry
from sparsevox.testing import LIMIT, Voxel, VoxelSet, as_coords, cloud, row_order, voxel_sets
from tests.definitions.neighbors import generative, strided

Axes = tuple[int, int, int]


def default(kernel: Axes, stride: Axes, dilation: Axes) -> Geometry:
    x, y, z = ((k - 1) // 2 * d for k, d in zip(kernel, dilation, strict=True))
    return Geometry(kernel, stride, dilation, (x, y, z))


def in_range(voxels: Iterable[Voxel]) -> bool:
    return all(-LIMIT <= c < LIMIT for voxel in voxels for c in voxel[1:])


def grid_of(data: VoxelSet) -> Grid:
    return Grid.from_coords(
        as_coords(data.voxels), batch_size=data.batch_size, voxel_size=(1.0, 2.0, 0.5), origin=(0.0, 1.0, 2.0)
    )


def check(verb: str, data: VoxelSet, shape: Geometry) -> None:
    """The grid that the verb makes, or its ValueError, where a voxel that is reached is out of range."""
    expected = (strided if verb == "strided" else generative)(data.voxels, shape)
    grid = grid_of(data)
    if not in_range(expected):
        with pytest.raises(ValueError, match="out of the range"):
            getattr(grid, verb)(shape.kernel_size, shape.stride, dilation=shape.dilation, padding=shape.padding)
        return
    result = getattr(grid, verb)(shape.kernel_size, shape.stride, dilation=shape.dilation, padding=shape.padding)
    assert [tuple(v) for v in result.coords.tolist()] == row_order(expected)
    assert result.batch_size == data.batch_size
    scale = [s if verb == "strided" else 1 / s for s in shape.stride]
    sizes = [edge * f for edge, f in zip((1.0, 2.0, 0.5), scale, strict=True)]
    # The center of a coarse voxel is the center of its block: of the fine voxels from 0 to s - 1 for voxel 0.
    shift = [(new - old) / 2 for new, old in zip(sizes, (1.0, 2.0, 0.5), strict=True)]
    assert result.voxel_size == pytest.approx(sizes)
    assert result.origin == pytest.approx([o + e for o, e in zip((0.0, 1.0, 2.0), shift, strict=True)])


def axes(lowest: int, highest: int) -> st.SearchStrategy[Axes]:
    numbers = st.integers(lowest, highest)
    return st.one_of(st.tuples(numbers, numbers, numbers), numbers.map(lambda n: (n, n, n)))


@st.composite
def shapes(draw: st.DrawFn) -> Geometry:
    kernel, stride = draw(st.one_of(axes(1, 3), axes(1, 4))), draw(axes(1, 4))
    shape = default(kernel, stride, draw(st.one_of(st.just((1, 1, 1)), axes(1, 3))))
    return shape._replace(padding=draw(axes(0, 5))) if draw(st.booleans()) else shape


@given(voxel_sets(max_voxels=40), shapes())
def test_strided_reaches_what_a_tap_reaches(data: VoxelSet, shape: Geometry) -> None:
    check("strided", data, shape)


@given(st.booleans().flatmap(lambda limits: voxel_sets(max_voxels=20, limits=limits)), shapes())
def test_generative_reaches_what_a_tap_reaches(data: VoxelSet, shape: Geometry) -> None:
    check("generative", data, shape)


def ones(x: int, y: int = 1, z: int = 1) -> Axes:
    return x, y, z


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "shape",
    [
        default(ones(3, 3, 3), ones(2, 2, 2), ones(1)),
        default(ones(2, 2, 2), ones(2, 2, 2), ones(1)),
        default(ones(1), ones(2, 2, 2), ones(1)),
        default(ones(2, 2, 2), ones(3, 3, 3), ones(1)),
        default(ones(3, 3, 3), ones(2, 2, 2), ones(2, 2, 2)),
        default(ones(3, 3, 3), ones(1), ones(3, 3, 3)),
        default(ones(3, 1, 1), ones(2), ones(1)),
        Geometry(ones(3, 3, 3), ones(2, 2, 2), ones(1), ones(0)),
        Geometry(ones(3, 3, 3), ones(2, 2, 2), ones(1), ones(4, 7, 9)),
        Geometry(ones(2, 3, 1), ones(4, 1, 2), ones(2, 1, 3), ones(5, 0, 2)),
    ],
    ids=str,
)
@pytest.mark.parametrize("verb", ["strided", "generative"])
def test_named_geometries(verb: str, shape: Geometry, seed: int) -> None:
    kinds = ("clustered", "isolated") if seed else ("linear", "solid")
    voxels = cloud(kinds[0], 60, seed) | cloud(kinds[1], 60, seed, item=2)
    check(verb, VoxelSet(frozenset(voxels), 4), shape)


@pytest.mark.parametrize("verb", ["strided", "generative"])
def test_nothing_reaches_nothing(verb: str) -> None:
    for shape in (default(ones(3, 3, 3), ones(2, 2, 2), ones(1)), default(ones(2, 2, 2), ones(3, 3, 3), ones(2))):
        for batch_size in (0, 1, 3):
            check(verb, VoxelSet(frozenset(), batch_size), shape)


CORNERS = frozenset((0, *ijk) for ijk in itertools.product((-LIMIT, -LIMIT + 1, LIMIT - 2, LIMIT - 1), repeat=3))


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
def test_strided_works_at_the_limits(kernel: int, stride: int, dilation: int) -> None:
    """The voxels that are reached are well within the range, although neighbors of the fine voxels are not."""
    k, s, d = ((n, n, n) for n in (kernel, stride, dilation))
    shape = default(k, s, d)
    assert in_range(strided(CORNERS, shape))
    check("strided", VoxelSet(CORNERS, 1), shape)


@pytest.mark.parametrize(
    ("voxel", "kernel"), [((1, LIMIT - 1, 0), (3, 3, 3)), ((1, LIMIT - 1, 0), (1, 3, 3)), ((0, 0, -LIMIT), (1, 3, 3))]
)
def test_strides_of_one_reach_out_of_range(voxel: Axes, kernel: Axes) -> None:
    check("strided", VoxelSet(frozenset([(0, *voxel)]), 1), default(kernel, (2, 1, 1), (1, 1, 1)))


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("padding", [None, 0, 3])
@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 2), (2, 2), (3, 2), (3, 3), (1, 3), (2, 3), (3, 4), (4, 1), (5, 3)])
def test_generative_works_up_to_the_limits(
    kernel: int, stride: int, dilation: int, padding: int | None, side: int
) -> None:
    """The outermost voxel all of whose taps stay within the range works; the next one is an error."""
    shape = default(ones(kernel), ones(stride), ones(dilation))
    if padding is not None:
        shape = shape._replace(padding=ones(padding, 0, 0))

    def out_at(place: int) -> set[Voxel]:
        return generative([(0, place, 0, 0)], shape)

    place = side * (LIMIT // stride - 40)
    while in_range(out_at(place + side)) and abs(place) < LIMIT - 1:
        place += side
    check("generative", VoxelSet(frozenset([(0, place, 0, 0)]), 1), shape)
    if abs(place) < LIMIT - 1:
        check("generative", VoxelSet(frozenset([(0, place, 0, 0), (0, place + side, 0, 0)]), 1), shape)


def test_isolated_odd_voxels_become_eight_each() -> None:
    """Isolated voxels are the worst case for a hash table that expects fewer outputs than inputs."""
    rng = random.Random(0)
    places = {tuple(8 * rng.randrange(-60, 60) + 1 for _ in range(3)) for _ in range(3000)}
    grid = Grid.from_coords(torch.tensor(sorted(places)))
    coarse = grid.strided(3, 2)
    assert coarse.num_voxels == 8 * len(places)
    kernel_map = grid.kernel_map(3, stride=2, target=coarse)
    assert ((kernel_map.table >= 0).sum(0) == 1).all()
    assert ((kernel_map.up.table >= 0).sum(0) == 8).all()


def test_a_strided_grid_of_blocks_is_the_coarse_grid() -> None:
    grid = Grid.from_coords(as_coords(cloud("clustered", 60, 3)))
    for factor in (2, 3, (2, 1, 1)):
        coarse = grid.coarsen(factor)
        assert grid.strided(factor, factor, padding=0) is coarse
        again = coarse.generative(factor, factor, padding=0)
        assert again.same_voxels(coarse.subdivide(factor))
    assert grid.strided(1, 1) is grid


def test_equal_calls_give_the_same_grid_while_it_lives() -> None:
    grid = Grid.from_coords(as_coords(cloud("clustered", 60, 3)))
    for verb in (grid.strided, grid.generative):
        first = verb(3)
        for same in (verb(3, 2), verb((3, 3, 3), [2, 2, 2], dilation=1), verb(3, 2, padding=1)):
            assert same is first
        for other in (verb(3, 1), verb(5, 2), verb(3, 2, padding=0), verb(3, 2, dilation=2)):
            assert other is not first
    assert grid.strided(3) is not grid.generative(3)
