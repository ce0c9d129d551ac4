"""Matrix instructions of a warp: mma, ldmatrix and stmatrix."""

import numpy as np

from sparsevox.ptx import matrix
from sparsevox.ptx.access import note_read, write_values
from sparsevox.ptx.forms import form
from sparsevox.ptx.parse import Instruction
from sparsevox.ptx.races import WARP, WARP_SIZE
from sparsevox.ptx.registers import Lanes, Operands, Reader, Step

COUNT = r"\.x(?P<count>[124])"


def whole(lanes: Lanes, instruction: Instruction, size: int = WARP_SIZE) -> bool:
    """True if all threads of every warp, or group of warps, execute an instruction together; reports it otherwise."""
    groups = np.bincount(lanes.threads // size)
    if len(lanes.threads) == size * np.count_nonzero(groups):
        return True
    lanes.batch.report(f"{instruction.opcode} without all {size} threads of a group", instruction, lanes.threads)
    return False


def fragments(lanes: Lanes, reads: list[Reader]) -> np.ndarray:
    """Registers of warps, [registers, warps, 32]."""
    return np.stack([lanes.flat(read(lanes)).reshape(-1, WARP_SIZE) for read in reads])


def row_lanes(lanes: Lanes, count: int) -> Lanes:
    """The threads that give the address of a row of `count` matrices of 8 rows."""
    return Lanes(lanes.batch, lanes.threads.reshape(-1, WARP_SIZE)[:, : 8 * count].reshape(-1))


def read_chunks(lanes: Lanes, instruction: Instruction, address: np.ndarray, scope: int) -> np.ndarray:
    """Chunks of 16 bytes of shared memory, uint32 [N, 4], at the address of every thread; zeros where it is illegal.

    `scope`: The group of threads that gets the values.
    """
    shared = lanes.batch.shared
    offset, good = shared.resolve(lanes, address, matrix.CHUNK, instruction)
    chunks = np.zeros((len(address), 4), np.uint32)
    legal = np.arange(len(address)) if good is None else np.flatnonzero(lanes.flat(good))
    reading = lanes if good is None else lanes.select(good)
    note_read(shared, reading, instruction, offset[legal], matrix.CHUNK, scope=scope)
    chunks[legal] = shared.vectors(4, 4)[offset[legal] // matrix.CHUNK]
    return chunks


@form(rf"ldmatrix\.sync\.aligned\.m8n8{COUNT}(?P<trans>\.trans)?\.shared(?:::cta)?\.b16")
def _load_matrix(operands: Operands, count: str, trans: str | None) -> Step:
    instruction, n = operands.instruction, int(count)
    writes = [operands.target(target, 32) for target in operands.list(0)]
    address = operands.address(1, shared=True)
    if len(writes) != n:
        raise operands.unknown()

    def step(lanes: Lanes) -> None:
        if not whole(lanes, instruction):
            return
        rows = row_lanes(lanes, n)
        chunks = read_chunks(rows, instruction, rows.flat(address(rows)), WARP)
        registers = matrix.ldmatrix(chunks.reshape(-1, 8 * n, 4), trans is not None)
        for write, values in zip(writes, registers, strict=True):
            write(lanes, lanes.shaped(values.reshape(-1)))

    return step


@form(rf"stmatrix\.sync\.aligned\.m8n8{COUNT}(?P<trans>\.trans)?\.shared(?:::cta)?\.b16")
def _store_matrix(operands: Operands, count: str, trans: str | None) -> Step:
    instruction, n = operands.instruction, int(count)
    address = operands.address(0, shared=True)
    reads = [operands.source(source, "b32") for source in operands.list(1)]
    if len(reads) != n:
        raise operands.unknown()

    def step(lanes: Lanes) -> None:
        if not whole(lanes, instruction):
            return
        chunks = matrix.stmatrix(fragments(lanes, reads), trans is not None).reshape(-1, 4)
        rows = row_lanes(lanes, n)
        offset, good = lanes.batch.shared.resolve(rows, rows.flat(address(rows)), matrix.CHUNK, instruction)
        if good is not None:
            rows, offset, chunks = rows.select(good), offset[rows.flat(good)], chunks[rows.flat(good)]
        write_values(lanes.batch.shared, rows, instruction, offset, chunks, WARP)

    return step


@form(r"mma\.sync\.aligned\.m16n8k(?P<depth>4|8|16)\.row\.col\.f32\.(?P<kind>f16|bf16|tf32)\.(?P=kind)\.f32")
def _multiply(operands: Operands, depth: str, kind: str) -> Step:
    instruction = operands.instruction
    a, b = ([operands.source(source, "b32") for source in operands.list(i)] for i in (1, 2))
    c = [operands.source(source, "f32") for source in operands.list(3)]
    writes = [operands.target(target, 32) for target in operands.list(0)]
    registers = int(depth) // (4 if kind == "tf32" else 8)
    if (len(a), len(b), len(c), len(writes)) != (2 * registers, registers, 4, 4):
        raise operands.unknown()

    def step(lanes: Lanes) -> None:
        if not whole(lanes, instruction):
            return
        results = matrix.mma(fragments(lanes, a), fragments(lanes, b), fragments(lanes, c), kind)
        for write, values in zip(writes, results, strict=True):
            write(lanes, lanes.shaped(values.reshape(-1)))

    return step
