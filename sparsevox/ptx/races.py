"""Shadow memory: who last wrote and read each granule of a memory, and which accesses are not ordered.

Two accesses, one of them a write, are ordered within a thread, by `bar.sync` within a program, and by `bar.warp.sync`
within a warp; between programs by nothing. An epoch counts the barriers: the access that was executed first comes
before the other one if its program (or its warp) has passed a barrier since. So whether a race is found does not depend
on the schedule. Of each granule the last writers and readers are kept that are not ordered among themselves, as the
smallest group (thread, warp, program, launch) that holds all of them.
"""

import numpy as np

from sparsevox.ptx.findings import Findings
from sparsevox.ptx.parse import Instruction
from sparsevox.ptx.registers import Lanes, Value

RECORD = np.dtype(
    [
        *[("program", "i4"), ("thread", "i4")],  # program -1: none
        *[("epoch", "i4"), ("warp_epoch", "i4")],  # when it happened
        ("instruction", "i4"),
        ("scope", "i1"),  # the group that accessed: the thread, its warp, its program, all programs
        ("atomic", "?"),
    ]
)
THREAD, WARP, PROGRAM, LAUNCH = range(4)
WARP_SIZE = 32


def containing(records: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The smallest scope that holds both."""
    scope = np.where(records["thread"] == others["thread"], THREAD, WARP)
    scope = np.where(records["thread"] // WARP_SIZE == others["thread"] // WARP_SIZE, scope, PROGRAM)
    scope = np.where(records["program"] == others["program"], scope, LAUNCH)
    return np.maximum(scope, np.maximum(records["scope"], others["scope"]))


def unordered(past: np.ndarray, now: np.ndarray) -> np.ndarray:
    """True where a past access is not ordered before one now."""
    scope = np.maximum(past["scope"], now["scope"])
    ordered = (scope == THREAD) & (past["thread"] == now["thread"])
    warp = past["thread"] // WARP_SIZE == now["thread"] // WARP_SIZE
    ordered |= (scope <= WARP) & warp & (past["warp_epoch"] < now["warp_epoch"])
    ordered |= (scope <= PROGRAM) & (past["epoch"] < now["epoch"])
    ordered &= past["program"] == now["program"]
    return ~ordered & (past["program"] >= 0)


class Shadow:
    """The shadow of one memory.

    Attributes:
        writes, reads: One `RECORD` per granule.
        in_flight: Per granule 1 + the number of the instruction that fills it asynchronously, 0: none.
        in_use: Per granule 1 + the number of the instruction that reads it asynchronously, 0: none.
        unfenced: True for granules written through the generic proxy since the last proxy fence.
    """

    def __init__(self, granules: int, name: str, findings: Findings, instructions: list[Instruction]) -> None:
        self.writes, self.reads = np.zeros(granules, RECORD), np.zeros(granules, RECORD)
        self.writes["program"] = self.reads["program"] = -1
        self.in_flight, self.in_use = np.zeros(granules, np.int32), np.zeros(granules, np.int32)
        self.unfenced = np.zeros(granules, bool)
        self.name, self.findings, self.instructions = name, findings, instructions

    def access(
        self,
        lanes: Lanes,
        instruction: Instruction,
        granules: np.ndarray,
        scope: int = THREAD,
        atomic: bool = False,
    ) -> np.ndarray:
        """Records of accesses now, in the shape of the granules, [N, k]."""
        now = np.empty((len(granules), 1), RECORD)
        batch, threads = lanes.batch, lanes.threads
        now["program"][:, 0], now["thread"][:, 0] = batch.program_of[threads], batch.thread_of[threads]
        now["epoch"][:, 0], now["warp_epoch"][:, 0] = batch.epoch[threads], batch.warp_epoch[threads]
        now["instruction"], now["scope"], now["atomic"] = instruction.number, scope, atomic
        return now

    def read(
        self, lanes: Lanes, instruction: Instruction, granules: np.ndarray, scope: int = THREAD, atomic: bool = False
    ) -> None:
        """Record and check reads of granules int64 [N, k] by N threads. `scope`: the group that gets the values."""
        now = self.access(lanes, instruction, granules, scope, atomic)
        past = self.writes[granules]
        race = unordered(past, now)
        if atomic:
            race &= ~past["atomic"]
        if race.any():
            self.report(f"race in {self.name} memory: read after write", race, past, lanes, instruction)
        self.check_in_flight(lanes, instruction, granules)
        self.record(self.reads, granules, now)

    def write(
        self,
        lanes: Lanes,
        instruction: Instruction,
        granules: np.ndarray,
        same: np.ndarray,
        scope: int = THREAD,
        atomic: bool = False,
        proxy: bool = True,
    ) -> Value:
        """Record and check writes of granules int64 [N, k] by N threads.

        `same` [N] is True where the memory holds the value already, so that the order does not matter. Returns True [N]
        where another thread writes the granule in the same instruction. `proxy`: False if no proxy fence is needed.
        """
        now = self.access(lanes, instruction, granules, scope, atomic)
        for kind, records in (("write after write", self.writes), ("write after read", self.reads)):
            past = records[granules]
            race = unordered(past, now)
            if atomic:
                race &= ~past["atomic"]
            if race.any():
                for benign, those in ((False, race & ~same[:, None]), (True, race & same[:, None])):
                    if those.any():
                        title = f"race in {self.name} memory: {kind}" + " of the same value" * benign
                        self.report(title, those, past, lanes, instruction, benign)
        self.check_in_flight(lanes, instruction, granules)
        used = self.in_use[granules]
        if used.any():
            self.report_plain("write to shared memory that wgmma may still read", used.any(1), lanes, instruction)
        self.unfenced[granules] = proxy
        several: Value = self.record(self.writes, granules, now).any(1)
        return several

    def check_in_flight(self, lanes: Lanes, instruction: Instruction, granules: np.ndarray) -> None:
        """Report accesses to what a copy fills that was not waited for."""
        flight = self.in_flight[granules]
        if flight.any():
            kind = f"access to {self.name} memory that cp.async fills, before the wait"
            self.report_plain(kind, flight.any(1), lanes, instruction)

    def check_initialized(self, lanes: Lanes, instruction: Instruction, granules: np.ndarray) -> None:
        """Report reads of what was never written."""
        missing = (self.writes["program"][granules] < 0) & (self.in_flight[granules] == 0)
        if missing.any():
            self.report_plain(f"read of uninitialized {self.name} memory", missing.any(1), lanes, instruction)

    @staticmethod
    def record(records: np.ndarray, granules: np.ndarray, now: np.ndarray) -> np.ndarray:
        """Keep accesses. Returns True where another thread accesses the granule in the same instruction."""
        past = records[granules]
        now = np.broadcast_to(now, granules.shape)
        before = unordered(past, now)
        kept = now.copy()
        if before.any():
            kept["scope"] = np.where(before, containing(past, now), now["scope"])
        records[granules] = kept
        last = records[granules]
        several = (last["thread"] != now["thread"]) | (last["program"] != now["program"])
        if several.any():
            scope = np.maximum(containing(last, now), kept["scope"])
            for wider in (WARP, PROGRAM, LAUNCH):  # the widest one stays
                records["scope"][granules[scope == wider]] = wider
        return several

    def report(
        self,
        kind: str,
        race: np.ndarray,
        past: np.ndarray,
        lanes: Lanes,
        instruction: Instruction,
        benign: bool = False,
    ) -> None:
        """Report conflicts [N, k] with past accesses."""
        lane, part = np.argwhere(race)[0]
        other = past[lane, part]
        earlier = self.instructions[other["instruction"]]
        example = (
            f"{lanes.batch.name_of(lanes.threads[lane])}: {instruction.text}; after program {other['program']}, "
            f"thread {other['thread']}: {earlier.text} ({earlier.where})"
        )
        self.findings.add(kind, instruction.where, race.any(1).sum(), example, benign)

    def report_plain(
        self, kind: str, mask: np.ndarray, lanes: Lanes, instruction: Instruction, benign: bool = False
    ) -> None:
        """Report threads [N]."""
        lanes.batch.report(kind, instruction, lanes.threads[mask], benign)
