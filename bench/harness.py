"""Compare contenders: check that their results agree, then time them in turn, round by round.

A `Case` names an operation and a scene, and its `prepare` turns the scene into `Contender`s. Nothing is timed before
the results of all contenders have been compared. Timings are medians over rounds A B A B ..., so that a machine that
slows down affects all contenders. Timer and statistics are those of pytest-benchmark on the CPU, and
`triton.testing.do_bench` on a GPU. Memory is measured in a separate call, which is not timed.
"""

import contextlib
import ctypes
import gc
import operator
import resource
import statistics
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.report import Row, environment_of

SAMPLE_SECONDS = 0.01  # minimum duration of a CPU sample, which repeats a short call
RELATIONS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}


class WrongAnswer(Exception):
    """Two contenders disagree, or one returns a cached result, so there is nothing to time."""


class HostCalls(NamedTuple):
    """Number of calls that the host makes for one run of a contender."""

    launches: int  # of Triton kernels
    aten_calls: int  # of PyTorch's ops, without those that they call in turn


@dataclass(frozen=True)
class Contender:
    """An implementation of the operation of a case. sparsevox comes first; the fastest baseline defines the ratio."""

    name: str
    run: Callable[[], Any]
    view: Callable[[Any], Tensor]  # converts the result to a form that all contenders share
    baseline: bool = False
    nbytes: Callable[[Any], int] | None = None  # size of a result that is kept
    taps: Callable[[Any], float] | None = None  # for a plan: mean number of taps that a tile of 128 rows executes
    target: "Target | None" = None  # for the "speed", "time" or "memory" of sparsevox relative to this contender
    host: HostCalls | None = None
    max_threads: int | None = None  # largest number of threads with which it is correct


@dataclass(frozen=True)
class Target:
    """A bound that sparsevox has to meet, on a column of its row or relative to a contender (`Contender.target`)."""

    column: str
    relation: str
    bound: float

    def __str__(self) -> str:
        return f"{self.column} {self.relation} {self.bound:g}"

    def met(self, value: float | None) -> bool | None:
        """Check whether a value meets the bound. None if there is no value."""
        return None if value is None else RELATIONS[self.relation](value, self.bound)


def relative(column: str, ours: Row, theirs: Row) -> float | None:
    """Compute our speed, time or peak memory relative to another contender."""
    if column == "speed":
        return theirs.median_ms / ours.median_ms
    if column == "time":
        return ours.median_ms / theirs.median_ms
    return ours.peak_mb / theirs.peak_mb if ours.peak_mb is not None and theirs.peak_mb else None


def same(ours: Tensor, theirs: Tensor) -> bool:
    """Compare integers for equality, and floating-point numbers with a tolerance of 1e-6."""
    if ours.shape != theirs.shape:
        return False
    if ours.is_floating_point():
        return torch.allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    return torch.equal(ours, theirs)


def close(tolerance: float) -> Callable[[Tensor, Tensor], bool]:
    """Compare by the largest difference, relative to the largest value, for sums in a different order."""

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
    prepare: Callable[[Tensor], Sequence[Contender]]  # takes the coordinates of the scene
    target: Target | None = None
    agree: Callable[[Tensor, Tensor], bool] = same  # compares the views of the first and another contender
    dtype: str = "int32"
    rounds: int | None = None  # maximum number of rounds, for calls that take seconds
    timer: Callable[[], float] | None = None  # seconds, on the CPU; by default that of pytest-benchmark
    context: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext  # around all of the case


@dataclass(frozen=True)
class Sample:
    """Measurements of one contender."""

    median_ms: float
    iqr_ms: float
    calls: int  # per round
    peak_mb: float | None


def measure(case: Case, coords: Tensor, threads: Sequence[int], rounds: int, quick: bool, date: str) -> list[Row]:
    """Measure a case, with one row per contender and number of threads.

    Contenders that are not correct with a number of threads are left out.

    Raises:
        WrongAnswer: If contenders disagree.
    """
    with case.context():
        return _measure(case, coords, threads, min(rounds, case.rounds or rounds), quick, date)


def _measure(case: Case, coords: Tensor, threads: Sequence[int], rounds: int, quick: bool, date: str) -> list[Row]:
    torch.set_num_threads(threads[0])
    everyone = case.prepare(coords)
    rows = []
    for count in threads:
        torch.set_num_threads(count)
        contenders = [c for c in everyone if c.max_threads is None or count <= c.max_threads]
        kept = check_results(case, contenders)
        on_cpu = coords.device.type == "cpu"
        samples = time_cpu(contenders, rounds, case.timer) if on_cpu else time_gpu(contenders, rounds)
        times = [s.median_ms for s, c in zip(samples, contenders, strict=True) if c.baseline]
        environment = environment_of(coords.device, count, date)
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
                **(contender.host._asdict() if contender.host else {}),
                **asdict(environment),
            )
            some.append(row)
        if not quick and on_cpu:  # targets are for CPUs
            check_targets(case, contenders, some)
        rows += some
    return rows


def check_targets(case: Case, contenders: Sequence[Contender], rows: Sequence[Row]) -> None:
    """Fill in the targets of the rows, and whether they are met."""
    ours = rows[0]
    if case.target:
        ours.target, ours.met = str(case.target), case.target.met(getattr(ours, case.target.column))
    for contender, row in zip(contenders, rows, strict=True):
        if contender.target:
            row.target = f"{ours.contender}: {contender.target}"
            row.met = contender.target.met(relative(contender.target.column, ours, row))


def check_results(case: Case, contenders: Sequence[Contender]) -> list[tuple[int | None, float | None]]:
    """Run every contender once and compare the results. Returns bytes and taps of each, if it reports them.

    A result must be freed when it is no longer used: a contender that caches it would be timed for returning it.

    Raises:
        WrongAnswer: If contenders disagree, or one caches its result.
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
            raise WrongAnswer(f"{case.op} on {case.scene} {case.size}: {contender.name} caches its result")
    return kept


def time_cpu(contenders: Sequence[Contender], rounds: int, timer: Callable[[], float] | None = None) -> list[Sample]:
    """Time contenders on the CPU. Results are freed within their round, so that no call can reuse an earlier one."""
    from pytest_benchmark.stats import Stats
    from pytest_benchmark.timers import default_timer  # type: ignore[attr-defined]

    now = timer or default_timer

    def clock(run: Callable[[], Any], calls: int) -> float:
        start = now()
        for _ in range(calls):
            run()
        return float(now() - start) / calls

    def calls_of(run: Callable[[], Any]) -> int:
        """Find how many calls take long enough. The first calls are slower than later ones."""
        calls = 1
        while calls * clock(run, calls) < SAMPLE_SECONDS:
            calls *= 2
        return calls

    peaks = [peak_mb_cpu(c.run) for c in contenders]
    calls = [calls_of(c.run) for c in contenders]
    stats: list[Any] = [Stats() for _ in contenders]
    with no_garbage_collector():
        for _ in range(rounds):
            for contender, repeats, stat in zip(contenders, calls, stats, strict=True):
                stat.update(1e3 * clock(contender.run, repeats))
    return [Sample(s.median, s.iqr, n, peak) for s, n, peak in zip(stats, calls, peaks, strict=True)]


def time_gpu(contenders: Sequence[Contender], rounds: int) -> list[Sample]:
    """Time contenders on a GPU: medians over the rounds of the quartiles that `do_bench` returns."""
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
    """Collect garbage now, and disable the collector during measurements."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def peak_mb_cpu(run: Callable[[], Any]) -> float | None:
    """Measure by how many MB the resident memory rises during a call. None if the system does not report it."""
    status, references = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not (status.exists() and references.exists()):
        return None

    def kilobytes(field: str) -> int:
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))

    gc.collect()
    with contextlib.suppress(AttributeError):
        # Otherwise the call could reuse memory that others have freed, without a rise.
        ctypes.CDLL(None).malloc_trim(0)
    try:
        references.write_text("5")  # resets the high-water mark to the current size
    except OSError:
        return None
    before = kilobytes("VmRSS")
    run()
    return max(0, kilobytes("VmHWM") - before) * 1024 / 1e6


def peak_mb_gpu(run: Callable[[], Any]) -> float:
    """Measure by how many MB torch's allocations on the GPU rise during a call."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def process_peak(device: str) -> int:
    """Return the peak memory in bytes, of the process, or of torch's allocations on a GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
