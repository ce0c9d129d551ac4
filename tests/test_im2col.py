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


@pytest.mark.parametrize("im2col", [False, True], ids=["per tap", "im2col"])
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 40), (20, 40), (40, 20), (40, 3), (3, 3), (1, 17)], ids=str)
def test_any_shape_equals_a_dense_convolution(inputs, outputs, im2col, monkeypatch):
    """Few columns are padded or transposed, and many are computed part by part if their products take much memory."""
    monkeypatch.setattr(_im2col, "pays_off", lambda *_: im2col)
    monkeypatch.setattr(conv, "PRODUCTS", 1)
    monkeypatch.setattr(conv, "GATHERED", 1)
    torch.manual_seed(0)
    size = (9, 8, 7)
    grid = Grid.full((0, 0, 0), size)
    direction = grid.kernel_map(3).down
    dense = torch.randn(1, inputs, *size, dtype=torch.float64)
    weight = torch.randn(outputs, inputs, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    bias, grad = torch.randn(outputs, dtype=torch.float64), torch.randn(1, outputs, *size, dtype=torch.float64)
    expected = torch.nn.functional.conv3d(dense, weight, bias, padding=1)
    (expected_gradient,) = torch.autograd.grad(expected, weight, grad)

    def rows(volume):
        return volume[(0, slice(None), *grid.ijk.long().unbind(1))].t().contiguous()

    plan, pairs = list(direction.plan), list(direction.pairs)
    matrices = weight.detach().flatten(2).permute(2, 1, 0)
    found = conv.conv(rows(dense), matrices, bias, plan, [], pairs, True, 1)
    assert torch.allclose(found, rows(expected.detach()), rtol=0, atol=1e-11)
    gradient = conv.conv_weight(rows(dense), rows(grad), plan, [], pairs, True, 1, torch.float64)
    assert torch.allclose(gradient, expected_gradient.flatten(2).permute(2, 1, 0), rtol=0, atol=1e-10)
