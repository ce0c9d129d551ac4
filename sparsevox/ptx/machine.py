"""Running a kernel: programs in batches, threads by basic blocks, barriers as epochs."""

import re
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch

from sparsevox.ptx import access, conversions, copies, floats, integers, tensor_cores, warp  # noqa: F401  (register forms)
from sparsevox.ptx.findings import Finding, Findings, KernelError
from sparsevox.ptx.forms import guard, make_step
from sparsevox.ptx.memory import GlobalMemory, SharedMemory, parameter_value
from sparsevox.ptx.parse import BITS, ENDS_BLOCK, SPECIAL, Instruction, Kernel
from sparsevox.ptx.races import WARP_SIZE
from sparsevox.ptx.reach import reach
from sparsevox.ptx.registers import Lanes, Operands, Reader, Step, Value
from sparsevox.ptx.warp_groups import Products, registers_of, watch

BATCH_THREADS = 1 << 14
STEP_LIMIT = 200_000


class Program(Kernel):
    """The text of a compiled kernel, ready to run.

    Args:
        text: A PTX module with one kernel, with threads in one dimension.

    Raises:
        NotImplementedError: For an instruction that the interpreter does not know. It names the line of the text.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        if self.threads % WARP_SIZE:
            raise NotImplementedError(f"{self.threads} threads, which fill no whole number of warps")
        self.reach = reach(self)
        self.steps: list[list[Step]] = []  # of each block, without the instruction that ends it
        self.ends: list[Instruction | None] = []
        self.guards: list[Reader | None] = []
        watched = registers_of(self)  # of wgmma
        for first, last in self.blocks:
            end = self.instructions[last - 1] if last > first else None
            if end and end.opcode not in ENDS_BLOCK and end.name not in ENDS_BLOCK:
                end = None
            body = self.instructions[first : last - 1 if end else last]
            self.steps.append([watch(self, instruction, make_step(self, instruction), watched) for instruction in body])
            self.ends.append(end)
            self.guards.append(guard(Operands(self, end)) if end and end.guard else None)
            if end:
                self._check_end(end)
        self.visited: set[int] = set()  # blocks that any thread has executed, in any launch
        self.unit = 128 if any(i.opcode == "wgmma" for i in self.instructions) else WARP_SIZE  # what is scheduled
        self.granules = {space: self._granule(space) for space in ("global", "shared")}

    def _check_end(self, end: Instruction) -> None:
        """Refuse forms of control flow that the machine does not execute."""
        barrier = end.opcode in ("bar", "barrier")
        if end.name not in {"bra", "bra.uni", "ret", "exit", *ENDS_BLOCK} or (barrier and end.operands != ("0",)):
            raise Operands(self, end).unknown()
        if end.opcode == "bra" and end.operands[0] not in self.targets:
            raise Operands(self, end).unknown()

    def _granule(self, space: str) -> int:
        """The smallest access to a memory in bytes."""
        widths = [16]
        for instruction in self.instructions:
            found = re.search(rf"\.{space}\b.*?(?:\.v(\d))?\.[busf](\d+)$", instruction.name)
            if instruction.name.startswith(("cp.async.ca", "cp.async.cg")):
                widths.append(int(instruction.operands[2], 0))
            elif found and "matrix" not in instruction.opcode:  # of which each row has 16 bytes
                widths.append(int(found[1] or 1) * int(found[2]) // 8)
        return min(widths)


class Batch:
    """Programs that run together.

    Attributes:
        shape: [P, T], programs and threads per program.
        threads: int64 [P * T] index of each thread.
        owner: int64 [P * T], program << 32 | thread within the program.
        when: int64 [P * T], barriers of the program << 32 | barriers of the warp that each thread has passed.
        untracked: Instructions whose accesses cannot race.
    """

    def __init__(self, machine: "Machine", programs: np.ndarray) -> None:
        self.machine, self.programs = machine, programs
        self.parameters, self.untracked = machine.parameters, machine.untracked
        program = machine.program
        self.shape = len(programs), program.threads
        n = prod(self.shape)
        self.threads = np.arange(n)
        self.owner = (programs.astype(np.int64)[:, None] << 32 | np.arange(program.threads)).reshape(-1)
        self.when = np.zeros(n, np.int64)
        self.registers = self._special() + [
            np.False_
            if kind == "pred"
            else np.array(0xDEADBEEFDEADBEEF & ((1 << BITS[kind]) - 1), f"u{BITS[kind] // 8}")[()]
            for kind in list(program.registers.values())[len(SPECIAL) :]
        ]
        self.products: Products | None = None  # of wgmma, made when the first one is issued
        self.memory = machine.memory
        self.copies = copies.Groups(n)
        self.shared = SharedMemory(
            len(programs),
            machine.shared_bytes,
            program.granules["shared"],
            machine.checked,
            machine._findings,
            program.instructions,
        )

    def _special(self) -> list[Any]:
        """Values of the registers of `SPECIAL`."""
        threads = self.machine.program.threads
        thread = np.arange(threads, dtype=np.uint32)[None]
        grid = self.machine.grid
        x, y, z = np.unravel_index(self.programs, grid, order="F")
        values: dict[str, Value] = {
            f"%ctaid.{axis}": at.astype(np.uint32)[:, None] for axis, at in zip("xyz", (x, y, z), strict=True)
        }
        values |= {f"%nctaid.{axis}": np.uint32(n) for axis, n in zip("xyz", grid, strict=True)}
        values |= {"%tid.x": thread, "%laneid": thread % np.uint32(32), "%warpid": thread // np.uint32(32)}
        values |= {"%ntid.x": np.uint32(threads), "%ntid.y": np.uint32(1), "%ntid.z": np.uint32(1)}
        return [values.get(name, np.uint32(0)) for name in SPECIAL]

    def name_of(self, thread: int) -> str:
        """Words for a thread."""
        return "program {}, thread {}".format(*divmod(int(self.owner[thread]), 1 << 32))

    def report(self, kind: str, instruction: Instruction, threads: np.ndarray, benign: bool = False) -> None:
        """Report a violation by threads of this batch."""
        example = f"{self.name_of(threads[0])}: {instruction.text}"
        self.machine._findings.add(kind, instruction.where, len(threads), example, benign)

    def shuffled(self, n: int) -> np.ndarray:
        """The order in which n threads take effect."""
        return np.arange(n) if self.machine.random is None else self.machine.random.permutation(n)


class Machine:
    """One launch of a program.

    Args:
        program: The kernel.
        arguments: CPU tensors and numbers, in the order of the parameters. Parameters without one are null pointers.
            Tensors are read and written in place.
        programs: Number of programs, or of programs per axis.
        shared_bytes: Bytes of shared memory per program.
        seed: Of the random schedule; None: programs and threads in a fixed order.
        checked: False: report bad addresses only, not races and uninitialized memory.
        only: Programs to run; None: all.
    """

    def __init__(
        self,
        program: Program,
        arguments: Sequence[Any],
        *,
        programs: int | Sequence[int],
        shared_bytes: int = 0,
        seed: int | None = None,
        checked: bool = True,
        only: Sequence[int] | None = None,
    ) -> None:
        if len(arguments) > len(program.parameters):
            raise ValueError(f"{program.name} has {len(program.parameters)} parameters, got {len(arguments)} arguments")
        self.program, self.checked = program, checked
        sizes = (programs,) if isinstance(programs, int) else tuple(programs)
        self.grid = sizes + (1,) * (3 - len(sizes))
        self.shared_bytes = max(shared_bytes, program.static_shared)
        self.random = None if seed is None else np.random.default_rng(seed)
        self.only = np.arange(prod(self.grid)) if only is None else np.array(sorted(set(only)))
        padded = [*arguments, *[None] * (len(program.parameters) - len(arguments))]
        self.parameters = [
            parameter_value(argument, parameter.type)
            for argument, parameter in zip(padded, program.parameters, strict=True)
        ]
        self._findings = Findings(program.name)
        tensors = [argument if isinstance(argument, torch.Tensor) else None for argument in padded]
        for each in tensors:
            if each is not None and each.device.type != "cpu":
                raise ValueError(f"the interpreter of PTX expects CPU tensors, got one on {each.device}")
        self.memory = GlobalMemory(
            tensors,
            program.reach.of,
            program.reach.written,
            program.granules["global"],
            checked,
            self._findings,
            program.instructions,
        )
        storages = {
            number: tensor.untyped_storage().data_ptr() for number, tensor in enumerate(tensors) if tensor is not None
        }
        written = {storages[number] for number in program.reach.written if number in storages}
        self.untracked = {
            number
            for number, parameters in program.reach.of.items()
            if not any(storages.get(parameter) in written for parameter in parameters)
        }

    @property
    def findings(self) -> list[Finding]:
        """What was found."""
        return list(self._findings)

    def run(self) -> "Machine":
        """Run the programs to their ends. Returns the machine itself.

        Raises:
            KernelError: If threads go on forever.
        """
        programs = self.only if self.random is None else self.random.permutation(self.only)
        n = max(1, BATCH_THREADS // self.program.threads)
        with np.errstate(all="ignore"):
            for first in range(0, len(programs), n):
                Schedule(Batch(self, programs[first : first + n])).run()
        return self


class Schedule:
    """Which threads of a batch run next. Threads that wait or have ended do not.

    The runnable threads at the lowest block run first, which brings together again what a branch parted: the
    compilers number the blocks so. With a seed, the warps at a random block run, or a random half of them.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch, self.program = batch, batch.machine.program
        n = len(batch.threads)
        self.end = len(self.program.blocks)
        self.block = np.zeros(n, np.int32)  # of each thread; `end`: it has ended
        self.waits = np.zeros(n, bool)
        self.everyone = Lanes(batch)

    def run(self) -> None:
        """Run all threads to their ends."""
        for _ in range(STEP_LIMIT):
            runnable = ~self.waits & (self.block < self.end)
            if runnable.any():
                self._execute(*self._choose(runnable))
            elif self.waits.any():
                self._release()
            else:
                for copy in self.batch.copies.pending:
                    self.batch.report("cp.async is never waited for", copy.instruction, copy.threads)
                return
        raise KernelError(f"{self.program.name}: threads still run after {STEP_LIMIT} steps")

    def _choose(self, runnable: np.ndarray) -> tuple[int, Lanes]:
        random = self.batch.machine.random
        block = np.where(runnable, self.block, self.end)
        lowest = block.min()
        active = block == lowest
        if random is not None:
            unit = self.program.unit
            lowest_of = block.reshape(-1, unit).min(1)
            blocks = np.unique(lowest_of[lowest_of < self.end])
            lowest = blocks[random.integers(len(blocks))]
            chosen = np.flatnonzero(lowest_of == lowest)
            if len(chosen) > 1 and random.random() < 0.25:
                chosen = random.permutation(chosen)[: len(chosen) // 2]
            units = np.zeros(len(lowest_of), bool)
            units[chosen] = True
            active = (block == lowest) & np.repeat(units, unit)
        lanes = self.everyone if active.all() else Lanes(self.batch, np.flatnonzero(active))
        return int(lowest), lanes

    def _execute(self, block: int, lanes: Lanes) -> None:
        self.program.visited.add(block)
        for step in self.program.steps[block]:
            step(lanes)
        end, read = self.program.ends[block], self.program.guards[block]
        taken = lanes.threads
        self.block[taken] = block + 1
        if end is None:
            return
        if read is not None:
            taken = taken[lanes.flat(read(lanes))]
        if end.opcode == "bra":
            self.block[taken] = self.program.targets[end.operands[0]]
        elif end.opcode in ("ret", "exit"):
            self.block[taken] = self.end
        elif len(taken):
            self._arrive(taken, end)

    def _arrive(self, threads: np.ndarray, barrier: Instruction) -> None:
        """Let threads wait at a barrier."""
        self.waits[threads] = True
        warps = np.unique(threads // WARP_SIZE)
        missing = ~self.waits.reshape(-1, WARP_SIZE)[warps]
        if missing.any():
            away = (warps[:, None] * WARP_SIZE + np.arange(WARP_SIZE))[missing]
            self.batch.report("barrier without all threads of a warp", barrier, away)

    def _release(self) -> None:
        """Let all threads go on that wait at a barrier: no thread of the batch runs."""
        batch, threads = self.batch, self.batch.shape[1]
        waits = self.waits.reshape(-1, threads)
        block = np.where(waits, self.block.reshape(-1, threads), self.end)
        met: Value = waits.any(1)
        first = block.min(1, keepdims=True)
        for kind, those in (
            ("barrier after some threads have ended", ~waits & met[:, None]),
            ("threads of a program wait at different barriers", waits & (block != first)),
        ):
            if those.any():
                thread = np.flatnonzero(those)
                barrier = self.program.ends[int(first[thread[0] // threads, 0]) - 1]
                assert barrier
                batch.report(kind, barrier, thread)
        passed = np.repeat(met, threads)
        batch.when[passed] += (1 << 32) + 1
        self.waits[:] = False
