"""Coarse voxels with the errors of a cascade."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsevox import SparseTensor
from tests.xcube.cascades import watched
from tests.xcube.two_levels import coarse_of, generator, save_networks, trained, true_coarse
from xcube.diffusion.objective import DiffusionConfig
from xcube.networks.conditions import Conditions
from xcube.networks.decoder import tidy
from xcube.networks.losses import voxel_iou
from xcube.networks.pretrained import from_pretrained
from xcube.networks.vae import VAE
from xcube.training.coarse import CoarseLevel

for package in ("lightning", "scipy"):
    pytest.importorskip(package, reason="training with solid fractions")


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_networks(tmp_path_factory.mktemp("networks"))


@pytest.mark.parametrize("prediction", ["flow", "v"])
def test_strength_is_the_fraction_of_the_steps_that_change_coarse_voxels(networks: Path, prediction: Any) -> None:
    denoiser = replace(trained(networks, 0), diffusion=DiffusionConfig(prediction))
    level = CoarseLevel(from_pretrained(networks / "vae-0", VAE), denoiser, 10)
    voxels, calls, category = true_coarse(networks), list[Any](), torch.tensor([0, 1])
    for strength, steps in ((0.0, 0), (0.3, 3), (1.0, 10)):
        calls.clear()
        with watched(level.denoiser, calls.append):
            made = level.regenerated(voxels, strength, generator(), category)
        assert len(calls) == steps
        assert made.batch_size == 2
        assert made.num_voxels
        assert set(made.attributes) == {"normal", "fill"}
        assert 0 <= float(made.attributes["fill"].min()) <= float(made.attributes["fill"].max()) <= 1
        lengths = made.attributes["normal"].norm(dim=1)
        assert bool(((lengths - 1).abs() < 1e-4).logical_or(lengths == 0).all())
    assert all(torch.equal(args[2].category, category) for args in calls)
    again = level.regenerated(voxels, 1.0, generator(), category)
    assert again.grid.same_voxels(made.grid)
    assert torch.equal(again.attributes["fill"], made.attributes["fill"])


def test_the_vae_and_a_known_velocity_change_coarse_voxels(networks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A denoiser that always predicts 0.1 moves latents by 0.1 times their time, in the scale of the denoiser."""
    level, voxels, category = coarse_of(networks), true_coarse(networks), torch.tensor([0, 1])
    with torch.no_grad():
        posterior = level.vae.encode(voxels)
        source = generator()
        drawn = posterior.sample(torch.randn(posterior.mean.shape, generator=source))
        noise = torch.randn(posterior.mean.shape, generator=source)
        times = [0.0]

        def constant(x: SparseTensor, t: Tensor, conditions: Conditions) -> SparseTensor:
            times.append(float(t[0]) / 1000)
            return x.map(lambda z: torch.full_like(z, 0.1))

        monkeypatch.setattr(level.denoiser, "forward", constant)
        for strength in (0.0, 0.4):
            made = level.regenerated(voxels, strength, generator(), category)
            t = torch.tensor(max(times))
            noisy = drawn.replace((1 - t) * 2.0 * drawn.feats + t * (noise - 0.1))
            expected = tidy(level.vae.decode(noisy.map(lambda z: z / 2.0), generated=True).voxels)
            assert float(voxel_iou(made.grid, expected.grid).min()) > 0.99
            rows = made.grid.index(expected.grid.coords)
            close = (made.attributes["fill"][rows] - expected.attributes["fill"]).abs()[rows >= 0]
            assert float(close.max()) < 1e-3


def test_the_coarse_networks_do_not_learn(networks: Path) -> None:
    level = coarse_of(networks).train()
    assert not any(part.training for part in level.modules())
    assert not any(parameter.requires_grad for parameter in level.parameters())
