"""The table of the 27 neighbours of every voxel, from which kernel maps are made."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

import sparsevox as sv
from bench import baseline
from bench.contenders import batch_against_one, grid, ours, voxel_list
from bench.harness import Case, Contender, Wanted


def neighbors(coords: Tensor) -> Sequence[Contender]:
    """Rows of all neighbours. What is wanted is wanted against 26 searches; 13 and symmetry stand beside them."""
    g, keys = grid(coords), baseline.build(coords)

    def renumbered(table: Tensor) -> Tensor:
        """The list's table in the order and the row numbers of the grid."""
        rows = g.index(baseline.decode(keys))
        named = torch.where(table >= 0, rows[table.long()].int(), -1)
        return torch.empty_like(table).index_copy_(1, rows, named)

    searches = voxel_list(baseline.neighbor_table, keys, name="voxel list, 26 searches", view=renumbered)
    fewer = voxel_list(baseline.neighbor_table_by_symmetry, keys, name="voxel list, 13 searches", view=renumbered)
    return ours(sv.ops.neighbor_table, g, view=torch.as_tensor), searches, replace(fewer, baseline=False)


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """A shell of 100k voxels (and one of 2M on a GPU, which 100k do not fill), other scenes, a batch of 64."""
    wanted = Wanted("ratio", ">=", 8)
    yield Case("neighbor_table", "shell", 32 if quick else 180, neighbors, wanted)
    if device.type == "cuda":
        yield Case("neighbor_table", "shell", 48 if quick else 800, neighbors)
    yield Case("neighbor_table", "lidar", 64 if quick else 2048, neighbors)
    yield Case("neighbor_table", "block", 12 if quick else 64, neighbors)
    batch = batch_against_one(sv.ops.neighbor_table)
    yield Case("neighbor_table", "batch", 6 if quick else 44, batch, Wanted("ratio", ">=", 0.5))
