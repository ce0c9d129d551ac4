"""All networks of a cascade from one call: which parts, in which order, in processes, and what a second call does."""

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
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
from xcube.training.cascade import Display, told, train_all, within
from xcube.training.config import TrainConfig
from xcube.training.jobs import Kind, Part, minutes_of, read_preset, ready, whole_presets
from xcube.training.status import LISTENER, Status, shown
from xcube.training.workers import Done, Failed, Job, Worker, messages, workers

for package in ("lightning", "yaml"):
    pytest.importorskip(package, reason="training")

TRAIN = {"steps": 2, "batch_size": 2, "warmup": 1, "val_every": 2, "save_every": 1, "val_shapes": 2, "minutes": 1.0}
SMALL_VAE = {"channels": [8, 8], "latent_channels": 2, "hidden": 4}
SMALL_UNET = {"latent_channels": 2, "channels": 8, "multipliers": [1], "attention": [], "heads": 2}
PRESET: dict[str, dict[str, Any]] = {
    "vae-0": {"level": 0, "model": SMALL_VAE | {"voxel_size": 2 / SIDE, "dense_neck": [2, 2, 2]}},
    "denoiser-0": {"level": 0, "model": SMALL_UNET | {"dense": True}},
    "vae-1": {"level": 1, "model": SMALL_VAE | {"voxel_size": 1 / SIDE}},
    "denoiser-1": {"level": 1, "model": SMALL_UNET | {"position": "ijk", "normal": True}},
    "refiner-1": {"level": 1, "first": 0, "model": {"voxel_size": 1 / SIDE, "channels": [8, 8, 8]}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    sources = [Source(f"ball-{n}", partial(ball, 2.5 + n / 3), split="val" if n > 3 else "train") for n in range(6)]
    assert len(build(sources, folder, Box((SIDE // 2, SIDE))).built) == len(sources)
    return folder


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
    assert list(metrics) == ["vae-0", "denoiser-0", "vae-1", "denoiser-1", "refiner-1"]
    assert all(found["steps"] == 2 and found["loss"] > 0 for found in metrics.values())
    said = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in said) == sorted(metrics)
    first = weights(out)
    sample = XCubePipeline.from_pretrained(out).sample(1, SampleOptions(steps=2, quiet=True))[0]
    assert [voxels.grid.voxel_size[0] for voxels in sample.levels] == [2 / SIDE, 1 / SIDE]

    # The fine VAE is trained further: what was trained on its latents begins anew, the others stay.
    more = preset(tmp_path / "more", **{"vae-1": {"train": TRAIN | {"steps": 3}}})
    (out / "denoiser-0" / "last.ckpt").unlink()  # what is finished needs none
    metrics = train_all(data, out, more, processes=1, quiet=True)
    assert {name: found["steps"] for name, found in metrics.items()} == dict.fromkeys(metrics, 2) | {"vae-1": 3}
    again = weights(out)
    assert {name for name in first if first[name] != again[name]} == {"vae-1", "denoiser-1", "refiner-1"}
    assert capsys.readouterr().out == ""

    # Fewer steps than there are change nothing; another network is an error that names the part.
    other = {"model": PRESET["denoiser-0"]["model"] | {"channels": 16}}
    with pytest.raises(ValueError, match=r"^denoiser-0: .* holds a run with other options: model\.channels 8, now 16"):
        train_all(data, out, preset(tmp_path / "other", **{"denoiser-0": other}), processes=1, quiet=True)
    assert weights(out) == again


def test_what_is_refused_before_a_process_begins(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xcube.training.cascade.workers", None)
    whole = preset(tmp_path / "whole")
    with pytest.raises(FileNotFoundError, match=r"one of demo, .*small, .*got 'none'"):
        train_all(data, tmp_path / "out", "none")
    with pytest.raises(FileNotFoundError):
        train_all(tmp_path / "nowhere", tmp_path / "out", whole)
    with pytest.raises(ValueError, match="processes must be at least 1, got 0"):
        train_all(data, tmp_path / "out", whole, processes=0)
    with pytest.raises(ValueError, match="minutes must be positive, got -1"):
        train_all(data, tmp_path / "out", whole, minutes=-1)
    free = preset(tmp_path / "free", **{"refiner-1": {"train": {"steps": 3}}})
    with pytest.raises(ValueError, match=r"some part without train\.minutes"):
        train_all(data, tmp_path / "out", free, minutes=1)
    assert not (tmp_path / "out").exists()


def test_a_seed_is_that_of_all_parts(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        """Far enough."""

    def trained(parts: list[Part], *_: object) -> None:
        raise Stop(*(part.train.seed for part in parts))

    monkeypatch.setattr("xcube.training.cascade._trained", trained)
    monkeypatch.setattr("xcube.training.cascade.workers", lambda *_: nullcontext([]))
    whole = preset(tmp_path / "whole", **{"refiner-1": {"train": TRAIN | {"seed": 5}}})
    with pytest.raises(Stop) as found:
        train_all(data, tmp_path / "out", whole, processes=1, seed=3)
    assert found.value.args == (3, 3, 3, 3, 8)


def test_presets_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"got .* with parts \[\]"):
        read_preset(str(tmp_path / "empty"))
    folder = Path(preset(tmp_path / "a"))
    (folder / "vae-1.yaml").unlink()
    with pytest.raises(ValueError, match="lack of vae-1"):
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
    assert len(read_preset("demo")) == 6
    with pytest.raises(ValueError, match="got demo with parts"):
        read_preset("./demo")


def test_the_presets_of_the_package_are_whole() -> None:
    assert {"demo", "small"} <= set(whole_presets())
    for name in ("demo", "small"):
        parts = read_preset(name)
        kinds = ("vae", "denoiser", "refiner")
        assert [part.name for part in parts] == [f"{kind}-{level}" for level in (0, 1) for kind in kinds]
        minutes = minutes_of(parts, 2)
        assert minutes is not None
        assert minutes == pytest.approx({"demo": 11.75, "small": 15.0}[name], abs=0.5)


def part(kind: Kind, level: int, minutes: float | None, steps: int = 100) -> Part:
    return Part(kind, level, TrainConfig(steps=steps, minutes=minutes), {"model": VAEConfig(voxel_size=0.1)})


CHAINS = st.lists(st.tuples(st.floats(0.1, 9), st.lists(st.floats(0.1, 9), max_size=2)), min_size=1, max_size=3)


@given(CHAINS, st.integers(1, 4))
def test_all_parts_are_trained_once_and_after_what_they_need(
    chains: Sequence[tuple[float, list[float]]], processes: int
) -> None:
    kinds: tuple[Kind, ...] = ("denoiser", "refiner")
    parts = [part("vae", level, minutes) for level, (minutes, _) in enumerate(chains)]
    for level, (_, others) in enumerate(chains):
        parts += [part(kind, level, minutes) for kind, minutes in zip(kinds, others, strict=False)]
    done: list[str] = []
    while len(done) < len(parts):
        chosen = ready(parts, done, done)
        assert chosen is not None
        assert chosen.name not in done
        assert chosen.needs is None or chosen.needs in done
        done.append(chosen.name)
    assert ready(parts, done, done) is None
    total = sum(p.train.minutes or 0 for p in parts)
    longest = max(first + max(others, default=0.0) for first, others in chains)
    found = minutes_of(parts, processes)
    assert found is not None
    assert max(longest, total / processes) <= found + 1e-9
    assert found <= total + 1e-9
    assert minutes_of(parts, 1) == pytest.approx(total)
    scaled = minutes_of(within(parts, 3.0, processes), processes)
    assert scaled == pytest.approx(3.0)


def test_scaling() -> None:
    before = part("vae", 0, 4.0, steps=1000)
    assert before.scaled(1.0) == before
    half = before.scaled(0.5).train
    assert (half.steps, half.minutes, half.warmup, half.val_every) == (500, 2.0, 50, 200)
    tiny = before.scaled(1e-6).train
    assert (tiny.steps, tiny.warmup, tiny.val_every, tiny.save_every) == (1, 0, 1, 1)
    assert minutes_of([before, part("refiner", 0, None)], 2) is None


def test_a_process_that_dies_is_named(tmp_path: Path) -> None:
    with workers(1, 1) as (worker,):
        assert worker.process.is_alive()
        worker.begin(Job(part("vae", 0, 1.0), tmp_path, tmp_path))
        worker.process.kill()
        with pytest.raises(ChildProcessError, match="vae-0: its process has ended with -9"):
            list(messages([worker]))
        with pytest.raises(ChildProcessError, match="vae-1: its process has ended with -9"):
            worker.begin(Job(part("vae", 1, 1.0), tmp_path, tmp_path))
    assert not worker.process.is_alive()


def test_parts_may_load_data_in_processes_of_their_own_and_end_quietly(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    vae = next(each for each in read_preset(preset(tmp_path / "preset")) if each.name == "vae-1")
    loading = replace(vae, train=replace(vae.train, workers=1, steps=100_000, minutes=None))
    with workers(1, 1) as (worker,):
        worker.begin(Job(loading, data, tmp_path / "out"))
        for _ in range(3):
            assert [type(message) for _, _, message in messages([worker])] == [Status]
    assert not worker.process.is_alive()  # in the middle of it
    assert "Traceback" not in capfd.readouterr().err


def test_what_nobody_foresaw_is_told_with_its_origin(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    odd = replace(part("vae", 0, 1.0), options={"modell": 3})
    with workers(1, 1) as (worker,):
        worker.begin(Job(odd, tmp_path, tmp_path))
        ((_, _, message),) = messages([worker])
    assert isinstance(message, Failed)
    assert isinstance(message.error, ChildProcessError)
    assert "unexpected keyword argument 'modell'" in str(message.error)
    assert "Traceback" in capfd.readouterr().err


def test_messages_come_from_those_at_work() -> None:
    class Said(Worker):
        def __init__(self, *said: Any) -> None:
            import multiprocessing

            self.line, theirs = multiprocessing.Pipe()
            self.job = Job(part("vae", 3, 1.0), Path(), Path())
            for each in said:
                theirs.send(each)

    status = Status("train", 1, 2, 3.0)
    both = [Said(status, Done({"steps": 2})), Said(Failed(ValueError("no")))]
    idle = Said(status)
    idle.job = None
    found = list(messages([*both, idle]))
    assert [(number, name) for number, name, _ in found] == [(0, "vae-3"), (1, "vae-3")]
    assert found[0][2] == status
    assert both[0].job is not None
    assert both[1].job is None
    assert list(messages(both)) == [(0, "vae-3", Done({"steps": 2}))]


def test_the_display(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Display(2, quiet=False) as display:
        bar = display.bars[0]
        display.show(0, "vae-0", Status("train", 5, 10, 61.0, 0.5))
        assert (bar.n, bar.total, bar.desc, bar.postfix) == (5, 10, "vae-0: ", "loss 0.500, 01:01 left")
        display.show(0, "denoiser-0", Status("encode", 1, 4, 3.0))
        assert (bar.n, bar.total, bar.desc, bar.postfix) == (1, 4, "denoiser-0 encode: ", "00:03 left")
        display.show(1, "vae-1", Done({"steps": 1234, "seconds": 5.4, "iou": 0.5, "kl": 3}))
    out, err = capsys.readouterr()
    assert out.strip() == "vae-1        1,234 steps in 5 s, iou 0.500"
    assert "vae-0" in err
    assert "50%" in err
    with Display(1, quiet=True) as display:
        display.show(0, "vae-0", Status("train", 5, 10, 61.0, 0.5))
        display.show(0, "vae-0", Done({"steps": 1, "seconds": 2.0}))
    assert capsys.readouterr() == ("", "")
    assert told({"steps": 1, "seconds": 2.0}) == "1 steps in 2 s"


def test_who_listens_hears_of_every_item() -> None:
    heard: list[Status] = []
    token = LISTENER.set(heard.append)
    try:
        assert list(shown(["a", "b"], "encode", quiet=False)) == ["a", "b"]
    finally:
        LISTENER.reset(token)
    assert [(status.doing, status.done, status.total, status.loss) for status in heard] == [
        ("encode", 0, 2, None),
        ("encode", 1, 2, None),
    ]
    assert list(shown(["a"], "encode", quiet=True)) == ["a"]
    assert len(heard) == 2


def test_jobs_are_plain(tmp_path: Path) -> None:
    """What goes to a process must be read there."""
    import pickle

    job = Job(replace(read_preset("demo")[0]), tmp_path, tmp_path, restart=True)
    assert pickle.loads(pickle.dumps(job)) == job
    assert json.dumps(job.part.train.to_dict())
