"""Released denoisers: their hyper-parameters and parameter names, and ours.

Kernels of sparse convolutions have their axes in the order z, y, x in the release, those of dense ones x, y, z.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import sparsevox as sv
from xcube.networks.configs import UNetConfig
from xcube.networks.pretrained import load_exactly
from xcube.networks.unet import UNet

# Official name -> ours, module by module. Numbers of blocks count the first convolution, which is not among ours.
MODULES: tuple[tuple[str, str], ...] = (
    (r"unet\.time_emb(?:ed)?\.", "time."),
    (r"cond_stage_model\.model\.", "label."),
    (r"unet\.(?:encoder|input)_blocks\.0\.0\.", "enter."),
    (r"unet\.(?:encoder|input)_blocks\.(\d+)\.0\.", "encoder.{}.block."),
    (r"unet\.(?:encoder|input)_blocks\.(\d+)\.1\.", "encoder.{}.mixer."),
    (r"unet\.middle_block\.0\.", "middle.first."),
    (r"unet\.middle_block\.1\.", "middle.mixer."),
    (r"unet\.middle_block\.2\.", "middle.second."),
    (r"unet\.(?:decoder|output)_blocks\.(\d+)\.0\.", "decoder.{}.block."),
    (r"unet\.(?:decoder|output)_blocks\.(\d+)\.\d\.(?=in_|emb_|out_)", "decoder.{}.lift."),
    (r"unet\.(?:decoder|output)_blocks\.(\d+)\.1\.", "decoder.{}.mixer."),
    (r"unet\.out(?:_block)?\.0\.", "out.norm."),
    (r"unet\.out(?:_block)?\.2\.", "out.conv."),
)
PARTS: tuple[tuple[str, str], ...] = (
    ("in_layers.0.", "norm1."),
    ("in_layers.2.", "conv1."),
    ("emb_layers.1.", "time."),
    ("out_layers.0.", "norm2."),
    ("out_layers.3.", "conv2."),
    ("skip_connection.", "skip."),
    ("proj_out.", "proj."),
    ("proj_in.", "enter."),
    ("transformer_blocks.0.attn1.to_out.0.", "voxels.proj."),
    ("transformer_blocks.0.attn1.to_", "voxels."),
    ("transformer_blocks.0.attn2.to_out.0.", "text.proj."),
    ("transformer_blocks.0.attn2.to_", "text."),
    ("transformer_blocks.0.ff.net.0.proj.", "gate.wide."),
    ("transformer_blocks.0.ff.net.2.", "gate.out."),
    ("transformer_blocks.0.norm", "norm"),
)
POSITIONS = {
    "use_pos_embed": "ijk",
    "use_pos_embed_high": "embedded",
    "use_pos_embed_world": None,
    "use_pos_embed_world_high": "world",
}


def config_from_official(hparams: Mapping[str, Any], latent_channels: int) -> UNetConfig:
    """Our configuration of a denoiser with these official hyper-parameters.

    Raises:
        KeyError: If a hyper-parameter is missing.
        ValueError: If they ask for what no release uses.
    """
    network = hparams["network"]
    unet, dense = network["diffuser"], "Dense" in network["diffuser_name"]
    if hparams.get("use_single_scan_concat") or unet.get("num_classes"):
        raise ValueError("no released network takes a single scan or a class, so there is no way to check one")
    position = next((ours for theirs, ours in POSITIONS.items() if hparams.get(theirs)), "none")
    if position is None:
        raise ValueError("no released network has use_pos_embed_world, so there is no way to check one")
    semantic: Mapping[str, Any] = network["cond_stage_model"]["params"] if hparams.get("use_semantic_cond") else {}
    return UNetConfig.official(
        dense,
        latent_channels=latent_channels,
        channels=int(unet["model_channels"]),
        multipliers=tuple(int(m) for m in unet["channel_mult"]),
        blocks=int(unet["num_res_blocks"]),
        attention=tuple(int(ratio) for ratio in unet["attention_resolutions"]),
        heads=int(unet["num_heads"]),
        position=position,
        normal=bool(hparams.get("use_normal_concat_cond")),
        num_labels=int(semantic.get("num_semantic", 0)),
        label_dim=int(semantic.get("dim_semantic", 32)),
        text_channels=int(hparams["context_dim"]) if hparams.get("use_text_cond") else 0,
    )


def denoiser_state(state: Mapping[str, Tensor], config: UNetConfig, *, averaged: bool = False) -> dict[str, Tensor]:
    """Official parameters of a denoiser under our names and in our layout.

    Names that are neither of the denoiser nor of its conditions (the VAE's, "scale_factor") are left out; of those,
    names that are not known keep theirs.

    Args:
        state: Parameters by official name.
        config: Of our network.
        averaged: Whether to take the averages "unet_ema.*" of the weights; the conditions' have none.

    Raises:
        ValueError: If there are no averages.
    """
    own = {name: value for name, value in state.items() if name.startswith(("unet.", "cond_stage_model."))}
    if averaged:
        # An average has the name of its parameter without dots.
        averages = {name: f"unet_ema.{name.removeprefix('unet.').replace('.', '')}" for name in own}
        missing = [theirs for name, theirs in averages.items() if name.startswith("unet.") and theirs not in state]
        if missing:
            raise ValueError(f"the checkpoint must have averages of all weights, it lacks {', '.join(missing)}")
        own = {name: state.get(averages[name], value) for name, value in own.items()}
    return {our_name(name): _converted(name, value, config) for name, value in own.items()}


def our_name(name: str) -> str:
    """Our name of an official parameter; a name that is not known comes back as it is."""
    for pattern, ours in MODULES:
        match = re.match(pattern, name)
        if match:
            number = int(match[1]) - ours.startswith("encoder") if match.groups() else 0
            rest = name[match.end() :]
            for theirs, part in PARTS:
                if rest.startswith(theirs):
                    rest = part + rest.removeprefix(theirs)
                    break
            return ours.format(number) + rest
    return name


def _converted(name: str, value: Tensor, config: UNetConfig) -> Tensor:
    sparse = ".encoder_blocks." in name or ".decoder_blocks." in name or name.startswith("unet.middle_block.")
    sparse = (sparse or ".out_block." in name) and not config.dense
    if value.ndim == 5 and value.shape[2] == 3:
        return sv.nn.convert_weight(value, "fvdb2024") if sparse else value
    if ".qkv." in name and sparse:  # there every head has its own queries, keys and values
        value = value.unflatten(0, (config.heads, 3, -1)).transpose(0, 1).flatten(0, 2)
    return value.flatten(1) if value.ndim > 2 else value


def from_official(
    state: Mapping[str, Tensor], hparams: Mapping[str, Any], *, averaged: bool | None = None
) -> tuple[UNet, float]:
    """Our network of official hyper-parameters with weights under their official names, and the scale of its latents.

    Args:
        state: Parameters by official name, of the whole checkpoint.
        hparams: Hyper-parameters.
        averaged: Whether to take the averages of weights; by default if there are any.

    Returns:
        The network, in evaluation mode, and what latents of the VAE are multiplied with before they are noised.

    Raises:
        KeyError: If a hyper-parameter is missing.
        ValueError: If parameters are missing, extra or of another shape, by their names; or the hyper-parameters ask
            for what no release has.
    """
    last = next((state[n] for n in ("unet.out.2.weight", "unet.out_block.2.weight") if n in state), None)
    if last is None:
        raise ValueError("the checkpoint has no denoiser: neither unet.out.2.weight nor unet.out_block.2.weight")
    config = config_from_official(hparams, last.shape[0])
    averaged = any(name.startswith("unet_ema.") for name in state) if averaged is None else averaged
    with torch.device("meta"):
        model = UNet(config)
    weights = denoiser_state(state, config, averaged=averaged)
    model.to_empty(device="cpu")
    load_exactly(model, weights, "the checkpoint")
    return model.eval(), float(state.get("scale_factor", torch.tensor(1.0)))
