"""Observations of a level with a sparse latent grid: what is known of it, in training and in completion."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsevox import Grid, SparseTensor, Voxels
from tests.xcube.balls import SIDE, ball_dataset
from tests.xcube.cascades import random, tiny, unet, watched
from tests.xcube.two_levels import FINE, LOSS, NET, coarse_of, generator, save_networks, shapes, trained, true_coarse
from xcube.geometry.observation import states
from xcube.networks.conditions import Conditions
from xcube.networks.configs import VAEConfig
from xcube.networks.pretrained import from_pretrained, read_config
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.pipeline.options import SampleOptions
from xcube.pipeline.pipeline import XCubePipeline
from xcube.training.config import TrainConfig
from xcube.training.finetune import FinetuneModule
from xcube.training.initial import with_observations
from xcube.training.observations import Observations
from xcube.training.train_finetune import train_finetune

for package in ("lightning", "scipy"):
    pytest.importorskip(package, reason="training with solid fractions")

EDGES = (SIDE,) * 3


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_networks(tmp_path_factory.mktemp("networks"))


def observations(config: VAEConfig, nothing: float, seed: int) -> tuple[Voxels, Observations]:
    voxels = shapes()
    return voxels, Observations(voxels.grid, EDGES, config, nothing, generator(seed))


@given(st.integers(0, 10**6), st.sampled_from(("latent", "none")))
@settings(max_examples=15, deadline=None)
def test_known_latent_voxels(seed: int, dilation: Any) -> None:
    """A latent voxel is known if, whatever the unknown voxels are, the latent grid is the same there."""
    config = VAEConfig(voxel_size=1 / SIDE, channels=(8, 8), latent_channels=2, hidden=4, dilation=dilation)
    torch.manual_seed(0)
    network = VAE(config)
    voxels, seen = observations(config, 0.0, seed)
    assert torch.equal(seen.full.sum((1, 2, 3)), voxels.grid.offsets.diff())
    unknown = (~seen.seen).nonzero()
    unknown[:, 1:] -= SIDE // 2
    least = voxels.grid - Grid.from_coords(unknown.int(), batch_size=2, voxel_size=1 / SIDE, origin=0.5 / SIDE)
    most = least | Grid.from_coords(unknown.int(), batch_size=2, voxel_size=1 / SIDE, origin=0.5 / SIDE)
    changes = network.latent_grid(most) - network.latent_grid(least)
    places = changes.coords.long() + torch.tensor([0, *[SIDE // 4] * 3])
    inside = ((places[:, 1:] >= 0) & (places[:, 1:] < SIDE // 2)).all(1)
    expected = torch.ones_like(seen.known)
    expected[places[inside].unbind(1)] = False
    # Where a latent voxel exists for sure, it may be known or not: its voxels may be unknown.
    assert bool((seen.known <= expected).all())
    sure = network.latent_grid(least).coords.long() + torch.tensor([0, *[SIDE // 4] * 3])
    rest = expected & ~seen.known
    rest[sure.unbind(1)] = False
    assert not bool(rest.any())


def test_states_and_coarse_voxels(networks: Path) -> None:
    voxels, seen = observations(FINE, 0.0, 3)
    true = true_coarse(networks)
    # 1. The states are those of the observed voxels.
    found = seen.states(true.grid)
    truth = states(true.grid.coords, (2, 2, 2), voxels.grid)
    assert torch.equal(found[found != 0], truth[found != 0])
    assert 0.1 < float((found == 0).float().mean()) < 0.95
    # 2. Coarse voxels are true where they are known, and made ones elsewhere.
    coords = torch.cartesian_prod(torch.arange(2), *[torch.arange(-4, 4)] * 3)[::3].int()
    grid = Grid.from_coords(coords, batch_size=2, voxel_size=2 / SIDE, origin=1 / SIDE)
    made = Voxels(grid, {"normal": torch.ones(grid.num_voxels, 3), "fill": torch.full((grid.num_voxels,), 0.25)})
    joined = seen.joined(true, made)

    def known(each: Grid) -> torch.Tensor:
        return seen.known[(each.coords.long() + torch.tensor([0, 4, 4, 4])).unbind(1)]

    assert joined.prune(known(joined.grid)).grid.same_voxels(true.prune(known(true.grid)).grid)
    assert joined.prune(~known(joined.grid)).grid.same_voxels(made.prune(~known(made.grid)).grid)
    rows = true.grid.index(joined.grid.coords)
    mine = known(joined.grid)
    assert torch.equal(joined.attributes["normal"][mine], true.attributes["normal"][rows[mine]])
    assert joined.attributes["fill"][~mine].unique().tolist() == [0.25]
    # 3. With nothing observed, nothing is known.
    _, blind = observations(FINE, 1.0, 3)
    assert not blind.known.any()
    assert not blind.states(true.grid).any()
    assert blind.joined(true, made).grid.same_voxels(grid)


def module_of(networks: Path, **changes: Any) -> FinetuneModule:
    own = trained(networks, 1)
    known = {"train": torch.arange(2), "val": torch.zeros(2, dtype=torch.int64)}
    usual: dict[str, Any] = {"loss": LOSS, "coarse_categories": known, "exact": 0.0}
    train = TrainConfig(steps=4, batch_size=2, warmup=1, val_every=1000, save_every=1, seed=3)
    taking = replace(own, net=with_observations(own.net, 8))
    vae = from_pretrained(networks / "vae-1", VAE)
    return FinetuneModule(taking, train, vae, coarse_of(networks), **(usual | changes))


def test_latent_voxels_outside_of_the_box() -> None:
    """Early dilation may add them at the border; nothing is known there. Finer voxels outside are an error."""
    _, seen = observations(FINE, 0.0, 3)
    coords = torch.tensor([[0, 4, 0, 0], [1, -5, 0, 0], [0, 0, 0, 0]], dtype=torch.int32)
    grid = Grid.from_coords(coords, batch_size=2, voxel_size=2 / SIDE, origin=1 / SIDE)
    outside = (grid.ijk.abs().amax(1) >= 4) & (grid.ijk[:, 0] != -4)
    assert not seen.states(grid)[outside].any()
    made = Voxels(grid, {"fill": torch.rand(grid.num_voxels)})
    assert bool(seen.joined(made, made).grid.contains(grid.coords).all())
    far = Grid.from_coords(torch.tensor([[0, 8, 0, 0]]), voxel_size=1 / SIDE, origin=0.5 / SIDE)
    with pytest.raises(ValueError, match=r"fine must lie in the box of \(16, 16, 16\) voxels, got 1 outside"):
        Observations(far, EDGES, FINE, 0.0, generator())


def test_the_denoiser_takes_what_is_observed(networks: Path) -> None:
    voxels, seen = shapes(), list[Any]()
    module = module_of(networks, unobserved=0.0)
    with watched(module.net, lambda args: seen.append((args[0].grid, args[2]))):
        losses = module.losses(voxels, 0, generator(5))
    assert bool(losses.total.isfinite())
    [(grid, conditions)] = seen
    truth = states(grid.coords, (2, 2, 2), voxels.grid)
    known = conditions.observed != 0
    assert 0.05 < float(known.float().mean()) < 1
    assert torch.equal(conditions.observed[known], truth[known])
    # Latent voxels of which all is known are exact, and so are those that do not exist.
    true = true_coarse(networks)
    whole = known.all(1)
    assert bool((true.grid.index(grid.coords[whole & (conditions.observed > 0).any(1)]) >= 0).all())
    nothing = module_of(networks, unobserved=1.0)
    seen.clear()
    with watched(nothing.net, lambda args: seen.append((args[0].grid, args[2]))):
        nothing.losses(voxels, 0, generator(5))
    assert not seen[0][1].observed.any()


def test_observations_have_no_effect_at_first(networks: Path) -> None:
    own = trained(networks, 1).net
    random(own, 3)
    taking = with_observations(own, 8)
    assert with_observations(taking, 8) is taking
    with pytest.raises(ValueError, match="must take observations of 64 voxels, or none, got 8"):
        with_observations(taking, 64)
    coarse = true_coarse(networks)
    x = SparseTensor(coarse.grid, torch.randn(coarse.num_voxels, 2, generator=generator()))
    plain = Conditions.from_voxels(coarse, own.config)
    given = Conditions.from_voxels(coarse, taking.config, observed=torch.ones(coarse.num_voxels, 8))
    torch.testing.assert_close(taking(x, 999.0, given).feats, own(x, 999.0, plain).feats)
    torch.nn.init.normal_(taking.enter.get_parameter("weight"))
    silent = Conditions.from_voxels(coarse, taking.config)
    assert not torch.allclose(taking(x, 999.0, given).feats, taking(x, 999.0, silent).feats)


def test_runs(networks: Path, tmp_path: Path) -> None:
    data = ball_dataset(tmp_path / "data", SIDE // 2, SIDE)
    options: dict[str, Any] = {
        "vae": networks / "vae-1", "denoiser": networks / "denoiser-1", "coarse_vae": networks / "vae-0",
        "coarse_denoiser": networks / "denoiser-0", "loss": LOSS, "coarse_steps": 2, "quiet": True,
        "train": TrainConfig(steps=2, batch_size=2, warmup=0, val_every=2, learning_rate=1e-2, ema=0.0),
    }  # fmt: skip
    net = train_finetune(data, tmp_path / "run", observed=True, unobserved=0.25, **options)
    assert net.config.observed == 8
    assert bool(net.enter.get_parameter("weight")[:, -8:].any())
    assert read_config(tmp_path / "run")["metadata"]["options"]["unobserved"] == 0.25
    again = train_finetune(data, tmp_path / "run", observed=True, unobserved=0.25, **options)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in again.state_dict().items())
    with pytest.raises(ValueError, match=r"unobserved must be None for a denoiser .*, got 0\.9"):
        train_finetune(data, tmp_path / "no", unobserved=0.9, **options)
    plain = train_finetune(data, tmp_path / "plain", **options)
    assert plain.config == NET
    assert "unobserved" not in read_config(tmp_path / "plain")["metadata"]["options"]
    with pytest.raises(ValueError, match=r"unobserved must lie in \[0, 1\], got 2.0"):
        train_finetune(data, tmp_path / "no", observed=True, unobserved=2.0, **options)


def test_completion_with_the_fine_denoiser() -> None:
    """Each shape of a batch gets the states of its own latent voxels."""
    fine: UNet = unet(1, observed=8)
    pipeline, seen = XCubePipeline([tiny(0, denoiser=unet(0, observed=8)), tiny(1, denoiser=fine)]), list[Any]()
    axis = torch.arange(-6, 6)
    ijk = torch.cartesian_prod(axis, axis, axis)
    ijk = ijk[(ijk + 0.5).abs().amax(1) > 5]
    grid = Grid.from_coords(ijk, voxel_size=1 / 16, origin=1 / 32)
    whole = Voxels(grid, {"normal": torch.nn.functional.normalize(grid.ijk.float() + 0.5, dim=1)})
    with watched(fine, lambda args: seen.append((args[0].grid, args[2].observed))):
        pipeline.complete(whole, SampleOptions(steps=2, quiet=True), unknown=((0, -1, -1), (1, 1, 1)), numbers=range(3))
    assert len(seen) == 2
    latent, found = seen[0]
    assert latent.batch_size == 3
    for item in range(3):
        rows = latent.batch == item
        places = latent.coords[rows].clone()
        places[:, 0] = 0
        truth = states(places, (2, 2, 2), whole.grid)
        known = (places[:, 1] < 0)[:, None]
        assert torch.equal(found[rows], torch.where(known, truth, 0.0))


def test_of_a_sample_nothing_is_observed() -> None:
    fine: UNet = unet(1, observed=8)
    seen = list[Any]()
    with watched(fine, lambda args: seen.append(args[2].observed)):
        XCubePipeline([tiny(0), tiny(1, denoiser=fine)]).sample(1, steps=2)
    assert not any(each.any() for each in seen)
