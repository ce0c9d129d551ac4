"""The diffusion of latents: noise, targets and losses of ragged batches, and noise that belongs to shapes."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsevox import Grid, SparseTensor
from xcube.diffusion.objective import Diffusion, DiffusionConfig, Noise
from xcube.networks.conditions import Conditions

# The square of the factor of the clean latents.
KEPT = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)


def shape(seed: int, count: int) -> Grid:
    generator = torch.Generator().manual_seed(seed)
    return Grid.from_coords(torch.randint(-6, 6, (count, 3), generator=generator), batch_size=1)


def normal(grid: Grid, seed: int, channels: int = 3) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    return SparseTensor(grid, torch.randn(grid.num_voxels, channels, generator=generator).double())


# Noise and targets


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 999)), min_size=1, max_size=4))
def test_noise_and_velocity_of_ragged_batches(items: list[tuple[int, int]]) -> None:
    """By the formulas of the papers, with the time of each grid; and back to the latents of every row."""
    grid = Grid.stack([shape(n, count) for n, (count, _) in enumerate(items)])
    latents, noise = normal(grid, 1), normal(grid, 2).feats
    t = torch.tensor([time for _, time in items])
    a = KEPT[t][grid.batch.long()][:, None]
    for prediction in ("v", "epsilon"):
        diffusion = Diffusion(DiffusionConfig(prediction))
        noisy, target = diffusion.add_noise(latents, noise, t), diffusion.target(latents, noise, t)
        torch.testing.assert_close(noisy.feats, a.sqrt() * latents.feats + (1 - a).sqrt() * noise, rtol=1e-4, atol=1e-5)
        if prediction == "v":
            expected = a.sqrt() * noise - (1 - a).sqrt() * latents.feats
            torch.testing.assert_close(target, expected, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(target, noise)
        torch.testing.assert_close(diffusion.denoised(noisy, target, t).feats, latents.feats, rtol=1e-3, atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0, 1000)), min_size=1, max_size=4))
def test_flows_of_ragged_batches_are_straight(items: list[tuple[int, float]]) -> None:
    grid = Grid.stack([shape(n, count) for n, (count, _) in enumerate(items)])
    latents, noise, diffusion = normal(grid, 1), normal(grid, 2).feats, Diffusion(DiffusionConfig("flow"))
    t = torch.tensor([time for _, time in items], dtype=torch.float64)
    fraction = (t / 1000)[grid.batch.long()][:, None]
    noisy, target = diffusion.add_noise(latents, noise, t), diffusion.target(latents, noise, t)
    torch.testing.assert_close(noisy.feats, (1 - fraction) * latents.feats + fraction * noise)
    torch.testing.assert_close(target, noise - latents.feats)
    torch.testing.assert_close(diffusion.denoised(noisy, target, t).feats, latents.feats)


def test_times_cover_all_of_the_diffusion() -> None:
    generator = torch.Generator().manual_seed(0)
    steps = Diffusion().times(20_000, generator)
    assert (steps.dtype, int(steps.min()), int(steps.max())) == (torch.int64, 0, 999)
    for config in (DiffusionConfig("flow", "uniform"), DiffusionConfig("flow"), DiffusionConfig("flow", shift=3.0)):
        times = Diffusion(config).times(20_000, generator)
        assert bool(((times >= 0) & (times <= 1000)).all())
        middle = float(times.median())
        assert middle == pytest.approx(750 if config.shift == 3 else 500, abs=15)
    late = Diffusion(DiffusionConfig(first=900)).times(20_000, generator)
    assert (int(late.min()), int(late.max())) == (900, 999)
    assert float(Diffusion(DiffusionConfig("flow", first=900)).times(2_000, generator).min()) >= 900
    logit = Diffusion(DiffusionConfig("flow")).times(20_000, generator)
    assert float(((logit > 250) & (logit < 750)).float().mean()) == pytest.approx(0.728, abs=0.02)  # P(|N| < log 3)


def test_the_loss_is_the_mean_over_voxels() -> None:
    grid = Grid.stack([shape(0, 30), shape(1, 5)])
    latents, noise, t = normal(grid, 0), normal(grid, 1).feats, torch.tensor([3, 700])
    diffusion = Diffusion()
    seen: list[Any] = []

    def denoiser(x: SparseTensor, time: Tensor, conditions: Conditions) -> SparseTensor:
        seen.extend([x.feats, time, conditions])
        return x.map(lambda z: z * 0 + 1)

    conditions = Conditions()
    loss = diffusion.loss(denoiser, latents, conditions, t, noise)
    assert torch.equal(seen[0], diffusion.add_noise(latents, noise, t).feats)
    assert seen[1] is t
    assert seen[2] is conditions
    torch.testing.assert_close(loss, (diffusion.target(latents, noise, t) - 1).square().mean())
    nothing = SparseTensor(Grid.empty(1), torch.zeros(0, 3))
    assert float(diffusion.loss(denoiser, nothing, conditions, torch.tensor([5]), torch.zeros(0, 3))) == 0


# Noise of shapes


@settings(max_examples=20, deadline=None)
@given(st.permutations(list(range(4))), st.integers(1, 4), st.integers(0, 3))
def test_noise_of_a_shape_does_not_depend_on_its_batch(order: list[int], size: int, level: int) -> None:
    grids = [shape(n, 10 * n) for n in range(4)]  # the first is empty
    expected = {}
    for n, grid in enumerate(grids):
        source = Noise(5, [n], level)
        expected[n] = [source(grid, 3), source(grid, 2)]
    for first in range(0, 4, size):
        batch = order[first : first + size]
        source = Noise(5, batch, level)
        grid = Grid.stack([grids[n] for n in batch])
        for draw, channels in enumerate((3, 2)):
            assert torch.equal(source(grid, channels), torch.cat([expected[n][draw] for n in batch]))


def test_noise_differs_by_seed_shape_and_level() -> None:
    grid = shape(0, 50)
    draws = [Noise(*key)(grid, 3) for key in ((0, [0], 0), (1, [0], 0), (0, [1], 0), (0, [0], 1))]
    assert all(not torch.equal(a, b) for n, a in enumerate(draws) for b in draws[:n])
    many = torch.cat([Noise(0, [n])(shape(n, 100), 3) for n in range(100)])
    assert abs(float(many.mean())) < 0.03
    assert float(many.std()) == pytest.approx(1, abs=0.02)


# Bad input


@pytest.mark.parametrize(("changes", "message"), [
    ({"prediction": "x0"}, "prediction must be one of v, epsilon, flow, got 'x0'"),
    ({"times": "even"}, "times must be one of uniform, logit-normal, got 'even'"),
    ({"shift": 0.0}, "shift must be positive, got 0.0"),
    ({"first": 1000}, "first must be a timestep, 0 to 999, got 1000"),
])  # fmt: skip
def test_bad_diffusions_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionConfig(**changes)


def test_arguments_that_do_not_fit_are_named() -> None:
    grid, diffusion = shape(0, 10), Diffusion()
    latents = normal(grid, 0)
    noise = latents.feats
    with pytest.raises(ValueError, match=r"noise must have shape \[10, 3\], got \[10, 2\]"):
        diffusion.add_noise(latents, noise[:, :2], torch.tensor([0]))
    with pytest.raises(ValueError, match=r"t must have an entry for each of 1 grids, got \[2\]"):
        diffusion.target(latents, noise, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"t must lie in \[0, 999\], got 1000.0 to 1000.0"):
        diffusion.add_noise(latents, noise, 1000)
    with pytest.raises(ValueError, match="t must be integers unless the denoiser predicts a flow"):
        diffusion.add_noise(latents, noise, 0.5)
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1000\]"):
        Diffusion(DiffusionConfig("flow")).add_noise(latents, noise, -1.0)


def test_bad_seeds_are_named() -> None:
    with pytest.raises(TypeError, match="seed"):
        Noise(0.5, [0])  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ValueError, match="seed, shapes and level must not be negative, got 0, -1, 0"):
        Noise(0, [-1])
    with pytest.raises(ValueError, match="grid must have a batch of 2, one per shape, got 1"):
        Noise(0, [0, 1])(shape(0, 3), 2)


def test_large_seeds_do_not_meet_other_shapes() -> None:
    grid = shape(0, 8)
    assert not torch.equal(Noise(3 + (5 << 32), [1], 0)(grid, 2), Noise(3, [5], 1)(grid, 2))
    assert torch.equal(Noise(3 + (5 << 32), [1], 0)(grid, 2), Noise(3 + (5 << 32), [1], 0)(grid, 2))
