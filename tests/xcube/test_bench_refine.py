"""The filters with which `bench.refine` compares the refinement network."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.refine import count_parts, majority
from sparsevox import Grid

AROUND = list(itertools.product((-1, 0, 1), repeat=3))


@given(st.sets(st.tuples(*[st.integers(-3, 3)] * 3), min_size=1, max_size=60), st.integers(1, 27))
def test_majority_counts_the_voxels_around(voxels: set[tuple[int, int, int]], least: int) -> None:
    candidates = {(i + a, j + b, k + c) for i, j, k in voxels for a, b, c in AROUND}
    kept = {(i, j, k) for i, j, k in candidates if sum((i + a, j + b, k + c) in voxels for a, b, c in AROUND) >= least}
    grid = majority(Grid.from_coords(torch.tensor(sorted(voxels))), least)
    assert {tuple(ijk) for ijk in grid.ijk.tolist()} == kept


@pytest.mark.parametrize(("pieces", "expected"), [
    ([], (0, 0)),
    ([(0, 0, 0)], (1, 0)),
    ([(0, 0, 0), (1, 1, 1)], (1, 0)),  # by a corner
    ([(i, 0, 0) for i in range(99)] + [(200, 5, 5)], (2, 1)),
])  # fmt: skip
def test_parts_and_crumbs(pieces: list[tuple[int, int, int]], expected: tuple[int, int]) -> None:
    grid = Grid.from_coords(torch.tensor(pieces, dtype=torch.int64).reshape(-1, 3), batch_size=1)
    assert count_parts(grid) == expected
