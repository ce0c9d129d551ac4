"""Training with augmentation: runs that resume, what their folders say, and options on the command line."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsevox import Voxels
from tests.xcube.balls import SIDE, ball
from xcube.cli import main
from xcube.data.augment import Augment
from xcube.data.build import build
from xcube.data.hierarchy import Box
from xcube.data.sources import Source
from xcube.networks.configs import RefinerConfig, UNetConfig, VAEConfig
from xcube.networks.pretrained import from_pretrained, read_config
from xcube.networks.vae import VAE
from xcube.training.config import TrainConfig
from xcube.training.modules import VAEModule
from xcube.training.presets import read_preset
from xcube.training.train import train_denoiser, train_refiner, train_vae

MODEL = VAEConfig(voxel_size=1 / SIDE, channels=(8, 8), latent_channels=2, hidden=4)
AUGMENT = Augment(mirror=True, turn=True, scale=(0.6, 1.0), variants=2)


def config(**changes: Any) -> TrainConfig:
    plain: dict[str, Any] = {
        "batch_size": 2,
        "warmup": 0,
        "schedule": "constant",
        "val_every": 100,
        "save_every": 100,
        "seed": 3,
    }
    return TrainConfig(**(plain | changes))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    radii = torch.linspace(2.5, 5.5, 6).tolist()
    sources = [Source(f"ball-{n}", partial(ball, r), split="train" if n else "val") for n, r in enumerate(radii)]
    assert len(build(sources, folder, Box((SIDE,))).built) == 6
    return folder


def run_vae(data: Path, out: Path, augment: Augment = AUGMENT, **changes: Any) -> VAE:
    return train_vae(data, out, model=MODEL, train=config(**changes), augment=augment, quiet=True)


@pytest.fixture(scope="module")
def vae(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "vae"
    run_vae(data, out, steps=8)
    return out


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(value, other[name]) for name, value in a.state_dict().items())


def test_a_resumed_run_sees_the_same_shapes(data: Path, vae: Path, tmp_path: Path) -> None:
    run_vae(data, tmp_path / "resumed", steps=5)  # in the second epoch of three batches
    assert same(run_vae(data, tmp_path / "resumed", steps=8), from_pretrained(vae, VAE))
    assert same(run_vae(data, tmp_path / "workers", steps=8, workers=2), from_pretrained(vae, VAE))
    assert not same(run_vae(data, tmp_path / "plain", Augment(), steps=8), from_pretrained(vae, VAE))


def test_shapes_of_every_epoch_differ_but_not_those_of_validation(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[bool, list[int]] = {True: [], False: []}
    losses = VAEModule.losses

    def look(self: VAEModule, voxels: Voxels, step: int, generator: torch.Generator) -> Any:
        seen[self.training] += [one.num_voxels for one in voxels.unbind()]
        return losses(self, voxels, step, generator)

    monkeypatch.setattr(VAEModule, "losses", look)
    run_vae(data, tmp_path, steps=6, val_every=2)
    assert sorted(seen[True][:5]) != sorted(seen[True][5:10])
    assert seen[False] == [ball(2.5).num_voxels] * 3


def test_folders_say_what_was_changed(data: Path, vae: Path, tmp_path: Path) -> None:
    options = read_config(vae)["metadata"]["options"]
    assert options["augment"] == {"mirror": True, "turn": True, "scale": [0.6, 1.0], "variants": 2}
    with pytest.raises(ValueError, match=r"other options: augment.mirror True, now None, augment.scale \[0.6, 1.0\]"):
        run_vae(data, vae, Augment(), steps=8)
    run_vae(data, tmp_path, Augment(), steps=1)
    assert "augment" not in read_config(tmp_path)["metadata"]["options"]  # as in runs of earlier versions
    run_vae(data, tmp_path, Augment(variants=3), steps=1)
    with pytest.raises(ValueError, match=r"other options: augment.mirror None, now True"):
        run_vae(data, tmp_path, Augment(mirror=True), steps=2)


@pytest.mark.parametrize("cache", [True, False])
def test_a_denoiser_is_trained_on_changed_shapes(data: Path, vae: Path, tmp_path: Path, cache: bool) -> None:
    model = UNetConfig(latent_channels=2, channels=8, multipliers=(1,), heads=2)

    def run(out: str, augment: Augment, steps: int) -> torch.nn.Module:
        options: dict[str, Any] = {"train": config(steps=steps), "augment": augment, "cache": cache, "quiet": True}
        return train_denoiser(data, tmp_path / out, vae, model=model, **options)

    whole = run("whole", AUGMENT, 6)
    run("resumed", AUGMENT, 4)
    assert same(run("resumed", AUGMENT, 6), whole)
    assert not same(run("plain", Augment(), 6), whole)
    assert read_config(tmp_path / "whole")["metadata"]["options"]["augment"]["variants"] == 2


def test_a_refiner_is_trained_on_changed_shapes(data: Path, vae: Path, tmp_path: Path) -> None:
    model = RefinerConfig(voxel_size=1 / SIDE, channels=(8, 8, 8))
    options: dict[str, Any] = {"model": model, "train": config(steps=2), "quiet": True}
    changed = train_refiner(data, tmp_path / "changed", vae, augment=AUGMENT, **options)
    assert not same(changed, train_refiner(data, tmp_path / "plain", vae, **options))


def test_the_command_line_and_presets_set_it(data: Path, tmp_path: Path) -> None:
    network = [f"--model.voxel_size={1 / SIDE}", "--model.channels=[8,8]", "--model.latent_channels=2"]
    options = ["--train.steps=1", "--augment.mirror=true", "--augment.scale=[0.75,1.0]", "--quiet"]
    assert main(["train", "vae", "--data", str(data), "--out", str(tmp_path / "run"), *network, *options]) == 0
    expected = Augment(mirror=True, scale=(0.75, 1.0))
    assert read_config(tmp_path / "run")["metadata"]["options"]["augment"] == expected.to_dict()
    file = tmp_path / "preset" / "vae-0.yaml"
    file.parent.mkdir()
    file.write_text("level: 0\nmodel: {}\naugment:\n  mirror: true\n  scale: [0.75, 1.0]\n")
    (job,) = read_preset(str(file.parent))
    assert job.options["augment"] == expected
    file.write_text("level: 0\nmodel: {}\naugment:\n  scale: [0.75, 2.0]\n")
    with pytest.raises(ValueError, match=r"vae-0.yaml must hold valid options: scale must be a range within \(0, 1\]"):
        read_preset(str(file.parent))


def test_a_box_that_is_not_square_is_named(tmp_path: Path) -> None:
    half = Source("ball", partial(ball, 2.5))
    build([half], tmp_path / "data", Box((SIDE,), (1.0, 0.5, 1.0)), splits={"train": 1})
    with pytest.raises(ValueError, match=r"augment.turn needs a box with a square base, got \(1.0, 0.5, 1.0\)"):
        run_vae(tmp_path / "data", tmp_path / "out", steps=1)
    assert not (tmp_path / "out").exists()
