"""Attention between voxels of a grid: all of them, or those of a window along the Z-order.

N voxels, B grids, C channels, H heads, W windows.
"""

import torch
from torch import Tensor

from sparsevox import checks, ops
from sparsevox.grid import Grid
from sparsevox.nn._base import Module, check_channels
from sparsevox.nn.rowwise import Linear
from sparsevox.tensor import SparseTensor


class Attention(Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv:1706.03762) within each grid.

    With `window`, a voxel sees those of its window only: runs of that many rows. Rows are in Z-order, so the voxels of
    a window lie close together (as in Wang 2023, arXiv:2305.03045). `shift` moves the windows, so that alternate layers
    connect them; half a window is usual.

    Args:
        channels: C.
        num_heads: H, divides C.
        window: Rows of a window; None for the whole grid.
        shift: By how many rows the first window is shorter, less than `window`.
        bias: Whether the projections have biases.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 8,
        *,
        window: int | None = None,
        shift: int = 0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if checks.integer("num_heads", num_heads) < 1 or channels % num_heads:
            raise ValueError(f"num_heads must divide channels = {channels}, got {num_heads}")
        if window is not None and checks.integer("window", window) < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        if not 0 <= checks.integer("shift", shift) < (1 if window is None else window):
            raise ValueError(f"shift must be at least 0 and less than window = {window}, got {shift}")
        self.channels, self.num_heads, self.window, self.shift = channels, num_heads, window, shift
        self.qkv = Linear(channels, 3 * channels, bias, device=device, dtype=dtype)
        self.proj = Linear(channels, channels, bias, device=device, dtype=dtype)

    def extra_repr(self) -> str:
        """Arguments that are not the defaults."""
        windowed = "" if self.window is None else f", window={self.window}, shift={self.shift}"
        return f"{self.channels}, num_heads={self.num_heads}{windowed}"

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Features [N, C]."""
        x = self._check_input(x)
        check_channels(self, x, self.channels)
        offsets = x.grid.offsets if self.window is None else window_offsets(x.grid, self.window, self.shift)
        q, k, v = self.qkv(x).feats.unflatten(1, (3, self.num_heads, -1)).unbind(1)
        return self.proj(x.replace(ops.attention(q, k, v, offsets).flatten(1)))


def window_offsets(grid: Grid, window: int, shift: int = 0) -> Tensor:
    """First row of each window, then N: int64 [W + 1]. Windows end with their grid; the last ones may be empty.

    How many there are is not known without asking the device, so this takes the most that there can be.
    """
    offsets = grid.bricks.offsets
    rows = torch.arange(grid.num_voxels, device=grid.device)
    item = torch.searchsorted(offsets[1:], rows, right=True)
    number = (rows - offsets[item] + shift) // window
    first = torch.ones_like(rows, dtype=torch.bool)
    first[1:] = (number[1:] != number[:-1]) | (item[1:] != item[:-1])
    most = grid.num_voxels // window + 2 * grid.batch_size
    return torch.searchsorted(first.cumsum(0) - 1, torch.arange(most + 1, device=grid.device))
