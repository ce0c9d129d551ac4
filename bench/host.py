"""Time that the host needs per layer with cached maps, compared with the same layer of PyTorch on a tiny volume.

A GPU waits for the host where layers are small. `bench/fake_gpu.py` says what is measured. There are three phases:
inference, forward in training, and a training step: forward and backward, with the gradients of all operands.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional

import sparsevox as sv
from bench import fake_gpu
from bench.contenders import random
from bench.harness import Case, Contender, HostCalls, Target
from sparsevox import _readback

SIZE, C, GROUPS = 3, 4, 2  # voxels per side, channels, groups of a norm
PHASES = ("inference", "forward in training", "training step")
# PYTHONPATH may select the library of another checkout.
OTHER = "" if Path(sv.__file__).parents[1] == Path(__file__).parents[1] else ", other version"
# Ops for which the host waits for a GPU.
WAITS = {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::masked_select"}


class Layer(NamedTuple):
    """A layer of sparsevox on a grid, and the same layer of PyTorch."""

    ours: Callable[[sv.Grid], Callable[[sv.SparseTensor], Any]]
    theirs: Callable[[], Callable[[Tensor], Tensor]]
    bounds: tuple[float | None, float | None, float | None] = (None, None, None)  # largest ratio in each phase
    coarse: bool = False  # whether the input is on the coarse voxels


class OnGrid(nn.Module):
    """A layer whose output is on the voxels of a given grid."""

    def __init__(self, layer: nn.Module, grid: sv.Grid) -> None:
        super().__init__()
        self.layer, self.grid = layer, grid

    def forward(self, x: sv.SparseTensor) -> Any:
        """Apply the layer."""
        return self.layer(x, grid=self.grid)


THREE = (3.0, 3.0, 3.0)
LAYERS = {
    "Conv3d k3": Layer(
        lambda grid: sv.nn.Conv3d(C, C, 3), lambda: nn.Conv3d(C, C, 3, padding=1), bounds=(3.0, None, 2.2)
    ),
    "Conv3d k3, stride 2": Layer(
        lambda grid: sv.nn.Conv3d(C, C, 3, stride=2), lambda: nn.Conv3d(C, C, 3, stride=2, padding=1)
    ),
    "ConvTranspose3d k3, stride 2": Layer(
        lambda grid: OnGrid(sv.nn.ConvTranspose3d(C, C, 3, stride=2), grid),
        lambda: nn.ConvTranspose3d(C, C, 3, stride=2, padding=1),
        coarse=True,
    ),
    "GroupNorm": Layer(lambda grid: sv.nn.GroupNorm(GROUPS, C), lambda: nn.GroupNorm(GROUPS, C), THREE),
    "Conv3d, GroupNorm, SiLU": Layer(
        lambda grid: sv.nn.Sequential(sv.nn.Conv3d(C, C, 3), sv.nn.GroupNorm(GROUPS, C), nn.SiLU()),
        lambda: nn.Sequential(nn.Conv3d(C, C, 3, padding=1), nn.GroupNorm(GROUPS, C), nn.SiLU()),
    ),
    "MaxPool3d": Layer(lambda grid: sv.nn.MaxPool3d(2), lambda: nn.MaxPool3d(2), THREE),
    "AvgPool3d": Layer(lambda grid: sv.nn.AvgPool3d(2), lambda: nn.AvgPool3d(2), THREE),
    "Upsample": Layer(
        lambda grid: OnGrid(sv.nn.Upsample(2), grid), lambda: nn.Upsample(scale_factor=2), THREE, coarse=True
    ),
    "GlobalPool": Layer(lambda grid: sv.nn.GlobalPool(), lambda: nn.AdaptiveAvgPool3d(1)),
    "Linear": Layer(lambda grid: sv.nn.Linear(C, C), lambda: nn.Linear(SIZE, SIZE)),
    "cat": Layer(lambda grid: lambda x: sv.cat([x, x]), lambda: lambda x: torch.cat([x, x], 1)),
    "x + x": Layer(lambda grid: lambda x: x + x, lambda: lambda x: x + x),
    "map(silu)": Layer(lambda grid: lambda x: x.map(functional.silu), lambda: functional.silu),
}


def cached_maps(grid: sv.Grid) -> Sequence[object]:
    """Make the grids and maps of all layers. They exist as long as the result."""
    coarse, strided = grid.coarsen(2), grid.strided(3)
    inner, down = grid.kernel_map(3), grid.kernel_map(3, stride=2)
    up = grid.kernel_map(3, stride=2, target=coarse)
    pairs = [direction.pairs for m in (inner, down, up) for direction in (m.down, m.up)]
    return coarse, strided, grid.child_map(2), pairs


def in_phase(layer: Callable[[Any], Any], x: Any, feats: Tensor, phase: str) -> Callable[[], Any]:
    """Return the call to measure: a layer applied to `x`, whose features are `feats`."""
    if phase == "inference":
        return torch.inference_mode()(lambda: layer(x))
    if phase == "forward in training":
        return lambda: layer(x)
    leaves = [feats, *layer.parameters()] if isinstance(layer, nn.Module) else [feats]
    grad = torch.randn_like(features(layer(x)))
    return lambda: torch.autograd.grad(features(layer(x)), leaves, grad)


def features(result: Any) -> Tensor:
    """Return the features of a result."""
    feats: Tensor = result.feats if isinstance(result, sv.SparseTensor) else result
    return feats


def count_calls(run: Callable[[], Any]) -> HostCalls:
    """Count the calls of one run, and check that the host does not wait for the device.

    Raises:
        AssertionError: If it waits.
    """
    run()  # compiles kernels and makes plans
    launches, reads = fake_gpu.launches, _readback.calls
    quiet = mock.patch.dict(os.environ, {"KINETO_LOG_LEVEL": "99"})
    with quiet, torch.autograd.profiler.profile() as profiler:
        run()
    events = [event for event in profiler.function_events if event.name.startswith("aten::")]
    waits = sorted(event.name for event in events if event.name in WAITS)
    assert not waits, f"the host must not wait for the device, but calls {', '.join(waits)}"
    assert _readback.calls == reads, "the host must not read from the device"
    return HostCalls(fake_gpu.launches - launches, sum(not _inside_aten(event) for event in events))


def _inside_aten(event: Any) -> bool:
    parent = event.cpu_parent
    while parent is not None and not parent.name.startswith("aten::"):
        parent = parent.cpu_parent
    return parent is not None


def compare(coords: Tensor, *, layer: Layer, phase: str, bound: float | None) -> Sequence[Contender]:
    """Compare a layer with that of PyTorch. No kernel runs, so there are no results to compare."""
    with mock.patch.dict(os.environ, {"SPARSEVOX_BACKEND": "reference"}):
        fine = sv.Grid.from_coords(coords)
        maps = cached_maps(fine)
    grid, size = (fine.coarsen(2), 2) if layer.coarse else (fine, SIZE)
    like = torch.empty(0)
    feats, volume = random(grid.num_voxels, C, like=like), random(1, C, size, size, size, like=like)
    for tensor in (feats, volume):
        tensor.requires_grad_(phase != "inference")
    ours = in_phase(layer.ours(fine), sv.SparseTensor(grid, feats), feats, phase)
    theirs = in_phase(layer.theirs(), volume, volume, phase)
    target = None if bound is None else Target("time", "<=", bound)

    def nothing(result: object, kept: object = maps) -> Tensor:
        return like

    return (
        Contender("sparsevox", ours, nothing, host=count_calls(ours)),
        Contender("torch", theirs, nothing, baseline=True, host=count_calls(theirs), target=target),
    )


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Yield a case per layer and phase, on the CPU only: on a GPU the kernels would run."""
    if device.type != "cpu":
        return
    for name, layer in LAYERS.items():
        for phase, bound in zip(PHASES, layer.bounds, strict=True):
            yield Case(
                f"host: {name}, {phase}{OTHER}",
                "block",
                SIZE,
                partial(compare, layer=layer, phase=phase, bound=bound),
                dtype="float32",
                timer=time.thread_time,
                context=fake_gpu.fake_gpu,
            )
