"""The released networks: outputs, losses and gradients of the original code on small random weights.

The files lie beside the repository; without them these tests have nothing to compare with.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sparsevox as sv
from xcube.checkpoints.vae import config_from_official, vae_state
from xcube.networks.configs import VAEConfig
from xcube.networks.losses import LossConfig, Losses, kl_divergence, structure_loss, true_attributes, vae_losses
from xcube.networks.vae import VAE

SHARED = Path(__file__).parents[3] / "shared"
pytestmark = pytest.mark.skipif(not (SHARED / "golden").is_dir(), reason="needs the golden files of the original code")

CASES = {"vae_sparse_normals": "shapenet/chair/vae_sparse", "vae_dense_neck": "shapenet/chair/vae_dense"}


def close(ours: Tensor | float, theirs: Any) -> None:
    a, b = torch.as_tensor(ours).detach().double(), torch.as_tensor(theirs).double()
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= 1e-4 * max(1.0, float(b.abs().max()))


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    nested = {k: merged(values[k], v) for k, v in changes.items() if isinstance(v, dict) and k in values}
    return values | changes | nested


class Golden:
    """A file, the module with its weights, and the module's results in float64.

    Not float32: activations within rounding of the corner of a ReLU change sides there, and gradients with them.
    """

    def __init__(self, name: str) -> None:
        self.file = np.load(SHARED / "golden" / f"{name}.npz", allow_pickle=False)
        manifest = json.loads((SHARED / "xcube_manifest.json").read_text())["configs"]
        changes = json.loads(str(self.file["meta_json"]))["override"]
        self.model = VAE(config_from_official(merged(manifest[CASES[name]]["hparams"], changes))).double().eval()
        weights = {k[2:]: self.tensor(k).double() for k in self.file.files if k.startswith("w/")}
        self.model.load_state_dict(vae_state(weights, self.model.config.depths))

        coords = self.tensor("in/coords")
        size, origin = tuple(self.file["in/voxel_size"]), tuple(self.file["in/origin"])
        grid = sv.Grid.from_coords(coords, voxel_size=size, origin=origin)
        self.voxels = sv.Voxels(grid, {"normal": self.aligned(grid, "in/coords", "in/normal").double()})
        noise = self.aligned(self.model.latent_grid(grid), "latent/coords", "latent/eps").double()
        self.posterior, self.decoded = self.model(self.voxels, noise)
        weight = LossConfig(kl=float(self.file["loss_weight/kld"]), float32_positions=True)
        self.losses = vae_losses(self.model, self.voxels, self.posterior, self.decoded, weight)

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.file[name])

    def aligned(self, grid: sv.Grid, coords: str, values: str) -> Tensor:
        """Rows of the file in the order of a grid of the same voxels."""
        rows = grid.index(self.tensor(coords))
        assert sorted(rows.tolist()) == list(range(grid.num_voxels))
        result = torch.empty_like(self.tensor(values))
        result[rows] = self.tensor(values)
        return result


@pytest.fixture(scope="module", params=CASES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_posterior(golden: Golden) -> None:
    grid = golden.posterior.grid
    close(golden.posterior.mean, golden.aligned(grid, "latent/coords", "latent/mu"))
    close(golden.posterior.logvar, golden.aligned(grid, "latent/coords", "latent/log_sigma"))


def test_structure_of_every_depth(golden: Golden) -> None:
    for depth, decided in enumerate(golden.decoded.structure):
        close(decided.logits, golden.aligned(decided.candidates, f"struct/{depth}/coords", f"struct/{depth}/logits"))
        kept = sv.Grid.from_coords(golden.tensor(f"struct_grid/{depth}/coords"), batch_size=decided.grid.batch_size)
        assert kept.same_voxels(decided.grid)
        assert np.allclose(decided.grid.voxel_size, golden.file[f"struct/{depth}/grid_voxel_size"])
        assert np.allclose(decided.grid.origin, golden.file[f"struct/{depth}/grid_origin"])
        assert float(golden.losses.metrics[f"accuracy-{depth}"]) == pytest.approx(
            float(golden.file[f"metric/struct-acc-{depth}"]), abs=1e-6
        )


def test_normals_and_their_targets(golden: Golden) -> None:
    voxels = golden.decoded.voxels
    close(voxels.attributes["normal"], golden.aligned(voxels.grid, "normal/coords", "normal/feat"))
    target = true_attributes(golden.voxels, voxels.grid, ["normal"], float32_positions=True)["normal"]
    close(target, golden.aligned(voxels.grid, "normal/coords", "normal/target"))


def test_losses_and_their_weights(golden: Golden) -> None:
    names = {f"structure-{d}": f"struct-{d}" for d in range(golden.model.config.depths)}
    for ours, theirs in (names | {"normal": "normal", "kl": "kld"}).items():
        close(golden.losses.terms[ours], golden.file[f"loss/{theirs}"])
        assert golden.losses.weights[ours] == golden.file[f"loss_weight/{theirs}"]
    close(golden.losses.total, golden.file["loss_total"])


def test_gradients(golden: Golden) -> None:
    parameters = [golden.model.encoder.featurizer.mix.weight, golden.model.encoder.enter.weight]
    first, second = torch.autograd.grad(golden.losses.total, parameters, retain_graph=True)
    close(first, golden.file["grad/encoder.mix_fc.weight"])
    close(second, golden.file["grad/unet.pre_conv.weight"])


@pytest.fixture(scope="module")
def file() -> Any:
    return np.load(SHARED / "golden" / "losses.npz", allow_pickle=False)


@pytest.mark.parametrize(("variant", "coarse"), [("sparse_hashtree", "hash_tree"), ("nohash", "coarsen")])
def test_structure_losses_of_either_truth(file: Any, variant: str, coarse: str) -> None:
    truth = sv.Grid.from_coords(torch.from_numpy(file["gt/coords"]), voxel_size=0.0025, origin=0.00125)
    model = VAE(VAEConfig.official(dilation="all" if coarse == "hash_tree" else "none", channels=(8, 8, 8)))
    prefix = "nohash/" if variant == "nohash" else ""
    for depth, grid in enumerate(model.truth(truth)):
        coords = torch.from_numpy(file[f"{prefix}struct/{depth}/coords"])
        logits = torch.from_numpy(file[f"{prefix}struct/{depth}/logits"]).double()
        loss = structure_loss(logits[:, 0] - logits[:, 1], grid.contains(coords))
        close(loss, file[f"{variant}/loss/struct-{depth}"])


def test_attribute_losses(file: Any) -> None:
    grid = sv.Grid.from_coords(torch.from_numpy(file["gt/coords"]), voxel_size=0.0025, origin=0.00125)
    order = torch.argsort(grid.index(torch.from_numpy(file["gt/coords"])))
    attributes = {
        "normal": torch.from_numpy(file["gt/normal"])[order],
        "label": torch.from_numpy(file["waymo/gt_semantic"])[order],
    }
    coords = torch.from_numpy(file["normal/coords"])
    predicted = sv.Grid.from_coords(coords, batch_size=grid.batch_size, voxel_size=0.0025, origin=0.00125)
    target = true_attributes(sv.Voxels(grid, attributes), predicted, attributes, float32_positions=True)
    rows = predicted.index(coords)
    close(target["normal"][rows], file["normal/target"])
    # Of equally near voxels the release takes one, we take another.
    clear = ~torch.from_numpy(file["waymo/semantic_target_tie"])
    assert torch.equal(target["label"][rows][clear], torch.from_numpy(file["waymo/semantic_target"])[clear])
    l1 = (torch.from_numpy(file["normal/pred"]) - target["normal"][rows]).abs().mean()
    close(l1, file["sparse_hashtree/loss/normal"])
    entropy = torch.nn.functional.cross_entropy(
        torch.from_numpy(file["waymo/semantic_logits"]), torch.from_numpy(file["waymo/semantic_target"])
    )
    close(entropy, file["waymo_semantic/loss/semantic_-1"])


def test_divergence(file: Any) -> None:
    close(
        kl_divergence(torch.from_numpy(file["mu"]), torch.from_numpy(file["log_sigma"])),
        file["sparse_hashtree/loss/kld"],
    )


def test_totals(file: Any) -> None:
    for variant, extra in (("sparse_hashtree", ()), ("nohash", ()), ("waymo_semantic", ("label",))):
        kl = 0.3 if extra else 1.0
        weights = {f"structure-{d}": 20.0 for d in range(3)} | {"normal": 300.0, "kl": kl} | dict.fromkeys(extra, 20.0)
        theirs = {"normal": "normal", "kl": "kld", "label": "semantic_-1"} | {
            f"structure-{d}": f"struct-{d}" for d in range(3)
        }
        terms = {name: torch.tensor(float(file[f"{variant}/loss/{theirs[name]}"])) for name in weights}
        close(Losses(terms, weights).total, file[f"{variant}/total"])
        config = LossConfig(kl=kl)
        assert (config.structure, config.normal, config.label) == (20.0, 300.0, 20.0)


def test_annealing(file: Any) -> None:
    weights = [LossConfig(kl=1.0, anneal=70000).kl_at(int(step)) for step in file["anneal/step"]]
    assert weights == pytest.approx(file["anneal/kl_weight"].tolist(), rel=1e-6)


def manifest() -> dict[str, Any]:
    path = SHARED / "xcube_manifest.json"
    configs: dict[str, Any] = json.loads(path.read_text())["configs"] if path.is_file() else {}
    return {name: c for name, c in configs.items() if c["kind"] == "vae"}


def hyper_parameters(entry: dict[str, Any], configs: dict[str, Any]) -> dict[str, Any]:
    """One entry is another one changed on the command line."""
    if "hparams" in entry:
        return dict(entry["hparams"])
    (base,) = [c for c in configs.values() if c["yaml"] == entry["yaml"] and "hparams" in c]
    return merged(base["hparams"], entry["cli_override"])


@pytest.mark.parametrize("name", manifest())
def test_every_released_network_has_exactly_these_parameters(name: str) -> None:
    configs = manifest()
    entry = configs[name]
    expected = entry.get("state_dict") or configs[entry["state_dict_same_as"]]["state_dict"]
    with torch.device("meta"):
        model = VAE(config_from_official(hyper_parameters(entry, configs)))
        official = {k: torch.empty(shape) for k, shape in expected.items()}
        ours = vae_state(official, model.config.depths)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert sum(p.numel() for p in model.parameters()) == entry["n_params"]
