"""Integer, bit and predicate instructions."""

from typing import Any

import numpy as np

from sparsevox.ptx.floats import from_bfloat
from sparsevox.ptx.forms import elementwise, form
from sparsevox.ptx.parse import BITS
from sparsevox.ptx.registers import DTYPES, Lanes, Operands, Step, Value, where

INTEGER = r"\.(?P<kind>[su](?:16|32|64))"
BITWISE = r"\.(?P<kind>b(?:16|32|64)|pred)"


@form(
    rf"(?P<name>add|sub|min|max){INTEGER}",
    rf"(?P<name>and|or|xor){BITWISE}",
    rf"(?P<name>mul)\.lo{INTEGER}",
)
def _binary(operands: Operands, name: str, kind: str) -> Step:
    functions: dict[str, Any] = {
        "add": np.add,
        "sub": np.subtract,
        "mul": np.multiply,
        "min": np.minimum,
        "max": np.maximum,
    }
    functions |= {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    return elementwise(operands, functions[name], [kind, kind])


@form(rf"(?P<name>not){BITWISE}", r"(?P<name>neg|abs)\.(?P<kind>s(?:16|32|64))")
def _unary(operands: Operands, name: str, kind: str) -> Step:
    return elementwise(operands, {"not": np.invert, "neg": np.negative, "abs": np.abs}[name], [kind])


def wide_type(kind: str) -> str:
    """The type of a product in full."""
    return f"{kind[0]}{2 * BITS[kind]}"


@form(r"mul\.wide\.(?P<kind>[su](?:16|32))")
def _multiply_wide(operands: Operands, kind: str) -> Step:
    wide = DTYPES[wide_type(kind)]
    return elementwise(operands, lambda x, y: x.astype(wide) * y.astype(wide), [kind, kind], 2 * BITS[kind])


@form(r"mad\.wide\.(?P<kind>[su](?:16|32))")
def _multiply_add_wide(operands: Operands, kind: str) -> Step:
    wide = DTYPES[wide_type(kind)]
    kinds = [kind, kind, wide_type(kind)]
    return elementwise(operands, lambda x, y, z: x.astype(wide) * y.astype(wide) + z, kinds, 2 * BITS[kind])


@form(rf"mad\.lo{INTEGER}")
def _multiply_add(operands: Operands, kind: str) -> Step:
    return elementwise(operands, lambda x, y, z: x * y + z, [kind] * 3)


def high_product(x: Value, y: Value) -> Value:
    """The upper half of a product of two integers of the same dtype."""
    dtype, bits = x.dtype, 8 * x.dtype.itemsize
    if bits < 64:
        wide = np.dtype(f"{dtype.kind}{bits // 4}")
        return (x.astype(wide) * y.astype(wide) >> wide.type(bits)).astype(dtype)
    # Schoolbook, in unsigned halves of 32 bits; a negative factor counts 2^64 too much of the other one.
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    a, b = x.view(np.uint64), y.view(np.uint64)
    middle = (a & low) * (b & low) >> half
    middle = (a >> half) * (b & low) + middle
    crossed = (a & low) * (b >> half) + (middle & low)
    high = (a >> half) * (b >> half) + (middle >> half) + (crossed >> half)
    if dtype.kind == "i":
        high = high - np.where(x < 0, b, np.uint64(0)) - np.where(y < 0, a, np.uint64(0))
    return high.view(dtype)


@form(rf"mul\.hi{INTEGER}")
def _multiply_high(operands: Operands, kind: str) -> Step:
    return elementwise(operands, high_product, [kind, kind])


@form(rf"mad\.hi{INTEGER}")
def _multiply_high_add(operands: Operands, kind: str) -> Step:
    return elementwise(operands, lambda x, y, z: high_product(x, y) + z, [kind] * 3)


def divide(x: Value, y: Value) -> Value:
    """The quotient toward zero; all bits set where the divisor is zero, as GPUs do (PTX leaves it open)."""
    zero = y == 0
    safe = np.where(zero, y.dtype.type(1), y)
    return where(zero, y.dtype.type(0) - y.dtype.type(1), (x - np.fmod(x, safe)) // safe)


def remainder(x: Value, y: Value) -> Value:
    """The remainder with the sign of the dividend; the dividend where the divisor is zero, as GPUs do."""
    zero = y == 0
    return where(zero, x, np.fmod(x, np.where(zero, y.dtype.type(1), y)))


@form(rf"div{INTEGER}")
def _division(operands: Operands, kind: str) -> Step:
    return elementwise(operands, divide, [kind, kind])


@form(rf"rem{INTEGER}")
def _modulo(operands: Operands, kind: str) -> Step:
    return elementwise(operands, remainder, [kind, kind])


@form(r"(?P<name>shl)\.(?P<kind>b(?:16|32|64))", r"(?P<name>shr)\.(?P<kind>[bus](?:16|32|64))")
def _shift(operands: Operands, name: str, kind: str) -> Step:
    function = np.left_shift if name == "shl" else np.right_shift
    bits, dtype = np.uint32(BITS[kind]), DTYPES[kind]
    # NumPy, like PTX, shifts everything out if the amount is the width; larger amounts are the same.
    if operands.is_constant(2):
        amount = np.minimum(operands.constant(operands.instruction.operands[2], "u32"), bits).astype(dtype)
        write, read = operands.target(0, BITS[kind]), operands.source(1, kind)
        return lambda lanes: write(lanes, function(read(lanes), amount))
    return elementwise(operands, lambda x, n: function(x, np.minimum(n, bits).astype(dtype)), [kind, "u32"])


@form(r"shf\.(?P<direction>[lr])\.(?P<mode>wrap|clamp)\.b32")
def _funnel_shift(operands: Operands, direction: str, mode: str) -> Step:
    def function(low: Value, high: Value, n: Value) -> Value:
        n = (n & np.uint32(31) if mode == "wrap" else np.minimum(n, np.uint32(32))).astype(np.uint64)
        both = high.astype(np.uint64) << np.uint64(32) | low
        return (both << n >> np.uint64(32) if direction == "l" else both >> n).astype(np.uint32)

    return elementwise(operands, function, ["u32"] * 3)


def extract(x: Value, start: Value, length: Value) -> Value:
    """Bits `start` to `start + length` (two bytes) of integers, extended by their highest bit if they are signed."""
    dtype, bits = x.dtype, np.uint32(8 * x.dtype.itemsize)
    start, length = (np.minimum(n & np.uint32(255), bits) for n in (start, length))
    shifted = x >> start.astype(dtype)  # [start, width), then zeros or copies of the sign
    unused = (bits - length).astype(dtype)
    return where(length == 0, dtype.type(0), shifted << unused >> unused)


@form(r"bfe\.(?P<kind>[su](?:32|64))")
def _bit_field_extract(operands: Operands, kind: str) -> Step:
    return elementwise(operands, extract, [kind, "u32", "u32"])


@form(r"bfi\.(?P<kind>b(?:32|64))")
def _bit_field_insert(operands: Operands, kind: str) -> Step:
    write, dtype, bits = operands.target(0, BITS[kind]), DTYPES[kind], np.uint32(BITS[kind])
    field, into, start, length = (operands.source(1 + i, k) for i, k in enumerate([kind, kind, "u32", "u32"]))

    def step(lanes: Lanes) -> None:
        first, n = (np.minimum(read(lanes) & np.uint32(255), bits).astype(dtype) for read in (start, length))
        mask = ~(~dtype.type(0) << n) << first
        write(lanes, into(lanes) & ~mask | field(lanes) << first & mask)

    return step


@form(r"prmt\.b32")
def _permute(operands: Operands) -> Step:
    def function(x: Value, y: Value, selector: Value) -> Value:
        both, result = y.astype(np.uint64) << np.uint64(32) | x, np.uint32(0)
        for i in range(4):
            choice = selector >> np.uint32(4 * i)
            byte = both >> ((choice & np.uint32(7)) << np.uint32(3)).astype(np.uint64) & np.uint64(0xFF)
            byte = byte.astype(np.uint32)
            sign = (byte >> np.uint32(7)) * np.uint32(0xFF)  # bit 3 of a choice asks for the sign of the byte
            byte = where(choice & np.uint32(8), sign, byte)
            result = result | byte << np.uint32(8 * i)
        return result

    return elementwise(operands, function, ["u32"] * 3)


@form(r"lop3\.b32")
def _logic(operands: Operands) -> Step:
    write, table = operands.target(0, 32), operands.integer(operands.instruction.operands[4])
    sources = [operands.source(1 + i, "u32") for i in range(3)]

    def step(lanes: Lanes) -> None:
        x, y, z = (read(lanes) for read in sources)
        result = np.uint32(0)
        for i in range(8):
            if table >> i & 1:
                result = result | (x if i & 4 else ~x) & (y if i & 2 else ~y) & (z if i & 1 else ~z)
        write(lanes, result)

    return step


def leading_zeros(x: Value) -> Value:
    """Number of zero bits above the highest set one."""
    bits = 8 * x.dtype.itemsize
    n = np.zeros_like(x)
    for width in (32, 16, 8, 4, 2, 1):
        if width < bits:
            empty = x >> x.dtype.type(bits - width) == 0
            n = n + np.where(empty, x.dtype.type(width), x.dtype.type(0))
            x = np.where(empty, x << x.dtype.type(width), x)
    return (n + (x == 0)).astype(np.uint32)


@form(r"(?P<name>popc|clz)\.(?P<kind>b(?:32|64))")
def _count_bits(operands: Operands, name: str, kind: str) -> Step:
    functions = {"popc": lambda x: np.bitwise_count(x).astype(np.uint32), "clz": leading_zeros}
    return elementwise(operands, functions[name], [kind], 32)


@form(r"bfind\.(?P<kind>[us](?:32|64))")
def _find_highest_bit(operands: Operands, kind: str) -> Step:
    def function(x: Value) -> Value:
        positive = where(x < 0, ~x, x) if kind[0] == "s" else x
        return np.uint32(BITS[kind] - 1) - leading_zeros(positive.view(f"u{BITS[kind] // 8}"))  # none: all bits set

    return elementwise(operands, function, [kind], 32)


@form(r"brev\.(?P<kind>b(?:32|64))")
def _reverse_bits(operands: Operands, kind: str) -> Step:
    pattern = {1: 0x5555555555555555, 2: 0x3333333333333333, 4: 0x0F0F0F0F0F0F0F0F}

    def function(x: Value) -> Value:
        for width, mask in pattern.items():
            n, m = x.dtype.type(width), np.uint64(mask).astype(x.dtype)
            x = (x & m) << n | x >> n & m
        return x.byteswap()

    return elementwise(operands, function, [kind])


@form(r"selp\.(?P<kind>[busf](?:16|32|64))")
def _select(operands: Operands, kind: str) -> Step:
    plain = f"b{BITS[kind]}"  # the bits of NaN stay as they are
    return elementwise(operands, lambda x, y, p: where(p, x, y), [plain, plain, "pred"])


COMPARISONS: dict[str, Any] = {"eq": np.equal, "ne": np.not_equal}
COMPARISONS |= dict.fromkeys(("lt", "lo"), np.less) | dict.fromkeys(("le", "ls"), np.less_equal)
COMPARISONS |= dict.fromkeys(("gt", "hi"), np.greater) | dict.fromkeys(("ge", "hs"), np.greater_equal)


def compare(name: str, kind: str) -> Any:
    """The function of a comparison. NaN is equal to nothing; the forms with `u` hold if there is one."""
    if kind == "bf16":
        function = compare(name, "f32")
        return lambda x, y: function(from_bfloat(x), from_bfloat(y))
    if kind[0] != "f":
        return COMPARISONS[name]
    if name in ("nan", "num"):
        return lambda x, y: (np.isnan(x) | np.isnan(y)) == (name == "nan")
    if name in ("equ", "neu", "ltu", "leu", "gtu", "geu"):
        opposite = {"equ": "ne", "neu": "eq", "ltu": "ge", "leu": "gt", "gtu": "le", "geu": "lt"}[name]
        return lambda x, y: ~ordered(opposite)(x, y)
    return ordered(name)


def ordered(name: str) -> Any:
    """The function of a comparison that does not hold for NaN."""
    if name == "ne":  # NumPy's holds
        return lambda x, y: (x < y) | (x > y)
    return COMPARISONS[name]


@form(
    r"setp\.(?P<name>eq|ne|lt|le|gt|ge|lo|ls|hi|hs)(?:\.(?P<join>and|or|xor))?\.(?P<kind>[bus](?:16|32|64))",
    r"setp\.(?P<name>eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan)(?:\.(?P<join>and|or|xor))?"
    r"\.(?P<kind>f(?:16|32|64)|bf16)",
)
def _set_predicate(operands: Operands, name: str, join: str | None, kind: str) -> Step:
    function = compare(name, kind)
    first, _, second = operands.instruction.operands[0].partition("|")
    write = operands.target(first.strip(), 1)
    x, y = operands.source(1, kind), operands.source(2, kind)
    if join is None and not second:
        return lambda lanes: write(lanes, function(x(lanes), y(lanes)))
    write_opposite = operands.target(second.strip() or "_", 1)
    other = operands.source(3, "pred") if join else None
    combine = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}.get(join or "")

    def step(lanes: Lanes) -> None:
        result = function(x(lanes), y(lanes))
        opposite = ~result
        if other and combine:
            result, opposite = combine(result, other(lanes)), combine(opposite, other(lanes))
        write(lanes, result)
        write_opposite(lanes, opposite)

    return step


@form(r"mov\.(?P<kind>[busf](?:16|32|64)|pred)")
def _move(operands: Operands, kind: str) -> Step:
    bits = BITS[kind]
    plain = kind if kind == "pred" else f"b{bits}"
    targets, sources = operands.list(0), operands.list(1)
    if len(targets) > 1:
        width = bits // len(targets)
        read, part = operands.source(1, plain), DTYPES[f"u{width}"]
        writes = [operands.target(target, width) for target in targets]

        def split(lanes: Lanes) -> None:
            value = read(lanes)
            for i, write in enumerate(writes):
                write(lanes, (value >> value.dtype.type(width * i)).astype(part))

        return split
    write = operands.target(0, bits)
    if len(sources) > 1:
        width, whole = bits // len(sources), DTYPES[plain]
        reads = [operands.source(source, f"b{width}") for source in sources]

        def join(lanes: Lanes) -> None:
            value = whole.type(0)
            for i, read in enumerate(reads):
                value = value | read(lanes).astype(whole) << whole.type(width * i)
            write(lanes, value)

        return join
    read = operands.source(1, plain)
    return lambda lanes: write(lanes, read(lanes).copy())


@form(r"cvta(?:\.to)?\.global\.u64")
def _convert_address(operands: Operands) -> Step:
    read, write = operands.source(1, "u64"), operands.target(0, 64)
    return lambda lanes: write(lanes, read(lanes).copy())  # addresses of global memory are generic addresses
