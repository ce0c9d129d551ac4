"""The forms of instructions that the interpreter knows: a pattern for the name, and a function that builds the step."""

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from sparsevox.ptx.parse import BITS, Instruction, Kernel
from sparsevox.ptx.registers import Lanes, Operands, Step

Builder = Callable[..., Step]
_forms: list[tuple[re.Pattern[str], Builder]] = []


def form(*patterns: str) -> Callable[[Builder], Builder]:
    """Register a builder for all instructions whose whole name matches a pattern.

    The builder is called with the operands and with the groups of the pattern by name.
    """

    def register(builder: Builder) -> Builder:
        _forms.extend((re.compile(pattern), builder) for pattern in patterns)
        return builder

    return register


@cache
def _find(name: str) -> tuple[Builder, dict[str, str | None]] | None:
    """The builder for an instruction and its arguments."""
    for pattern, builder in _forms:
        found = pattern.fullmatch(name)
        if found:
            return builder, found.groupdict()
    return None


def make_step(kernel: Kernel, instruction: Instruction) -> Step:
    """The step of an instruction, with its guard."""
    operands, found = Operands(kernel, instruction), _find(instruction.name)
    if found is None:
        raise operands.unknown()
    builder, arguments = found
    step = builder(operands, **arguments)
    return _guarded(operands, step) if instruction.guard else step


def guard(operands: Operands) -> Callable[[Lanes], Any]:
    """A function that reads the guard of an instruction."""
    text = operands.instruction.guard
    assert text
    return operands.source(f"!{text}" if operands.instruction.negated else text, "pred")


def _guarded(operands: Operands, step: Step) -> Step:
    chosen = guard(operands)

    def run(lanes: Lanes) -> None:
        mask = chosen(lanes)
        count = np.count_nonzero(mask)
        if count == mask.size:
            step(lanes)
        elif count:
            step(lanes.select(mask))

    return run


def elementwise(operands: Operands, function: Callable[..., Any], kinds: Sequence[str], bits: int = 0) -> Step:
    """The step that writes `function` of sources of the types `kinds` as `bits` bits (default: as the first)."""
    write = operands.target(0, bits or BITS[kinds[0]])
    if len(operands) != 1 + len(kinds):
        raise operands.unknown()
    sources = [operands.source(1 + i, kind) for i, kind in enumerate(kinds)]
    if len(sources) == 1:
        (x,) = sources
        return lambda lanes: write(lanes, function(x(lanes)))
    if len(sources) == 2:
        x, y = sources
        return lambda lanes: write(lanes, function(x(lanes), y(lanes)))
    x, y, z = sources
    return lambda lanes: write(lanes, function(x(lanes), y(lanes), z(lanes)))
