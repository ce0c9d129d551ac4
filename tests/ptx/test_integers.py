"""Integer instructions of PTX against Python's integers."""

import itertools
import random
from collections.abc import Callable

import pytest

from tests.ptx.assemble import evaluate

EDGES = {16: [0, 1, 2, 7, 15, 16, 17], 32: [0, 1, 2, 31, 32, 33, 255], 64: [0, 1, 2, 31, 32, 63, 64, 65]}


def values(bits: int) -> list[int]:
    """Edges of a type, as unsigned numbers, and a few random ones."""
    generator = random.Random(bits)
    top = 1 << (bits - 1)
    edges = [*EDGES[bits], top - 1, top, top + 1, 2 * top - 1, 2 * top - 2, 0x5555555555555555 % (2 * top)]
    return edges + [generator.getrandbits(generator.randrange(1, bits + 1)) for _ in range(6)]


def signed(x: int, bits: int) -> int:
    return x - (1 << bits) if x >> (bits - 1) else x


def check(
    instruction: str, kind: str, arity: int, oracle: Callable[..., int], result: str = "", others: str = ""
) -> None:
    """Compare an instruction with `oracle`, which takes Python integers of the type and may return any integer.

    Operands have the type `kind`, those after the first the type `others` if it is given.
    """
    types = [kind, *[others or kind] * (arity - 1)]
    result = result or kind
    columns = list(zip(*itertools.product(*(values(int(t[1:])) for t in types)), strict=True))
    if len(columns[0]) > 4000:
        rows = random.Random(0).sample(range(len(columns[0])), 4000)
        columns = [tuple(column[i] for i in rows) for column in columns]
    numbers = [
        [signed(x, int(t[1:])) if t[0] == "s" else x for x in column] for column, t in zip(columns, types, strict=True)
    ]
    width = 32 if result == "pred" else int(result[1:])
    expected = [oracle(*row) & ((1 << width) - 1) for row in zip(*numbers, strict=True)]
    assert evaluate(instruction, result, types, columns) == expected


def operands(n: int) -> str:
    return ", ".join(["{d}", *(f"{{{i}}}" for i in range(n))])


INTEGERS = [f"{sign}{bits}" for sign in "su" for bits in (16, 32, 64)]


@pytest.mark.parametrize("kind", INTEGERS)
def test_arithmetic(kind: str) -> None:
    bits = int(kind[1:])
    two, three = operands(2), operands(3)
    check(f"add.{kind} {two}", kind, 2, lambda x, y: x + y)
    check(f"sub.{kind} {two}", kind, 2, lambda x, y: x - y)
    check(f"mul.lo.{kind} {two}", kind, 2, lambda x, y: x * y)
    check(f"mul.hi.{kind} {two}", kind, 2, lambda x, y: x * y >> bits)
    check(f"mad.lo.{kind} {three}", kind, 3, lambda x, y, z: x * y + z)
    check(f"mad.hi.{kind} {three}", kind, 3, lambda x, y, z: (x * y >> bits) + z)
    check(f"min.{kind} {two}", kind, 2, min)
    check(f"max.{kind} {two}", kind, 2, max)


@pytest.mark.parametrize("kind", [kind for kind in INTEGERS if kind[1:] != "64"])
def test_wide_products(kind: str) -> None:
    wide = f"{kind[0]}{2 * int(kind[1:])}"
    check(f"mul.wide.{kind} {operands(2)}", kind, 2, lambda x, y: x * y, wide)
    rows = list(itertools.product(values(int(kind[1:])), values(int(kind[1:])), values(int(wide[1:]))))[::3]
    columns = list(zip(*rows, strict=True))
    number = (lambda x, b: signed(x, b)) if kind[0] == "s" else (lambda x, b: x)
    bits = int(kind[1:])
    expected = [(number(x, bits) * number(y, bits) + z) % (1 << 2 * bits) for x, y, z in rows]
    assert evaluate(f"mad.wide.{kind} {operands(3)}", wide, [kind, kind, wide], columns) == expected


@pytest.mark.parametrize("kind", INTEGERS)
def test_division_truncates(kind: str) -> None:
    def quotient(x: int, y: int) -> int:
        if y == 0:
            return -1
        return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)

    check(f"div.{kind} {operands(2)}", kind, 2, quotient)
    check(f"rem.{kind} {operands(2)}", kind, 2, lambda x, y: x - quotient(x, y) * y if y else x)


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_bitwise(bits: int) -> None:
    kind = f"b{bits}"
    check(f"and.{kind} {operands(2)}", kind, 2, lambda x, y: x & y)
    check(f"or.{kind} {operands(2)}", kind, 2, lambda x, y: x | y)
    check(f"xor.{kind} {operands(2)}", kind, 2, lambda x, y: x ^ y)
    check(f"not.{kind} {operands(1)}", kind, 1, lambda x: ~x)
    check(f"neg.s{bits} {operands(1)}", f"s{bits}", 1, lambda x: -x)
    check(f"abs.s{bits} {operands(1)}", f"s{bits}", 1, abs)


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_shifts_by_more_than_the_width_shift_everything_out(bits: int) -> None:
    check(f"shl.b{bits} {operands(2)}", f"b{bits}", 2, lambda x, n: x << min(n, bits), others="u32")
    check(f"shr.u{bits} {operands(2)}", f"u{bits}", 2, lambda x, n: x >> min(n, bits), others="u32")
    check(f"shr.s{bits} {operands(2)}", f"s{bits}", 2, lambda x, n: x >> min(n, bits), others="u32")
    for n in (0, 1, 5, bits - 1, bits, bits + 1):
        check(f"shl.b{bits} {{d}}, {{0}}, {n}", f"b{bits}", 1, lambda x, n=n: x << n)
        check(f"shr.s{bits} {{d}}, {{0}}, {n}", f"s{bits}", 1, lambda x, n=n: x >> n)


@pytest.mark.parametrize("direction", ["l", "r"])
@pytest.mark.parametrize("mode", ["wrap", "clamp"])
def test_funnel_shift(direction: str, mode: str) -> None:
    def oracle(low: int, high: int, n: int) -> int:
        n = n % 32 if mode == "wrap" else min(n, 32)
        both = high << 32 | low
        return both << n >> 32 if direction == "l" else both >> n

    check(f"shf.{direction}.{mode}.b32 {operands(3)}", "b32", 3, oracle)


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
def test_bit_field_extract(kind: str) -> None:
    bits = int(kind[1:])

    def oracle(x: int, start: int, length: int) -> int:
        """The definition in the PTX manual, bit by bit."""
        start, length, top = start & 255, length & 255, bits - 1
        sign = 0 if kind[0] == "u" or length == 0 else x >> min(start + length - 1, top) & 1
        get = lambda i: x >> (start + i) & 1 if i < length and start + i <= top else sign  # noqa: E731
        return sum(get(i) << i for i in range(bits))

    check(f"bfe.{kind} {operands(3)}", kind, 3, oracle, others="u32")
    check(f"bfe.{kind} {{d}}, {{0}}, 4, 14", kind, 1, lambda x: oracle(x, 4, 14))


@pytest.mark.parametrize("bits", [32, 64])
def test_bit_field_insert(bits: int) -> None:
    def oracle(x: int, y: int) -> int:
        mask = ((1 << 9) - 1) << 27 & ((1 << bits) - 1)
        return y & ~mask | x << 27 & mask

    check(f"bfi.b{bits} {{d}}, {{0}}, {{1}}, 27, 9", f"b{bits}", 2, oracle)

    def ends(start: int, length: int) -> int:
        mask = ((1 << (length & 255)) - 1) << (start & 255)
        return 0x1234567 & ~mask | 0x76543210 << (start & 255) & mask

    check(f"bfi.b{bits} {{d}}, 0x76543210, 0x1234567, {{0}}, {{1}}", "u32", 2, ends, f"b{bits}")


def test_permute() -> None:
    def oracle(x: int, y: int, selector: int) -> int:
        source, result = (y << 32 | x).to_bytes(8, "little"), []
        for i in range(4):
            choice = selector >> 4 * i & 15
            byte = source[choice & 7]
            result.append((255 if byte & 128 else 0) if choice & 8 else byte)
        return int.from_bytes(result, "little")

    check(f"prmt.b32 {operands(3)}", "b32", 3, oracle)
    for selector in (0x3340, 0x5410, 0x7632, 0xBA98):
        check(f"prmt.b32 {{d}}, {{0}}, {{1}}, {selector:#x}U", "b32", 2, lambda x, y, s=selector: oracle(x, y, s))


@pytest.mark.parametrize("table", [0x80, 0xFE, 0x96, 0xCA, 0x1])
def test_logic_of_three(table: int) -> None:
    def oracle(x: int, y: int, z: int) -> int:
        return sum((table >> ((x >> i & 1) << 2 | (y >> i & 1) << 1 | z >> i & 1) & 1) << i for i in range(32))

    check(f"lop3.b32 {operands(3)}, {table}", "b32", 3, oracle)


@pytest.mark.parametrize("bits", [32, 64])
def test_counting_bits(bits: int) -> None:
    check(f"popc.b{bits} {operands(1)}", f"b{bits}", 1, int.bit_count, "b32")
    check(f"clz.b{bits} {operands(1)}", f"b{bits}", 1, lambda x: bits - x.bit_length(), "b32")
    check(f"brev.b{bits} {operands(1)}", f"b{bits}", 1, lambda x: int(f"{x:0{bits}b}"[::-1], 2))
    check(f"bfind.u{bits} {operands(1)}", f"u{bits}", 1, lambda x: x.bit_length() - 1, "b32")
    check(f"bfind.s{bits} {operands(1)}", f"s{bits}", 1, lambda x: (x if x >= 0 else ~x).bit_length() - 1, "b32")


@pytest.mark.parametrize("kind", INTEGERS)
def test_comparisons(kind: str) -> None:
    names = {"eq": int.__eq__, "ne": int.__ne__, "lt": int.__lt__, "le": int.__le__, "gt": int.__gt__, "ge": int.__ge__}
    for name, oracle in names.items():
        check(f"setp.{name}.{kind} {operands(2)}", kind, 2, oracle, "pred")


def test_comparisons_join_a_predicate() -> None:
    x, y, p = zip(*itertools.product(values(32)[:8], values(32)[:8], (0, 1)), strict=True)
    for join, oracle in {"and": int.__and__, "or": int.__or__, "xor": int.__xor__}.items():
        instruction = f"setp.lt.{join}.u32 {{d}}|%p7, {{0}}, {{1}}, {{2}}"
        expected = [oracle(int(a < b), c) for a, b, c in zip(x, y, p, strict=True)]
        assert evaluate(instruction, "pred", ["u32", "u32", "pred"], [x, y, p]) == expected
        opposite = instruction.replace("{d}|%p7", "%p7|{d}")
        expected = [oracle(int(a >= b), c) for a, b, c in zip(x, y, p, strict=True)]
        assert evaluate(opposite, "pred", ["u32", "u32", "pred"], [x, y, p]) == expected


def test_predicates() -> None:
    p, q = [0, 0, 1, 1], [0, 1, 0, 1]
    for name, expected in {"and": [0, 0, 0, 1], "or": [0, 1, 1, 1], "xor": [0, 1, 1, 0]}.items():
        assert evaluate(f"{name}.pred {operands(2)}", "pred", ["pred", "pred"], [p, q]) == expected
    assert evaluate("not.pred {d}, {0}", "pred", ["pred"], [p]) == [1, 1, 0, 0]
    assert evaluate("mov.pred {d}, -1", "pred", ["pred"], [p]) == [1, 1, 1, 1]
    assert evaluate("and.pred {d}, {0}, !{1}", "pred", ["pred", "pred"], [p, q]) == [0, 0, 1, 0]


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_select(bits: int) -> None:
    x, y, p = [3, 5, 7], [11, 13, 17], [1, 0, 1]
    assert evaluate(f"selp.b{bits} {operands(3)}", f"b{bits}", [f"b{bits}", f"b{bits}", "pred"], [x, y, p]) == [
        3,
        13,
        7,
    ]


def test_moves_split_and_join_registers() -> None:
    x = values(64)
    halves = "mov.b64 {{%r40, %r41}}, {0}; mov.b64 {d}, {{%r41, %r40}}"
    assert evaluate(halves, "b64", ["b64"], [x]) == [(v << 32 | v >> 32) % (1 << 64) for v in x]
    x = values(32)
    halves = "mov.b32 {{%h40, %h41}}, {0}; mov.b32 {d}, {{%h41, %h40}}"
    assert evaluate(halves, "b32", ["b32"], [x]) == [(v << 16 | v >> 16) % (1 << 32) for v in x]


@pytest.mark.parametrize("source", [f"{sign}{bits}" for sign in "su" for bits in (8, 16, 32, 64)])
@pytest.mark.parametrize("target", [f"{sign}{bits}" for sign in "su" for bits in (16, 32, 64)])
def test_conversions(source: str, target: str) -> None:
    own, bits = int(source[1:]), int(target[1:])
    held = f"b{max(own, 16)}"
    x = values(max(own, 16))
    low = [v % (1 << own) for v in x]
    number = [signed(v, own) if source[0] == "s" else v for v in low]
    assert evaluate(f"cvt.{target}.{source} {{d}}, {{0}}", target, [held], [x]) == [v % (1 << bits) for v in number]
    if target != source:
        least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if target[0] == "s" else (0, (1 << bits) - 1)
        expected = [min(max(v, least), most) % (1 << bits) for v in number]
        assert evaluate(f"cvt.sat.{target}.{source} {{d}}, {{0}}", target, [held], [x]) == expected


def test_special_registers() -> None:
    assert evaluate("mov.u32 {d}, %tid.x", "b32", ["b32"], [[0] * 70]) == [i % 32 for i in range(70)]
    assert evaluate("mov.u32 {d}, %ctaid.x", "b32", ["b32"], [[0] * 70]) == [i // 32 for i in range(70)]
    assert evaluate("mov.u32 {d}, %nctaid.x", "b32", ["b32"], [[0] * 70]) == [3] * 70
    assert evaluate("mov.u32 {d}, %ntid.x", "b32", ["b32"], [[0]]) == [32]
