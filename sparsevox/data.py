"""Batches for training: what a `torch.utils.data.DataLoader` needs to know of grids and sparse tensors."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data._utils.collate import collate as _collate
from torch.utils.data._utils.collate import default_collate_fn_map

from sparsevox.grid import Grid
from sparsevox.shapes import Voxels
from sparsevox.tensor import SparseTensor, stack


def collate(samples: Sequence[Any]) -> Any:
    """One batch of samples: `DataLoader(dataset, batch_size=8, collate_fn=sv.collate)`.

    Grids, sparse tensors and voxels with attributes are stacked along the batch; tuples, lists, dicts, tensors and
    numbers are treated as by `torch.utils.data.default_collate`.
    """
    return _collate(list(samples), collate_fn_map=_RULES)


def _stack_tensors(batch: list[SparseTensor], *, collate_fn_map: object = None) -> SparseTensor:
    return stack(batch)


def _stack_grids(batch: list[Grid], *, collate_fn_map: object = None) -> Grid:
    return Grid.stack(batch)


def _stack_voxels(batch: list[Voxels], *, collate_fn_map: object = None) -> Voxels:
    return Voxels.stack(batch)


_RULES: dict[type | tuple[type, ...], Any] = {
    SparseTensor: _stack_tensors,
    Grid: _stack_grids,
    Voxels: _stack_voxels,
    **default_collate_fn_map,
}
