"""The matrix instructions against loops over lanes, written from the formulas of the PTX manual."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsevox.ptx import matrix

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32}
WARPS = 3


def rounded(values: NDArray[Any], kind: str) -> NDArray[np.float32]:
    """Values that the kind represents."""
    floats = torch.from_numpy(values.astype(np.float32)).to(DTYPES[kind]).float().numpy()
    return (floats.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) if kind == "tf32" else floats


def bits(values: NDArray[Any], kind: str) -> NDArray[Any]:
    """The bits of every value: uint16, or uint32 for tf32."""
    return torch.from_numpy(values).to(DTYPES[kind]).view(torch.uint32 if kind == "tf32" else torch.uint16).numpy()


def random(rng: np.random.Generator, *shape: int, kind: str) -> NDArray[np.float32]:
    return rounded(rng.standard_normal(shape), kind)


# Fragments, by the formulas of the manual: groupID and threadID_in_group of every lane, row and column of every element


def a_place(i: int, lane: int, kind: str) -> tuple[int, int]:
    """Row and column of element a_i of A, for m16n8k16, m16n8k8 of tf32, and a warp of wgmma."""
    group, thread = lane >> 2, lane % 4
    if kind == "tf32":
        return group + (8 if i in (1, 3) else 0), thread + (4 if i >= 2 else 0)
    row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
    return row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)


def b_place(i: int, lane: int, kind: str) -> tuple[int, int]:
    """Row and column of element b_i of B."""
    group, thread = lane >> 2, lane % 4
    if kind == "tf32":
        return thread + (4 if i == 1 else 0), group
    return thread * 2 + (i & 1) + (8 if i >= 2 else 0), group


def d_place(i: int, lane: int) -> tuple[int, int]:
    """Row and column of element d_i of C and D: mma has the first four, and wgmma repeats them every 8 columns."""
    group, thread = lane >> 2, lane % 4
    return (group if i % 4 < 2 else group + 8), (i // 4) * 8 + thread * 2 + (i & 1)


def packed(elements: NDArray[Any]) -> NDArray[np.uint32]:
    """Registers of the elements of lanes: [warps, 32, elements] -> [registers, warps, 32], the first element low."""
    words = np.ascontiguousarray(elements).view(np.uint32)  # [warps, 32, registers]
    return np.ascontiguousarray(np.moveaxis(words, 2, 0))


def a_registers(a: NDArray[np.float32], kind: str) -> NDArray[np.uint32]:
    """[warps, 16, k] in fragments."""
    held = bits(a, kind)
    count = 4 if kind == "tf32" else 8
    elements = np.array(
        [[[held[warp][a_place(i, lane, kind)] for i in range(count)] for lane in range(32)] for warp in range(len(a))]
    )
    return packed(elements)


def b_registers(b: NDArray[np.float32], kind: str) -> NDArray[np.uint32]:
    """[warps, k, 8] in fragments."""
    held = bits(b, kind)
    count = 2 if kind == "tf32" else 4
    elements = np.array(
        [[[held[warp][b_place(i, lane, kind)] for i in range(count)] for lane in range(32)] for warp in range(len(b))]
    )
    return packed(elements)


def d_registers(d: NDArray[np.float32]) -> NDArray[np.float32]:
    """[warps, 16, n] in fragments: [n / 2, warps, 32]."""
    places = [[d_place(i, lane) for lane in range(32)] for i in range(d.shape[2] // 2)]
    return np.array([[[rows[place] for place in row] for rows in d] for row in places])


def close(actual: NDArray[Any], expected: NDArray[Any], k: int) -> None:
    assert actual.dtype == np.float32
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6 * k)


@pytest.mark.parametrize("kind", DTYPES)
def test_mma_multiplies(kind: str) -> None:
    k = 8 if kind == "tf32" else 16
    rng = np.random.default_rng(0)
    a, b = random(rng, WARPS, 16, k, kind=kind), random(rng, WARPS, k, 8, kind=kind)
    c = rng.standard_normal((WARPS, 16, 8)).astype(np.float32)
    actual = matrix.mma(a_registers(a, kind), b_registers(b, kind), d_registers(c), kind)
    close(actual, d_registers((a.astype(np.float64) @ b + c).astype(np.float32)), k)


@pytest.mark.parametrize("kind", DTYPES)
def test_half_of_the_registers_are_half_of_the_depth(kind: str) -> None:
    k = 8 if kind == "tf32" else 16
    rng = np.random.default_rng(1)
    a, b = random(rng, WARPS, 16, k, kind=kind), random(rng, WARPS, k, 8, kind=kind)
    a[:, :, k // 2 :] = 0
    c = np.zeros((4, WARPS, 32), np.float32)
    whole = matrix.mma(a_registers(a, kind), b_registers(b, kind), c, kind)
    half = matrix.mma(a_registers(a, kind)[:2], b_registers(b, kind)[:1], c, kind)
    np.testing.assert_array_equal(half, whole)


def test_tf32_ignores_the_lower_bits() -> None:
    rng = np.random.default_rng(2)
    a, b = random(rng, 1, 16, 8, kind="tf32"), random(rng, 1, 8, 8, kind="tf32")
    c = np.zeros((4, 1, 32), np.float32)
    left, right = a_registers(a, "tf32"), b_registers(b, "tf32")
    noise = [rng.integers(0, 2**13, words.shape, np.uint32) for words in (left, right)]
    actual = matrix.mma(left | noise[0], right | noise[1], c, "tf32")
    np.testing.assert_array_equal(actual, matrix.mma(left, right, c, "tf32"))


def test_the_sum_is_rounded_once() -> None:
    a, b = np.zeros((1, 16, 16), np.float32), np.zeros((1, 16, 8), np.float32)
    a[0, 0, :3], b[0, :3, 0] = (1, 2**-12, 2**-12), (1, 2**-12, 2**-12)  # each small product alone would be lost
    actual = matrix.mma(a_registers(a, "f16"), b_registers(b, "f16"), np.zeros((4, 1, 32), np.float32), "f16")
    assert actual[0, 0, 0] == np.float32(1 + 2**-23)


@pytest.mark.parametrize("value", [np.inf, np.nan, 65504.0])
def test_what_is_not_finite_stays(value: float) -> None:
    a, b = np.full((1, 16, 16), value, np.float32), np.ones((1, 16, 8), np.float32)
    actual = matrix.mma(a_registers(a, "f16"), b_registers(b, "f16"), np.zeros((4, 1, 32), np.float32), "f16")
    np.testing.assert_array_equal(actual, np.float32(16 * value))


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"'f16', 'bf16' or 'tf32', got 'e4m3'"):
        matrix.numbers(np.zeros(1, np.uint32), "e4m3")


# ldmatrix and stmatrix


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_deals_out_elements(count: int, transposed: bool) -> None:
    matrices = np.random.default_rng(3).integers(0, 2**16, (WARPS, count, 8, 8), np.uint16)
    # Lane i has the address of row i % 8 of matrix i / 8.
    rows = np.array([[matrices[warp, lane // 8, lane % 8] for lane in range(8 * count)] for warp in range(WARPS)])
    chunks = np.ascontiguousarray(rows).view(np.uint32)
    actual = matrix.ldmatrix(chunks, transposed)
    assert actual.shape == (count, WARPS, 32)
    for i, warp, lane in product(range(count), range(WARPS), range(32)):
        # The manual's figure: a row of 8 elements goes to four lanes, two elements to each.
        read = matrices[warp, i].T if transposed else matrices[warp, i]
        low, high = read[lane // 4, 2 * (lane % 4)], read[lane // 4, 2 * (lane % 4) + 1]
        assert actual[i, warp, lane] == int(low) | int(high) << 16
    np.testing.assert_array_equal(matrix.stmatrix(actual, transposed), chunks)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
    st.integers(1, 5),
)
def test_stmatrix_is_the_inverse(seed: int, count: int, transposed: bool, warps: int) -> None:
    registers = np.random.default_rng(seed).integers(0, 2**32, (count, warps, 32), np.uint32)
    again = matrix.ldmatrix(matrix.stmatrix(registers, transposed), transposed)
    np.testing.assert_array_equal(again, registers)
    assert again.dtype == np.uint32


# wgmma: operands in shared memory


def descriptor(start: int, leading: int, stride: int, swizzle: int, base: int = 0) -> int:
    """A matrix descriptor, of bytes."""
    mode = {0: 0, 128: 1, 64: 2, 32: 3}[swizzle]
    fields = (start >> 4, 0), (leading >> 4, 16), (stride >> 4, 32), (base, 49), (mode, 62)
    return sum(value << bit for value, bit in fields)


def swizzled(address: int, swizzle: int, base: int) -> int:
    """Swizzling: bits 4 up to 6 of an address are exchanged by bits 7 up to 9, which count rows of the pattern."""
    bits_of_mode = {0: 0, 32: 1, 64: 2, 128: 3}[swizzle]
    row = ((address >> 7) - base) & ((1 << bits_of_mode) - 1)
    return address ^ (row << 4)


def element_address(
    row: int, k: int, *, size: int, start: int, leading: int, stride: int, swizzle: int, base: int, transposed: bool
) -> int:
    """Byte address of one element, by the canonical layouts of the manual.

    They are written in units of T = 16 / size elements, S = swizzle / 16 units for a row of the pattern:
    K-major ((8, m), (T, 2)) : ((S T, stride), (1, T)), without swizzling ((T, stride), (1, leading));
    MN-major ((T, S, m), (8, k)) : ((1, T, leading), (S T, stride)), without ((1, -, stride), (T, leading)).
    """
    unit = 16 // size
    per_row = swizzle // 16
    if transposed and swizzle:
        inner, middle, outer = row % unit, row // unit % per_row, row // (unit * per_row)
        offset = size * (inner + unit * middle + per_row * unit * (k % 8)) + leading * outer + stride * (k // 8)
    elif transposed:
        offset = size * (row % unit + unit * (k % 8)) + stride * (row // unit) + leading * (k // 8)
    elif swizzle:
        offset = size * (per_row * unit * (row % 8) + k) + stride * (row // 8)
    else:
        offset = size * (unit * (row % 8) + k % unit) + leading * (k // unit) + stride * (row // 8)
    return swizzled(start + offset, swizzle, base)


@st.composite
def operands(draw: st.DrawFn) -> dict[str, Any]:
    """An operand of wgmma that shared memory holds; elements may share a place."""
    kind = draw(st.sampled_from(sorted(DTYPES)))
    swizzle = draw(st.sampled_from([0, 32, 64, 128]))
    return {
        "kind": kind,
        "rows": 8 * draw(st.integers(1, 32)),
        "transposed": kind != "tf32" and draw(st.booleans()),
        "swizzle": swizzle,
        "start": 16 * draw(st.integers(0, 255)),
        "leading": 16 * draw(st.integers(0, 128)),
        "stride": 16 * draw(st.integers(0, 128)),
        "base": draw(st.integers(0, 7)) if swizzle else 0,
    }


@given(st.lists(operands(), min_size=1, max_size=2), st.integers(0, 2**32 - 1))
def test_operands_lie_where_descriptors_say(cases: list[dict[str, Any]], seed: int) -> None:
    first = cases[0]
    kind, rows, transposed = first["kind"], first["rows"], first["transposed"]
    size = 4 if kind == "tf32" else 2
    fields = [{name: case[name] for name in ("start", "leading", "stride", "swizzle", "base")} for case in cases]
    shared = np.random.default_rng(seed).integers(0, 256, 2**17, np.uint8)
    descriptors = np.array([descriptor(**case) for case in fields], np.uint64)
    addresses = matrix.operand_addresses(descriptors, rows, transposed)
    assert addresses.shape == (len(cases), rows * 2)
    assert (addresses % matrix.CHUNK == 0).all()
    chunks = shared.view(np.uint32).reshape(-1, 4)[addresses // matrix.CHUNK]
    actual = matrix.operand(chunks, kind, transposed)
    assert actual.shape == (len(cases), rows, 32 // size)
    words = torch.from_numpy(shared).view(DTYPES[kind]).float().numpy()
    for group, case in enumerate(fields):
        places = [
            [element_address(row, k, size=size, transposed=transposed, **case) for k in range(32 // size)]
            for row in range(rows)
        ]
        np.testing.assert_array_equal(actual[group], rounded(words[np.array(places) // size], kind))


def stored(values: NDArray[np.float32], kind: str, swizzle: int, transposed: bool) -> tuple[NDArray[np.uint8], int]:
    """Shared memory that holds one operand [m or n, k] densely, and its descriptor."""
    size = 4 if kind == "tf32" else 2
    rows, depth = values.shape
    if transposed:  # atoms of 8 k by a row of the pattern, all m or n of 8 k first
        atom = 8 * max(swizzle, 16)
        steps = {"leading": atom, "stride": atom * (rows * size // max(swizzle, 16))}
        steps = steps if swizzle else {"leading": steps["stride"], "stride": steps["leading"]}
    else:
        steps = {"leading": 16 * rows, "stride": 8 * max(swizzle, 16)}
    shared = np.zeros(2**16, np.uint8)
    held = bits(values, kind)[..., None].view(np.uint8)
    places = set()
    for row, k in product(range(rows), range(depth)):
        place = element_address(row, k, size=size, start=1024, swizzle=swizzle, base=0, transposed=transposed, **steps)
        shared[place : place + size] = held[row, k]
        places.add(place)
    assert len(places) == rows * depth
    return shared, descriptor(start=1024, swizzle=swizzle, **steps)


def from_shared(values: NDArray[np.float32], kind: str, swizzle: int, transposed: bool) -> NDArray[np.float64]:
    """The operand [m or n, k] of every group, stored and read."""
    shared, descriptors = zip(*(stored(x, kind, swizzle, transposed) for x in values), strict=True)
    addresses = matrix.operand_addresses(np.array(descriptors, np.uint64), values.shape[1], transposed)
    chunks = [memory.view(np.uint32).reshape(-1, 4)[at // 16] for memory, at in zip(shared, addresses, strict=True)]
    return matrix.operand(np.stack(chunks), kind, transposed)


LAYOUTS = [
    (kind, transposed) for kind in DTYPES for transposed in (False, True) if (kind, transposed) != ("tf32", True)
]


@pytest.mark.parametrize("from_registers", [False, True])
@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
@pytest.mark.parametrize(("kind", "transposed"), LAYOUTS)
def test_wgmma_multiplies(kind: str, swizzle: int, transposed: bool, from_registers: bool) -> None:
    n, k = 64, 8 if kind == "tf32" else 16
    rng = np.random.default_rng(4)
    a, b = random(rng, 2, 64, k, kind=kind), random(rng, 2, n, k, kind=kind)
    d = rng.standard_normal((2, 64, n)).astype(np.float32)
    d[1] = np.nan  # of the second group, which ignores it
    if from_registers:
        left = matrix.a_operand(a_registers(a.reshape(8, 16, k), kind), kind)
    else:
        left = from_shared(a, kind, swizzle, transposed)
    right = from_shared(b, kind, swizzle, transposed)
    # Warp w of a group holds rows 16 w up to 16 w + 15.
    actual = matrix.wgmma(-left, right, d_registers(d.reshape(8, 16, n)), np.array([True, False]))
    expected = np.stack([d[0] - a[0].astype(np.float64) @ b[0].T, -a[1].astype(np.float64) @ b[1].T])
    close(actual, d_registers(expected.astype(np.float32).reshape(8, 16, n)), k)
