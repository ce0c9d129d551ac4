"""The demo that trains: what it writes, what a second call does, and what it refuses."""

import json
import re
import shlex
import shutil
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
import yaml

from sparsevox import Voxels
from sparsevox.io import save_mesh, to_mesh
from tests.xcube.balls import SIDE, ball
from tests.xcube.pages import Links
from xcube import cli
from xcube.commands import demo_page, report
from xcube.commands import demo_training as command
from xcube.commands.demo import demo
from xcube.commands.report import draw_curves, draw_samples, smoothed, write_page
from xcube.data.build import build
from xcube.data.hierarchy import Box, build_hierarchy
from xcube.data.sources import Source
from xcube.pipeline.output import SampleFolder
from xcube.training.cascade import train_all
from xcube.training.presets import PRESETS

for package in ("jsonargparse", "lightning", "matplotlib", "trimesh", "yaml"):
    pytest.importorskip(package, reason="the demo")

SAMPLES = 4


def write_preset(folder: Path) -> str:
    """Two tiny levels."""
    vae = {"channels": [8, 8], "latent_channels": 2, "hidden": 4}
    unet = {"latent_channels": 2, "channels": 8, "multipliers": [1], "attention": [], "heads": 2}
    parts: dict[str, dict[str, Any]] = {
        "vae-0": {
            "level": 0,
            "model": vae | {"voxel_size": 2 / SIDE, "dense_neck": [2, 2, 2], "fill": True, "solid": True},
        },
        "denoiser-0": {"level": 0, "model": unet | {"dense": True}},
        "vae-1": {"level": 1, "model": vae | {"voxel_size": 1 / SIDE, "solid": True}},
        "denoiser-1": {
            "level": 1,
            "model": unet | {"position": "ijk", "normal": True, "fill": True},
            "sampler": {"sampler": "ddim", "steps": 1, "spacing": "trailing"},
        },
    }
    train = {"steps": 10, "batch_size": 2, "warmup": 1, "val_every": 5, "val_shapes": 2, "minutes": 1.0}
    folder.mkdir()
    for name, values in parts.items():
        steps = {"steps": 2} if name.startswith("denoiser") else {}
        (folder / f"{name}.yaml").write_text(
            yaml.safe_dump({"train": train | {"learning_rate": 0.01} | steps} | values)
        )
    return str(folder)


def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One test, because training takes seconds."""
    torch.manual_seed(0)
    monkeypatch.setattr(command, "procedural_sources", balls)  # procedural shapes do not fit into so few voxels
    monkeypatch.setattr(command, "SAMPLES", SAMPLES)
    monkeypatch.setattr(report, "build_hierarchy", partial(build_hierarchy, samples=10_000))
    here = partial(train_all, processes=1)
    monkeypatch.setattr(command, "train_all", here)
    mesh = tmp_path / "my <mesh>.glb"
    save_mesh(to_mesh(ball(5.0)), mesh)
    out, preset = tmp_path / "demo", write_preset(tmp_path / "preset")
    words = ["demo", "--train", "--out", str(out), "--preset", preset, "--mesh", str(mesh)]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert f"open {out / 'index.html'}" in said
    assert re.search(r"\[ 0:\d\d\] training: vae-0, denoiser-0, vae-1, denoiser-1\n", said)

    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["training"]) == ["vae-0", "denoiser-0", "vae-1", "denoiser-1"]
    assert len(metrics["held_out"]["iou"]) == 2
    assert metrics["held_out"]["shapes"] == 6
    assert metrics["samples"]["samples"]["shapes"] == SAMPLES
    page = Links((out / "index.html").read_text())
    for link in page.found:
        assert (out / unquote(link.partition("#")[0])).is_file(), link
    full = [path.stem for path in (out / "samples").glob("shape-*.glb")]
    assert len([link for link in page.found if link.startswith("pictures/shape-")]) == len(full)
    assert "yours/my <mesh>: IoU" in page.text
    assert shlex.join(["demo", "--train", "--out", str(out), "--preset", preset, "--mesh", str(mesh)]) in page.text
    assert "nearest" in page.text
    assert json.loads((out / "samples" / "settings.json").read_text())["min_component"] == 0
    assert (out / "gallery.png").is_file() == bool(full)

    # A second call repeats nothing; what is missing, and that alone, is made again.
    # That training does not start over is tested elsewhere; its messages are enough here.
    monkeypatch.setattr(command, "train_all", lambda *_, **__: metrics["training"])
    files = {
        path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".safetensors", ".npz", ".html")
    }
    assert cli.main(words) == 0
    assert files == {path: path.stat().st_mtime_ns for path in files}
    (out / "samples" / "shape-000001.npz").unlink()
    (out / "metrics.json").unlink()
    assert cli.main(words) == 0
    changed = {path for path in files if files[path] != path.stat().st_mtime_ns}
    assert {path.name for path in changed} == {"shape-000001.npz", "index.html"}
    again = json.loads((out / "metrics.json").read_text())
    # One sample was made in a batch of its own, where sums are rounded otherwise; the rest is the same.
    assert again["held_out"] == metrics["held_out"]
    assert again["samples"]["training"]["mmd"] == metrics["samples"]["training"]["mmd"]
    assert again["samples"]["samples"]["shapes"] == SAMPLES
    assert again["settings"] == metrics["settings"]
    # Other samples, of the same networks.
    assert cli.main([*words, "--seed", "1"]) == 0
    assert json.loads((out / "metrics.json").read_text())["settings"] != metrics["settings"]
    assert all(files[path] == path.stat().st_mtime_ns for path in files if path.suffix == ".safetensors")
    capsys.readouterr()
    assert cli.main(words[:-2]) == 2
    assert "use another folder, or --restart" in capsys.readouterr().err


def balls(count: int, box: Box) -> list[Source]:
    splits = {"train": 10, "val": 2, "test": 6}
    names = [split for split, n in splits.items() for _ in range(n)]
    return [Source(f"ball-{n}", partial(ball, 2.5 + n / 6), split=split) for n, split in enumerate(names)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--minutes", "0"], "minutes must be positive, got 0"),
        (["--preset", "none"], "preset must be a folder, or one of color, demo, objaverse, "),
        (["--threads", "0"], "threads must be at least 1, got 0"),
        (["--seed", "-1"], "seed must not be negative, got -1"),
        (["--preset", "bench/single_level"], "a VAE and a denoiser for each of at least two levels, got one level"),
        (
            ["--preset", "shapenet-chair"],
            "preset must have train.minutes for every network, got vae-0, denoiser-0, vae-1",
        ),
        (["--mesh", "nowhere.obj"], "nowhere.obj: no such file or folder"),
    ],
)
def test_what_is_refused_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    out = tmp_path / "demo"
    assert cli.main(["demo", "--train", "--out", str(out), *words]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_preset_without_a_denoiser_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("vae-0", "vae-1", "denoiser-1"):
        shutil.copy(PRESETS / "demo" / f"{name}.yaml", tmp_path)
    assert cli.main(["demo", "--train", "--out", str(tmp_path / "demo"), "--preset", str(tmp_path)]) == 2
    assert "for each of at least two levels, got no denoiser-0" in capsys.readouterr().err


def test_a_folder_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert cli.main(["demo", "--train", "--out", str(tmp_path), "--restart"]) == 2
    assert "out must be a new or empty folder, or that of a demo" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_networks_are_gone_before_others_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is interrupted after that would else go on with networks of another dataset."""

    class Interrupted(Exception):
        """In the middle."""

    def interrupted(*_: object) -> None:
        raise Interrupted

    out, run = tmp_path / "demo", tmp_path / "demo" / "runs" / "vae-0"
    monkeypatch.setattr(command, "_build", interrupted)
    with pytest.raises(Interrupted):
        demo(out, train=True, quiet=True)
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    with pytest.raises(Interrupted):
        demo(out, train=True, quiet=True)
    assert (run / "config.json").exists()
    with pytest.raises(Interrupted):
        demo(out, train=True, preset="small", restart=True, quiet=True)
    assert not (run / "config.json").exists()


@pytest.mark.parametrize("train", [[], ["--train"]])
def test_a_mesh_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], train: list[str]
) -> None:
    monkeypatch.setattr(command, "SHAPES", {"demo": 6})
    (tmp_path / "bad.obj").write_text("v 0 0 0\n")
    assert cli.main(["demo", "--out", str(tmp_path / "demo"), "--mesh", str(tmp_path / "bad.obj"), *train]) == 2
    assert "bad.obj cannot be used: " in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_a_gpu_gets_the_larger_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        """Which preset."""

    def read(preset: str) -> Any:
        raise Asked(preset)

    monkeypatch.setattr(command, "read_preset", read)
    for there, expected in {False: "demo", True: "small"}.items():
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        with pytest.raises(Asked, match=expected):
            demo(tmp_path / "demo", train=True)
    with pytest.raises(Asked, match="demo"):
        demo(tmp_path / "demo", train=True, preset="demo")
    assert {path.name for path in PRESETS.iterdir()} >= {"demo", "small"}


def test_samples_that_are_empty_have_no_picture(tmp_path: Path) -> None:
    data, samples = tmp_path / "data", tmp_path / "samples"
    sources = [Source(f"ball-{n}", partial(ball, 3.0 + n), split="train" if n else "test") for n in range(3)]
    build(sources, data, Box((SIDE // 2, SIDE)))
    folder = SampleFolder(samples, {"seed": 0})
    from sparsevox.io import save_voxels

    nothing = ball(5.0).grid.prune(torch.zeros(ball(5.0).num_voxels, dtype=torch.bool))
    save_voxels(Voxels(nothing, {"normal": torch.zeros(0, 3)}), folder.file(0), half=True)
    save_voxels(ball(4.0), folder.file(1), half=True)
    near = {"nearest_chamfer_shape": "ball-1"}
    draw_samples(SampleFolder(samples), {0: near, 1: near}, data, tmp_path / "pictures")
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["shape-000001.png"]
    assert demo_page._sample_text({"voxels": 0}) == "empty"


def test_the_page_escapes_and_misses_nothing(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="is undefined"):
        write_page(tmp_path / "page.html", title="x")
    assert not (tmp_path / "page.html").exists()


def test_curves(tmp_path: Path) -> None:
    logs = tmp_path / "vae-0" / "logs"
    logs.mkdir(parents=True)
    (logs / "metrics.csv").write_text("step,train/loss,val/loss\n9,2.0,\n19,1.0,\n19,,1.5\n")
    draw_curves(tmp_path, ["vae-0"], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert smoothed([1.0, 2.0, 2.0]) == pytest.approx([1.0, 1.1, 1.19])
