"""Training of denoisers: on latents in memory or not, cut short and taken up again, with every kind of condition."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsevox import Grid, SparseTensor, Voxels
from tests.xcube.balls import SIDE, ball, ball_dataset
from xcube.data.loading import ShapeFolder
from xcube.diffusion.objective import Diffusion, DiffusionConfig
from xcube.diffusion.samplers import SamplerConfig
from xcube.networks.conditions import Conditions, Text
from xcube.networks.configs import UNetConfig, VAEConfig
from xcube.networks.pretrained import from_pretrained, read_config, save_pretrained
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.training.config import TrainConfig
from xcube.training.denoiser import DenoiserModule
from xcube.training.latents import SHAPE_INDEX, LatentDataset, ShapeConditions, category_of, first_value
from xcube.training.run import train_module
from xcube.training.train import train_denoiser

SPARSE = VAEConfig(voxel_size=1 / SIDE, channels=(8, 8), latent_channels=2, hidden=4)
DENSE = VAEConfig(voxel_size=1 / SIDE, channels=(8, 8, 8), latent_channels=2, hidden=4, dense_neck=(2, 2, 2))
NET = UNetConfig(latent_channels=2, channels=8, multipliers=(1, 2), attention=(), heads=2, position="ijk", normal=True)
BOX = UNetConfig(latent_channels=2, channels=8, multipliers=(1, 2), attention=(1,), heads=2, dense=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ball_dataset(tmp_path_factory.mktemp("data"), SIDE)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(SPARSE, tmp_path_factory.mktemp("vae"))


def saved(config: VAEConfig, folder: Path, **metadata: Any) -> Path:
    torch.manual_seed(0)
    save_pretrained(VAE(config), folder, **({"latent_scale": 2.0} | metadata))
    return folder


def config(**changes: Any) -> TrainConfig:
    plain = {"steps": 4, "batch_size": 2, "warmup": 1, "val_every": 1000, "save_every": 1, "seed": 3}
    return TrainConfig(**(plain | changes))


def run(data: Path, out: Path, vae: Path, **changes: Any) -> UNet:
    options: dict[str, Any] = {"model": NET, "train": config(), "quiet": True} | changes
    return train_denoiser(data, out, vae, **options)


def state(folder: Path) -> dict[str, torch.Tensor]:
    return from_pretrained(folder, UNet).state_dict()


class Stop(Exception):
    """Pulls the plug."""


class Fragile(DenoiserModule):
    """Fails at a step."""

    def training_step(self, batch: Voxels, index: int) -> torch.Tensor:
        if self.global_step == 2:
            raise Stop
        return super().training_step(batch, index)


def test_a_run_that_was_cut_short_ends_as_if_it_had_not(data: Path, vae: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "whole", vae)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xcube.training.denoiser.DenoiserModule", Fragile)
        with pytest.raises(Stop):
            run(data, tmp_path / "cut", vae)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    run(data, tmp_path / "cut", vae)
    whole, cut = state(tmp_path / "whole"), state(tmp_path / "cut")
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())
    metadata = read_config(tmp_path / "cut")["metadata"]
    assert (metadata["steps"], metadata["latent_scale"], metadata["diffusion"]["prediction"]) == (4, 2.0, "v")


def test_latents_in_memory_are_those_of_every_step(
    data: Path, vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to rounding: they come from batches of other sizes. Adam makes whole steps of it where a gradient is 0."""
    loss = Diffusion.loss
    seen: list[tuple[SparseTensor, torch.Tensor | None, torch.Tensor]] = []

    def look(self: Diffusion, net: Any, x: SparseTensor, conditions: Conditions, t: Any, noise: Any) -> torch.Tensor:
        seen.append((x, conditions.normal, t))
        return loss(self, net, x, conditions, t, noise)

    monkeypatch.setattr(Diffusion, "loss", look)
    # Shapes come in an order that depends on their sizes and the budget, so that must not bind.
    for cache in (True, False):
        run(data, tmp_path / str(cache), vae, cache=cache)
    steps = len(seen) // 2
    assert steps >= config().steps
    for (x, normal, t), (y, wanted, time) in zip(seen[:steps], seen[steps:], strict=True):
        assert x.grid.same_voxels(y.grid)
        assert torch.equal(t, time)
        torch.testing.assert_close(x.feats, y.feats, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(normal, wanted, rtol=1e-5, atol=1e-5)


def test_prepared_shapes(data: Path) -> None:
    shapes = ShapeFolder[Voxels](data, "train")
    prepared, calls = LatentDataset(shapes), []

    def encode(voxels: Voxels) -> Voxels:
        calls.append(voxels.batch_size)
        return Voxels(
            voxels.grid.coarsen(2), {SHAPE_INDEX: first_value(voxels, SHAPE_INDEX)[voxels.grid.coarsen(2).batch.long()]}
        )

    assert [int(prepared[n].attributes[SHAPE_INDEX][0]) for n in range(len(prepared))] == list(range(6))
    prepared.encode(encode, config(batch_size=4))
    assert calls == [4, 2]
    for n in range(6):
        assert prepared[n].grid.same_voxels(shapes[n].grid.coarsen(2))
        assert prepared.sizes[n] == prepared[n].num_voxels
        assert first_value(prepared[n], SHAPE_INDEX).tolist() == [n]
    assert len(LatentDataset(shapes, 2)) == 2


def test_the_number_of_an_empty_shape_is_none_of_the_next() -> None:
    grid = Grid.from_coords(torch.tensor([[0, 0, 0, 0], [2, 0, 0, 0]]), batch_size=4)
    assert first_value(Voxels(grid, {SHAPE_INDEX: torch.tensor([5, 7])}), SHAPE_INDEX).tolist() == [5, 0, 7, 0]


@pytest.mark.parametrize("prediction", ["v", "epsilon", "flow"])
def test_dense_latents_are_learned(data: Path, tmp_path: Path, prediction: Any) -> None:
    folder = saved(DENSE, tmp_path / "vae")
    options = {"model": BOX, "diffusion": DiffusionConfig(prediction), "train": config(steps=2)}
    net = run(data, tmp_path / "run", folder, **options)
    assert all(bool(value.isfinite().all()) for value in net.state_dict().values())
    assert float(net.state_dict()["out.conv.weight"].abs().sum()) > 0


def test_the_error_falls(data: Path, vae: Path, tmp_path: Path) -> None:
    found = []
    for steps in (1, 20):
        train_config = config(steps=steps, learning_rate=2e-2, val_every=steps, batch_size=2, save_every=1000)
        run(data, tmp_path / str(steps), vae, train=train_config)
        found.append(json.loads((tmp_path / str(steps) / "metrics.json").read_text())["loss"])
    assert found[1] < 0.9 * found[0]


def test_conditions_of_whole_shapes_reach_the_network(data: Path, vae: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = UNetConfig(latent_channels=2, channels=8, multipliers=(1,), heads=2, categories=2, text_channels=3)
    net = UNet(model)
    names = [entry.name for entry in ShapeFolder[Voxels](data, "train").entries]
    whole = ShapeConditions(names, ("small", "large"), {names[0]: ["one"], names[4]: ["two"]}, Words())  # type: ignore[arg-type]
    seen: list[Conditions] = []
    net.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    module = DenoiserModule(
        net,
        config(steps=3, batch_size=6),
        from_pretrained(vae, VAE),
        scale=2.0,
        shape_conditions={"train": whole, "val": whole},
        drop=0.5,
    )
    train_module(module, data, tmp_path, quiet=True)
    words = {"one": 1.0, "two": 2.0, "": 0.0}
    dropped = 0
    for conditions in seen[:3]:
        assert conditions.category is not None
        assert conditions.text is not None
        assert set(conditions.category.tolist()) <= {-1, 0, 1}
        assert set(conditions.text.tokens[:, 0, 0].tolist()) <= set(words.values())
        dropped += int((conditions.category == -1).sum())
    assert 0 < dropped < 18


class Words:
    """Embeds a prompt as its number."""

    channels = 3

    def __call__(self, prompts: list[str]) -> Text:
        numbers = [["", "one", "two"].index(prompt) for prompt in prompts]
        tokens = torch.tensor(numbers, dtype=torch.float32)[:, None, None].expand(-1, 2, 3)
        return Text(tokens, torch.ones(len(prompts), 2, dtype=torch.bool))


def test_whole_shapes() -> None:
    whole = ShapeConditions(["b-0", "a/1", "c"], ("a", "b"), {"c": ["two"], "b-0": ["one"]}, Words())  # type: ignore[arg-type]
    found = whole.of(torch.tensor([2, 1, 0]))
    assert found["category"].tolist() == [-1, 0, 1]
    assert found["text"].tokens[:, 0, 0].tolist() == [2.0, 0.0, 1.0]
    assert category_of("ab", ("b", "a", "ab")) == 1
    assert ShapeConditions(["a"]).of(torch.tensor([0])) == {}


def test_a_part_of_the_shapes_is_spread_over_the_dataset(data: Path) -> None:
    """Neighboring names are alike, and validation loads a part of the shapes."""
    shapes = ShapeFolder[Voxels](data, "train")
    some = LatentDataset(shapes, 3)
    assert some.items == [0, 2, 5]
    assert some.sizes == [shapes.sizes[item] for item in some.items]
    for item, index in enumerate(some.items):
        voxels = some[item]
        assert voxels.grid.same_voxels(shapes[index].grid)
        assert first_value(voxels, SHAPE_INDEX).tolist() == [index]
    assert LatentDataset(shapes, 100).items == LatentDataset(shapes).items == list(range(6))


def test_dropping_follows_from_the_step_alone(data: Path, vae: Path) -> None:
    net = UNet(UNetConfig(latent_channels=2, channels=8, multipliers=(1,), heads=2))
    module = DenoiserModule(net, config(), from_pretrained(vae, VAE), scale=2.0)
    module.train()
    assert not module.vae.training
    voxels = ball(4.0)
    losses = [float(module.losses(voxels, 0, torch.Generator().manual_seed(seed)).total.detach()) for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_conditions_in_training_have_noise_or_are_unknown(vae: Path) -> None:
    net = UNet(UNetConfig(latent_channels=2, channels=8, multipliers=(1,), heads=2, normal=True, fill=True))
    seen: list[Conditions] = []
    net.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    one = ball(4.0)
    hidden = torch.arange(one.num_voxels) % 3 == 0
    one = one.with_attributes(normal=torch.where(hidden[:, None], 0, one.attributes["normal"]))
    voxels = Voxels.stack([one] * 40)
    variants: list[dict[str, Any]] = [{}, {"normal_noise": 0.3, "fill_noise": 0.1}, {"fill_drop": 0.25}]
    exact, noisy, dropped = (
        DenoiserModule(net, config(), from_pretrained(vae, VAE), scale=2.0, **options) for options in variants
    )
    for module in (exact, noisy, dropped):
        module.train()
        module.losses(voxels, 0, torch.Generator().manual_seed(0))
    plain, other, partly = seen
    assert plain.fill is not None
    assert other.fill is not None
    assert partly.fill is not None
    assert plain.normal is not None
    assert other.normal is not None
    known = exact.encode(voxels)
    assert torch.equal(plain.fill, known.attributes["fill"])
    given = plain.normal.norm(dim=1) > 0
    assert float((other.normal - plain.normal)[given].std()) == pytest.approx(0.3, rel=0.05)
    assert torch.equal(other.normal[~given], plain.normal[~given])
    inner = (plain.fill > 0.2) & (plain.fill < 0.8)
    assert int(inner.sum()) > 100
    assert float((other.fill - plain.fill)[inner].std()) == pytest.approx(0.1, rel=0.2)
    assert 0 <= float(other.fill.min()) <= float(other.fill.max()) <= 1
    unknown = torch.stack([(values < 0).all() for values in partly.fill.split(known.grid.offsets.diff().tolist())])
    assert 3 <= int(unknown.sum()) <= 20
    assert torch.equal(partly.fill < 0, unknown[known.grid.batch.long()])
    seen.clear()
    noisy.eval()
    noisy.losses(voxels, 0, torch.Generator().manual_seed(0))  # a validation has exact conditions
    assert seen[0].fill is not None
    assert torch.equal(seen[0].fill, plain.fill)


def test_means_are_learned_without_noise_of_the_posterior(vae: Path) -> None:
    net = UNet(UNetConfig(latent_channels=2, channels=8, multipliers=(1,), heads=2))
    seen: list[SparseTensor] = []
    net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    voxels = ball(4.0)
    for latents in ("means", "samples"):
        module = DenoiserModule(net, config(), from_pretrained(vae, VAE), scale=2.0, latents=latents)
        module.diffusion.times = lambda count, generator: torch.zeros(count, dtype=torch.int64)  # type: ignore[method-assign]
        module.losses(voxels, 0, torch.Generator().manual_seed(0))
    mean = module.encode(voxels).attributes["mean"] * 2.0
    assert float((seen[0].feats - mean).abs().mean()) < 0.05 < float((seen[1].feats - mean).abs().mean())


# Bad input


@pytest.mark.parametrize(("changes", "message"), [
    ({"fill_drop": -1.0}, r"fill_drop must lie in \[0, 1\], got -1.0"),
    ({"normal_noise": float("nan")}, "normal_noise must not be negative, got nan"),
    ({"fill_noise": 0.1}, "fill_noise must be 0 for a model that does not take fill, got 0.1"),
    ({"fill_drop": 0.1}, "fill_drop must be 0 for a model that does not take fill, got 0.1"),
    ({"latents": "sample"}, "latents must be one of samples, means, got 'sample'"),
    ({"sampler": SamplerConfig("flow")}, "sampler must not be 'flow' for a denoiser that predicts 'v'"),
    ({"diffusion": DiffusionConfig(first=900)}, "sampler must call the denoiser at times of at least 900"),
    ({"fill_noise": -1.0}, "fill_noise must not be negative, got -1.0"),
    ({"level": 4}, "level must be an index of the levels"),
    ({"model": UNetConfig(latent_channels=3)}, "latent_channels of the VAE, 2, got 3"),
    ({"model": BOX}, "model must not be dense: the latents of a VAE without dense_neck"),
    ({"model": UNetConfig(latent_channels=2, extra=1)}, "model must have extra 0"),
    ({"model": UNetConfig(latent_channels=2, num_labels=4)}, "the model needs, got .* without \\['label'\\]"),
    ({"categories": ("a",)}, "categories must have 0 entries, as the model"),
    ({"model": UNetConfig(latent_channels=2, text_channels=8)}, "text_channels of the text model, 0"),
    ({"drop": 2.0}, r"drop must lie in \[0, 1\], got 2.0"),
])  # fmt: skip
def test_what_does_not_fit_is_named(
    data: Path, vae: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(data, tmp_path, vae, **changes)
    assert not (tmp_path / "last.ckpt").exists()


def test_a_vae_of_another_size_is_refused(data: Path, tmp_path: Path) -> None:
    other = saved(VAEConfig(channels=(8, 8), latent_channels=2, hidden=4), tmp_path / "vae")
    with pytest.raises(ValueError, match=r"vae must have the voxel_size of the level, 0.0625, got 0.015625"):
        run(data, tmp_path / "run", other)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        run(data, tmp_path / "run", tmp_path / "none")


def test_the_scale_is_computed_if_the_vae_has_none(data: Path, tmp_path: Path) -> None:
    folder = saved(SPARSE, tmp_path / "vae", latent_scale=None)
    run(data, tmp_path / "run", folder, train=config(steps=1))
    scale = read_config(tmp_path / "run")["metadata"]["latent_scale"]
    model, parts, shapes = from_pretrained(folder, VAE).requires_grad_(False), [], ShapeFolder[Voxels](data, "train")
    for number in range(len(shapes)):
        posterior = model.encode(shapes[number])
        parts.append(posterior.sample(torch.randn(posterior.mean.shape)).feats)
    assert scale == pytest.approx(1 / float(torch.cat(parts).std()), rel=0.1)
