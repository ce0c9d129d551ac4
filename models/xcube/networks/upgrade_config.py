"""Configurations of networks as earlier versions of this package wrote them.

They had one option for each layer in which the two architectures differ, where `architecture` now chooses all of them.
"""

from typing import Any, get_args

from xcube.networks.configs import Architecture

Options = dict[str, Any]

# The earlier options of the VAE in each architecture, and the earlier defaults of those of the denoiser.
VAE_LAYERS: dict[Architecture, Options] = {
    "modern": {
        "block": "residual",
        "pooling": "strided",
        "upsample": "shuffle",
        "child_masks": True,
        "bottleneck": "linear",
    },
    "official": {
        "block": "gcr",
        "pooling": "max",
        "upsample": "nearest",
        "child_masks": False,
        "bottleneck": "relu",
    },
}
UNET_DEFAULTS: Options = {
    "resample": "plain",
    "pool": "active",
    "skip_first": True,
    "text_everywhere": False,
    "inner": "level",
    "text_eps": 1e-5,
}


def upgrade(kind: str, values: Options) -> Options:
    """Convert the fields of an earlier configuration to those of today. Fields of today are returned as they are.

    Args:
        kind: The kind of network, as `config.json` has it.
        values: The fields by name.

    Raises:
        ValueError: If the earlier options mix layers of both architectures, which is no longer possible.
    """
    defaults = {"vae": VAE_LAYERS["modern"], "denoiser": UNET_DEFAULTS}.get(kind, {})
    given = {name: value for name, value in values.items() if name in defaults}
    if not given:
        return values
    rest = {name: value for name, value in values.items() if name not in given}
    for architecture in get_args(Architecture):
        layers = VAE_LAYERS[architecture] if kind == "vae" else _unet_layers(architecture, values)
        if layers.items() <= (defaults | given).items():
            if kind == "vae" and architecture == "modern":
                rest["cutoff"] = None  # possible with any layers then; it acted in training only
            return rest | {"architecture": architecture}
    raise ValueError(f"layers of the modern and the official architecture can no longer be mixed, got {given}")


def _unet_layers(architecture: Architecture, values: Options) -> Options:
    """The earlier options of a denoiser of this architecture, without those that made no difference to it."""
    official, dense = architecture == "official", bool(values.get("dense"))
    layers: Options = {"resample": "block" if official else "plain", "skip_first": not (official and dense)}
    if not dense:
        layers["pool"] = "window" if official else "active"
    if values.get("text_channels"):
        everywhere = official and not dense
        layers["text_everywhere"], layers["inner"] = everywhere, "last" if everywhere else "level"
        layers["text_eps"] = 1e-6 if official and dense else 1e-5
    return layers
