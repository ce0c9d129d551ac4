"""sparsevox: sparse-voxel tensors for PyTorch, with all kernels in Triton.

    >>> import torch, sparsevox as sv
    >>> points = torch.rand(10_000, 3)
    >>> x = sv.SparseTensor.from_points(points, torch.ones(10_000, 1), voxel_size=0.05)  # voxels with features
    >>> conv = sv.nn.Conv3d(1, 16, kernel_size=3)  # submanifold convolution
    >>> y = conv(x)

`Grid` holds the voxels, and `SparseTensor` adds features to them. `sv.nn` has the modules and `sv.ops` the functions.
`sv.io` reads, writes and voxelizes meshes and point clouds, and `sv.viz` draws them.
"""

from sparsevox import checks, io, nn, ops, viz
from sparsevox.data import VoxelBudgetSampler, collate
from sparsevox.grid import Grid
from sparsevox.ops._child_map import ChildMap
from sparsevox.ops._kernel_map import KernelMap
from sparsevox.shapes import Mesh, Points, Voxels
from sparsevox.tensor import SparseTensor, cat, stack
from sparsevox.tuning import tune

__version__ = "0.1.0"

__all__ = [
    "ChildMap",
    "Grid",
    "KernelMap",
    "Mesh",
    "Points",
    "SparseTensor",
    "VoxelBudgetSampler",
    "Voxels",
    "cat",
    "checks",
    "collate",
    "io",
    "nn",
    "ops",
    "stack",
    "tune",
    "viz",
]
