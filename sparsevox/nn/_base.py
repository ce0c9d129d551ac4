"""Base class and input checks of all modules."""

import torch

from sparsevox.grid import Grid
from sparsevox.tensor import SparseTensor


class Module(torch.nn.Module):
    """A module that takes a SparseTensor and returns one."""

    def _check_input(self, x: object) -> SparseTensor:
        return check_sparse(self, x)


def check_sparse(module: torch.nn.Module, x: object) -> SparseTensor:
    """Return `x`, or raise a TypeError if it is not a SparseTensor."""
    if not isinstance(x, SparseTensor):
        raise TypeError(
            f"{type(module).__name__} takes a sparsevox.SparseTensor, got {type(x).__name__}; "
            "to combine it with modules of torch.nn, use sparsevox.nn.Sequential"
        )
    return x


def check_grid(module: torch.nn.Module, grid: object) -> None:
    """Raise TypeError unless `grid` is None or a grid."""
    if isinstance(grid, SparseTensor):
        raise TypeError(f"grid of {type(module).__name__} must be a sparsevox.Grid, got a SparseTensor; pass its .grid")
    if grid is not None and not isinstance(grid, Grid):
        raise TypeError(f"grid of {type(module).__name__} must be a sparsevox.Grid, got {type(grid).__name__}")


def check_channels(module: torch.nn.Module, x: SparseTensor, expected: int) -> None:
    """Raise ValueError unless x has the expected number of channels."""
    if x.channels != expected:
        raise ValueError(f"{type(module).__name__} expects {expected} channels, got {x.channels}")
