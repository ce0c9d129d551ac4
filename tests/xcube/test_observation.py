"""Partial observations: states of voxels, volumes, and the random ones that denoisers are trained on."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsevox import Grid, SparseTensor, Voxels
from tests.xcube.cascades import same_bits, tiny, unet, vae, watched
from xcube.diffusion.objective import Noise
from xcube.geometry.observation import children, from_volume, states, to_volume
from xcube.networks.conditions import Conditions
from xcube.networks.configs import UNetConfig
from xcube.networks.pretrained import save_pretrained
from xcube.networks.unet import UNet
from xcube.pipeline.options import SampleOptions
from xcube.pipeline.pipeline import XCubePipeline
from xcube.training.config import TrainConfig
from xcube.training.observations import random_observations, visible

FACTOR = (2, 3, 4)


def latent(count: int = 2) -> Grid:
    size = tuple(n / 12 for n in FACTOR)
    origin = tuple(s / 2 for s in size)
    return Grid.full((-1, 0, -2), (1, 3, 2), batch_size=count, voxel_size=size, origin=origin)


def fine(places: list[tuple[int, ...]]) -> Grid:
    coords = torch.tensor(sorted(places), dtype=torch.int32).view(-1, 4)
    return Grid.from_coords(coords, batch_size=2, voxel_size=1 / 12, origin=1 / 24)


cells = st.lists(st.tuples(st.integers(0, 1), st.integers(-2, 1), st.integers(0, 8), st.integers(-8, 7)), unique=True)


@given(cells, cells)
@settings(max_examples=40, deadline=None)
def test_states(full: list[tuple[int, ...]], empty: list[tuple[int, ...]]) -> None:
    grid = latent()
    found = states(grid.coords, FACTOR, fine(full), fine(empty))
    alone = states(grid.coords, FACTOR, fine(full))
    assert found.shape == (grid.num_voxels, 24)
    for row, (batch, i, j, k) in enumerate(grid.coords.tolist()):
        for number, (a, b, c) in enumerate(product(range(2), range(3), range(4))):
            place = (batch, 2 * i + a, 3 * j + b, 4 * k + c)
            assert children(grid.coords, FACTOR)[row, number].tolist() == list(place)
            assert found[row, number] == (1 if place in full else -1 if place in empty else 0)
            assert alone[row, number] == (1 if place in full else -1)
        if row > 3:
            break


def test_volumes_and_back() -> None:
    grid = latent()
    rows = torch.arange(grid.num_voxels * 24).view(-1, 24)
    volume = to_volume(grid, rows, FACTOR)
    assert volume.shape == (2, 4, 9, 16)
    assert torch.equal(from_volume(grid, volume, FACTOR), rows)
    where = children(grid.coords, FACTOR).view(-1, 4).long()
    assert torch.equal(volume[where[:, 0], where[:, 1] + 2, where[:, 2], where[:, 3] + 8], rows.view(-1))


def test_a_camera_along_x() -> None:
    full = torch.zeros(6, 5, 4, dtype=torch.bool)
    full[2, 1, 1] = full[4, 1, 1] = True
    seen = visible(full, torch.tensor([1.0, 0.0, 0.0]))
    column = seen[:, 1, 1].tolist()
    assert column == [False, False, False, False, True, True]
    assert seen.sum() == seen.numel() - 4
    assert visible(full, torch.tensor([-1.0, 0.0, 0.0]))[:, 1, 1].tolist() == [True, True, True, False, False, False]
    assert visible(torch.zeros_like(full), torch.tensor([0.0, 0.6, 0.8])).all()


@given(st.integers(0, 10**6), st.sampled_from(range(3)), st.sampled_from((-1.0, 1.0)))
@settings(max_examples=30, deadline=None)
def test_what_a_camera_sees_along_an_axis(seed: int, axis: int, sign: float) -> None:
    """The first voxel of each line, and what lies before it."""
    full = torch.rand(7, 6, 5, generator=torch.Generator().manual_seed(seed)) < 0.1
    found = visible(full, sign * torch.eye(3)[axis]).movedim(axis, 2)
    for line, seen in zip(
        full.movedim(axis, 2).reshape(-1, full.shape[axis]), found.reshape(-1, full.shape[axis]), strict=True
    ):
        order = list(range(len(line)))[:: -1 if sign > 0 else 1]  # from the camera
        first = next((n for n, place in enumerate(order) if line[place]), len(order))
        assert [bool(seen[place]) for place in order] == [n <= first for n in range(len(order))]


@given(st.integers(0, 10**6), st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda d: sum(x * x for x in d) > 0.01))
@settings(max_examples=30, deadline=None)
def test_what_a_camera_sees(seed: int, direction: tuple[float, float, float]) -> None:
    """No voxel lies on the line to the camera, which is followed in steps of the length of a voxel."""
    full = torch.rand(6, 5, 7, generator=torch.Generator().manual_seed(seed)) < 0.1
    toward = torch.tensor(direction) / torch.tensor(direction).norm()
    seen = visible(full, toward)
    for place in torch.cartesian_prod(*[torch.arange(n) for n in full.shape])[::7].tolist():
        blocked = False
        for step in range(1, 12):
            ahead = [p + round(float(step * t)) for p, t in zip(place, toward, strict=True)]
            if all(0 <= a < n for a, n in zip(ahead, full.shape, strict=True)):
                blocked |= bool(full[tuple(ahead)])
        assert bool(seen[tuple(place)]) != blocked


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_random_observations(seed: int) -> None:
    """They depend on the seed only, and some of the shape is observed, but rarely all of it."""
    full = torch.zeros(24, 16, 16, 16, dtype=torch.bool)
    full[:, 4:12, 3:13, 2:14] = True
    full[:, 5:11, 4:12, 3:13] = False
    seen = random_observations(full, 0.5, torch.Generator().manual_seed(seed))
    assert torch.equal(seen, random_observations(full, 0.5, torch.Generator().manual_seed(seed)))
    nothing = ~seen.flatten(1).any(1)
    assert 2 <= int(nothing.sum()) <= 22
    part = (seen & full).flatten(1).sum(1)[~nothing] / full[0].sum()
    assert float(part.min()) > 0
    assert float(part.float().mean()) < 0.9
    assert not random_observations(full, 1.0, torch.Generator().manual_seed(seed)).any()
    assert random_observations(full, 0.0, torch.Generator().manual_seed(seed)).flatten(1).any(1).all()
    empty = torch.zeros(8, 8, 8, 8, dtype=torch.bool)
    assert random_observations(empty, 0.0, torch.Generator().manual_seed(seed)).shape == empty.shape


SMALL: dict[str, Any] = {"channels": 8, "multipliers": (1, 2), "attention": (2,), "heads": 2, "dense": True}


def test_a_network_begins_with_the_weights_of_one_without_observations(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="training")
    from xcube.training.denoiser import DenoiserModule
    from xcube.training.initial import load_initial

    torch.manual_seed(0)
    plain = UNet(UNetConfig(latent_channels=2, **SMALL))
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_pretrained(plain, tmp_path / "plain")
    module = DenoiserModule(UNet(UNetConfig(latent_channels=2, observed=8, **SMALL)), TrainConfig(), vae(0), scale=1.0)
    load_initial(module, tmp_path / "plain", tmp_path / "out")
    grid = Grid.full((-2, -2, -2), (2, 2, 2), batch_size=2, voxel_size=1 / 4, origin=1 / 8)
    noisy = SparseTensor(grid, Noise(0, [0, 1])(grid, 2))
    seen = Conditions(observed=torch.randn(grid.num_voxels, 8).sign())
    assert torch.allclose(module.net(noisy, 500.0, seen).feats, plain(noisy, 500.0).feats, atol=1e-6)
    # Later, they have.
    torch.nn.init.normal_(module.net.enter.get_parameter("weight"))
    nothing = Conditions(observed=torch.zeros(grid.num_voxels, 8))
    assert not torch.allclose(module.net(noisy, 500.0, seen).feats, module.net(noisy, 500.0, nothing).feats)
    with pytest.raises(ValueError, match="conditions must be observed, as the model takes, got nothing"):
        module.net(noisy, 500.0)
    # The other way around, something would be lost.
    save_pretrained(module.net, tmp_path / "seen")
    other = DenoiserModule(UNet(UNetConfig(latent_channels=2, **SMALL)), TrainConfig(), vae(0), scale=1.0)
    with pytest.raises(ValueError, match="observed must be 0, got 8"):
        load_initial(other, tmp_path / "seen", tmp_path / "out")
    with pytest.raises(ValueError, match="observed must be 8, as the VAE decodes from a latent voxel"):
        DenoiserModule(UNet(UNetConfig(latent_channels=2, observed=64, **SMALL)), TrainConfig(), vae(0), scale=1.0)
    taking = UNetConfig(latent_channels=2, observed=8, **SMALL)
    with pytest.raises(ValueError, match=r"unobserved must lie in \[0, 1\], got 1.5"):
        DenoiserModule(UNet(taking), TrainConfig(), vae(0), scale=1.0, unobserved=1.5)


def test_training_with_observations() -> None:
    """The condition is right wherever something is observed; a given fraction of the shapes is not."""
    pytest.importorskip("lightning", reason="training")
    from xcube.training.denoiser import DenoiserModule

    config = UNetConfig(latent_channels=2, observed=8, **SMALL)
    module = DenoiserModule(UNet(config), TrainConfig(), vae(0), scale=1.0, unobserved=0.25)
    ijk = torch.cartesian_prod(*[torch.arange(-2, 3)] * 3)
    one = Voxels(
        Grid.from_coords(ijk[ijk.abs().amax(1) == 2], voxel_size=1 / 8, origin=1 / 16),
        {"normal": torch.nn.functional.normalize(ijk[ijk.abs().amax(1) == 2].float(), dim=1)},
    )
    shapes = Voxels.stack([one] * 64)
    seen: list[torch.Tensor] = []
    with watched(module.net, lambda args: seen.append(args[2].observed)):
        module.losses(shapes, 0, torch.Generator().manual_seed(0))
    [observed] = seen
    truth = states(module.encode(shapes).grid.coords, (2, 2, 2), shapes.grid)
    known = observed != 0
    assert torch.equal(observed[known], truth[known])
    something = known.view(64, -1).any(1)
    assert 0.55 < float(something.float().mean()) < 0.95
    with pytest.raises(ValueError, match="unobserved must be None for a model that takes no observations"):
        DenoiserModule(UNet(UNetConfig(latent_channels=2, **SMALL)), TrainConfig(), vae(0), scale=1.0, unobserved=0.5)


def test_levels_whose_denoiser_takes_observations() -> None:
    assert XCubePipeline([tiny(0, denoiser=unet(0, observed=8))]).resolutions == (8,)
    assert XCubePipeline([tiny(0), tiny(1, denoiser=unet(1, observed=8))]).resolutions == (8, 16)
    with pytest.raises(ValueError, match=r"must take observations of the 8 voxels in a latent voxel, or none, got 64"):
        XCubePipeline([tiny(0, denoiser=unet(0, observed=64))])


def test_conditions_that_the_user_changes() -> None:
    pipeline = XCubePipeline([tiny(0, denoiser=unet(0, observed=8))])
    options = SampleOptions(steps=2, quiet=True)
    changed = options.with_changes(conditions={0: lambda conditions, grid, numbers: conditions})
    assert same_bits(pipeline.sample(1, options), pipeline.sample(1, changed))
