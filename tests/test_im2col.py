"""The reference convolution as one matrix product per block (im2col) against a product per tap."""

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
