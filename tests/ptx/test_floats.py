"""Floating-point instructions and conversions of PTX against exact fractions."""

import itertools
import math
import random
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction

import pytest

from tests.ptx.assemble import evaluate

Exact = Fraction | float  # a float where it is infinite, NaN, or a zero with a sign

# Bits of the exponent and of the stored significand.
FORMATS = {"f16": (5, 10), "bf16": (8, 7), "f32": (8, 23), "f64": (11, 52), "tf32": (8, 10)}


def width(kind: str) -> int:
    return 16 if kind == "bf16" else int(kind[1:])


def decode(bits: int, kind: str) -> Exact:
    """The number that bits stand for."""
    exponents, digits = FORMATS[kind]
    sign = -1 if bits >> (exponents + digits) else 1
    exponent, significand = bits >> digits & ((1 << exponents) - 1), bits & ((1 << digits) - 1)
    if exponent == (1 << exponents) - 1:
        return math.nan if significand else sign * math.inf
    if exponent == 0 and significand == 0:
        return sign * 0.0
    bias = (1 << (exponents - 1)) - 1
    whole = significand | (1 << digits if exponent else 0)
    return sign * Fraction(whole) * Fraction(2) ** (max(exponent, 1) - bias - digits)


def encode(x: Exact, kind: str, mode: str = "rn") -> int | None:
    """The bits of the nearest number (rn), or of the next one toward zero (rz), down (rm) or up (rp). None: NaN."""
    exponents, digits = FORMATS[kind]
    largest = (1 << exponents) - 1 << digits
    if isinstance(x, float) and math.isnan(x):
        return None
    sign = 1 << (exponents + digits) if x < 0 or (x == 0 and math.copysign(1, x) < 0) else 0
    if isinstance(x, float):
        assert x in (0.0, math.inf, -math.inf)
        return sign | (largest if x else 0)
    size, bias = abs(x), (1 << (exponents - 1)) - 1
    exponent = max(size.numerator.bit_length() - size.denominator.bit_length() - 1, 1 - bias)
    while exponent > 1 - bias and size < Fraction(2) ** exponent:
        exponent -= 1
    while size >= Fraction(2) ** (exponent + 1):
        exponent += 1
    units = size / Fraction(2) ** (exponent - digits)
    down = math.floor(units)
    away = {"rz": False, "rm": sign > 0, "rp": sign == 0}
    if mode == "rn":
        rest = units - down
        up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and down % 2 == 1)
    elif mode == "rna":
        up = units - down >= Fraction(1, 2)
    else:
        up = away[mode] and units != down
    bits = down + up + ((exponent + bias - 1) << digits if exponent > 1 - bias or down >> digits else 0)
    if exponent == 1 - bias and not down >> digits:
        bits = down + up
    if bits >= largest:
        bits = largest if mode in ("rn", "rna") or away[mode] else largest - 1
    return sign | bits


def values(kind: str, n: int = 12) -> list[int]:
    """Bits of zeros, subnormal numbers, ones, the largest numbers, infinities, NaN, and random ones."""
    exponents, digits = FORMATS[kind]
    generator, top = random.Random(kind), 1 << (exponents + digits)
    infinity, one = (1 << exponents) - 1 << digits, ((1 << (exponents - 1)) - 1) << digits
    edges = [0, 1, (1 << digits) - 1, 1 << digits, one, one + 1, one - 1, infinity - 1, infinity, infinity + 1]
    rows = [bits | sign for bits in edges for sign in (0, top)]
    near = [one + generator.randrange(-4 << digits, 4 << digits) | generator.choice((0, top)) for _ in range(n)]
    return rows + near + [generator.getrandbits(width(kind)) for _ in range(n)]


def agree(actual: Sequence[int], expected: Sequence[int | None], kind: str) -> None:
    exponents, digits = FORMATS[kind]
    infinity = (1 << exponents) - 1 << digits
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        if e is None:
            assert a & (infinity | (1 << digits) - 1) > infinity, (i, hex(a))
        else:
            assert a == e, (i, hex(a), hex(e))


def arithmetic(name: str, x: Exact, y: Exact) -> Exact:
    """+, -, * or / of numbers, with the rules of IEEE 754 for what is not finite and for the signs of zeros."""
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        exact = {"add": x.__add__, "sub": x.__sub__, "mul": x.__mul__, "div": x.__truediv__}[name](y)
        return exact if exact else 0.0
    if name == "sub":
        return arithmetic("add", x, -y)
    if name == "add":
        if isinstance(x, Fraction):
            return x if y == 0 else float(y)
        if isinstance(y, Fraction):
            return y if x == 0 else float(x)
        return x + y
    sign = math.copysign(1, x) * math.copysign(1, y)
    if math.isnan(x) or math.isnan(y):
        return math.nan
    if name == "div":
        if (x == 0 and y == 0) or (math.isinf(x) and math.isinf(y)):
            return math.nan
        return sign * (math.inf if y == 0 or math.isinf(x) else 0.0)
    if (x == 0 and math.isinf(y)) or (y == 0 and math.isinf(x)):
        return math.nan
    return sign * (math.inf if math.isinf(x) or math.isinf(y) else 0.0)


def check(instruction: str, kind: str, oracle: Callable[..., Exact], arity: int = 2, limit: int = 2500) -> None:
    rows = list(itertools.product(values(kind), repeat=arity))
    if len(rows) > limit:
        rows = random.Random(0).sample(rows, limit)
    columns = list(zip(*rows, strict=True))
    held = f"b{width(kind)}"
    actual = evaluate(instruction, held, [held] * arity, columns)
    agree(actual, [encode(oracle(*(decode(bits, kind) for bits in row)), kind) for row in rows], kind)


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
def test_the_oracle_decodes_what_it_encodes(kind: str) -> None:
    for bits in values(kind):
        assert encode(decode(bits, kind), kind) in (bits, None)


def test_the_oracle_rounds_as_python_does() -> None:
    for i in range(200):
        x = Fraction(random.Random(i).getrandbits(80), random.Random(i + 1).getrandbits(70) or 1)
        assert encode(x, "f64") == struct.unpack("<Q", struct.pack("<d", float(x)))[0]


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("name", ["add", "sub", "mul"])
def test_arithmetic(name: str, kind: str) -> None:
    check(f"{name}.{kind} {{d}}, {{0}}, {{1}}", kind, lambda x, y: arithmetic(name, x, y))


@pytest.mark.parametrize("instruction", ["div.rn.f32", "div.full.f32", "div.approx.f32", "div.rn.f64"])
def test_division(instruction: str) -> None:
    check(f"{instruction} {{d}}, {{0}}, {{1}}", instruction[-3:], lambda x, y: arithmetic("div", x, y))


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
def test_fma_rounds_once(kind: str) -> None:
    def oracle(x: Exact, y: Exact, z: Exact) -> Exact:
        return arithmetic("add", arithmetic("mul", x, y), z)

    check(f"fma.rn.{kind} {{d}}, {{0}}, {{1}}, {{2}}", kind, oracle, 3, 4000)


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_fma_of_products_that_cancel_or_tie(kind: str) -> None:
    """x * y is close to a tie of the sum, or to -z."""
    generator, digits, held = random.Random(5), FORMATS[kind][1], f"b{width(kind)}"
    rows = []
    for _ in range(1500):
        x, y = (Fraction(generator.randrange(1 << digits, 2 << digits)) for _ in range(2))
        product = encode(x * y, kind)
        assert product is not None
        z = decode(product, kind)
        scale = Fraction(2) ** generator.randrange(-2, digits + 2)
        z = generator.choice((-z, scale * generator.choice((1, -1)), z / 2 ** (digits + 1)))
        rows.append(tuple(encode(number, kind) or 0 for number in (x, y, z)))
    columns = list(zip(*rows, strict=True))
    actual = evaluate(f"fma.rn.{kind} {{d}}, {{0}}, {{1}}, {{2}}", held, [held] * 3, columns)
    expected = [
        encode(arithmetic("add", arithmetic("mul", decode(x, kind), decode(y, kind)), decode(z, kind)), kind)
        for x, y, z in rows
    ]
    agree(actual, expected, kind)


@pytest.mark.parametrize("kind", ["f16", "f32", "f64"])
def test_extremes(kind: str) -> None:
    def smaller(x: Exact, y: Exact) -> Exact:
        if math.isnan(x) or math.isnan(y):
            return y if math.isnan(x) else x
        return x if (x, math.copysign(1, x)) < (y, math.copysign(1, y)) else y

    def larger(x: Exact, y: Exact) -> Exact:
        if math.isnan(x) or math.isnan(y):
            return y if math.isnan(x) else x
        return x if (x, math.copysign(1, x)) > (y, math.copysign(1, y)) else y

    def strict(function: Callable[..., Exact]) -> Callable[..., Exact]:
        return lambda x, y: math.nan if math.isnan(x) or math.isnan(y) else function(x, y)

    check(f"min.{kind} {{d}}, {{0}}, {{1}}", kind, smaller)
    check(f"max.{kind} {{d}}, {{0}}, {{1}}", kind, larger)
    if kind != "f64":
        check(f"min.NaN.{kind} {{d}}, {{0}}, {{1}}", kind, strict(smaller))
        check(f"max.NaN.{kind} {{d}}, {{0}}, {{1}}", kind, strict(larger))


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_signs(kind: str) -> None:
    top, bits = 1 << (width(kind) - 1), values(kind)
    assert evaluate(f"neg.{kind} {{d}}, {{0}}", f"b{width(kind)}", [f"b{width(kind)}"], [bits]) == [
        b ^ top for b in bits
    ]
    expected = [b & ~top for b in bits]
    assert evaluate(f"abs.{kind} {{d}}, {{0}}", f"b{width(kind)}", [f"b{width(kind)}"], [bits]) == expected


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_square_roots_and_reciprocals(kind: str) -> None:
    def root(x: Exact) -> Exact:
        if isinstance(x, float):
            return x if not x < 0 or x == 0 else math.nan
        scale = 1 << 600
        return Fraction(math.isqrt(int(x * scale * scale * 2**1200)), scale * 2**600) if x > 0 else math.nan

    check(f"sqrt.rn.{kind} {{d}}, {{0}}", kind, root, 1)
    check(f"rcp.rn.{kind} {{d}}, {{0}}", kind, lambda x: arithmetic("div", Fraction(1), x), 1)


def test_approximate_functions_are_the_exact_ones_rounded() -> None:
    x = [struct.unpack("<I", struct.pack("<f", v))[0] for v in (0.1, 0.5, 1.0, 1.5, 2.0, 3.25, 10.0)]
    functions: dict[str, Callable[[float], float]] = {
        "ex2": lambda v: 2.0**v,
        "lg2": math.log2,
        "sin": math.sin,
        "cos": math.cos,
        "tanh": math.tanh,
    }
    functions |= {"rcp": lambda v: 1 / v, "rsqrt": lambda v: 1 / math.sqrt(v), "sqrt": math.sqrt}
    for name, function in functions.items():
        values_of = [struct.unpack("<f", struct.pack("<I", bits))[0] for bits in x]
        expected = [struct.unpack("<I", struct.pack("<f", function(v)))[0] for v in values_of]
        assert evaluate(f"{name}.approx.f32 {{d}}, {{0}}", "b32", ["b32"], [x]) == expected


def test_flushing_of_subnormal_numbers() -> None:
    x = [1, 0x80000001, 0x00800000, 0x807FFFFF, 0x3F800000]
    one = [0x3F800000] * len(x)
    expected = [0, 0x80000000, 0x00800000, 0x80000000, 0x3F800000]
    assert evaluate("mul.ftz.f32 {d}, {0}, {1}", "b32", ["b32", "b32"], [x, one]) == expected
    half = [0x3F000000] * len(x)
    assert evaluate("mul.ftz.f32 {d}, {0}, {1}", "b32", ["b32", "b32"], [x, half])[2] == 0


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_comparisons_with_nan(kind: str) -> None:
    rows = list(itertools.product(values(kind, 3), repeat=2))
    held = f"b{width(kind)}"
    columns = list(zip(*rows, strict=True))
    names = {"eq": "__eq__", "lt": "__lt__", "le": "__le__", "gt": "__gt__", "ge": "__ge__"}
    pairs = [(decode(x, kind), decode(y, kind)) for x, y in rows]
    nan = [math.isnan(x) or math.isnan(y) for x, y in pairs]
    results = {
        "num": [not n for n in nan],
        "nan": nan,
        "ne": [x != y and not n for (x, y), n in zip(pairs, nan, strict=True)],
    }
    results["neu"] = [x != y for x, y in pairs]
    for name in names:
        compare = {"eq": lambda x, y: x == y, "lt": lambda x, y: x < y, "le": lambda x, y: x <= y}
        compare |= {"gt": lambda x, y: x > y, "ge": lambda x, y: x >= y}
        results[name] = [compare[name](x, y) and not n for (x, y), n in zip(pairs, nan, strict=True)]
        results[f"{name}u"] = [compare[name](x, y) or n for (x, y), n in zip(pairs, nan, strict=True)]
    for name, expected in results.items():
        actual = evaluate(f"setp.{name}.{kind} {{d}}, {{0}}, {{1}}", "pred", [held, held], columns)
        assert actual == [int(e) for e in expected], name


CONVERSIONS = [
    *[(mode, "f32", "f64") for mode in ("rn", "rz", "rm", "rp")],
    *[("rn", "f16", "f32"), ("rz", "f16", "f32"), ("rn", "f16", "f64"), ("rn", "bf16", "f32"), ("rz", "bf16", "f32")],
    *[("", "f32", "f16"), ("", "f32", "bf16"), ("", "f64", "f32"), ("", "f64", "f16")],
]


@pytest.mark.parametrize(("mode", "to", "source"), CONVERSIONS)
def test_conversions_between_floats(mode: str, to: str, source: str) -> None:
    generator = random.Random(1)
    bits = values(source, 200)
    middle = [encode(decode(b, to), source) for b in values(to, 50)]  # near ties of the narrower type
    bits += [b + step for b in middle if b for step in (-1, 0, 1, 1 << max(0, FORMATS[source][1] - FORMATS[to][1] - 1))]
    bits = [b % (1 << width(source)) for b in bits] + [generator.getrandbits(width(source)) for _ in range(100)]
    name = ".".join(filter(None, ["cvt", mode, to, source]))
    actual = evaluate(f"{name} {{d}}, {{0}}", f"b{width(to)}", [f"b{width(source)}"], [bits])
    agree(actual, [encode(decode(b, source), to, mode or "rn") for b in bits], to)


@pytest.mark.parametrize("to", ["f16", "bf16"])
def test_conversions_of_pairs(to: str) -> None:
    bits = values("f32", 100)
    other = bits[::-1]
    actual = evaluate(f"cvt.rn.{to}x2.f32 {{d}}, {{0}}, {{1}}", "b32", ["b32", "b32"], [bits, other])
    agree([a >> 16 for a in actual], [encode(decode(b, "f32"), to) for b in bits], to)
    agree([a & 0xFFFF for a in actual], [encode(decode(b, "f32"), to) for b in other], to)


def test_conversions_to_tf32() -> None:
    bits = values("f32", 300)
    actual = evaluate("cvt.rna.tf32.f32 {d}, {0}", "b32", ["b32"], [bits])
    expected = [encode(decode(b, "f32"), "tf32", "rna") for b in bits]
    agree(actual, [None if e is None else e << 13 for e in expected], "f32")


@pytest.mark.parametrize("to", ["s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("source", ["f32", "f64"])
@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
def test_conversions_to_integers(mode: str, source: str, to: str) -> None:
    size = int(to[1:])
    least, most = (-(1 << size - 1), (1 << size - 1) - 1) if to[0] == "s" else (0, (1 << size) - 1)
    near = [Fraction(n) + Fraction(k, 2) for n in (least, most, 0, 5) for k in range(-3, 4)]
    bits = values(source, 30) + [b for x in near if (b := encode(x or 0.0, source)) is not None]

    rounders: dict[str, Callable[[Fraction], int]] = {"rni": round, "rzi": math.trunc}
    rounders |= {"rmi": math.floor, "rpi": math.ceil}

    def oracle(x: Exact) -> int:
        if math.isnan(x):
            return 1 << 63 if size == 64 else 0
        if math.isinf(x):
            return most if x > 0 else least
        return min(max(rounders[mode](Fraction(x)), least), most)

    actual = evaluate(f"cvt.{mode}.{to}.{source} {{d}}, {{0}}", f"b{size}", [f"b{width(source)}"], [bits])
    assert actual == [oracle(decode(b, source)) % (1 << size) for b in bits]


@pytest.mark.parametrize("source", ["s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("to", ["f32", "f64"])
def test_conversions_from_integers(source: str, to: str) -> None:
    size, generator = int(source[1:]), random.Random(2)
    bits = [0, 1, (1 << size) - 1, 1 << (size - 1), (1 << (size - 1)) - 1] + [
        generator.getrandbits(size) for _ in range(200)
    ]
    number = [b - (1 << size) if source[0] == "s" and b >> (size - 1) else b for b in bits]
    actual = evaluate(f"cvt.rn.{to}.{source} {{d}}, {{0}}", f"b{width(to)}", [f"b{size}"], [bits])
    agree(actual, [encode(Fraction(n) if n else 0.0, to) for n in number], to)


@pytest.mark.parametrize(("kind", "held"), [("f16", "b32"), ("bf16", "b32"), ("f32", "b64")])
def test_pairs_in_one_register(kind: str, held: str) -> None:
    bits, n = values(kind), width(kind)
    x, y = [a | b << n for a, b in itertools.pairwise(bits)], [b | a << n for a, b in itertools.pairwise(bits[::-1])]
    low = (1 << n) - 1
    for name in ("add", "mul"):
        actual = evaluate(f"{name}.{kind}x2 {{d}}, {{0}}, {{1}}", held, [held, held], [x, y])
        for shift in (0, n):
            expected = [
                encode(arithmetic(name, decode(a >> shift & low, kind), decode(b >> shift & low, kind)), kind)
                for a, b in zip(x, y, strict=True)
            ]
            agree([a >> shift & low for a in actual], expected, kind)
