"""Connected parts, by walks from voxel to voxel, and what is left without min_component."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsevox import Grid, Voxels
from sparsevox.testing import as_coords, voxel_sets
from xcube.geometry.components import component_of_voxel, components, without_small_components

pytest.importorskip("scipy", reason="finds the parts")

Voxel = tuple[int, ...]


def walked(voxels: set[Voxel]) -> list[set[Voxel]]:
    """The parts of voxels (b, i, j, k)."""
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
    """Voxels of each number."""
    return {frozenset(map(tuple, grid.coords[part == number].tolist())) for number in part.unique()}


@given(voxel_sets(max_voxels=60, max_batch=3))
def test_parts_are_those_of_a_walk(data: Any) -> None:
    grid = Grid.from_coords(as_coords(data.voxels), batch_size=data.batch_size)
    part, expected = component_of_voxel(grid), walked(data.voxels)
    assert part.dtype == torch.int64
    assert sorted(part.unique().tolist()) == list(range(len(expected)))
    assert sets(grid, part) == {frozenset(each) for each in expected}
    if grid.batch_size == 1:
        assert components(grid).tolist() == sorted(map(len, expected), reverse=True)


def test_corners_connect_and_shapes_of_a_batch_do_not() -> None:
    assert components(Grid.from_coords(torch.tensor([[0, 0, 0], [1, -1, 1], [3, 0, 0]]))).tolist() == [2, 1]
    one = Grid.full((0, 0, 0), (2, 2, 2))
    assert component_of_voxel(Grid.stack([one, Grid.empty(1), one])).bincount().tolist() == [8, 8]
    with pytest.raises(ValueError, match="grid must be one grid, got a batch of 2"):
        components(Grid.empty(2))
    assert components(Grid.empty(1)).tolist() == []


@given(voxel_sets(max_voxels=60, max_batch=3), st.sampled_from([0.0, 0.05, 0.2, 0.34, 0.5, 1.0]))
def test_small_parts_go_and_the_largest_stay(data: Any, share: float) -> None:
    grid = Grid.from_coords(as_coords(data.voxels), batch_size=data.batch_size)
    found = without_small_components(Voxels(grid, {"row": torch.arange(grid.num_voxels)}), share)
    expected: set[Voxel] = set()
    for shape in range(grid.batch_size):
        parts = walked({v for v in data.voxels if v[0] == shape})
        whole, largest = sum(map(len, parts)), max(map(len, parts), default=0)
        expected |= {v for part in parts if len(part) >= share * whole or len(part) == largest for v in part}
    assert set(map(tuple, found.grid.coords.tolist())) == expected
    assert found.grid.batch_size == grid.batch_size
    assert torch.equal(grid.coords[found.attributes["row"]], found.grid.coords)


def test_what_is_whole_is_not_touched() -> None:
    whole = Voxels(Grid.full((0, 0, 0), (3, 3, 3)))
    assert without_small_components(whole, 0.5) is whole
    nothing = Voxels(Grid.empty(2))
    assert without_small_components(nothing, 0.5) is nothing
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"share must lie in \[0, 1\], got"):
            without_small_components(whole, share)
