"""The catalogue of operations on features. They take tensors, grids and kernel maps, and return tensors."""

from sparsevox.ops.conv import conv3d, conv_transpose3d
from sparsevox.ops.neighbors import neighbor_table

__all__ = ["conv3d", "conv_transpose3d", "neighbor_table"]
