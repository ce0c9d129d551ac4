"""Conversion of a dense mask to a grid, and of features to and from dense volumes."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

import sparsevox as sv
from bench import baseline
from bench.contenders import BACKWARD, grid, on_features, ours, random, voxel_list
from bench.harness import Case, Contender, close
from sparsevox.ops import dense

CHANNELS = 16


def from_mask(coords: Tensor) -> Sequence[Contender]:
    """Compare building a grid from a bool mask of the bounding box."""
    ijk = (coords[:, 1:] - coords[:, 1:].amin(0)).long()
    mask = torch.zeros(1, *(ijk.amax(0) + 1).tolist(), dtype=torch.bool, device=coords.device)
    mask[0, ijk[:, 0], ijk[:, 1], ijk[:, 2]] = True
    return ours(sv.Grid.from_dense, mask), voxel_list(baseline.from_dense, mask)


def features(coords: Tensor, *, out: bool, backward: bool) -> Sequence[Contender]:
    """Compare writing features to a volume [1, C, X, Y, Z] (`out`) or reading them, with indexing in plain torch."""
    g = grid(coords)
    lower, upper = (bound[0].tolist() for bound in g.bounds())
    shape = [CHANNELS, *(last - first for first, last in zip(lower, upper, strict=True))]
    x, y, z = (g.ijk - torch.tensor(lower, device=g.device)).long().unbind(1)
    like = torch.empty(0, device=g.device)

    def scatter(feats: Tensor) -> Tensor:
        channel = torch.arange(CHANNELS, device=g.device)[:, None]
        return feats.new_zeros(shape).index_put((channel, x, y, z), feats.t())[None]

    def gather(volume: Tensor) -> Tensor:
        return volume[0, :, x, y, z].t()

    library: Callable[[Tensor], Tensor]
    indexed: Callable[[Tensor], Tensor]
    if out:
        feats = random(g.num_voxels, CHANNELS, like=like)
        library, indexed = partial(dense.to_dense, grid=g, lower=lower, upper=upper), scatter
    else:
        feats = random(1, *shape, like=like)
        library, indexed = partial(dense.from_dense, grid=g, lower=lower), gather
    return (
        on_features("sparsevox", library, feats, backward=backward),
        on_features("index", indexed, feats, backward=backward, baseline=True),
    )


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Yield a volume that is almost empty and one that is full."""
    yield Case("from_dense", "shell", 32 if quick else 256, from_mask, dtype="bool")
    yield Case("from_dense", "block", 12 if quick else 128, from_mask, dtype="bool")
    for scene, size in (("shell", 32 if quick else 128), ("block", 12 if quick else 64)):
        for out, name in ((True, "features to_dense"), (False, "features from_dense")):
            for backward in (False, True):
                prepare = partial(features, out=out, backward=backward)
                yield Case(name + BACKWARD * backward, scene, size, prepare, agree=close(1e-6), dtype="float32")
