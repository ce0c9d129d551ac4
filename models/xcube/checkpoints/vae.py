"""Released VAEs: their hyper-parameters and parameter names, and ours.

Kernels of sparse convolutions have their axes in the order z, y, x in the release.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

import sparsevox as sv
from xcube.networks.configs import VAEConfig

# Official name -> ours; `{}` is the number that the pattern finds, as `_number` turns it.
RULES: tuple[tuple[str, str], ...] = (
    (r"encoder\.mix_fc\.", "encoder.featurizer.mix."),
    (r"encoder\.semantic_embed_fn\.", "encoder.featurizer.label."),
    (r"unet\.pre_conv\.", "encoder.enter."),
    (r"unet\.encoders\.Enc(\d+)\.", "encoder.stages.{}.block."),
    (r"unet\.pre_kl_bottleneck\.pre_kl_bottleneck_0\.", "encoder.neck."),
    (r"unet\.pre_kl_bottleneck\.pre_kl_bottleneck_1\.", "encoder.out."),
    (r"unet\.post_kl_bottleneck\.post_kl_bottleneck_0\.", "decoder.enter."),
    (r"unet\.post_kl_bottleneck\.post_kl_bottleneck_1\.", "decoder.neck."),
    (r"unet\.decoders\.Dec(-\d+)\.", "decoder.lifts.{}.block."),
    (r"unet\.struct_convs\.Struct(-\d+)\.", "decoder.heads.{}."),
    (r"unet\.normal_head\.", "decoder.normal."),
    (r"unet\.semantic_head\.", "decoder.label."),
)
PARTS = {
    "SingleConv1.GroupNorm.": "first.norm.",
    "SingleConv1.Conv.": "first.conv.",
    "SingleConv2.GroupNorm.": "second.norm.",
    "SingleConv2.Conv.": "second.conv.",
    "SingleConv.GroupNorm.": "unit.norm.",
    "SingleConv.Conv.": "unit.conv.",
    "OutConv.": "out.",
}


def config_from_official(hparams: Mapping[str, Any]) -> VAEConfig:
    """Our configuration of a VAE with these official hyper-parameters.

    Raises:
        ValueError: If they ask for what no release uses (residual blocks, attention, skips to the decoder).
    """
    unet = hparams["network"]["unet"]["params"]
    for name in ("use_residual", "is_add_dec", "use_attention"):
        if unet.get(name):
            raise ValueError(f"no released network has {name}, so there is no way to check one that does")
    if unet.get("order", "gcr") != "gcr":
        raise ValueError(f"order must be 'gcr', as in all releases, got {unet['order']!r}")
    depths = int(hparams["tree_depth"])
    channels = tuple(int(unet["f_maps"]) << depth for depth in range(depths))
    strides = None
    if hparams.get("remain_h"):  # the heights stay until the levels that are named
        full = set(unet.get("pooling_level", ()))
        strides = tuple((2, 2, 2) if depth in full else (2, 2, 1) for depth in range(1, depths))
    x, y, z = (int(n) for n in unet["neck_bound"])
    dense = unet["neck_dense_type"] == "HAND_CRAFTED"
    labels = int(hparams.get("num_semantic", 0)) if hparams.get("use_input_semantic") else 0
    resolution = int(hparams["resolution"])
    return VAEConfig.official(
        voxel_size=float(hparams["voxel_size"]),
        channels=channels,
        latent_channels=int(channels[-1] / hparams["cut_ratio"]),
        hidden=int(hparams["network"]["encoder"]["c_dim"]),
        dense_neck=(x, y, z) if dense else None,
        strides=strides,
        dilation="all" if hparams["use_hash_tree"] else "none",
        cutoff=unet.get("unstable_cutoff_threshold") if unet.get("unstable_cutoff") else None,
        box=(resolution,) * 3,
        normal=bool(hparams["use_input_normal"]),
        intensity=bool(hparams.get("use_input_intensity")),
        num_labels=labels,
        label_dim=int(hparams.get("dim_semantic", 32)),
    )


def vae_state(state: Mapping[str, Tensor], depths: int) -> dict[str, Tensor]:
    """Official parameters under our names, kernels in our order of axes. Unknown names keep theirs."""
    return {our_name(name, depths): _converted(value) for name, value in state.items()}


def our_name(name: str, depths: int) -> str:
    """Our name of an official parameter; a name that is not known comes back as it is."""
    for pattern, ours in RULES:
        match = re.match(pattern, name)
        if match:
            rest = name[match.end() :]
            for theirs, part in PARTS.items():
                if rest.startswith(theirs):
                    rest = part + rest[len(theirs) :]
            return ours.format(*(_number(text, depths) for text in match.groups())) + rest
    return name


def _number(text: str, depths: int) -> int:
    """Stages of the decoder count from -1, the latent depth, or -2."""
    number = int(text)
    return number if number >= 0 and not text.startswith("-") else depths + number


def _converted(value: Tensor) -> Tensor:
    return sv.nn.convert_weight(value, "fvdb2024") if value.ndim == 5 else value
