"""Runs: the same result when cut short and taken up again, what their folders say, and what they refuse."""

import csv
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsevox import Voxels
from tests.xcube.balls import SIDE, ball
from xcube.data.build import build
from xcube.data.hierarchy import Box
from xcube.data.loading import ShapeFolder
from xcube.data.sources import Source
from xcube.networks.configs import RefinerConfig, VAEConfig
from xcube.networks.losses import LossConfig
from xcube.networks.pretrained import from_pretrained, read_config, save_pretrained
from xcube.networks.vae import VAE
from xcube.training.callbacks import WeightEMA
from xcube.training.config import TrainConfig
from xcube.training.data import validation_batches
from xcube.training.modules import VAEModule, latent_scale
from xcube.training.run import train_module
from xcube.training.run_folder import CHECKPOINT, METRICS
from xcube.training.train import train_refiner, train_vae

MODEL = VAEConfig(voxel_size=1 / SIDE, channels=(8, 8), latent_channels=2, hidden=4)
LOSS = LossConfig(structure=1.0, normal=0.3, kl=1e-3)
OPTIONS: dict[str, Any] = {"batch_size": 2, "warmup": 2, "val_every": 1000, "save_every": 1, "seed": 3}


def built(folder: Path, splits: dict[float, str], names: tuple[str, ...] = ("normal",)) -> Path:
    sources = [Source(f"ball-{n}", partial(ball, r, names), split=s) for n, (r, s) in enumerate(splits.items())]
    assert len(build(sources, folder, Box((SIDE,)), attributes=names).built) == len(splits)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    radii = torch.linspace(2.5, 5.5, 7).tolist()
    return built(tmp_path_factory.mktemp("data"), {r: "val" if n % 3 == 2 else "train" for n, r in enumerate(radii)})


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**(OPTIONS | {"steps": 4} | changes))


def run_vae(data: Path, out: Path, model: VAEConfig = MODEL, restart: bool = False, **changes: Any) -> VAE:
    return train_vae(data, out, model=model, loss=LOSS, train=config(**changes), restart=restart, quiet=True)


def run_and_read(data: Path, out: Path, **changes: Any) -> dict[str, Any]:
    run_vae(data, out, **changes)
    return read_config(out)["metadata"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return from_pretrained(folder, VAE).state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "logs" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def validations(out: Path) -> list[tuple[str, str]]:
    """Steps and what was found there."""
    return [(row["step"], row["val/iou"]) for row in rows(out) if row["val/iou"]]


class Fragile(VAEModule):
    """Fails at a step."""

    fatal = 2
    error: BaseException = RuntimeError("the plug is pulled")

    def training_step(self, batch: Voxels, index: int) -> torch.Tensor:
        if self.global_step == self.fatal:
            raise self.error
        return super().training_step(batch, index)


def cut(data: Path, out: Path, error: BaseException | None = None, **changes: Any) -> None:
    """A run that ends before its third step."""
    torch.manual_seed(3)
    module = Fragile(VAE(MODEL), config(**changes), LOSS)
    module.error = error or module.error
    with pytest.raises(type(module.error)):
        train_module(module, data, out, quiet=True)


# Taken up again


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_that_was_cut_short_ends_as_if_it_had_not(data: Path, tmp_path: Path, accumulate: int) -> None:
    run_vae(data, tmp_path / "whole", accumulate=accumulate, val_every=1)
    cut(data, tmp_path / "cut", accumulate=accumulate, val_every=1)
    assert (tmp_path / "cut" / CHECKPOINT).is_file()
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    run_vae(data, tmp_path / "cut", accumulate=accumulate, val_every=1)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    iou = [
        [(row["step"], row["val/iou"]) for row in rows(tmp_path / name) if row["val/iou"]] for name in ("whole", "cut")
    ]
    assert len(iou[0]) == 4
    assert iou[0] == iou[1]  # rows of before are not lost


def test_an_interrupt_is_one_and_leaves_no_mark(data: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    cut(data, tmp_path, KeyboardInterrupt())
    assert signal.getsignal(signal.SIGINT) == before
    assert not (tmp_path / "model.safetensors").exists()


def test_a_run_killed_while_it_writes_a_checkpoint_goes_on(data: Path, tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from xcube.training.run_folder import CHECKPOINT\n"
        "from xcube.training.train import LossConfig, TrainConfig, VAEConfig, train_vae\n"
        "torch.set_num_threads(1)\n"
        "out, whole = Path(sys.argv[2]), torch.save\n"
        "def save(state, file):\n"
        "    if state['global_step'] == 3:\n"
        "        file.write(b'PK' * 1000)\n"
        "        file.flush()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    whole(state, file)\n"
        "torch.save = save\n"
        f"model, loss = VAEConfig(**{MODEL.to_dict()}), LossConfig(**{LOSS.to_dict()})\n"
        f"options = TrainConfig(steps=4, **{OPTIONS})\n"
        "train_vae(Path(sys.argv[1]), out, model=model, loss=loss, train=options, quiet=True)\n"
    )
    out, environment = tmp_path / "out", os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(script), str(data), str(out)]
    assert subprocess.run(command, check=False, env=environment).returncode == -9
    assert list(out.glob(".*.part"))
    assert torch.load(out / CHECKPOINT, weights_only=True)["global_step"] == 2
    run_vae(data, out)
    run_vae(data, tmp_path / "whole")
    assert not list(out.glob(".*.part"))
    for name, value in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(out)[name], value, rtol=1e-3, atol=1e-5)  # of other numbers of threads


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_run_that_is_done_is_read_or_ends_alike(data: Path, tmp_path: Path, ema: float) -> None:
    run_vae(data, tmp_path, ema=ema)
    first, metrics = weights(tmp_path), json.loads((tmp_path / METRICS).read_text())
    stamp = (tmp_path / CHECKPOINT).stat().st_mtime_ns
    assert same(run_vae(data, tmp_path, ema=ema).state_dict(), first)
    assert (tmp_path / CHECKPOINT).stat().st_mtime_ns == stamp
    # Killed after the last step, and before the network was written.
    (tmp_path / "config.json").unlink()
    assert same(run_vae(data, tmp_path, ema=ema).state_dict(), first)
    again = json.loads((tmp_path / METRICS).read_text())
    assert again | {"seconds": 0} == metrics | {"seconds": 0}


def test_other_options_are_refused_unless_they_are_free(data: Path, tmp_path: Path) -> None:
    run_vae(data, tmp_path)
    model = VAEConfig.from_dict(MODEL.to_dict() | {"channels": (8, 16)})
    for _ in ("of the network", "of the checkpoint"):
        with pytest.raises(
            ValueError, match=r"other options: model.channels \[8, 8\], now \[8, 16\], train.seed 3, now 4"
        ):
            run_vae(data, tmp_path, model, seed=4)
        (tmp_path / "config.json").unlink(missing_ok=True)
    assert run_and_read(data, tmp_path, steps=6, val_every=2)["steps"] == 6
    run_vae(data, tmp_path, model, restart=True, steps=1)
    assert read_config(tmp_path)["config"]["channels"] == [8, 16]
    refine = RefinerConfig(voxel_size=1 / SIDE, channels=(8, 8, 8))
    with pytest.raises(ValueError, match="kind vae, now refiner"):
        train_refiner(data, tmp_path, tmp_path, model=refine, train=config(), quiet=True)
    save_pretrained(VAE(MODEL), tmp_path / "converted")
    with pytest.raises(
        ValueError, match=r"out must be the folder of a run, got .*, which holds a vae that was not trained by a run"
    ):
        run_vae(data, tmp_path / "converted")


def test_a_run_of_an_earlier_version_knows_fewer_options(data: Path, tmp_path: Path) -> None:
    run_vae(data, tmp_path, steps=2)
    checkpoint = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    for name in ("fill", "thresholds", "solid", "certain", "bridge"):
        del checkpoint["options"]["model"][name]
    for name in ("fill", "solid"):
        del checkpoint["options"]["loss"][name]
    torch.save(checkpoint, tmp_path / CHECKPOINT)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"other options: loss.solid 20.0, now 1.0, model.solid False, now True"):
        train_vae(
            data,
            tmp_path,
            model=VAEConfig.from_dict(MODEL.to_dict() | {"solid": True}),
            loss=LossConfig.from_dict(LOSS.to_dict() | {"solid": 1.0}),
            train=config(steps=4),
            quiet=True,
        )
    assert run_and_read(data, tmp_path, steps=4)["steps"] == 4


def test_a_run_of_an_earlier_version_that_ended_by_its_time_limit_is_finished(data: Path, tmp_path: Path) -> None:
    run_vae(data, tmp_path, steps=4, minutes=1.0)
    values = json.loads((tmp_path / "config.json").read_text())
    for name in ("fill", "thresholds", "solid", "certain", "bridge"):
        del values["config"][name]
    for name in ("fill", "solid"):
        del values["metadata"]["options"]["loss"][name]
    values["metadata"]["steps"] = 3
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / CHECKPOINT).unlink()
    before = (tmp_path / "model.safetensors").stat().st_mtime_ns
    run_vae(data, tmp_path, steps=4, minutes=1.0)
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == before


def test_the_time_is_a_limit(data: Path, tmp_path: Path) -> None:
    metadata = run_and_read(data, tmp_path, steps=100_000, minutes=0.005, val_every=100_000, save_every=100_000)
    assert 0 < metadata["steps"] < 1000
    assert 0.2 <= metadata["seconds"] < 60
    assert "iou" in json.loads((tmp_path / METRICS).read_text())
    again = run_and_read(data, tmp_path, steps=100_000, minutes=0.005, val_every=100_000, save_every=100_000)
    assert again == metadata


# What a folder says


def test_logs_metrics_and_metadata(data: Path, tmp_path: Path) -> None:
    metadata = run_and_read(data, tmp_path, steps=12, val_every=5)
    found = rows(tmp_path)
    assert {"train/loss", "train/kl", "val/iou", "val/accuracy-1", "voxels"} <= set(found[0])
    assert [step for step, _ in validations(tmp_path)] == ["4", "9", "11"]  # the last step too
    assert list((tmp_path / "logs").glob("events.out.tfevents.*"))
    metrics = json.loads((tmp_path / METRICS).read_text())
    assert {"steps", "seconds", "iou", "accuracy-0", "accuracy-1", "normal_angle", "loss"} <= set(metrics)
    assert metrics["iou"] == pytest.approx(float(found[-1]["val/iou"]))
    assert (metadata["level"], metadata["levels"], metadata["resolution"], metadata["size"]) == (
        0,
        [SIDE],
        SIDE,
        [1.0, 1.0, 1.0],
    )
    assert (metadata["attributes"], metadata["steps"], metrics["steps"]) == (["normal"], 12, 12)


def test_the_scale_brings_latents_of_the_kept_network_to_unit_deviation(data: Path, tmp_path: Path) -> None:
    net = run_vae(data, tmp_path)
    scale = read_config(tmp_path)["metadata"]["latent_scale"]
    shapes = [ball(r) for n, r in enumerate(torch.linspace(2.5, 5.5, 7).tolist()) if n % 3 != 2]
    with torch.no_grad():
        posteriors = [net.encode(shape) for shape in shapes]
    # The variance of samples is that of the means and the mean of the variances, up to chance.
    mean, logvar = torch.cat([p.mean for p in posteriors]), torch.cat([p.logvar for p in posteriors])
    assert scale**-2 == pytest.approx(float(mean.var() + logvar.exp().mean()), rel=0.05)
    with pytest.raises(ValueError, match="latents of the VAE must be finite and differ, got 0 of variance"):
        latent_scale(net, [])


# Bad input


@pytest.mark.parametrize("keep", [0, 300, -300])
def test_a_damaged_checkpoint_is_named(data: Path, tmp_path: Path, keep: int) -> None:
    cut(data, tmp_path)
    file = tmp_path / CHECKPOINT
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(
        ValueError, match=r"last.ckpt is damaged, so the run cannot be resumed; restart to train from scratch"
    ):
        run_vae(data, tmp_path)
    run_vae(data, tmp_path, restart=True, steps=1)


def test_data_that_do_not_fit_are_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model must have the voxel_size of the level, 0.0625, got 0.015625"):
        run_vae(data, tmp_path, VAEConfig())
    labels = VAEConfig(voxel_size=1 / SIDE, num_labels=3)
    with pytest.raises(ValueError, match=r"data must have the attributes \['label', 'normal'\] .* without \['label'\]"):
        run_vae(data, tmp_path, labels)
    for level in (1, -2):
        with pytest.raises(ValueError, match=rf"level must be an index of the levels \(16,\), got {level}"):
            train_vae(data, tmp_path, level, MODEL, quiet=True)
    labeled = built(tmp_path / "labeled", {3.0: "train", 4.0: "val"}, ("normal", "label"))
    with pytest.raises(
        ValueError, match=r"labels must lie in \[0, 3\), as num_labels of the model says, got \d+ to \d+"
    ):
        run_vae(labeled, tmp_path / "out", labels)
    with pytest.raises(FileNotFoundError, match="is not a dataset"):
        run_vae(tmp_path, tmp_path / "out")


def test_data_without_training_shapes_are_named(tmp_path: Path) -> None:
    folder = built(tmp_path / "data", {3.0: "val"})
    with pytest.raises(ValueError, match=r"split must be one of \['val'\], got 'train'"):
        run_vae(folder, tmp_path / "out")


def test_data_without_held_out_shapes_are_enough(tmp_path: Path) -> None:
    folder = built(tmp_path / "data", {3.0: "train"})
    run_vae(folder, tmp_path / "out", steps=1)
    assert set(json.loads((tmp_path / "out" / METRICS).read_text())) == {"steps", "seconds"}


def test_a_folder_that_cannot_be_written_to_is_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OSError, match=r"out must be a folder that can be written to, got .*file"):
            run_vae(data, out)


def test_networks_that_do_not_fit_each_other_are_named(data: Path, tmp_path: Path) -> None:
    save_pretrained(VAE(MODEL), tmp_path / "vae")
    good: dict[str, Any] = {"voxel_size": 1 / SIDE, "channels": (8, 8, 8)}
    bad: list[tuple[dict[str, Any], str]] = [
        ({"voxel_size": 1 / 32}, "model must have the voxel_size of the level, 0.0625, got 0.03125"),
        ({"num_labels": 3}, r"model must have the normal and num_labels that .*, \(True, 0\), got \(True, 3\)"),
    ]
    for changes, message in bad:
        with pytest.raises(ValueError, match=message):
            train_refiner(data, tmp_path / "out", tmp_path / "vae", model=RefinerConfig(**(good | changes)), quiet=True)
    with pytest.raises(ValueError, match="first and last must be diffusion timesteps, 0 to 999, got 500 and 400"):
        train_refiner(data, tmp_path / "out", tmp_path / "vae", model=RefinerConfig(**good), first=500, quiet=True)


def test_a_graphics_card_that_is_not_there_is_named(data: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=r"train.accelerator and train.devices must fit the machine: .*"):
        run_vae(data, tmp_path, accelerator="gpu")


def test_beginning_anew_leaves_no_earlier_curves(data: Path, tmp_path: Path) -> None:
    for _ in range(2):
        run_vae(data, tmp_path, restart=True, steps=1)
        assert len(list((tmp_path / "logs").glob("events.out.tfevents.*"))) == 1


def test_validation_is_spread_over_the_split(data: Path) -> None:
    shapes = ShapeFolder[Voxels](data, None, level=-1)
    names = [shapes.entries[item].name for item in range(len(shapes))]
    batches = validation_batches(shapes, config(val_shapes=3, batch_size=1))
    sizes = sorted(batch.num_voxels for batch in batches)
    assert sizes == sorted(shapes[names.index(f"ball-{number}")].num_voxels for number in (0, 3, 6))


def test_the_average_lies_where_the_module_will_be() -> None:
    module = VAEModule(VAE(MODEL), config(), LOSS)
    average, trainer = WeightEMA(0.9), SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    average.setup(trainer, module, "fit")
    assert average._average_model is not None
    assert {p.device.type for p in average._average_model.parameters()} == {"meta"}
