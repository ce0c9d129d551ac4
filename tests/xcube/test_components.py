"""Connected components, against a flood fill from voxel to voxel, and the removal of small ones."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsevox import Grid, Voxels
from sparsevox.testing import as_coords, voxel_sets
from xcube.geometry.components import component_labels, component_sizes, without_small_components

pytest.importorskip("scipy", reason="finds the components")

Voxel = tuple[int, ...]


def flooded(voxels: set[Voxel]) -> list[set[Voxel]]:
    """The components of voxels (b, i, j, k)."""
    left, parts = set(voxels), []
    while left:
        part: set[Voxel] = set()
        todo = {left.pop()}
        while todo:
            here = todo.pop()
            part.add(here)
            near = {v for v in left if v[0] == here[0] and max(abs(a - b) for a, b in zip(v, here, strict=True)) == 1}
            left -= near
            todo |= near
        parts.append(part)
    return parts


def sets(grid: Grid, part: torch.Tensor) -> set[frozenset[Voxel]]:
    """The voxels of each label."""
    return {frozenset(map(tuple, grid.coords[part == number].tolist())) for number in part.unique()}


@given(voxel_sets(max_voxels=60, max_batch=3))
def test_components_are_those_of_a_flood_fill(data: Any) -> None:
    grid = Grid.from_coords(as_coords(data.voxels), batch_size=data.batch_size)
    part, expected = component_labels(grid), flooded(data.voxels)
    assert part.dtype == torch.int64
    assert sorted(part.unique().tolist()) == list(range(len(expected)))
    assert sets(grid, part) == {frozenset(each) for each in expected}
    if grid.batch_size == 1:
        assert component_sizes(grid).tolist() == sorted(map(len, expected), reverse=True)


def test_corners_connect_and_shapes_of_a_batch_do_not() -> None:
    assert component_sizes(Grid.from_coords(torch.tensor([[0, 0, 0], [1, -1, 1], [3, 0, 0]]))).tolist() == [2, 1]
    one = Grid.full((0, 0, 0), (2, 2, 2))
    assert component_labels(Grid.stack([one, Grid.empty(1), one])).bincount().tolist() == [8, 8]
    with pytest.raises(ValueError, match="grid must be one grid, got a batch of 2"):
        component_sizes(Grid.empty(2))
    assert component_sizes(Grid.empty(1)).tolist() == []


@given(voxel_sets(max_voxels=60, max_batch=3), st.sampled_from([0.0, 0.05, 0.2, 0.34, 0.5, 1.0]))
def test_small_components_go_and_the_largest_stay(data: Any, fraction: float) -> None:
    grid = Grid.from_coords(as_coords(data.voxels), batch_size=data.batch_size)
    found = without_small_components(Voxels(grid, {"row": torch.arange(grid.num_voxels)}), fraction)
    expected: set[Voxel] = set()
    for shape in range(grid.batch_size):
        parts = flooded({v for v in data.voxels if v[0] == shape})
        whole, largest = sum(map(len, parts)), max(map(len, parts), default=0)
        expected |= {v for part in parts if len(part) >= fraction * whole or len(part) == largest for v in part}
    assert set(map(tuple, found.grid.coords.tolist())) == expected
    assert found.grid.batch_size == grid.batch_size
    assert torch.equal(grid.coords[found.attributes["row"]], found.grid.coords)


def test_a_connected_shape_is_returned_as_it_is() -> None:
    whole = Voxels(Grid.full((0, 0, 0), (3, 3, 3)))
    assert without_small_components(whole, 0.5) is whole
    nothing = Voxels(Grid.empty(2))
    assert without_small_components(nothing, 0.5) is nothing
    for fraction in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"fraction must lie in \[0, 1\], got"):
            without_small_components(whole, fraction)
