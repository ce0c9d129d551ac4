"""Training of a whole cascade: which networks, in which order, in processes, and what a second call does."""

import json
import multiprocessing
import pickle
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.xcube.balls import SIDE, ball
from xcube.data.build import build
from xcube.data.hierarchy import Box
from xcube.data.sources import Source
from xcube.networks.configs import VAEConfig
from xcube.pipeline.options import SampleOptions
from xcube.pipeline.pipeline import XCubePipeline
from xcube.training.callbacks import Progress
from xcube.training.cascade import summary, train_all
from xcube.training.config import TrainConfig
from xcube.training.jobs import NetworkKind, TrainingJob, next_job, scaled_to, total_minutes
from xcube.training.presets import cascade_presets, preset_box, read_preset
from xcube.training.process import TrainingProcess, stop
from xcube.training.run_folder import read_metrics

for package in ("lightning", "yaml"):
    pytest.importorskip(package, reason="training")

TRAIN = {"steps": 2, "batch_size": 2, "warmup": 1, "val_every": 2, "save_every": 1, "val_shapes": 2, "minutes": 1.0}
SMALL_VAE = {"channels": [8, 8], "latent_channels": 2, "hidden": 4}
SMALL_UNET = {"latent_channels": 2, "channels": 8, "multipliers": [1], "attention": [], "heads": 2}
PRESET: dict[str, dict[str, Any]] = {
    "vae-0": {"level": 0, "model": SMALL_VAE | {"voxel_size": 2 / SIDE, "dense_neck": [2, 2, 2]}},
    "denoiser-0": {"level": 0, "model": SMALL_UNET | {"dense": True}},
    "vae-1": {"level": 1, "model": SMALL_VAE | {"voxel_size": 1 / SIDE}},
    "denoiser-1": {
        "level": 1,
        "model": SMALL_UNET | {"position": "ijk", "normal": True},
        "sampler": {"steps": 1, "spacing": "trailing"},
    },
    "finetune-1": {"level": 1, "coarse_steps": 2},
    "refiner-1": {"level": 1, "first": 0, "model": {"voxel_size": 1 / SIDE, "channels": [8, 8, 8]}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    sources = [Source(f"ball-{n}", partial(ball, 2.5 + n / 3), split="val" if n > 3 else "train") for n in range(6)]
    assert len(build(sources, folder, Box((SIDE // 2, SIDE))).built) == len(sources)
    return folder


SLEEP: Any = partial(time.sleep, 600)  # in place of training


def preset(folder: Path, **changes: dict[str, Any]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in PRESET.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"train": TRAIN} | values | changes.get(name, {})))
    return str(folder)


def weights(out: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in out.glob("*/model.safetensors")}


def test_a_cascade_is_trained_reused_and_trained_further(data: Path, tmp_path: Path, capsys: Any) -> None:
    """One test, because processes take seconds to begin."""
    out, options = tmp_path / "runs", preset(tmp_path / "preset")
    metrics = train_all(data, out, options)
    assert list(metrics) == ["vae-0", "denoiser-0", "vae-1", "denoiser-1", "finetune-1", "refiner-1"]
    assert all(found["steps"] == 2 and found["loss"] > 0 for found in metrics.values())
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(metrics)
    first = weights(out)
    sample = XCubePipeline.from_pretrained(out).sample(1, SampleOptions(steps=2, quiet=True))[0]
    assert [voxels.grid.voxel_size[0] for voxels in sample.levels] == [2 / SIDE, 1 / SIDE]

    # As an earlier version would have left them, they are the same networks.
    old = shutil.copytree(out, tmp_path / "old")
    for file in old.glob("*/config.json"):
        values = json.loads(file.read_text())
        file.write_text(json.dumps(values | {"facts": values.pop("metadata")}))
        (file.parent / "metrics.json").rename(file.parent / "figures.json")
        assert read_metrics(file.parent) == metrics[file.parent.name]
        file.parent.rename(str(file.parent).replace("denoiser-", "diffusion-").replace("refiner-", "refine-"))
    again = XCubePipeline.from_pretrained(old).sample(1, SampleOptions(steps=2, quiet=True))[0]
    assert [each.grid.same_voxels(other.grid) for each, other in zip(again.levels, sample.levels, strict=True)] == [
        True
    ] * 2

    # The fine VAE is trained further: networks on its latents are trained from scratch, the others stay.
    more = preset(tmp_path / "more", **{"vae-1": {"train": TRAIN | {"steps": 3}}})
    (out / "denoiser-0" / "last.ckpt").unlink()  # what is finished needs none
    metrics = train_all(data, out, more, processes=1, quiet=True)
    assert {name: found["steps"] for name, found in metrics.items()} == dict.fromkeys(metrics, 2) | {"vae-1": 3}
    later = weights(out)
    assert {name for name in first if first[name] != later[name]} == {"vae-1", "denoiser-1", "finetune-1", "refiner-1"}
    assert capsys.readouterr().out == ""

    # Fewer steps than there are change nothing; another network is an error that names the part.
    other = {"model": PRESET["denoiser-0"]["model"] | {"channels": 16}}
    with pytest.raises(ValueError, match=r"^denoiser-0: .* holds a run with other options: model\.channels 8, now 16"):
        train_all(data, out, preset(tmp_path / "other", **{"denoiser-0": other}), processes=1, quiet=True)
    assert weights(out) == later


def test_what_is_refused_before_a_process_begins(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xcube.training.cascade.TrainingProcess", None)
    whole = preset(tmp_path / "whole")
    with pytest.raises(FileNotFoundError, match=r"one of color, demo, .*small, .*got 'none'"):
        train_all(data, tmp_path / "out", "none")
    with pytest.raises(FileNotFoundError):
        train_all(tmp_path / "nowhere", tmp_path / "out", whole)
    with pytest.raises(ValueError, match="processes must be at least 1, got 0"):
        train_all(data, tmp_path / "out", whole, processes=0)
    with pytest.raises(ValueError, match="minutes must be positive, got -1"):
        train_all(data, tmp_path / "out", whole, minutes=-1)
    free = preset(tmp_path / "free", **{"refiner-1": {"train": {"steps": 3}}})
    with pytest.raises(ValueError, match=r"every network has train\.minutes, got one without"):
        train_all(data, tmp_path / "out", free, minutes=1)
    assert not (tmp_path / "out").exists()


def test_a_seed_is_added_to_that_of_each_network(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: dict[str, int] = {}

    class Process(TrainingProcess):
        """Trains nothing, in this process."""

        def __init__(self, threads: int, line: int) -> None:
            self.name, (self.connection, self.other) = None, multiprocessing.Pipe()

        def start(self, name: str, train: Any) -> None:
            self.name, seeds[name] = name, train.func.__self__.train.seed
            self.other.send({"steps": 1, "seconds": 1.0})

    monkeypatch.setattr("xcube.training.cascade.TrainingProcess", Process)
    monkeypatch.setattr("xcube.training.cascade.stop", lambda pool: None)
    monkeypatch.setattr("xcube.training.cascade._inputs_changed", lambda *_: False)
    whole = preset(tmp_path / "whole", **{"refiner-1": {"train": TRAIN | {"seed": 5}}})
    train_all(data, tmp_path / "out", whole, processes=2, seed=3, quiet=True)
    assert seeds == dict.fromkeys(PRESET, 3) | {"refiner-1": 8}


def test_presets_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"got .* with \[\]"):
        read_preset(str(tmp_path / "empty"))
    folder = Path(preset(tmp_path / "a"))
    (folder / "vae-1.yaml").unlink()
    with pytest.raises(ValueError, match="without vae-1"):
        read_preset(str(folder))
    odd = {"vae-1": "level: 1", "lamp": "level: 0", "vae-2": "model: {chanels: 3}\nlevel: 2"}
    odd |= {"refiner-1": "level: 1\nmodel: {}\nfrist: 0", "denoiser-0": "level: 0\nmodel: {}\nquiet: true"}
    for name, text in odd.items():
        bad = Path(preset(tmp_path / name))
        (bad / f"{name}.yaml").write_text(text)
        with pytest.raises(ValueError, match=f"{name}.yaml must"):
            read_preset(str(bad))


def test_a_folder_does_not_hide_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert len(read_preset("demo")) == 4
    with pytest.raises(ValueError, match="got demo with"):
        read_preset("./demo")


def test_the_presets_of_the_package_are_whole() -> None:
    assert {"demo", "shapes", "small"} <= set(cascade_presets())
    for name in ("demo", "shapes", "small"):
        jobs = read_preset(name)
        kinds = ("vae", "denoiser", "refiner") if name == "small" else ("vae", "denoiser")
        expected = [f"{kind}-{level}" for level in (0, 1) for kind in kinds]
        more = ["finetune-1", "vae-2", "denoiser-2"] if name == "shapes" else []
        assert [job.name for job in jobs] == expected + more
        assert list(preset_box(jobs).levels) == {"demo": [16, 64], "shapes": [16, 64, 128], "small": [32, 128]}[name]
        minutes = total_minutes(jobs, 2)
        assert minutes is not None
        assert minutes == pytest.approx({"demo": 12.0, "shapes": 355.0, "small": 15.0}[name], abs=0.5)


def job(kind: NetworkKind, level: int, minutes: float | None, steps: int = 100) -> TrainingJob:
    return TrainingJob(kind, level, TrainConfig(steps=steps, minutes=minutes), {"model": VAEConfig(voxel_size=0.1)})


CHAINS = st.lists(st.tuples(st.floats(0.1, 9), st.lists(st.floats(0.1, 9), max_size=2)), min_size=1, max_size=3)


@given(CHAINS, st.integers(1, 4))
def test_all_networks_are_trained_once_and_after_what_they_need(
    chains: Sequence[tuple[float, list[float]]], processes: int
) -> None:
    kinds: tuple[NetworkKind, ...] = ("denoiser", "refiner")
    jobs = [job("vae", level, minutes) for level, (minutes, _) in enumerate(chains)]
    for level, (_, others) in enumerate(chains):
        jobs += [job(kind, level, minutes) for kind, minutes in zip(kinds, others, strict=False)]
    done: list[str] = []
    while len(done) < len(jobs):
        chosen = next_job(jobs, done, done)
        assert chosen is not None
        assert chosen.name not in done
        assert set(chosen.inputs.values()) <= set(done)
        done.append(chosen.name)
    assert next_job(jobs, done, done) is None
    total = sum(each.train.minutes or 0 for each in jobs)
    longest = max(first + max(others, default=0.0) for first, others in chains)
    found = total_minutes(jobs, processes)
    assert found is not None
    assert max(longest, total / processes) <= found + 1e-9
    assert found <= total + 1e-9
    assert total_minutes(jobs, 1) == pytest.approx(total)
    scaled = total_minutes(scaled_to(jobs, 3.0, processes), processes)
    assert scaled == pytest.approx(3.0)


def test_fine_tuning_waits_for_the_denoisers_of_both_levels() -> None:
    names = [("vae", 0, 1.0), ("vae", 1, 1.0), ("denoiser", 0, 2.0), ("denoiser", 1, 3.0), ("finetune", 1, 4.0)]
    jobs = [job(kind, level, minutes) for kind, level, minutes in names]  # type: ignore[arg-type]
    chosen = next_job(jobs, [], [])
    assert chosen is not None
    assert chosen.name == "vae-1"  # its chain takes 8 minutes, that of vae-0 7
    for done in (["vae-0", "vae-1", "denoiser-0"], ["vae-0", "vae-1", "denoiser-1"]):
        started = [*done, "denoiser-0", "denoiser-1"]
        assert next_job(jobs, done, started) is None
    last = next_job(jobs, started, started)
    assert last is not None
    assert last.name == "finetune-1"
    assert total_minutes(jobs, 2) == pytest.approx(8.0)


def test_scaling() -> None:
    before = job("vae", 0, 4.0, steps=1000)
    assert before.scaled(1.0) == before
    half = before.scaled(0.5).train
    assert (half.steps, half.minutes, half.warmup, half.val_every) == (500, 2.0, 50, 200)
    tiny = before.scaled(1e-6).train
    assert (tiny.steps, tiny.warmup, tiny.val_every, tiny.save_every) == (1, 0, 1, 1)
    assert total_minutes([before, job("refiner", 0, None)], 2) is None


@pytest.fixture
def process() -> Iterator[TrainingProcess]:
    started = TrainingProcess(threads=1, line=0)
    yield started
    stop([started])
    assert not started.process.is_alive()


def test_a_process_that_is_killed_is_named(process: TrainingProcess) -> None:
    process.start("vae-0", SLEEP)
    process.process.kill()
    with pytest.raises(ChildProcessError, match="vae-0: the process ended with exit code -9"):
        process.result()
    process.start("vae-1", SLEEP)
    with pytest.raises(ChildProcessError, match="vae-1: the process ended with exit code -9"):
        process.result()


def test_a_process_may_load_data_in_processes_of_its_own_and_ends_quietly(
    process: TrainingProcess, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    vae = next(each for each in read_preset(preset(tmp_path / "preset")) if each.name == "vae-1")
    loading = replace(vae, train=replace(vae.train, workers=1, steps=100_000, minutes=None))
    train = partial(loading.run, data, tmp_path / "out", restart=False, quiet=True)
    process.start("vae-1", train)
    while not (tmp_path / "out" / "vae-1" / "last.ckpt").is_file():  # saved after every step
        assert process.process.is_alive()
        time.sleep(0.2)
    stop([process])  # in the middle of it
    assert process.process.exitcode in (0, -signal.SIGTERM)
    assert "Traceback" not in capfd.readouterr().err


def test_an_interrupt_stops_all_processes(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[TrainingProcess] = []

    class Interrupted(TrainingProcess):
        def start(self, name: str, train: Any) -> None:
            super().start(name, SLEEP)
            running.append(self)

    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("xcube.training.cascade.TrainingProcess", Interrupted)
    monkeypatch.setattr("xcube.training.cascade.wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_all(data, tmp_path / "out", preset(tmp_path / "preset"), processes=2, quiet=True)
    assert [process.name for process in running] == ["vae-0", "vae-1"]
    assert not any(process.process.is_alive() for process in running)


def test_an_unexpected_error_shows_its_origin(process: TrainingProcess, tmp_path: Path) -> None:
    odd = replace(job("vae", 0, 1.0), options={"modell": 3})
    train = partial(odd.run, tmp_path, tmp_path, restart=False, quiet=True)
    process.start("vae-0", train)
    with pytest.raises(RuntimeError, match=r"vae-0: .*unexpected keyword argument 'modell'") as caught:
        process.result()
    assert isinstance(caught.value.__cause__, TypeError)
    assert "Traceback" in caught.value.__cause__.__notes__[0]
    invalid: Any = partial(read_preset, "none")
    process.start("vae-1", invalid)  # it is there for the next network
    with pytest.raises(FileNotFoundError, match="vae-1: preset must be a folder"):
        process.result()


def test_the_progress_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    module: Any = SimpleNamespace(config=TrainConfig(steps=10, minutes=2.0), elapsed=59.0, earlier=54.0)
    trainer, progress = SimpleNamespace(global_step=0, is_global_zero=True), Progress("vae-0")
    assert list(progress.iterate(["a", "b"], "encoding")) == ["a", "b"]
    progress.on_train_start(trainer, module)
    trainer.global_step = 5
    progress.on_train_batch_end(trainer, module, {"loss": torch.tensor(0.5)}, SimpleNamespace(num_voxels=500), 0)
    assert (progress.bar.n, progress.bar.total, progress.bar.desc) == (5, 10, "vae-0")
    assert progress.bar.postfix == "loss 0.500, 100 voxels/s, 00:05 left"
    module.elapsed = 119.0
    assert progress._seconds_left(trainer, module, 60.0) == 1.0  # the time limit is nearer
    progress.on_train_end(trainer, module)
    out, err = capsys.readouterr()
    assert out == ""
    assert "vae-0, encoding" in err
    assert " 50%|" in err.replace(" |", "|")


def test_without_a_terminal_there_is_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    module: Any = SimpleNamespace(config=TrainConfig(steps=10), elapsed=0.0, earlier=0.0)
    trainer, progress = SimpleNamespace(global_step=0, is_global_zero=True), Progress("vae-0")
    assert list(progress.iterate(["a"], "encoding")) == ["a"]
    progress.on_train_start(trainer, module)
    progress.on_train_batch_end(trainer, module, {}, SimpleNamespace(num_voxels=500), 0)
    progress.on_exception(trainer, module, KeyboardInterrupt())
    assert capsys.readouterr() == ("", "")


def test_a_summary() -> None:
    assert summary({"steps": 1234, "seconds": 5.4, "iou": 0.5, "kl": 3}) == "1,234 steps in 5 s, iou 0.500"
    assert summary({"steps": 1, "seconds": 2.0}) == "1 steps in 2 s"


def test_jobs_are_plain(tmp_path: Path) -> None:
    """What goes to a process must be read there."""
    before = read_preset("demo")[0]
    assert pickle.loads(pickle.dumps(before)) == before
    assert json.dumps(before.train.to_dict())
