"""Official hyperparameters: each key is read, known to be irrelevant, or refused by its name."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from xcube.checkpoints import denoiser, hparams, vae
from xcube.checkpoints.hparams import Hyperparameters
from xcube.networks.configs import UNetConfig, VAEConfig

VAE: dict[str, Any] = {
    "model": "autoencoder",
    "tree_depth": 3,
    "voxel_size": 0.0025,
    "resolution": 512,
    "use_hash_tree": True,
    "use_input_normal": True,
    "cut_ratio": 16,
    "supervision": {"structure_weight": 20.0, "normal_weight": 300.0},
    "learning_rate": {"init": 0.0001},
    "network": {
        "encoder": {"c_dim": 32},
        "unet": {
            "target": "StructPredictionNet",
            "params": {
                "in_channels": 32,
                "num_blocks": "${tree_depth}",
                "f_maps": 32,
                "neck_dense_type": "UNCHANGED",
                "neck_bound": [64, 64, 64],
            },
        },
    },
}
UNET = {"model_channels": 64, "channel_mult": [1, 2], "attention_resolutions": [2], "num_res_blocks": 2, "num_heads": 8}
DENOISER: dict[str, Any] = {
    "model": "diffusion",
    "use_pos_embed": True,
    "use_normal_concat_cond": True,
    "num_classes": 3,
    "conditioning_key": "concat",
    "network": {"diffuser_name": "UNetModel_Sparse", "diffuser": UNET},
}
TEXT = {"use_text_cond": True, "context_dim": 1024, "conditioning_key": "c_crossattn"}
WITH_TEXT = TEXT | {"network.diffuser_name": "UNetModel_Sparse_CrossAttn"}
PARAMS, DIFFUSER = "network.unet.params", "network.diffuser"


def changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with other values of keys with dotted names; None takes one away."""
    values = json.loads(json.dumps(values))
    for key, value in changes.items():
        *folders, name = key.split(".")
        inner = values
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[name] = value
        if value is None:
            del inner[name]
    return values


def vae_config(changes: dict[str, Any]) -> VAEConfig:
    return vae.config_from_official(changed(VAE, changes))


def unet_config(changes: dict[str, Any]) -> UNetConfig:
    return denoiser.config_from_official(changed(DENOISER, changes), 8)


def other(value: Any) -> Any:
    """A value of the same type that is not the given one."""
    return not value if isinstance(value, bool) else value + type(value)(1) if not isinstance(value, str) else "other"


FIXED_VAE = [(key, value) for key, values in vae.FIXED.items() if (value := other(values[0])) not in values]


@pytest.mark.parametrize(("key", "value"), FIXED_VAE)
def test_other_vaes_are_refused(key: str, value: Any) -> None:
    names = " or ".join(map(repr, vae.FIXED[key]))
    with pytest.raises(ValueError, match=re.escape(f"{key} must be {names} for a network like the official ones")):
        vae_config({key: value})


@pytest.mark.parametrize("key", denoiser.FIXED)
def test_other_denoisers_are_refused(key: str) -> None:
    (own,) = denoiser.FIXED[key]
    message = f"{key} must be {own!r} for a network like the official ones, got {other(own)!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        unet_config({key: other(own)})
    assert unet_config({key: own}) == unet_config({})


@pytest.mark.parametrize(("changes", "message"), [
    ({f"{PARAMS}.num_blocks": 4}, f"{PARAMS}.num_blocks must be 3 for a network like the official ones, got 4"),
    ({f"{PARAMS}.in_channels": 16}, f"{PARAMS}.in_channels must be 32 for a network like the official ones, got 16"),
    ({"with_normal_branch": False}, "with_normal_branch must be True"),
    ({"with_semantic_branch": True}, "with_semantic_branch must be False"),
    ({"supervision.normal_weight": 0.0}, "normal_weight must be positive as use_input_normal is True, got 0.0"),
    ({"supervision.semantic_weight": 20.0}, "semantic_weight must be 0 as use_input_semantic is False, got 20.0"),
    ({"remain_h": True}, f"{PARAMS}.pooling_level must name resolutions if and only if remain_h is true, got []"),
    ({f"{PARAMS}.pooling_level": [2]}, f"{PARAMS}.pooling_level must name resolutions if and only if remain_h is true"),
    ({"tree_depth": "four"}, "tree_depth must be an integer, got 'four'"),
    ({"tree_depth": True}, "tree_depth must be an integer, got True"),
    ({"use_hash_tree": 1}, "use_hash_tree must be true or false, got 1"),
    ({"cut_ratio": "16"}, "cut_ratio must be a number, got '16'"),
    ({"voxel_size": [0.1, 0.1, 0.2]}, "voxel_size must be a number, got [0.1, 0.1, 0.2]"),
    ({f"{PARAMS}.neck_bound": [8, 8.5, 8]}, f"{PARAMS}.neck_bound must be a list of integers, got [8, 8.5, 8]"),
    ({f"{PARAMS}.neck_dense_type": None}, "neck_dense_type"),
    ({"use_point_net": False}, "all hyperparameters must be known, got use_point_net=False; if the trained"),
    ({"network.color.width": 3, "z": "a"}, "all hyperparameters must be known, got network.color.width=3, z='a'"),
])  # fmt: skip
def test_vaes_that_are_not_understood_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((KeyError, ValueError), match=re.escape(message)):
        vae_config(changes)


@pytest.mark.parametrize(("changes", "message"), [
    ({"use_pos_embed": False, "use_pos_embed_world": True}, "use_pos_embed_world must be False"),
    ({"conditioning_key": "adm"}, "conditioning_key must be 'concat' for a network like the official ones, got 'adm'"),
    (WITH_TEXT | {"conditioning_key": "concat"}, "conditioning_key must be 'c_crossattn'"),
    ({"num_classes": 35}, "num_classes must be 3 for a network like the official ones, got 35"),
    ({"use_normal_concat_cond": False}, "conditioning_key must be 'none'"),
    ({"network.diffuser_name": "UNetModel_Points"}, "network.diffuser_name must be 'UNetModel_Sparse'"),
    (TEXT, "network.diffuser_name must be 'UNetModel_Sparse_CrossAttn'"),
    (WITH_TEXT | {"context_dim": None}, "context_dim"),
    ({f"{DIFFUSER}.model_channels": None}, f"{DIFFUSER}.model_channels"),
    ({f"{DIFFUSER}.num_heads": 8.0}, f"{DIFFUSER}.num_heads must be an integer, got 8.0"),
    ({f"{DIFFUSER}.transformer_depth": 2}, f"all hyperparameters must be known, got {DIFFUSER}.transformer_depth=2"),
    ({"use_micro_cond": True}, "all hyperparameters must be known, got use_micro_cond=True"),
])  # fmt: skip
def test_denoisers_that_are_not_understood_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((KeyError, ValueError), match=re.escape(message)):
        unet_config(changes)


def test_the_first_position_decides() -> None:
    assert unet_config({"use_pos_embed_world": True}).position == "ijk"
    assert unet_config({"use_pos_embed": False, "use_pos_embed_high": True}).position == "embedded"
    assert unet_config({"use_pos_embed": False, "use_pos_embed_world_high": True}).position == "world"
    assert unet_config({"use_pos_embed": False}).position == "none"


def test_semantics_and_texts_are_read() -> None:
    params = "network.cond_stage_model.params"
    semantics = {"use_semantic_cond": True, f"{params}.num_semantic": 23, f"{params}.dim_semantic": 16}
    config = unet_config(semantics | {"num_classes": 16, "use_normal_concat_cond": False})
    assert (config.num_labels, config.label_dim, config.normal) == (23, 16, False)
    assert unet_config(WITH_TEXT).text_channels == 1024


def test_what_the_official_code_adds_makes_no_difference() -> None:
    """Three edges of a voxel for one, and values that follow from others; options of the dataset and of the run."""
    added = {"voxel_size": [0.0025] * 3, "remain_h": False, "use_input_color": False, "with_color_branch": False}
    added |= {"with_normal_branch": True, "with_semantic_branch": False, "pretrained_weight": "none.ckpt"}
    added |= {"supervision.color_weight": 0.0, "supervision.semantic_weight": 0.0, f"{PARAMS}.use_checkpoint": True}
    added |= {"_shapenet_categories": ["03001627"], "train_dataset": "ShapeNetDataset", "train_kwargs.split": "train"}
    assert vae_config(added) == vae_config({})


def test_every_irrelevant_key_has_a_reason() -> None:
    for table in (hparams.IRRELEVANT, vae.IRRELEVANT, denoiser.IRRELEVANT):
        assert all(len(reason) > 5 for reason in table.values())
    assert not set(hparams.IRRELEVANT) & (set(vae.IRRELEVANT) | set(denoiser.IRRELEVANT))
    assert not set(vae.IRRELEVANT) & set(vae.FIXED)
    assert not set(denoiser.IRRELEVANT) & set(denoiser.FIXED)


def test_references_are_followed() -> None:
    h = Hyperparameters({"a": {"b": 3}, "c": "${a.b}", "d": "${e}"})
    assert h.read("c", int) == 3
    assert h.read("f", float, 0.5) == 0.5
    with pytest.raises(ValueError, match=re.escape("d must be an integer, got '${e}'")):
        h.read("d", int)
    with pytest.raises(KeyError, match="f"):
        h.read("f", int)
    with pytest.raises(ValueError, match=r"got a\.b=3;"):
        h.done({})
    h.done({"a.*": "a reason"})


def test_lacking_keys_are_named_by_the_command(tmp_path: Path) -> None:
    import torch

    from xcube.checkpoints import convert

    for values in (changed(VAE, {"cut_ratio": None}), changed(DENOISER, {f"{DIFFUSER}.num_heads": None})):
        state = {"unet.out_block.2.weight": torch.zeros(8, 64, 3, 3, 3)}
        torch.save({"state_dict": state, "hyper_parameters": values}, tmp_path / "last.ckpt")
        with pytest.raises(ValueError, match=r"last.ckpt: the hyperparameters lack '(cut_ratio|network.*num_heads)'"):
            convert(tmp_path / "last.ckpt", tmp_path / "out")
