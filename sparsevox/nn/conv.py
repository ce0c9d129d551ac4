"""Convolutions. Weights have the layout, the names and the initialization of `torch.nn`.

N fine voxels, M coarse voxels, C input and D output channels.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from sparsevox import checks, ops
from sparsevox.grid import Grid
from sparsevox.nn._base import Module, check_channels, check_grid
from sparsevox.nn.rowwise import linear
from sparsevox.ops._kernel_map import KernelMap
from sparsevox.ops.conv import convolve
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
        self._weight_shape = (first, second // groups, *self.geometry.kernel_size)
        self.weight = torch.nn.Parameter(torch.empty(self._weight_shape, device=device, dtype=dtype))
        if bias:
            self.bias = torch.nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw uniformly from plus or minus 1 / sqrt(fan in), as `torch.nn.Conv3d` does."""
        torch.nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            fan_in = self.weight[0].numel()
            bound = 1 / math.sqrt(fan_in)
            torch.nn.init.uniform_(self.bias, -bound, bound)

    def _convolve(self, x: SparseTensor, kernel_map: KernelMap) -> Tensor:
        """Convolve along a map. Nothing is checked again unless somebody changed or moved the parameters."""
        weight, bias = self.weight, self.bias
        made_here = _is_like(weight, self._weight_shape, x) and (
            bias is None or _is_like(bias, (self.out_channels,), x)
        )
        if made_here:
            return convolve(x.feats, weight, bias, kernel_map, self.groups, transposed=self.transposed)
        function = ops.conv_transpose3d if self.transposed else ops.conv3d
        return function(x.feats, weight, bias, kernel_map, groups=self.groups)

    def extra_repr(self) -> str:
        """List channels, geometry and all options that are not the default."""
        words = [str(self.in_channels), str(self.out_channels)]
        for name, value in self.geometry._asdict().items():
            words.append(f"{name}={value[0] if len(set(value)) == 1 else value}")
        words += [f"groups={self.groups}"] * (self.groups > 1) + ["bias=False"] * (self.bias is None)
        return ", ".join(words)


def _is_like(parameter: Tensor, shape: tuple[int, ...], x: SparseTensor) -> bool:
    """Whether a parameter has the shape with which it was made, and is on the device of the input."""
    return parameter.shape == shape and parameter.device == x.device and parameter.is_floating_point()


class Conv3d(_Conv):
    """Sparse convolution: `torch.nn.Conv3d`, evaluated at the voxels that exist.

    With stride 1 the output has the voxels of the input (submanifold convolution, Graham et al. 2018,
    arXiv:1711.10275). With a larger stride it has every coarse voxel that a tap reaches. `forward(x, grid=...)`
    computes the output on the voxels of a given grid instead.

    Args:
        in_channels: Number of input channels, C.
        out_channels: Number of output channels, D.
        kernel_size: Taps (kernel offsets) per axis, 1 to 7: one int or three (i, j, k). The same holds for stride,
            padding and dilation.
        stride: Ratio of the coarse to the fine voxel size.
        padding: Padding in voxels, by default `floor((kernel_size - 1) / 2) * dilation`, which centers odd kernels.
        dilation: Distance between taps in voxels.
        groups: Number of groups; must divide C and D. `groups=C` is a depthwise convolution.
        bias: Whether to add a learnable bias.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        TypeError: If a number is not an int.
        ValueError: If a number is out of range, or the groups do not divide the channels.
    """

    transposed = False

    def forward(self, x: SparseTensor, grid: Grid | None = None) -> SparseTensor:
        """Return features [M, D] on the coarse voxels. Raises ValueError if channels or the given grid do not fit."""
        x = self._check_input(x)
        check_channels(self, x, self.in_channels)
        check_grid(self, grid)
        geometry = self.geometry
        if grid is None and self.groups == 1 and geometry.taps == 1 and geometry.symmetric:
            return x.replace(linear(x.feats, self.weight.flatten(1), self.bias))
        if grid is None:
            grid = x.grid if geometry.stride == (1, 1, 1) else x.grid._strided(geometry)
        kernel_map = x.grid._kernel_map(geometry, grid)
        return SparseTensor(grid, self._convolve(x, kernel_map))


class ConvTranspose3d(_Conv):
    """Transposed sparse convolution, the adjoint of a convolution: `torch.nn.ConvTranspose3d`.

    `forward(x, grid=fine)` computes the output on the voxels of a given grid, usually that of the encoder's features of
    the same resolution; it then uses the kernel map of the encoder's convolution. Without a grid the layer is
    generative: the output has every fine voxel that a tap reaches.

    Arguments and errors are those of `Conv3d`.
    """

    transposed = True

    def forward(self, x: SparseTensor, grid: Grid | None = None) -> SparseTensor:
        """Return features [N, D] on the fine voxels. Raises ValueError if channels or the given grid do not fit."""
        x = self._check_input(x)
        check_channels(self, x, self.in_channels)
        check_grid(self, grid)
        if grid is None:
            grid = x.grid._generative(self.geometry)
        kernel_map = grid._kernel_map(self.geometry, x.grid)
        return SparseTensor(grid, self._convolve(x, kernel_map))
