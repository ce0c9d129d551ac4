"""Official denoisers: outputs of the original code on small random weights, at every block."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import sparsevox as sv
from tests.goldens import GoldenFile, close, official_networks
from xcube.checkpoints.denoiser import config_from_official, denoiser_state
from xcube.networks.conditions import Conditions
from xcube.networks.configs import UNetConfig
from xcube.networks.unet import UNet
from xcube.networks.unet_blocks import embed_time

CASES = {
    "unet_dense": "shapenet/chair/diffusion_dense",
    "unet_sparse_concat": "shapenet/chair/diffusion_sparse",
}
NETWORKS = official_networks("diffusion")


class Golden(GoldenFile):
    """A file, and the network with its weights, in float64."""

    def __init__(self, name: str, **changes: Any) -> None:
        super().__init__(name)
        hparams = NETWORKS[CASES[name]]["hparams"]
        hparams = hparams | {"network": hparams["network"] | {"diffuser": self.meta["diffuser"]}}
        self.official = config_from_official(hparams, self.meta["out_channels"])
        self.model = UNet(replace(self.official, **changes)).double().eval()
        self.model.skip_first = not self.official.dense  # also on the voxels of the box
        weights = {f"unet.{k[2:]}": self[k].double() for k in self.names if k.startswith("w/")}
        self.model.load_state_dict(denoiser_state(weights, self.official))
        grid = sv.Grid.from_coords(self["in/coords"])
        self.x = sv.SparseTensor(grid, self.aligned(grid, "in/coords", "in/latent").double())
        normal = self.aligned(grid, "in/coords", "in/cond_normal_raw").double() if self.official.normal else None
        self.conditions = Conditions(normal=normal)

    def blocks(self, names: tuple[str, str]) -> dict[str, Any]:
        """Outputs of the modules of the encoder, the middle and the decoder, by official name."""
        modules = {f"{names[0]}.0": self.model.enter, "middle_block": self.model.middle}
        modules |= {f"{names[0]}.{n + 1}": module for n, module in enumerate(self.model.encoder)}
        modules |= {f"{names[1]}.{n}": module for n, module in enumerate(self.model.decoder)}
        found: dict[str, Any] = {}
        hooks = [
            module.register_forward_hook(lambda _, __, result, name=name: found.__setitem__(name, result))
            for name, module in modules.items()
        ]
        self.model(self.x, self["in/t"], self.conditions)
        for hook in hooks:
            hook.remove()
        return found


@pytest.fixture(scope="module")
def sparse() -> Golden:
    return Golden("unet_sparse_concat")


@pytest.fixture(scope="module", params=["volume", "voxels"])
def dense(request: pytest.FixtureRequest) -> Golden:
    """The network of the coarse level, on a dense volume and on the voxels of the same box."""
    return Golden("unet_dense", dense=request.param == "volume")


def test_output_of_the_sparse_network(sparse: Golden) -> None:
    for t, out in (("in/t", "out"), ("in/t_scalar", "out_t_scalar")):
        predicted = sparse.model(sparse.x, sparse[t], sparse.conditions)
        close(predicted.feats, sparse.aligned(sparse.x.grid, "in/coords", out))


def test_output_of_the_dense_network(dense: Golden) -> None:
    for t, out in (("in/t", "out"), ("in/t_scalar", "out_t_scalar")):
        predicted = dense.model(dense.x, dense[t])
        close(predicted.feats, dense.aligned(dense.x.grid, "in/coords", out))


def test_input_and_time_of_the_sparse_network(sparse: Golden) -> None:
    inputs = torch.cat(list(sparse.model._inputs(sparse.x, sparse.conditions, None)), 1)
    close(inputs, sparse.aligned(sparse.x.grid, "in/coords", "unet_in"))
    close(embed_time(sparse["in/t"].double(), 32), sparse["unet_time_encoding"])
    embedded = sparse.model.time(embed_time(sparse["in/t"].double(), 32))
    close(embedded, sparse["mid/time_emb/out"])


def test_every_block_of_the_sparse_network(sparse: Golden) -> None:
    found, seen = sparse.blocks(("encoder_blocks", "decoder_blocks")), 0
    for name, field in found.items():
        if f"mid/{name}/out" in sparse.names:
            close(field.feats, sparse.aligned(field.grid, f"mid/{name}/coords", f"mid/{name}/out"))
            seen += 1
    assert seen == 9


def test_every_block_of_the_dense_network(dense: Golden) -> None:
    found = dense.blocks(("input_blocks", "output_blocks"))
    names = [key.split("/")[1] for key in dense.names if key.startswith("mid/") and "block" in key]
    assert len(names) == 13
    for name in names:
        field = found[name]
        close(field.dense() if isinstance(field, sv.SparseTensor) else field, dense[f"mid/{name}/out"])


def test_float32_is_as_good(sparse: Golden) -> None:
    model = UNet(sparse.official)
    model.load_state_dict(sparse.model.state_dict())
    conditions = Conditions(normal=sparse.aligned(sparse.x.grid, "in/coords", "in/cond_normal_raw").float())
    predicted = model(sparse.x.to(torch.float32), sparse["in/t"], conditions)
    close(predicted.feats, sparse.aligned(sparse.x.grid, "in/coords", "out"))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_official_network_has_exactly_these_parameters(name: str) -> None:
    entry = NETWORKS[name]
    with torch.device("meta"):
        config = config_from_official(entry["hparams"], entry["derived"]["out_channels"])
        model = UNet(config)
        ours = denoiser_state({k: torch.empty(shape) for k, shape in entry["state_dict"].items()}, config)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert len(ours) == len(entry["state_dict"]) - 1  # "scale_factor" is no parameter of the network
    count = sum(p.numel() for p in model.parameters())
    assert count == entry["n_params_unet"] + entry["n_params_cond_stage"]
    assert config.in_channels == entry["derived"]["in_channels"]


OFFICIAL: dict[str, UNetConfig] = {
    "shapenet/chair/diffusion_dense": UNetConfig.official(
        True, latent_channels=16, channels=192, multipliers=(1, 2, 4, 4), attention=(1, 2, 4)
    ),
    "shapenet/chair/diffusion_sparse": UNetConfig.official(
        False, latent_channels=8, channels=64, multipliers=(1, 2, 2, 4), attention=(4, 8), position="ijk", normal=True
    ),
    "objaverse/diffusion_sparse": UNetConfig.official(
        False,
        latent_channels=8,
        channels=64,
        multipliers=(1, 2, 2, 4),
        attention=(4, 8),
        position="ijk",
        normal=True,
        text_channels=1024,
    ),
    "waymo/diffusion_sparse": UNetConfig.official(
        False,
        latent_channels=8,
        channels=64,
        multipliers=(1, 2, 4, 4),
        attention=(8, 16),
        position="embedded",
        num_labels=23,
    ),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_configs_of_official_networks(name: str) -> None:
    entry = NETWORKS[name]
    assert config_from_official(entry["hparams"], entry["derived"]["out_channels"]) == OFFICIAL[name]
