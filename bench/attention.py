"""Attention within batch items, and within windows of rows in Z-order."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from bench.contenders import BACKWARD, grid, on_features, random
from bench.harness import Case, Contender, close
from sparsevox.ops.attention import attention

HEADS, CHANNELS, WINDOW = 4, 32, 1024


def by_loop(q: Tensor, k: Tensor, v: Tensor, sizes: Sequence[int]) -> Tensor:
    """Apply torch's attention to one item at a time."""
    parts = zip(*(x.transpose(0, 1).split(list(sizes), 1) for x in (q, k, v)), strict=True)
    found = [torch.nn.functional.scaled_dot_product_attention(*(x[None] for x in part))[0] for part in parts]
    return torch.cat(found, 1).transpose(0, 1)


def padded(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor) -> Tensor:
    """Apply torch's attention to all items at once, padded to the longest and masked."""
    valid = torch.arange(int(sizes.max()), device=q.device) < sizes[:, None]  # [B, L]

    def wide(x: Tensor) -> Tensor:
        return x.new_zeros(*valid.shape, *x.shape[1:]).index_put((valid,), x).transpose(1, 2)

    mask = valid[:, None, None]
    found = torch.nn.functional.scaled_dot_product_attention(wide(q), wide(k), wide(v), attn_mask=mask)
    return found.transpose(1, 2)[valid]


def attend(coords: Tensor, *, windows: bool, backward: bool) -> Sequence[Contender]:
    """Compare attention with random queries, keys and values."""
    g = grid(coords)
    rows = torch.arange(0, g.num_voxels + WINDOW, WINDOW, device=coords.device).clamp(max=g.num_voxels)
    offsets = rows if windows else g.offsets
    sizes = offsets.diff()
    sizes = sizes[sizes > 0]
    operands = random(3, g.num_voxels, HEADS, CHANNELS, like=torch.empty(0, device=coords.device)).unbind()

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, offsets)

    looped = partial(by_loop, sizes=sizes.tolist())
    return (
        on_features("sparsevox", ours, *operands, backward=backward),
        on_features("loop over items", looped, *operands, backward=backward, baseline=True),
        on_features("padded and masked", partial(padded, sizes=sizes), *operands, backward=backward, baseline=True),
    )


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Yield a batch of 64 grids of a few hundred voxels each, and a shell of 100k voxels in windows of 1024."""
    for backward in (False, True):
        for name, windows, scene, size in (
            ("attention", False, "batch", 3 if quick else 12),
            ("attention, windows", True, "shell", 32 if quick else 180),
        ):
            prepare = partial(attend, windows=windows, backward=backward)
            yield Case(name + BACKWARD * backward, scene, size, prepare, agree=close(1e-4), dtype="float32")
