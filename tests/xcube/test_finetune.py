"""Fine-tuning of a one-step denoiser: the loss of decoded voxels, runs and bad input."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsevox import Voxels
from tests.xcube.balls import SIDE, ball_dataset
from tests.xcube.cascades import watched
from tests.xcube.two_levels import (
    BOX,
    FLOW,
    LOSS,
    NET,
    ONCE,
    SMALL,
    coarse_of,
    generator,
    save_networks,
    shapes,
    trained,
    true_coarse,
)
from xcube.data.augment import Augment
from xcube.diffusion.objective import DiffusionConfig
from xcube.diffusion.samplers import SamplerConfig
from xcube.networks.conditions import Conditions
from xcube.networks.configs import UNetConfig, VAEConfig
from xcube.networks.pretrained import from_pretrained, read_config, save_pretrained
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.pipeline.options import SampleOptions
from xcube.pipeline.pipeline import XCubePipeline
from xcube.training.coarse import CoarseLevel
from xcube.training.config import TrainConfig
from xcube.training.finetune import FinetuneModule
from xcube.training.train_finetune import train_finetune

for package in ("lightning", "scipy"):
    pytest.importorskip(package, reason="training with solid fractions")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ball_dataset(tmp_path_factory.mktemp("data"), SIDE // 2, SIDE)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_networks(tmp_path_factory.mktemp("networks"))


def module_of(networks: Path, **changes: Any) -> FinetuneModule:
    known = {"train": torch.arange(2), "val": torch.zeros(2, dtype=torch.int64)}
    usual: dict[str, Any] = {"loss": LOSS, "coarse_categories": known}
    train = TrainConfig(steps=4, batch_size=2, warmup=1, val_every=1000, save_every=1, seed=3)
    parts = (trained(networks, 1), train, from_pretrained(networks / "vae-1", VAE))
    return FinetuneModule(*parts, coarse_of(networks), **(usual | changes))


def run(data: Path, networks: Path, out: Path, **changes: Any) -> UNet:
    used = {"vae": "vae-1", "denoiser": "denoiser-1", "coarse_vae": "vae-0", "coarse_denoiser": "denoiser-0"}
    train = TrainConfig(steps=4, batch_size=2, warmup=1, val_every=4, save_every=1, seed=3)
    options: dict[str, Any] = {"loss": LOSS, "train": train, "quiet": True}
    return train_finetune(data, out, **({n: networks / f for n, f in used.items()} | options | changes))


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


def test_true_voxels_guide_the_decoder_in_training_only(networks: Path) -> None:
    module, seen, truths = module_of(networks, exact=1.0, fill_drop=1.0).eval(), list[Conditions](), list[Any]()
    with (
        watched(module.net, lambda args: seen.append(args[2])),
        watched(module.vae.decoder, lambda args: truths.append(args[1])),
    ):
        with torch.no_grad():
            module.losses(shapes(), 0, generator())
        module.train().losses(shapes(), 0, generator())
    assert seen[0].fill is not None
    assert seen[1].fill is not None
    assert torch.equal(seen[0].fill, true_coarse(networks).attributes["fill"])
    assert bool((seen[1].fill == -1).all())
    assert truths[0] is None
    assert truths[1] is not None


@pytest.mark.parametrize("empty", [(0,), (0, 1)])
def test_coarse_voxels_that_decode_to_nothing_have_a_loss(networks: Path, empty: tuple[int, ...]) -> None:
    module = module_of(networks, exact=0.0).train()

    def nothing(voxels: Voxels, *_: Any) -> Voxels:
        return voxels.prune(~torch.isin(voxels.grid.batch.long(), torch.tensor(empty)))

    module.coarse.regenerated = nothing  # type: ignore[method-assign, assignment]
    losses = module.losses(shapes(), 0, generator())
    losses.total.backward()
    assert bool(losses.total.isfinite())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.net.parameters())


def test_fine_tuning_lowers_the_loss_of_decoded_voxels(networks: Path) -> None:
    """With exact coarse voxels the network can learn what the decoder needs."""
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


def test_a_run_that_was_cut_short_ends_as_if_it_had_not(data: Path, networks: Path, tmp_path: Path) -> None:
    """Over the end of an epoch, with augmentation."""
    usual: dict[str, Any] = {
        "batch_size": 2,
        "warmup": 1,
        "schedule": "constant",
        "val_every": 10,
        "save_every": 1,
        "seed": 3,
    }
    options: dict[str, Any] = {"augment": Augment(mirror=True), "coarse_steps": 4}
    whole = run(data, networks, tmp_path / "whole", train=TrainConfig(steps=5, **usual), **options)
    run(data, networks, tmp_path / "cut", train=TrainConfig(steps=2, **usual), **options)
    cut = run(data, networks, tmp_path / "cut", train=TrainConfig(steps=5, **usual), **options).state_dict()
    assert all(torch.equal(value, cut[name]) for name, value in whole.state_dict().items())
    before = from_pretrained(networks / "denoiser-1", UNet).state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in cut.items())
    more: dict[str, Any] = options | {"train": TrainConfig(steps=9, **usual)}
    with pytest.raises(ValueError, match=r"other options: exact 0.3, now 0.5"):
        run(data, networks, tmp_path / "cut", **(more | {"exact": 0.5}))
    with pytest.raises(ValueError, match=r"other options: coarse_steps 4, now 5"):
        run(data, networks, tmp_path / "cut", **(more | {"coarse_steps": 5}))
    other = shutil.copytree(networks / "denoiser-0", tmp_path / "other")
    torch.manual_seed(1)
    save_pretrained(UNet(BOX), other, **read_config(other)["metadata"])
    with pytest.raises(ValueError, match="other options: coarse_denoiser"):
        run(data, networks, tmp_path / "cut", **(more | {"coarse_denoiser": other}))


@pytest.mark.parametrize("mine", [(), ("large", "small")])
def test_each_denoiser_gets_its_own_categories(
    data: Path, networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mine: tuple[str, ...]
) -> None:
    """The fine denoiser has them in another order, or none. No large ball has fewer voxels than a small one."""
    save_pretrained(
        UNet(UNetConfig(**SMALL, categories=len(mine))),
        tmp_path / "denoiser",
        latent_scale=2.0,
        diffusion=DiffusionConfig().to_dict(),
        sampler=ONCE.to_dict(),
        options={"categories": list(mine)},
    )
    seen: list[tuple[Tensor, Tensor | None, Tensor | None]] = []
    regenerated, losses, prepare = CoarseLevel.regenerated, FinetuneModule.losses, Conditions.from_voxels
    coarse: list[Any] = []
    fine: list[Any] = []

    def look(self: CoarseLevel, voxels: Voxels, strength: float, generator: Any, category: Any) -> Voxels:
        coarse.append(category)
        return regenerated(self, voxels, strength, generator, category)

    def condition(voxels: Voxels, config: UNetConfig, **others: Any) -> Conditions:
        if not config.dense:
            fine.append(others["category"])
        return prepare(voxels, config, **others)

    def record(self: FinetuneModule, voxels: Voxels, step: int, generator: Any) -> Any:
        found = losses(self, voxels, step, generator)
        seen.append((voxels.grid.offsets.diff(), coarse.pop(), fine.pop()))
        return found

    monkeypatch.setattr(CoarseLevel, "regenerated", look)
    monkeypatch.setattr(FinetuneModule, "losses", record)
    monkeypatch.setattr("xcube.training.finetune.Conditions.from_voxels", staticmethod(condition))
    run(data, networks, tmp_path / "run", denoiser=tmp_path / "denoiser", exact=0.0, coarse_steps=2)
    assert [len(size) for size, _, _ in seen] == [2, 2, 2, 2, 1]  # four steps and a validation
    validated = seen.pop()
    assert validated[1] is not None
    assert validated[1].tolist() == [0]
    sizes = torch.cat([size for size, _, _ in seen])
    large = torch.cat([other for _, other, _ in seen if other is not None])
    assert 0 < int(large.sum()) < len(large)
    assert int(sizes[large == 0].max()) <= int(sizes[large == 1].min())  # "small", "large"
    own = [category for _, _, category in seen if category is not None]
    assert bool(own) == bool(mine)
    if mine:
        assert torch.equal(torch.cat(own), 1 - large)


def test_the_network_takes_the_place_of_the_denoiser(data: Path, networks: Path, tmp_path: Path) -> None:
    whole = run(data, networks, tmp_path / "whole").state_dict()
    metadata = read_config(tmp_path / "whole")["metadata"]
    assert metadata["sampler"]["steps"] == 1
    assert (metadata["steps"], metadata["latent_scale"], metadata["level"]) == (4, 2.0, 1)
    assert {"vae", "denoiser", "coarse_vae", "coarse_denoiser"} <= metadata["options"].keys()

    # In a folder of runs it is the denoiser of its level, and it is written as such.
    folder = tmp_path / "runs"
    shutil.copytree(networks, folder)
    shutil.copytree(tmp_path / "whole", folder / "finetune-1")
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

    # Not if the denoiser was trained again since.
    torch.manual_seed(1)
    save_pretrained(UNet(NET), folder / "denoiser-1", **read_config(folder / "denoiser-1")["metadata"])
    with pytest.raises(ValueError, match=r"finetune-1 must be fine-tuned from denoiser-1, got a run from another one"):
        XCubePipeline.from_pretrained(folder)


# Bad input


@pytest.mark.parametrize(("changes", "message"), [
    ({"exact": -0.1}, r"exact must lie in \[0, 1\], got -0.1"),
    ({"strength": 1.5}, r"strength must lie in \[0, 1\], got 1.5"),
    ({"fill_drop": float("nan")}, r"fill_drop must lie in \[0, 1\], got nan"),
    ({"level": 0}, r"vae must have the voxel_size of the level, 0.125, got 0.0625"),
    ({"level": 2}, "level must be an index of the levels"),
    ({"coarse_steps": 0}, r"steps must lie in \[1, 1000\]"),
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
    flow = once | {"diffusion": FLOW.to_dict(), "options": {"categories": ["small", "large"]}}

    def made(config: UNetConfig, **metadata: Any) -> Path:
        folder = tmp_path / f"network-{len(list(tmp_path.iterdir()))}"
        save_pretrained(UNet(config), folder, **metadata)
        return folder

    def sampled(*options: Any, **others: Any) -> Path:
        return made(NET, **(once | {"sampler": SamplerConfig(*options, **others).to_dict()}))

    fine: list[tuple[Path, str]] = [
        (sampled("ddim", 50), "steps 1 and without guidance, got steps 50 and guidance 1.0"),
        (sampled("ddim", 1, spacing="trailing", guidance=2.0), "without guidance, got steps 1 and guidance 2.0"),
        (sampled("ddim", 1), "denoiser must have a sampler that starts at full noise, 999, got time 0"),
        (made(UNetConfig(**SMALL, categories=3), **once), "denoiser must have names for its 3 categories, got 0"),
        (made(UNetConfig(**SMALL, num_labels=4), **once), "denoiser must have the num_labels of coarse_vae, 0, got 4"),
        (made(UNetConfig(**SMALL, text_channels=4), **once), "denoiser must take no text"),
        (made(UNetConfig(**(SMALL | {"latent_channels": 3})), **once), "the latent_channels of its VAE, 2, got 3"),
        (made(NET, **once, options={"vae": "0" * 64}), "denoiser must be trained with the VAE .*, a run with another"),
        (made(NET, sampler=ONCE.to_dict()), "must have latent_scale and diffusion in its metadata"),
    ]
    for folder, message in fine:
        with pytest.raises(ValueError, match=message):
            run(data, networks, out, denoiser=folder)
    stale = flow | {"options": flow["options"] | {"vae": "0" * 64}}
    coarse: list[tuple[Path, str]] = [
        (made(BOX, **(flow | {"diffusion": DiffusionConfig("flow", first=900).to_dict()})), "times of at least 900"),
        (made(BOX, **stale), "coarse_denoiser must be trained with the VAE .*, a run with another"),
    ]
    for folder, message in coarse:
        with pytest.raises(ValueError, match=message):
            run(data, networks, out, coarse_denoiser=folder)
    with pytest.raises(ValueError, match=r"coarse_vae must have the voxel_size of the level, 0.125, got 0.0625"):
        run(data, networks, out, coarse_vae=networks / "vae-1")
    plain = VAEConfig(voxel_size=2 / SIDE, channels=(8, 8), latent_channels=2, hidden=4, dense_neck=(2, 2, 2))
    save_pretrained(VAE(plain), tmp_path / "plain", latent_scale=2.0)
    with pytest.raises(ValueError, match="coarse_vae must decode fill, which the denoiser takes"):
        run(data, networks, out, coarse_vae=tmp_path / "plain")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        run(data, networks, out, coarse_denoiser=tmp_path / "none")
    with pytest.raises(ValueError, match="level must have a coarser one, got 0"):
        run(data, networks, out, level=0, vae=networks / "vae-0", denoiser=networks / "denoiser-0")
