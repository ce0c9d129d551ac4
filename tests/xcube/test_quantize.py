"""Weights in fewer bits: how far they are from the original ones, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.xcube.cascades import tiny, unet
from xcube.networks.pretrained import from_pretrained, save_pretrained
from xcube.networks.quantize import compressed, restored
from xcube.networks.unet import UNet
from xcube.pipeline.pipeline import XCubePipeline


@given(st.integers(1, 5), st.integers(400, 600), st.integers(-20, 10), st.integers(0, 1000))
def test_a_weight_moves_by_half_a_step_at_most(rows: int, columns: int, exponent: int, seed: int) -> None:
    weight = (np.random.default_rng(seed).standard_normal((rows, 3, columns)) * 2.0**exponent).astype(np.float32)
    weight[0] *= seed % 2  # sometimes a channel of zeros
    state = {"a": torch.from_numpy(weight), "b": torch.arange(3.0), "c": torch.arange(2000)}
    small = compressed(state, 8)
    assert small["a"].dtype == torch.int8
    again = restored(small)
    assert again.keys() == state.keys()
    step = np.abs(weight).reshape(rows, -1).max(1) / 127
    error = np.abs(again["a"].numpy() - weight).reshape(rows, -1).max(1)
    assert (error <= step * 0.5001).all()
    assert torch.equal(again["b"], state["b"])
    assert torch.equal(again["c"], state["c"])
    half = restored(compressed(state, 16))
    assert half["a"].dtype == torch.float32
    assert np.array_equal(half["a"].numpy(), weight.astype(np.float16).astype(np.float32))
    assert all(compressed(state, 32)[name] is value for name, value in state.items())


def test_networks_are_saved_in_fewer_bits(tmp_path: Path) -> None:
    model = unet(0, channels=16)
    sizes = {}
    for bits in (32, 16, 8):
        save_pretrained(model, tmp_path / str(bits), bits=bits, seconds=3)
        sizes[bits] = (tmp_path / str(bits) / "model.safetensors").stat().st_size
        again = from_pretrained(tmp_path / str(bits), UNet)
        for name, value in again.state_dict().items():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, model.state_dict()[name], atol=0.01, rtol=0.01)
    assert sizes[8] < 0.6 * sizes[16] < 0.4 * sizes[32]
    pipeline = XCubePipeline([tiny(0), tiny(1)])
    pipeline.save_pretrained(tmp_path / "pipeline", bits=8)
    assert len(XCubePipeline.from_pretrained(tmp_path / "pipeline").levels) == 2


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bits must be one of 32, 16, 8, got 4"):
        save_pretrained(unet(0), tmp_path, bits=4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"weights must be at most 65504 for 16 bits, got 100000.0 in a"):
        compressed({"a": torch.tensor([1e5])}, 16)
    with pytest.raises(ValueError, match="weights must be finite for 8 bits, got others in a"):
        compressed({"a": torch.full((4, 400), torch.nan)}, 8)
    save_pretrained(unet(0, channels=16), tmp_path, bits=8)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    name = next(name for name in state if name.endswith("#scale"))
    save_file(state | {name: torch.ones(1)}, file)
    with pytest.raises(ValueError, match=r"model.safetensors is damaged: .* must have \[\d+\] scales, got \[1\]"):
        from_pretrained(tmp_path, UNet)
