"""Layers and helpers of both the VAE and the refiner.

N voxels, C channels.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

import sparsevox as sv
from sparsevox import Grid, SparseTensor

R = TypeVar("R")


def make_norm(channels: int, groups: int = 8) -> sv.nn.GroupNorm:
    """GroupNorm with the statistics of each grid; with one group where `groups` does not divide the channels."""
    return sv.nn.GroupNorm(groups if channels % groups == 0 else 1, channels)


class ResBlock(torch.nn.Module):
    """GroupNorm, SiLU and a convolution, twice, plus a skip connection. The second convolution starts at zero."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = make_norm(in_channels), make_norm(out_channels)
        self.conv1 = sv.nn.Conv3d(in_channels, out_channels, 3)
        self.conv2 = sv.nn.Conv3d(out_channels, out_channels, 3)
        torch.nn.init.zeros_(self.conv2.weight)
        assert self.conv2.bias is not None
        torch.nn.init.zeros_(self.conv2.bias)
        self.skip = sv.nn.Linear(in_channels, out_channels) if in_channels != out_channels else torch.nn.Identity()

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Map features [N, in_channels] to [N, out_channels]."""
        y = self.conv1(self.norm1(x).map(functional.silu))
        y = self.conv2(self.norm2(y).map(functional.silu))
        skip: SparseTensor = self.skip(x)
        return skip + y


class Head(torch.nn.Module):
    """A prediction per voxel: `unit`, by default GroupNorm and SiLU, followed by a linear map."""

    def __init__(self, in_channels: int, out_channels: int, unit: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.unit = sv.nn.Sequential(make_norm(in_channels), torch.nn.SiLU()) if unit is None else unit
        self.out = sv.nn.Linear(in_channels, out_channels)

    def forward(self, x: SparseTensor) -> Tensor:
        """Map features [N, in_channels] to predictions [N, out_channels]."""
        y: SparseTensor = self.out(self.unit(x))
        return y.feats


def embed_position(xyz: Tensor, octaves: int = 5) -> Tensor:
    """Append sines and cosines of 2^0 to 2^(octaves - 1) times the positions [N, 3]: [N, 3 + 6 * octaves].

    As in NeRF (Mildenhall et al. 2020, arXiv:2003.08934), without the factor pi: x, sin(x), cos(x), sin(2 x), ...
    """
    scales = 2.0 ** torch.arange(octaves, dtype=xyz.dtype, device=xyz.device)
    angles = scales[:, None] * xyz[:, None]  # [N, octaves, 3]
    waves = torch.stack([angles.sin(), angles.cos()], 2)  # [N, octaves, 2, 3]
    return torch.cat([xyz, waves.flatten(1)], 1)


def centers(grid: Grid, dtype: torch.dtype = torch.float32) -> Tensor:
    """The world positions of the voxel centers, [N, 3]."""
    return grid.to_world(grid.ijk).to(dtype)


def at_least_float32(values: Tensor) -> Tensor:
    """Convert lower precision to float32, for losses and decisions under autocast."""
    return values if values.dtype == torch.float64 else values.float()


def checkpointed(function: Callable[[SparseTensor], R], x: SparseTensor, active: bool) -> R:
    """Call `function(x)`; if `active`, its activations are recomputed in the backward pass instead of stored."""
    if not (active and torch.is_grad_enabled()):
        return function(x)
    result: R = torch.utils.checkpoint.checkpoint(function, x, use_reentrant=False)
    return result


def count_per_grid(flags: Tensor, grid: Grid) -> Tensor:
    """Count the set flags [N] in each grid of the batch: float32 [B]."""
    before = functional.pad(flags.cumsum(0), (1, 0))  # set flags before each row, [N + 1]
    return before[grid.offsets].diff().float()


def rows_or_zero(values: Tensor, rows: Tensor) -> Tensor:
    """Return `values[rows]`, with zeros where the row is -1."""
    return torch.cat([values, values.new_zeros(1, *values.shape[1:])])[rows]
