"""Reduction of features over batch items, and broadcasting to their voxels."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

import sparsevox as sv
from bench.contenders import BACKWARD, grid, on_features, random
from bench.harness import Case, Contender, close

CHANNELS = 64


def by_scatter(feats: Tensor, item: Tensor, count: int, reduce: str) -> Tensor:
    """Reduce features to [count, C] with `scatter_reduce`."""
    name = {"sum": "sum", "mean": "mean", "max": "amax"}[reduce]
    out = feats.new_zeros(count, feats.shape[1])
    return out.scatter_reduce(0, item[:, None].expand_as(feats), feats, name, include_self=False)


def by_index_add(feats: Tensor, item: Tensor, count: int, reduce: str) -> Tensor:
    """Reduce features to [count, C] with `index_add`, followed by a division for the mean."""
    out = feats.new_zeros(count, feats.shape[1]).index_add(0, item, feats)
    return out if reduce == "sum" else out / torch.bincount(item, minlength=count).clamp(min=1)[:, None].to(feats.dtype)


def by_loop(feats: Tensor, sizes: Sequence[int], reduce: str) -> Tensor:
    """Reduce features to [count, C], one batch item at a time."""
    functions: dict[str, Callable[..., Tensor]] = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax}
    return torch.stack([functions[reduce](part, 0) for part in feats.split(list(sizes))])


def global_pool(coords: Tensor, *, reduce: str, backward: bool) -> Sequence[Contender]:
    """Compare reductions to one row per batch item."""
    g = grid(coords)
    feats, item, count = random(g.num_voxels, CHANNELS, like=torch.empty(0, device=g.device)), g.batch, g.batch_size
    sizes = g.offsets.diff().tolist()

    def ours(x: Tensor) -> Tensor:
        return sv.ops.global_pool(x, g, reduce)

    contenders = [
        on_features("sparsevox", ours, feats, backward=backward),
        on_features(
            "scatter_reduce",
            partial(by_scatter, item=item, count=count, reduce=reduce),
            feats,
            backward=backward,
            baseline=True,
        ),
        on_features(
            "loop over grids", partial(by_loop, sizes=sizes, reduce=reduce), feats, backward=backward, baseline=True
        ),
    ]
    if reduce != "max":
        added = partial(by_index_add, item=item, count=count, reduce=reduce)
        contenders.append(on_features("index_add", added, feats, backward=backward, baseline=True))
    return contenders


def broadcast(coords: Tensor) -> Sequence[Contender]:
    """Compare broadcasting a row per batch item to its voxels, forward and backward."""
    g = grid(coords)
    values, item = random(g.batch_size, CHANNELS, like=torch.empty(0, device=g.device)), g.batch

    def ours(x: Tensor) -> Tensor:
        return sv.ops.broadcast(x, g)

    def selected(x: Tensor) -> Tensor:
        return x.index_select(0, item)

    return (
        on_features("sparsevox", ours, values, backward=True),
        on_features("index_select", selected, values, backward=True, baseline=True),
    )


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Yield all reductions on a batch of 64 small grids."""
    size = 6 if quick else 44
    for reduce in ("sum", "mean", "max"):
        for backward in (False, True):
            prepare = partial(global_pool, reduce=reduce, backward=backward)
            name = f"global_pool, {reduce}" + BACKWARD * backward
            yield Case(name, "batch", size, prepare, agree=close(1e-5), dtype="float32")
    yield Case("broadcast, forward and backward", "batch", size, broadcast, agree=close(1e-5), dtype="float32")
