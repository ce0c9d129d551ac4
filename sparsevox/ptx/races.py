"""Shadow memory: who last wrote and read each granule of a memory, and which accesses are not ordered.

Two accesses, one of them a write, are ordered within a thread, by `bar.sync` within a program, and by `bar.warp.sync`
within a warp; between programs by nothing. An epoch counts the barriers: the access that was executed first comes
before the other one if its program (or its warp) has passed a barrier since. So whether a race is found does not depend
on the schedule. Of each granule the last writers and readers are kept that are not ordered among themselves, as the
smallest group (thread, warp, program, launch) that holds all of them.
"""

from typing import NamedTuple

import numpy as np

from sparsevox.ptx.findings import Findings
from sparsevox.ptx.parse import Instruction
from sparsevox.ptx.registers import Lanes, Value

WARP_SIZE = 32
THREAD, WARP, PROGRAM, LAUNCH = range(4)  # the scope of an access: who took part in it
LOW = (1 << 32) - 1


class Access(NamedTuple):
    """Accesses of granules. Its arrays broadcast to [N, k], for k granules of each of N threads.

    Attributes:
        owner: int64, program << 32 | thread; -1: none.
        when: int64, epoch << 32 | epoch of the warp.
        how: int32, instruction << 3 | scope << 1 | 1 for an atomic.
    """

    owner: np.ndarray
    when: np.ndarray
    how: np.ndarray

    @property
    def scope(self) -> np.ndarray:
        """The group that accessed: a thread, its warp, its program, several programs."""
        return self.how >> 1 & 3

    @property
    def atomic(self) -> np.ndarray:
        """True for atomics."""
        return self.how & 1 == 1

    def within(self, scope: np.ndarray) -> "Access":
        """The same accesses by larger groups."""
        return self._replace(how=self.how & ~np.int32(6) | scope.astype(np.int32) << 1)


def containing(owner: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The smallest scope that holds two threads."""
    apart = owner ^ other
    scope = np.where(apart == 0, THREAD, WARP)
    scope = np.where(apart >> 5 == 0, scope, PROGRAM)
    return np.where(apart >> 32 == 0, scope, LAUNCH)


def unordered(past: Access, now: Access) -> np.ndarray:
    """True where a past access is not ordered before one now."""
    scope, apart = np.maximum(past.scope, now.scope), past.owner ^ now.owner
    ordered = (apart == 0) & (scope == THREAD)
    ordered |= (apart >> 5 == 0) & (scope <= WARP) & (past.when & LOW < now.when & LOW)
    ordered |= (apart >> 32 == 0) & (scope <= PROGRAM) & (past.when >> 32 < now.when >> 32)
    return ~ordered & (past.owner >= 0)


class History:
    """The last access of each granule, or the last ones that are not ordered among themselves, as one."""

    def __init__(self, granules: int, private: bool) -> None:
        self.owner, self.when = np.full(granules, -1, np.int64), np.full(granules, -1, np.int64)
        self.how = np.zeros(granules, np.int32)
        self.private = private  # no program reaches the granules of another one

    def __getitem__(self, granules: np.ndarray) -> Access:
        return Access(self.owner[granules], self.when[granules], self.how[granules])

    def conflicts(self, granules: np.ndarray, now: Access) -> np.ndarray | None:
        """Which accesses now, [N, k], are not ordered after the last one; None if all are."""
        # Mostly a barrier has passed, or there was no access.
        if np.all(self.when[granules] < (now.when & ~LOW if self.private else 0)):
            return None
        result = unordered(self[granules], now)
        return result if result.any() else None

    def record(self, granules: np.ndarray, now: Access, conflicts: np.ndarray | None) -> np.ndarray:
        """Keep accesses. Returns True [N, k] where another thread accesses the granule in the same instruction."""
        if conflicts is not None:
            past = self[granules]
            scope = np.maximum(np.maximum(containing(past.owner, now.owner), past.scope), now.scope)
            now = now.within(np.where(conflicts, scope, now.scope))
        self.owner[granules], self.when[granules], self.how[granules] = now
        several = self.owner[granules] != now.owner
        if several.any():
            crowded = granules[several]
            owner, how = (np.broadcast_to(array, granules.shape)[several] for array in (now.owner, now.how))
            last = self[crowded]
            scope = np.maximum(np.maximum(containing(last.owner, owner), how >> 1 & 3), last.scope)
            for wider in (WARP, PROGRAM, LAUNCH):  # the widest one stays
                those = crowded[scope == wider]
                self.how[those] = self.how[those] & ~6 | wider << 1
        return several


class Shadow:
    """The shadow of one memory.

    Attributes:
        writes, reads: The last ones.
        in_flight: Per granule 1 + the number of the instruction that fills it asynchronously, 0: none.
        in_use: Per granule 1 + the number of the instruction that reads it asynchronously, 0: none.
        unfenced: True for granules written through the generic proxy since the last proxy fence.
    """

    def __init__(self, granules: int, name: str, findings: Findings, instructions: list[Instruction]) -> None:
        private = name == "shared"
        self.writes, self.reads = History(granules, private), History(granules, private)
        self.in_flight, self.in_use = np.zeros(granules, np.int32), np.zeros(granules, np.int32)
        self.unfenced = np.zeros(granules, bool)
        self.name, self.findings, self.instructions = name, findings, instructions

    def access(self, lanes: Lanes, instruction: Instruction, scope: int = THREAD, atomic: bool = False) -> Access:
        """The accesses of an instruction now, [N, 1]."""
        owner, when = lanes.batch.owner, lanes.batch.when
        if lanes.partial:
            owner, when = owner[lanes.threads], when[lanes.threads]
        how = np.full((1, 1), instruction.number << 3 | scope << 1 | atomic, np.int32)
        return Access(owner[:, None], when[:, None], how)

    def record(
        self, history: History, lanes: Lanes, instruction: Instruction, granules: np.ndarray, scope: int = THREAD
    ) -> None:
        """Keep accesses that were checked before."""
        now = self.access(lanes, instruction, scope)
        history.record(granules, now, history.conflicts(granules, now))

    def read(
        self, lanes: Lanes, instruction: Instruction, granules: np.ndarray, scope: int = THREAD, atomic: bool = False
    ) -> None:
        """Record and check reads of granules int64 [N, k] by N threads. `scope`: the group that gets the values."""
        now = self.access(lanes, instruction, scope, atomic)
        race = self.writes.conflicts(granules, now)
        if race is not None and atomic:
            race = race & ~self.writes[granules].atomic
        if race is not None and race.any():
            title = f"race in {self.name} memory: read after write"
            self.report_race(title, race, self.writes[granules], lanes, instruction)
        self.check_in_flight(lanes, instruction, granules)
        self.reads.record(granules, now, self.reads.conflicts(granules, now))

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
        now = self.access(lanes, instruction, scope, atomic)
        before = self.writes.conflicts(granules, now)
        pairs = (("after write", self.writes, before), ("after read", self.reads, self.reads.conflicts(granules, now)))
        for kind, history, race in pairs:
            if race is None:
                continue
            past = history[granules]
            if atomic:
                race = race & ~past.atomic
            for benign, those in ((False, race & ~same[:, None]), (True, race & same[:, None])):
                if those.any():
                    title = f"race in {self.name} memory: write {kind}" + " of the same value" * benign
                    self.report_race(title, those, past, lanes, instruction, benign)
        self.check_in_flight(lanes, instruction, granules)
        used = self.in_use[granules]
        if used.any():
            self.report("write to shared memory that wgmma may still read", used.any(1), lanes, instruction)
        self.unfenced[granules] = proxy
        return self.writes.record(granules, now, before).any(1)

    def check_in_flight(self, lanes: Lanes, instruction: Instruction, granules: np.ndarray) -> None:
        """Report accesses to what a copy fills that was not waited for."""
        flight = self.in_flight[granules]
        if flight.any():
            kind = f"access to {self.name} memory that cp.async fills, before the wait"
            self.report(kind, flight.any(1), lanes, instruction)

    def check_initialized(self, lanes: Lanes, instruction: Instruction, granules: np.ndarray) -> None:
        """Report reads of what was never written."""
        missing = self.writes.owner[granules] < 0
        if missing.any():
            missing &= self.in_flight[granules] == 0
        if missing.any():
            self.report(f"read of uninitialized {self.name} memory", missing.any(1), lanes, instruction)

    def report_race(
        self, kind: str, race: np.ndarray, past: Access, lanes: Lanes, instruction: Instruction, benign: bool = False
    ) -> None:
        """Report conflicts [N, k] with past accesses."""
        lane, part = np.argwhere(race)[0]
        program, thread = divmod(int(past.owner[lane, part]), 1 << 32)
        earlier = self.instructions[past.how[lane, part] >> 3]
        example = (
            f"{lanes.batch.name_of(lanes.threads[lane])}: {instruction.text}; after program {program}, "
            f"thread {thread}: {earlier.text} ({earlier.where})"
        )
        self.findings.add(kind, instruction.where, race.any(1).sum(), example, benign)

    def report(self, kind: str, mask: np.ndarray, lanes: Lanes, instruction: Instruction) -> None:
        """Report threads [N]."""
        lanes.batch.report(kind, instruction, lanes.threads[mask])
