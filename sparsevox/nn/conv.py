"""Convolutions. Weights have the layout, the names and the initialization of `torch.nn`.

N voxels, C input and D output channels.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch

from sparsevox import checks, ops
from sparsevox.grid import Grid
from sparsevox.nn._base import Module, check_channels, check_grid
from sparsevox.nn.rowwise import linear
from sparsevox.tensor import SparseTensor

Index3 = int | Sequence[int]


class _Conv(Module):
    """Parameters and geometry of both directions."""

    transposed: ClassVar[bool]
    bias: torch.nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Index3,
        stride: Index3 = 1,
        padding: Index3 | None = None,
        dilation: Index3 = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.geometry = checks.geometry(kernel_size, stride, dilation, padding)
        for name, count in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
            if checks.integer(name, count) < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups must divide in_channels and out_channels, got {groups} for {in_channels} and {out_channels}"
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        first, second = (in_channels, out_channels) if self.transposed else (out_channels, in_channels)
        shape = (first, second // groups, *self.geometry.kernel_size)
        self.weight = torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        if bias:
            self.bias = torch.nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in plus or minus 1 / sqrt(fan in), as `torch.nn.Conv3d`."""
        torch.nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            fan_in = self.weight[0].numel()
            bound = 1 / math.sqrt(fan_in)
            torch.nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        """Arguments that are not the defaults."""
        words = [str(self.in_channels), str(self.out_channels)]
        for name, value in self.geometry._asdict().items():
            words.append(f"{name}={value[0] if len(set(value)) == 1 else value}")
        words += [f"groups={self.groups}"] * (self.groups > 1) + ["bias=False"] * (self.bias is None)
        return ", ".join(words)


class Conv3d(_Conv):
    """Convolution, exactly `torch.nn.Conv3d` on the voxels that exist.

    Stride 1 keeps the voxels (sub-manifold convolution, Graham et al. 2018, arXiv:1711.10275). A larger stride goes to
    every coarse voxel that a tap reaches. `forward(x, grid=...)` goes to the voxels of a given grid instead.

    Args:
        in_channels: C.
        out_channels: D.
        kernel_size: 1 to 7, one int or three (i, j, k); so are stride, padding and dilation.
        stride: Ratio of coarse to fine voxels.
        padding: By default `floor((kernel_size - 1) / 2) * dilation`, which centers odd kernels.
        dilation: Distance of taps.
        groups: Divides C and D; `groups=C` is depthwise.
        bias: Whether to add one.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    transposed = False

    def forward(self, x: SparseTensor, grid: Grid | None = None) -> SparseTensor:
        """Features [M, D] on the coarse voxels. Raises ValueError if channels or the given grid do not fit."""
        x = self._check_input(x)
        check_channels(self, x, self.in_channels)
        check_grid(self, grid)
        geometry = self.geometry
        if grid is None and geometry.taps == 1 and geometry.symmetric and self.groups == 1:
            return x.replace(linear(x.feats, self.weight.flatten(1), self.bias))
        strided = geometry.stride != (1, 1, 1)
        options = {"stride": geometry.stride, "dilation": geometry.dilation, "padding": geometry.padding}
        if grid is None:
            grid = x.grid.strided(geometry.kernel_size, **options) if strided else x.grid
        kernel_map = x.grid.kernel_map(geometry.kernel_size, **options, target=grid)
        return SparseTensor(grid, ops.conv3d(x.feats, self.weight, self.bias, kernel_map, groups=self.groups))


class ConvTranspose3d(_Conv):
    """The adjoint of a convolution from fine voxels to those of the input, as `torch.nn.ConvTranspose3d`.

    `forward(x, grid=fine)` goes to a given grid, usually that of the encoder's features of the same level; the kernel
    map is the one of the encoder's convolution. Without a grid it goes to every fine voxel that is reached, that is, it
    is generative.

    Arguments are those of `Conv3d`.
    """

    transposed = True

    def forward(self, x: SparseTensor, grid: Grid | None = None) -> SparseTensor:
        """Features [N, D] on the fine voxels. Raises ValueError if channels or the given grid do not fit."""
        x = self._check_input(x)
        check_channels(self, x, self.in_channels)
        check_grid(self, grid)
        geometry = self.geometry
        options = {"stride": geometry.stride, "dilation": geometry.dilation, "padding": geometry.padding}
        if grid is None:
            grid = x.grid.generative(geometry.kernel_size, **options)
        kernel_map = grid.kernel_map(geometry.kernel_size, **options, target=x.grid)
        return SparseTensor(grid, ops.conv_transpose3d(x.feats, self.weight, self.bias, kernel_map, groups=self.groups))
