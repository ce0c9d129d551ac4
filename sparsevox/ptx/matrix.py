"""The matrix instructions of PTX in NumPy: mma, wgmma, ldmatrix and stmatrix, over many warps at once.

Pure functions from registers and shared memory to registers; their caller reads and writes the memory. Registers are
uint32 [registers, warps, 32]: the last axis is the lane. Shared memory is accessed in chunks of 16 bytes, uint32
[..., 4], which no layout of these instructions splits.

The layouts are those of the PTX manual: "Matrix fragments for mma.m16n8k16" and its siblings, and for wgmma "Register
fragments", "Shared memory matrix layout" and "Matrix descriptor". In the patterns below g is the group of a lane
(lane / 4), t its place in the group (lane % 4), and e counts the elements of a register.

Products are exact, and their sum in float64 is rounded to float32 once. A tensor core keeps fewer bits of the sum and
truncates them by rules that are not published, so results of a GPU differ in the last bits.
"""

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

Bits = NDArray[np.uint32]
Numbers = NDArray[np.float64]
Accumulators = NDArray[np.float32]

CHUNK = 16  # bytes
SWIZZLES = np.array([16, 128, 64, 32])  # bytes of a row of the pattern, by the code in the descriptor; 16: none


def numbers(words: Bits, kind: str) -> Numbers:
    """Elements of f16, bf16 or tf32 that 32-bit words hold, the lowest first: [...] -> [..., 2], for tf32 [..., 1]."""
    with np.errstate(invalid="ignore"):  # signaling NaN
        if kind == "tf32":  # a float32 of which the unit reads the upper 19 bits
            return (words & np.uint32(0xFFFFE000)).view(np.float32)[..., None].astype(np.float64)
        halves = np.ascontiguousarray(words).view("<u2").reshape(*words.shape, 2)
        if kind == "f16":
            return halves.view(np.float16).astype(np.float64)
        if kind == "bf16":
            return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    raise NotImplementedError(f"kind must be 'f16', 'bf16' or 'tf32', got {kind!r}")


def a_matrix(registers: Bits, kind: str) -> Numbers:
    """The 16 rows of A that each warp holds, of mma and wgmma: [k / 4 or k / 2, warps, 32] -> [warps, 16, k]."""
    elements = numbers(registers, kind)  # [registers, warps, 32, e]
    return rearrange(elements, "(depth half) warp (g t) e -> warp (half g) (depth t e)", half=2, g=8)


def b_matrix(registers: Bits, kind: str) -> Numbers:
    """The 8 columns of B that each warp holds, of mma, transposed: [k / 8 or k / 4, warps, 32] -> [warps, 8, k]."""
    return rearrange(numbers(registers, kind), "depth warp (g t) e -> warp g (depth t e)", g=8)


def product(a: Numbers, b: Numbers, c: Accumulators) -> Accumulators:
    """A B^T + C for matrices of one or more warps each: [units, m, k], [units, n, k] and the accumulators of C.

    A unit has m / 16 warps; each warp holds 16 rows of C in n / 2 registers: [n / 2, units * m / 16, 32].
    """
    held, whole = "(tile half e) (unit warp) (g t)", "unit (warp half g) (tile t e)"
    sizes = {"half": 2, "e": 2, "g": 8, "t": 4}
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are results like others
        total = np.matmul(a, b.swapaxes(1, 2)) + rearrange(c, f"{held} -> {whole}", unit=len(a), **sizes)
        return np.ascontiguousarray(rearrange(total.astype(np.float32), f"{whole} -> {held}", **sizes))


def mma(a: Bits, b: Bits, c: Accumulators, kind: str) -> Accumulators:
    """`mma.sync.m16n8kK.row.col.f32.kind.kind.f32`: D = A B + C of every warp.

    Args:
        a: [4, warps, 32] for m16n8k16 (f16, bf16) and m16n8k8 (tf32), 2 registers for half of the depth.
        b: [2, warps, 32], or 1 register.
        c: float32 [4, warps, 32].
        kind: Type of A and B: "f16", "bf16" or "tf32".

    Returns:
        D, float32 [4, warps, 32].
    """
    return product(a_matrix(a, kind), b_matrix(b, kind), c)


def wgmma(a: Numbers, b: Numbers, c: Accumulators, accumulate: NDArray[np.bool_]) -> Accumulators:
    """`wgmma.mma_async.m64nNkK.f32.kind.kind`: D = A B + D, or A B, of every group of four warps.

    imm-scale-a and imm-scale-b are 1 or -1: the caller multiplies A or B by them.

    Args:
        a: [groups, 64, k], of `a_operand` or `operand`.
        b: [groups, n, k], of `operand`.
        c: The accumulators D, float32 [n / 2, 4 * groups, 32].
        accumulate: scale-d, bool [groups]: False ignores what D holds.

    Returns:
        D, float32 [n / 2, 4 * groups, 32].
    """
    return product(a, b, np.where(np.repeat(accumulate, 4)[:, None], c, np.float32(0)))


def a_operand(registers: Bits, kind: str) -> Numbers:
    """A of wgmma where registers hold it: [4, 4 * groups, 32] -> [groups, 64, k]."""
    return rearrange(a_matrix(registers, kind), "(group warp) m k -> group (warp m) k", warp=4)


def operand(chunks: Bits, kind: str, transposed: bool) -> Numbers:
    """A or B of wgmma, from the chunks at `operand_addresses`: [groups, chunks, 4] -> [groups, m or n, k]."""
    elements = numbers(chunks, kind)  # [groups, chunks, 4, e]
    if transposed:
        return rearrange(elements, "group (k row) t e -> group (row t e) k", k=16)
    return rearrange(elements, "group (row depth) t e -> group row (depth t e)", depth=2)


def operand_addresses(descriptors: NDArray[np.uint64], rows: int, transposed: bool) -> NDArray[np.int64]:
    """Where the chunks of A or B of wgmma lie in shared memory, by their matrix descriptors.

    Chunks run along k, in a row of A or a column of B (K-major), where `transposed` is False: two to each. Where it is
    True they run along m or n (MN-major) and hold 8 elements of 16 bits of one k: `rows` / 8 to each of 16.

    Args:
        descriptors: [groups].
        rows: Extent of the operand along m or n.
        transposed: imm-trans-a or imm-trans-b.

    Returns:
        Byte addresses, int64 [groups, chunks].
    """
    start, leading, stride, base, mode = (
        (descriptors[:, None, None] >> np.uint64(bit) & np.uint64(2**size - 1)).astype(np.int64)
        for bit, size in ((0, 14), (16, 14), (32, 14), (49, 3), (62, 2))
    )
    start, leading, stride = start * CHUNK, leading * CHUNK, stride * CHUNK
    width = SWIZZLES[mode]  # [groups, 1, 1]

    # 1. The layout before swizzling: [groups, rows, 2], or [groups, 16, rows / 8] where transposed. An atom has eight
    #    lines (rows or k) of `width` bytes. Where that is one chunk, leading and stride exchange their roles.
    swizzled = width > CHUNK
    if transposed:
        line, chunk = np.arange(16)[:, None], np.arange(rows * 2 // CHUNK)
        step, atom_step = np.where(swizzled, leading, stride), np.where(swizzled, stride, leading)
        across = chunk // (width // CHUNK) * step + chunk % (width // CHUNK) * CHUNK
    else:
        line, chunk = np.arange(rows)[:, None], np.arange(2)
        across, atom_step = chunk * np.where(swizzled, CHUNK, leading), stride
    plain = start + line // 8 * atom_step + line % 8 * width + across

    # 2. Swizzling permutes the chunks within 32, 64 or 128 bytes by the row of the pattern, each of 128 bytes.
    pattern_row = (plain >> 7) - base
    return (plain ^ ((pattern_row & (width // CHUNK - 1)) * CHUNK)).reshape(len(descriptors), -1)


def ldmatrix(chunks: Bits, transposed: bool) -> Bits:
    """`ldmatrix.m8n8.x1`, `.x2` or `.x4`: registers of matrices of 8 by 8 elements of 16 bits.

    Lane i of a warp gives the address of row i % 8 of matrix i / 8; addresses of further lanes are not used.

    Args:
        chunks: The rows, at the addresses of the first 8 * matrices lanes: [warps, 8 * matrices, 4].
        transposed: `.trans`: a lane receives two elements of one column, and not of one row.

    Returns:
        A register for each matrix, [matrices, warps, 32].
    """
    if not transposed:
        return np.ascontiguousarray(rearrange(chunks, "warp (matrix g) t -> matrix warp (g t)", g=8))
    halves = np.ascontiguousarray(chunks).view("<u2")  # [warps, 8 * matrices, 8]
    columns = rearrange(halves, "warp (matrix t e) g -> matrix warp (g t) e", t=4, e=2)
    return np.ascontiguousarray(columns).view("<u4")[..., 0]


def stmatrix(registers: Bits, transposed: bool) -> Bits:
    """`stmatrix.m8n8.x1`, `.x2` or `.x4`, the inverse of `ldmatrix`: the chunks that it writes.

    Args:
        registers: A register for each matrix, [matrices, warps, 32].
        transposed: `.trans`.

    Returns:
        The rows, for the addresses of the first 8 * matrices lanes: [warps, 8 * matrices, 4].
    """
    if not transposed:
        return np.ascontiguousarray(rearrange(registers, "matrix warp (g t) -> warp (matrix g) t", g=8))
    halves = np.ascontiguousarray(registers).view("<u2")  # [matrices, warps, 64]
    rows = rearrange(halves, "matrix warp (g t e) -> warp (matrix t e) g", g=8, t=4)
    return np.ascontiguousarray(rows).view("<u4")
