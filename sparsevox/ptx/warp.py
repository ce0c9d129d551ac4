"""Instructions of a whole warp: shuffles, reductions, votes and its barrier."""

from typing import Any

import numpy as np

from sparsevox.ptx.forms import form
from sparsevox.ptx.parse import BITS
from sparsevox.ptx.races import WARP_SIZE
from sparsevox.ptx.registers import DTYPES, Lanes, Operands, Reader, Step, Value

LANE = np.arange(WARP_SIZE)


def over_warps(lanes: Lanes, value: Value, missing: Any = 0) -> np.ndarray:
    """A value per thread as [programs, warps, 32], or [1, warps, 32] where programs do not differ.

    Threads of the batch that do not execute have `missing`.
    """
    if not lanes.partial:
        rows = value.shape[0] if value.ndim else 1
        return np.broadcast_to(value, (rows, lanes.shape[1])).reshape(rows, -1, WARP_SIZE)
    whole = np.full(len(lanes.batch.threads), missing, value.dtype)
    whole[lanes.threads] = value
    return whole.reshape(len(lanes.batch.programs), -1, WARP_SIZE)


def per_thread(lanes: Lanes, value: np.ndarray) -> np.ndarray:
    """[programs, warps, 32] as a register has it."""
    if lanes.partial:
        return value.reshape(-1)[lanes.threads]
    return value.reshape(-1, lanes.shape[1])


def whole_warps(lanes: Lanes) -> bool:
    """True if no warp executes in part."""
    if not lanes.partial:
        return True
    threads = lanes.threads
    return len(threads) % WARP_SIZE == 0 and bool(
        np.all(threads.reshape(-1, WARP_SIZE) == threads[::WARP_SIZE, None] // WARP_SIZE * WARP_SIZE + LANE)
    )


def check_mask(operands: Operands, mask: int) -> Reader:
    """A function that reports threads of the mask (its operand) that do not execute with the others."""
    read = operands.source(mask, "u32")
    full = operands.is_constant(mask) and operands.constant(operands.instruction.operands[mask], "u32") == 0xFFFFFFFF
    instruction = operands.instruction

    def check(lanes: Lanes) -> None:
        if full and whole_warps(lanes):
            return
        active = over_warps(lanes, np.ones(lanes.threads.shape if lanes.partial else lanes.shape, bool), False)
        present = (active.astype(np.uint32) << LANE.astype(np.uint32)).sum(-1, dtype=np.uint32)
        here = np.repeat(present, WARP_SIZE)[lanes.threads]
        wanted = lanes.flat(read(lanes))
        wrong = (wanted & ~here != 0) | (wanted >> (lanes.threads % WARP_SIZE).astype(np.uint32) & np.uint32(1) == 0)
        if wrong.any():
            kind = f"{instruction.opcode}.sync and not all threads of its mask are there"
            lanes.batch.report(kind, instruction, lanes.threads[wrong])

    return check


@form(r"shfl\.sync\.(?P<mode>up|down|bfly|idx)\.b32")
def _shuffle(operands: Operands, mode: str) -> Step:
    first, _, second = operands.instruction.operands[0].partition("|")
    write, write_valid = operands.target(first.strip(), 32), operands.target(second.strip() or "_", 1)
    read, offset, clamp = (operands.source(i, "u32") for i in (1, 2, 3))
    check = check_mask(operands, 4)

    def step(lanes: Lanes) -> None:
        check(lanes)
        value, by, bound = (over_warps(lanes, part(lanes)) for part in (read, offset, clamp))
        by, bound = by.astype(np.int64) & 31, bound.astype(np.int64)
        segment = bound >> 8 & 31
        lowest, limit = LANE & segment, LANE & segment | bound & 31 & ~segment
        source = {"up": LANE - by, "down": LANE + by, "bfly": LANE ^ by, "idx": lowest | by & ~segment}[mode]
        valid = source >= limit if mode == "up" else source <= limit
        source = np.where(valid, source, LANE)
        value, source = np.broadcast_arrays(value, source)
        write(lanes, per_thread(lanes, np.take_along_axis(value, source, -1)))
        write_valid(lanes, per_thread(lanes, np.broadcast_to(valid, source.shape)))

    return step


@form(r"redux\.sync\.(?P<name>add|min|max)\.(?P<kind>[su]32)", r"redux\.sync\.(?P<name>and|or|xor)\.(?P<kind>b32)")
def _reduce(operands: Operands, name: str, kind: str) -> Step:
    functions: dict[str, Any] = {"add": np.add, "min": np.minimum, "max": np.maximum}
    functions |= {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    dtype = DTYPES[kind]
    info = np.iinfo(dtype)
    neutral = {"add": 0, "min": info.max, "max": info.min, "and": info.max, "or": 0, "xor": 0}[name]
    write, read, check = operands.target(0, BITS[kind]), operands.source(1, kind), check_mask(operands, 2)

    def step(lanes: Lanes) -> None:
        check(lanes)
        value = functions[name].reduce(over_warps(lanes, read(lanes), neutral), axis=-1, dtype=dtype)
        write(lanes, per_thread(lanes, np.repeat(value, WARP_SIZE)))

    return step


@form(r"vote\.sync\.(?P<name>all|any|uni)\.pred", r"vote\.sync\.(?P<name>ballot)\.b32")
def _vote(operands: Operands, name: str) -> Step:
    write = operands.target(0, 32 if name == "ballot" else 1)
    read, check = operands.source(1, "pred"), check_mask(operands, 2)

    def step(lanes: Lanes) -> None:
        check(lanes)
        value = np.asarray(read(lanes))
        yes, no = over_warps(lanes, value, False), over_warps(lanes, ~value, False)
        if name == "ballot":
            result = (yes.astype(np.uint32) << LANE.astype(np.uint32)).sum(-1, dtype=np.uint32)
        else:
            result = {"all": ~no.any(-1), "any": yes.any(-1), "uni": ~(yes.any(-1) & no.any(-1))}[name]
        write(lanes, per_thread(lanes, np.repeat(result, WARP_SIZE)))

    return step


@form(r"activemask\.b32")
def _active_mask(operands: Operands) -> Step:
    write = operands.target(0, 32)

    def step(lanes: Lanes) -> None:
        active = over_warps(lanes, np.ones(lanes.threads.shape if lanes.partial else (1, 1), bool), False)
        result = (active.astype(np.uint32) << LANE.astype(np.uint32)).sum(-1, dtype=np.uint32)
        write(lanes, per_thread(lanes, np.repeat(result, WARP_SIZE)))

    return step


@form(r"bar\.warp\.sync")
def _barrier(operands: Operands) -> Step:
    check = check_mask(operands, 0)

    def step(lanes: Lanes) -> None:
        check(lanes)
        when = lanes.batch.when
        latest = over_warps(lanes, lanes.shaped(when[lanes.threads]), -1).max(-1)
        when[lanes.threads] = np.repeat(latest + 1, WARP_SIZE)[lanes.threads]

    return step
