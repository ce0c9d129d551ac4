"""Dense volumes to grids: loops over the volume, reference, kernels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsevox import Grid
from sparsevox.testing import LIMIT, row_order

sizes = st.tuples(st.integers(0, 3), *[st.integers(0, 9)] * 3)


@given(sizes, st.tuples(*[st.integers(-9, 9)] * 3), st.floats(0, 1), st.integers(0, 1 << 20))
def test_volume(size: tuple[int, ...], lower: tuple[int, int, int], density: float, seed: int) -> None:
    mask = torch.rand(size, generator=torch.Generator().manual_seed(seed)) < density
    where = torch.argwhere(mask).tolist()
    voxels = {(b, x + lower[0], y + lower[1], z + lower[2]) for b, x, y, z in where}
    grid = Grid.from_dense(mask, lower=lower)
    assert [tuple(v) for v in grid.coords.tolist()] == row_order(voxels)
    assert grid.batch_size == size[0]


@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 5, 9, 3), (3, 4, 4, 8), (70, 2, 1, 6), (0, 3, 3, 3), (2, 0, 4, 4)])
@pytest.mark.parametrize("lower", [(0, 0, 0), (-3, 5, 14), (-LIMIT, LIMIT - 9, 1)])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_kernel_equals_reference(
    size: tuple[int, ...],
    lower: tuple[int, ...],
    density: float,
    device: torch.device,
    agree: Callable[..., Any],
) -> None:
    mask = (torch.rand(size, generator=torch.Generator().manual_seed(0)) < density).to(device)
    agree("dense", "dense_bricks", mask, list(lower))


def test_views_are_legal() -> None:
    mask = torch.rand(2, 6, 5, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    assert Grid.from_dense(mask.transpose(1, 3)).same_voxels(Grid.from_dense(mask.transpose(1, 3).contiguous()))
