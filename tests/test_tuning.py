"""`sv.tune`, in the interpreter or on a GPU: other tiles, the same bits."""

import pytest
import torch
from torch import nn

import sparsevox as sv

pytest.importorskip("triton", reason="kernels need Triton")

from sparsevox import tuning
from sparsevox.kernels import _conv_configs as configs
from sparsevox.kernels import conv as kernels


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEVOX_BACKEND", "triton")
    monkeypatch.setattr(configs, "tuned", {})


def some_tensor(device: torch.device) -> sv.SparseTensor:
    torch.manual_seed(0)
    grid = sv.Grid.from_coords(torch.randint(-4, 4, (150, 3), device=device))
    return sv.SparseTensor(grid, torch.randn(grid.num_voxels, 16, device=device))


def run(model: nn.Module, x: sv.SparseTensor) -> list[torch.Tensor]:
    feats = x.feats.clone().requires_grad_()
    y = model(x.replace(feats)).feats
    y.square().sum().backward()
    assert feats.grad is not None
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return [y.detach(), feats.grad, *grads]


def test_tuned_results_are_the_same_bits(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    model = sv.nn.Sequential(sv.nn.Conv3d(16, 32, 3), sv.nn.BatchNorm(32), sv.nn.Conv3d(32, 16, 2, stride=2)).to(device)
    x = some_tensor(device)
    before, state = run(model, x), [value.clone() for value in model.state_dict().values()]
    monkeypatch.setattr(tuning, "_candidates", lambda op: [configs.Config(64, 32, 4, 2), configs.Config(32, 16, 4, 3)])
    # Every candidate seems faster than what came before it.
    clock = iter(range(1000, 0, -1))
    monkeypatch.setattr(tuning, "_milliseconds", lambda call: float(next(clock)))
    report = sv.tune(model, x)
    assert all(torch.equal(a, b) for a, b in zip(state, model.state_dict().values(), strict=True))
    assert {(r.op, r.in_channels, r.out_channels) for r in report} == {
        *(("conv", 16, 32), ("conv", 32, 16)),  # of both layers, forward and backward
        *(("conv_weight", 16, 32), ("conv_weight", 32, 16)),
    }
    assert all(r.tried == 2 and r.best_ms < r.default_ms for r in report)
    assert set(configs.tuned.values()) == {configs.Config(32, 16, 4, 3)}
    assert all(torch.equal(a, b) for a, b in zip(before, run(model, x), strict=True))


@pytest.mark.parametrize("error", [1.0, torch.nan])
def test_a_candidate_that_changes_results_is_refused(
    error: float, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, honest = some_tensor(device), kernels.conv
    model = sv.nn.Conv3d(16, 16, 3, bias=False).to(device).eval()
    nn.init.zeros_(model.weight)
    monkeypatch.setattr(kernels, "conv", lambda *args: honest(*args) + (error if configs.tuned else 0))
    monkeypatch.setattr(tuning, "_candidates", lambda op: [configs.Config(64, 16, 4, 2)])
    clock = iter(range(1000, 0, -1))
    monkeypatch.setattr(tuning, "_milliseconds", lambda call: float(next(clock)))
    (found,) = sv.tune(model, x)
    assert (found.tried, found.best_ms) == (1, found.default_ms)
    assert not configs.tuned


class Two(nn.Module):
    """Two convolutions of the same features, in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = sv.nn.Conv3d(16, 8, 3), sv.nn.Conv3d(16, 16, 3, groups=2)

    def forward(self, x: sv.SparseTensor) -> dict[str, object]:
        return {"one": self.one(x), "others": [self.other(x).feats, None]}


def test_all_that_a_model_returns_is_differentiated(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_candidates", lambda op: [])
    report = sv.tune(Two().to(device), some_tensor(device))
    kinds = {(r.in_channels, r.out_channels, r.groups) for r in report if r.op == "conv_weight"}
    assert kinds == {(16, 8, 1), (8, 8, 2)}


def test_what_was_best_is_tried_again(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = sv.nn.Conv3d(16, 16, 3).to(device).eval(), some_tensor(device)
    clock = iter(range(1000, 0, -1))
    monkeypatch.setattr(tuning, "_milliseconds", lambda call: float(next(clock)))
    for candidates in ([configs.Config(64, 16, 4, 2)], []):
        monkeypatch.setattr(tuning, "_candidates", lambda op, found=candidates: found)
        (found,) = sv.tune(model, x)
        assert found.tried == 1
        assert list(configs.tuned.values()) == [configs.Config(64, 16, 4, 2)]


def test_the_budget_is_kept(device: torch.device) -> None:
    (found,) = sv.tune(sv.nn.Conv3d(16, 16, 3).to(device).eval(), some_tensor(device), budget_s=0)
    assert found.tried == 0
    with pytest.raises(ValueError, match="budget_s must not be negative, got -1"):
        sv.tune(nn.Identity(), budget_s=-1)


def test_the_reference_has_nothing_to_tune(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEVOX_BACKEND", "reference")
    assert sv.tune(sv.nn.Conv3d(16, 16, 3), some_tensor(torch.device("cpu"))) == []
