"""Constructors of common contenders: sparsevox, the voxel list, a batch and a single grid, functions of features."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import sparsevox as sv
from bench import baseline
from bench.harness import Contender
from bench.scenes import tile_batch

BACKWARD = ", forward and backward"  # suffix of the names of cases


def grid(coords: Tensor) -> sv.Grid:
    """Build a grid from coordinates [N, 4]."""
    return sv.Grid.from_coords(coords)


def ours(run: Callable[..., Any], *operands: Any, view: Callable[[Any], Tensor] = baseline.keys_of) -> Contender:
    """Create the contender sparsevox. Results are compared as sorted keys unless `view` says otherwise."""
    return Contender("sparsevox", partial(run, *operands), view)


def voxel_list(
    run: Callable[..., Any],
    *operands: Any,
    name: str = "voxel list",
    view: Callable[[Any], Tensor] = torch.as_tensor,
) -> Contender:
    """Create a baseline on the lists of `bench.baseline`."""
    return Contender(name, partial(run, *operands), view, baseline=True)


def batch_against_one(
    run: Callable[[Any], Any], operand: Callable[[Tensor], Any] = grid
) -> Callable[[Tensor], Sequence[Contender]]:
    """Compare a batch of 64 small grids with a single grid of the same voxels."""

    def prepare(coords: Tensor) -> Sequence[Contender]:
        return (
            Contender("batch of 64", partial(run, operand(coords)), _count),
            Contender("one grid", partial(run, operand(tile_batch(coords))), _count, baseline=True),
        )

    return prepare


def _count(result: Any) -> Tensor:
    """Count the voxels of a grid or the neighbors in a table, which must agree."""
    return (result >= 0).sum() if isinstance(result, Tensor) else torch.tensor(result.num_voxels)


def on_features(
    name: str,
    function: Callable[..., Tensor],
    *operands: Tensor,
    backward: bool = False,
    baseline: bool = False,
    nbytes: Callable[[Any], int] | None = None,
) -> Contender:
    """Create a contender that applies a function to shared floating-point operands, optionally with gradients."""
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
    """Draw normally distributed numbers, the same in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)


def _flat(parts: tuple[Tensor, ...]) -> Tensor:
    """Concatenate output and gradients, after scaling down gradients that sum over many elements of the output."""
    size = parts[0].numel()
    return torch.cat([part.float().flatten() / max(1, size / part.numel()) ** 0.5 for part in parts])
