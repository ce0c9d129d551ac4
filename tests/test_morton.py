"""Codes, keys and masks against digits of Python integers and coordinates."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsevox import morton
from sparsevox.testing import LIMIT, Voxel, as_coords, row_order

coordinate = st.one_of(st.integers(-LIMIT, LIMIT - 1), st.sampled_from([-LIMIT, -LIMIT + 1, -1, 0, 1, LIMIT - 1]))
voxel_lists = st.lists(st.tuples(st.integers(0, 1023), coordinate, coordinate, coordinate), min_size=1, max_size=50)


def move(voxels: Sequence[Voxel], axis: int, distance: int) -> list[Voxel]:
    return [tuple(c + distance * (a == axis + 1) for a, c in enumerate(v)) for v in voxels]


def legal(voxels: list[Voxel]) -> list[bool]:
    return [all(-LIMIT <= c < LIMIT for c in v[1:]) for v in voxels]


@given(voxel_lists)
def test_decode_inverts_encode(voxels: list[Voxel]) -> None:
    coords = as_coords(voxels)
    assert torch.equal(morton.decode(morton.encode(coords)), coords)


@given(voxel_lists)
def test_order_of_codes_is_the_order_of_rows(voxels: list[Voxel]) -> None:
    coords = as_coords(set(voxels))
    ordered = coords[morton.encode(coords).argsort()]
    assert [tuple(v) for v in ordered.tolist()] == row_order(set(voxels))


@given(voxel_lists, st.integers(1, 17))
def test_coarsened_codes_are_codes_of_halved_coordinates(voxels: list[Voxel], levels: int) -> None:
    codes = morton.encode(as_coords(voxels))
    for _ in range(levels):
        codes = morton.coarsen_codes(codes)
    assert torch.equal(codes, morton.encode(as_coords([(b, *(c >> levels for c in ijk)) for b, *ijk in voxels])))


@given(voxel_lists)
def test_keys_coarsen_like_their_bricks(voxels: list[Voxel]) -> None:
    keys = morton.encode(as_coords(voxels)) >> 6
    halved = morton.encode(as_coords([(b, *(c >> 1 for c in ijk)) for b, *ijk in voxels]))
    quartered = morton.encode(as_coords([(b, *(c >> 2 for c in ijk)) for b, *ijk in voxels]))
    assert torch.equal(morton.coarsen_keys(keys), halved >> 6)
    assert torch.equal(morton.key_as_code(keys), quartered)


@given(voxel_lists)
def test_children_of_codes_and_keys(voxels: list[Voxel]) -> None:
    doubled = [(b, *(2 * c for c in ijk)) for b, *ijk in voxels]
    codes, inside = morton.subdivide_codes(morton.encode(as_coords(voxels)))
    assert inside.tolist() == legal(doubled)
    assert torch.equal(codes[inside], morton.encode(as_coords(doubled))[inside])
    corners = [(b, *(2 * (c >> 2 << 2) for c in ijk)) for b, *ijk in voxels]
    keys, inside = morton.subdivide_keys(morton.encode(as_coords(voxels)) >> 6)
    assert inside.tolist() == legal(corners)
    assert torch.equal(keys[inside], morton.encode(as_coords(corners))[inside] >> 6)


@given(voxel_lists, st.integers(0, 2), st.sampled_from([-1, 0, 1]))
def test_neighbor_keys(voxels: list[Voxel], axis: int, step: int) -> None:
    moved = move(voxels, axis, 4 * step)
    keys = morton.step_keys(morton.encode(as_coords(voxels)) >> 6, axis, step)
    expected = torch.where(torch.tensor(legal(moved)), morton.encode(as_coords(moved)) >> 6, morton.NONE)
    assert torch.equal(keys, expected)
    assert (morton.step_keys(torch.tensor([morton.NONE]), axis, step) == morton.NONE).all()


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("shift", range(-4, 5))
def test_shifted_masks(axis: int, shift: int) -> None:
    inside = [(0, x, y, z) for x in range(4) for y in range(4) for z in range(4)]
    bits = morton.encode(as_coords(inside)) & 63
    assert sorted(bits.tolist()) == list(range(64))
    stays, leaves = morton.shift_masks(torch.ones_like(bits) << bits, axis, shift)
    moved = move(inside, axis, shift)
    target = torch.ones_like(bits) << (morton.encode(as_coords(moved)) & 63)
    in_brick = torch.tensor([0 <= v[axis + 1] < 4 for v in moved])
    assert torch.equal(stays, torch.where(in_brick, target, 0))
    assert torch.equal(leaves, torch.where(in_brick, 0, target))


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1))
def test_words(words: list[int]) -> None:
    tensor = torch.tensor(words)
    assert morton.popcount(tensor).tolist() == [(w & (1 << 64) - 1).bit_count() for w in words]
    octants = [sum(1 << i for i in range(8) if w >> 8 * i & 255) for w in words]
    assert morton.octant_bytes(tensor).tolist() == octants


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([0, 0, 0, 0], True),
        ([1023, LIMIT - 1, -LIMIT, 0], True),
        ([1024, 0, 0, 0], False),
        ([-1, 0, 0, 0], False),
        ([0, LIMIT, 0, 0], False),
        ([0, 0, 0, -LIMIT - 1], False),
        ([0, 0, 1 << 40, 0], False),
    ],
)
def test_range(row: list[int], expected: bool) -> None:
    assert morton.in_range(torch.tensor([row])).tolist() == [expected]
