"""Dense volumes, grids and features: definition, reference, kernels."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsevox import Grid, _readback
from sparsevox.morton import VoxelError
from sparsevox.ops import from_dense, to_dense
from sparsevox.testing import LIMIT, VoxelSet, as_coords, row_order, voxel_sets
from tests.definitions import dense as definition
from tests.goldens import GoldenFile

HALF: Any = 1.5  # which a type checker would not let pass
LETTER: Any = "a"

sizes = st.tuples(st.integers(0, 3), *[st.integers(0, 9)] * 3)


@given(sizes, st.tuples(*[st.integers(-9, 9)] * 3), st.floats(0, 1), st.integers(0, 1 << 20))
def test_volume(size: tuple[int, ...], lower: tuple[int, int, int], density: float, seed: int) -> None:
    mask = torch.rand(size, generator=torch.Generator().manual_seed(seed)) < density
    grid = Grid.from_dense(mask, lower=lower)
    assert [tuple(v) for v in grid.coords.tolist()] == row_order(definition.from_mask(mask, lower))
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


@pytest.mark.parametrize("backend", ["kernels", "reference"])
def test_the_first_voxel_out_of_range_is_named(backend: str, device: torch.device) -> None:
    pytest.importorskip("triton", reason="kernels need Triton")
    mask = torch.ones(2, 4, 3, 3, dtype=torch.bool)
    mask[0, 1] = False
    with pytest.raises(VoxelError) as caught:
        import_module(f"sparsevox.{backend}.dense").dense_bricks(mask.to(device), [LIMIT - 2, 0, 0])
    assert caught.value.index == 9  # the row among the True voxels; two planes are within, one of them empty


def test_views_are_legal() -> None:
    mask = torch.rand(2, 6, 5, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    assert Grid.from_dense(mask.transpose(1, 3)).same_voxels(Grid.from_dense(mask.transpose(1, 3).contiguous()))


def test_a_volume_without_voxels_may_lie_anywhere() -> None:
    assert Grid.from_dense(torch.zeros(2, 0, 3, 3, dtype=torch.bool), lower=1 << 40).batch_size == 2


# Features


def values(*size: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


boxes = st.tuples(st.tuples(*[st.integers(-12, 8)] * 3), st.tuples(*[st.integers(0, 9)] * 3))


@given(voxel_sets(max_voxels=60, limits=False), boxes, st.sampled_from([1, 3, 33]))
def test_features_in_a_box(case: VoxelSet, box: Any, channels: int) -> None:
    grid = Grid.from_coords(as_coords(case.voxels), batch_size=case.batch_size)
    lower, size = box
    upper = tuple(a + n for a, n in zip(lower, size, strict=True))
    feats, volume = values(grid.num_voxels, channels), values(case.batch_size, channels, *size, seed=1)
    rows = row_order(case.voxels)
    calls = _readback.calls
    expected = definition.to_dense(feats, rows, lower, size, case.batch_size)
    assert torch.equal(to_dense(feats, grid, lower, upper), expected)
    assert torch.equal(from_dense(volume, grid, lower), definition.from_dense(volume, rows, lower))
    assert _readback.calls == calls


def test_the_default_box_holds_the_whole_batch() -> None:
    voxels = [(0, -3, 5, 2), (2, 4, 6, -1), (2, 0, 5, 0)]
    grid = Grid.from_coords(torch.tensor(voxels), batch_size=4)
    feats = values(3, 2)
    calls = _readback.calls
    dense = to_dense(feats, grid)
    assert _readback.calls == calls + 1
    assert dense.shape == (4, 2, 8, 2, 4)
    assert torch.equal(dense, to_dense(feats, grid, (-3, 5, -1), (5, 7, 3)))
    assert torch.equal(from_dense(dense, grid, (-3, 5, -1)), feats)
    assert to_dense(feats, grid, lower=(0, 0, 9)).shape == (4, 2, 5, 7, 0)
    assert to_dense(feats, grid, upper=(1, -5, 1)).shape == (4, 2, 4, 0, 2)
    assert to_dense(values(0, 2), Grid.empty(3)).shape == (3, 2, 0, 0, 0)
    assert to_dense(values(0, 2), Grid.empty(0), 0, 2).shape == (0, 2, 2, 2, 2)


def test_box_at_the_limits() -> None:
    for corner in (-LIMIT, LIMIT - 1):
        grid = Grid.from_coords(torch.tensor([[corner] * 3]))
        assert to_dense(torch.ones(1, 1), grid).shape == (1, 1, 1, 1, 1)
        assert to_dense(torch.ones(1, 1), grid, corner - 1, corner + 2).sum() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtypes_pass_unchanged(dtype: torch.dtype) -> None:
    grid = Grid.from_coords(torch.tensor([[0, 0, 1], [2, 1, 1], [5, 5, 5]]))
    feats = values(3, 3, dtype=dtype)
    dense = to_dense(feats, grid)
    assert dense.dtype == dtype
    assert torch.equal(from_dense(dense, grid, (0, 0, 1)), feats)


def test_derivatives() -> None:
    grid = Grid.from_coords(torch.tensor([[0, 0, 0, 1], [0, 2, 1, 1], [2, 1, 0, 0], [2, 9, 9, 9]]), batch_size=3)
    feats, volume = values(4, 2).requires_grad_(), values(3, 2, 3, 2, 2, seed=1).requires_grad_()
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda x: to_dense(x, grid, 0, (3, 2, 2)) ** 2, (feats,))
        assert check(lambda x: from_dense(x, grid) ** 2, (volume,))
    # Adjoint to each other.
    left, right = (to_dense(feats, grid, 0, (3, 2, 2)) * volume).sum(), (from_dense(volume, grid) * feats).sum()
    assert torch.allclose(left, right)


@pytest.mark.triton36
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (3, 4, 5, 6), (2, 0, 4, 4), (0, 3, 3, 3)])
@pytest.mark.parametrize("channels", [0, 1, 3, 33])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_feature_kernels_equal_the_reference(
    size: tuple[int, ...], channels: int, dtype: torch.dtype, device: torch.device, agree: Callable[..., Any]
) -> None:
    number = size[0] * size[1] * size[2] * size[3]
    order = torch.randperm(number, generator=torch.Generator().manual_seed(0))
    cells = torch.cat([order[: number // 2 + 1], -torch.ones(3).long()])
    feats, volume = values(len(cells), channels, dtype=dtype), values(size[0], channels, *size[1:], dtype=dtype)
    feats, volume, cells = feats.to(device), volume.to(device), cells.to(device)
    agree("dense", "scatter_dense", feats, cells, size[0], list(size[1:]), read_backs=0)
    agree("dense", "gather_dense", volume, cells, read_backs=0)


def test_feature_kernels_take_strided_rows(device: torch.device, agree: Callable[..., Any]) -> None:
    feats, volume = values(5, 6).to(device)[:, ::2], values(2, 2, 3, 4, 6).to(device)[..., ::2]
    cells = torch.tensor([3, -1, 40, 71, 0], device=device)
    agree("dense", "scatter_dense", feats, cells, 2, [3, 4, 3], read_backs=0)
    agree("dense", "gather_dense", volume, cells, read_backs=0)


def test_as_recorded() -> None:
    file = GoldenFile("fvdb_ops")
    grid, box = Grid.from_coords(file["in/coords"]), file["fill_to_dense/coords"]
    feats = file.aligned(grid, "in/coords", "in/feat")
    lower = box[:, 1:].amin(0)
    dense = to_dense(feats, grid, lower.tolist(), (box[:, 1:].amax(0) + 1).tolist())
    item, x, y, z = (box - torch.cat([torch.zeros(1).int(), lower])).long().unbind(1)
    assert dense[0, 0].numel() * 2 == len(box)
    assert torch.equal(dense[item, :, x, y, z], file["fill_to_dense/feat"])


@pytest.mark.parametrize(
    ("call", "exception", "message"),
    [
        (lambda g: to_dense(torch.zeros(8, 2).int(), g), TypeError, "feats must hold floating-point numbers"),
        (
            lambda g: to_dense(torch.zeros(7, 2), g),
            ValueError,
            "feats must have 8 rows, one per voxel of the grid",
        ),
        (lambda g: to_dense(torch.zeros(8, 2), g, 3, 1), ValueError, "lower must not exceed upper"),
        (lambda g: to_dense(torch.zeros(8, 2), g, (1, 2)), ValueError, "lower must be one number or three"),
        (lambda g: to_dense(torch.zeros(8, 2), g, 0, HALF), TypeError, "upper must be an int, got 1.5"),
        (
            lambda g: to_dense(torch.zeros(8, 2), g, 1 << 40, 1 << 41),
            ValueError,
            r"a box must lie in \[-2\^31, 2\^31\]",
        ),
        (
            lambda g: to_dense(torch.zeros(8, 2, device="meta"), g),
            ValueError,
            "feats must be on the device of the grid",
        ),
        (
            lambda g: from_dense(torch.zeros(1, 2, 3, 3), g),
            ValueError,
            r"volume must have shape \[1, C, X, Y, Z\], got",
        ),
        (lambda g: from_dense(torch.zeros(2, 2, 3, 3, 3), g), ValueError, r"volume must have shape \[1, C, X, Y, Z\]"),
        (lambda g: from_dense(torch.zeros(1, 2, 3, 3, 3).bool(), g), TypeError, "volume must hold floating-point"),
        (
            lambda g: from_dense(torch.zeros(1, 2, 3, 3, 3), g, 1 << 40),
            ValueError,
            r"a box must lie in \[-2\^31, 2\^31\]",
        ),
        (lambda g: from_dense(torch.zeros(1, 2, 3, 3, 3), g, LETTER), TypeError, "lower must be an int, got 'a'"),
    ],
)
def test_errors(call: Callable[[Any], Tensor], exception: type[Exception], message: str) -> None:
    with pytest.raises(exception, match=message):
        call(Grid.full(0, 2))
