"""Loads, stores and atomics."""

from typing import Any

import numpy as np

from sparsevox.ptx.forms import form
from sparsevox.ptx.memory import GlobalMemory, SharedMemory
from sparsevox.ptx.parse import BITS, Instruction
from sparsevox.ptx.races import THREAD
from sparsevox.ptx.registers import DTYPES, Lanes, Operands, Step, Value

SPACE = r"\.(?P<space>global|shared(?:::cta)?)"
ORDER = r"(?P<order>(?:\.(?:weak|volatile|relaxed|acquire|release|acq_rel|cta|gpu|sys))*)"
CACHE = r"(?:\.nc)?(?:\.(?:ca|cg|cs|lu|cv|wb|wt))?(?:\.L1::\w+)?(?:\.L2::\w+)*"  # changes no result
ELEMENT = r"(?:\.v(?P<count>[24]))?\.(?P<kind>[busf](?:8|16|32|64))"
OPERATION = r"\.(?P<name>add|min|max|and|or|xor|exch|cas|inc|dec)(?:\.noftz)?\.(?P<kind>[busf](?:16|32|64))"


def memory_of(lanes: Lanes, shared: bool) -> GlobalMemory | SharedMemory:
    """The memory that a thread accesses."""
    return lanes.batch.shared if shared else lanes.batch.memory


def strong(order: str) -> bool:
    """True for accesses that race with no atomic."""
    return any(word in order for word in ("volatile", "relaxed", "acquire", "release", "acq_rel"))


def retry(step: Step, lanes: Lanes, good: Value) -> None:
    """Execute an instruction for those threads only whose address is legal."""
    if np.any(good):
        step(lanes.select(good))


def note_read(
    memory: GlobalMemory | SharedMemory, lanes: Lanes, instruction: Instruction, offset: Value, size: int, **how: Any
) -> None:
    """Check a read of `size` bytes per thread for races and uninitialized memory."""
    if memory.shadow is None or instruction.number in lanes.batch.untracked:
        return
    granules, inside = memory.granules(lanes, offset, size)
    if inside is not None:
        lanes = lanes.select(lanes.shaped(inside))
    if len(granules):
        if memory is lanes.batch.shared:
            memory.shadow.check_initialized(lanes, instruction, granules)
        memory.shadow.read(lanes, instruction, granules, **how)


def write_values(
    memory: GlobalMemory | SharedMemory,
    lanes: Lanes,
    instruction: Instruction,
    offset: Value,
    values: np.ndarray,
    scope: int = THREAD,
) -> None:
    """Store values [N] or, as vectors, [N, count], with the checks for races."""
    width, count = values.dtype.itemsize, values.shape[1] if values.ndim == 2 else 1
    vectors, index = memory.vectors(width, count), lanes.flat(offset) // (width * count)
    crowd = None
    if memory.shadow is not None:
        present = vectors[index] == values
        same = present.all(1) if count > 1 else present
        granules, inside = memory.granules(lanes, offset, width * count)
        if inside is None:
            crowd = memory.shadow.write(lanes, instruction, granules, same, scope)
    order = lanes.batch.shuffled(len(index))
    vectors[index[order]] = values[order]
    if crowd is not None and crowd.any():
        left = vectors[index] != values
        differs = crowd & (left.any(1) if count > 1 else left)
        for benign, those in ((False, differs), (True, crowd)):
            if those.any():
                title = "threads store {} values to one address at once".format("the same" if benign else "different")
                lanes.batch.report(title, instruction, lanes.threads[those], benign)
                break


@form(r"ld\.param\.(?P<kind>[busf](?:8|16|32|64))")
def _load_parameter(operands: Operands, kind: str) -> Step:
    write = operands.widened_target(0, kind)
    name, _, offset = operands.instruction.operands[1].strip("[] ").partition("+")
    numbers = {parameter.name: i for i, parameter in enumerate(operands.kernel.parameters)}
    shift = np.uint64(8 * operands.integer(offset.strip()) if offset else 0)
    number = numbers[name.strip()]
    if BITS[kind] + shift > BITS[operands.kernel.parameters[number].type]:
        raise operands.unknown()
    low = DTYPES[f"u{BITS[kind]}"]
    return lambda lanes: write(lanes, (lanes.batch.parameters[number] >> shift).astype(low).view(DTYPES[kind]))


@form(rf"ld{ORDER}{SPACE}{CACHE}{ELEMENT}")
def _load(operands: Operands, space: str, order: str, count: str | None, kind: str) -> Step:
    instruction, shared = operands.instruction, space != "global"
    address = operands.address(1, shared)
    targets = operands.list(0)
    n, width, dtype = int(count or 1), BITS[kind] // 8, DTYPES[kind]
    if len(targets) != n:
        raise operands.unknown()
    writes = [operands.widened_target(target, kind) for target in targets]
    size, atomic = n * width, strong(order)
    shift = np.int64(size.bit_length() - 1)

    def step(lanes: Lanes) -> None:
        memory = memory_of(lanes, shared)
        offset, good = memory.resolve(lanes, address(lanes), size, instruction)
        if good is not None:
            retry(step, lanes, good)
            return
        note_read(memory, lanes, instruction, offset, size, atomic=atomic)
        values = memory.vectors(width, n)[offset >> shift]
        if n == 1:
            writes[0](lanes, values.view(dtype))
            return
        for i, write in enumerate(writes):
            write(lanes, values[..., i][()].view(dtype))

    return step


@form(rf"st{ORDER}{SPACE}{CACHE}{ELEMENT}")
def _store(operands: Operands, space: str, order: str, count: str | None, kind: str) -> Step:
    instruction, shared = operands.instruction, space != "global"
    address = operands.address(0, shared)
    sources = operands.list(1)
    n, width = int(count or 1), BITS[kind] // 8
    if len(sources) != n or strong(order):
        raise operands.unknown()
    reads = [operands.source(source, f"b{BITS[kind]}") for source in sources]
    size = n * width

    def step(lanes: Lanes) -> None:
        memory = memory_of(lanes, shared)
        offset, good = memory.resolve(lanes, address(lanes), size, instruction)
        if good is not None:
            retry(step, lanes, good)
            return
        values = [lanes.flat(read(lanes)) for read in reads]
        write_values(memory, lanes, instruction, offset, values[0] if n == 1 else np.stack(values, 1))

    return step


def after_atomic(name: str, old: np.ndarray, operand: np.ndarray, new: Value) -> Value:
    """What an atomic leaves behind. `new`: the value that `cas` stores where it finds `operand`."""
    if name == "cas":
        return np.where(old == operand, new, old)
    if name == "exch":
        return operand
    if name == "inc":
        return np.where(old >= operand, 0, old + 1).astype(old.dtype)
    if name == "dec":
        return np.where((old == 0) | (old > operand), operand, old - 1).astype(old.dtype)
    functions: dict[str, Any] = {"add": np.add, "min": np.minimum, "max": np.maximum}
    functions |= {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    return functions[name](old, operand)


@form(
    rf"(?P<opcode>atom|red){ORDER}{SPACE}(?P<order_after>{ORDER[10:-1]}){OPERATION}",
)
def _atomic(operands: Operands, opcode: str, order: str, space: str, order_after: str, name: str, kind: str) -> Step:
    instruction, shared = operands.instruction, space != "global"
    returns = opcode == "atom"
    address = operands.address(1 if returns else 0, shared)
    write = operands.target(0, BITS[kind]) if returns else None
    first = 2 if returns else 1
    if len(operands) != first + (2 if name == "cas" else 1) or (kind[0] == "f" and name not in ("add", "exch")):
        raise operands.unknown()
    operand = operands.source(first, kind)
    replacement = operands.source(first + 1, kind) if name == "cas" else None
    width, dtype = BITS[kind] // 8, DTYPES[kind]

    def step(lanes: Lanes) -> None:
        memory = memory_of(lanes, shared)
        offset, good = memory.resolve(lanes, address(lanes), width, instruction)
        if good is not None:
            retry(step, lanes, good)
            return
        values = memory.vectors(width, 1).view(dtype)
        index = lanes.flat(offset) // width
        if memory.shadow is not None:
            granules, inside = memory.granules(lanes, offset, width)
            if inside is None:
                memory.shadow.write(lanes, instruction, granules, np.zeros(len(index), bool), atomic=True)
        x = lanes.flat(operand(lanes))
        new = lanes.flat(replacement(lanes)) if replacement else None
        old = np.empty(len(index), dtype)
        # Threads with an address of their own at once; those that share one take turns.
        waiting = lanes.batch.shuffled(len(index))
        while len(waiting):
            _, turn = np.unique(index[waiting], return_index=True)
            now = waiting[turn]
            old[now] = values[index[now]]
            values[index[now]] = after_atomic(name, old[now], x[now], None if new is None else new[now])
            waiting = np.delete(waiting, turn)
        if write:
            write(lanes, lanes.shaped(old))

    return step
