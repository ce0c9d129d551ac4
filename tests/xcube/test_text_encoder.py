"""Texts: the real loading code of transformers on a tiny random model, and what a network makes of them."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsevox import Grid, SparseTensor
from tests.xcube.tiny_clip import LETTERS, write_model, write_tokenizer
from xcube.networks.conditions import Conditions
from xcube.networks.configs import UNetConfig
from xcube.networks.text_encoder import TextEncoder
from xcube.networks.unet import UNet

CHANNELS = 16


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="needs the extra 'text'")


@pytest.fixture(scope="module")
def folder(transformers: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    write_model(transformers, path, CHANNELS, layers=2)
    write_tokenizer(transformers, path)
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextEncoder:
    return TextEncoder.from_pretrained(folder)


def test_prompts_are_embedded_alike_alone_and_together(encoder: TextEncoder) -> None:
    prompts = ["chair", "a red sofa", ""]
    together = encoder(prompts)
    assert together.mask.sum(1).tolist() == [7, 10, 2]
    assert together.tokens.shape == (3, 10, CHANNELS) == (3, 10, encoder.channels)
    assert not together.tokens[~together.mask].any()
    for n, prompt in enumerate(prompts):
        alone = encoder([prompt])
        assert bool(alone.mask.all())
        assert torch.allclose(together.tokens[n][together.mask[n]], alone.tokens[0], atol=1e-5)


def test_the_tokens_are_those_of_the_model(transformers: Any, encoder: TextEncoder, folder: Path) -> None:
    model = transformers.CLIPTextModel.from_pretrained(folder)
    ids = torch.tensor([[0, 2 + LETTERS.index("a"), 2 + 26 + LETTERS.index("b"), 1]])  # "ab" without merges
    with torch.no_grad():
        expected = model(input_ids=ids).last_hidden_state
    assert torch.allclose(encoder(["ab"]).tokens, expected, atol=1e-6)


def test_long_prompts_are_cut_off(encoder: TextEncoder) -> None:
    assert encoder(["x" * 50]).tokens.shape == (1, 12, CHANNELS)


@pytest.mark.parametrize("dense", [False, True])
def test_a_network_reads_the_text(encoder: TextEncoder, dense: bool) -> None:
    torch.manual_seed(0)
    config = UNetConfig(dense=dense, channels=8, multipliers=(1,), text_channels=CHANNELS, attention=(1,), heads=2)
    net = UNet(config)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    grid = Grid.full(-1, 1, batch_size=2)
    x = SparseTensor(grid, torch.randn(16, 4))
    text = encoder(["chair", "a red sofa"])
    with torch.no_grad():
        both = net(x, 500, Conditions(text=text)).feats
        swapped = net(x, 500, Conditions(text=text[torch.tensor([1, 0])])).feats
        single = net(x[0], 500, Conditions(text=encoder(["chair"]))).feats
    assert torch.allclose(both[:8], single, atol=1e-5)
    assert float((both - swapped).abs().max()) > 1e-3


def test_bad_prompts_are_refused(encoder: TextEncoder, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="prompts must be a list of strings, got 'chair'"):
        encoder("chair")
    with pytest.raises(TypeError, match="prompts must be a list of strings"):
        encoder([1])  # type: ignore[list-item]  # on purpose
    with pytest.raises(ValueError, match="prompts must hold at least one string"):
        encoder([])
    with pytest.raises(OSError, match="nothing"):
        TextEncoder.from_pretrained(tmp_path / "nothing")


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'sparsevox\[text\]'"):
        TextEncoder.from_pretrained(tmp_path)
