"""The catalogue of ops: functions of grids and tensors that return tensors. One file an op."""

from sparsevox.ops.neighbors import neighbor_table

__all__ = ["neighbor_table"]
