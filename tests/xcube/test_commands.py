"""Commands from end to end, on the smallest data that make sense."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsevox.io import from_trimesh, save_mesh
from xcube.cli import main
from xcube.networks.configs import RefinerConfig, VAEConfig
from xcube.networks.pretrained import from_pretrained, save_pretrained
from xcube.networks.refiner import Refiner
from xcube.networks.vae import VAE

FAMILIES = {"chair", "table", "sofa", "lamp", "airplane", "car", "bed", "cabinet"}

trimesh = pytest.importorskip("trimesh", reason="makes the meshes")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    assert (
        main(["data", "procedural", "--out", str(folder), "--count", "24", "--levels", "16,32", "--workers", "0"]) == 0
    )
    return folder


def test_procedural_shapes_and_scenes(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = (parts / "index.csv").read_text().splitlines()
    assert len(rows) == 25
    assert {row.split("-")[0] for row in rows[1:]} == FAMILIES
    with np.load(parts / "shapes" / rows[1].split(",")[0] / "32.npz") as file:
        assert {"ijk", "attribute:normal", "attribute:label"} <= set(file.files)
    out = tmp_path / "streets"
    words = ["data", "scenes", "--out", str(out), "--count", "1", "--levels", "32,64", "--workers", "0"]
    assert main(words) == 0
    assert capsys.readouterr().out == "1 shapes built, 0 skipped\n"


def test_view_writes_a_page(parts: Path, tmp_path: Path) -> None:
    save_mesh(from_trimesh(trimesh.creation.box()), tmp_path / "box.ply")
    name = (parts / "index.csv").read_text().splitlines()[1].split(",")[0]
    files = [str(parts / "shapes" / name / "32.npz"), str(tmp_path / "box.ply"), str(parts)]
    assert main(["view", *files, "--page", str(tmp_path / "page.html"), "--limit", "2"]) == 0
    page = (tmp_path / "page.html").read_text()
    assert re.search(r"shapes/\w+-\d+", page)
    assert "box" in page
    assert main(["view", str(tmp_path / "nothing.ply"), "--page", str(tmp_path / "b.html")]) == 2


def test_training_and_reconstruction(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--train.steps", "2", "--train.batch_size", "2", "--train.val_every", "10"]
    model = ["--model.voxel_size", "0.03125", "--model.channels", "[8,8]"]
    words = ["train", "vae", "--config", "tiny/vae-64", "--data", str(parts), "--out", str(tmp_path / "vae")]
    assert main([*words, *model, *small]) == 0
    assert from_pretrained(tmp_path / "vae", VAE).config.hidden == 16  # of the preset
    words = [
        "train",
        "refiner",
        "--data",
        str(parts),
        "--vae",
        str(tmp_path / "vae"),
        "--out",
        str(tmp_path / "refiner"),
    ]
    assert main([*words, "--model.voxel_size", "0.03125", "--model.channels", "[8,8,8]", *small]) == 0
    save_mesh(from_trimesh(trimesh.creation.icosphere(3)), tmp_path / "ball.obj")
    out = tmp_path / "ball"
    words = ["reconstruct", str(tmp_path / "ball.obj"), "--model", str(tmp_path / "vae"), "--out", str(out)]
    assert main([*words, "--refiner", str(tmp_path / "refiner"), "--samples", "10000"]) == 0
    names = {"metrics.json", "reconstruction.glb", "reconstruction.html", "reconstruction.png"}
    assert {path.name for path in out.iterdir()} == names
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["voxels"] > 1000
    assert 0 <= metrics["iou"] <= 1
    assert "refined_iou" in metrics
    assert "reconstruction.png" in capsys.readouterr().out


def test_an_empty_decode_is_reconstructed_all_the_same(tmp_path: Path) -> None:
    model = VAE(VAEConfig(voxel_size=1 / 16, channels=(8, 8), latent_channels=2, hidden=4))
    torch.nn.init.zeros_(model.decoder.root.out.weight)
    torch.nn.init.constant_(model.decoder.root.out.bias, -1.0)
    save_pretrained(model, tmp_path / "vae")
    save_pretrained(Refiner(RefinerConfig(voxel_size=1 / 16, channels=(8, 8, 8))), tmp_path / "refiner")
    save_mesh(from_trimesh(trimesh.creation.icosphere(2)), tmp_path / "ball.obj")
    ball, vae, out = (str(tmp_path / name) for name in ("ball.obj", "vae", "out"))
    words = ["reconstruct", ball, "--model", vae, "--out", out, "--samples", "1000"]
    assert main([*words, "--refiner", str(tmp_path / "refiner")]) == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["decoded_voxels"] == 0
    assert not (tmp_path / "out" / "reconstruction.glb").exists()


def test_files_that_are_none_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path / "a.ckpt"), "--out", str(tmp_path)]) == 2
    assert "a.ckpt" in capsys.readouterr().err
    assert main(["reconstruct", str(tmp_path / "a.obj"), "--model", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "vae", "--data", "x", "--out", "y", "--model.chanels", "[8]"])
    assert "chanels" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "message"), [
    ("modell: {}", "among data, out, level, model, loss, train, augment, initial, restart, quiet, threads, got"
     " ['modell']"),
    ("level: 0\nmodel:\n  chanels: [8]", "VAEConfig has no field chanels; it has architecture, attention, box,"),
    ("train: {steps: 0}", "steps must be at least 1, got 0"),
    ("{", "must be a YAML file: "),
    ("- 1", "must hold options among"),
])  # fmt: skip
def test_files_of_options_that_do_not_fit_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    for words in (["--config", str(file)], [f"--config={file}"]):
        assert main(["train", "vae", *words, "--data", "x", "--out", "y"]) == 2
        assert message in capsys.readouterr().err


def test_a_preset_is_found_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--config", "demo/vae-1"], ["--config=demo/vae-1"]):
        assert main(["train", "vae", *words, "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
        assert "none" in capsys.readouterr().err
