"""What the benches set against each other: our grids, the voxel list, and a batch against one grid."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import sparsevox as sv
from bench import baseline
from bench.harness import Contender
from bench.scenes import tile_batch


def grid(coords: Tensor) -> sv.Grid:
    """Coordinates [N, 4] as a grid."""
    return sv.Grid.from_coords(coords)


def ours(run: Callable[..., Any], *operands: Any, view: Callable[[Any], Tensor] = baseline.keys_of) -> Contender:
    """sparsevox; results are compared as sorted keys unless `view` says otherwise."""
    return Contender("sparsevox", partial(run, *operands), view)


def voxel_list(
    run: Callable[..., Any],
    *operands: Any,
    name: str = "voxel list",
    view: Callable[[Any], Tensor] = torch.as_tensor,
) -> Contender:
    """A baseline on the lists of `bench.baseline`; such a list is its own view."""
    return Contender(name, partial(run, *operands), view, baseline=True)


def batch_against_one(
    run: Callable[[Any], Any], operand: Callable[[Tensor], Any] = grid
) -> Callable[[Tensor], Sequence[Contender]]:
    """Prepare a case that asks what it costs that the same voxels come in many small grids."""

    def prepare(coords: Tensor) -> Sequence[Contender]:
        return (
            Contender("batch of 64", partial(run, operand(coords)), _count),
            Contender("one grid", partial(run, operand(tile_batch(coords))), _count, baseline=True),
        )

    return prepare


def _count(result: Any) -> Tensor:
    """The number of voxels of a grid, or of neighbors in a table: that both sides share."""
    return (result >= 0).sum() if isinstance(result, Tensor) else torch.tensor(result.num_voxels)


def on_features(
    name: str,
    function: Callable[..., Tensor],
    *operands: Tensor,
    backward: bool = False,
    baseline: bool = False,
    nbytes: Callable[[Any], int] | None = None,
) -> Contender:
    """A function of floating-point operands that all contenders share; with its gradients for them, if asked for."""
    if not backward:
        return Contender(name, torch.no_grad()(partial(function, *operands)), torch.as_tensor, baseline, nbytes)
    leaves = [operand.detach().clone().requires_grad_() for operand in operands]
    with torch.no_grad():
        shape = function(*operands).shape
    grads = random(*shape, like=operands[0])

    def run() -> tuple[Tensor, ...]:
        output = function(*leaves)
        return output.detach(), *torch.autograd.grad(output, leaves, grads)

    return Contender(name, run, _flat, baseline, nbytes)


def random(*shape: int, like: Tensor) -> Tensor:
    """Normally distributed numbers, the same in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)


def _flat(parts: tuple[Tensor, ...]) -> Tensor:
    """An output and gradients, those that are sums over many elements of the output made smaller."""
    size = parts[0].numel()
    return torch.cat([part.float().flatten() / max(1, size / part.numel()) ** 0.5 for part in parts])
