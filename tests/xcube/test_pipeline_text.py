"""Cascades that read texts, from folders: the real loading code of transformers on a tiny random model."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.xcube.cascades import halved, random, same_bits, watched
from tests.xcube.tiny_clip import write_model, write_tokenizer
from xcube.diffusion.objective import DiffusionConfig
from xcube.networks.conditions import Conditions
from xcube.networks.configs import UNetConfig, VAEConfig
from xcube.networks.pretrained import save_pretrained
from xcube.networks.text_encoder import TextEncoder
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.pipeline.checkpoint import TextSource
from xcube.pipeline.level import Level
from xcube.pipeline.options import Sample, SampleOptions
from xcube.pipeline.pipeline import XCubePipeline

CHANNELS = 8
STEPS = 2


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="needs the extra 'text'")


@pytest.fixture(scope="module")
def clip(transformers: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both."""
    folder = tmp_path_factory.mktemp("clip")
    write_model(transformers, folder, CHANNELS)
    write_tokenizer(transformers, folder)
    return folder


def tiny(level: int, text_channels: int = CHANNELS) -> Level:
    """4^3 latents fill the box of level 0, which makes 8^3."""
    neck = (2, 2, 2) if level == 0 else None
    config = VAEConfig(1 / (8 << level), channels=(4, 6), latent_channels=2, hidden=4, dense_neck=neck)
    small: dict[str, Any] = {"channels": 4, "multipliers": (1, 2), "attention": (2,), "heads": 2}
    unet = UNetConfig(2, dense=level == 0, normal=level > 0, text_channels=text_channels, **small)
    return Level(halved(random(VAE(config), level, 0.3)), random(UNet(unet), 10 + level, 0.3))


def write_runs(folder: Path, levels: list[Level], **options: Any) -> None:
    """As training leaves them, without pipeline.json."""
    for level, part in enumerate(levels):
        metadata: dict[str, Any] = {"latent_scale": 1.0, "diffusion": DiffusionConfig().to_dict(), "options": options}
        save_pretrained(part.vae, folder / f"vae-{level}")
        save_pretrained(part.denoiser, folder / f"diffusion-{level}", **metadata)


def made(pipeline: XCubePipeline, n: int, **options: Any) -> list[Sample]:
    return pipeline.sample(n, SampleOptions(steps=STEPS, quiet=True, **options))


def test_a_folder_that_names_a_text_model(clip: Path, tmp_path: Path) -> None:
    levels = [tiny(0), tiny(1, text_channels=0)]  # one level reads texts, the other does not
    XCubePipeline(levels, text=TextSource(str(clip))).save_pretrained(tmp_path)
    pipeline = XCubePipeline.from_pretrained(tmp_path)
    chair = made(pipeline, 2, text="chair")
    given = XCubePipeline(levels, text=TextEncoder.from_pretrained(clip))
    assert same_bits(chair, made(given, 2, text="chair"))
    assert not same_bits(chair, made(pipeline, 2, text="lamp"))
    assert not same_bits(chair, made(pipeline, 2, text="chair", guidance=4.0))
    assert same_bits(made(pipeline, 2), made(pipeline, 2, text=[None, None]))
    # It was loaded once, and is named in the next folder too.
    clip.rename(clip.with_name("away"))
    try:
        assert same_bits(chair, made(pipeline, 2, text="chair"))
        pipeline.save_pretrained(tmp_path / "again")
    finally:
        clip.with_name("away").rename(clip)
    assert json.loads((tmp_path / "again" / "pipeline.json").read_text())["text"]["model"] == str(clip)
    assert same_bits(chair, made(XCubePipeline.from_pretrained(tmp_path / "again"), 2, text="chair"))


def test_what_the_network_is_told(clip: Path) -> None:
    encoder = TextEncoder.from_pretrained(clip)
    pipeline = XCubePipeline([tiny(0)], text=encoder)
    seen: list[Conditions] = []
    with watched(pipeline.levels[0].denoiser, lambda args: seen.append(args[2])):
        made(pipeline, 2, text=["a chair", "lamp"], guidance=2.0)
    texts, without = encoder(["a chair", "lamp"]), encoder(["", ""])
    assert len(seen) == 2 * STEPS
    for conditions, expected in zip(seen, [texts, without] * STEPS, strict=True):
        assert conditions.text is not None
        assert [int(mask.sum()) for mask in conditions.text.mask] == [int(mask.sum()) for mask in expected.mask]
        for n in range(2):
            rows = expected.tokens[n][expected.mask[n]]
            torch.testing.assert_close(conditions.text.tokens[n][conditions.text.mask[n]], rows, atol=1e-5, rtol=0)


def test_runs_name_the_model_and_the_tokenizer(transformers: Any, clip: Path, tmp_path: Path) -> None:
    write_model(transformers, tmp_path / "model", CHANNELS)
    write_tokenizer(transformers, tmp_path / "tokenizer")
    levels, places = [tiny(0, text_channels=0), tiny(1)], (tmp_path / "model", tmp_path / "tokenizer")
    model, tokenizer = map(str, places)
    write_runs(tmp_path / "runs", levels, text_model=model, tokenizer=tokenizer)
    found = made(XCubePipeline.from_pretrained(tmp_path / "runs"), 1, text="chair")
    assert same_bits(found, made(XCubePipeline(levels, text=TextEncoder.from_pretrained(clip)), 1, text="chair"))
    # In a subfolder, as in official checkpoints.
    write_model(transformers, tmp_path / "official" / "text_encoder", CHANNELS)
    source = TextSource(str(tmp_path / "official"), tokenizer, "text_encoder")
    XCubePipeline(levels, text=source).save_pretrained(tmp_path / "saved")
    assert same_bits(found, made(XCubePipeline.from_pretrained(tmp_path / "saved"), 1, text="chair"))


def test_a_text_for_a_model_without(tmp_path: Path) -> None:
    XCubePipeline([tiny(0, text_channels=0)]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="text must be None for a model that takes none, got 'chair'"):
        made(XCubePipeline.from_pretrained(tmp_path), 1, text="chair")


def test_folders_from_which_no_text_can_be_embedded(transformers: Any, tmp_path: Path) -> None:
    write_runs(tmp_path, [tiny(0)])
    with pytest.raises(ValueError, match="text must be a TextEncoder or a TextSource for a model that takes"):
        made(XCubePipeline.from_pretrained(tmp_path), 1, text="chair")
    write_tokenizer(transformers, tmp_path / "half")  # no model next to it
    write_model(transformers, tmp_path / "wide", channels=2 * CHANNELS)
    write_tokenizer(transformers, tmp_path / "wide")
    for name, error, message in (
        ("nowhere", OSError, "nowhere"),
        ("half", OSError, "half"),
        ("wide", ValueError, r"text must be an encoder with \{8\} channels, got one with 16"),
    ):
        XCubePipeline([tiny(0)], text=TextSource(str(tmp_path / name))).save_pretrained(tmp_path)
        pipeline = XCubePipeline.from_pretrained(tmp_path)  # which needs no text model yet
        for _ in range(2):  # what was refused once is not taken the next time
            with pytest.raises(error, match=message):
                pipeline.stream([0], SampleOptions(text="chair"))


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    XCubePipeline([tiny(0)], text=TextSource("anything")).save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"texts need transformers: pip install 'sparsevox\[text\]'"):
        XCubePipeline.from_pretrained(tmp_path).stream([0], SampleOptions(text="chair"))
