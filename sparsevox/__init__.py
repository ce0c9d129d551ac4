"""sparsevox: sparse-voxel tensors for PyTorch, with every kernel in Triton."""

from sparsevox import io, nn, ops, viz
from sparsevox.data import VoxelBudgetSampler, collate
from sparsevox.grid import Grid
from sparsevox.kernel_map import KernelMap
from sparsevox.shapes import Mesh, Points, Voxels
from sparsevox.tensor import SparseTensor, cat, stack
from sparsevox.tuning import tune

__version__ = "0.1.0"

__all__ = [
    "Grid",
    "KernelMap",
    "Mesh",
    "Points",
    "SparseTensor",
    "VoxelBudgetSampler",
    "Voxels",
    "cat",
    "collate",
    "io",
    "nn",
    "ops",
    "stack",
    "tune",
    "viz",
]
