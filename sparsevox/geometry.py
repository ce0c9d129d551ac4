"""The geometry of a convolution: one rule for sub-manifold, strided, dilated, transposed and generative ones.

At tap t, coarse voxel c meets the fine voxel `stride * c + t * dilation - padding`, on each axis. That is
`torch.nn.functional.conv3d` without kernel flip. Taps are numbered with the last axis fastest.
K taps, M rows.
"""

from typing import NamedTuple

Axes = tuple[int, int, int]

MAX_KERNEL_SIZE = 7
PAIR_ROWS = 1 << 13  # the most rows of a block of pairs
PAIR_SLOTS = 27 << 13  # about as many (tap, row) slots has a block of pairs: what the CPU keeps in its cache
TILE_ROWS = 128  # output rows that share a list of taps
WINDOW_ROWS = 1 << 14  # output rows among which tiles choose theirs: they lie close together, so what they read does
MASK_TAPS = 62  # taps that fit in a word; where there are more, rows stay in Z-order


class Geometry(NamedTuple):
    """Kernel size, stride, dilation and padding, each an int an axis."""

    kernel_size: Axes
    stride: Axes
    dilation: Axes
    padding: Axes

    @property
    def taps(self) -> int:
        """K."""
        return self.kernel_size[0] * self.kernel_size[1] * self.kernel_size[2]

    @property
    def symmetric(self) -> bool:
        """Whether tap K - 1 - t leads back from where tap t led, in one grid."""
        axes = zip(*self, strict=True)
        return all(s == 1 and (k - 1) * d == 2 * p for k, s, d, p in axes)


def default_padding(kernel_size: Axes, dilation: Axes) -> Axes:
    """`floor((k - 1) / 2) * dilation` on each axis."""
    x, y, z = ((k - 1) // 2 * d for k, d in zip(kernel_size, dilation, strict=True))
    return x, y, z


def pair_block(taps: int) -> int:
    """Rows of a block of pairs: a power of two, which depends on K only."""
    return min(PAIR_ROWS, 1 << (PAIR_SLOTS // taps).bit_length() - 1)
