"""Partial observations at all levels of a cascade: what exists, what is empty or inside, and what is unknown."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.xcube.test_complete import BOX, HALF, half_of_a_cube, outward
from tests.xcube.test_edit import SIZE, as_grid, as_set, boundary, cube
from xcube.data.hierarchy import build_hierarchy
from xcube.geometry.observation import inside_parts
from xcube.pipeline.observation import observation, seen_through


def test_the_observation_of_a_half() -> None:
    found = observation(half_of_a_cube(), BOX, known=[HALF])
    # At the finest level, every voxel of the half is known, and the normals say which part is inside.
    assert as_set(found.unknown[1]) == {(x, y, z) for x in range(32) for y in range(-32, 32) for z in range(-32, 32)}
    assert as_set(found.full[1].grid) == as_set(half_of_a_cube().grid)
    assert as_set(found.inside[1]) == {place for place in cube(-9, 9) if place[0] < 0}
    assert len(as_set(found.empty[1])) == 32 * 64 * 64 - found.full[1].num_voxels
    # At the coarse level, a voxel next to the border is unknown: a fine voxel beyond may reach it (early dilation).
    whole = build_hierarchy(outward(boundary(cube(-10, 10)), cube(-10, 10)), BOX)[0]
    coarse = as_set(whole.grid)
    assert as_set(found.full[0].grid) <= coarse
    assert not as_set(found.empty[0]) & coarse
    assert {x for x, _, _ in as_set(found.unknown[0])} == set(range(-1, 8))
    assert {place for place in coarse if place[0] < -1} <= as_set(found.full[0].grid)
    # Coarse voxels of which all is known have the solid fraction of the whole shape.
    expected = build_hierarchy(outward(boundary(cube(-10, 10)), cube(-10, 10)), BOX, fill=True)[0]
    rows = expected.grid.index(found.full[0].grid.coords)
    sure = found.full[0].grid.ijk[:, 0] < 0
    assert torch.allclose(found.full[0].attributes["fill"][sure], expected.attributes["fill"][rows][sure])
    assert (found.full[0].attributes["fill"][~sure] == -1).all()


def test_parts_to_generate_are_the_opposite_of_known_ones() -> None:
    whole = outward(boundary(cube(-10, 10)), cube(-10, 10))
    first = observation(half_of_a_cube(), BOX, known=[HALF])
    second = observation(whole, BOX, unknown=[((0, -1, -1), (1, 1, 1))])
    for name in ("empty", "inside", "unknown"):
        assert all(a.same_voxels(b) for a, b in zip(getattr(first, name), getattr(second, name), strict=True))
    assert second.full[1].grid.same_voxels(first.full[1].grid)


def test_nothing_but_voxels_is_known() -> None:
    found = observation(half_of_a_cube(), BOX)
    assert [grid.num_voxels for grid in found.empty] == [0, 0]
    assert (found.full[0].attributes["fill"] == -1).all()
    assert found.unknown[1].num_voxels == 64**3 - found.full[1].num_voxels


@given(st.tuples(*[st.floats(-0.7, 0.7)] * 3), st.tuples(*[st.integers(-20, 20)] * 3))
@settings(max_examples=40, deadline=None)
def test_space_before_voxels(sensor: tuple[float, float, float], place: tuple[int, int, int]) -> None:
    """The line to the sensor passes through every voxel that is found, and most of its points are in one."""
    found = as_set(seen_through(as_grid({place}), sensor, BOX)) | {place}
    start, end = torch.tensor(place).double() + 0.5, torch.tensor(sensor).double() / SIZE
    along = end - start
    for voxel in found:
        offset = torch.tensor(voxel).double() + 0.5 - start
        fraction = (offset @ along / along.square().sum().clamp(min=1e-12)).clamp(0, 1)
        assert float((offset - fraction * along).abs().max()) <= 0.5 + 0.5 * 3**0.5
    points = start + torch.linspace(0, 1, 500).double()[:, None] * along
    points = points[(points.abs() < 32).all(1)]  # those in the box
    inside = [tuple(point) in found for point in points.floor().long().tolist()]
    assert sum(inside) > 0.85 * len(inside)


def test_votes_of_normals() -> None:
    """The inside of a closed shell; a shell with normals that point inward has its inside outside."""
    whole = cube(-4, 4)
    full = outward(boundary(whole), whole)
    space = as_grid(cube(-8, 8)) - full.grid
    assert as_set(inside_parts(full, space)) == whole - boundary(whole)
    reverse = full.with_attributes(normal=-full.attributes["normal"])
    assert as_set(inside_parts(reverse, space)) == as_set(space) - whole
    assert inside_parts(full, as_grid(set())).num_voxels == 0
