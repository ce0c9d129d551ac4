"""Pooling and upsampling with cached maps, and the maps themselves."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

import sparsevox as sv
from bench import baseline
from bench.contenders import BACKWARD, grid, on_features, random, voxel_list
from bench.harness import Case, Contender, close
from bench.segment import by_index_add, by_scatter
from sparsevox import ChildMap

CHANNELS = 64


def children(coords: Tensor) -> Sequence[Contender]:
    """Compare computing the coarse voxels and the parent of each fine one. The voxel list uses `torch.unique`."""
    g, keys = grid(coords), baseline.build(coords)
    coarse = g.coarsen()
    rows = g.index(baseline.decode(keys))

    def fresh() -> ChildMap:
        g.clear_cache()
        found = g.child_map(2)
        g.clear_cache()
        return found

    def unique() -> tuple[Tensor, Tensor]:
        parents = (keys & ~baseline.IJK) | (keys >> 1 & baseline.HALVES) + baseline.BIASES // 2
        found, inverse = torch.unique(parents, return_inverse=True)
        return found, inverse

    def view(found: tuple[Tensor, Tensor]) -> Tensor:
        parents = coarse.index(baseline.decode(found[0]))[found[1]]
        return torch.empty_like(parents).index_copy_(0, rows, parents).int()

    return (
        Contender("sparsevox", fresh, lambda found: found.parents, nbytes=lambda found: found.nbytes),
        voxel_list(unique, view=view),
    )


def pool(coords: Tensor, *, reduce: str, backward: bool) -> Sequence[Contender]:
    """Compare pooling over 2x2x2 windows that do not overlap."""
    g = grid(coords)
    the_map, count = g.child_map(2), g.coarsen().num_voxels
    parents = the_map.parents.long()
    feats = random(g.num_voxels, CHANNELS, like=torch.empty(0, device=g.device))
    function: Callable[..., Tensor] = {"max": sv.ops.max_pool3d, "mean": sv.ops.avg_pool3d}[reduce]
    scattered = partial(by_scatter, item=parents, count=count, reduce=reduce)
    contenders = [
        on_features("sparsevox", lambda x: function(x, the_map), feats, backward=backward),
        on_features("scatter_reduce", scattered, feats, backward=backward, baseline=True),
    ]
    if reduce == "mean":
        added = partial(by_index_add, item=parents, count=count, reduce=reduce)
        contenders.append(on_features("index_add", added, feats, backward=backward, baseline=True))
    return contenders


def overlapping(coords: Tensor, *, backward: bool) -> Sequence[Contender]:
    """Compare max pooling over 3x3x3 windows of stride 2. Plain PyTorch goes tap by tap."""
    g = grid(coords)
    the_map = g.kernel_map(3, stride=2)
    table = the_map.table.long()
    rows = torch.where(table < 0, g.num_voxels, table)
    feats = random(g.num_voxels, CHANNELS, like=torch.empty(0, device=g.device))

    def tap_by_tap(x: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(x, (0, 0, 0, 1), value=-torch.inf)
        out = padded.index_select(0, rows[0])
        for row in rows[1:]:
            out = torch.maximum(out, padded.index_select(0, row))
        return out

    return (
        on_features("sparsevox", lambda x: sv.ops.max_pool3d(x, the_map), feats, backward=backward),
        on_features("plain torch, tap by tap", tap_by_tap, feats, backward=backward, baseline=True),
    )


def upsample(coords: Tensor) -> Sequence[Contender]:
    """Compare upsampling, forward and backward."""
    g = grid(coords)
    the_map = g.child_map(2)
    parents = the_map.parents.long()
    feats = random(g.coarsen().num_voxels, CHANNELS, like=torch.empty(0, device=g.device))

    def selected(x: Tensor) -> Tensor:
        return x.index_select(0, parents)

    return (
        on_features("sparsevox", lambda x: sv.ops.upsample(x, the_map), feats, backward=True),
        on_features("index_select", selected, feats, backward=True, baseline=True),
    )


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Yield a shell of 100k voxels, and a solid block."""
    shell = 32 if quick else 565 if device.type == "cuda" else 180
    agree = close(1e-6)
    for scene, size in (("shell", shell), ("block", 12 if quick else 48)):
        yield Case("child_map, factor 2", scene, size, children)
        for reduce, name in (("max", "max_pool3d, factor 2"), ("mean", "avg_pool3d, factor 2")):
            for backward in (False, True):
                prepare = partial(pool, reduce=reduce, backward=backward)
                yield Case(name + BACKWARD * backward, scene, size, prepare, agree=agree, dtype="float32")
        yield Case("upsample, factor 2, forward and backward", scene, size, upsample, agree=agree, dtype="float32")
    for backward in (False, True):
        name = "max_pool3d 3x3x3, stride 2" + BACKWARD * backward
        yield Case(name, "shell", shell, partial(overlapping, backward=backward), agree=agree, dtype="float32")
