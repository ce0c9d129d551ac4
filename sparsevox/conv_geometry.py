"""The geometry of a convolution: one rule for submanifold, strided, dilated, transposed and generative convolutions.

At tap t (kernel offset), coarse voxel c meets the fine voxel `stride * c + t * dilation - padding`, on each axis. This
is `torch.nn.functional.conv3d`: cross-correlation, without a kernel flip. The K taps are numbered with the last axis
fastest.
"""

from typing import NamedTuple

Axes = tuple[int, int, int]

MAX_KERNEL_SIZE = 7


class Geometry(NamedTuple):
    """Kernel size, stride, dilation and padding, each one int per axis. `checks.geometry` makes a valid one."""

    kernel_size: Axes
    stride: Axes
    dilation: Axes
    padding: Axes

    @property
    def taps(self) -> int:
        """Number of taps, K."""
        return self.kernel_size[0] * self.kernel_size[1] * self.kernel_size[2]

    @property
    def symmetric(self) -> bool:
        """Whether, within one grid, tap K - 1 - t is the inverse of tap t."""
        axes = zip(*self, strict=True)
        return all(s == 1 and (k - 1) * d == 2 * p for k, s, d, p in axes)


def default_padding(kernel_size: Axes, dilation: Axes) -> Axes:
    """Return `floor((k - 1) / 2) * dilation` on each axis, which centers odd kernels."""
    x, y, z = ((k - 1) // 2 * d for k, d in zip(kernel_size, dilation, strict=True))
    return x, y, z
