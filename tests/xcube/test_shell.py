"""Inside and outside of shells, and closed shells, against a flood fill from voxel to voxel."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsevox import Grid
from xcube.geometry.shell import certain_parts, is_solid, sealed, solid_fractions

pytest.importorskip("scipy", reason="finds the regions")

Voxel = tuple[int, ...]
SIDE = 4


def reached(walls: set[Voxel], side: int = SIDE) -> set[Voxel]:
    """The voxels that a path across faces from outside of a box reaches, without those of `walls`; one layer around."""
    start: Voxel = (-1, -1, -1)
    todo, seen = [start], {start}
    while todo:
        here = todo.pop()
        for axis, step in product(range(3), (-1, 1)):
            near = tuple(c + step * (a == axis) for a, c in enumerate(here))
            if all(-1 <= c <= side for c in near) and near not in seen and near not in walls:
                seen.add(near)
                todo.append(near)
    return seen


def grid_of(voxels: set[Voxel]) -> Grid:
    return Grid.from_coords(torch.tensor(sorted(voxels), dtype=torch.int32).reshape(-1, 3), batch_size=1)


def chosen(grid: Grid, mask: torch.Tensor) -> set[Voxel]:
    return {(x, y, z) for x, y, z in grid.ijk[mask].tolist()}


def some(voxels: set[Voxel]) -> st.SearchStrategy[set[Voxel]]:
    return st.sets(st.sampled_from(sorted(voxels))) if voxels else st.just(set())


BOX = set(product(range(SIDE), repeat=3))


@given(some(BOX), some(BOX))
def test_solid_is_what_no_path_from_outside_reaches(shell: set[Voxel], places: set[Voxel]) -> None:
    candidates = grid_of(places)
    assert chosen(candidates, is_solid(candidates, grid_of(shell))) == (places - reached(shell) if shell else set())


@given(st.data())
def test_no_path_leads_into_a_sealed_shape(data: st.DataObject) -> None:
    places = data.draw(some(BOX))
    solid, guess = data.draw(some(places)), data.draw(some(places))
    candidates = grid_of(places)
    ijk = candidates.ijk.tolist()
    first, second = (torch.tensor([tuple(v) in part for v in ijk], dtype=torch.bool) for part in (guess, solid))
    made = chosen(candidates, sealed(candidates, first, second))
    outside = reached(made)
    assert not (solid - made) & outside
    assert made <= places
    everything = chosen(candidates, sealed(candidates, torch.ones_like(first), second))
    assert chosen(candidates, sealed(candidates, torch.zeros_like(first), second)) <= made <= everything
    # Nothing but the guess is there without need: it has a neighbor on the other side.
    for voxel in made - guess:
        near = {tuple(c + step * (a == axis) for a, c in enumerate(voxel)) for axis in range(3) for step in (-1, 1)}
        assert near - solid if voxel in solid else near - places


@given(some(BOX), st.sampled_from([(2, 2, 2), (1, 2, 4)]))
def test_solid_fractions_are_those_of_the_voxels_inside_a_larger_one(
    shell: set[Voxel], factor: tuple[int, int, int]
) -> None:
    fine = grid_of(shell)
    origin = tuple((f - 1) / 2 for f in factor)  # so that the lower corners of the voxels (0, 0, 0) coincide
    coarse = Grid.full((-1, -1, -1), (5, 3, 2), voxel_size=tuple(map(float, factor)), origin=origin)
    solid = BOX - reached(shell) if shell else set()
    for voxel, fraction in zip(coarse.ijk.tolist(), solid_fractions(coarse, fine).tolist(), strict=True):
        covered = set(product(*(range(c * f, c * f + f) for c, f in zip(voxel, factor, strict=True))))
        assert fraction == pytest.approx(len(covered & solid) / len(covered))


def test_fractions_of_voxels_that_are_not_aligned() -> None:
    shell = grid_of(cube(3, 1))
    with pytest.raises(ValueError, match=r"voxel_size of the shell, .* times integers, got \(1.5, "):
        solid_fractions(Grid.full(0, 2, voxel_size=1.5), shell)
    with pytest.raises(ValueError, match="the lower corner of voxel"):
        solid_fractions(Grid.full(0, 2, voxel_size=2), shell)


def cube(side: int, hollow: int = 0) -> set[Voxel]:
    inner = set(product(range(hollow, side - hollow), repeat=3)) if hollow else set()
    return set(product(range(side), repeat=3)) - inner


def test_a_hollow_cube_and_one_with_a_hole() -> None:
    shell, places = grid_of(cube(5, 1)), grid_of(cube(5))
    assert is_solid(places, shell).all()
    outside = grid_of({(5, 0, 0), (-1, 2, 2)})
    assert not is_solid(outside, shell).any()
    pierced = grid_of(cube(5, 1) - {(2, 2, 0)})
    assert chosen(places, is_solid(places, pierced)) == cube(5, 1) - {(2, 2, 0)}


def test_holes_are_closed_and_strays_removed() -> None:
    places = grid_of(cube(7))
    solid = torch.tensor([all(1 <= c < 6 for c in v) for v in places.ijk.tolist()])
    on_faces = solid & torch.tensor([any(c in (1, 5) for c in v) for v in places.ijk.tolist()])
    holes = on_faces & (torch.arange(places.num_voxels) % 7 > 0)
    strays = ~solid & (torch.arange(places.num_voxels) % 11 == 0)
    assert not torch.equal(holes, on_faces)
    assert torch.equal(sealed(places, holes | strays, solid), on_faces)


def test_space_without_candidates_takes_the_side_of_those_around_it() -> None:
    places = grid_of(cube(7, 2))  # two layers around 3^3 voxels that are no candidates
    outer = torch.tensor([any(c in (0, 6) for c in v) for v in places.ijk.tolist()])
    everything, nothing = torch.ones_like(outer), torch.zeros_like(outer)
    assert torch.equal(sealed(places, nothing, everything), outer)  # the middle is solid, too
    assert torch.equal(sealed(places, nothing, outer), outer)  # the middle is enclosed
    assert not sealed(places, everything, nothing).any()


def test_bubbles_inside_are_no_second_shell() -> None:
    places = grid_of(cube(7))
    ijk = places.ijk.tolist()
    outer = torch.tensor([any(c in (0, 6) for c in v) for v in ijk])
    bubble = torch.tensor([v == [3, 3, 3] for v in ijk])
    assert torch.equal(sealed(places, bubble & ~bubble, ~bubble), outer)
    assert torch.equal(sealed(places, bubble, ~bubble), outer)


@given(st.lists(st.dictionaries(st.sampled_from(sorted(BOX)), st.sampled_from([0.2, 0.5, 0.9])), max_size=3))
def test_parts_without_a_certain_voxel_are_left_out(batch: list[dict[Voxel, float]]) -> None:
    rows = [(number, *voxel) for number, shape in enumerate(batch) for voxel in shape]
    grid = Grid.from_coords(torch.tensor(rows, dtype=torch.int32).reshape(-1, 4), batch_size=len(batch))
    known = [batch[number][(x, y, z)] for number, x, y, z in grid.coords.tolist()]
    probability = torch.tensor(known, dtype=torch.float32)
    kept = certain_parts(grid, probability > 0.4, probability > 0.8)
    for number, shape in enumerate(batch):
        parts: list[set[Voxel]] = []
        for voxel in (voxel for voxel, p in shape.items() if p > 0.4):
            joined = [part for part in parts if any(max(map(abs, map(int.__sub__, voxel, v))) <= 1 for v in part)]
            parts = [part for part in parts if part not in joined] + [{voxel}.union(*joined)]
        certain = [part for part in parts if any(shape[voxel] > 0.8 for voxel in part)]
        found = {(x, y, z) for b, x, y, z in grid.coords[kept].tolist() if b == number}
        assert found == set().union(*(certain or parts))


def test_a_shell_deep_inside_is_none() -> None:
    places = grid_of(cube(9))
    ijk = places.ijk.tolist()
    inner, middle = (torch.tensor([max(abs(c - 4) for c in v) <= r for v in ijk]) for r in (1, 3))
    everything = torch.ones_like(inner)
    outer = torch.tensor([max(abs(c - 4) for c in v) == 4 for v in ijk])
    assert torch.equal(sealed(places, inner, everything), outer)
    assert torch.equal(sealed(places, middle, everything), everything)  # the second layer touches the first


def test_shapes_of_a_batch_do_not_see_each_other() -> None:
    one, two, none = grid_of(cube(5)), grid_of(cube(4)), Grid.empty(1)
    batch = Grid.stack([one, none, two])
    shells = Grid.stack([grid_of(cube(5, 1)), none, grid_of(cube(4, 1))])
    assert is_solid(batch, shells).all()
    assert not is_solid(batch, Grid.empty(3)).any()
    everything = torch.ones(batch.num_voxels, dtype=torch.bool)
    assert batch.prune(sealed(batch, ~everything, everything)).same_voxels(shells)
    assert sealed(none, everything[:0], everything[:0]).shape == (0,)
