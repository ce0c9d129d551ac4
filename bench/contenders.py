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
    """The number of voxels of a grid, or of neighbours in a table: that both sides share."""
    return (result >= 0).sum() if isinstance(result, Tensor) else torch.tensor(result.num_voxels)
