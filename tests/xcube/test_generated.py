"""Which latents are decoded as generated ones, whose parts are connected: those of denoisers, and those with noise."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsevox import Grid, SparseTensor
from tests.xcube.balls import SIDE
from tests.xcube.cascades import random, tiny
from tests.xcube.two_levels import LOSS, coarse_of, generator, save_networks, shapes, trained, true_coarse
from xcube.geometry.components import component_sizes
from xcube.networks.configs import VAEConfig
from xcube.networks.decoder import Decoded, Decoder
from xcube.networks.pretrained import from_pretrained
from xcube.networks.vae import VAE
from xcube.pipeline.options import SampleOptions
from xcube.pipeline.pipeline import XCubePipeline
from xcube.pipeline.reconstruct import reconstruct
from xcube.training.config import TrainConfig
from xcube.training.finetune import FinetuneModule
from xcube.training.modules import VAEModule, noisy_decode

for package in ("lightning", "scipy"):
    pytest.importorskip(package, reason="training with solid fractions")


# Random networks decode to several parts with these thresholds.
PARTS = VAEConfig(
    voxel_size=1 / SIDE, channels=(8, 8), latent_channels=2, hidden=4, thresholds=(0.55, 0.4), certain=0.8
)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether latents were decoded as generated ones, for each call of a decoder."""
    calls: list[bool] = []
    forward = Decoder.forward

    def look(self: Decoder, latents: SparseTensor, truth: Sequence[Grid] | None, generated: bool = False) -> Decoded:
        calls.append(generated)
        return forward(self, latents, truth, generated)

    monkeypatch.setattr(Decoder, "forward", look)
    return calls


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_networks(tmp_path_factory.mktemp("networks"))


def test_sampling(decoded: list[bool]) -> None:
    pipeline = XCubePipeline([tiny(0), tiny(1)])
    [sample] = pipeline.sample(1, SampleOptions(quiet=True, steps=2))
    assert decoded == [True, True]
    pipeline.upsample(sample.levels[0], SampleOptions(quiet=True, steps=2))
    assert decoded == [True] * 3


def test_reconstruction_and_training_of_vaes(networks: Path, decoded: list[bool]) -> None:
    vae = from_pretrained(networks / "vae-1", VAE)
    reconstruct(shapes(), vae)
    module = VAEModule(vae, TrainConfig(), LOSS)
    module.eval().losses(shapes(), 0, generator())
    assert decoded == [False, False]


def test_training_on_the_output_of_networks(networks: Path, decoded: list[bool]) -> None:
    vae = from_pretrained(networks / "vae-1", VAE)
    coarse_of(networks).regenerated(true_coarse(networks), 0.5, generator(), torch.tensor([0, 1]))
    noisy_decode(vae, shapes(), generator(), scale=1.0)
    assert decoded == [True, True]
    categories = {"train": torch.tensor([0, 1]), "val": torch.tensor([0, 1])}
    module = FinetuneModule(
        trained(networks, 1),
        TrainConfig(),
        vae,
        coarse_of(networks),
        loss=LOSS,
        coarse_categories=categories,
        exact=1.0,
    )
    module.eval().losses(shapes(), 0, generator())
    assert decoded == [True] * 3


@pytest.mark.parametrize("solid", [False, True])
def test_bridges_connect_the_parts_of_generated_shapes(solid: bool) -> None:
    parts = dict[tuple[float | None, bool], int]()
    for bridge in (None, 1e-6):
        torch.manual_seed(1)
        config = replace(PARTS, solid=solid, bridge=bridge)
        model = random(VAE(config), 1).eval()
        with torch.no_grad():
            latents = model.encode(shapes()).mode()
            for generated in (False, True):
                sizes = [component_sizes(each) for each in model.decode(latents, generated=generated).voxels.grid]
                parts[bridge, generated] = sum(map(len, sizes))
    assert parts[None, False] == parts[None, True] == parts[1e-6, False] > 2
    assert parts[1e-6, True] == 2  # one per shape
