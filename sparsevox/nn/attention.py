"""Attention among the voxels of a grid: global, or within windows along the Z-order.

N voxels, B grids, C channels, H heads, W windows.
"""

import torch
from einops import rearrange
from torch import Tensor

from sparsevox import checks, ops
from sparsevox.grid import Grid
from sparsevox.nn._base import Module, check_channels
from sparsevox.nn.rowwise import Linear
from sparsevox.tensor import SparseTensor


class Attention(Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv:1706.03762) among the voxels of each batch item.

    With `window`, each voxel attends to its window only: a run of `window` consecutive rows. Rows are in Z-order, so
    the voxels of a window are close in space (OctFormer, Wang 2023, arXiv:2305.03045). To connect neighboring windows,
    alternate layers without a shift and layers with a `shift` of half a window.

    Shape:
        Input and output: features [N, C] on the same voxels.

    Args:
        channels: Number of channels C.
        num_heads: Number of attention heads H. Must divide `channels`.
        window: Number of voxels per window. None attends to the whole batch item.
        shift: Shift of the windows in voxels, in [0, window). The first window has `window - shift` voxels.
        bias: Whether the projections have biases.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If `num_heads` does not divide `channels`, `window` is not positive, or `shift` is out of range.
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
        windowed = "" if self.window is None else f", window={self.window}, shift={self.shift}"
        return f"{self.channels}, num_heads={self.num_heads}{windowed}"

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Apply attention to features [N, C]."""
        x = self._check_input(x)
        check_channels(self, x, self.channels)
        offsets = x.grid.offsets if self.window is None else window_offsets(x.grid, self.window, self.shift)
        q, k, v = rearrange(self.qkv(x).feats, "n (qkv h d) -> qkv n h d", qkv=3, h=self.num_heads).unbind(0)
        attended = ops.attention(q, k, v, offsets)  # [N, H, C / H]
        return self.proj(x.replace(rearrange(attended, "n h d -> n (h d)")))


def window_offsets(grid: Grid, window: int, shift: int = 0) -> Tensor:
    """Compute the first row of each window, then N: int64 [W + 1]. No window spans two batch items.

    Only the device knows the number of windows. To avoid a synchronization, W is an upper bound, and the last windows
    may be empty.
    """
    offsets = grid.bricks.offsets  # [B + 1]
    rows = torch.arange(grid.num_voxels, device=grid.device)
    item = torch.searchsorted(offsets[1:], rows, right=True)  # [N]
    number = (rows - offsets[item] + shift) // window  # of the window within its batch item: [N]
    first = torch.ones_like(rows, dtype=torch.bool)
    first[1:] = (number[1:] != number[:-1]) | (item[1:] != item[:-1])
    most = grid.num_voxels // window + 2 * grid.batch_size
    return torch.searchsorted(first.cumsum(0) - 1, torch.arange(most + 1, device=grid.device))
