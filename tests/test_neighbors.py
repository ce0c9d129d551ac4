"""Neighbour tables: dictionaries of tuples, reference, kernels."""

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given

from sparsevox import Grid, ops
from sparsevox.morton import Bricks
from sparsevox.ops import bricks as brick_ops
from sparsevox.testing import VoxelSet, as_coords, row_order, voxel_sets

TAPS = [(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)]


@given(voxel_sets())
def test_table_names_every_neighbour(data: VoxelSet) -> None:
    rows = {voxel: row for row, voxel in enumerate(row_order(data.voxels))}
    table = ops.neighbor_table(Grid.from_coords(as_coords(data.voxels), batch_size=data.batch_size))
    expected = [[rows.get((b, x + i, y + j, z + k), -1) for b, x, y, z in rows] for i, j, k in TAPS]
    assert table.dtype == torch.int32
    assert table.tolist() == expected


def test_kernels_equal_reference(bricks: Bricks, agree: Callable[..., Any]) -> None:
    table = brick_ops.table(bricks)
    arrays = (bricks.keys, bricks.masks, bricks.starts, bricks.rows)
    agree("neighbors", "neighbor_table", *arrays, table, read_backs=0)
