"""Floating-point arithmetic. Every result is the exact one rounded once, also of approximate instructions."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from sparsevox.ptx.forms import elementwise, form
from sparsevox.ptx.registers import DTYPES, Operands, Step, Value, where

SIGN: dict[int, Value] = {2: np.uint16(1 << 15), 4: np.uint32(1 << 31), 8: np.uint64(1 << 63)}
NAN: dict[int, Value] = {2: np.uint16(0x7FFF), 4: np.uint32(0x7FFFFFFF), 8: np.uint64(0x7FFFFFFFFFFFFFFF)}


def bits_of(x: Value) -> Value:
    """Floats as unsigned integers."""
    return x.view(f"u{x.dtype.itemsize}")


def flush(x: Value) -> Value:
    """`.ftz`: subnormal numbers become zeros of their sign."""
    return where(np.abs(x) < np.finfo(x.dtype).tiny, np.copysign(x.dtype.type(0), x), x)


def flushed(function: Callable[..., Value]) -> Callable[..., Value]:
    """A function with subnormal arguments and results flushed to zero."""
    return lambda *args: flush(function(*(flush(x) for x in args)))


def fma32(x: Value, y: Value, z: Value) -> Value:
    """x * y + z in float32, rounded once."""
    product = x.astype(np.float64) * y.astype(np.float64)  # exact
    addend = z.astype(np.float64)
    total = product + addend
    # A second rounding errs only where the first one made a tie, or where the result is subnormal and has fewer bits.
    tie = bits_of(total) & np.uint64(0x1FFFFFFF) == np.uint64(0x10000000)
    tie |= (np.abs(total) < 2.0**-126) & (total != 0)
    if np.any(tie):
        total = where(tie, round_to_odd(product, addend), total)
    return total.astype(np.float32)


def two_sum(x: Value, y: Value) -> tuple[Value, Value]:
    """x + y rounded, and its error, exactly (Knuth)."""
    total = x + y
    part = total - x
    return total, (x - (total - part)) + (y - part)


def two_product(x: Value, y: Value) -> tuple[Value, Value]:
    """x * y rounded, and its error, exactly (Dekker) unless something overflows or underflows."""

    def split(a: Value) -> tuple[Value, Value]:
        scaled = a * 134217729.0  # 2^27 + 1
        high = scaled - (scaled - a)
        return high, a - high

    product = x * y
    (x_high, x_low), (y_high, y_low) = split(x), split(y)
    return product, ((x_high * y_high - product) + x_high * y_low + x_low * y_high) + x_low * y_low


def round_to_odd(x: Value, y: Value) -> Value:
    """x + y in float64, what is inexact to the neighbor with an odd last bit, so that a second rounding is right."""
    total, error = two_sum(x, y)
    bits = bits_of(np.asarray(total)).copy()
    even = (error != 0) & np.isfinite(error) & (bits & np.uint64(1) == 0)
    outward = (error > 0) == (total > 0)
    return np.where(even, np.where(outward, bits + np.uint64(1), bits - np.uint64(1)), bits).view(np.float64)[()]


def fma64(x: Value, y: Value, z: Value) -> Value:
    """x * y + z in float64, rounded once (Boldo and Melquiond 2008, "Emulation of a FMA")."""
    high, low = two_product(x, y)
    first, first_error = two_sum(z, low)
    total, total_error = two_sum(high, first)
    result = total + round_to_odd(first_error, total_error)
    # What over- or underflows on the way is computed with fractions.
    factors = np.maximum(np.abs(x), np.abs(y))
    safe = (factors < 2.0**500) & (np.abs(z) < 2.0**1000)
    safe &= (np.abs(high) > 2.0**-900) | (x == 0) | (y == 0)
    safe &= (np.abs(z) > 2.0**-900) | (z == 0)
    if np.all(safe & (result != 0)):
        return result
    x, y, z, result, safe = np.broadcast_arrays(x, y, z, result, safe)
    finite = np.isfinite(x) & np.isfinite(y)
    plain = np.where(finite & np.isinf(z), z, x * y + z)  # right for zeros, infinity and NaN
    result = np.where(safe & (result != 0), result, plain)
    for i in np.argwhere(finite & np.isfinite(z) & ~safe):
        at = tuple(i)
        exact = Fraction(float(x[at])) * Fraction(float(y[at])) + Fraction(float(z[at]))
        if exact:
            result[at] = as_float(exact)
    return result[()]


def as_float(exact: Fraction) -> float:
    """The nearest float64, infinite beyond the largest one."""
    try:
        return float(exact)
    except OverflowError:
        return float("inf") if exact > 0 else float("-inf")


def narrow(function: Callable[..., Value]) -> Callable[..., Value]:
    """A function of float16, computed in float64 and rounded once."""
    return lambda *args: function(*(x.astype(np.float64) for x in args)).astype(np.float16)


def bfloat(function: Callable[..., Value]) -> Callable[..., Value]:
    """A function of bfloat16 (uint16 bits), computed in float64 and rounded once."""
    return lambda *args: to_bfloat(function(*(from_bfloat(x).astype(np.float64) for x in args)))


def from_bfloat(bits: Value) -> Value:
    """The float32 with these upper 16 bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bfloat(x: Value) -> Value:
    """The nearest bfloat16 of float32 or float64, as uint16 bits."""
    if x.dtype == np.float64:  # to float32 with an odd last bit where that is inexact: rounding again is right
        single = x.astype(np.float32)
        bits = bits_of(np.asarray(single))
        wide = single.astype(np.float64)
        away = np.abs(wide) > np.abs(x)
        bits = np.where((wide != x) & np.isfinite(x), (bits - away.astype(np.uint32)) | np.uint32(1), bits)
    else:
        bits = bits_of(np.asarray(x))
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)[()]


def minimum(x: Value, y: Value, largest: bool = False, with_nan: bool = False) -> Value:
    """The smaller number, or the larger: -0 is smaller than 0, and NaN counts unless both are, or with `with_nan`."""
    nan = NAN[x.dtype.itemsize].view(x.dtype)
    result = (np.fmax if largest else np.fmin)(x, y)
    signs = bits_of(x) & bits_of(y) if largest else bits_of(x) | bits_of(y)
    result = np.where((x == 0) & (y == 0), signs.view(x.dtype), result)
    missing = np.isnan(x) | np.isnan(y) if with_nan else np.isnan(x) & np.isnan(y)
    return where(missing, nan, result)


def maximum(x: Value, y: Value) -> Value:
    """The larger number."""
    return minimum(x, y, largest=True)


def for_kind(function: Callable[..., Value], kind: str, ftz: str | None = None) -> Callable[..., Value]:
    """A function of floats as one of a type."""
    if kind == "bf16":
        return bfloat(function)
    return flushed(function) if ftz else function


ARITHMETIC: dict[str, Callable[..., Value]] = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}


@form(
    r"(?P<name>add|sub|mul)(?:\.rn)?(?P<ftz>\.ftz)?\.(?P<kind>f16|f32|bf16)",
    r"(?P<name>add|sub|mul|div)(?:\.rn)?(?P<ftz>)\.(?P<kind>f64)",
    r"(?P<name>div)\.(?:rn|full|approx)(?P<ftz>\.ftz)?\.(?P<kind>f32)",
)
def _binary(operands: Operands, name: str, ftz: str | None, kind: str) -> Step:
    return elementwise(operands, for_kind(ARITHMETIC[name], kind, ftz), [kind, kind])


@form(r"(?P<name>min|max)(?P<ftz>\.ftz)?(?P<nan>\.NaN)?\.(?P<kind>f16|bf16|f32|f64)")
def _extreme(operands: Operands, name: str, ftz: str | None, nan: str | None, kind: str) -> Step:
    largest, with_nan = name == "max", bool(nan)
    return elementwise(operands, for_kind(lambda x, y: minimum(x, y, largest, with_nan), kind, ftz), [kind, kind])


@form(r"fma\.rn(?P<ftz>\.ftz)?\.(?P<kind>f16|bf16|f32|f64)")
def _fma(operands: Operands, ftz: str | None, kind: str) -> Step:
    functions: dict[str, Callable[..., Value]] = {"f32": fma32, "f64": fma64}
    functions |= {"f16": half_fma, "bf16": bfloat(lambda x, y, z: round_to_odd(x * y, z))}
    function = functions[kind]
    return elementwise(operands, flushed(function) if ftz else function, [kind] * 3)


def half_fma(x: Value, y: Value, z: Value) -> Value:
    """x * y + z in float16, rounded once: the product is exact in float64."""
    x, y, z = (a.astype(np.float64) for a in (x, y, z))
    return round_to_odd(x * y, z).astype(np.float16)


@form(r"(?P<name>neg|abs)(?:\.ftz)?\.(?P<kind>f16|bf16|f32|f64)")
def _sign(operands: Operands, name: str, kind: str) -> Step:
    bits = DTYPES[kind].itemsize
    plain, sign = f"u{8 * bits}", SIGN[bits]
    return elementwise(operands, lambda x: x ^ sign if name == "neg" else x & ~sign, [plain])


FUNCTIONS: dict[str, Callable[[Value], Value]] = {
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "rcp": lambda x: 1 / x,
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}


@form(
    r"(?P<name>sqrt|rcp)\.(?:rn|approx)(?P<ftz>\.ftz)?\.(?P<kind>f32)",
    r"(?P<name>rsqrt|ex2|lg2|sin|cos)\.approx(?P<ftz>\.ftz)?\.(?P<kind>f32)",
    r"(?P<name>tanh)\.approx(?P<ftz>)\.(?P<kind>f32|f16|bf16)",
    r"(?P<name>ex2)\.approx(?P<ftz>\.ftz)?\.(?P<kind>f16|bf16)",
    r"(?P<name>sqrt|rcp)\.rn(?P<ftz>)\.(?P<kind>f64)",
    r"(?P<name>rsqrt|rcp)\.approx(?P<ftz>\.ftz)?\.(?P<kind>f64)",
)
def _function(operands: Operands, name: str, ftz: str | None, kind: str) -> Step:
    exact = FUNCTIONS[name]
    if kind in ("f16", "bf16"):
        return elementwise(operands, (narrow if kind == "f16" else bfloat)(exact), [kind])
    dtype = DTYPES[kind]

    def function(x: Value) -> Value:
        return exact(x.astype(np.float64)).astype(dtype)

    return elementwise(operands, flushed(function) if ftz else function, [kind])


@form(r"(?P<name>add|sub|mul|fma\.rn)\.(?P<kind>f16|bf16|f32)x2")
def _pairs(operands: Operands, name: str, kind: str) -> Step:
    """Two numbers in the halves of a register."""
    whole, part = (DTYPES["u64"], DTYPES["u32"]) if kind == "f32" else (DTYPES["u32"], DTYPES["u16"])
    dtype, width = DTYPES[kind], whole.type(8 * part.itemsize)
    fma = {"f16": half_fma, "f32": fma32, "bf16": bfloat(lambda x, y, z: round_to_odd(x * y, z))}
    function = fma[kind] if name == "fma.rn" else for_kind(ARITHMETIC[name], kind)

    def both(*args: Value) -> Value:
        low = function(*(x.astype(part).view(dtype) for x in args)).view(part).astype(whole)
        high = function(*((x >> width).astype(part).view(dtype) for x in args)).view(part).astype(whole)
        return high << width | low

    return elementwise(operands, both, [f"u{8 * whole.itemsize}"] * (3 if name == "fma.rn" else 2))
