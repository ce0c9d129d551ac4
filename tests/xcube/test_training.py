"""Training: averaged weights, batches, the refiner on noisy decodes, learning rates, and options that are refused."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsevox import Grid, SparseTensor, Voxels
from tests.xcube.balls import SIDE, ball
from xcube.data.build import build
from xcube.data.hierarchy import Box
from xcube.data.loading import ShapeFolder
from xcube.data.sources import Source
from xcube.diffusion.schedule import add_ddpm_noise, official_schedule
from xcube.networks.configs import RefinerConfig, VAEConfig
from xcube.networks.losses import LossConfig
from xcube.networks.pretrained import from_pretrained, read_config, save_pretrained
from xcube.networks.refiner import Refiner, refiner_losses
from xcube.networks.vae import VAE
from xcube.training.config import TrainConfig
from xcube.training.data import training_batches
from xcube.training.modules import VAEModule, noisy_decode
from xcube.training.run import train_module
from xcube.training.run_folder import CHECKPOINT
from xcube.training.train import train_refiner, train_vae

MODEL = VAEConfig(voxel_size=1 / SIDE, channels=(8, 8), latent_channels=2, hidden=4)
LOSS = LossConfig(structure=1.0, normal=0.3, kl=1e-3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    radii = torch.linspace(2.5, 5.5, 9).tolist()
    sources = [
        Source(f"ball-{n}", partial(ball, r), split="val" if n % 4 == 3 else "train") for n, r in enumerate(radii)
    ]
    assert len(build(sources, folder, Box((SIDE,))).built) == 9
    return folder


def config(**changes: Any) -> TrainConfig:
    plain = {"steps": 6, "batch_size": 2, "warmup": 2, "val_every": 1000, "save_every": 1, "seed": 3}
    return TrainConfig(**(plain | changes))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return from_pretrained(folder, VAE).state_dict()


def run_vae(data: Path, out: Path, **changes: Any) -> VAE:
    return train_vae(data, out, model=MODEL, loss=LOSS, train=config(**changes), quiet=True)


def test_another_seed_gives_another_result(data: Path, tmp_path: Path) -> None:
    first, second = (run_vae(data, tmp_path / str(seed), seed=seed, steps=2).state_dict() for seed in (0, 1))
    assert not all(torch.equal(value, second[name]) for name, value in first.items())


def test_what_is_kept_is_the_average(data: Path, tmp_path: Path) -> None:
    module = VAEModule(VAE(MODEL), config(steps=3, ema=0.5, warmup=0), LOSS)
    seen: list[torch.Tensor] = []
    name = "encoder.enter.weight"

    class Watch(VAEModule):
        def on_before_zero_grad(self, optimizer: Any) -> None:
            seen.append(self.net.state_dict()[name].clone())

    module.__class__ = Watch
    train_module(module, data, tmp_path, quiet=True)
    last = torch.load(tmp_path / CHECKPOINT, weights_only=False)["current_model_state"][f"net.{name}"]
    kept = weights(tmp_path)[name]
    assert not torch.equal(kept, last)
    low, high = torch.stack([*seen, last]).amin(0), torch.stack([*seen, last]).amax(0)
    assert bool(((kept >= low - 1e-6) & (kept <= high + 1e-6)).all())


def test_batches_go_on_where_they_stopped(data: Path) -> None:
    shapes, options = ShapeFolder(data), config(batch_size=1)
    every = [b.num_voxels for b, _ in zip(training_batches(shapes, options, 0, 0, 1), range(15), strict=False)]
    for start in (1, 5, 6, 13):
        later = [b.num_voxels for b, _ in zip(training_batches(shapes, options, start, 0, 1), range(2), strict=False)]
        assert later == every[start : start + 2]
    assert sorted(every[:7]) == sorted(every[7:14])  # an epoch is every shape once
    ranks = [
        [b.num_voxels for b, _ in zip(training_batches(shapes, options, 0, rank, 2), range(3), strict=False)]
        for rank in (0, 1)
    ]
    assert [size for pair in zip(*ranks, strict=True) for size in pair] == every[:6]


# The refinement network


def test_refinement_is_trained_on_noisy_decodes(data: Path, tmp_path: Path) -> None:
    run_vae(data, tmp_path / "vae")
    model = RefinerConfig(voxel_size=1 / SIDE, channels=(8, 8, 8))
    net = train_refiner(data, tmp_path / "refine", tmp_path / "vae", model=model, train=config(), quiet=True)
    again = from_pretrained(tmp_path / "refine", Refiner)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())
    assert read_config(tmp_path / "refine")["metadata"]["latent_scale"] > 0


def test_noisy_decodes_follow_from_the_generator() -> None:
    torch.manual_seed(0)
    vae, voxels = VAE(MODEL).eval(), Voxels.stack([ball(4.0), ball(3.0)])
    with torch.no_grad():
        first, second = (noisy_decode(vae, voxels, torch.Generator().manual_seed(1), scale=2.0) for _ in range(2))
    assert first.grid.same_voxels(second.grid)


def test_noise_is_that_of_the_schedule() -> None:
    grid = Grid.stack([ball(4.0).grid, ball(3.0).grid])
    latents, noise = torch.randn(grid.num_voxels, 3), torch.randn(grid.num_voxels, 3)
    share = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    for scale in (1.0, 0.5):
        result = add_ddpm_noise(SparseTensor(grid, latents), torch.tensor([10, 999]), noise, scale).feats
        a = torch.tensor([share[10], share[999]])[grid.batch.long()][:, None]
        expected = (a.sqrt() * latents * scale + (1 - a).sqrt() * noise) / scale
        torch.testing.assert_close(result, expected.float(), rtol=1e-4, atol=1e-4)
    assert official_schedule().config.prediction_type == "v_prediction"


def test_refiner_adds_removes_and_learns() -> None:
    torch.manual_seed(0)
    truth, generator = ball(4.0), torch.Generator().manual_seed(0)
    rough = truth.prune(torch.rand(truth.num_voxels, generator=generator) < 0.7)
    loose = Grid.from_coords(torch.tensor([[6, 6, 6], [-7, 6, -7]]), voxel_size=1 / SIDE, origin=0.5 / SIDE)
    grid = rough.grid | loose
    normal = torch.zeros(grid.num_voxels, 3)
    normal[grid.index(rough.grid.coords)] = rough.attributes["normal"]
    rough = Voxels(grid, {"normal": normal})
    net = Refiner(RefinerConfig(voxel_size=1 / SIDE, channels=(8, 8, 16)))
    assert net.refine(rough).grid.same_voxels(grid)  # at first the decode is left as it is
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        refiner_losses(net(rough), truth).total.backward()
        optimizer.step()
    better = net.refine(rough).grid
    assert (truth.grid - better).num_voxels < 0.1 * truth.num_voxels
    assert not better.contains(loose.coords).any()
    candidates = net(rough).candidates.grid
    assert candidates.same_voxels(grid.dilate(1))


def test_voxels_exist_from_the_threshold_on() -> None:
    torch.manual_seed(0)
    voxels, found = ball(4.0), []
    weights = Refiner(RefinerConfig(voxel_size=1 / SIDE, channels=(8, 8, 8))).state_dict()
    weights["keep.out.weight"].normal_(std=2.0)
    for threshold in (0.2, 0.5, 0.9):
        net = Refiner(RefinerConfig(voxel_size=1 / SIDE, channels=(8, 8, 8), threshold=threshold))
        net.load_state_dict(weights)
        refined = net(voxels)
        exists = refined.candidates.grid.ijk[refined.logits.sigmoid() > threshold]
        assert torch.equal(exists, refined.voxels.grid.ijk)
        found.append(len(exists))
    assert found[0] > found[1] > found[2] > 0
    for threshold in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"threshold must lie in \(0, 1\), got"):
            RefinerConfig(threshold=threshold)


def test_refining_nothing_gives_nothing() -> None:
    net = Refiner(RefinerConfig(voxel_size=1 / SIDE, channels=(8, 8, 8)))
    empty = Voxels(Grid.empty(2, voxel_size=1 / SIDE, origin=0.5 / SIDE), {"normal": torch.zeros(0, 3)})
    refined = net(empty)
    assert refined.voxels.num_voxels == 0
    assert refiner_losses(refined, Voxels.stack([ball(4.0), ball(3.0)])).total.isfinite()


# Bad input


@pytest.mark.parametrize(("changes", "message"), [
    ({"steps": 0}, "steps must be at least 1, got 0"),
    ({"learning_rate": 0.0}, "learning_rate must be positive"),
    ({"ema": 1.0}, "ema in \\[0, 1\\)"),
    ({"minutes": 0.0}, "minutes must be positive"),
    ({"workers": -1}, "workers must not be negative, got -1"),
    ({"precision": "16"}, "precision must be one of 32-true, bf16-mixed, got '16'"),
])  # fmt: skip
def test_bad_options_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_a_model_of_another_voxel_size_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model must have the voxel_size of the level, 0.0625, got 0.015625"):
        train_vae(data, tmp_path, train=config(), quiet=True)


def test_folders_that_are_none_are_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        from_pretrained(tmp_path, VAE)
    run_vae(data, tmp_path, steps=1)
    with pytest.raises(ValueError, match="holds a vae, not a refiner"):
        from_pretrained(tmp_path, Refiner)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        from_pretrained(tmp_path, VAE)
    (tmp_path / "config.json").write_text('{"format": 9}')
    with pytest.raises(ValueError, match="must have format 1"):
        from_pretrained(tmp_path, VAE)
    with pytest.raises(TypeError, match="model must be one of vae, refiner"):
        save_pretrained(torch.nn.Linear(1, 1), tmp_path)


def test_the_learning_rate_follows_steps_and_time() -> None:
    options = config(steps=100, warmup=9, final=0.1, minutes=1.0)
    assert options.rate(0, 0) == pytest.approx(0.1, abs=0.01)
    assert options.rate(100, 0) == pytest.approx(0.1)
    assert options.rate(50, 0) == pytest.approx(0.55)
    assert options.rate(50, 60.0) == pytest.approx(0.1)  # time is up
    release = config(schedule="official", batch_size=8)
    assert [release.rate(n, 0) for n in (0, 6249, 6250, 10**7)] == pytest.approx([1.0, 1.0, 0.7, 0.01])
