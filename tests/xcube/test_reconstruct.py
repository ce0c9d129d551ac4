"""Shapes through a VAE and back, from Python and files: nothing, too much, and what does not fit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsevox import Mesh, Voxels
from sparsevox.io import from_trimesh, load_mesh, save_mesh, save_points
from sparsevox.shapes import Points
from tests.xcube.balls import SIDE, ball
from xcube.cli import main
from xcube.data.hierarchy import Box, build_hierarchy
from xcube.networks.configs import RefinerConfig, VAEConfig
from xcube.networks.pretrained import save_pretrained
from xcube.networks.refiner import Refiner
from xcube.networks.vae import VAE
from xcube.pipeline.reconstruct import box_of, reconstruct, reconstruct_file

trimesh = pytest.importorskip("trimesh", reason="makes the meshes")

SMALL: dict[str, Any] = {"voxel_size": 1 / SIDE, "channels": (8, 8), "latent_channels": 2, "hidden": 4}


def vae(**changes: Any) -> VAE:
    torch.manual_seed(0)
    return VAE(VAEConfig(**(SMALL | changes))).eval()


def refiner(**changes: Any) -> Refiner:
    torch.manual_seed(0)
    small: dict[str, Any] = {"voxel_size": 1 / SIDE, "channels": (8, 8, 8)}
    return Refiner(RefinerConfig(**(small | changes))).eval()


NOTHING = ball(4.0).prune(torch.zeros(ball(4.0).num_voxels, dtype=torch.bool))


# From Python


@pytest.mark.parametrize("changes", [{}, {"dense_neck": (4, 4, 4)}, {"attention": True}])
def test_an_empty_item_changes_nothing_for_the_others(changes: dict[str, Any]) -> None:
    network, repair = vae(**changes), refiner()
    together = reconstruct(Voxels.stack([ball(4.0), NOTHING, ball(5.0)]), network, repair)
    assert together.best.batch_size == 3
    assert together.metrics()["voxels"] == ball(4.0).num_voxels + ball(5.0).num_voxels
    assert together.refined is not None
    for item, radius in ((0, 4.0), (2, 5.0)):
        alone = reconstruct(ball(radius), network, repair)
        assert alone.refined is not None
        for whole, single in ((together.decoded, alone.decoded), (together.refined, alone.refined)):
            assert whole.unbind()[item].grid.same_voxels(single.grid)
    if not changes:  # a full box of latents decodes to whatever it decodes to
        assert together.decoded.unbind()[1].num_voxels == 0


def test_nothing_alone_is_nothing() -> None:
    result = reconstruct(NOTHING, vae(), refiner())
    assert (result.decoded.num_voxels, result.best.num_voxels) == (0, 0)
    assert result.metrics()["iou"] == 1.0  # nothing was to be found, and nothing was


def test_voxels_that_do_not_fit_the_model_are_named() -> None:
    coarse = Voxels(ball(4.0).grid.coarsen(2), {"normal": torch.zeros(ball(4.0).grid.coarsen(2).num_voxels, 3)})
    with pytest.raises(ValueError, match=r"voxels must have voxel_size \(0.0625, .*, got \(0.125"):
        reconstruct(coarse, vae())
    with pytest.raises(KeyError, match="got voxels without"):
        reconstruct(Voxels(ball(4.0).grid), vae())


# From files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pretrained(vae(), tmp_path / "vae")
    save_mesh(from_trimesh(trimesh.creation.icosphere(2)), tmp_path / "ball.obj")
    return tmp_path


def failed(folder: Path, capsys: pytest.CaptureFixture[str], shape: str, *words: str, model: str = "vae") -> str:
    """What the command says of a shape that it cannot use."""
    command = ["reconstruct", str(folder / shape), "--model", str(folder / model), "--out", str(folder / "out")]
    assert main([*command, "--samples", "1000", *words]) == 2
    assert not (folder / "out").exists()
    return capsys.readouterr().err


def test_the_box_is_the_recorded_one(folder: Path) -> None:
    metadata: dict[str, Any] = {"level": 1, "levels": [8, 16, 32], "size": [2.0, 2.0, 1.0]}
    network = vae(voxel_size=1 / 8)
    box, level = box_of(network, metadata)
    assert (box.levels, box.size, level) == ((8, 16, 32), (2.0, 2.0, 1.0), 1)
    box, level = box_of(network, {})
    assert (box.levels, box.size, level) == ((4, 8), (1.0, 1.0, 1.0), 1)
    save_pretrained(network, folder / "vae", **metadata)
    metrics = reconstruct_file(folder / "ball.obj", folder / "vae", folder / "out", samples=1000)
    mesh, box = load_mesh(folder / "ball.obj"), Box((8, 16, 32), (2.0, 2.0, 1.0))
    expected = build_hierarchy(mesh, box, samples=10, outside="rescale")[1].grid
    assert metrics["voxels"] == expected.num_voxels
    lower, upper = expected.bounds()
    assert (upper - lower).tolist() == [[6, 6, 6]]  # of eight that the box is high, with the margin of all its levels


def test_shapes_without_what_the_model_takes_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_pretrained(vae(num_labels=3), folder / "labels")
    message = failed(folder, capsys, "ball.obj", model="labels")
    assert "must have the attributes ['normal', 'label'] that the model takes, got none of ['label']" in message
    save_points(Points(torch.rand(100, 3) - 0.5), folder / "scan.npz")
    assert "got none of ['normal']" in failed(folder, capsys, "scan.npz")


@pytest.mark.parametrize(
    ("text", "message"), [("", "ball.obj"), ("v 0 0 0\nv 1 0 0\n", "ball.obj"), (None, "ball.obj")]
)
def test_meshes_of_nothing_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str | None, message: str
) -> None:
    (folder / "ball.obj").unlink()
    if text is not None:
        (folder / "ball.obj").write_text(text)
    assert message in failed(folder, capsys, "ball.obj")


def test_meshes_outside_of_the_box_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    far = from_trimesh(trimesh.creation.icosphere(1))
    save_mesh(Mesh(far.vertices + 100, far.faces), folder / "far.ply")
    assert "box" in failed(folder, capsys, "far.ply", "--outside", "error")
    assert "shape must have voxels inside the box" in failed(folder, capsys, "far.ply", "--outside", "clip")


def test_a_refiner_of_another_level_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_pretrained(refiner(voxel_size=1 / 32), folder / "refiner")
    message = failed(folder, capsys, "ball.obj", "--refiner", str(folder / "refiner"))
    assert "refiner must have the voxel_size 0.0625, like" in message
    assert "got 0.03125" in message


def test_folders_are_checked_before_anything_is_loaded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, weights = folder / "vae" / "config.json", folder / "vae" / "model.safetensors"
    whole, values = file.read_text(), json.loads(file.read_text())
    damaged = {
        "": "config.json is damaged",
        whole[:50]: "config.json is damaged",
        "[]": "must have format 1",
        json.dumps(values | {"metadata": None}): "must have a config and metadata",
        json.dumps(values | {"config": {"chanels": [8]}}): "VAEConfig has no field chanels; it has",
        json.dumps(values | {"config": {"channels": "many"}}): "config.json does not fit a vae",
        json.dumps(values | {"kind": "refiner"}): "holds a refiner, not a vae",
    }
    for text, message in damaged.items():
        file.write_text(text)
        assert message in failed(folder, capsys, "ball.obj"), text
    # Weights of a network that is another by its configuration.
    file.write_text(json.dumps(values | {"config": values["config"] | {"channels": [8, 16], "attention": True}}))
    message = failed(folder, capsys, "ball.obj")
    assert "does not fit the model; missing: decoder.attention" in message
    assert "encoder.out.weight [4, 8] in place of [4, 16]" in message
    file.write_text(whole)
    for size in (0, 5, len(weights.read_bytes()) - 1):
        weights.write_bytes(weights.read_bytes()[:size])
        assert "model.safetensors is damaged" in failed(folder, capsys, "ball.obj")
    weights.unlink()
    assert "there is no" in failed(folder, capsys, "ball.obj")


def test_points_are_as_welcome_as_meshes(folder: Path) -> None:
    positions = np.array(trimesh.creation.icosphere(4, radius=0.4).vertices)
    made = torch.from_numpy(positions)
    save_points(Points(made, {"normal": (made / 0.4).float()}), folder / "scan.ply")
    metrics = reconstruct_file(folder / "scan.ply", folder / "vae", folder / "out")
    assert metrics["voxels"] > 300
    assert 0 <= metrics["normal_angle"] <= 180


def test_the_model_in_the_package_is_the_default(tmp_path: Path) -> None:
    low = trimesh.creation.box((1.0, 0.2, 0.6))  # along y
    low.export(tmp_path / "low.obj")
    assert main(["reconstruct", str(tmp_path / "low.obj"), "--up", "y", "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["iou"] > 0.9
    lower, upper = load_mesh(tmp_path / "out" / "reconstruction.glb").bounds
    assert (upper - lower).tolist() == pytest.approx([0.56, 0.93, 0.19], abs=0.06)
