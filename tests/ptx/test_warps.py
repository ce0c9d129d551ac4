"""Instructions of a warp, branches and atomics of PTX against plain Python."""

from collections.abc import Callable

import pytest
import torch

from tests.ptx.assemble import evaluate, run

SEEDS = pytest.mark.parametrize("seed", [None, 0, 1, 2])
X = [(7919 * i + 13) % 1009 - 500 for i in range(64)]  # two programs of a warp each


def warps(values: list[int]) -> list[list[int]]:
    return [values[:32], values[32:]]


@pytest.mark.parametrize("by", [0, 1, 5, 16, 31])
@pytest.mark.parametrize("segment", [32, 8])
@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffles(mode: str, segment: int, by: int) -> None:
    """Segments of a warp, by the upper bits of the clamp."""
    by %= segment
    clamp = (32 - segment) << 8 | (0 if mode == "up" else 31)
    expected, valid = [], []
    for warp in warps(X):
        for lane in range(32):
            base, at = lane // segment * segment, lane % segment
            source = {"up": at - by, "down": at + by, "bfly": at ^ by, "idx": by}[mode]
            valid.append(0 <= source < segment)
            expected.append(warp[base + source] if valid[-1] else warp[lane])
    instruction = f"shfl.sync.{mode}.b32 {{d}}, {{0}}, {by}, {clamp}, -1"
    assert evaluate(instruction, "b32", ["b32"], [X]) == [x % (1 << 32) for x in expected]
    instruction = f"shfl.sync.{mode}.b32 %r50|{{d}}, {{0}}, {by}, {clamp}, -1"
    assert evaluate(instruction, "pred", ["b32"], [X]) == valid


def test_shuffles_of_lanes_that_differ() -> None:
    lanes = [(5 * i + 3) % 32 for i in range(64)]
    expected = [warp[lanes[i]] % (1 << 32) for warp in warps(X) for i in range(32)]
    assert evaluate("shfl.sync.idx.b32 {d}, {0}, {1}, 31, -1", "b32", ["b32", "b32"], [X, lanes]) == expected


def test_reductions() -> None:
    def each(function: Callable[[list[int]], int]) -> list[int]:
        return [function(warp) % (1 << 32) for warp in warps(X) for _ in range(32)]

    assert evaluate("redux.sync.add.s32 {d}, {0}, -1", "b32", ["b32"], [X]) == each(sum)
    assert evaluate("redux.sync.min.s32 {d}, {0}, -1", "b32", ["b32"], [X]) == each(min)
    assert evaluate("redux.sync.max.s32 {d}, {0}, -1", "b32", ["b32"], [X]) == each(max)
    assert evaluate("redux.sync.max.u32 {d}, {0}, -1", "b32", ["b32"], [X]) == each(
        lambda warp: max(x % (1 << 32) for x in warp)
    )
    masks = [x & 0xFF0 | 1 for x in X]

    def joined(warp: list[int], start: int, name: str) -> int:
        for x in warp:
            start = getattr(start, name)(x)
        return start

    for name in ("and", "or", "xor"):
        expected = [joined(warp, -1 if name == "and" else 0, f"__{name}__") for warp in warps(masks) for _ in range(32)]
        assert evaluate(f"redux.sync.{name}.b32 {{d}}, {{0}}, -1", "b32", ["b32"], [masks]) == expected


def test_votes() -> None:
    p = [int(x > 0) for x in X[:32]] + [1] * 32
    ballots = [sum(b << i for i, b in enumerate(warp)) for warp in warps(p) for _ in range(32)]
    assert evaluate("vote.sync.ballot.b32 {d}, {0}, -1", "b32", ["pred"], [p]) == ballots
    for name, expected in {"all": [0, 1], "any": [1, 1], "uni": [0, 1]}.items():
        actual = evaluate(f"vote.sync.{name}.pred {{d}}, {{0}}, -1", "pred", ["pred"], [p])
        assert actual == [e for e in expected for _ in range(32)]


INDEX = """
mov.u32 %r1, %tid.x;
mov.u32 %r2, %ctaid.x;
mov.u32 %r4, %ntid.x;
mad.lo.u32 %r3, %r2, %r4, %r1;
ld.param.u64 %d0, [k_0];
mad.wide.u32 %d1, %r3, 4, %d0;
"""


@SEEDS
def test_loops_of_different_length_and_their_return(seed: int | None) -> None:
    """Collatz steps: threads leave the loop one by one, and meet again for a shuffle."""
    body = (
        INDEX
        + """
    add.u32 %r10, %r3, 1;
    mov.u32 %r11, 0;
    $loop:
    setp.eq.u32 %p1, %r10, 1;
    @%p1 bra $end;
    and.b32 %r12, %r10, 1;
    setp.eq.u32 %p2, %r12, 0;
    @%p2 bra $even;
    mad.lo.u32 %r10, %r10, 3, 1;
    bra.uni $next;
    $even:
    shr.u32 %r10, %r10, 1;
    $next:
    add.u32 %r11, %r11, 1;
    bra.uni $loop;
    $end:
    shfl.sync.bfly.b32 %r13, %r11, 1, 31, -1;
    st.global.b32 [%d1], %r13;
    """
    )

    def steps(n: int) -> int:
        return 0 if n == 1 else 1 + steps(n // 2 if n % 2 == 0 else 3 * n + 1)

    out = torch.zeros(192, dtype=torch.int32)
    assert run(body, out, programs=3, threads=64, seed=seed) == []
    assert out.tolist() == [steps((i ^ 1) + 1) for i in range(192)]


@SEEDS
def test_exits_of_single_threads(seed: int | None) -> None:
    body = INDEX + "and.b32 %r5, %r1, 1;\nsetp.eq.u32 %p1, %r5, 1;\n@%p1 ret;\nst.global.b32 [%d1], 1;"
    out = torch.zeros(64, dtype=torch.int32)
    assert run(body, out, programs=2, seed=seed) == []
    assert out.tolist() == [1, 0] * 32


ATOMICS: dict[str, tuple[Callable[[int, int], int], str]] = {
    "add": (lambda old, x: old + x, "s32"),
    "min": (min, "s32"),
    "max": (max, "s32"),
    "and": (lambda old, x: old & x, "b32"),
    "or": (lambda old, x: old | x, "b32"),
    "xor": (lambda old, x: old ^ x, "b32"),
}


@SEEDS
@pytest.mark.parametrize("name", ATOMICS)
@pytest.mark.parametrize("opcode", ["red", "atom"])
def test_atomics(opcode: str, name: str, seed: int | None) -> None:
    """Sixty-four threads on four places; what they get back are the values on the way."""
    function, kind = ATOMICS[name]
    target = "%r20, " if opcode == "atom" else ""
    body = (
        INDEX
        + f"""
    ld.global.b32 %r10, [%d1];
    and.b32 %r11, %r3, 3;
    ld.param.u64 %d2, [k_1];
    mad.wide.u32 %d3, %r11, 4, %d2;
    {opcode}.global.relaxed.gpu.{name}.{kind} {target}[%d3], %r10;
    ld.param.u64 %d4, [k_2];
    mad.wide.u32 %d5, %r3, 4, %d4;
    st.global.b32 [%d5], %r20;
    """
    )
    x, places, old = (
        torch.tensor(X, dtype=torch.int32),
        torch.tensor([0, 3, -1, 77], dtype=torch.int32),
        torch.zeros(64),
    )
    start, old = places.tolist(), old.int()
    assert run(body, x, places, old, programs=2, seed=seed) == []
    for place in range(4):
        rows = range(place, 64, 4)
        expected = start[place]
        for i in rows:
            expected = function(expected, X[i])
        assert places[place] == expected
        if opcode == "atom":
            after = sorted(function(int(old[i]), X[i]) for i in rows)
            before = sorted(int(old[i]) for i in rows)
            assert sorted([*before, expected]) == sorted([*after, start[place]])  # a chain from first to last


@SEEDS
def test_compare_and_swap_admits_one_thread(seed: int | None) -> None:
    body = (
        INDEX
        + """
    and.b32 %r11, %r3, 3;
    ld.param.u64 %d2, [k_1];
    mad.wide.u32 %d3, %r11, 4, %d2;
    atom.global.relaxed.gpu.cas.b32 %r20, [%d3], -1, %r3;
    st.global.b32 [%d1], %r20;
    """
    )
    out, places = torch.zeros(64, dtype=torch.int32), torch.full((4,), -1, dtype=torch.int32)
    assert run(body, out, places, programs=2, seed=seed) == []
    for place, winner in enumerate(places.tolist()):
        assert winner % 4 == place
        assert [out[i].item() for i in range(place, 64, 4)] == [
            -1 if i == winner else winner for i in range(place, 64, 4)
        ]


def test_seeds_choose_different_winners() -> None:
    body = INDEX + "atom.global.relaxed.gpu.cas.b32 %r20, [%d0], -1, %r3;"
    winners = set()
    for seed in range(10):
        place = torch.full((1,), -1, dtype=torch.int32)
        run(body, place, programs=4, seed=seed)
        winners.add(place.item())
    assert len(winners) > 3


@pytest.mark.parametrize(("name", "bound", "expected"), [("inc", 9, 64 % 10), ("dec", 9, (-64) % 10)])
def test_counters_that_wrap(name: str, bound: int, expected: int) -> None:
    place = torch.zeros(1, dtype=torch.int32)
    assert run(INDEX + f"red.global.relaxed.gpu.{name}.u32 [%d0], {bound};", place, programs=2) == []
    assert place.item() == expected


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_atomic_sums_of_floats(kind: str) -> None:
    one = "0f3F800000" if kind == "f32" else "0d3FF0000000000000"
    total = torch.zeros(1, dtype=torch.float32 if kind == "f32" else torch.float64)
    assert run(INDEX + f"red.global.relaxed.gpu.add.{kind} [%d0], {one};", total, programs=3) == []
    assert total.item() == 96


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("space", ["global", "shared"])
def test_vectors(space: str, count: int) -> None:
    """A thread copies a vector and rotates it."""
    registers = [f"%r{20 + i}" for i in range(count)]
    there, back = ", ".join(registers), ", ".join(registers[1:] + registers[:1])
    size = 4 * count
    body = (
        INDEX
        + f"""
    mad.wide.u32 %d1, %r3, {size}, %d0;
    ld.global.v{count}.b32 {{{there}}}, [%d1];
    mov.u32 %r6, buffer;
    mad.lo.u32 %r5, %r1, {size}, %r6;
    st.shared.v{count}.b32 [%r5], {{{back}}};
    ld.shared.v{count}.b32 {{{there}}}, [%r5];
    st.global.v{count}.b32 [%d1], {{{there if space == "shared" else back}}};
    """
    )
    x = torch.arange(32 * count, dtype=torch.int32)
    assert run(body, x, shared=size * 32) == []
    shift = 1 if space == "shared" else 2
    expected = torch.arange(32 * count, dtype=torch.int32).view(32, count).roll(-shift, 1)
    assert torch.equal(x.view(32, count), expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_narrow_loads_extend(bits: int) -> None:
    x = torch.tensor([-1, 1, -(1 << bits - 1), 5] * 8, dtype=torch.int8 if bits == 8 else torch.int16)
    out = torch.zeros(64, dtype=torch.int32)
    body = (
        INDEX
        + f"""
    mad.wide.u32 %d1, %r3, {bits // 8}, %d0;
    ld.global.s{bits} %r10, [%d1];
    ld.global.u{bits} %r11, [%d1];
    ld.param.u64 %d2, [k_1];
    mad.wide.u32 %d3, %r3, 8, %d2;
    st.global.v2.b32 [%d3], {{%r10, %r11}};
    """
    )
    assert run(body, x, out) == []
    assert out.view(32, 2)[:, 0].tolist() == x.tolist()
    assert out.view(32, 2)[:, 1].tolist() == [v % (1 << bits) for v in x.tolist()]
