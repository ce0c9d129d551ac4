"""The example networks have the documented shapes and learn."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def _examples_import_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    for name in ("scenes", "training", "segmentation", "birdseye", "classification", "topology"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def losses(model: nn.Module, loss: object, steps: int) -> list[float]:
    """Of repeated steps on one batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    found = []
    for _ in range(steps):
        value = loss()  # type: ignore[operator]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        found.append(value.item())
    return found


@pytest.mark.parametrize(("width", "parameters"), [(0.5, 5_000_000), (1.0, 21_000_000)])
def test_minkunet(width: float, parameters: int) -> None:
    torch.manual_seed(0)
    example = load("segmentation")
    model = example.MinkUNet(4, 5, width)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.1)
    x, labels = example.scene([7])
    y = model.eval()(x)
    assert y.grid is x.grid
    assert y.channels == 5
    assert sorted(labels.unique().tolist()) == [0, 1, 2, 3, 4]
    if width < 1:
        found = losses(model.train(), lambda: nn.functional.cross_entropy(model(x).feats, labels), 4)
        assert found[-1] < 0.7 * found[0]


def test_mean_iou() -> None:
    mean, each = load("segmentation").mean_iou(torch.tensor([0, 0, 1, 2, 3]), torch.tensor([0, 1, 1, 2, 4]))
    assert each == [0.5, 0.5, 1.0, 0.0, 0.0]
    assert mean == pytest.approx(0.4)


def test_birdseye() -> None:
    pytest.importorskip("matplotlib", reason="needs the extra viz")
    torch.manual_seed(0)
    example = load("birdseye")
    model = example.Network()
    x, cars = example.batch([3])
    assert cars.any()
    assert model(x).shape == cars.shape == (1, example.CELLS, example.CELLS)
    found = losses(model, lambda: nn.functional.binary_cross_entropy_with_logits(model(x), cars.float()), 4)
    assert found[-1] < 0.9 * found[0]


def test_classification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra viz")
    torch.manual_seed(0)
    example = load("classification")
    x, labels = example.batch(range(20))
    assert sorted(labels.unique().tolist()) == [0, 1, 2, 3, 4]
    model = example.network(5)
    found = losses(model, lambda: nn.functional.cross_entropy(model(x), labels), 8)
    assert found[-1] < 0.5 * found[0]
    monkeypatch.setattr(sys, "argv", ["classification.py", "--seconds", "1", "--out", str(tmp_path)])
    example.main()
    assert (tmp_path / "classification.png").stat().st_size > 1000


def test_a_mesh_becomes_levels_of_voxels_and_a_mesh_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trimesh = pytest.importorskip("trimesh", reason="needs the extra io")
    pytest.importorskip("matplotlib", reason="needs the extra viz")
    trimesh.creation.icosphere(subdivisions=2).export(tmp_path / "ball.ply")
    arguments = ["hierarchy.py", "--out", str(tmp_path), "--mesh", str(tmp_path / "ball.ply"), "--resolution", "16"]
    monkeypatch.setattr(sys, "argv", arguments)
    load("hierarchy").main()
    surface = trimesh.load_mesh(tmp_path / "surface.glb")
    assert surface.is_watertight
    assert surface.volume == pytest.approx(4 / 3 * 3.14159 * 0.5**3, rel=0.1)
    assert {"hierarchy.png", "hierarchy.html", "voxels.npz"} <= {path.name for path in tmp_path.iterdir()}
