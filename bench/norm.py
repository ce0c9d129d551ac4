"""Group norm with statistics per batch item."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

import sparsevox as sv
from bench.contenders import BACKWARD, grid, on_features, random
from bench.harness import Case, Contender, close
from sparsevox.ops.norm import group_norm

CHANNELS, GROUPS, EPS = 64, 8, 1e-5


def by_loop(feats: Tensor, weight: Tensor, bias: Tensor, sizes: Sequence[int]) -> Tensor:
    """Apply torch's group norm to one batch item at a time."""
    parts = [
        torch.nn.functional.group_norm(part.t()[None], GROUPS, weight, bias, EPS)[0].t()
        for part in feats.split(list(sizes))
    ]
    return torch.cat(parts)


def by_index_add(feats: Tensor, weight: Tensor, bias: Tensor, g: sv.Grid, item: Tensor) -> Tensor:
    """Normalize all items at once: `index_add` for sums, `index_select` to broadcast them."""
    size = g.bricks.offsets.diff()[:, None] * (CHANNELS // GROUPS)

    def mean(x: Tensor) -> Tensor:
        rows = x.unflatten(1, (GROUPS, -1)).sum(2)
        return (rows.new_zeros(g.batch_size, GROUPS).index_add(0, item, rows) / size).index_select(0, item)

    centered = feats.unflatten(1, (GROUPS, -1)) - mean(feats)[:, :, None]
    scale = (mean(centered.flatten(1).square()) + EPS).rsqrt()
    return (centered * scale[:, :, None]).flatten(1) * weight + bias


def norm(coords: Tensor, *, backward: bool) -> Sequence[Contender]:
    """Compare group norm with weight and bias, optionally with the gradients of all three."""
    g = grid(coords)
    like = torch.empty(0, device=coords.device)
    operands = (random(g.num_voxels, CHANNELS, like=like), *random(2, CHANNELS, like=like))
    sizes, item = g.offsets.diff().tolist(), g.batch

    def ours(feats: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return group_norm(feats, g, GROUPS, weight, bias, EPS)

    added = partial(by_index_add, g=g, item=item)
    return (
        on_features("sparsevox", ours, *operands, backward=backward),
        on_features("loop over grids", partial(by_loop, sizes=sizes), *operands, backward=backward, baseline=True),
        on_features("index_add", added, *operands, backward=backward, baseline=True),
    )


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Yield a batch of 64 small grids, and a single shell of 100k voxels."""
    for scene, size in (("batch", 6 if quick else 44), ("shell", 32 if quick else 180)):
        for backward in (False, True):
            prepare = partial(norm, backward=backward)
            yield Case(
                "group_norm" + BACKWARD * backward,
                scene,
                size,
                prepare,
                agree=close(1e-4),
                dtype="float32",
            )
