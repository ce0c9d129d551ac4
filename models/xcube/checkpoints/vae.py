"""Official VAEs: their hyperparameters and parameter names, and ours.

The axes of the kernels of sparse convolutions have the order z, y, x there.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

import sparsevox as sv
from xcube.checkpoints.hparams import Hyperparameters
from xcube.networks.configs import VAEConfig

# Official name -> ours; `{}` stands for the index that the pattern finds, converted by `_index`.
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


# Values that the official networks have. Other values make networks that nothing could be compared with.
FIXED: Mapping[str, tuple[Any, ...]] = {
    "model": ("autoencoder",),
    "use_input_color": (False,),
    "with_color_branch": (False,),
    "network.unet.target": ("StructPredictionNet",),
    "network.unet.params.order": ("gcr",),
    "network.unet.params.neck_dense_type": ("HAND_CRAFTED", "UNCHANGED"),
    "network.unet.params.num_res_blocks": (1,),
    "network.unet.params.use_residual": (False,),
    "network.unet.params.is_add_dec": (False,),
    "network.unet.params.use_attention": (False,),
}
IRRELEVANT: Mapping[str, str] = {
    "use_fvdb_loader": "format of the dataset",
    "kl_weight": "weight of a loss",
    "kl_weight_m??": "schedule of the weight of a loss",
    "normalize_kld": "weight of a loss",
    "enable_anneal": "schedule of the weight of a loss",
    "anneal_*_iter": "schedule of the weight of a loss",
    "network.unet.params.use_checkpoint": "memory of the backward pass",
}


def config_from_official(hparams: Mapping[str, Any]) -> VAEConfig:
    """Our configuration of a VAE with these official hyperparameters.

    Raises:
        KeyError: If a hyperparameter is missing.
        ValueError: If a hyperparameter is unknown, or has a value that no official network has; the message names it.
    """
    h, unet = Hyperparameters(hparams), "network.unet.params"
    # 1. Resolutions and channels.
    num_resolutions, f_maps = h.read("tree_depth", int), h.read(f"{unet}.f_maps", int)
    hidden = h.read("network.encoder.c_dim", int)
    channels = tuple(f_maps << resolution for resolution in range(num_resolutions))
    strides, full = None, h.read(f"{unet}.pooling_level", tuple, ())
    if h.read("remain_h", bool, False) != bool(full):
        raise ValueError(
            f"{unet}.pooling_level must name resolutions if and only if remain_h is true, got {list(full)}"
        )
    if full:  # heights are halved only at these resolutions
        strides = tuple((2, 2, 2) if resolution in full else (2, 2, 1) for resolution in range(1, num_resolutions))
    bound = h.read(f"{unet}.neck_bound", tuple)
    if len(bound) != 3:
        raise ValueError(f"{unet}.neck_bound must be three integers, got {list(bound)}")
    dense = h.read(f"{unet}.neck_dense_type", str) == "HAND_CRAFTED"
    # 2. Attributes. The official code predicts those whose loss has a weight; here they are those of the input.
    normal, semantic = h.read("use_input_normal", bool), h.read("use_input_semantic", bool, False)
    for name, own in (("normal", normal), ("semantic", semantic)):
        weight = h.read(f"supervision.{name}_weight", float, float(own))
        if (weight > 0) != own:
            expected = f"{'positive' if own else '0'} as use_input_{name} is {own}"
            raise ValueError(f"supervision.{name}_weight must be {expected}, got {weight}")
    num_labels = h.read("num_semantic", int, 0)
    same = {f"{unet}.num_blocks": num_resolutions, f"{unet}.in_channels": hidden}
    same |= {"with_normal_branch": normal, "with_semantic_branch": semantic}
    h.expect({**FIXED, **{key: (value,) for key, value in same.items()}})
    # 3. Everything else.
    threshold = h.read(f"{unet}.unstable_cutoff_threshold", float, 0.0)
    cutoff = threshold if h.read(f"{unet}.unstable_cutoff", bool, False) else None
    resolution = h.read("resolution", int)
    config = VAEConfig.official(
        voxel_size=_voxel_size(h),
        channels=channels,
        latent_channels=int(channels[-1] / h.read("cut_ratio", float)),
        hidden=hidden,
        dense_neck=(bound[0], bound[1], bound[2]) if dense else None,
        strides=strides,
        dilation="all" if h.read("use_hash_tree", bool) else "none",
        cutoff=cutoff,
        box=(resolution,) * 3,
        normal=normal,
        intensity=h.read("use_input_intensity", bool, False),
        num_labels=num_labels if semantic else 0,
        label_dim=h.read("dim_semantic", int, 32),
    )
    h.done(IRRELEVANT)
    return config


def _voxel_size(h: Hyperparameters) -> float:
    """Edge of a voxel, of which the official code may have made three."""
    edges = h.values.get("voxel_size")
    if isinstance(edges, list) and len(edges) == 3 and len(set(edges)) == 1:
        h.values["voxel_size"] = edges[0]
    return h.read("voxel_size", float)


def vae_state(state: Mapping[str, Tensor], num_resolutions: int) -> dict[str, Tensor]:
    """Official parameters under our names, kernels in our order of axes. Unknown parameters keep their names."""
    return {our_name(name, num_resolutions): _converted(value) for name, value in state.items()}


def our_name(name: str, num_resolutions: int) -> str:
    """Our name of an official parameter; an unknown name is returned as it is."""
    for pattern, ours in RULES:
        match = re.match(pattern, name)
        if match:
            rest = name[match.end() :]
            for theirs, part in PARTS.items():
                if rest.startswith(theirs):
                    rest = part + rest[len(theirs) :]
            return ours.format(*(_index(text, num_resolutions) for text in match.groups())) + rest
    return name


def _index(text: str, num_resolutions: int) -> int:
    """Resolution of an official index: those of the decoder are negative, and -1 is the resolution of the latents."""
    return num_resolutions + int(text) if text.startswith("-") else int(text)


def _converted(value: Tensor) -> Tensor:
    return sv.nn.convert_weight(value, "fvdb2024") if value.ndim == 5 else value
