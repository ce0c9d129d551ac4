"""Fine-tuning of a denoiser of one step: coarse voxels with errors, the loss of decoded voxels, runs and bad input."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsevox import Voxels
from tests.xcube.balls import SIDE, ball
from tests.xcube.cascades import halved, random, watched
from xcube.data.build import build
from xcube.data.hierarchy import Box
from xcube.data.sources import Source
from xcube.diffusion.objective import DiffusionConfig
from xcube.diffusion.samplers import SamplerConfig
from xcube.networks.conditions import Conditions
from xcube.networks.configs import UNetConfig, VAEConfig
from xcube.networks.losses import LossConfig, true_attributes, voxel_iou
from xcube.networks.pretrained import from_pretrained, read_config, save_pretrained
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.pipeline.options import SampleOptions
from xcube.pipeline.pipeline import XCubePipeline
from xcube.training.coarse import CoarseLevel
from xcube.training.config import TrainConfig
from xcube.training.finetune import FinetuneModule
from xcube.training.latents import SHAPE_INDEX
from xcube.training.train_finetune import train_finetune

for package in ("lightning", "scipy"):
    pytest.importorskip(package, reason="training with solid fractions")

FINE = VAEConfig(voxel_size=1 / SIDE, channels=(8, 8), latent_channels=2, hidden=4, solid=True)
COARSE = VAEConfig(
    voxel_size=2 / SIDE, channels=(8, 8), latent_channels=2, hidden=4, dense_neck=(2, 2, 2), fill=True, solid=True
)
SMALL: dict[str, Any] = {"latent_channels": 2, "channels": 8, "multipliers": (1,), "attention": (), "heads": 2}
NET = UNetConfig(**SMALL, position="ijk", normal=True, fill=True)
BOX = UNetConfig(**SMALL, dense=True, categories=2)
FLOW, ONCE = DiffusionConfig("flow"), SamplerConfig("ddim", 1, spacing="trailing")
LOSS = LossConfig(structure=1.0, solid=1.0, normal=0.3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    sources = [
        Source(f"{'small' if n < 4 else 'large'}-{n}", partial(ball, 2.5 + n / 3), split="val" if n == 3 else "train")
        for n in range(7)
    ]
    assert len(build(sources, folder, Box((SIDE // 2, SIDE))).built) == 7
    return folder


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cascade with random networks, as runs leave them."""
    folder = tmp_path_factory.mktemp("networks")
    for name, config in (("vae-0", COARSE), ("vae-1", FINE)):
        torch.manual_seed(0)
        save_pretrained(halved(random(VAE(config), 1), 0.5), folder / name, latent_scale=2.0)
    options = {"categories": ["small", "large"], "dropped": ["category"]}
    flow: dict[str, Any] = {
        "diffusion": FLOW.to_dict(),
        "sampler": SamplerConfig("flow", 4).to_dict(),
        "options": options,
    }
    once: dict[str, Any] = {"diffusion": DiffusionConfig(first=900).to_dict(), "sampler": ONCE.to_dict()}
    for name, network, metadata in (("denoiser-0", BOX, flow), ("denoiser-1", NET, once)):
        torch.manual_seed(0)
        save_pretrained(UNet(network), folder / name, latent_scale=2.0, **metadata)
    return folder


def coarse_of(networks: Path, steps: int = 10) -> CoarseLevel:
    return CoarseLevel.from_pretrained(networks / "vae-0", networks / "denoiser-0", steps)


def module_of(networks: Path, **changes: Any) -> FinetuneModule:
    usual: dict[str, Any] = {"scale": 2.0, "diffusion": DiffusionConfig(first=900), "sampler": ONCE, "loss": LOSS}
    train = TrainConfig(steps=4, batch_size=2, warmup=1, val_every=1000, save_every=1, seed=3)
    parts = (from_pretrained(networks / "denoiser-1", UNet), train, from_pretrained(networks / "vae-1", VAE))
    return FinetuneModule(*parts, coarse_of(networks), **(usual | changes))


def run(data: Path, networks: Path, out: Path, **changes: Any) -> UNet:
    used = {"vae": "vae-1", "denoiser": "denoiser-1", "coarse_vae": "vae-0", "coarse_denoiser": "denoiser-0"}
    train = TrainConfig(steps=4, batch_size=2, warmup=1, val_every=4, save_every=1, seed=3)
    options: dict[str, Any] = {"loss": LOSS, "train": train, "quiet": True}
    return train_finetune(data, out, **({n: networks / f for n, f in used.items()} | options | changes))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shapes() -> Voxels:
    voxels = Voxels.stack([ball(3.0), ball(4.0)])
    return voxels.with_attributes(**{SHAPE_INDEX: voxels.grid.batch.int()})


def true_coarse(networks: Path) -> Voxels:
    voxels, vae = shapes(), from_pretrained(networks / "vae-1", VAE)
    grid = vae.latent_grid(voxels.grid)
    return Voxels(grid, true_attributes(voxels, grid, {"normal", "fill"}))


# Coarse voxels with errors


def test_strength_is_the_share_of_the_steps_that_change_coarse_voxels(networks: Path) -> None:
    level, voxels, calls = coarse_of(networks), true_coarse(networks), list[Any]()
    category = torch.tensor([0, 1])
    for strength, steps in ((0.0, 0), (0.3, 3), (1.0, 10)):
        calls.clear()
        with watched(level.denoiser, calls.append):
            made = level.regenerated(voxels, strength, generator(), category)
        assert len(calls) == steps
        assert made.batch_size == 2
        assert made.num_voxels
        assert set(made.attributes) == {"normal", "fill"}
        assert 0 <= float(made.attributes["fill"].min()) <= float(made.attributes["fill"].max()) <= 1
        lengths = made.attributes["normal"].norm(dim=1)
        assert bool(((lengths - 1).abs() < 1e-4).logical_or(lengths == 0).all())
    assert all(torch.equal(args[2].category, category) for args in calls)
    again = level.regenerated(voxels, 1.0, generator(), category)
    assert again.grid.same_voxels(made.grid)
    assert torch.equal(again.attributes["fill"], made.attributes["fill"])


def test_without_steps_only_the_vae_changes_coarse_voxels(networks: Path) -> None:
    level, voxels = coarse_of(networks), true_coarse(networks)
    with torch.no_grad():
        posterior = level.vae.encode(voxels)
        drawn = posterior.sample(torch.randn(posterior.mean.shape, generator=generator()))
        expected = level.vae.decode(drawn.map(lambda z: z * 2.0 / 2.0)).voxels
    made = level.regenerated(voxels, 0.0, generator())
    assert float(voxel_iou(made.grid, expected.grid).min()) == 1


def test_the_coarse_networks_do_not_learn(networks: Path) -> None:
    module = module_of(networks).train()
    assert not module.coarse.vae.training
    assert not any(parameter.requires_grad for part in (module.coarse, module.vae) for parameter in part.parameters())


# The loss


@pytest.mark.parametrize("exact", [0.0, 1.0])
def test_the_denoiser_sees_exact_coarse_voxels_or_changed_ones(networks: Path, exact: float) -> None:
    module, seen = module_of(networks, exact=exact, fill_drop=0.0).train(), list[Any]()
    truth = true_coarse(networks)
    with watched(module.net, seen.append):
        losses = module.losses(shapes(), 0, generator())
    ((x, t, conditions),) = seen
    assert t.tolist() == [999, 999]
    assert float(x.feats.std()) == pytest.approx(1, abs=0.2)  # pure noise
    same = x.grid.same_voxels(truth.grid) and torch.equal(conditions.fill, truth.attributes["fill"])
    assert same == bool(exact)
    assert {"structure-0", "solid-0", "normal"} <= losses.terms.keys()
    assert "kl" not in losses.terms
    losses.total.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.net.parameters())
    assert any(bool((p.grad != 0).any()) for p in module.net.parameters() if p.grad is not None)


def test_a_validation_is_exact_and_unguided(networks: Path) -> None:
    module, seen = module_of(networks, exact=0.0, fill_drop=1.0).eval(), list[Conditions]()
    with (
        watched(module.net, lambda args: seen.append(args[2])),
        watched(module.vae.decoder, lambda args: truths.append(args[1])),
    ):
        truths: list[Any] = []
        with torch.no_grad():
            module.losses(shapes(), 0, generator())
        module.train().losses(shapes(), 0, generator())
    assert torch.equal(seen[0].fill, true_coarse(networks).attributes["fill"])  # type: ignore[arg-type]
    assert bool((seen[1].fill == -1).all())  # type: ignore[union-attr]
    assert truths[0] is None
    assert truths[1] is not None


def test_fine_tuning_lowers_the_loss_of_decoded_voxels(networks: Path) -> None:
    """On one shape with exact coarse voxels the network can learn what the decoder needs."""
    module = module_of(networks, exact=1.0, fill_drop=0.0).train()
    optimizer, found = torch.optim.Adam(module.net.parameters(), 0.02), []
    for step in range(30):
        loss = module.losses(shapes(), step, generator(step)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    assert max(found[-5:]) < min(found[:5])


# Runs


def test_a_run_is_resumed_and_takes_the_place_of_the_denoiser(data: Path, networks: Path, tmp_path: Path) -> None:
    before = from_pretrained(networks / "denoiser-1", UNet).state_dict()
    whole = run(data, networks, tmp_path / "whole").state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in whole.items())
    part = TrainConfig(steps=2, batch_size=2, warmup=1, val_every=4, save_every=1, seed=3)
    run(data, networks, tmp_path / "cut", train=part)
    resumed = run(data, networks, tmp_path / "cut").state_dict()
    assert resumed.keys() == whole.keys()
    metadata = read_config(tmp_path / "whole")["metadata"]
    assert metadata["sampler"]["steps"] == 1
    assert (metadata["steps"], metadata["latent_scale"], metadata["level"]) == (4, 2.0, 1)
    assert {"vae", "denoiser", "coarse_vae", "coarse_denoiser"} <= metadata["options"].keys()

    # In a folder of runs it is the denoiser of its level, and it is written as such.
    folder = tmp_path / "runs"
    for name in ("vae-0", "vae-1", "denoiser-0", "denoiser-1"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(networks / name)
    (folder / "finetune-1").symlink_to(tmp_path / "whole")
    pipeline = XCubePipeline.from_pretrained(folder)
    for name, value in pipeline.levels[1].denoiser.state_dict().items():
        assert torch.equal(value, whole[name])
    pipeline.save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir() if path.is_dir()) == [
        "denoiser-0", "denoiser-1", "vae-0", "vae-1"
    ]  # fmt: skip
    saved = from_pretrained(tmp_path / "saved" / "denoiser-1", UNet).state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in saved.items())
    assert pipeline.sample(1, SampleOptions(quiet=True, category="small"))[0].levels


# Bad input


@pytest.mark.parametrize(("changes", "message"), [
    ({"exact": -0.1}, r"exact must lie in \[0, 1\], got -0.1"),
    ({"strength": 1.5}, r"strength must lie in \[0, 1\], got 1.5"),
    ({"fill_drop": float("nan")}, r"fill_drop must lie in \[0, 1\], got nan"),
    ({"level": 0}, r"vae must have the voxel_size of the level, 0.125, got 0.0625"),
    ({"level": 2}, "level must be an index of the levels"),
    ({"steps": 0}, r"steps must lie in \[1, 1000\]"),
])  # fmt: skip
def test_options_that_are_out_of_range_are_named(
    data: Path, networks: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(data, networks, tmp_path / "run", **changes)
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_networks_that_do_not_fit_are_named(data: Path, networks: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    once: dict[str, Any] = {"latent_scale": 2.0, "diffusion": DiffusionConfig().to_dict(), "sampler": ONCE.to_dict()}
    many, text, other = tmp_path / "many", tmp_path / "text", tmp_path / "other"
    save_pretrained(UNet(NET), many, **(once | {"sampler": SamplerConfig("ddim", 50).to_dict()}))
    with pytest.raises(ValueError, match="denoiser must have a sampler of one step, got 50"):
        run(data, networks, out, denoiser=many)
    save_pretrained(UNet(UNetConfig(**SMALL, categories=3)), other, **once)
    with pytest.raises(ValueError, match="no condition that the coarser level lacks, got one that takes category"):
        run(data, networks, out, denoiser=other)
    save_pretrained(UNet(UNetConfig(**SMALL, dense=True, text_channels=4)), text, **once)
    with pytest.raises(ValueError, match="coarse_denoiser must take no text"):
        run(data, networks, out, coarse_denoiser=text)
    with pytest.raises(ValueError, match=r"coarse_vae must have the voxel_size of the level, 0.125, got 0.0625"):
        run(data, networks, out, coarse_vae=networks / "vae-1")
    stale = tmp_path / "stale"
    save_pretrained(UNet(NET), stale, **once, options={"vae": "0" * 64})
    with pytest.raises(ValueError, match=r"denoiser must be trained with the VAE .*, a run with another VAE"):
        run(data, networks, out, denoiser=stale)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        run(data, networks, out, coarse_denoiser=tmp_path / "none")
    with pytest.raises(ValueError, match="level must have a coarser one, got 0"):
        run(data, networks, out, level=0, vae=networks / "vae-0", denoiser=networks / "denoiser-0")
