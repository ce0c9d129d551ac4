"""Official checkpoints to folders of ours."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xcube.checkpoints import denoiser
from xcube.checkpoints.reader import plain, read_checkpoint
from xcube.checkpoints.vae import config_from_official, vae_state
from xcube.diffusion.objective import DiffusionConfig
from xcube.networks.pretrained import load_exactly, save_pretrained
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE


def from_official(state: Mapping[str, Tensor], hparams: Mapping[str, Any]) -> VAE:
    """Our network of official hyper-parameters, with weights under their official names.

    Raises:
        KeyError: If a hyper-parameter is missing.
        ValueError: If parameters are missing, extra or of another shape, by their names; or the hyper-parameters ask
            for what no release has.
    """
    config = config_from_official(hparams)
    with torch.device("meta"):
        model = VAE(config)
    weights = vae_state(state, config.depths)
    model.to_empty(device="cpu")
    load_exactly(model, weights, "the checkpoint")
    return model.eval()


def convert(checkpoint: Path, out: Path, hparams: Path | None = None) -> VAE | UNet:
    """Read an official checkpoint and write the network that it holds as a folder.

    Args:
        checkpoint: A file that the release's trainer wrote. Nothing in it is executed.
        out: The folder.
        hparams: A JSON file with the hyper-parameters, if those in the checkpoint cannot be read.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the checkpoint is damaged, has no weights or no hyper-parameters, or does not fit the network of
            its hyper-parameters.
    """
    content = read_checkpoint(checkpoint)
    state = content.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{checkpoint} has no state_dict of tensors")
    values = plain(content.get("hyper_parameters")) if hparams is None else json.loads(hparams.read_text())
    if not isinstance(values, dict) or "network" not in values:
        raise ValueError(f"{checkpoint} has no hyper-parameters that can be read; give them as a JSON file")
    if "diffuser" in values["network"]:
        net, scale = denoiser.from_official(state, values)
        diffusion = DiffusionConfig().to_dict()
        save_pretrained(net, out, source=checkpoint.name, latent_scale=scale, diffusion=diffusion)
        return net
    try:
        model = from_official(state, values)
        metadata = _box_of(model, values)
    except KeyError as error:
        raise ValueError(f"{checkpoint}: the hyper-parameters lack {error}") from error
    save_pretrained(model, out, source=checkpoint.name, **metadata)
    return model


def _box_of(model: VAE, hparams: Mapping[str, Any]) -> dict[str, Any]:
    """The levels and the edges of the box that a released VAE is for: its latents fill `neck_bound` to both sides."""
    factor = model.config.factor
    bound = hparams["network"]["unet"]["params"]["neck_bound"]
    fine = [2 * int(half) * ratio for half, ratio in zip(bound, factor, strict=True)]
    size = [count * edge for count, edge in zip(fine, model.config.voxel_sizes, strict=True)]
    return {"levels": [fine[0] // factor[0], fine[0]], "level": 1, "size": size}
