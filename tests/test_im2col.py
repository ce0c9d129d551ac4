"""The ways in which the reference computes a convolution: im2col, and a product per tap."""

import pytest
import torch

from sparsevox import Grid
from sparsevox.reference import _im2col, conv


@pytest.mark.parametrize("channels", [8, 32, 64])
def test_same_numbers_as_a_product_per_tap(channels, monkeypatch):
    torch.manual_seed(0)
    grid = Grid.full((0, 0, 0), (13, 12, 11))
    direction = grid.kernel_map(3).down
    feats, grads = torch.randn(2, grid.num_voxels, channels).unbind()
    weight, bias = torch.randn(27, channels, channels), torch.randn(channels)
    plan, pairs = list(direction.plan), list(direction.pairs)

    def run():
        out = conv.conv(feats, weight, bias, plan, [], pairs, True, 1)
        return out, conv.conv_weight(feats, grads, plan, [], pairs, True, 1, torch.float32)

    assert _im2col.pays_off(direction.table, len(direction.pairs.sources), channels, weight)
    found = run()
    assert all(torch.equal(a, b) for a, b in zip(found, run(), strict=True))
    monkeypatch.setattr(_im2col, "pays_off", lambda *_: False)
    for ours, theirs in zip(found, run(), strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("im2col", [False, True], ids=["per tap", "im2col"])
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(3, 140), (20, 140), (40, 20), (40, 3), (3, 3), (1, 17), (5, 1)], ids=str
)
def test_any_shape_equals_a_dense_convolution(inputs, outputs, im2col, dtype, monkeypatch):
    """Few columns are padded or transposed, and many are computed part by part if their products take much memory."""
    monkeypatch.setattr(_im2col, "pays_off", lambda *_: im2col)
    monkeypatch.setattr(conv, "PRODUCTS", 1)
    monkeypatch.setattr(conv, "GATHERED", 1)
    torch.manual_seed(0)
    size = (9, 8, 7)
    grid = Grid.full((0, 0, 0), size)
    direction = grid.kernel_map(3).down
    dense, weight, bias, grad = (
        torch.randn(shape).to(dtype)
        for shape in ((1, inputs, *size), (outputs, inputs, 3, 3, 3), (outputs,), (1, outputs, *size))
    )
    exact = weight.double().clone().requires_grad_()
    expected = torch.nn.functional.conv3d(dense.double(), exact, bias.double(), padding=1)
    (expected_gradient,) = torch.autograd.grad(expected, exact, grad.double())

    def rows(volume):
        return volume[(0, slice(None), *grid.ijk.long().unbind(1))].t().contiguous()

    def error(found, wanted):
        return (found.double() - wanted).abs().max() / wanted.abs().max()

    plan, pairs = list(direction.plan), list(direction.pairs)
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 4e-3}[dtype]
    found = conv.conv(rows(dense), weight.flatten(2).permute(2, 1, 0), bias, plan, [], pairs, True, 1)
    assert found.dtype == dtype
    assert error(found, rows(expected.detach())) < tolerance
    gradient = conv.conv_weight(rows(dense), rows(grad), plan, [], pairs, True, 1, dtype)
    assert gradient.dtype == dtype
    assert error(gradient, expected_gradient.flatten(2).permute(2, 1, 0)) < tolerance
