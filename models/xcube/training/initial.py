"""Weights of a trained network as the start of a training run."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from xcube.diffusion.objective import DiffusionConfig
from xcube.networks.pretrained import KINDS, WEIGHTS, digest, load_weights, read_config
from xcube.networks.unet import UNet
from xcube.training.modules import NetworkModule

# Fields of a configuration that may differ: they change neither the parameters nor what these were trained for.
ADDED = ("observed", "words", "box")  # conditions of a denoiser that its initial weights may lack
FREE = {"bridge", "certain", "checkpointing", "keep", "keep_ratio", "logvar_init", "max_voxels", "thresholds"}


def load_initial(module: NetworkModule, folder: Path, out: Path) -> None:
    """Load the weights of a trained network into that of a run, and record their digest in the options of the run.

    Args:
        module: The module of the run.
        folder: Folder of the trained network.
        out: Folder of the run.

    Raises:
        FileNotFoundError: If there is no network in the folder.
        ValueError: If the folder is `out`, or holds a damaged file or a network of another kind, configuration, scale
            of the latents, diffusion process or categories, where these are recorded.
    """
    if folder.resolve() == out.resolve():
        raise ValueError(f"initial must be another folder than out, got {folder} for both")
    try:
        values = read_config(folder)
        expected, got = _settings(module.options), _settings(_recorded(values))
        more = [f"model.{name}" for name in ADDED if expected.get(f"model.{name}") and not got.get(f"model.{name}")]
        for name in more:
            expected.pop(name)
        for name in sorted(expected.keys() & got.keys()):
            if not _same(expected[name], got[name]):
                raise ValueError(f"{name} must be {expected[name]}, got {got[name]}")
        if isinstance(module.net, UNet) and more:
            _load_and_extend(module.net, folder, more)
        else:
            load_weights(module.net, folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"initial must be the folder of a trained network, got {folder}: {error}") from error
    except ValueError as error:
        raise ValueError(f"initial must hold a network like that of the run, got {folder}: {error}") from error
    module.options["initial"] = digest(folder / WEIGHTS)


def _load_and_extend(net: UNet, folder: Path, added: Sequence[str]) -> None:
    """Load the weights of a denoiser without some conditions. At first they have no effect on its prediction."""
    nothing: dict[str, Any] = {name.removeprefix("model."): 0 for name in added}
    nothing |= {"box": 0} if "words" in nothing else {}
    plain = UNet(replace(net.config, **nothing))
    load_weights(plain, folder)
    state = plain.state_dict()
    if "observed" in nothing:
        state = with_observations(plain, net.config.observed).state_dict()
    if "box" in nothing and net.config.box:  # the guess of the latents comes last
        first = state["enter.weight"]
        unused = first.new_zeros(first.shape[0], net.config.latent_channels, *first.shape[2:])
        state["enter.weight"] = torch.cat([first, unused], 1)
    net.load_state_dict(net.state_dict() | state)  # the embedding of words starts at zero


def with_observations(net: UNet, count: int) -> UNet:
    """A denoiser that takes observations of `count` voxels in each latent voxel. At first they have no effect.

    Args:
        net: A denoiser. It is returned if it takes observations of as many voxels already.
        count: Number of finer voxels in a latent voxel.

    Raises:
        ValueError: If it takes observations of another number of voxels.
    """
    if net.config.observed not in (0, count):
        raise ValueError(f"the denoiser must take observations of {count} voxels, or none, got {net.config.observed}")
    if net.config.observed:
        return net
    made = UNet(replace(net.config, observed=count))
    state = net.state_dict()
    # Observations are the last inputs, except for guessed latents.
    guessed = net.config.latent_channels if net.config.box else 0
    known, guess = state["enter.weight"].split([net.config.in_channels - guessed, guessed], 1)
    unused = known.new_zeros(known.shape[0], count, *known.shape[2:])
    made.load_state_dict(state | {"enter.weight": torch.cat([known, unused, guess], 1)})
    return made


def _recorded(values: dict[str, Any]) -> dict[str, Any]:
    """The options of the run that trained a network, from its config.json."""
    metadata = values["metadata"]
    known = {name: metadata[name] for name in ("diffusion",) if name in metadata}
    if "latent_scale" in metadata:
        known["scale"] = metadata["latent_scale"]
    return known | (metadata.get("options") or {}) | {"kind": values["kind"], "model": values["config"]}


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """What has to be equal, flat, from the options of a run. Fields that it does not record have their defaults."""
    config = KINDS[options["kind"]][1].from_dict(options["model"]).to_dict()
    found = {f"model.{name}": value for name, value in config.items() if name not in FREE}
    if "diffusion" in options:
        diffusion = DiffusionConfig.from_dict(options["diffusion"]).to_dict()
        found |= {f"diffusion.{name}": value for name, value in diffusion.items()}
    return found | {name: options[name] for name in ("kind", "scale", "categories", "words") if name in options}


def _same(first: object, second: object) -> bool:
    """Whether two settings are equal, numbers up to rounding."""
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=1e-5)
    return first == second
