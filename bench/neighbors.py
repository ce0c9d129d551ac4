"""Kernel maps (rulebooks): tables of neighbors, and the lists of pairs that a CPU makes of them for convolutions."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

import sparsevox as sv
from bench import baseline, peers, plain_conv
from bench.contenders import batch_against_one, grid, ours, voxel_list
from bench.harness import Case, Contender, Target
from sparsevox import KernelMap
from sparsevox.plans import pair_block


def neighbors(coords: Tensor, *, searched: Target | None = None, peer: Target | None = None) -> Sequence[Contender]:
    """Compare neighbor tables. The pairs of spconv are more than a table: they are all that its convolutions need.

    The target is relative to 26 searches in the voxel list; 13 searches with symmetry are shown for comparison.
    """
    g, keys = grid(coords), baseline.build(coords)

    def nbytes(table: Tensor) -> int:
        return table.nbytes

    view = partial(renumbered, g, g, keys, keys)
    searches = voxel_list(baseline.neighbor_table, keys, name="voxel list, 26 searches", view=view)
    fewer = voxel_list(baseline.neighbor_table_by_symmetry, keys, name="voxel list, 13 searches", view=view)
    return (
        replace(ours(sv.ops.neighbor_table, g, view=torch.as_tensor), nbytes=nbytes),
        replace(searches, target=searched),
        replace(fewer, baseline=False),
        *spconv(g, 3, 1, peer),
    )


def for_training(coords: Tensor, *, peer: Target | None = None) -> Sequence[Contender]:
    """Compare kernel maps with all that a training step on a CPU needs: table, pairs and bags."""
    g, keys = grid(coords), baseline.build(coords)

    def fresh(complete: bool) -> KernelMap:
        g.clear_cache()
        found = g.kernel_map(3)
        g.clear_cache()
        assert found.down.plan if complete else found.down.pairs
        return found

    def listed() -> plain_conv.Pairs:
        return plain_conv.pairs(baseline.neighbor_table_by_symmetry(keys))

    def table(pairs: plain_conv.Pairs) -> Tensor:
        result = torch.full((27, len(keys)), -1, dtype=torch.int32, device=keys.device)
        for row, (src, dst) in zip(result, pairs, strict=True):
            row[dst] = src.int()
        return renumbered(g, g, keys, keys, result)

    def nbytes(found: KernelMap) -> int:
        return found.nbytes

    return (
        replace(ours(fresh, True, view=from_pairs), nbytes=nbytes),
        Contender("sparsevox, without bags", partial(fresh, False), from_pairs, nbytes=nbytes),
        voxel_list(listed, name="voxel list, 13 searches", view=table),
        *spconv(g, 3, 1, peer),
    )


def strided(coords: Tensor, *, kernel_size: int) -> Sequence[Contender]:
    """Compare computing the coarse voxels of a convolution of stride 2 and its table."""
    g, keys = grid(coords), baseline.build(coords)
    coarse = g.strided(kernel_size)
    coarse_keys, steps = (
        (baseline.strided, baseline.TAPS) if kernel_size == 3 else (baseline.coarsen, baseline.CHILDREN)
    )

    def fresh() -> Tensor:
        g.clear_cache()
        table = g.kernel_map(kernel_size, stride=2).table
        g.clear_cache()
        return table

    def searched() -> tuple[Tensor, Tensor]:
        found = coarse_keys(keys)
        return found, baseline.strided_table(keys, found, steps)

    def view(found: tuple[Tensor, Tensor]) -> Tensor:
        return renumbered(g, coarse, keys, *found)

    return (
        replace(ours(fresh, view=torch.as_tensor), nbytes=lambda table: table.nbytes),
        voxel_list(searched, view=view),
        *spconv(g, kernel_size, 2),
    )


def renumbered(fine: sv.Grid, coarse: sv.Grid, keys: Tensor, coarse_keys: Tensor, table: Tensor) -> Tensor:
    """Convert a table of the voxel list to the row order of grids."""
    rows = fine.index(baseline.decode(keys))
    named = torch.where(table >= 0, rows[table.long()].int(), -1)
    return torch.empty_like(table).index_copy_(1, coarse.index(baseline.decode(coarse_keys)), named)


def from_pairs(found: KernelMap) -> Tensor:
    """Rebuild the table from the pairs of a map."""
    taps = len(found.table)
    src, dst, starts = found.down.pairs
    part = torch.repeat_interleave(starts.diff())  # block * K + tap, for each pair
    assert bool((dst // pair_block(taps) == part // taps).all())
    result = torch.full_like(found.table, -1)
    result[part % taps, dst.long()] = src
    return result


def spconv(g: sv.Grid, kernel_size: int, stride: int, target: Target | None = None) -> Sequence[Contender]:
    """Create the contender spconv, if installed."""
    theirs = peers.kernel_map(g, kernel_size, stride)
    return [replace(theirs, target=target)] if theirs else []


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Yield a shell of 100k voxels (on a GPU also 2M, to fill it), other scenes, and a batch of 64."""
    size, beams = (32, 64) if quick else (180, 2048)
    target = partial(neighbors, searched=Target("speed", ">=", 8), peer=Target("speed", ">=", 5))
    yield Case("neighbor_table", "shell", size, target)
    if device.type == "cuda":
        yield Case("neighbor_table", "shell", 48 if quick else 800, neighbors)
    yield Case("neighbor_table", "lidar", beams, neighbors)
    yield Case("neighbor_table", "block", 12 if quick else 64, neighbors)
    batch = batch_against_one(sv.ops.neighbor_table)
    yield Case("neighbor_table", "batch", 6 if quick else 44, batch, Target("ratio", ">=", 0.5))
    if device.type == "cpu":  # GPU kernels use plans instead, see bench/plans.py
        yield Case("kernel map for training", "shell", size, partial(for_training, peer=Target("speed", ">=", 3)))
        yield Case("kernel map for training", "lidar", beams, for_training)
    for scene, across in (("shell", size), ("lidar", beams)):
        for kernel_size in (2, 3):
            prepare = partial(strided, kernel_size=kernel_size)
            yield Case(f"kernel map {kernel_size}x{kernel_size}x{kernel_size}, stride 2", scene, across, prepare)
