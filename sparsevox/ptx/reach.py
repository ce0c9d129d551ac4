"""Which arguments the addresses of a kernel derive from, found by following its registers."""

import re
from dataclasses import dataclass

from sparsevox.ptx.parse import Kernel

_SHARED = "shared memory"  # pointers may pass through it from thread to thread


@dataclass
class Reach:
    """Where a kernel's accesses to global memory go.

    Attributes:
        of: For each instruction that accesses global memory, the parameters that its address derives from.
        written: Parameters that are stored to.
    """

    of: dict[int, tuple[int, ...]]
    written: set[int]


def reach(kernel: Kernel) -> Reach:
    """Follow pointers from the parameters through all instructions until nothing changes."""
    pointers = {parameter.name: i for i, parameter in enumerate(kernel.parameters) if parameter.type[1:] == "64"}
    sources: dict[str, set[int]] = {}
    flows = []
    for instruction in kernel.instructions:
        names = [re.findall(r"[%\w$]+", operand) for operand in instruction.operands]
        opcode, name = instruction.opcode, instruction.name
        if name.startswith("ld.param"):
            found = {pointers[part] for part in names[1] if part in pointers}
            sources[names[0][0]] = sources.get(names[0][0], set()) | found
        elif opcode == "st" and ".shared" in name:
            flows.append(([_SHARED], names[1]))
        elif opcode in ("ld", "ldmatrix") and ".shared" in name:
            flows.append((names[0], [_SHARED]))
        elif opcode == "stmatrix":
            flows.append(([_SHARED], names[1]))
        elif names and opcode not in ("ld", "st", "atom", "red", "cp", "setp", "bra"):
            flows.append((names[0], [part for operand in names[1:] for part in operand]))
    changed = True
    while changed:
        changed = False
        for targets, origins in flows:
            found = set().union(*(sources.get(origin, set()) for origin in origins))
            for target in targets:
                known = sources.setdefault(target, set())
                if not found <= known:
                    known |= found
                    changed = True
    every = set(pointers.values())
    of, written = {}, set()
    for instruction in kernel.instructions:
        if "global" not in instruction.name or instruction.opcode not in ("ld", "st", "atom", "red", "cp"):
            continue
        address = next(operand for operand in reversed(instruction.operands) if operand.startswith("["))
        origins = [sources.get(part, set()) for part in re.findall(r"[%\w$]+", address)]
        found = set().union(*origins) or every
        of[instruction.number] = tuple(sorted(found))
        if instruction.opcode in ("st", "atom", "red"):
            written |= found
    return Reach(of, written)
