"""Measure contenders side by side: check that they agree, then let them run in turn, round by round.

A `Case` names an operation and a scene; its `prepare` turns the scene into `Contender`s. Nothing is timed before the
results of all contenders have been compared. Timings are medians over rounds A B A B ..., so that a machine that slows
down slows all of them down. On the CPU the timer and the statistics are pytest-benchmark's, on a GPU the timings are
`triton.testing.do_bench`'s. Memory is measured in a call of its own, which is not timed.
"""

import contextlib
import ctypes
import gc
import math
import operator
import statistics
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.report import Row, here

SAMPLE_SECONDS = 0.01  # a CPU sample repeats a short call for at least this long
RELATIONS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}


class WrongAnswer(Exception):
    """Two contenders disagree, or one hands out what it had at hand: there is nothing to time."""


@dataclass(frozen=True)
class Contender:
    """One way to do the work. Ours comes first in a case; the fastest of those marked so is the baseline."""

    name: str
    run: Callable[[], Any]
    view: Callable[[Any], Tensor]  # the result in a form that all contenders share
    baseline: bool = False
    nbytes: Callable[[Any], int] | None = None  # of a result that is kept
    taps: Callable[[Any], float] | None = None  # of a plan: the mean number that a tile of 128 rows executes
    beside: "Wanted | None" = (
        None  # what ours has to reach beside this one: its "speed" or "memory", this one's being 1
    )
    max_threads: int | None = None  # it is right with no more


@dataclass(frozen=True)
class Wanted:
    """What our contender has to reach: a bound on a column of its row, or beside another one (`Contender.beside`)."""

    column: str
    relation: str
    bound: float

    def __str__(self) -> str:
        return f"{self.column} {self.relation} {self.bound:g}"

    def met(self, value: float | None) -> bool | None:
        """Whether a value is on the right side; None if there is none."""
        return None if value is None else RELATIONS[self.relation](value, self.bound)


def quotient(column: str, ours: Row, theirs: Row) -> float | None:
    """Our speed, or the memory that a call of ours needs, where that of another contender is 1."""
    if column == "speed":
        return theirs.median_ms / ours.median_ms
    return ours.peak_mb / theirs.peak_mb if ours.peak_mb is not None and theirs.peak_mb else None


def same(ours: Tensor, theirs: Tensor) -> bool:
    """Equal integers, or floating-point numbers that agree to 1e-6."""
    if ours.shape != theirs.shape:
        return False
    if ours.is_floating_point():
        return torch.allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    return torch.equal(ours, theirs)


def close(tolerance: float) -> Callable[[Tensor, Tensor], bool]:
    """Whether the largest difference of sums in another order is within so much of the largest number."""

    def agree(ours: Tensor, theirs: Tensor) -> bool:
        if ours.shape != theirs.shape:
            return False
        return bool((ours.double() - theirs.double()).abs().amax() <= tolerance * theirs.double().abs().amax())

    return agree


@dataclass(frozen=True)
class Case:
    """An operation on a scene of `bench.scenes`."""

    op: str
    scene: str
    size: int
    prepare: Callable[[Tensor], Sequence[Contender]]  # of the scene's coordinates
    wanted: Wanted | None = None
    agree: Callable[[Tensor, Tensor], bool] = same  # the views of the first contender and of another
    dtype: str = "int32"
    rounds: int | None = None  # at most, where a call takes seconds


@dataclass(frozen=True)
class Sample:
    """What was measured of one contender."""

    median_ms: float
    iqr_ms: float
    calls: int  # a round
    peak_mb: float | None


def measure(case: Case, coords: Tensor, threads: Sequence[int], rounds: int, quick: bool, date: str) -> list[Row]:
    """Rows of a case, one a contender and number of threads. Raises WrongAnswer where the contenders disagree.

    Contenders that are wrong with a number of threads are left out there.
    """
    torch.set_num_threads(threads[0])
    everyone = case.prepare(coords)
    rounds = min(rounds, case.rounds or rounds)
    rows = []
    for count in threads:
        torch.set_num_threads(count)
        contenders = [c for c in everyone if c.max_threads is None or count <= c.max_threads]
        kept = check(case, contenders)
        samples = (time_cpu if coords.device.type == "cpu" else time_gpu)(contenders, rounds)
        times = [s.median_ms for s, c in zip(samples, contenders, strict=True) if c.baseline]
        environment = here(coords.device, count, date)
        some = []
        for contender, sample, (nbytes, taps) in zip(contenders, samples, kept, strict=True):
            row = Row(
                op=case.op,
                scene=f"{case.scene} {case.size}",
                voxels=len(coords),
                dtype=case.dtype,
                contender=contender.name,
                **asdict(sample),
                ratio=min(times) / sample.median_ms if times else None,
                stored_mb=None if nbytes is None else nbytes / 1e6,
                bytes_per_voxel=None if nbytes is None else nbytes / max(len(coords), 1),
                rounds=rounds,
                quick=quick,
                taps=taps,
                **asdict(environment),
            )
            some.append(row)
        if not quick and coords.device.type == "cpu":  # what is wanted is wanted of a CPU
            judge(case, contenders, some)
        rows += some
    return rows


def judge(case: Case, contenders: Sequence[Contender], rows: Sequence[Row]) -> None:
    """Write into rows what is wanted, and whether it is met."""
    ours = rows[0]
    if case.wanted:
        ours.wanted, ours.met = str(case.wanted), case.wanted.met(getattr(ours, case.wanted.column))
    for contender, row in zip(contenders, rows, strict=True):
        if contender.beside:
            row.wanted = f"{ours.contender}: {contender.beside}"
            row.met = contender.beside.met(quotient(contender.beside.column, ours, row))


def check(case: Case, contenders: Sequence[Contender]) -> list[tuple[int | None, float | None]]:
    """Run every contender once and compare the results; return the bytes and taps of each, where these are told.

    A result must die with its last user: one that is remembered would be handed out again, and that would be timed.
    """
    first: Tensor | None = None
    kept = []
    for contender in contenders:
        result = contender.run()
        nbytes = contender.nbytes(result) if contender.nbytes else None
        kept.append((nbytes, contender.taps(result) if contender.taps else None))
        view = contender.view(result).clone().cpu()
        first = view if first is None else first
        if not case.agree(first, view):
            names = f"{contender.name} and {contenders[0].name}"
            raise WrongAnswer(f"{case.op} on {case.scene} {case.size}: {names} differ")
        alive = None if isinstance(result, (tuple, list)) else weakref.ref(result)
        del result
        gc.collect()
        if alive is not None and alive() is not None:
            raise WrongAnswer(f"{case.op} on {case.scene} {case.size}: {contender.name} remembers its result")
    return kept


def time_cpu(contenders: Sequence[Contender], rounds: int) -> list[Sample]:
    """Samples on the CPU. A result dies inside its round, so that no later call can be handed the same one."""
    from pytest_benchmark.stats import Stats
    from pytest_benchmark.timers import default_timer  # type: ignore[attr-defined]

    def clock(run: Callable[[], Any], calls: int) -> float:
        start = default_timer()
        for _ in range(calls):
            run()
        return float(default_timer() - start) / calls

    peaks = [peak_mb_cpu(c.run) for c in contenders]
    calls = [max(1, math.ceil(SAMPLE_SECONDS / max(clock(c.run, 1), 1e-6))) for c in contenders]
    stats: list[Any] = [Stats() for _ in contenders]
    with no_garbage_collector():
        for _ in range(rounds):
            for contender, repeats, stat in zip(contenders, calls, stats, strict=True):
                stat.update(1e3 * clock(contender.run, repeats))
    return [Sample(s.median, s.iqr, n, peak) for s, n, peak in zip(stats, calls, peaks, strict=True)]


def time_gpu(contenders: Sequence[Contender], rounds: int) -> list[Sample]:
    """Samples on a GPU: the quartiles that `do_bench` finds in every round, and their medians over the rounds."""
    from triton.testing import do_bench

    quartiles: list[list[Sequence[float]]] = [[] for _ in contenders]
    peaks = [peak_mb_gpu(c.run) for c in contenders]
    with no_garbage_collector():
        for _ in range(rounds):
            for contender, found in zip(contenders, quartiles, strict=True):
                found.append(do_bench(contender.run, warmup=5, rep=20, quantiles=(0.25, 0.5, 0.75)))
    samples = []
    for found, peak in zip(quartiles, peaks, strict=True):
        low, median, high = (statistics.median(q) for q in zip(*found, strict=True))
        samples.append(Sample(median, high - low, 1, peak))
    return samples


@contextlib.contextmanager
def no_garbage_collector() -> Iterator[None]:
    """Collect now, and not while something is measured."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def peak_mb_cpu(run: Callable[[], Any]) -> float | None:
    """How far the resident memory rises during a call, in MB; None where the kernel does not tell."""
    status, references = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not (status.exists() and references.exists()):
        return None

    def kilobytes(field: str) -> int:
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))

    gc.collect()
    with contextlib.suppress(AttributeError):
        # Otherwise the call could live on what others have freed, and nothing would rise.
        ctypes.CDLL(None).malloc_trim(0)
    try:
        references.write_text("5")  # sets the high-water mark back to the current size
    except OSError:
        return None
    before = kilobytes("VmRSS")
    run()
    return max(0, kilobytes("VmHWM") - before) * 1024 / 1e6


def peak_mb_gpu(run: Callable[[], Any]) -> float:
    """How far the memory that torch has allocated on the GPU rises during a call, in MB."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6
