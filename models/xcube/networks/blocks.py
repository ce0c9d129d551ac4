"""What the networks are built of.

N voxels, C channels.
"""

from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import Tensor

import sparsevox as sv
from sparsevox import Grid, SparseTensor

BlockKind = Literal["gcr", "residual"]
R = TypeVar("R")


def make_norm(channels: int, groups: int = 8) -> sv.nn.GroupNorm:
    """Statistics grid by grid, over groups of channels; fewer channels than groups are one group."""
    return sv.nn.GroupNorm(groups if channels >= groups and channels % groups == 0 else 1, channels)


class ConvUnit(torch.nn.Module):
    """GroupNorm, convolution without bias, ReLU: "gcr" of the release."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = make_norm(in_channels)
        self.conv = sv.nn.Conv3d(in_channels, out_channels, 3, bias=False)

    def forward(self, x: SparseTensor, up: torch.nn.Module | None = None) -> SparseTensor:
        """Features [N, out_channels]; or of all children, which `up` makes.

        Children are copies, with the mean and deviation of their parents: they need not exist before the norm is done.
        """
        x = self.norm(x)
        y: SparseTensor = self.conv(x if up is None else up(x))
        return y.map(torch.relu)


class DoubleConv(torch.nn.Module):
    """Two `ConvUnit`s; `middle` channels between them."""

    def __init__(self, in_channels: int, out_channels: int, middle: int | None = None) -> None:
        super().__init__()
        middle = out_channels if middle is None else middle
        self.first = ConvUnit(in_channels, middle)
        self.second = ConvUnit(middle, out_channels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Features [N, out_channels]."""
        y: SparseTensor = self.second(self.first(x))
        return y


class ResBlock(torch.nn.Module):
    """GroupNorm, SiLU, convolution, twice, plus the input; the second convolution begins at zero."""

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
        """Features [N, out_channels]."""
        y = self.conv1(self.norm1(x).map(torch.nn.functional.silu))
        y = self.conv2(self.norm2(y).map(torch.nn.functional.silu))
        skip: SparseTensor = self.skip(x)
        return skip + y


def block(kind: BlockKind, in_channels: int, out_channels: int, middle: int | None = None) -> torch.nn.Module:
    """A block of either kind; `middle` concerns "gcr" only."""
    if kind == "gcr":
        return DoubleConv(in_channels, out_channels, middle)
    return ResBlock(in_channels, out_channels)


class Head(torch.nn.Module):
    """A unit and a linear map: one prediction a voxel."""

    def __init__(self, kind: BlockKind, in_channels: int, out_channels: int) -> None:
        super().__init__()
        if kind == "gcr":
            self.unit: torch.nn.Module = ConvUnit(in_channels, in_channels)
        else:
            self.unit = sv.nn.Sequential(make_norm(in_channels), torch.nn.SiLU())
        self.out = sv.nn.Linear(in_channels, out_channels)

    def forward(self, x: SparseTensor) -> Tensor:
        """Predictions [N, out_channels]."""
        y: SparseTensor = self.out(self.unit(x))
        return y.feats


def embed_position(xyz: Tensor, octaves: int = 5) -> Tensor:
    """Positions [N, 3] with sines and cosines of 2^0 to 2^(octaves - 1) times each: [N, 3 + 6 * octaves].

    As in NeRF (Mildenhall et al. 2020, arXiv:2003.08934), without the factor pi: x, sin(x), cos(x), sin(2 x), ...
    """
    waves = [f(xyz * 2**octave) for octave in range(octaves) for f in (torch.sin, torch.cos)]
    return torch.cat([xyz, *waves], 1)


def centers(grid: Grid, dtype: torch.dtype = torch.float32) -> Tensor:
    """World positions [N, 3] of the voxels."""
    return grid.to_world(grid.ijk).to(dtype)


def at_least_float32(values: Tensor) -> Tensor:
    """In the precision in which losses are computed: at least float32."""
    return values if values.dtype == torch.float64 else values.float()


def checkpointed(function: Callable[[SparseTensor], R], x: SparseTensor, active: bool) -> R:
    """`function(x)`; if `active`, its activations are computed again in the backward pass."""
    if not (active and torch.is_grad_enabled()):
        return function(x)
    result: R = torch.utils.checkpoint.checkpoint(function, x, use_reentrant=False)
    return result
