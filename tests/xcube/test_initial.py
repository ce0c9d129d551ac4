"""Runs that start from the weights of a trained network."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.xcube.balls import SIDE, ball_dataset
from xcube.diffusion.objective import DiffusionConfig
from xcube.networks.configs import RefinerConfig, UNetConfig, VAEConfig
from xcube.networks.pretrained import digest, from_pretrained, read_config, save_pretrained
from xcube.networks.refiner import Refiner
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.training.config import TrainConfig
from xcube.training.train import train_denoiser, train_refiner, train_vae

AUTOENCODER = VAEConfig(channels=(4, 8), voxel_size=1 / SIDE, latent_channels=2, normal=False)
NET = UNetConfig(latent_channels=2, channels=8, multipliers=(1,), blocks=1, heads=2, groups=4, categories=2)
STILL = TrainConfig(steps=1, batch_size=2, warmup=0, learning_rate=1e-12, ema=0.0, val_every=1000, seed=3)
METADATA: dict[str, Any] = {
    "latent_scale": 2.0,
    "diffusion": DiffusionConfig().to_dict(),
    "options": {"categories": ["ball", "box"], "drop": 0.5},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ball_dataset(tmp_path_factory.mktemp("data"), SIDE)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(VAE(AUTOENCODER), tmp_path_factory.mktemp("vae"), latent_scale=2.0)


def saved(net: torch.nn.Module, folder: Path, **metadata: Any) -> Path:
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    save_pretrained(net, folder, **metadata)
    return folder


def denoise(data: Path, out: Path, vae: Path, initial: Path, **changes: Any) -> UNet:
    options: dict[str, Any] = {"model": NET, "train": STILL, "categories": ("ball", "box"), "quiet": True}
    return train_denoiser(data, out, vae, initial=initial, **(options | changes))


def close(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return all(torch.allclose(x[name], y[name], rtol=0, atol=1e-6) for name in x)


def test_a_run_starts_from_the_weights_of_a_trained_network(data: Path, vae: Path, tmp_path: Path) -> None:
    start = saved(UNet(NET), tmp_path / "start", **METADATA)
    net = denoise(data, tmp_path / "run", vae, start)
    assert close(net, from_pretrained(start, UNet))
    assert not close(net, UNet(NET))
    options = read_config(tmp_path / "run")["metadata"]["options"]
    assert options["initial"] == digest(start / "model.safetensors")
    random: dict[str, Any] = {"model": NET, "train": STILL, "categories": ("ball", "box"), "quiet": True}
    train_denoiser(data, tmp_path / "random", vae, **random)
    with pytest.raises(ValueError, match="initial None, now"):
        denoise(data, tmp_path / "random", vae, start)

    again = train_vae(data, tmp_path / "vae", model=AUTOENCODER, train=STILL, initial=vae, quiet=True)
    assert close(again, from_pretrained(vae, VAE))

    model = RefinerConfig(channels=(4, 8, 8), voxel_size=1 / SIDE, normal=False)
    start = saved(Refiner(model), tmp_path / "refiner")
    refiner = train_refiner(data, tmp_path / "refined", vae, model=model, train=STILL, initial=start, quiet=True)
    assert close(refiner, from_pretrained(start, Refiner))


@pytest.mark.parametrize(
    ("metadata", "changes", "message"),
    [
        ({"latent_scale": 3.0}, {}, "the scale of the run, 2.0, got 3.0"),
        ({"options": {"categories": ["box", "ball"]}}, {}, "the categories of the run, ['ball', 'box'], got"),
        ({}, {"diffusion": DiffusionConfig(prediction="flow")}, "the diffusion of the run, {'prediction': 'flow'}"),
        ({}, {"model": replace(NET, heads=1)}, "the model of the run, {'heads': 1}, got {'heads': 2}"),
    ],
)
def test_a_network_of_another_meaning_is_refused(
    data: Path, vae: Path, tmp_path: Path, metadata: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    start = saved(UNet(NET), tmp_path / "start", **(METADATA | metadata))
    with pytest.raises(ValueError, match="initial must hold a network with " + re.escape(message)):
        denoise(data, tmp_path / "run", vae, start, **changes)
    assert not (tmp_path / "run").exists()


def test_other_folders_are_refused(data: Path, vae: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the kind of the run, denoiser, got vae"):
        denoise(data, tmp_path / "run", vae, vae)
    with pytest.raises(FileNotFoundError, match="there is no"):
        denoise(data, tmp_path / "run", vae, tmp_path / "nothing")
