"""Official VAEs: outputs, losses and gradients of the original code on small random weights."""

import pytest
import torch

import sparsevox as sv
from tests.goldens import GoldenFile, close, merged, official_networks
from xcube.checkpoints.vae import config_from_official, vae_state
from xcube.networks.blocks import embed_position
from xcube.networks.configs import VAEConfig
from xcube.networks.losses import LossConfig, Losses, kl_divergence, structure_loss, true_attributes, vae_losses
from xcube.networks.vae import VAE

CASES = {"vae_sparse_normals": "shapenet/chair/vae_sparse", "vae_dense_neck": "shapenet/chair/vae_dense"}
NETWORKS = official_networks("vae")


class Golden(GoldenFile):
    """A file, the module with its weights, and the module's results in float64.

    Not float32: activations within rounding of the corner of a ReLU change sides there, and gradients with them.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        hparams = merged(NETWORKS[CASES[name]]["hparams"], self.meta["override"])
        self.model = VAE(config_from_official(hparams)).double().eval()
        weights = {k[2:]: self[k].double() for k in self.names if k.startswith("w/")}
        self.model.load_state_dict(vae_state(weights, self.model.config.num_resolutions))

        grid = self.grid("in")
        self.voxels = sv.Voxels(grid, {"normal": self.aligned(grid, "in/coords", "in/normal").double()})
        noise = self.aligned(self.model.latent_grid(grid), "latent/coords", "latent/eps").double()
        self.posterior, self.decoded = self.model(self.voxels, noise)
        weight = LossConfig(kl=float(self["loss_weight/kld"]), float32_positions=True)
        self.losses = vae_losses(self.model, self.voxels, self.posterior, self.decoded, weight)


@pytest.fixture(scope="module", params=CASES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_posterior(golden: Golden) -> None:
    grid = golden.posterior.grid
    close(golden.posterior.mean, golden.aligned(grid, "latent/coords", "latent/mu"))
    close(golden.posterior.logvar, golden.aligned(grid, "latent/coords", "latent/log_sigma"))


def test_structure_of_every_depth(golden: Golden) -> None:
    for resolution, decided in enumerate(golden.decoded.structure):
        close(
            decided.columns,
            golden.aligned(decided.candidates, f"struct/{resolution}/coords", f"struct/{resolution}/logits"),
        )
        kept = sv.Grid.from_coords(golden[f"struct_grid/{resolution}/coords"], batch_size=decided.grid.batch_size)
        assert kept.same_voxels(decided.grid)
        for name in ("voxel_size", "origin"):
            expected = golden[f"struct/{resolution}/grid_{name}"].tolist()
            assert getattr(decided.grid, name) == pytest.approx(expected, rel=1e-5, abs=1e-8)
        assert float(golden.losses.metrics[f"accuracy-{resolution}"]) == pytest.approx(
            float(golden[f"metric/struct-acc-{resolution}"]), abs=1e-6
        )


def test_normals_and_their_targets(golden: Golden) -> None:
    voxels = golden.decoded.voxels
    close(voxels.attributes["normal"], golden.aligned(voxels.grid, "normal/coords", "normal/feat"))
    target = true_attributes(golden.voxels, voxels.grid, ["normal"], float32_positions=True)["normal"]
    close(target, golden.aligned(voxels.grid, "normal/coords", "normal/target"))


def test_losses_and_their_weights(golden: Golden) -> None:
    names = {f"structure-{d}": f"struct-{d}" for d in range(golden.model.config.num_resolutions)}
    for ours, theirs in (names | {"normal": "normal", "kl": "kld"}).items():
        close(golden.losses.terms[ours], golden[f"loss/{theirs}"])
        assert golden.losses.weights[ours] == golden[f"loss_weight/{theirs}"]
    close(golden.losses.total, golden["loss_total"])


def test_gradients(golden: Golden) -> None:
    parameters = [golden.model.encoder.featurizer.mix.weight, golden.model.encoder.enter.weight]
    first, second = torch.autograd.grad(golden.losses.total, parameters, retain_graph=True)
    close(first, golden["grad/encoder.mix_fc.weight"])
    close(second, golden["grad/unet.pre_conv.weight"])


def test_embedding_of_positions() -> None:
    file = GoldenFile("fvdb_ops")
    close(embed_position(file["embed5/in"]), file["embed5/out"])


@pytest.fixture(scope="module")
def file() -> GoldenFile:
    return GoldenFile("losses")


@pytest.mark.parametrize(("variant", "coarse"), [("sparse_hashtree", "hash_tree"), ("nohash", "coarsen")])
def test_structure_losses_of_either_truth(file: GoldenFile, variant: str, coarse: str) -> None:
    truth = sv.Grid.from_coords(file["gt/coords"], voxel_size=0.0025, origin=0.00125)
    model = VAE(VAEConfig.official(dilation="all" if coarse == "hash_tree" else "none", channels=(8, 8, 8)))
    prefix = "nohash/" if variant == "nohash" else ""
    for resolution, grid in enumerate(model.truth(truth)):
        coords = file[f"{prefix}struct/{resolution}/coords"]
        logits = file[f"{prefix}struct/{resolution}/logits"].double()
        loss = structure_loss(logits[:, 0] - logits[:, 1], grid.contains(coords))
        close(loss, file[f"{variant}/loss/struct-{resolution}"])


def test_attribute_losses(file: GoldenFile) -> None:
    grid = sv.Grid.from_coords(file["gt/coords"], voxel_size=0.0025, origin=0.00125)
    order = torch.argsort(grid.index(file["gt/coords"]))
    attributes = {
        "normal": file["gt/normal"][order],
        "label": file["waymo/gt_semantic"][order],
    }
    coords = file["normal/coords"]
    predicted = sv.Grid.from_coords(coords, batch_size=grid.batch_size, voxel_size=0.0025, origin=0.00125)
    target = true_attributes(sv.Voxels(grid, attributes), predicted, attributes, float32_positions=True)
    rows = predicted.index(coords)
    close(target["normal"][rows], file["normal/target"])
    # Of voxels at the same distance the original code takes one, ours another.
    clear = ~file["waymo/semantic_target_tie"]
    assert torch.equal(target["label"][rows][clear], file["waymo/semantic_target"][clear])
    l1 = (file["normal/pred"] - target["normal"][rows]).abs().mean()
    close(l1, file["sparse_hashtree/loss/normal"])
    entropy = torch.nn.functional.cross_entropy(file["waymo/semantic_logits"], file["waymo/semantic_target"])
    close(entropy, file["waymo_semantic/loss/semantic_-1"])


def test_divergence(file: GoldenFile) -> None:
    close(
        kl_divergence(file["mu"], file["log_sigma"]),
        file["sparse_hashtree/loss/kld"],
    )


def test_totals(file: GoldenFile) -> None:
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


def test_annealing(file: GoldenFile) -> None:
    weights = [LossConfig(kl=1.0, anneal=70000).kl_at(int(step)) for step in file["anneal/step"]]
    assert weights == pytest.approx(file["anneal/kl_weight"].tolist(), rel=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_official_network_has_exactly_these_parameters(name: str) -> None:
    entry = NETWORKS[name]
    with torch.device("meta"):
        model = VAE(config_from_official(entry["hparams"]))
        official = {k: torch.empty(shape) for k, shape in entry["state_dict"].items()}
        ours = vae_state(official, model.config.num_resolutions)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert sum(p.numel() for p in model.parameters()) == entry["n_params"]
