"""Dilation and erosion by boxes and stencils: definition, reference, kernels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsevox import Grid, _readback, morton
from sparsevox.morton import Bricks
from sparsevox.reference import morphology as reference
from sparsevox.reference.bricks import build_bricks
from sparsevox.testing import LIMIT, Voxel, VoxelSet, as_coords, row_order, voxel_sets
from tests.definitions.morphology import box, dilate, erode


@pytest.fixture
def kernels() -> Any:
    return pytest.importorskip("sparsevox.kernels.morphology", reason="kernels need Triton")


BOXES = [
    ([-1] * 3, [1] * 3),
    ([0] * 3, [1] * 3),
    ([-4, 0, -1], [4, 0, 2]),
    ([-4, -4, -4], [-4, -4, -4]),
    ([2, 1, 4], [3, 4, 4]),
]


def grid_of(data: VoxelSet) -> Grid:
    return Grid.from_coords(as_coords(data.voxels), batch_size=data.batch_size)


def assert_holds(grid: Grid, voxels: set[Voxel]) -> None:
    assert [tuple(v) for v in grid.coords.tolist()] == row_order(voxels)


boxes = st.tuples(*[st.tuples(st.integers(-6, 6), st.integers(0, 4))] * 3).map(
    lambda pairs: ([a for a, _ in pairs], [a + w for a, w in pairs])
)
containing_origin = st.tuples(*[st.tuples(st.integers(-2, 0), st.integers(0, 2))] * 3).map(
    lambda pairs: ([a for a, _ in pairs], [b for _, b in pairs])
)


@given(voxel_sets(max_voxels=60, limits=False), boxes)
def test_dilate_by_a_box(data: VoxelSet, bounds: tuple[list[int], list[int]]) -> None:
    lower, upper = bounds
    assert_holds(grid_of(data).dilate(lower=lower, upper=upper), dilate(data.voxels, box(lower, upper)))


@given(voxel_sets(max_voxels=150, limits=False), st.one_of(boxes, containing_origin))
def test_erode_by_a_box(data: VoxelSet, bounds: tuple[list[int], list[int]]) -> None:
    lower, upper = bounds
    grown = dilate(data.voxels, box([-1] * 3, [1] * 3))
    grid = Grid.from_coords(as_coords(grown), batch_size=data.batch_size)
    assert_holds(grid.erode(lower=lower, upper=upper), erode(grown, box(lower, upper)))


@pytest.mark.parametrize("radius", [0, 1, 3, 5, (0, 2, 7)])
def test_radius_is_a_box(radius: int | tuple[int, int, int]) -> None:
    reach = (radius,) * 3 if isinstance(radius, int) else radius
    voxels = {(0, 0, 0, 0), (0, 9, -3, 2)}
    offsets = box([-r for r in reach], reach)
    grid = Grid.from_coords(as_coords(voxels))
    assert_holds(grid.dilate(radius), dilate(voxels, offsets))
    assert_holds(grid.dilate(radius).erode(radius), erode(dilate(voxels, offsets), offsets))


@given(voxel_sets(max_voxels=40, limits=False), st.integers(0, 1 << 20), st.tuples(*[st.integers(1, 4)] * 3))
def test_stencils(data: VoxelSet, seed: int, shape: tuple[int, int, int]) -> None:
    stencil = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    stencil[tuple(s // 2 for s in shape)] = True
    center = [(s - 1) // 2 for s in shape]
    offsets = [tuple(a - c for a, c in zip(t, center, strict=True)) for t in stencil.nonzero().tolist()]
    grid = grid_of(data)
    assert_holds(grid.dilate(stencil=stencil), dilate(data.voxels, offsets))
    grown = grid.dilate(stencil=stencil)
    assert_holds(grown.erode(stencil=stencil), erode([tuple(v) for v in grown.coords.tolist()], offsets))


def test_a_full_stencil_is_a_box() -> None:
    grid = Grid.from_coords(as_coords([(0, 0, 0, 0), (0, 5, -3, 9)]))
    stencil = torch.ones(3, 2, 1, dtype=torch.bool)
    calls = _readback.calls
    assert_holds(
        grid.dilate(stencil=stencil),
        dilate({(0, 0, 0, 0), (0, 5, -3, 9)}, box([-1, 0, 0], [1, 1, 0])),
    )
    assert grid.dilate(stencil=stencil).erode(stencil=stencil).same_voxels(grid)
    assert _readback.calls == calls + 3


def test_a_far_box_is_one_shift() -> None:
    voxels: set[Voxel] = {(0, 0, 0, 0), (0, 5, -3, 9)}
    grid = Grid.from_coords(as_coords(voxels))
    lower, upper = [100_000, -2000, -3], [100_002, -1999, 2]
    calls = _readback.calls
    far = grid.dilate(lower=lower, upper=upper)
    assert _readback.calls <= calls + 4
    assert_holds(far, dilate(voxels, box(lower, upper)))
    assert_holds(far.erode(lower=lower, upper=upper), voxels)


def test_a_box_larger_than_a_grid_is_refused_at_once() -> None:
    calls = _readback.calls
    with pytest.raises(ValueError, match="at most 2147483647 voxels"):
        Grid.full(0, 1).dilate(700)
    assert _readback.calls <= calls + 3


@given(voxel_sets(max_voxels=80), containing_origin)
def test_erosion_at_the_border_of_the_range(data: VoxelSet, bounds: tuple[list[int], list[int]]) -> None:
    lower, upper = bounds
    assert_holds(grid_of(data).erode(lower=lower, upper=upper), erode(data.voxels, box(lower, upper)))


@given(voxel_sets(max_voxels=60, limits=False), voxel_sets(max_voxels=60, limits=False), boxes)
def test_dilation_and_erosion_are_adjoint(a: VoxelSet, b: VoxelSet, bounds: tuple[list[int], list[int]]) -> None:
    lower, upper = bounds
    size = max(a.batch_size, b.batch_size)
    small = Grid.from_coords(as_coords(a.voxels), batch_size=size)
    grown = small.dilate(lower=lower, upper=upper)
    large = grown | Grid.from_coords(as_coords(b.voxels), batch_size=size)
    assert (small - large.erode(lower=lower, upper=upper)).num_voxels == 0
    assert (large.erode(lower=lower, upper=upper).dilate(lower=lower, upper=upper) - large).num_voxels == 0


def test_kernels_equal_reference(bricks: Bricks, agree: Callable[..., Any]) -> None:
    keys, masks, _, offsets, _ = bricks
    for lower, upper in BOXES:
        grown = agree("morphology", "dilate_bricks", keys, masks, offsets, lower, upper)
    for lower, upper in (BOXES[0], BOXES[1], ([-4, 0, -2], [0, 3, 4])):
        table = kernels_table(grown[0])
        agree("morphology", "erode_bricks", grown[0], grown[1], offsets, table, lower, upper)
        table = kernels_table(keys)
        agree("morphology", "erode_bricks", keys, masks, offsets, table, lower, upper)


def kernels_table(keys: torch.Tensor) -> torch.Tensor:
    return pytest.importorskip("sparsevox.kernels.bricks", reason="kernels need Triton").brick_table(keys)


@pytest.mark.parametrize("corner", [-LIMIT, LIMIT - 1])
@pytest.mark.parametrize("axis", range(3))
def test_dilation_stops_at_the_range(axis: int, corner: int, device: torch.device, kernels: Any) -> None:
    voxel = [0, 0, 0, 0]
    voxel[axis + 1] = corner
    bricks = [t.to(device) for t in build_bricks(as_coords([tuple(voxel)]), 1)]
    outward = [0, 0, 0]
    outward[axis] = 1 if corner > 0 else -1
    inward = [-step for step in outward]
    for module in (reference, kernels):
        module.dilate_bricks(bricks[0], bricks[1], bricks[3], inward, inward)
        with pytest.raises(morton.VoxelError):
            module.dilate_bricks(bricks[0], bricks[1], bricks[3], outward, outward)
