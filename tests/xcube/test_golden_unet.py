"""The released denoisers: outputs of the original code on small random weights, at every block.

The files lie beside the repository; without them these tests have nothing to compare with.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sparsevox as sv
from xcube.checkpoints.denoiser import config_from_official, denoiser_state
from xcube.networks.conditions import Conditions
from xcube.networks.configs import UNetConfig
from xcube.networks.unet import UNet
from xcube.networks.unet_blocks import embed_time

SHARED = Path(__file__).parents[3] / "shared"
pytestmark = pytest.mark.skipif(not (SHARED / "golden").is_dir(), reason="needs the golden files of the original code")

CASES = {
    "unet_dense": "shapenet/chair/diffusion_dense",
    "unet_sparse_concat": "shapenet/chair/diffusion_sparse",
}


def close(ours: Tensor, theirs: Any) -> None:
    a, b = ours.detach().double(), torch.as_tensor(theirs).double()
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= 1e-4 * max(1.0, float(b.abs().max()))


class Golden:
    """A file, and the network with its weights."""

    def __init__(self, name: str, **changes: Any) -> None:
        self.file = np.load(SHARED / "golden" / f"{name}.npz", allow_pickle=False)
        manifest = json.loads((SHARED / "xcube_manifest.json").read_text())["configs"]
        meta, hparams = json.loads(str(self.file["meta_json"])), manifest[CASES[name]]["hparams"]
        hparams = hparams | {"network": hparams["network"] | {"diffuser": meta["diffuser"]}}
        self.official = config_from_official(hparams, meta["out_channels"])
        self.model = UNet(replace(self.official, **changes)).double().eval()
        weights = {f"unet.{k[2:]}": self.tensor(k).double() for k in self.file.files if k.startswith("w/")}
        self.model.load_state_dict(denoiser_state(weights, self.official))
        self.grid = sv.Grid.from_coords(self.tensor("in/coords"))
        self.x = sv.SparseTensor(self.grid, self.aligned(self.grid, "in/coords", "in/latent"))
        normal = self.aligned(self.grid, "in/coords", "in/cond_normal_raw") if self.official.normal else None
        self.conditions = Conditions(normal=normal)

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.file[name])

    def aligned(self, grid: sv.Grid, coords: str, values: str) -> Tensor:
        """Rows of the file in the order of a grid of the same voxels."""
        rows = grid.index(self.tensor(coords))
        assert sorted(rows.tolist()) == list(range(grid.num_voxels))
        result = torch.empty_like(self.tensor(values), dtype=torch.float64)
        result[rows] = self.tensor(values).double()
        return result

    def blocks(self, names: tuple[str, str]) -> dict[str, Any]:
        """What the modules of the encoder, the middle and the decoder return, by official name."""
        modules = {f"{names[0]}.0": self.model.enter, "middle_block": self.model.middle}
        modules |= {f"{names[0]}.{n + 1}": module for n, module in enumerate(self.model.encoder)}
        modules |= {f"{names[1]}.{n}": module for n, module in enumerate(self.model.decoder)}
        found: dict[str, Any] = {}
        hooks = [
            module.register_forward_hook(lambda _, __, result, name=name: found.__setitem__(name, result))
            for name, module in modules.items()
        ]
        self.model(self.x, self.tensor("in/t"), self.conditions)
        for hook in hooks:
            hook.remove()
        return found


@pytest.fixture(scope="module")
def sparse() -> Golden:
    return Golden("unet_sparse_concat")


@pytest.fixture(scope="module", params=["volume", "voxels"])
def dense(request: pytest.FixtureRequest) -> Golden:
    """The network of the coarse stage, as it is and on the voxels of the box."""
    return Golden("unet_dense", dense=request.param == "volume")


def test_output_of_the_sparse_network(sparse: Golden) -> None:
    for t, out in (("in/t", "out"), ("in/t_scalar", "out_t_scalar")):
        predicted = sparse.model(sparse.x, sparse.tensor(t), sparse.conditions)
        close(predicted.feats, sparse.aligned(sparse.grid, "in/coords", out))


def test_output_of_the_dense_network(dense: Golden) -> None:
    for t, out in (("in/t", "out"), ("in/t_scalar", "out_t_scalar")):
        predicted = dense.model(dense.x, dense.tensor(t))
        close(predicted.feats, dense.aligned(dense.grid, "in/coords", out))


def test_input_and_time_of_the_sparse_network(sparse: Golden) -> None:
    inputs = torch.cat(list(sparse.model._inputs(sparse.x, sparse.conditions)), 1)
    close(inputs, sparse.aligned(sparse.grid, "in/coords", "unet_in"))
    close(embed_time(sparse.tensor("in/t").double(), 32), sparse.file["unet_time_encoding"])
    embedded = sparse.model.time(embed_time(sparse.tensor("in/t").double(), 32))
    close(embedded, sparse.file["mid/time_emb/out"])


def test_every_block_of_the_sparse_network(sparse: Golden) -> None:
    found, seen = sparse.blocks(("encoder_blocks", "decoder_blocks")), 0
    for name, field in found.items():
        if f"mid/{name}/out" in sparse.file.files:
            close(field.feats, sparse.aligned(field.grid, f"mid/{name}/coords", f"mid/{name}/out"))
            seen += 1
    assert seen == 9


def test_every_block_of_the_dense_network(dense: Golden) -> None:
    found = dense.blocks(("input_blocks", "output_blocks"))
    names = [key.split("/")[1] for key in dense.file.files if key.startswith("mid/") and "block" in key]
    assert len(names) == 13
    for name in names:
        field = found[name]
        close(field.dense() if isinstance(field, sv.SparseTensor) else field, dense.file[f"mid/{name}/out"])


def test_float32_is_as_good(sparse: Golden) -> None:
    model = UNet(sparse.official)
    model.load_state_dict(sparse.model.state_dict())
    conditions = Conditions(normal=sparse.aligned(sparse.grid, "in/coords", "in/cond_normal_raw").float())
    predicted = model(sparse.x.to(torch.float32), sparse.tensor("in/t"), conditions)
    close(predicted.feats, sparse.aligned(sparse.grid, "in/coords", "out"))


def manifest() -> dict[str, Any]:
    path = SHARED / "xcube_manifest.json"
    configs: dict[str, Any] = json.loads(path.read_text())["configs"] if path.is_file() else {}
    return {name: c for name, c in configs.items() if c["kind"] == "diffusion"}


@pytest.mark.parametrize("name", manifest())
def test_every_released_network_has_exactly_these_parameters(name: str) -> None:
    configs = manifest()
    entry = configs[name]
    expected = dict(entry.get("state_dict") or configs[entry["state_dict_same_as"]]["state_dict"])
    with torch.device("meta"):
        config = config_from_official(entry["hparams"], entry["derived"]["out_channels"])
        model = UNet(config)
        ours = denoiser_state({k: torch.empty(shape) for k, shape in expected.items()}, config)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert len(ours) == len(expected) - 1  # "scale_factor" is no parameter of the network
    count = sum(p.numel() for p in model.parameters())
    assert count == entry["n_params_unet"] + entry["n_params_cond_stage"]
    assert config.inputs == entry["derived"]["in_channels"]


RELEASED: dict[str, UNetConfig] = {
    "shapenet/chair/diffusion_dense": UNetConfig.official(
        True, latent_channels=16, channels=192, multipliers=(1, 2, 4, 4), attention=(1, 2, 4)
    ),
    "shapenet/chair/diffusion_sparse": UNetConfig.official(
        False, latent_channels=8, channels=64, multipliers=(1, 2, 2, 4), attention=(4, 8), position="ijk", normal=True
    ),
    "objaverse/denoiser_sparse": UNetConfig.official(
        False,
        latent_channels=8,
        channels=64,
        multipliers=(1, 2, 2, 4),
        attention=(4, 8),
        position="ijk",
        normal=True,
        text_channels=1024,
    ),
    "waymo/denoiser_sparse": UNetConfig.official(
        False,
        latent_channels=8,
        channels=64,
        multipliers=(1, 2, 4, 4),
        attention=(8, 16),
        position="embedded",
        num_labels=23,
    ),
}


@pytest.mark.parametrize("name", RELEASED)
def test_the_settings_of_released_networks(name: str) -> None:
    entry = manifest()[name]
    assert config_from_official(entry["hparams"], entry["derived"]["out_channels"]) == RELEASED[name]
