"""Registers of all threads of a batch of programs, and how instructions read and write them.

A register is a NumPy scalar where all threads of all programs hold the same value, else an array that broadcasts to
[P, T] for P programs of T threads: [P, 1] for what depends on the program alone, [1, T] on the thread alone. Most
address arithmetic of a kernel therefore costs next to nothing, and no instruction needs to know.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from sparsevox.ptx.parse import BITS, Instruction, Kernel

DTYPES: dict[str, np.dtype[Any]] = {
    **{f"{kind}{bits}": np.dtype(f"u{bits // 8}") for kind in "ub" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"f{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
    "pred": np.dtype(bool),
    "bf16": np.dtype("u2"),
}
Value = Any  # a NumPy scalar or array
Reader = Callable[["Lanes"], Value]
Writer = Callable[["Lanes", Value], None]
Step = Callable[["Lanes"], None]


def where(condition: Value, x: Value, y: Value) -> Value:
    """`np.where`, but a scalar for scalars."""
    result: Value = np.where(condition, x, y)
    return result[()]


class _Indices(dict[tuple[int, ...], Any]):
    """Where a group of threads finds its values in a register, by the shape of the register."""

    def __init__(self, threads: np.ndarray, shape: tuple[int, int]) -> None:
        super().__init__({shape: threads})
        self.threads, self.width = threads, shape[1]

    def __missing__(self, shape: tuple[int, int]) -> Any:
        index = self.threads // self.width if shape[1] == 1 else self.threads % self.width
        self[shape] = index
        return index


class Lanes:
    """The threads that execute an instruction: all of the batch, in shape [P, T], or N of them, in shape [N].

    Attributes:
        batch: The `Batch` (of machine.py) they belong to.
        registers: Those of the batch.
        shape: [P, T] of the batch.
        threads: int64 [N] index of each thread in the batch.
        partial: True unless all threads of the batch execute.
    """

    __slots__ = ("_index", "batch", "partial", "registers", "shape", "threads")

    def __init__(self, batch: Any, threads: np.ndarray | None = None) -> None:
        self.batch, self.registers, self.shape = batch, batch.registers, batch.shape
        self.partial = threads is not None
        self.threads = batch.threads if threads is None else threads
        self._index = None if threads is None else _Indices(threads, batch.shape)

    def select(self, chosen: Value) -> "Lanes":
        """Those threads for which `chosen`, a bool per thread, is True."""
        flat = self.flat(chosen)
        return Lanes(self.batch, self.threads[flat] if self.partial else np.flatnonzero(flat))

    def take(self, value: Value) -> Value:
        """The values of a register, of any of its shapes, for these threads."""
        if self._index is None or value.ndim == 0:
            return value
        return value.ravel()[self._index[value.shape]]

    def put(self, number: int, value: Value) -> None:
        """Write a register of these threads; others keep theirs. `value` must be an array of its own."""
        if self._index is None:
            self.registers[number] = value
            return
        old = self.registers[number].view(value.dtype)
        if old.shape != self.shape or not (old.flags.c_contiguous and old.flags.writeable):
            old = np.array(np.broadcast_to(old, self.shape), order="C")
        old.reshape(-1)[self.threads] = value
        self.registers[number] = old

    def flat(self, value: Value) -> np.ndarray:
        """A value per thread, [N]."""
        if value.ndim == 1:
            return np.broadcast_to(value, self.threads.shape)
        if self.partial:
            return np.broadcast_to(value, self.threads.shape)
        return np.broadcast_to(value, self.shape).reshape(-1)

    def shaped(self, value: np.ndarray) -> np.ndarray:
        """[N, ...] as instructions expect it: [P, T, ...] if all threads of the batch execute."""
        return value if self.partial else value.reshape(self.shape + value.shape[1:])


class Operands:
    """The operands of one instruction, resolved when a kernel is read."""

    def __init__(self, kernel: Kernel, instruction: Instruction) -> None:
        self.kernel, self.instruction = kernel, instruction
        self.numbers = kernel.numbers

    def __len__(self) -> int:
        return len(self.instruction.operands)

    def unknown(self) -> NotImplementedError:
        """The error for a form that the interpreter does not know."""
        return NotImplementedError(f"line {self.instruction.line} of the PTX: {self.instruction.text}")

    def source(self, operand: int | str, kind: str) -> Reader:
        """A function that reads an operand (its index, or its text) as a type."""
        text = self.instruction.operands[operand] if isinstance(operand, int) else operand
        if kind == "pred" and text.startswith("!"):
            positive = self.source(text[1:], kind)
            return lambda lanes: ~positive(lanes)
        if text not in self.numbers:
            constant = self.constant(text, kind)
            return lambda lanes: constant
        number, dtype = self.numbers[text], DTYPES[kind]
        own = self.kernel.registers[text]
        if (own == "pred") != (kind == "pred") or BITS[own] < BITS[kind]:
            raise self.unknown()
        if BITS[own] > BITS[kind]:  # the low bits
            whole, low = DTYPES[f"u{BITS[own]}"], DTYPES[f"u{BITS[kind]}"]
            return lambda lanes: lanes.take(lanes.registers[number]).view(whole).astype(low).view(dtype)

        def read(lanes: Lanes) -> Value:
            value = lanes.registers[number]
            if value.dtype is not dtype:
                value = value.view(dtype)
            return lanes.take(value) if lanes.partial else value

        return read

    def constant(self, text: str, kind: str) -> Value:
        """A number, or the offset of a name in shared memory."""
        if kind == "pred":
            return np.bool_(int(text, 0) != 0)
        dtype, bits = DTYPES[kind], BITS[kind]
        if re.fullmatch(r"0[fFdD][0-9a-fA-F]+", text):
            return np.array(int(text[2:], 16), DTYPES[f"u{4 * len(text) - 8}"]).view(dtype)[()]
        if re.fullmatch(r"-?\d+\.\d*", text) and dtype.kind == "f":
            return dtype.type(float(text))
        number = self.kernel.shared[text] if text in self.kernel.shared else self.integer(text)
        return np.array(number & ((1 << bits) - 1), DTYPES[f"u{bits}"]).view(dtype)[()]

    def integer(self, text: str) -> int:
        """An integer constant."""
        try:
            digits = text.rstrip("U")
            return int(digits, 8) if re.fullmatch(r"-?0[0-7]+", digits) else int(digits, 0)
        except ValueError:
            raise self.unknown() from None

    def is_constant(self, operand: int) -> bool:
        """True for a number, False for a register."""
        return self.instruction.operands[operand] not in self.numbers

    def target(self, operand: int | str, bits: int) -> Writer:
        """A function that writes a result of `bits` bits (1: bool) to a register of as many."""
        text = self.instruction.operands[operand] if isinstance(operand, int) else operand
        if text == "_":
            return lambda lanes, value: None
        if text not in self.numbers or BITS[self.kernel.registers[text]] != bits:
            raise self.unknown()
        number = self.numbers[text]

        def write(lanes: Lanes, value: Value) -> None:
            if lanes.partial:
                lanes.put(number, value)
            else:
                lanes.registers[number] = value

        return write

    def widened_target(self, operand: int | str, kind: str) -> Writer:
        """A function that writes a value of a type to a register of as many bits or more, extended by its sign."""
        text = self.instruction.operands[operand] if isinstance(operand, int) else operand
        if text not in self.numbers:
            return self.target(text, BITS[kind])
        bits = BITS[self.kernel.registers[text]]
        write = self.target(text, bits)
        if bits == BITS[kind]:
            return write
        if bits < BITS[kind] or DTYPES[kind].kind == "f":
            raise self.unknown()
        wide = DTYPES[f"{'s' if kind[0] == 's' else 'u'}{bits}"]
        return lambda lanes, value: write(lanes, value.astype(wide))

    def list(self, operand: int) -> list[str]:
        """The elements of `{a, b}`, or the operand itself."""
        text = self.instruction.operands[operand]
        return [part.strip() for part in text[1:-1].split(",")] if text.startswith("{") else [text]

    def address(self, operand: int, shared: bool) -> Reader:
        """A function that reads `[register + offset]` as int64."""
        text = self.instruction.operands[operand]
        if not text.startswith("["):
            raise self.unknown()
        base, offset = None, 0
        for sign, part in re.findall(r"([+-]?)\s*([%\w$]+)", text[1:-1]):
            if part in self.numbers:
                if base or sign == "-":
                    raise self.unknown()
                base = part
            elif part in self.kernel.shared:
                offset += self.kernel.shared[part]
            else:
                offset += -self.integer(part) if sign == "-" else self.integer(part)
        constant = np.int64(offset)
        if base is None:
            return lambda lanes: constant
        if BITS[self.kernel.registers[base]] == 64:
            read = self.source(base, "s64")
        elif shared:
            narrow = self.source(base, "u32")
            read = lambda lanes: narrow(lanes).astype(np.int64)  # noqa: E731
        else:
            raise self.unknown()
        return read if offset == 0 else lambda lanes: read(lanes) + constant
