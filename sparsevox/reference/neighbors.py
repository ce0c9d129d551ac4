"""Neighbour tables: the rows of the 27 voxels around every voxel."""

from torch import Tensor

from sparsevox.reference._around import voxels_around


def neighbor_table(keys: Tensor, masks: Tensor, starts: Tensor, rows: Tensor, table: Tensor | None) -> Tensor:
    """Row of the neighbour of each voxel at each tap, -1 where there is none: int32 [27, N]. Needs no hash table."""
    return voxels_around(keys, masks, rows.shape[0])
