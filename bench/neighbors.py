"""Who is whose neighbor: kernel tables, and what a CPU makes of them for a convolution and its gradients."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

import sparsevox as sv
from bench import baseline, peers, plain
from bench.contenders import batch_against_one, grid, ours, voxel_list
from bench.harness import Case, Contender, Wanted
from sparsevox import KernelMap
from sparsevox.plans import pair_block


def neighbors(coords: Tensor, *, searched: Wanted | None = None, peer: Wanted | None = None) -> Sequence[Contender]:
    """Rows of all neighbors. 13 searches and symmetry stand beside the 26 searches that something is wanted against.

    spconv's pairs are more than a table: they are all that its convolutions need.
    """
    g, keys = grid(coords), baseline.build(coords)

    def nbytes(table: Tensor) -> int:
        return table.nbytes

    view = partial(renumbered, g, g, keys, keys)
    searches = voxel_list(baseline.neighbor_table, keys, name="voxel list, 26 searches", view=view)
    fewer = voxel_list(baseline.neighbor_table_by_symmetry, keys, name="voxel list, 13 searches", view=view)
    return (
        replace(ours(sv.ops.neighbor_table, g, view=torch.as_tensor), nbytes=nbytes),
        replace(searches, beside=searched),
        replace(fewer, baseline=False),
        *spconv(g, 3, 1, peer),
    )


def for_training(coords: Tensor, *, peer: Wanted | None = None) -> Sequence[Contender]:
    """All that a step of training on a CPU needs of a map within a grid: table, pairs and bags."""
    g, keys = grid(coords), baseline.build(coords)

    def fresh(complete: bool) -> KernelMap:
        g.clear_cache()
        found = g.kernel_map(3)
        g.clear_cache()
        assert found.down.plan if complete else found.down.pairs
        return found

    def listed() -> plain.Pairs:
        return plain.pairs(baseline.neighbor_table_by_symmetry(keys))

    def table(pairs: plain.Pairs) -> Tensor:
        result = torch.full((27, len(keys)), -1, dtype=torch.int32, device=keys.device)
        for row, (src, dst) in zip(result, pairs, strict=True):
            row[dst] = src.int()
        return renumbered(g, g, keys, keys, result)

    def nbytes(found: KernelMap) -> int:
        return found.nbytes

    return (
        replace(ours(fresh, True, view=from_pairs), nbytes=nbytes),
        Contender("sparsevox, no bags", partial(fresh, False), from_pairs, nbytes=nbytes),
        voxel_list(listed, name="voxel list, 13 searches", view=table),
        *spconv(g, 3, 1, peer),
    )


def strided(coords: Tensor, *, kernel_size: int) -> Sequence[Contender]:
    """The coarse voxels that a convolution of stride 2 reaches, and the table."""
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
    """The table of lists in the order and the row numbers of grids."""
    rows = fine.index(baseline.decode(keys))
    named = torch.where(table >= 0, rows[table.long()].int(), -1)
    return torch.empty_like(table).index_copy_(1, coarse.index(baseline.decode(coarse_keys)), named)


def from_pairs(found: KernelMap) -> Tensor:
    """The table once more, from the pairs of a map."""
    taps = len(found.table)
    src, dst, starts = found.down.pairs
    part = torch.repeat_interleave(starts.diff())  # block * K + tap, for each pair
    assert bool((dst // pair_block(taps) == part // taps).all())
    result = torch.full_like(found.table, -1)
    result[part % taps, dst.long()] = src
    return result


def spconv(g: sv.Grid, kernel_size: int, stride: int, wanted: Wanted | None = None) -> Sequence[Contender]:
    """spconv's pairs, if it is there."""
    theirs = peers.kernel_map(g, kernel_size, stride)
    return [replace(theirs, beside=wanted)] if theirs else []


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """A shell of 100k voxels (and one of 2M on a GPU, which 100k do not fill), other scenes, a batch of 64."""
    size, beams = (32, 64) if quick else (180, 2048)
    wanted = partial(neighbors, searched=Wanted("speed", ">=", 8), peer=Wanted("speed", ">=", 5))
    yield Case("neighbor_table", "shell", size, wanted)
    if device.type == "cuda":
        yield Case("neighbor_table", "shell", 48 if quick else 800, neighbors)
    yield Case("neighbor_table", "lidar", beams, neighbors)
    yield Case("neighbor_table", "block", 12 if quick else 64, neighbors)
    batch = batch_against_one(sv.ops.neighbor_table)
    yield Case("neighbor_table", "batch", 6 if quick else 44, batch, Wanted("ratio", ">=", 0.5))
    if device.type == "cpu":  # kernels have plans of another kind, see bench/plans.py
        yield Case("map for training", "shell", size, partial(for_training, peer=Wanted("speed", ">=", 3)))
        yield Case("map for training", "lidar", beams, for_training)
    for scene, across in (("shell", size), ("lidar", beams)):
        for kernel_size in (2, 3):
            prepare = partial(strided, kernel_size=kernel_size)
            yield Case(f"map {kernel_size}x{kernel_size}x{kernel_size} by 2", scene, across, prepare)
