"""Conversion of official checkpoints to folders that `from_pretrained` reads."""

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


def vae_from_official(state: Mapping[str, Tensor], hparams: Mapping[str, Any]) -> VAE:
    """The VAE that official hyperparameters describe, with the given weights, in evaluation mode.

    Args:
        state: Parameters by official name.
        hparams: Official hyperparameters.

    Raises:
        KeyError: If a hyperparameter is missing.
        ValueError: If a hyperparameter is unknown or has a value that no official network has, or parameters are
            missing, extra or of another shape; the message names them.
    """
    config = config_from_official(hparams)
    with torch.device("meta"):
        model = VAE(config)
    weights = vae_state(state, config.num_resolutions)
    model.to_empty(device="cpu")
    load_exactly(model, weights, "the checkpoint")
    return model.eval()


def convert(checkpoint: Path, out: Path, hparams: Path | None = None) -> VAE | UNet:
    """Convert an official checkpoint of a VAE or a denoiser to a folder that xcube loads.

    Args:
        checkpoint: Checkpoint file of the official code. No code in it is executed.
        out: Output folder of config.json and model.safetensors.
        hparams: JSON file with hyperparameters to use in place of those in the checkpoint.

    Returns:
        The network, in evaluation mode.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the checkpoint is damaged, has no weights or no hyperparameters, does not fit the network of its
            hyperparameters, or one of these is unknown; the message names it.
    """
    content = read_checkpoint(checkpoint)
    state = content.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{checkpoint} has no state_dict of tensors")
    values = plain(content.get("hyper_parameters")) if hparams is None else json.loads(hparams.read_text())
    if not isinstance(values, dict) or "network" not in values:
        raise ValueError(f"{checkpoint} has no hyperparameters that can be read; pass them as a JSON file, --hparams")
    model: VAE | UNet
    metadata: dict[str, Any]
    try:
        if "diffuser" in values["network"]:
            model, scale = denoiser.denoiser_from_official(state, values)
            metadata = {"latent_scale": scale, "diffusion": DiffusionConfig().to_dict()}
        else:
            model = vae = vae_from_official(state, values)
            metadata = _box_of(vae, values)
    except KeyError as error:
        raise ValueError(f"{checkpoint}: the hyperparameters lack {error}") from error
    save_pretrained(model, out, source=checkpoint.name, **metadata)
    return model


def _box_of(model: VAE, hparams: Mapping[str, Any]) -> dict[str, Any]:
    """The levels and the edges of the box of an official VAE: its latents extend `neck_bound` voxels to both sides."""
    factor = model.config.factor
    bound = hparams["network"]["unet"]["params"]["neck_bound"]
    fine = [2 * int(half) * ratio for half, ratio in zip(bound, factor, strict=True)]
    size = [count * edge for count, edge in zip(fine, model.config.voxel_sizes, strict=True)]
    return {"levels": [fine[0] // factor[0], fine[0]], "level": 1, "size": size}
