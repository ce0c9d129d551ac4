"""Plans that convolutions derive from kernel tables: pairs, bags, the adjoint table, and the order of rows.

The order of rows determines the work of a GPU: a tile of rows executes every tap that one of its rows has.
M output rows, K taps, P pairs.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from bench import plain_conv
from bench.contenders import grid
from bench.harness import Case, Contender
from sparsevox import KernelMap
from sparsevox.ops import plans as plan_ops
from sparsevox.plans import TILE_ROWS, Bags, PairLists, pair_block


def strided_map(coords: Tensor) -> KernelMap:
    """Create a kernel map of size 3 and stride 2, whose two directions differ."""
    return grid(coords).kernel_map(3, stride=2)


def lists(coords: Tensor) -> Sequence[Contender]:
    """Compare listing the pairs of all taps. Plain torch lists them tap by tap, without blocks."""
    table = grid(coords).kernel_map(3).table
    taps, block = len(table), pair_block(len(table))

    def numbers(tap: Tensor, dst: Tensor, src: Tensor) -> Tensor:
        return ((tap * table.shape[1] + dst.long()) * table.shape[1] + src.long()).sort().values

    def ours(found: PairLists) -> Tensor:
        src, dst, starts = found
        part = torch.repeat_interleave(starts.diff())
        assert bool((part // taps == dst // block).all())
        return numbers(part % taps, dst, src)

    def theirs(found: plain_conv.Pairs) -> Tensor:
        src, dst = (torch.cat(rows) for rows in zip(*found, strict=True))
        sizes = torch.tensor([len(rows) for rows, _ in found], device=src.device)
        return numbers(torch.repeat_interleave(sizes), dst, src)

    return (
        Contender("sparsevox", partial(plan_ops.pair_lists, table), ours),
        Contender("nonzero, tap by tap", partial(plain_conv.pairs, table), theirs, baseline=True),
    )


def bags(coords: Tensor) -> Sequence[Contender]:
    """Compare grouping the pairs by output row."""
    the_map = grid(coords).kernel_map(3)
    pairs = the_map.down.pairs
    block, count = pair_block(the_map.geometry.taps), the_map.num_coarse

    def sort() -> tuple[Tensor, Tensor]:
        order = torch.sort(pairs.targets, stable=True).indices
        return order, torch.nn.functional.pad(torch.bincount(pairs.targets, minlength=count).cumsum(0), (1, 0))

    def ours(found: Bags) -> Tensor:
        first = pairs.starts[:: the_map.geometry.taps]  # pair of each block, and the end
        blocks = zip(found.row_starts.split(block + 1), first, strict=False)
        starts = torch.cat([*(part[:-1] + start for part, start in blocks), first[-1:]])
        return torch.cat([found.order + first[torch.repeat_interleave(first.diff())], starts])

    return (
        Contender("sparsevox", partial(plan_ops.bags, the_map.table, pairs), ours),
        Contender("sort", sort, torch.cat, baseline=True),
    )


def adjoint(coords: Tensor) -> Sequence[Contender]:
    """Compare computing the table of the opposite direction."""
    the_map = strided_map(coords)
    fine = torch.empty(the_map.num_fine, device=coords.device)

    def tap_by_tap() -> Tensor:
        result = torch.full((the_map.geometry.taps, len(fine)), -1, dtype=torch.int32, device=fine.device)
        for row, (src, dst) in zip(result, plain_conv.pairs(the_map.table), strict=True):
            row[src] = dst.int()
        return result

    return (
        Contender("sparsevox", partial(plan_ops.adjoint_table, the_map.table, fine), torch.as_tensor),
        Contender("nonzero, tap by tap", tap_by_tap, torch.as_tensor, baseline=True),
    )


def order(coords: Tensor) -> Sequence[Contender]:
    """Compare orders of rows by the number of taps that a tile executes.

    The alternatives are the Z-order, rows sorted by their mask of taps (as in spconv) or by its position in the Gray
    sequence (as in FlexGEMM), and a separate sort for each plane of nine taps, whose three passes add up. Ideal would
    be a tile of one row.
    """
    table = grid(coords).kernel_map(3).table
    has = table >= 0

    def sort(key: Callable[[Tensor], Tensor], planes: int = 1) -> tuple[Tensor, ...]:
        return tuple(key(masks(part)).sort().indices for part in (table >= 0).chunk(planes))

    def executed(orders: tuple[Tensor, ...]) -> float:
        parts = zip(has.chunk(len(orders)), orders, strict=True)
        return sum(float(tile_masks(part[:, rows.long()]).sum(0).double().mean()) for part, rows in parts)

    def contender(name: str, run: Callable[[], tuple[Tensor, ...]], baseline: bool = False) -> Contender:
        return Contender(name, run, lambda orders: orders[0].long().sort().values, baseline, taps=executed)

    rows = torch.arange(table.shape[1], device=table.device)
    ideal = Contender("ideal", rows.clone, torch.as_tensor, taps=lambda _: float(has.sum(0).double().mean()))
    return (
        contender("sparsevox", lambda: (plan_ops.row_plan(table).order,)),
        contender("Z-order", lambda: (rows.clone(),)),
        contender("sorted masks", lambda: sort(torch.as_tensor), True),
        contender("sorted Gray codes", lambda: sort(gray), True),
        contender("three planes, Gray codes", lambda: sort(gray, 3)),
        ideal,
    )


def masks(has: Tensor) -> Tensor:
    """Pack the taps of each row, bool [K, M], into bits: int64 [M]."""
    bits = 1 << torch.arange(len(has), device=has.device)
    return (has * bits[:, None]).sum(0)


def tile_masks(has: Tensor) -> Tensor:
    """Reduce taps of rows in tile order, bool [K, M], to those that any row of a tile has: bool [K, tiles]."""
    padded = torch.nn.functional.pad(has, (0, -has.shape[1] % TILE_ROWS))
    return padded.unflatten(1, (-1, TILE_ROWS)).any(2)


def gray(words: Tensor) -> Tensor:
    """Compute the position of each mask of 27 bits in the Gray sequence."""
    for shift in (1, 2, 4, 8, 16):
        words = words ^ words >> shift
    return words


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Yield a shell of 100k voxels, a LiDAR sweep and a height field."""
    scenes = [("shell", 32), ("lidar", 64)] if quick else [("shell", 180), ("lidar", 2048)]
    for scene, size in scenes:
        yield Case("pair_lists", scene, size, lists)
        if device.type == "cpu":
            yield Case("pair_bags", scene, size, bags)
        yield Case("adjoint_table", scene, size, adjoint)
    for scene, size in [*scenes, ("terrain", 24 if quick else 320)]:
        yield Case("row_plan", scene, size, order)
