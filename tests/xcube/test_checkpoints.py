"""Official checkpoints: read without running what is in them, checked, and written as folders."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from xcube.checkpoints import convert, vae_from_official
from xcube.checkpoints.reader import Inert, plain, read_checkpoint
from xcube.checkpoints.vae import our_name, vae_state
from xcube.networks.pretrained import from_pretrained, read_config
from xcube.networks.vae import VAE
from xcube.pipeline.reconstruct import box_of

HPARAMS: dict[str, Any] = {
    "tree_depth": 3,
    "voxel_size": 0.0025,
    "resolution": 512,
    "use_hash_tree": True,
    "use_input_normal": True,
    "cut_ratio": 8,
    "network": {
        "encoder": {"c_dim": 16},
        "unet": {
            "params": {
                "in_channels": 16,
                "num_blocks": 3,
                "f_maps": 8,
                "neck_dense_type": "UNCHANGED",
                "neck_bound": [64, 64, 64],
                "order": "gcr",
            }
        },
    },
}


def official(hparams: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Random weights of a small network, under official names: what the renaming takes back."""
    blocks = {"SingleConv1": (0, 1), "SingleConv2": (1, 2)}
    torch.manual_seed(0)
    state = {"encoder.mix_fc.weight": torch.randn(16, 36), "encoder.mix_fc.bias": torch.randn(16)}
    state |= {"unet.pre_conv.weight": torch.randn(16, 16), "unet.pre_conv.bias": torch.randn(16)}

    def double(prefix: str, *widths: int) -> None:
        for name, (a, b) in blocks.items():
            state[f"{prefix}.{name}.GroupNorm.weight"] = torch.randn(widths[a])
            state[f"{prefix}.{name}.GroupNorm.bias"] = torch.randn(widths[a])
            state[f"{prefix}.{name}.Conv.weight"] = torch.randn(widths[b], widths[a], 3, 3, 3)

    def head(prefix: str, width: int, out: int) -> None:
        state[f"{prefix}.SingleConv.GroupNorm.weight"] = torch.randn(width)
        state[f"{prefix}.SingleConv.GroupNorm.bias"] = torch.randn(width)
        state[f"{prefix}.SingleConv.Conv.weight"] = torch.randn(width, width, 3, 3, 3)
        state[f"{prefix}.OutConv.weight"], state[f"{prefix}.OutConv.bias"] = torch.randn(out, width), torch.randn(out)

    double("unet.encoders.Enc0", 16, 16, 8)
    double("unet.encoders.Enc1", 8, 8, 16)
    double("unet.encoders.Enc2", 16, 16, 32)
    double("unet.pre_kl_bottleneck.pre_kl_bottleneck_0", 32, 32, 32)
    double("unet.pre_kl_bottleneck.pre_kl_bottleneck_1", 32, 8, 8)
    double("unet.post_kl_bottleneck.post_kl_bottleneck_0", 4, 32, 32)
    double("unet.post_kl_bottleneck.post_kl_bottleneck_1", 32, 32, 32)
    double("unet.decoders.Dec-2", 32, 16, 16)
    double("unet.decoders.Dec-3", 16, 8, 8)
    for name, width in (("Struct-1", 32), ("Struct-2", 16), ("Struct-3", 8)):
        head(f"unet.struct_convs.{name}", width, 2)
    head("unet.normal_head", 8, 3)
    return state


class Unknown:
    """Stands for a class that is not installed here; pickled like an OmegaConf container."""

    def __init__(self, content: Any) -> None:
        self._content = content


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return (exec, ("import pathlib; pathlib.Path('exploded').touch()",))


def save(path: Path, **changes: Any) -> Path:
    content = {"state_dict": official(HPARAMS), "hyper_parameters": HPARAMS, "epoch": 3} | changes
    torch.save(content, path)
    return path


def test_a_checkpoint_becomes_a_folder(tmp_path: Path) -> None:
    model = convert(save(tmp_path / "last.ckpt"), tmp_path / "out")
    again = from_pretrained(tmp_path / "out", VAE)
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    theirs = official(HPARAMS)["unet.decoders.Dec-2.SingleConv1.Conv.weight"]
    assert torch.equal(state["decoder.lifts.1.block.first.conv.weight"], theirs.permute(0, 1, 4, 3, 2))
    assert torch.equal(state["decoder.heads.2.out.bias"], official(HPARAMS)["unet.struct_convs.Struct-1.OutConv.bias"])


def test_every_official_name_has_one_of_ours() -> None:
    state = official(HPARAMS)
    names = [our_name(name, 3) for name in state]
    assert len(set(names)) == len(names)
    assert not set(names) & set(state)
    assert our_name("something.else", 3) == "something.else"


def test_hyper_parameters_of_unknown_classes_are_read(tmp_path: Path) -> None:
    wrapped = Unknown({key: Unknown(value) for key, value in HPARAMS.items()})
    model = convert(save(tmp_path / "last.ckpt", hyper_parameters=wrapped), tmp_path / "out")
    assert model.config.channels == (8, 16, 32)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "last.ckpt", callbacks={"a": Bomb(), "b": [Bomb()]})
    content = read_checkpoint(path)
    assert isinstance(content["callbacks"]["a"], Inert)
    convert(path, tmp_path / "out")
    assert not (tmp_path / "exploded").exists()
    torch.load(path, weights_only=False)  # it would have been
    assert (tmp_path / "exploded").exists()


def test_plain_keeps_values_and_drops_the_rest() -> None:
    assert plain({"a": [1, 2.5, "x", True], "b": {"c": (1,)}}) == {"a": [1, 2.5, "x", True], "b": {"c": [1]}}
    assert plain(Inert()) is None


def test_what_does_not_fit_is_named() -> None:
    state = official(HPARAMS)
    del state["encoder.mix_fc.bias"]
    state["unet.pre_conv.bias"] = torch.zeros(3)
    state["unet.color_head.OutConv.bias"] = torch.zeros(3)
    message = (
        r"missing: encoder\.featurizer\.mix\.bias; extra: unet\.color_head\.OutConv\.bias; "
        r"shape: encoder\.enter\.bias \[3\] in place of \[16\]"
    )
    with pytest.raises(ValueError, match=message):
        vae_from_official(state, HPARAMS)
    assert vae_state({}, 3) == {}


def test_the_box_of_an_official_network_is_kept(tmp_path: Path) -> None:
    convert(save(tmp_path / "last.ckpt"), tmp_path / "out")
    box, level = box_of(from_pretrained(tmp_path / "out", VAE), read_config(tmp_path / "out")["metadata"])
    assert (box.levels, level) == ((128, 512), 1)
    assert box.size == pytest.approx((1.28, 1.28, 1.28))


def test_lacking_hyper_parameters_are_named(tmp_path: Path) -> None:
    hparams = {name: value for name, value in HPARAMS.items() if name != "cut_ratio"}
    with pytest.raises(ValueError, match=r"last.ckpt: the hyperparameters lack 'cut_ratio'"):
        convert(save(tmp_path / "last.ckpt", hyper_parameters=hparams), tmp_path / "out")


class Scripted(torch.nn.Module):
    """A module that could run code of its own when it is loaded."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scripted.ckpt"
    torch.jit.save(torch.jit.script(Scripted()), str(path))
    with pytest.raises(
        ValueError, match=r"scripted.ckpt must be a checkpoint of torch.save, got a TorchScript archive"
    ):
        read_checkpoint(path)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = save(tmp_path / "last.ckpt")
    with zipfile.ZipFile(path) as archive:
        entry = next(info for info in archive.infolist() if info.filename.endswith("/data/0"))
    content = bytearray(path.read_bytes())
    start = entry.header_offset + 30 + int.from_bytes(content[entry.header_offset + 26 :][:2], "little")
    start += int.from_bytes(content[entry.header_offset + 28 :][:2], "little")
    content[start + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"last.ckpt is damaged: the checksum of .*data/0 is wrong"):
        read_checkpoint(path)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_checkpoint(tmp_path / "nothing.ckpt")
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(save(tmp_path / "whole.ckpt").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"broken.ckpt must be a complete checkpoint of torch.save"):
        read_checkpoint(broken)
    broken.write_bytes(pickle.dumps({"state_dict": {}}))
    with pytest.raises(ValueError, match="must be a complete checkpoint"):
        read_checkpoint(broken)
    torch.save([1, 2], broken)
    with pytest.raises(ValueError, match="must hold a dictionary, got list"):
        read_checkpoint(broken)
    with pytest.raises(ValueError, match="has no hyperparameters that can be read"):
        convert(save(tmp_path / "last.ckpt", hyper_parameters=None), tmp_path / "out")
    with pytest.raises(ValueError, match="has no state_dict of tensors"):
        convert(save(tmp_path / "last.ckpt", state_dict={"a": 1}), tmp_path / "out")
