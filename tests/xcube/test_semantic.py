"""Streets: labels, intensity, unequal strides and a dense neck, from the command line; and lower precision."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from xcube.cli import main
from xcube.data.loading import ShapeFolder
from xcube.networks.losses import Losses
from xcube.networks.pretrained import from_pretrained, read_config
from xcube.networks.refiner import Refiner
from xcube.networks.vae import VAE
from xcube.training.modules import NetworkModule

FAST = ["--train.steps", "3", "--train.batch_size", "2", "--train.val_every", "100", "--quiet"]


def train(kind: str, data: Path, out: Path, *words: str) -> dict[str, float]:
    assert main(["train", kind, "--data", str(data), "--out", str(out), *words, *FAST]) == 0
    metrics: dict[str, float] = json.loads((out / "metrics.json").read_text())
    return metrics


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "streets"
    words = ["--count", "4", "--levels", "16,32", "--size", "51.2,51.2,12.8", "--workers", "0"]
    assert main(["data", "scenes", "--out", str(folder), *words]) == 0
    return folder


def test_streets_with_labels_unequal_strides_and_a_dense_neck(streets: Path, tmp_path: Path) -> None:
    network = ["--model.channels", "[8,8,16]", "--model.strides", "[[2,2,1],[2,2,2]]", "--model.dilation", "none"]
    network += ["--model.dense_neck", "[4,4,2]", "--model.num_labels", "16", "--model.voxel_size", "1.6"]
    train("vae", streets, tmp_path / "vae", *network, "--model.hidden", "8")
    vae, metadata = from_pretrained(tmp_path / "vae", VAE), read_config(tmp_path / "vae")["metadata"]
    assert (metadata["size"], metadata["levels"], metadata["attributes"]) == (
        [51.2, 51.2, 12.8],
        [16, 32],
        ["label", "normal"],
    )
    shape = ShapeFolder(streets, "train")[0]
    with torch.no_grad():
        decoded = vae.train().decode(vae.encode(shape).mode(), shape.grid).voxels  # at least what is true
    assert vae.latent_grid(shape.grid).num_voxels == 8 * 8 * 4
    assert decoded.grid.contains(shape.grid.coords).all()
    lower, upper = decoded.grid.bounds()
    assert -16 <= min(lower.flatten().tolist()) <= max(upper.flatten().tolist()) <= 16
    assert set(decoded.attributes) == {"normal", "label", "label_logits"}
    words = ["--vae", str(tmp_path / "vae"), "--model.num_labels", "16", "--model.voxel_size", "1.6"]
    train("refiner", streets, tmp_path / "refine", *words, "--model.channels", "[8,8,8]")
    refined = from_pretrained(tmp_path / "refine", Refiner)(decoded)
    assert refined.candidates.attributes["label_logits"].shape == (refined.candidates.num_voxels, 16)
    assert refined.candidates.num_voxels > decoded.num_voxels


def test_labels_and_intensity_without_normals(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(4):
        ijk = np.unique(rng.integers(4, 12, (60, 3)), axis=0)
        intensity = rng.uniform(0, 1, (len(ijk), 1)).astype(np.float32)
        np.savez(tmp_path / "in" / f"{number}.npz", ijk=ijk, label=ijk[:, 0] % 3, intensity=intensity)
    words = ["--layout", "voxels", "--levels", "4,16", "--attributes", "label,intensity", "--workers", "0"]
    data = ["data", "build", str(tmp_path / "in"), "--out", str(tmp_path / "data"), *words]
    assert main([*data, "--splits", '{"train": 0.5, "val": 0.5}']) == 0
    network = ["--model.normal", "false", "--model.intensity", "true", "--model.num_labels", "3"]
    network += ["--model.channels", "[8,8]", "--model.voxel_size", "0.0625"]
    metrics = train("vae", tmp_path / "data", tmp_path / "vae", *network)
    assert {"label", "iou", "accuracy-0"} <= set(metrics)
    assert "normal_angle" not in metrics
    points = rng.uniform(-0.3, 0.3, (200, 3)).astype(np.float32)
    label, intensity = rng.integers(0, 3, 200), rng.uniform(0, 1, 200).astype(np.float32)
    np.savez(tmp_path / "scan.npz", positions=points, label=label, intensity=intensity)
    shape, model, out = (str(tmp_path / name) for name in ("scan.npz", "vae", "out"))
    assert main(["reconstruct", shape, "--model", model, "--out", out]) == 0
    assert (tmp_path / "out" / "reconstruction.png").is_file()


def test_lower_precision_is_nearly_as_good(streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Losses]] = {"32-true": [], "bf16-mixed": []}
    network = ["--model.channels", "[8,8]", "--model.voxel_size", "1.6", "--model.num_labels", "16"]
    for precision, found in seen.items():
        with monkeypatch.context() as patch:
            patch.setattr(NetworkModule, "_log", lambda self, stage, losses, batch, found=found: found.append(losses))
            train("vae", streets, tmp_path / precision, *network, "--train.precision", precision)
    assert [len(found) for found in seen.values()] == [3, 3]
    for full, half in zip(*seen.values(), strict=True):
        assert full.terms.keys() == half.terms.keys() == half.weights.keys()
        for name, value in (half.terms | half.metrics).items():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, (full.terms | full.metrics)[name], rtol=0.05, atol=0.05, msg=name)
        assert not torch.equal(half.terms["structure-0"], full.terms["structure-0"])  # it was another
    state = from_pretrained(tmp_path / "bf16-mixed", VAE).state_dict()
    assert {value.dtype for value in state.values()} == {torch.float32}
