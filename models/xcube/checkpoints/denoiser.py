"""Official denoisers: their hyperparameters and parameter names, and ours.

The axes of the kernels of sparse convolutions have the order z, y, x there, those of dense convolutions x, y, z.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import sparsevox as sv
from xcube.checkpoints.hparams import Hyperparameters
from xcube.networks.configs import Position, UNetConfig
from xcube.networks.pretrained import load_exactly
from xcube.networks.unet import UNet

# Official name -> ours, module by module. Official indices of blocks count the first convolution as block 0.
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
# The position that is joined to the latents: the first of these that is true decides. WORLD is refused.
WORLD = "use_pos_embed_world"
POSITIONS: Mapping[str, Position] = {
    "use_pos_embed": "ijk",
    "use_pos_embed_high": "embedded",
    WORLD: "none",
    "use_pos_embed_world_high": "world",
}
# Values that the official networks have. Other values make networks that nothing could be compared with.
FIXED: Mapping[str, tuple[Any, ...]] = {
    "model": ("diffusion",),
    "use_single_scan_concat": (False,),
    "use_classifier_free": (False,),
    "scale_by_std": (True,),
    "network.diffuser.dims": (3,),
    "network.diffuser.num_classes": (0,),
    "network.diffuser.use_middle_attention": (True,),
    "network.diffuser.use_scale_shift_norm": (True,),
    "network.diffuser.resblock_updown": (True,),
    "network.cond_stage_model.target": ("SemanticEncoder",),
    **{
        f"{block}{key}": (value,)
        for block in ("", "network.scheduler.")
        for key, value in {
            "num_train_timesteps": 1000,
            "beta_start": 0.0001,
            "beta_end": 0.02,
            "beta_schedule": "linear",
            "variance_type": "fixed_small",
            "clip_sample": False,
            "prediction_type": "v_prediction",
        }.items()
    },
}
IRRELEVANT: Mapping[str, str] = {
    "vae_config": "the VAE, which is converted on its own",
    "vae_checkpoint": "the VAE, which is converted on its own",
    "voxel_size": "the VAE, which is converted on its own",
    "resolution": "the VAE, which is converted on its own",
    "network.diffuser.image_size": "the VAE, which is converted on its own",
    "use_ddim": "default of sampling",
    "num_inference_steps": "default of sampling",
    "scale_factor": "start of a number that the checkpoint holds",
    "ema": "averages of weights are used if the checkpoint holds them",
    "ema_decay": "optimization",
    "use_noise_offset": "noise of the training",
    "network.diffuser.dropout": "dropout of the training",
    "network.diffuser.use_checkpoint": "memory of the backward pass",
}


def config_from_official(hparams: Mapping[str, Any], latent_channels: int) -> UNetConfig:
    """Our configuration of a denoiser with these official hyperparameters.

    Raises:
        KeyError: If a hyperparameter is missing.
        ValueError: If a hyperparameter is unknown, or has a value that no official network has; the message names it.
    """
    h, unet, semantic = Hyperparameters(hparams), "network.diffuser", "network.cond_stage_model.params"
    dense = h.read("network.diffuser_name", str) == "UNetModel_Dense"
    expected = dict(FIXED)
    # 1. Conditions, which are joined to the latents or read by cross-attention.
    given = [name for name in POSITIONS if h.read(name, bool, False)]
    if given[:1] == [WORLD]:
        expected[WORLD] = (False,)
    normal, semantics = h.read("use_normal_concat_cond", bool, False), h.read("use_semantic_cond", bool, False)
    num_labels = h.read(f"{semantic}.num_semantic", int, 0)
    label_dim = h.read(f"{semantic}.dim_semantic", int, 32)
    text_channels = h.read("context_dim", int) if h.read("use_text_cond", bool, False) else 0
    joined = 3 * normal + label_dim * semantics
    keys = ("crossattn", "c_crossattn") if text_channels else ("none", "concat")
    expected["conditioning_key"] = (keys[joined > 0],)
    if joined:
        expected["num_classes"] = (joined,)
    if not dense:
        expected["network.diffuser_name"] = ("UNetModel_Sparse_CrossAttn" if text_channels else "UNetModel_Sparse",)
    h.expect(expected)
    # 2. The network.
    config = UNetConfig.official(
        dense,
        latent_channels=latent_channels,
        channels=h.read(f"{unet}.model_channels", int),
        multipliers=h.read(f"{unet}.channel_mult", tuple),
        blocks=h.read(f"{unet}.num_res_blocks", int),
        attention=h.read(f"{unet}.attention_resolutions", tuple),
        heads=h.read(f"{unet}.num_heads", int),
        position=POSITIONS[given[0]] if given else "none",
        normal=normal,
        num_labels=num_labels if semantics else 0,
        label_dim=label_dim,
        text_channels=text_channels,
    )
    h.done(IRRELEVANT)
    return config


def denoiser_state(state: Mapping[str, Tensor], config: UNetConfig, *, averaged: bool = False) -> dict[str, Tensor]:
    """Official parameters of a denoiser under our names and in our layout.

    Parameters of other modules, such as the VAE, are left out. Unknown parameters of the denoiser keep their names.

    Args:
        state: Parameters by official name.
        config: Configuration of our network.
        averaged: Whether to use the moving averages "unet_ema.*" of the weights. Embeddings of conditions have none.

    Raises:
        ValueError: If an average is missing.
    """
    own = {name: value for name, value in state.items() if name.startswith(("unet.", "cond_stage_model."))}
    if averaged:
        # The name of an average is that of its parameter without the dots.
        averages = {name: f"unet_ema.{name.removeprefix('unet.').replace('.', '')}" for name in own}
        missing = [theirs for name, theirs in averages.items() if name.startswith("unet.") and theirs not in state]
        if missing:
            raise ValueError(f"the checkpoint must have moving averages of all weights, it lacks {', '.join(missing)}")
        own = {name: state.get(averages[name], value) for name, value in own.items()}
    return {our_name(name): _converted(name, value, config) for name, value in own.items()}


def our_name(name: str) -> str:
    """Our name of an official parameter; an unknown name is returned as it is."""
    for pattern, ours in MODULES:
        match = re.match(pattern, name)
        if match:
            index = int(match[1]) - ours.startswith("encoder") if match.groups() else 0
            rest = name[match.end() :]
            for theirs, part in PARTS:
                if rest.startswith(theirs):
                    rest = part + rest.removeprefix(theirs)
                    break
            return ours.format(index) + rest
    return name


def _converted(name: str, value: Tensor, config: UNetConfig) -> Tensor:
    sparse = ".encoder_blocks." in name or ".decoder_blocks." in name or name.startswith("unet.middle_block.")
    sparse = (sparse or ".out_block." in name) and not config.dense
    if value.ndim == 5 and value.shape[2] == 3:
        return sv.nn.convert_weight(value, "fvdb2024") if sparse else value
    if ".qkv." in name and sparse:  # official order: heads first, then queries, keys, values
        value = value.unflatten(0, (config.heads, 3, -1)).transpose(0, 1).flatten(0, 2)
    return value.flatten(1) if value.ndim > 2 else value


def denoiser_from_official(
    state: Mapping[str, Tensor], hparams: Mapping[str, Any], *, averaged: bool | None = None
) -> tuple[UNet, float]:
    """The denoiser that official hyperparameters describe, with the given weights, and the scale of its latents.

    Args:
        state: Parameters by official name, of the whole checkpoint.
        hparams: Official hyperparameters.
        averaged: Whether to use the moving averages of the weights; by default where the checkpoint has them.

    Returns:
        The network, in evaluation mode, and the factor by which latents of the VAE are multiplied before noise is
        added.

    Raises:
        KeyError: If a hyperparameter is missing.
        ValueError: If a hyperparameter is unknown or has a value that no official network has, or parameters are
            missing, extra or of another shape; the message names them.
    """
    last = next((state[n] for n in ("unet.out.2.weight", "unet.out_block.2.weight") if n in state), None)
    if last is None:
        raise ValueError(
            "the checkpoint must hold a denoiser, got neither unet.out.2.weight nor unet.out_block.2.weight"
        )
    config = config_from_official(hparams, last.shape[0])
    averaged = any(name.startswith("unet_ema.") for name in state) if averaged is None else averaged
    with torch.device("meta"):
        model = UNet(config)
    weights = denoiser_state(state, config, averaged=averaged)
    model.to_empty(device="cpu")
    load_exactly(model, weights, "the checkpoint")
    return model.eval(), float(state.get("scale_factor", torch.tensor(1.0)))
