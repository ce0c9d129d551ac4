"""Networks saved in folders as `config.json` and `model.safetensors`; loading executes no code from them."""

import hashlib
import json
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from sparsevox.files import atomic_write
from xcube.config import Config
from xcube.networks.configs import RefinerConfig, UNetConfig, VAEConfig
from xcube.networks.quantize import Bits, compressed, restored
from xcube.networks.refiner import Refiner
from xcube.networks.unet import UNet
from xcube.networks.upgrade_config import upgrade
from xcube.networks.vae import VAE

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
M = TypeVar("M", bound=torch.nn.Module)

# The classes of the networks and of their configurations, by their kind in config.json.
KINDS: dict[str, tuple[type[torch.nn.Module], type[Config]]] = {
    "vae": (VAE, VAEConfig),
    "refiner": (Refiner, RefinerConfig),
    "denoiser": (UNet, UNetConfig),
}


def save_pretrained(model: torch.nn.Module, folder: str | PathLike[str], *, bits: Bits = 32, **metadata: Any) -> None:
    """Save a network to a folder.

    Args:
        model: A `VAE`, `UNet` or `Refiner`.
        folder: The folder, created if necessary.
        bits: Number of bits per weight in the file, 32, 16 or 8 (`xcube.networks.quantize`).
        metadata: Further JSON values to save, such as the scale of the latents or the dataset.

    Raises:
        TypeError: If the model is not one of these networks.
        ValueError: If `bits` is another number.
    """
    kind = kind_of(model)
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic_write(path / WEIGHTS) as file:
        file.write(save(compressed(state, bits)))
    assert isinstance(model.config, Config)
    config = {"format": FORMAT, "kind": kind, "config": model.config.to_dict(), "metadata": metadata}
    with atomic_write(path / CONFIG) as file:
        file.write((json.dumps(config, indent=2) + "\n").encode())


def from_pretrained(folder: str | PathLike[str], kind: type[M]) -> M:
    """Load a network that `save_pretrained` wrote, in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the folder holds another kind of network or another format, a file is damaged, or the parameters
            do not fit the configuration.
    """
    values = read_config(folder)
    expected = next(name for name, (cls, _) in KINDS.items() if cls is kind)
    if values["kind"] != expected:
        raise ValueError(f"{folder} holds a {values['kind']}, not a {expected}")
    try:
        model = kind(KINDS[expected][1].from_dict(values["config"]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{Path(folder) / CONFIG} does not fit a {expected}: {error}") from error
    load_weights(model, folder)
    return model.eval()


def load_weights(model: torch.nn.Module, folder: str | PathLike[str]) -> None:
    """Load the weights in a folder into a network with the same configuration.

    Raises:
        FileNotFoundError: If they are missing.
        ValueError: If the file is damaged, or the parameters do not fit.
    """
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    try:
        state = restored(load_file(path))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    load_exactly(model, state, str(path))


def read_config(folder: str | PathLike[str]) -> dict[str, Any]:
    """Read `config.json` in a folder: "kind", "config" and "metadata". That of an earlier version is converted.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is damaged, has another format, or is of a network that this version cannot build.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if isinstance(values, dict) and "facts" in values:  # as earlier versions called it
        values["metadata"] = values.pop("facts")
    if not isinstance(values, dict) or values.get("format") != FORMAT or values.get("kind") not in KINDS:
        raise ValueError(f"{path} must have format {FORMAT} and a kind of {sorted(KINDS)}, got {values}")
    if not all(isinstance(values.get(name), dict) for name in ("config", "metadata")):
        raise ValueError(f"{path} must have a config and metadata, got only {sorted(values)}")
    try:
        values["config"] = upgrade(values["kind"], values["config"])
    except ValueError as error:
        raise ValueError(f"{path} does not fit a {values['kind']}: {error}") from error
    return values


def digest(file: str | PathLike[str]) -> str:
    """Compute the SHA-256 digest of a file.

    Raises:
        OSError: If it cannot be read.
    """
    with Path(file).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def load_exactly(model: torch.nn.Module, state: dict[str, torch.Tensor], name: str) -> None:
    """Load parameters into a network.

    Args:
        model: The network.
        state: The parameters by name.
        name: The source of the parameters, for the error message.

    Raises:
        ValueError: If parameters are missing, extra, or have another shape; the message names them.
    """
    own = model.state_dict()
    missing, extra = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    other = [
        f"{n} {list(state[n].shape)} in place of {list(own[n].shape)}"
        for n in own
        if n in state and state[n].shape != own[n].shape
    ]
    found = {"missing": missing, "extra": extra, "shape": other}
    lines = [f"{what}: {', '.join(names)}" for what, names in found.items() if names]
    if lines:
        raise ValueError(f"{name} does not fit the model; {'; '.join(lines)}")
    model.load_state_dict(state)


def kind_of(model: torch.nn.Module) -> str:
    """Return the kind of a network, as `config.json` has it.

    Raises:
        TypeError: If it is not a `VAE`, `UNet` or `Refiner`.
    """
    for name, (cls, _) in KINDS.items():
        if isinstance(model, cls):
            return name
    raise TypeError(f"model must be one of {', '.join(KINDS)}, got {type(model).__name__}")
