"""Element offsets beyond 2^31, computed by compiled kernels: sparse memory holds the tensors, and few programs run.

Every test fills what its programs read, at the far ends of tensors, and checks what they write.
"""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.aot

triton = pytest.importorskip("triton", reason="kernels need Triton")
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set: this process interprets kernels", allow_module_level=True)
if triton.__version__ < "3.9":
    pytest.skip("offsets do not depend on the version of Triton: one is enough", allow_module_level=True)

from sparsevox import ptx  # noqa: E402  (only where kernels are compiled)
from sparsevox.kernels import _reduce, bricks, conv, dense, neighbors, norm, plans, sample  # noqa: E402  (as above)
from sparsevox.kernels._conv_configs import conv_flags, weight_flags  # noqa: E402  (as above)
from sparsevox.kernels._launch import launch, launch_programs  # noqa: E402  (as above)
from sparsevox.reference.bricks import brick_coords  # noqa: E402  (as above)

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
END = 100  # rows at the end of a tensor that are filled and read
TAPS = 27
LONG = (1 << 27) + 77  # rows of tables of 27 taps


class Arena:
    """Sparse memory, the programs that run in it, and random numbers."""

    def __init__(self) -> None:
        self.chosen: Sequence[int] | None = None
        self.generator = torch.Generator().manual_seed(0)
        self.memory: ptx.SparseMemory | None = None

    def programs(self, kernel: str, count: int) -> Sequence[int]:
        """The programs to run: those that were chosen."""
        return range(count) if self.chosen is None else self.chosen

    def zeros(self, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        assert self.memory
        return self.memory.zeros(shape, dtype)

    def spread(self, items: int, block: int) -> list[int]:
        """Choose the last block of items, one in the middle and the first. Returns the items of these blocks."""
        blocks = triton.cdiv(items, block)
        self.chosen = [blocks - 1, blocks // 2, 0]
        return [i for b in self.chosen for i in range(b * block, min(items, (b + 1) * block))]

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator)


@pytest.fixture
def arena() -> Iterator[Arena]:
    """Launches run in sparse memory, and bad addresses fail the test."""
    arena = Arena()
    with ptx.emulate("sm_80", None, only=arena.programs, sparse=400 << 30) as emulation:
        arena.memory = emulation.memory
        yield arena
    emulation.check()


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    error = (actual.double() - expected.double()).abs().max()
    assert error <= tolerance * expected.double().abs().max().clamp(min=1)


CONVS = {  # channels, groups, input and output rows, taps
    "rows": (64, 64, 1, (1 << 25) + 999, (1 << 26) + 321, TAPS, HALF),
    "groups": (16, 48, 4, (1 << 28) - 77, (1 << 27) + 5, 8, SINGLE),
    "table": (16, 16, 1, (1 << 28) - 77, (1 << 28) + 77, TAPS, HALF),
    "one channel": (1, 1, 1, (1 << 31) - 77, (1 << 31) - 99, 2, HALF),
}


@pytest.mark.parametrize("name", CONVS)
def test_convolution(name: str, arena: Arena) -> None:
    c, d, groups, inputs, n, taps, dtype = CONVS[name]
    feats, out = arena.zeros(inputs, c, dtype=dtype), arena.zeros(n, d, dtype=dtype)
    table, order = arena.zeros(taps, n), arena.zeros(n)
    tiles = triton.cdiv(n, 128)
    lists, lengths = arena.zeros(tiles, taps), arena.zeros(tiles)
    weight = (arena.normal(taps, c // groups, d) / 8).to(dtype)
    feats[-END:] = arena.normal(END, c).to(dtype)
    rows, parts, flags = conv_flags(c // groups, d // groups, groups, dtype, False, 80)
    blocks = triton.cdiv(n, rows)
    chosen = (blocks - 1, blocks // 2, 0)
    arena.chosen = [block * parts + part for block in chosen for part in sorted({0, parts - 1})]
    sources = {}
    for block in chosen:
        lists[block * rows // 128] = torch.arange(taps)
        lengths[block * rows // 128] = taps
        for place in range(block * rows, min((block + 1) * rows, n)):
            row = n - 1 - place  # the last rows are in the first tile
            order[place] = row
            met = arena.integers(inputs - END, inputs, taps)
            met[arena.integers(0, 5, taps) == 0] = -1
            table[:, row], sources[row] = met, met
    launch_programs(
        conv.conv_kernel, blocks * parts, (feats, weight, lengths, table, order, lists, lengths, out, n, taps), flags
    )
    written = torch.tensor(list(sources))
    met = torch.stack(list(sources.values()), 1)  # [K, rows]
    x = torch.where(met[..., None] >= 0, feats[met.clamp(min=inputs - END)].double(), 0).unflatten(2, (groups, -1))
    expected = torch.einsum("kmgc,kcgd->mgd", x, weight.double().unflatten(2, (groups, -1))).flatten(1)
    first, last = (slice(0, 8), slice(-8, None)) if parts > 1 else (slice(None), slice(0))
    for columns in (first, last):
        if expected[:, columns].numel():
            assert_close(out[written][:, columns], expected[:, columns], 2e-3 if dtype == HALF else 1e-5)


@pytest.mark.parametrize(("c", "d", "groups", "dtype"), [(64, 64, 1, HALF), (8, 24, 8, SINGLE)])
def test_gradient_of_the_weight(c: int, d: int, groups: int, dtype: torch.dtype, arena: Arena) -> None:
    inputs, n, taps, blocks, length, pairs = (1 << 32) // c + 11, (1 << 32) // d + 5, 3, 6, 4, 40
    feats, grads = arena.zeros(inputs, c, dtype=dtype), arena.zeros(n, d, dtype=dtype)
    feats[-END:], grads[-END:] = arena.normal(END, c).to(dtype), arena.normal(END, d).to(dtype)
    total, used = (1 << 31) - 8, blocks * taps * pairs
    sources, targets = arena.zeros(total), arena.zeros(total)
    sources[-used:], targets[-used:] = arena.integers(inputs - END, inputs, used), arena.integers(n - END, n, used)
    starts = total - used + pairs * torch.arange(blocks * taps + 1)
    partials = arena.zeros(2, taps, c // groups, d, dtype=SINGLE)
    tiles, flags = weight_flags(c // groups, d // groups, groups, dtype, 80)
    arguments = (feats, grads, sources, targets, starts, partials, blocks, taps, length)
    launch_programs(conv.conv_weight_kernel, 2 * taps * tiles, arguments, flags)
    x = feats[sources[-used:].long()].double().view(blocks, taps, pairs, groups, -1)
    g = grads[targets[-used:].long()].double().view(blocks, taps, pairs, groups, -1)
    per_block = torch.einsum("btpgc,btpgd->btcgd", x, g).flatten(3)
    expected = torch.stack([per_block[:length].sum(0), per_block[length:].sum(0)])
    assert_close(partials, expected, 1e-5)


REDUCTIONS = {  # source, reduce, channels, input and output rows, taps, dtype, whether to divide
    "table": ("table", "sum", 40, (1 << 26) + 3, (1 << 27) + 77, TAPS, HALF, True),
    "winners": ("rows", "max", 8, (1 << 30) + 3, (1 << 29) + 77, 0, HALF, False),
    "list": ("list", "sum", 3, (1 << 30) + 3, (1 << 30) + 77, 0, BRAIN, True),
    "one channel": ("rows", "sum", 1, (1 << 31) - 5, (1 << 31) - 2000, 0, HALF, False),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name: str, arena: Arena) -> None:
    source, reduce, channels, inputs, n, taps, dtype, divide = REDUCTIONS[name]
    feats, out = arena.zeros(inputs, channels, dtype=dtype), arena.zeros(n, channels, dtype=dtype)
    winners = arena.zeros(n if reduce == "max" else 0, channels)
    feats[-END:] = arena.normal(END, channels).to(dtype)
    columns = 8 if channels <= 8 else 32
    parts = triton.cdiv(channels, columns)
    rows = arena.spread(n, 32)
    assert arena.chosen
    arena.chosen = [block * parts + part for block in arena.chosen for part in range(parts)]
    members: dict[int, Tensor] = {}
    ranges, listed = feats, feats
    if source == "table":
        listed = arena.zeros(taps, n)
        for row in rows:
            met = arena.integers(inputs - END, inputs, taps)
            met[arena.integers(0, 5, taps) == 0] = -1
            listed[:, row], members[row] = met, met[met >= 0]
    else:
        ranges = arena.zeros(n + 1)
        if source == "list":
            listed = arena.zeros((1 << 31) - 8)
            listed[-400:] = arena.integers(inputs - END, inputs, 400)
        at = len(listed) - (400 if source == "list" else END)
        for row in sorted(rows):
            ranges[row], first, at = at, at, at + row % 3 * (source == "list") + row % 2 * (source == "rows")
            ranges[row + 1] = at
            members[row] = listed[first:at].long() if source == "list" else torch.arange(first, at)
    divisors = arena.zeros(n, dtype=torch.int64) if divide else feats
    if divide:
        divisors[rows] = torch.tensor(rows) % 5 + 1
    launch(
        _reduce.reduce_kernel,
        n,
        *(feats, listed, ranges, feats, divisors, out, winners, n, inputs, channels, taps),
        SOURCE=source,
        REDUCE=reduce,
        DIVIDE=divide,
        WINNERS=reduce == "max",
        UNROLL=4,
        COLUMNS=columns,
        block=32,
        parts=parts,
    )
    for row in rows:
        values = feats[members[row]].double()
        if reduce == "sum":
            assert_close(out[row], values.sum(0) / (divisors[row] if divide else 1), 1e-2)
        elif len(values):
            assert torch.equal(out[row].double(), values.max(0).values)
            assert torch.equal(winners[row].long(), members[row][values.max(0).indices])


@pytest.mark.parametrize(("channels", "groups", "n"), [(40, 2, (1 << 27) + 1003), (1, 1, (1 << 31) + (1 << 20) + 5)])
def test_norm(channels: int, groups: int, n: int, arena: Arena) -> None:
    feats, items, blocks = arena.zeros(n, channels, dtype=HALF), 3, triton.cdiv(channels, 32)
    start = n // 2 + 7
    offsets, chunks = torch.tensor([0, start, start, n]), n // 512 + items
    parts, mean = arena.zeros(chunks, 2, channels, dtype=torch.float64), arena.normal(items, groups)
    whole = (n - start - 1) // 512
    number, first = start // 512 + 2 + whole, start + whole * 512  # of the last chunk
    x = (arena.normal(n - first, channels) + 3).half()
    feats[first:] = x
    arena.chosen = range(number * blocks, (number + 1) * blocks)
    total, flags = chunks * blocks, {"GRADIENT": False, "COLUMNS": 32, "block": 1}
    launch(norm.moments_kernel, total, *(feats, feats, offsets, mean, parts, channels, groups, items), **flags)
    mid = x.double().mean(0)
    assert_close(parts[number, 0], mid, 1e-4)
    assert_close(parts[number, 1], (x.double() - mid).square().sum(0), 1e-4)
    rstds, weight, bias = arena.normal(items, groups), arena.normal(channels), arena.normal(channels)
    out = arena.zeros(n, channels, dtype=HALF)
    arrays = (feats, feats, offsets, mean, rstds, weight, bias, rstds, out)
    launch(norm.affine_kernel, total, *(*arrays, channels, groups, items), WEIGHT=True, BIAS=True, **flags)
    center, rstd = (of_groups[2].repeat_interleave(channels // groups) for of_groups in (mean, rstds))
    assert_close(out[first:], (x.double() - center) * rstd * weight + bias, 1e-3)


def long_table(arena: Arena, others: int) -> tuple[Tensor, list[int]]:
    """A table of more than 2^31 entries with random ones in the rows of three blocks of 256, and these rows."""
    table = arena.zeros(TAPS, LONG)
    rows = arena.spread(LONG, 256)
    for row in rows:
        table[:, row] = torch.where(arena.integers(0, 2, TAPS) > 0, others - 1 - row, -1)
    return table, rows


def test_adjoint(arena: Arena) -> None:
    others = LONG + 1000
    table, rows = long_table(arena, others)
    out = arena.zeros(TAPS, others)
    launch(plans.adjoint_kernel, LONG, table, out, LONG, others, TAPS, block=256)
    at = torch.tensor(rows)
    assert torch.equal(out[:, others - 1 - at], torch.where(table[:, at] >= 0, at, 0).int())


def test_plans(arena: Arena) -> None:
    table, rows = long_table(arena, LONG)
    at = torch.tensor(rows)
    # 1. The taps of every row as a word, here without a permutation.
    words = arena.zeros(LONG, dtype=torch.int64)
    launch(plans.tap_masks_kernel, LONG, table, torch.arange(TAPS), words, LONG, TAPS, block=256)
    expected = ((table[:, at] >= 0) << torch.arange(TAPS)[:, None]).sum(0)
    for i in range(6):
        expected ^= expected >> 2**i
    assert torch.equal(words[at], expected)
    # 2. The taps of every tile.
    tiles = triton.cdiv(LONG, 128)
    order, lists, lengths = arena.zeros(LONG), arena.zeros(tiles, TAPS), arena.zeros(tiles)
    places = torch.tensor(arena.spread(LONG, 128))
    order[places] = at[arena.integers(0, 4, len(places)) - 4].int()
    launch(plans.tile_taps_kernel, tiles, *(table, order, lists, lengths, tiles, LONG, TAPS), ROWS=128, block=1)
    for tile in arena.chosen or ():
        met = table[:, order[tile * 128 : min((tile + 1) * 128, LONG)].long()]
        taps = (met >= 0).any(1).nonzero().flatten().int()
        assert torch.equal(lists[tile, : int(lengths[tile])], taps)
    # 3. The pairs of blocks of 256 rows: counted, then written beyond 2^31.
    segments = triton.cdiv(LONG, 256) * TAPS
    arena.spread(LONG, 256)
    chosen = [block * TAPS + tap for block in arena.chosen or () for tap in (0, TAPS - 1)]
    arena.chosen = chosen
    sizes = (segments, LONG, TAPS, 256)
    starts, total = arena.zeros(segments + 1, dtype=torch.int64), (1 << 31) - 4
    launch(plans.pairs_kernel, segments, table, starts[1:], table, table, *sizes, WRITE=False, ROWS=1024, block=1)
    found = []
    for segment in chosen:
        block = torch.arange(segment // TAPS * 256, min(LONG, segment // TAPS * 256 + 256))
        met = table[segment % TAPS, block]
        found.append((met[met >= 0], block[met >= 0].int()))
    assert starts[1:][chosen].tolist() == [len(sources) for sources, _ in found]
    sources, targets = arena.zeros(total + 2000), arena.zeros(total + 2000)
    firsts = [total - 200 + 300 * i for i in range(len(chosen))]
    starts[chosen] = torch.tensor(firsts)
    launch(plans.pairs_kernel, segments, table, starts, sources, targets, *sizes, WRITE=True, ROWS=1024, block=1)
    for first, (source, target) in zip(firsts, found, strict=True):
        assert torch.equal(sources[first : first + len(source)], source)
        assert torch.equal(targets[first : first + len(target)], target)


def test_kernel_table_and_coordinates(arena: Arena) -> None:
    n_bricks, n = 1 << 21, (1 << 27) + 99
    masks, starts, around = arena.zeros(n_bricks, dtype=torch.int64), arena.zeros(n_bricks), arena.zeros(n_bricks, TAPS)
    out = arena.zeros(TAPS, n)
    _, moves = neighbors._moves([3] * 3, [1] * 3, [1] * 3, [1] * 3)
    ours = arena.spread(n_bricks, 8)
    masks[ours], around[ours] = -1, torch.tensor(ours).int()[:, None]  # full bricks, around which are only themselves
    starts[ours] = (n - 64 * len(ours) + 64 * torch.arange(len(ours))).int()
    launch(
        neighbors.kernel_table_kernel,
        n_bricks,
        *(masks, starts, masks, starts, around, torch.tensor(moves), out, n_bricks, n, TAPS, 3, 3, 3),
        block=8,
    )
    for start in starts[ours].tolist():
        rows = torch.arange(start, start + 64).int()
        assert torch.equal(out[13, start : start + 64], rows)
        assert torch.equal(out[:, start : start + 64].sort(1).values, rows.expand(TAPS, 64))
    coords, keys = arena.zeros(1 << 30, 4), torch.arange(n_bricks)
    ours = arena.spread(n_bricks, 16)
    masks[ours] = -1
    starts[ours] = ((1 << 30) - 64 * len(ours) + 64 * torch.arange(len(ours))).int()
    launch(bricks.coords_kernel, n_bricks, keys, masks, starts, coords, n_bricks, block=16)
    rows_of = torch.empty(64 * len(ours), 0)
    expected = brick_coords(keys[ours], masks[ours], 64 * torch.arange(len(ours), dtype=torch.int32), rows_of)
    assert torch.equal(coords[-64 * len(ours) :], expected)


@pytest.mark.parametrize("channels", [40, 3])
def test_cells(channels: int, arena: Arena) -> None:
    n, n_cells, batch = (1 << 32) // channels + 19, 1 << 29, 8
    feats, back = (arena.zeros(n, channels, dtype=HALF) for _ in range(2))
    volume, places = arena.zeros(batch, channels, n_cells, dtype=HALF), arena.zeros(n, dtype=torch.int64)
    parts = triton.cdiv(channels, dense.COLUMNS)
    items = n * parts
    ours = arena.spread(items, 32)
    for row in sorted({i // parts for i in ours}):
        feats[row] = arena.normal(channels).half()
        places[row] = 7 * n_cells + row * 7919 % n_cells if row % 5 else -1
    arguments = (items, n_cells, channels)
    flags = {"COLUMNS": dense.COLUMNS, "block": 32}
    launch(dense.cells_kernel, items, feats, places, volume, *arguments, GATHER=False, **flags)
    launch(dense.cells_kernel, items, volume, places, back, *arguments, GATHER=True, **flags)
    for i in ours:
        row, columns = i // parts, slice(i % parts * dense.COLUMNS, i % parts * dense.COLUMNS + dense.COLUMNS)
        cell = int(places[row])
        if cell >= 0:
            assert torch.equal(volume[cell // n_cells, columns, cell % n_cells], feats[row, columns])
        assert torch.equal(
            back[row, columns], feats[row, columns] if cell >= 0 else torch.zeros_like(feats[row, columns])
        )


@pytest.mark.parametrize("channels", [40, 5])
def test_samples(channels: int, arena: Arena) -> None:
    """The numbers of pairs exceed 2^32, so that divisions take all 64 bits."""
    n, taps, points = (1 << 32) // channels + 3, 8, (1 << 29) + 5
    columns = 8 if channels <= 8 else 32
    parts = triton.cdiv(channels, columns)
    feats, out = arena.zeros(n, channels, dtype=HALF), arena.zeros(points, channels, dtype=HALF)
    sources, weights = arena.zeros(points, taps), arena.zeros(points, taps, dtype=SINGLE)
    feats[-END:] = arena.normal(END, channels).half()
    ours = arena.spread(points * parts, 32)
    at = torch.tensor(sorted({i // parts for i in ours}))
    sources[at], weights[at] = arena.integers(n - END, n, len(at), taps).int(), arena.normal(len(at), taps)
    arguments = (feats, sources, sources, sources, weights, out, points * parts, channels, taps)
    launch(sample.weighted_kernel, points * parts, *arguments, SUM=False, COLUMNS=columns, block=32)
    expected = (weights[at, :, None].double() * feats[sources[at].long()].double()).sum(1)
    for i in ours:
        row, first = i // parts, i % parts * columns
        wanted = expected[int(torch.searchsorted(at, row)), first : first + columns]
        assert_close(out[row, first : first + columns], wanted, 2e-3)
    pairs = arena.spread(points * taps, 32)
    at = torch.tensor(sorted({pair // taps for pair in pairs}))
    sources[at], out[at] = arena.integers(n - END, n, len(at), taps).int(), arena.normal(len(at), channels).half()
    sizes = (points * taps, channels, taps)
    launch(sample.dot_kernel, points * taps, *(feats, sources, out, weights, *sizes), COLUMNS=columns, block=32)
    rows = feats[sources.flatten()[pairs].long()].double()
    assert_close(weights.flatten()[pairs], (rows * out[torch.tensor(pairs) // taps].double()).sum(1), 1e-5)


def test_dense_volume(arena: Arena) -> None:
    size, lower = (1500, 1300, 1100), (3, -5, 2)
    volume = arena.zeros(2, *size, dtype=torch.int8)
    volume[1, -1, -1, -1] = volume[1, -1, -1, -2] = 1
    counts = [((low + length - 1) >> 2) - (low >> 2) + 1 for low, length in zip(lower, size, strict=True)]
    n = 2 * counts[0] * counts[1] * counts[2]
    keys, masks, bad = (
        arena.zeros(n, dtype=torch.int64),
        arena.zeros(n, dtype=torch.int64),
        arena.zeros(1, dtype=torch.int64),
    )
    arena.spread(n, 8)
    launch(dense.dense_kernel, n, volume, keys, masks, bad, n, *counts, *size, *lower, block=8)
    coords = brick_coords(keys[-1:].clone(), masks[-1:].clone(), torch.zeros(1, dtype=torch.int32), torch.empty(2, 0))
    last = [low + length - 1 for low, length in zip(lower, size, strict=True)]
    assert {tuple(row) for row in coords.tolist()} == {(1, *last), (1, *last[:2], last[2] - 1)}
