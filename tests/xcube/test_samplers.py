"""Sampling of latents: samplers, guidance, known latents, batches of other sizes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sparsevox import Grid, SparseTensor
from xcube.diffusion.objective import Diffusion, DiffusionConfig, Noise, Prediction
from xcube.diffusion.samplers import SamplerConfig, keep_known_latents, sample_latents
from xcube.networks.conditions import Conditions
from xcube.networks.configs import UNetConfig
from xcube.networks.unet import UNet

# The square of the factor of the clean latents.
KEPT = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)


def shape(seed: int, count: int) -> Grid:
    generator = torch.Generator().manual_seed(seed)
    return Grid.from_coords(torch.randint(-6, 6, (count, 3), generator=generator), batch_size=1)


def normal(grid: Grid, seed: int, channels: int = 3) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    return SparseTensor(grid, torch.randn(grid.num_voxels, channels, generator=generator).double())


def linear(center: float) -> Any:
    """The best denoiser of latents that are all equal to `center`, by prediction."""

    def velocity(diffusion: Diffusion, x: SparseTensor, t: Tensor) -> SparseTensor:
        time = t.double()[x.grid.batch.long()][:, None]
        if diffusion.is_flow:
            return x.map(lambda z: (z - center) / (time / 1000).clamp(min=1e-6))
        a = KEPT[time.long()]
        noise = (x.feats - a.sqrt() * center) / (1 - a).sqrt()
        if diffusion.config.prediction == "epsilon":
            return x.replace(noise)
        return x.replace(a.sqrt() * noise - (1 - a).sqrt() * center)

    return velocity


SAMPLERS: dict[str, tuple[Prediction, SamplerConfig]] = {
    "ddim": ("v", SamplerConfig(steps=20)),
    "noisy ddim": ("v", SamplerConfig(steps=50, eta=1.0)),
    "trailing": ("v", SamplerConfig(steps=10, spacing="trailing")),
    "epsilon": ("epsilon", SamplerConfig(steps=20)),
    "ddpm": ("v", SamplerConfig("ddpm", steps=250)),
    "dpm++": ("v", SamplerConfig("dpm++", steps=10)),
    "dpm++ epsilon": ("epsilon", SamplerConfig("dpm++", steps=10, karras=True, order=3)),
    "flow": ("flow", SamplerConfig("flow", steps=5)),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_finds_the_latents(name: str) -> None:
    prediction, sampler = SAMPLERS[name]
    diffusion = Diffusion(DiffusionConfig(prediction))
    grid = Grid.stack([shape(0, 20), shape(1, 0), shape(2, 9)])
    calls: list[tuple[int, int]] = []
    found = sample_latents(
        lambda x, t, conditions: linear(1.5)(diffusion, x, t),
        grid,
        3,
        Noise(0, [0, 1, 2]),
        diffusion=diffusion,
        sampler=sampler,
        watch=lambda done, of: calls.append((done, of)),
    )
    torch.testing.assert_close(found.feats.double(), torch.full((29, 3), 1.5).double()[: grid.num_voxels], atol=0.02,
                               rtol=0)  # fmt: skip
    assert calls == [(n + 1, sampler.steps) for n in range(sampler.steps)]


def test_ancestral_sampling_keeps_the_variance() -> None:
    """Of latents of unit variance, what is seen says nothing about the velocity: the best guess is 0."""
    diffusion, grid = Diffusion(), Grid.full(-8, 8)
    found = sample_latents(lambda x, t, _: x.replace(x.feats * 0), grid, 2, Noise(1, [0]), diffusion=diffusion,
                   sampler=SamplerConfig("ddpm", steps=1000))  # fmt: skip
    assert float(found.feats.std()) == pytest.approx(1, abs=0.03)


@pytest.fixture(scope="module")
def net() -> UNet:
    torch.manual_seed(0)
    config = UNetConfig(latent_channels=3, channels=8, multipliers=(1, 2), attention=(2,), heads=2, categories=2)
    model = UNet(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.requires_grad_(False)


def drawn(net: UNet, shapes: list[int], **changes: Any) -> SparseTensor:
    """Latents of shapes, by the network, in one batch."""
    grid = Grid.stack([shape(n, 15 + 5 * n) for n in shapes])
    some = Conditions(category=torch.tensor([n % 2 for n in shapes]))
    source = Noise(7, shapes)
    options: dict[str, Any] = {"sampler": SamplerConfig(steps=4, eta=1.0), "conditions": some} | changes
    return sample_latents(net, grid, 3, lambda g, c: source(g, c).double(), diffusion=Diffusion(), **options)


def test_batches_of_other_sizes_agree(net: UNet) -> None:
    together = drawn(net, [0, 1, 2])
    alone = torch.cat([drawn(net, [n]).feats for n in range(3)])
    torch.testing.assert_close(together.feats, alone, rtol=1e-9, atol=1e-9)
    assert torch.equal(drawn(net, [0, 1, 2]).feats, together.feats)  # and one batch bit for bit


def test_guidance(net: UNet) -> None:
    without = Conditions(category=torch.tensor([-1, -1]))
    plain = drawn(net, [0, 1]).feats
    assert torch.equal(drawn(net, [0, 1], unconditional=without).feats, plain)
    options: dict[str, Any] = {"steps": 4, "eta": 1.0}
    none = drawn(net, [0, 1], sampler=SamplerConfig(**options, guidance=0.0), unconditional=without).feats
    torch.testing.assert_close(none, drawn(net, [0, 1], conditions=without).feats)
    assert float((none - plain).abs().max()) > 1e-6
    usual = drawn(net, [0, 1], sampler=SamplerConfig(**options, guidance=3.0), unconditional=without).feats
    official = SamplerConfig(**options, guidance=2.0, formula="official")
    torch.testing.assert_close(drawn(net, [0, 1], sampler=official, unconditional=without).feats, usual)
    assert [SamplerConfig(guidance=g, formula="official").weight for g in (0.0, 1.0, 2.0)] == [1.0, 1.0, 3.0]
    assert [SamplerConfig(guidance=g).weight for g in (0.0, 1.0, 2.0)] == [0.0, 1.0, 2.0]


def test_guidance_follows_the_formula() -> None:
    grid, diffusion, seen = shape(0, 20), Diffusion(DiffusionConfig("flow")), []

    def denoiser(x: SparseTensor, t: Tensor, conditions: Conditions) -> SparseTensor:
        seen.append(conditions.category is not None)
        return x.map(lambda z: torch.full_like(z, 5.0 if conditions.category is not None else 2.0))

    options = {"diffusion": diffusion, "conditions": Conditions(category=torch.zeros(1, dtype=torch.long))}
    start = Noise(0, [0])(grid, 3)
    for guidance, weight in ((1.0, 5.0), (3.0, 11.0), (0.0, 2.0)):
        sampler = SamplerConfig("flow", steps=1, guidance=guidance)
        found = sample_latents(denoiser, grid, 3, lambda g, c: start, sampler=sampler,
                               unconditional=Conditions(), **options)  # type: ignore[arg-type]  # fmt: skip
        torch.testing.assert_close(found.feats, start - weight)
    assert seen == [True, True, False, True, False]


@pytest.mark.parametrize(("prediction", "kind"), [("v", "ddim"), ("v", "dpm++"), ("flow", "flow")])
def test_known_latents_are_kept(prediction: Any, kind: Any) -> None:
    grid, diffusion = Grid.stack([shape(0, 30), shape(1, 20)]), Diffusion(DiffusionConfig(prediction))
    known, noise = normal(grid, 3), normal(grid, 4).feats
    mask = torch.rand(grid.num_voxels, generator=torch.Generator().manual_seed(0)) < 0.5
    seen: list[Tensor] = []

    def denoiser(x: SparseTensor, t: Tensor, conditions: Conditions) -> SparseTensor:
        expected = diffusion.add_noise(known, noise, t).feats
        assert torch.allclose(x.feats[mask], expected[mask].to(x.dtype), atol=1e-5)
        seen.append(t)
        return linear(1.5)(diffusion, x, t)

    hook = keep_known_latents(diffusion, known, mask, noise)
    sampler = SamplerConfig(kind, steps=10)
    found = sample_latents(denoiser, grid, 3, Noise(0, [0, 1]), diffusion=diffusion, sampler=sampler, hook=hook)
    assert len(seen) == 10
    assert torch.equal(found.feats[mask], known.feats[mask].to(found.dtype))
    torch.testing.assert_close(found.feats[~mask], torch.full_like(found.feats[~mask], 1.5), atol=0.02, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_latents_are_varied_by_the_last_steps(name: str) -> None:
    prediction, sampler = SAMPLERS[name]
    diffusion, grid = Diffusion(DiffusionConfig(prediction)), Grid.stack([shape(0, 20), shape(1, 9)])
    begin, seen = normal(grid, 3), list[tuple[SparseTensor, float]]()

    def vary(strength: float, denoiser: Any) -> SparseTensor:
        seen.clear()
        return sample_latents(denoiser, grid, 3, lambda g, c: normal(g, 4).feats, diffusion=diffusion, sampler=sampler,
                              start=begin, strength=strength)  # fmt: skip

    def denoiser(x: SparseTensor, t: Tensor, conditions: Conditions) -> SparseTensor:
        seen.append((x, float(t[0])))
        return linear(1.5)(diffusion, x, t)

    half = vary(0.5, denoiser)
    times = [t for _, t in seen]
    assert len(times) == round(sampler.steps / 2)
    assert times == sorted(times, reverse=True)
    # The first call sees the given latents with noise, by the formula of the forward process.
    kept = 1 - times[0] / 1000 if diffusion.is_flow else float(KEPT[round(times[0])].sqrt())
    rest = times[0] / 1000 if diffusion.is_flow else (1 - kept**2) ** 0.5
    noisy = kept * begin.feats + rest * normal(grid, 4).feats
    torch.testing.assert_close(seen[0][0].feats, noisy, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(half.feats, torch.full_like(half.feats, 1.5), atol=0.02, rtol=0)
    whole = vary(1.0, denoiser)
    assert len(seen) == sampler.steps
    torch.testing.assert_close(whole.feats, half.feats, atol=0.04, rtol=0)
    assert torch.equal(vary(0.0, denoiser).feats, begin.feats)
    assert not seen


# Bad input


@pytest.mark.parametrize(("changes", "message"), [
    ({"sampler": "euler"}, "sampler must be one of ddim, ddpm, dpm.., flow, got 'euler'"),
    ({"spacing": "even"}, "spacing must be one of leading, trailing"),
    ({"formula": "other"}, "formula must be one of usual, official"),
    ({"steps": 0}, r"steps must lie in \[1, 1000\], less for dpm\+\+, got 0"),
    ({"steps": 1000, "sampler": "dpm++"}, "less for dpm"),
    ({"steps": 600}, "as 500 and 1000 do, got 600, which would start at 600 of 1000"),
    ({"steps": 30, "spacing": "trailing"}, "steps must divide 1000 with spacing 'trailing', got 30"),
    ({"eta": 2.0}, r"eta must lie in \[0, 1\]"),
    ({"order": 4}, "order in 1 to 3, got 0.0 and 4"),
])  # fmt: skip
def test_bad_samplers_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplerConfig(**changes)


def test_a_mask_that_does_not_fit_is_named() -> None:
    latents = normal(shape(0, 10), 0)
    with pytest.raises(ValueError, match=r"mask must be bool \[10\], got torch.bool \[3\]"):
        keep_known_latents(Diffusion(), latents, torch.ones(3) > 0, latents.feats)


def test_what_a_sampler_cannot_do_is_named(net: UNet) -> None:
    grid, flow = shape(0, 10), Diffusion(DiffusionConfig("flow"))
    with pytest.raises(
        ValueError, match="sampler must be 'flow' if and only if the denoiser predicts a flow, got 'ddim'"
    ):
        sample_latents(net, grid, 3, Noise(0, [0]), diffusion=flow)
    with pytest.raises(
        ValueError, match="sampler must be 'flow' if and only if the denoiser predicts a flow, got 'flow'"
    ):
        sample_latents(net, grid, 3, Noise(0, [0]), diffusion=Diffusion(), sampler=SamplerConfig("flow"))
    with pytest.raises(ValueError, match=r"unconditional must be given for guidance 2.0, got None"):
        sample_latents(net, grid, 3, Noise(0, [0]), diffusion=Diffusion(), sampler=SamplerConfig(guidance=2.0))
    with pytest.raises(ValueError, match=r"hook must have features \[10, 3\], got \[10, 1\]"):
        sample_latents(net, grid, 3, Noise(0, [0]), diffusion=Diffusion(), hook=lambda x, _: x.map(lambda z: z[:, :1]))
    with pytest.raises(ValueError, match=r"denoiser must have features \[10, 3\], got \[10, 1\]"):
        sample_latents(lambda x, *_: x.map(lambda z: z[:, :1]), grid, 3, Noise(0, [0]), diffusion=Diffusion())
    with pytest.raises(ValueError, match=r"noise must have features \[10, 3\], got \[10, 2\]"):
        sample_latents(net, grid, 3, lambda g, c: Noise(0, [0])(g, 2), diffusion=Diffusion())
    with pytest.raises(ValueError, match=r"start must have features \[10, 3\], got \[10, 2\]"):
        sample_latents(net, grid, 3, Noise(0, [0]), diffusion=Diffusion(), start=normal(grid, 0, channels=2))
    elsewhere = normal(Grid.from_coords(grid.ijk + 1, batch_size=1), 0)
    with pytest.raises(ValueError, match=r"start must have the voxels of grid, got"):
        sample_latents(net, grid, 3, Noise(0, [0]), diffusion=Diffusion(), start=elsewhere)
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"strength must lie in \[0, 1\], and be 1 without start, got"):
            sample_latents(net, grid, 3, Noise(0, [0]), diffusion=Diffusion(), start=normal(grid, 0), strength=wrong)
    with pytest.raises(ValueError, match=r"be 1 without start, got 0.5"):
        sample_latents(net, grid, 3, Noise(0, [0]), diffusion=Diffusion(), strength=0.5)
