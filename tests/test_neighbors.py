"""Kernel tables: dictionaries of tuples, reference, kernels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given

from sparsevox import Grid, ops
from sparsevox.geometry import Geometry
from sparsevox.morton import Bricks
from sparsevox.ops import bricks as brick_ops
from sparsevox.reference.bricks import build_bricks
from sparsevox.reference.topology import coarsen_bricks
from sparsevox.testing import LIMIT, VoxelSet, as_coords, random_batch, row_order, voxel_sets

ENDS = (-LIMIT, LIMIT - 1)
TAPS = [(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)]

WITHIN = {
    "neighbors": Geometry((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    "itself": Geometry((1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0, 0)),
    "five wide": Geometry((5, 5, 5), (1, 1, 1), (1, 1, 1), (2, 2, 2)),
    "uneven": Geometry((2, 7, 1), (1, 1, 1), (3, 2, 1), (0, 6, 5)),
    "far": Geometry((3, 2, 2), (1, 1, 1), (9, 1000, 1 << 18), (9, 0, 1 << 18)),
}
BETWEEN = {
    "halved": Geometry((2, 2, 2), (2, 2, 2), (1, 1, 1), (0, 0, 0)),
    "overlapping": Geometry((3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
    "uneven": Geometry((4, 1, 3), (3, 1, 2), (1, 2, 5), (1, 0, 4)),
    "far": Geometry((2, 2, 1), (1 << 18, 5, 7), (1, 3, 1), (0, 1 << 18, 2)),
    "stride 1": Geometry((3, 3, 3), (1, 1, 1), (1, 1, 1), (0, 1, 2)),
}


def compare(agree: Callable[..., Any], fine: Bricks, coarse: Bricks, geometry: Geometry, hashed: bool = True) -> None:
    table = brick_ops.table(fine) if hashed else None
    arrays = (fine.keys, fine.masks, fine.starts, fine.rows, table)
    others = (coarse.keys, coarse.masks, coarse.starts, coarse.rows)
    agree("neighbors", "kernel_table", *arrays, *others, *geometry, read_backs=0)


@given(voxel_sets())
def test_table_names_every_neighbor(data: VoxelSet) -> None:
    rows = {voxel: row for row, voxel in enumerate(row_order(data.voxels))}
    table = ops.neighbor_table(Grid.from_coords(as_coords(data.voxels), batch_size=data.batch_size))
    expected = [[rows.get((b, x + i, y + j, z + k), -1) for b, x, y, z in rows] for i, j, k in TAPS]
    assert table.dtype == torch.int32
    assert table.tolist() == expected


@pytest.mark.triton36
def test_kernels_equal_reference(bricks: Bricks, agree: Callable[..., Any]) -> None:
    compare(agree, bricks, bricks, WITHIN["neighbors"])


@pytest.mark.triton36
@pytest.mark.parametrize("name", WITHIN)
def test_kernels_equal_reference_within_a_grid(name: str, device: torch.device, agree: Callable[..., Any]) -> None:
    grid = some_bricks(3, device)
    compare(agree, grid, grid, WITHIN[name], hashed=name != "uneven")


@pytest.mark.triton36
@pytest.mark.parametrize("name", BETWEEN)
def test_kernels_equal_reference_between_grids(name: str, device: torch.device, agree: Callable[..., Any]) -> None:
    fine = some_bricks(4, device)
    keys, masks, offsets = (t.cpu() for t in (fine.keys, fine.masks, fine.offsets))
    coarse = Bricks(*(t.to(device) for t in coarsen_bricks(keys, masks, offsets, 1)))
    nothing = Bricks(*(t.to(device) for t in build_bricks(as_coords([]), 6)))
    for a, b in ((fine, coarse), (coarse, fine), (fine, nothing), (nothing, fine)):
        compare(agree, a, b, BETWEEN[name])


@pytest.mark.parametrize("geometry", [WITHIN["neighbors"], WITHIN["far"], BETWEEN["uneven"]])
def test_kernels_equal_reference_at_the_limits(
    geometry: Geometry, device: torch.device, agree: Callable[..., Any]
) -> None:
    data = random_batch(2, 40, count=12, kinds=("limits", "scattered", "clustered"))
    corners = [(0, x, y, z) for x in ENDS for y in ENDS for z in ENDS]
    grid = Bricks(*(t.to(device) for t in build_bricks(as_coords({*data.voxels, *corners}), 40)))
    compare(agree, grid, grid, geometry)


def some_bricks(seed: int, device: torch.device) -> Bricks:
    data = random_batch(seed, 6, count=60, kinds=("clustered", "solid", "planar", "linear", "empty", "isolated"))
    return Bricks(*(t.to(device) for t in build_bricks(as_coords(data.voxels), 6)))
