"""Runs that start from the weights of a trained network."""

import json
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
        ({"latent_scale": 3.0}, {}, "scale must be 2.0, got 3.0"),
        ({"options": {"categories": ["box", "ball"]}}, {}, "categories must be ['ball', 'box'], got ['box', 'ball']"),
        ({}, {"diffusion": DiffusionConfig(prediction="flow")}, "diffusion.prediction must be flow, got v"),
        ({}, {"model": replace(NET, heads=1)}, "model.heads must be 1, got 2"),
    ],
)
def test_networks_for_other_latents_are_refused(
    data: Path, vae: Path, tmp_path: Path, metadata: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    start = saved(UNet(NET), tmp_path / "start", **(METADATA | metadata))
    expected = f"initial must hold a network like that of the run, got {start}: {message}"
    with pytest.raises(ValueError, match=re.escape(expected)):
        denoise(data, tmp_path / "run", vae, start, **changes)
    assert not (tmp_path / "run").exists()


def test_what_does_not_change_the_weights_may_differ(data: Path, vae: Path, tmp_path: Path) -> None:
    changed = replace(AUTOENCODER, checkpointing=True, bridge=0.1, thresholds=(0.5, 0.4), keep="predicted")
    again = train_vae(data, tmp_path / "vae", model=changed, train=STILL, initial=vae, quiet=True)
    assert close(again, from_pretrained(vae, VAE))
    start = saved(UNet(NET), tmp_path / "start", **(METADATA | {"latent_scale": 2.000001}))
    assert close(denoise(data, tmp_path / "run", vae, start), from_pretrained(start, UNet))


def test_networks_of_earlier_versions(data: Path, vae: Path, tmp_path: Path) -> None:
    """Their files lack the fields that did not exist."""
    old = {**METADATA, "diffusion": {"prediction": "v"}, "options": None}
    start = saved(UNet(NET), tmp_path / "start", **old)
    file = start / "config.json"
    values = json.loads(file.read_text())
    del values["config"]["fill"]
    file.write_text(json.dumps(values))
    assert close(denoise(data, tmp_path / "run", vae, start), from_pretrained(start, UNet))


def test_other_folders_are_refused(data: Path, vae: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind must be denoiser, got vae"):
        denoise(data, tmp_path / "run", vae, vae)
    with pytest.raises(
        FileNotFoundError, match=r"initial must be the folder of a trained network, got .*: there is no"
    ):
        denoise(data, tmp_path / "run", vae, tmp_path / "nothing")
    start = saved(UNet(NET), tmp_path / "start", **METADATA)
    with pytest.raises(ValueError, match=f"initial must be another folder than out, got {start} for both"):
        denoise(data, start, vae, start)
