"""Conversions between types."""

from collections.abc import Callable

import numpy as np

from sparsevox.ptx.floats import flush, from_bfloat, to_bfloat
from sparsevox.ptx.forms import elementwise, form
from sparsevox.ptx.parse import BITS
from sparsevox.ptx.registers import DTYPES, Lanes, Operands, Step, Value, where

INTEGERS = r"[su](?:8|16|32|64)"
FLOATS = r"f(?:16|32|64)|bf16"
ROUND: dict[str, Callable[[Value], Value]] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def as_number(x: Value, kind: str) -> Value:
    """A float of any type as a float that NumPy knows."""
    return from_bfloat(x) if kind == "bf16" else x


def rounded(x: Value, kind: str, mode: str) -> Value:
    """A float as another type. `mode`: rn to the nearest, rz to zero, rm down, rp up."""
    if kind == "bf16" and mode == "rn":
        return to_bfloat(x)
    if mode == "rn":
        return x.astype(DTYPES[kind])
    if kind == "bf16":  # rz, of float32
        bits = (x.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        return where(np.isnan(x), np.uint16(0x7FFF), bits)
    result = x.astype(DTYPES[kind])
    exact = result.astype(x.dtype)
    if mode == "rz":
        wrong, toward = np.abs(exact) > np.abs(x), np.zeros_like(result)
    else:
        wrong = exact > x if mode == "rm" else exact < x
        toward = np.full_like(result, -np.inf if mode == "rm" else np.inf)
    return where(wrong, np.nextafter(result, toward), result)


def to_integer(x: Value, kind: str) -> Value:
    """A float that is an integer as an integer: beyond the range the nearest one."""
    dtype, bits = DTYPES[kind], BITS[kind]
    info = np.iinfo(dtype)
    wide = x.astype(np.float64)
    # The largest integer of 64 bits is no float: clip below, and set what lies beyond.
    inside = (wide >= float(info.min)) & (wide < float(info.max) + (bits < 64))
    result = np.where(inside, wide, 0.0).astype(dtype)
    result = np.where(inside, result, np.where(wide > 0, dtype.type(info.max), dtype.type(info.min)))
    # NaN is 0, but half of the range for 64 bits, on either side.
    undefined = np.uint64(1 << 63).view(dtype) if bits == 64 else dtype.type(0)
    return where(np.isnan(wide), undefined, result)


@form(rf"cvt(?P<saturate>\.sat)?\.(?P<to>{INTEGERS})\.(?P<kind>{INTEGERS})")
def _integers(operands: Operands, saturate: str | None, to: str, kind: str) -> Step:
    read, write, dtype = operands.source(1, kind), operands.widened_target(0, to), DTYPES[to]
    if not saturate:
        return lambda lanes: write(lanes, read(lanes).astype(dtype))
    own, info = np.iinfo(DTYPES[kind]), np.iinfo(dtype)
    low, high = (DTYPES[kind].type(n) for n in (max(own.min, info.min), min(own.max, info.max)))
    return lambda lanes: write(lanes, np.clip(read(lanes), low, high).astype(dtype))


@form(rf"cvt\.(?P<mode>rni|rzi|rmi|rpi)(?P<ftz>\.ftz)?(?:\.sat)?\.(?P<to>{INTEGERS})\.(?P<kind>{FLOATS})")
def _to_integer(operands: Operands, mode: str, ftz: str | None, to: str, kind: str) -> Step:
    read, write, function = operands.source(1, kind), operands.widened_target(0, to), ROUND[mode]

    def step(lanes: Lanes) -> None:
        x = as_number(read(lanes), kind)
        write(lanes, to_integer(function(flush(x) if ftz else x), to))

    return step


@form(rf"cvt\.rn\.(?P<to>{FLOATS})\.(?P<kind>{INTEGERS})")
def _from_integer(operands: Operands, to: str, kind: str) -> Step:
    if to == "bf16" or (BITS[kind] == 64 and to == "f16"):  # from the float64, which would be rounded twice
        raise operands.unknown()
    read, write, dtype = operands.source(1, kind), operands.target(0, BITS[to]), DTYPES[to]
    return lambda lanes: write(lanes, read(lanes).astype(dtype))


@form(
    rf"cvt(?:\.(?P<mode>rn|rz|rm|rp))?(?P<ftz>\.ftz)?\.(?P<to>{FLOATS})\.(?P<kind>{FLOATS})",
    r"cvt\.(?P<mode>rni|rzi|rmi|rpi)(?P<ftz>\.ftz)?\.(?P<to>f16|f32|f64)\.(?P<kind>f16|f32|f64)",
)
def _floats(operands: Operands, mode: str | None, ftz: str | None, to: str, kind: str) -> Step:
    integral = ROUND.get(mode or "")
    cut = to == "bf16" and (mode not in ("rn", "rz") or (mode == "rz" and kind != "f32"))
    if cut or (integral and to != kind) or (mode is None and BITS[to] < BITS[kind]):
        raise operands.unknown()

    def function(x: Value) -> Value:
        x = as_number(x, kind)
        x = flush(x) if ftz else x
        y = integral(x) if integral else rounded(x, to, mode or "rn")
        return flush(y) if ftz else y

    return elementwise(operands, function, [kind], BITS[to])


@form(r"cvt\.(?P<mode>rn|rz)(?P<relu>\.relu)?\.(?P<to>f16|bf16)x2\.f32")
def _pair(operands: Operands, mode: str, relu: str | None, to: str) -> Step:
    def function(high: Value, low: Value) -> Value:
        halves = []
        for x in (high, low):
            y = rounded(where(x > 0, x, np.where(np.isnan(x), x, np.float32(0))) if relu else x, to, mode)
            halves.append(y.view(np.uint16).astype(np.uint32))
        return halves[0] << np.uint32(16) | halves[1]

    return elementwise(operands, function, ["f32", "f32"], 32)


@form(r"cvt\.(?P<mode>rna|rn)\.tf32\.f32")
def _to_tf32(operands: Operands, mode: str) -> Step:
    def function(x: Value) -> Value:
        bits = x.view(np.uint32)
        half = np.uint32(0x1000) if mode == "rna" else np.uint32(0xFFF) + (bits >> np.uint32(13) & np.uint32(1))
        result = (bits + half) & np.uint32(0xFFFFE000)
        return where(np.isnan(x), np.uint32(0x7FFFFFFF), result)

    return elementwise(operands, function, ["f32"], 32)
