"""Asynchronous groups, and the copies of cp.async.

A copy is executed as late as the kernel allows: by the wait that covers it. Until then its target is in flight, and
each access to it is reported. From then on the copied bytes are a write of the thread that waited: PTX makes them
visible to it alone, and others, of its own warp too, need a barrier after the wait.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sparsevox.ptx.access import note_read
from sparsevox.ptx.forms import form
from sparsevox.ptx.parse import Instruction
from sparsevox.ptx.registers import Lanes, Operands, Step


class Pending(Protocol):
    """An operation that was issued and not waited for."""

    threads: np.ndarray
    groups: np.ndarray  # of each thread
    instruction: Instruction

    def part(self, mask: np.ndarray) -> "Pending":
        """The operation of some of its threads."""

    def finish(self, batch: Any) -> None:
        """Execute it."""


class Groups:
    """What the threads of a batch have issued, in groups that are waited for in order."""

    def __init__(self, threads: int) -> None:
        self.pending: list[Pending] = []
        self.closed = np.zeros(threads, np.int32)  # number of groups that each thread has committed

    def commit(self, lanes: Lanes) -> None:
        """Close the open group of these threads."""
        self.closed[lanes.threads] += 1

    def wait(self, lanes: Lanes, latest: int) -> None:
        """Finish all of these threads' closed groups but the latest ones; with -1 the open one, too."""
        limit = np.full(len(self.closed), np.iinfo(np.int32).min, np.int32)
        limit[lanes.threads] = self.closed[lanes.threads] - latest
        kept: list[Pending] = []
        for operation in self.pending:
            done = operation.groups < limit[operation.threads]
            count = np.count_nonzero(done)
            if count == 0:
                kept.append(operation)
            elif count == len(done):
                operation.finish(lanes.batch)
            else:
                operation.part(done).finish(lanes.batch)
                kept.append(operation.part(~done))
        self.pending = kept


@dataclass
class Copy:
    """Copies of `width` bytes to shared memory, of the first `sizes` of them from global memory, then zeros."""

    threads: np.ndarray
    groups: np.ndarray
    targets: np.ndarray  # offsets into shared memory
    sources: np.ndarray  # offsets into global memory
    sizes: np.ndarray
    width: int
    instruction: Instruction

    def part(self, mask: np.ndarray) -> "Copy":
        """The copies of some of the threads."""
        threads, groups, targets = self.threads[mask], self.groups[mask], self.targets[mask]
        return Copy(threads, groups, targets, self.sources[mask], self.sizes[mask], self.width, self.instruction)

    def finish(self, batch: Any) -> None:
        """Write the bytes, with zeros after those that are read."""
        words = self.width // 4
        values = np.zeros((len(self.threads), words), np.uint32)
        some = self.sizes > 0
        values[some] = batch.memory.vectors(4, words)[self.sources[some] // self.width].reshape(-1, words)
        short = some & (self.sizes < self.width)
        values.view(np.uint8)[short[:, None] & (np.arange(self.width) >= self.sizes[:, None])] = 0
        batch.shared.vectors(4, words)[self.targets // self.width] = values if words > 1 else values[:, 0]
        shadow = batch.shared.shadow
        if shadow is not None:
            lanes = Lanes(batch, self.threads)
            granules, _ = batch.shared.granules(lanes, self.targets, self.width)
            shadow.in_flight[granules] = 0
            shadow.record(shadow.writes, lanes, self.instruction, granules)


@form(r"cp\.async\.(?:ca|cg)\.shared(?:::cta)?\.global(?:\.L2::\w+)*")
def _copy(operands: Operands) -> Step:
    instruction = operands.instruction
    if len(operands) not in (3, 4):
        raise operands.unknown()
    width = operands.integer(instruction.operands[2])
    target, source = operands.address(0, shared=True), operands.address(1, shared=False)
    size_of = operands.source(3, "u32") if len(operands) == 4 else None

    def step(lanes: Lanes) -> None:
        batch = lanes.batch
        targets, good = batch.shared.resolve(lanes, target(lanes), width, instruction)
        if good is not None:
            if np.any(good):
                step(lanes.select(good))
            return
        sizes = (
            np.minimum(lanes.flat(size_of(lanes)), np.uint32(width)) if size_of else np.full(len(lanes.threads), width)
        )
        sizes = sizes.astype(np.int64)
        address = lanes.flat(source(lanes))
        sources = np.zeros(len(lanes.threads), np.int64)
        for size in np.unique(sizes[sizes > 0]):
            index = np.flatnonzero(sizes == size)
            those = Lanes(batch, lanes.threads[index])
            offset, legal = batch.memory.resolve(those, address[index], int(size), instruction, alignment=width)
            if legal is not None:
                sizes[index[~legal]] = 0
                index, offset = index[legal], offset[legal]
                those = Lanes(batch, lanes.threads[index])
            sources[index] = offset
            if len(index):
                note_read(batch.memory, those, instruction, offset, int(size))
        targets = lanes.flat(targets)
        if batch.shared.shadow is not None:
            granules, _ = batch.shared.granules(lanes, targets, width)
            same = np.zeros(len(granules), bool)
            batch.shared.shadow.write(lanes, instruction, granules, same, proxy=False)
            batch.shared.shadow.in_flight[granules] = instruction.number + 1
        threads = lanes.threads
        batch.copies.pending.append(
            Copy(threads, batch.copies.closed[threads], targets.copy(), sources, sizes, width, instruction)
        )

    return step


@form(r"cp\.async\.commit_group")
def _commit(operands: Operands) -> Step:
    return lambda lanes: lanes.batch.copies.commit(lanes)


@form(r"cp\.async\.wait_group", r"cp\.async\.wait_all")
def _wait(operands: Operands) -> Step:
    latest = operands.integer(operands.instruction.operands[0]) if len(operands) else -1
    return lambda lanes: lanes.batch.copies.wait(lanes, latest)
