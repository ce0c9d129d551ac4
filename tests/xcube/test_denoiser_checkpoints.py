"""Official checkpoints of denoisers: names, order of axes, packing of attention, averages, scale."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sparsevox import Grid, SparseTensor
from xcube.checkpoints.denoiser import config_from_official, denoiser_from_official, denoiser_state, our_name
from xcube.networks.conditions import Conditions, Text
from xcube.networks.configs import UNetConfig
from xcube.networks.unet import UNet

UNET = {"model_channels": 32, "channel_mult": [1, 2], "attention_resolutions": [2], "num_res_blocks": 1, "num_heads": 2}
SPARSE: dict[str, Any] = {
    "network": {"diffuser_name": "UNetModel_Sparse", "diffuser": UNET},
    "use_pos_embed": True,
    "use_normal_concat_cond": True,
}
DENSE: dict[str, Any] = {"network": {"diffuser_name": "UNetModel_Dense", "diffuser": UNET}}
TEXT: dict[str, Any] = {
    "network": {"diffuser_name": "UNetModel_Sparse_CrossAttn", "diffuser": UNET},
    "use_text_cond": True,
    "context_dim": 8,
}
CASES = {
    "sparse": SPARSE,
    "dense": DENSE,
    "text": TEXT,
    "dense text": DENSE | {"use_text_cond": True, "context_dim": 8},
}


class Official:
    """Random weights of a small network under official names, after the description of the official code."""

    def __init__(self, hparams: dict[str, Any]) -> None:
        self.dense = "Dense" in hparams["network"]["diffuser_name"]
        self.text = hparams.get("context_dim", 0) if hparams.get("use_text_cond") else 0
        self.generator, self.state = torch.Generator().manual_seed(0), dict[str, Tensor]()
        inputs = 4 + 3 * bool(hparams.get("use_pos_embed")) + 3 * bool(hparams.get("use_normal_concat_cond"))
        names = ("input_blocks", "output_blocks") if self.dense else ("encoder_blocks", "decoder_blocks")
        down, up = names
        time = "time_embed" if self.dense else "time_emb"
        self.linear(f"{time}.0", 32, 128)
        self.linear(f"{time}.2", 128, 128)
        self.conv(f"{down}.0.0", inputs, 32)
        self.block(f"{down}.1.0", 32, 32)
        everywhere = self.text and not self.dense
        if everywhere:
            self.mixer(f"{down}.1.1", 32, 32, attention=False)
        self.block(f"{down}.2.0", 32, 32)
        self.block(f"{down}.3.0", 32, 64)
        self.mixer(f"{down}.3.1", 64, 64)
        self.block("middle_block.0", 64, 64)
        self.mixer("middle_block.1", 64, 64)
        self.block("middle_block.2", 64, 64)
        inner = 64 if everywhere else None
        for n, (entering, width) in enumerate(((64 + 64, 64), (64 + 32, 64), (64 + 32, 32), (32 + 32, 32))):
            self.block(f"{up}.{n}.0", entering, width)
            if width == 64:
                self.mixer(f"{up}.{n}.1", width, 64)
            elif everywhere:
                self.mixer(f"{up}.{n}.1", width, inner or width, attention=False)
        self.block(f"{up}.1.2", 64, 64)
        out = "out" if self.dense else "out_block"
        self.norm(f"{out}.0", 32)
        self.conv(f"{out}.2", 32, 4)

    def put(self, name: str, *shape: int) -> None:
        self.state[f"unet.{name}"] = 0.2 * torch.randn(shape, generator=self.generator)

    def norm(self, name: str, channels: int) -> None:
        self.put(f"{name}.weight", channels)
        self.put(f"{name}.bias", channels)

    def conv(self, name: str, a: int, b: int) -> None:
        self.put(f"{name}.weight", b, a, 3, 3, 3)
        self.put(f"{name}.bias", b)

    def linear(self, name: str, a: int, b: int, extra: int = 0, bias: bool = True) -> None:
        self.put(f"{name}.weight", b, a, *[1] * extra)
        if bias:
            self.put(f"{name}.bias", b)

    def block(self, name: str, a: int, b: int) -> None:
        self.norm(f"{name}.in_layers.0", a)
        self.conv(f"{name}.in_layers.2", a, b)
        self.linear(f"{name}.emb_layers.1", 128, 2 * b)
        self.norm(f"{name}.out_layers.0", b)
        self.conv(f"{name}.out_layers.3", b, b)
        if a != b:
            self.linear(f"{name}.skip_connection", a, b, extra=3 * self.dense)

    def mixer(self, name: str, width: int, inner: int, attention: bool = True) -> None:
        self.norm(f"{name}.norm", width)
        if not self.text:
            self.linear(f"{name}.qkv", width, 3 * width, extra=self.dense)
            self.linear(f"{name}.proj_out", width, width, extra=self.dense)
            return
        self.linear(f"{name}.proj_in", width, inner, extra=3 * self.dense)
        block = f"{name}.transformer_blocks.0"
        for which, source in (("attn1", inner), ("attn2", self.text)):
            if which == "attn2" or attention:
                for part, channels in (("q", inner), ("k", source), ("v", source)):
                    self.linear(f"{block}.{which}.to_{part}", channels, inner, bias=False)
                self.linear(f"{block}.{which}.to_out.0", inner, inner)
        self.linear(f"{block}.ff.net.0.proj", inner, 8 * inner)
        self.linear(f"{block}.ff.net.2", 4 * inner, inner)
        for n in (1, 2, 3):
            if n > 1 or attention:
                self.norm(f"{block}.norm{n}", inner)
        self.linear(f"{name}.proj_out", inner, width, extra=3 * self.dense)


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_has_its_place(name: str) -> None:
    state = Official(CASES[name]).state
    model, scale = denoiser_from_official(
        state | {"scale_factor": torch.tensor(0.5), "vae.unet.x": torch.zeros(1)}, CASES[name]
    )
    assert scale == 0.5
    assert not model.training
    names = [our_name(each) for each in state]
    assert set(names) == set(model.state_dict())
    assert len(set(names)) == len(names)
    assert our_name("unet.something.else") == "unet.something.else"


def test_axes_and_heads_of_the_sparse_network() -> None:
    state = Official(SPARSE).state
    model = denoiser_from_official(state, SPARSE)[0].state_dict()
    theirs = state["unet.encoder_blocks.1.0.in_layers.2.weight"]
    assert torch.equal(model["encoder.0.block.conv1.weight"], theirs.permute(0, 1, 4, 3, 2))
    packed, ours = state["unet.middle_block.1.qkv.weight"], model["middle.mixer.qkv.weight"]
    for part in range(3):  # queries, keys, values of the second of two heads of 32 channels
        assert torch.equal(ours[64 * part + 32 : 64 * part + 64], packed[96 + 32 * part : 128 + 32 * part])
    assert torch.equal(model["middle.mixer.qkv.bias"][:32], state["unet.middle_block.1.qkv.bias"][:32])


def test_axes_and_heads_of_the_dense_network() -> None:
    state = Official(DENSE).state
    model = denoiser_from_official(state, DENSE)[0].state_dict()
    assert torch.equal(model["decoder.1.lift.conv2.weight"], state["unet.output_blocks.1.2.out_layers.3.weight"])
    assert torch.equal(model["middle.mixer.qkv.weight"], state["unet.middle_block.1.qkv.weight"][:, :, 0])
    skip = state["unet.input_blocks.3.0.skip_connection.weight"]
    assert torch.equal(model["encoder.2.block.skip.weight"], skip[:, :, 0, 0, 0])


def test_text_is_read_as_in_the_official_code() -> None:
    """The block of the last level, written out with the official weights and plain operations."""
    state = Official(TEXT).state
    model = denoiser_from_official(state, TEXT)[0].double()
    grid = Grid.from_coords(torch.cartesian_prod(torch.arange(3), torch.arange(3), torch.arange(2)))
    x, tokens = torch.randn(18, 64).double(), torch.randn(1, 5, 8).double()
    mask = torch.tensor([[True, True, True, False, False]])
    w = {k.removeprefix("unet.middle_block.1."): v.double() for k, v in state.items() if "middle_block.1." in k}

    def attend(name: str, rows: Tensor, source: Tensor) -> Tensor:
        name = f"transformer_blocks.0.{name}"
        q, k, v = (
            functional.linear(each, w[f"{name}.to_{part}.weight"]).unflatten(1, (2, 32)).transpose(0, 1)
            for part, each in (("q", rows), ("k", source), ("v", source))
        )
        found = ((q @ k.transpose(1, 2) / 32**0.5).softmax(2) @ v).transpose(0, 1).flatten(1)
        return functional.linear(found, w[f"{name}.to_out.0.weight"], w[f"{name}.to_out.0.bias"])

    def norm(number: int, rows: Tensor) -> Tensor:
        name = f"transformer_blocks.0.norm{number}"
        return functional.layer_norm(rows, (64,), w[f"{name}.weight"], w[f"{name}.bias"])

    entered = functional.group_norm(x.t()[None], 32, w["norm.weight"], w["norm.bias"])[0].t()
    rows = functional.linear(entered, w["proj_in.weight"], w["proj_in.bias"])
    rows = rows + attend("attn1", norm(1, rows), norm(1, rows))
    rows = rows + attend("attn2", norm(2, rows), tokens[0, :3])
    wide = functional.linear(norm(3, rows), *(w[f"transformer_blocks.0.ff.net.0.proj.{n}"] for n in ("weight", "bias")))
    gated = wide[:, :256] * functional.gelu(wide[:, 256:])
    rows = rows + functional.linear(gated, *(w[f"transformer_blocks.0.ff.net.2.{n}"] for n in ("weight", "bias")))
    expected = x + functional.linear(rows, w["proj_out.weight"], w["proj_out.bias"])

    context = model.space.context(tokens, mask)
    found = model.middle.mixer(SparseTensor(grid, x), context).feats
    torch.testing.assert_close(found, expected)


class Written:
    """A small official network without text, written out with official weights and plain operations on volumes."""

    def __init__(self, state: dict[str, Tensor], dense: bool) -> None:
        self.w = {name.removeprefix("unet."): value.double() for name, value in state.items()}
        self.dense = dense
        names = ("time_embed", "input_blocks", "output_blocks", "out")
        self.time, self.down, self.up, self.out = (
            names if dense else ("time_emb", "encoder_blocks", "decoder_blocks", "out_block")
        )

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * 10_000 ** (-torch.arange(16).double() / 16)
        waves = torch.cat([angles.cos(), angles.sin()], 1)
        self.emb = self.linear(f"{self.time}.2", functional.silu(self.linear(f"{self.time}.0", waves)))
        hs = [self.conv(f"{self.down}.0.0", x)]
        hs.append(self.block(f"{self.down}.1.0", hs[-1]))
        hs.append(self.block(f"{self.down}.2.0", hs[-1], lambda v: functional.avg_pool3d(v, 2)))
        hs.append(self.attend(f"{self.down}.3.1", self.block(f"{self.down}.3.0", hs[-1])))
        h = self.attend("middle_block.1", self.block("middle_block.0", hs[-1]))
        h = self.block("middle_block.2", h)
        for n in range(4):
            skip = hs.pop()
            h = self.block(f"{self.up}.{n}.0", torch.cat([h, skip] if self.dense else [skip, h], 1))
            if n < 2:
                h = self.attend(f"{self.up}.{n}.1", h)
            if n == 1:
                h = self.block(f"{self.up}.1.2", h, lambda v: functional.interpolate(v, scale_factor=2))
        return self.conv(f"{self.out}.2", functional.silu(self.norm(f"{self.out}.0", h)))

    def linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self.w[f"{name}.weight"].flatten(1), self.w[f"{name}.bias"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        return functional.group_norm(x, 32, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def conv(self, name: str, x: Tensor) -> Tensor:
        weight = self.w[f"{name}.weight"]
        weight = weight if self.dense else weight.permute(0, 1, 4, 3, 2)
        return functional.conv3d(x, weight, self.w[f"{name}.bias"], padding=1)

    def block(self, name: str, x: Tensor, resample: Callable[[Tensor], Tensor] = lambda v: v) -> Tensor:
        h, x = resample(functional.silu(self.norm(f"{name}.in_layers.0", x))), resample(x)
        h = self.conv(f"{name}.in_layers.2", h)
        embedded = self.linear(f"{name}.emb_layers.1", functional.silu(self.emb))[:, :, None, None, None]
        scale, shift = embedded.chunk(2, 1)
        h = self.norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
        h = self.conv(f"{name}.out_layers.3", functional.silu(h))
        if f"{name}.skip_connection.weight" in self.w:
            x = self.linear(f"{name}.skip_connection", x.movedim(1, 4)).movedim(4, 1)
        return x + h

    def attend(self, name: str, x: Tensor) -> Tensor:
        rows = self.norm(f"{name}.norm", x).flatten(2).transpose(1, 2)
        packed = self.linear(f"{name}.qkv", rows)  # channels of (3, heads, D) or (heads, 3, D)
        q, k, v = packed.unflatten(2, (3, 2, -1)).unbind(2) if self.dense else packed.unflatten(2, (2, 3, -1)).unbind(3)
        weight = (torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[3] ** 0.5).softmax(3)
        found = torch.einsum("bhij,bjhd->bihd", weight, v).flatten(2)
        return x + self.linear(f"{name}.proj_out", found).transpose(1, 2).unflatten(2, x.shape[2:])


@pytest.mark.parametrize("name", ["dense", "sparse"])
def test_the_whole_network_is_the_official_one(name: str) -> None:
    state, grid = Official(CASES[name]).state, Grid.full(-2, 2, batch_size=2)
    model = denoiser_from_official(state, CASES[name])[0].double()
    torch.manual_seed(0)
    x, t = SparseTensor(grid, torch.randn(128, 4).double()), torch.tensor([3.0, 800.0]).double()
    normal = functional.normalize(torch.randn(128, 3).double())
    given = Conditions(normal=normal) if name == "sparse" else Conditions()
    inputs = torch.cat([x.feats, grid.ijk.double(), normal], 1) if name == "sparse" else x.feats
    expected = Written(state, name == "dense")(x.replace(inputs).dense(-2, 2), t)
    torch.testing.assert_close(model(x, t, given).dense(-2, 2), expected, rtol=1e-5, atol=1e-5)


def test_semantic_classes_have_their_table() -> None:
    semantic = {"cond_stage_model": {"params": {"num_semantic": 5, "dim_semantic": 6}}}
    hparams = {
        "network": SPARSE["network"] | semantic,
        "use_semantic_cond": True,
        "use_pos_embed_high": True,
    }
    state = Official(SPARSE).state | {"cond_stage_model.model.weight": torch.randn(5, 6)}
    state["unet.encoder_blocks.0.0.weight"] = torch.randn(32, 4 + 33 + 6, 3, 3, 3)
    model, _ = denoiser_from_official(state, hparams)
    assert (model.config.num_labels, model.config.label_dim, model.config.position) == (5, 6, "embedded")
    grid = Grid.from_coords(torch.tensor([[1, 2, -3], [4, 5, 6]]))
    x, labels = SparseTensor(grid, torch.randn(2, 4)), torch.tensor([3, 1])
    inputs = list(model._inputs(x, Conditions(label=labels), None))
    assert [part.shape[1] for part in inputs] == [4, 33, 6]
    assert torch.equal(inputs[1][:, :3], grid.ijk.float())
    assert torch.equal(inputs[2], state["cond_stage_model.model.weight"][labels])


def test_averages_are_taken_if_there_are_any() -> None:
    state = Official(SPARSE).state
    averages = {f"unet_ema.{k.removeprefix('unet.').replace('.', '')}": v + 1 for k, v in state.items()}
    extra = {"unet_ema.decay": torch.tensor(0.9999), "unet_ema.num_updates": torch.tensor(3)}
    name, ours = "unet.out_block.2.bias", "out.conv.bias"
    assert torch.equal(denoiser_from_official(state, SPARSE)[0].state_dict()[ours], state[name])
    both = state | averages | extra
    assert torch.equal(denoiser_from_official(both, SPARSE)[0].state_dict()[ours], state[name] + 1)
    assert torch.equal(denoiser_from_official(both, SPARSE, averaged=False)[0].state_dict()[ours], state[name])
    del both["unet_ema.out_block2bias"]
    with pytest.raises(
        ValueError, match=r"must have moving averages of all weights, it lacks unet_ema\.out_block2bias"
    ):
        denoiser_from_official(both, SPARSE)


def test_official_networks_of_both_kinds_run() -> None:
    for name, hparams in CASES.items():
        model, _ = denoiser_from_official(Official(hparams).state, hparams)
        grid = Grid.full(-2, 2)
        rows = grid.num_voxels
        given = Conditions(
            normal=torch.randn(rows, 3) if name == "sparse" else None,
            text=Text(torch.randn(1, 3, 8), torch.ones(1, 3) > 0) if "text" in name else None,
        )
        with torch.no_grad():
            found = model(SparseTensor(grid, torch.randn(rows, 4)), 500, given)
        assert found.feats.shape == (rows, 4)
        assert bool(found.feats.isfinite().all())


def test_what_does_not_fit_is_named() -> None:
    state = Official(SPARSE).state
    del state["unet.time_emb.0.bias"]
    state["unet.out_block.0.bias"] = torch.zeros(3)
    state["unet.color.weight"] = torch.zeros(3)
    message = re.escape("missing: time.0.bias; extra: unet.color.weight; shape: out.norm.bias [3] in place of [32]")
    with pytest.raises(ValueError, match=message):
        denoiser_from_official(state, SPARSE)
    with pytest.raises(ValueError, match="the checkpoint must hold a denoiser"):
        denoiser_from_official({"unet.pre_conv.weight": torch.zeros(1)}, SPARSE)
    with pytest.raises(KeyError, match="model_channels"):
        config_from_official({"network": {"diffuser_name": "UNetModel_Sparse", "diffuser": {}}}, 4)
    assert denoiser_state({}, UNetConfig()) == {}


def test_sparse_weights_run_on_volumes_too() -> None:
    """The parameters of one kind of network are those of the other, given the same order of channels."""
    model, _ = denoiser_from_official(Official(DENSE).state, DENSE)
    other = UNet(UNetConfig.from_dict(model.config.to_dict() | {"dense": False}))
    other.skip_first = model.skip_first
    other.load_state_dict(model.state_dict())
    x = SparseTensor(Grid.full(-2, 2, batch_size=2), torch.randn(128, 4))
    with torch.no_grad():
        torch.testing.assert_close(other(x, 30).feats, model(x, 30).feats, rtol=1e-3, atol=1e-3)
