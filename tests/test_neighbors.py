"""Kernel tables: definition, reference, kernels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsevox import Grid, ops
from sparsevox.conv_geometry import Geometry
from sparsevox.morton import Bricks
from sparsevox.ops import bricks as brick_ops
from sparsevox.reference import neighbors as reference
from sparsevox.reference.bricks import build_bricks
from sparsevox.reference.topology import coarsen_bricks
from sparsevox.testing import LIMIT, VoxelSet, as_coords, random_batch, row_order, voxel_sets
from tests.definitions.neighbors import kernel_table

ENDS = (-LIMIT, LIMIT - 1)

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
    rows = row_order(data.voxels)
    table = ops.neighbor_table(Grid.from_coords(as_coords(data.voxels), batch_size=data.batch_size))
    assert table.dtype == torch.int32
    assert table.tolist() == kernel_table(rows, rows, WITHIN["neighbors"])


@given(voxel_sets(limits=False), st.sampled_from([*WITHIN.values(), *BETWEEN.values()]))
def test_reference_equals_definition(data: VoxelSet, geometry: Geometry) -> None:
    rows = row_order(data.voxels)
    coarse = row_order({(b, i // 2, j // 3, k) for b, i, j, k in rows})
    fine, other = (build_bricks(as_coords(voxels), data.batch_size) for voxels in (rows, coarse))
    for a, b, here, there in ((fine, other, rows, coarse), (other, fine, coarse, rows)):
        arrays = (a.keys, a.masks, a.starts, a.rows, None, b.keys, b.masks, b.starts, b.rows)
        assert reference.kernel_table(*arrays, *geometry).tolist() == kernel_table(here, there, geometry)


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
