"""Networks that earlier versions saved: their options become the architecture that they describe."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from xcube.networks.configs import RefinerConfig, UNetConfig, VAEConfig
from xcube.networks.pretrained import from_pretrained, read_config, save_pretrained
from xcube.networks.refiner import Refiner
from xcube.networks.unet import UNet
from xcube.networks.upgrade_config import upgrade
from xcube.networks.vae import VAE
from xcube.training.run_folder import CHECKPOINT, checkpoint_step

# The options of earlier versions, as their config.json has them.
VAE_MODERN: dict[str, Any] = {
    "block": "residual",
    "pooling": "strided",
    "upsample": "shuffle",
    "child_masks": True,
    "bottleneck": "linear",
}
VAE_OFFICIAL: dict[str, Any] = {
    "block": "gcr",
    "pooling": "max",
    "upsample": "nearest",
    "child_masks": False,
    "bottleneck": "relu",
}
UNET_MODERN: dict[str, Any] = {
    "resample": "plain",
    "text_everywhere": False,
    "inner": "level",
    "skip_first": True,
    "pool": "active",
    "text_eps": 1e-5,
}
UNET_OFFICIAL = UNET_MODERN | {"resample": "block", "pool": "window"}
SMALL: dict[str, Any] = {"channels": 8, "multipliers": (1, 2), "heads": 2, "groups": 4}
NETWORKS: dict[str, tuple[VAEConfig | UNetConfig, dict[str, Any]]] = {
    "modern VAE": (VAEConfig(channels=(4, 8), hidden=4), VAE_MODERN),
    "official VAE": (VAEConfig.official(channels=(4, 8), hidden=4, cutoff=0.3, box=(8, 8, 8)), VAE_OFFICIAL),
    "modern": (UNetConfig(**SMALL), UNET_MODERN),
    "modern, dense, text": (UNetConfig(dense=True, text_channels=3, **SMALL), UNET_MODERN),
    "official, sparse": (UNetConfig.official(False, **SMALL), UNET_OFFICIAL),
    "official, dense": (UNetConfig.official(True, **SMALL), UNET_OFFICIAL | {"skip_first": False}),
    "official, sparse, text": (
        UNetConfig.official(False, text_channels=3, **SMALL),
        UNET_OFFICIAL | {"text_everywhere": True, "inner": "last"},
    ),
    "official, dense, text": (
        UNetConfig.official(True, text_channels=3, **SMALL),
        UNET_OFFICIAL | {"skip_first": False, "text_eps": 1e-6},
    ),
}


def earlier(config: VAEConfig | UNetConfig, options: dict[str, Any]) -> dict[str, Any]:
    """The fields of a configuration, as an earlier version wrote them."""
    values = config.to_dict() | options
    del values["architecture"]
    return values


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_earlier_versions_load(name: str, tmp_path: Path) -> None:
    config, options = NETWORKS[name]
    kind: type[VAE] | type[UNet] = VAE if isinstance(config, VAEConfig) else UNet
    model = kind(config)  # type: ignore[arg-type]
    save_pretrained(model, tmp_path, latent_scale=2.0)
    file = tmp_path / "config.json"
    saved = json.loads(file.read_text())
    values = {"format": 1, "kind": saved["kind"], "config": earlier(config, options), "facts": {"latent_scale": 2.0}}
    file.write_text(json.dumps(values))
    again = from_pretrained(tmp_path, kind)
    assert again.config == config
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    assert read_config(tmp_path) == saved


def test_fields_of_today_stay_as_they_are() -> None:
    for config, _ in NETWORKS.values():
        kind = "vae" if isinstance(config, VAEConfig) else "denoiser"
        assert upgrade(kind, config.to_dict()) == config.to_dict()
    values = RefinerConfig().to_dict()
    assert upgrade("refiner", values) == values
    assert upgrade("vae", VAE_MODERN | {"cutoff": 0.3}) == {"cutoff": None, "architecture": "modern"}
    assert Refiner(RefinerConfig.from_dict(values)).config == RefinerConfig()


@pytest.mark.parametrize(("kind", "options"), [
    ("vae", VAE_MODERN | {"pooling": "max"}),
    ("vae", {"child_masks": False}),
    ("denoiser", UNET_OFFICIAL | {"dense": True}),
    ("denoiser", UNET_MODERN | {"pool": "window"}),
    ("denoiser", UNET_OFFICIAL | {"text_channels": 3}),
])  # fmt: skip
def test_mixed_layers_are_named(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layers of the modern and the official architecture can no longer be mixed"):
        upgrade(kind, options)
    values = {"format": 1, "kind": kind, "config": options, "metadata": {}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"config.json does not fit a {kind}: layers of the modern and"):
        read_config(tmp_path)


def test_runs_of_earlier_versions_continue(tmp_path: Path) -> None:
    config, options = NETWORKS["official VAE"]
    run: dict[str, Any] = {"kind": "vae", "model": config.to_dict(), "train": {"steps": 9, "seed": 0}}
    torch.save({"options": run | {"model": earlier(config, options)}, "global_step": 5}, tmp_path / CHECKPOINT)
    assert checkpoint_step(tmp_path, run) == 5
