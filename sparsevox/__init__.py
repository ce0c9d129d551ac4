"""sparsevox: sparse-voxel tensors for PyTorch, with every kernel in Triton."""

from sparsevox import ops
from sparsevox.grid import Grid

__version__ = "0.1.0"

__all__ = ["Grid", "ops"]
