"""Conversion of weights: the rule of each library, voxel by voxel in Python, against convolution with the result."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sparsevox as sv

C, D = 2, 3
Triple = tuple[int, int, int]
Rule = Callable[[Tensor, Triple], dict[Triple, Tensor]]  # offset from output to input voxel -> matrix [D, C]


def axis(size: int) -> list[int]:
    """Offsets along an axis: odd kernels are centered, even ones begin at the voxel itself."""
    return [t - size // 2 if size % 2 else t for t in range(size)]


def tap(offset: Triple, size: Triple) -> Triple:
    """Position in the kernel."""
    i, j, k = (axis(s).index(o) for o, s in zip(offset, size, strict=True))
    return i, j, k


def offsets(size: Triple) -> list[Triple]:
    return list(itertools.product(axis(size[0]), axis(size[1]), axis(size[2])))


def channels_last(w: Tensor, size: Triple) -> dict[Triple, Tensor]:
    taps = {o: tap(o, size) for o in offsets(size)}
    return {o: w[:, i, j, k, :] for o, (i, j, k) in taps.items()}


def first_axis_fastest(w: Tensor, size: Triple) -> dict[Triple, Tensor]:
    taps = {o: tap(o, size) for o in offsets(size)}
    return {o: w[i + size[0] * (j + size[1] * k)].t() for o, (i, j, k) in taps.items()}


def last_axis_fastest(w: Tensor, size: Triple) -> dict[Triple, Tensor]:
    taps = {o: tap(o, size) for o in offsets(size)}
    return {o: w[k + size[2] * (j + size[1] * i)].t() for o, (i, j, k) in taps.items()}


def kernel_last(w: Tensor, size: Triple) -> dict[Triple, Tensor]:
    taps = {o: tap(o, size) for o in offsets(size)}
    return {o: w[:, :, i, j, k] for o, (i, j, k) in taps.items()}


def kernel_last_reversed(w: Tensor, size: Triple) -> dict[Triple, Tensor]:
    taps = {o: tap(o, size) for o in offsets(size)}
    return {o: w[:, :, k, j, i] for o, (i, j, k) in taps.items()}


CASES: dict[str, tuple[str, Rule, Triple]] = {
    "spconv 3": ("spconv", channels_last, (3, 3, 3)),
    "spconv (1, 3, 5)": ("spconv", channels_last, (1, 3, 5)),
    "flexgemm 3": ("flexgemm", channels_last, (3, 3, 3)),
    "minkowski 3": ("minkowski", first_axis_fastest, (3, 3, 3)),
    "minkowski 2": ("minkowski", first_axis_fastest, (2, 2, 2)),
    "minkowski (3, 1, 5)": ("minkowski", first_axis_fastest, (3, 1, 5)),
    "torchsparse 3": ("torchsparse", first_axis_fastest, (3, 3, 3)),
    "torchsparse 2": ("torchsparse", last_axis_fastest, (2, 2, 2)),
    "torchsparse (3, 1, 2)": ("torchsparse", last_axis_fastest, (3, 1, 2)),  # even is what has an even number of taps
    "fvdb 3": ("fvdb", kernel_last, (3, 3, 3)),
    "fvdb (3, 1, 5)": ("fvdb", kernel_last, (3, 1, 5)),
    "fvdb2024 3": ("fvdb2024", kernel_last_reversed, (3, 3, 3)),
}


def shape(rule: Rule, size: Triple) -> tuple[int, ...]:
    """Of their tensors."""
    if rule is channels_last:
        return D, *size, C
    if rule is kernel_last:
        return D, C, *size
    if rule is kernel_last_reversed:
        return D, C, *size[::-1]
    return size[0] * size[1] * size[2], C, D


@pytest.mark.parametrize("case", CASES)
def test_conv(case: str) -> None:
    source, rule, size = CASES[case]
    torch.manual_seed(0)
    grid = sv.Grid.from_coords(torch.randint(-3, 3, (60, 3)))
    feats, weight = torch.randn(grid.num_voxels, C).double(), torch.randn(shape(rule, size)).double()
    rows = {tuple(v): row for row, v in enumerate(grid.ijk.tolist())}
    expected = torch.zeros(grid.num_voxels, D).double()
    for offset, matrix in rule(weight, size).items():
        for voxel, row in rows.items():
            near = tuple(a + b for a, b in zip(voxel, offset, strict=True))
            if near in rows:
                expected[row] += matrix @ feats[rows[near]]
    converted = sv.nn.convert_weight(weight, source, kernel_size=size)  # type: ignore[arg-type]
    assert converted.shape == (D, C, *size)
    assert converted.is_contiguous()
    padding = tuple(s // 2 if s % 2 else 0 for s in size)
    actual = sv.ops.conv3d(feats, converted, None, grid.kernel_map(size, padding=padding))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", ["spconv 3", "minkowski 2", "fvdb2024 3"])
def test_transposed_weights_have_the_input_channels_first(case: str) -> None:
    source, rule, size = CASES[case]
    weight = torch.randn(shape(rule, size))
    plain = sv.nn.convert_weight(weight, source)  # type: ignore[arg-type]
    turned = sv.nn.convert_weight(weight, source, transposed=True)  # type: ignore[arg-type]
    assert torch.equal(turned, plain.transpose(0, 1))


@pytest.mark.parametrize("source", ["spconv", "flexgemm", "fvdb", "fvdb2024", "minkowski", "torchsparse"])
def test_weights_of_1x1x1_kernels_may_be_matrices(source: str) -> None:
    matrix = torch.randn(D, C)
    theirs = matrix.t() if source in ("minkowski", "torchsparse") else matrix
    converted = sv.nn.convert_weight(theirs, source)  # type: ignore[arg-type]
    assert torch.equal(converted, matrix[:, :, None, None, None])


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"source must be one of 'spconv'.*got 'me'"):
        sv.nn.convert_weight(torch.zeros(27, 2, 3), "me")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weight of spconv must have 5 axes, .*got \[27, 2, 3\]"):
        sv.nn.convert_weight(torch.zeros(27, 2, 3), "spconv")
    with pytest.raises(ValueError, match=r"kernel_size must have 9 taps, as weight \[9, 2, 3\] has, got None"):
        sv.nn.convert_weight(torch.zeros(9, 2, 3), "minkowski")
    with pytest.raises(TypeError, match="weight must hold floating-point numbers"):
        sv.nn.convert_weight(torch.zeros(27, 2, 3, dtype=torch.int64), "minkowski")


@pytest.mark.parametrize("strided", [False, True])
def test_1x1x1_kernels_of_spconv_are_read_as_its_layer_does(strided: bool) -> None:
    """Its layers of stride 1 multiply by `weight.view(C, D)`, though the weight has the shape [D, 1, 1, 1, C]."""
    weight = torch.randn(D, 1, 1, 1, C)
    expected = weight[:, 0, 0, 0] if strided else weight.view(C, D).t()
    converted = sv.nn.convert_weight(weight, "spconv", strided=strided)
    assert converted.shape == (D, C, 1, 1, 1)
    assert torch.equal(converted[..., 0, 0, 0], expected)
