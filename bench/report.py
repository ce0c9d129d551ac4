"""Results: one `Row` per contender, appended to a CSV file, printed, and rendered for `bench/README.md`."""

import csv
import functools
import importlib
import platform
import subprocess
import sys
import typing
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

import sparsevox

KEPT = ("stored_mb", "bytes_per_voxel")
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass
class Environment:
    """Machine and versions of a measurement."""

    device: str
    threads: int
    date: str
    commit: str
    python: str
    torch: str
    triton: str
    numpy: str
    sparsevox: str


def environment_of(device: torch.device, threads: int, date: str) -> Environment:
    """Describe this process, for work on `device`."""
    versions = {name: _version(name) for name in ("torch", "triton", "numpy", "sparsevox")}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return Environment(name, threads, date, _commit(), platform.python_version(), **versions)


@dataclass
class Row(Environment):
    """Measurements of one contender in one case with one number of threads. MB are 10^6 bytes."""

    op: str
    scene: str
    voxels: int
    dtype: str
    contender: str
    median_ms: float
    iqr_ms: float
    ratio: float | None  # time of the fastest baseline in this run / time of this contender
    peak_mb: float | None  # peak memory of a call, on top of what was allocated before
    stored_mb: float | None  # size of the result
    bytes_per_voxel: float | None
    rounds: int
    calls: int
    quick: bool
    target: str = ""
    met: bool | None = None
    taps: float | None = None  # for a plan: mean number of taps that a tile of 128 rows executes
    launches: int | None = None  # for the time of the host: kernels of Triton that a call launches
    aten_calls: int | None = None  # for the time of the host and for training steps: ops of PyTorch that a call makes


def append(rows: Sequence[Row], path: Path) -> None:
    """Append rows to a CSV file, which is created with a header if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f.name for f in fields(Row)]
    with path.open("a+", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        file.seek(0)
        header = file.readline().strip()
        if not header:
            writer.writeheader()
        elif header != ",".join(names):
            raise ValueError(f"columns of {path} must be {','.join(names)}, got {header}; move the old file away")
        for r in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(r).items()})


def load(paths: Iterable[Path]) -> list[Row]:
    """Read the rows of CSV files, in order."""
    kinds = typing.get_type_hints(Row)
    rows = []
    for path in paths:
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                rows.append(Row(**{k: _parse(text, kinds[k]) for k, text in line.items()}))
    return rows


def describe(rows: Sequence[Row]) -> str:
    """Format the rows of one case as aligned text under a title."""
    first = rows[0]
    lines = [f"{first.op}: {first.scene}, {first.voxels:,} voxels, {first.dtype}"]
    for r in rows:
        parts = [f"  {r.contender:<30}{_threads(r):>10}{r.median_ms:>11.3f} ms +-{r.iqr_ms:>8.3f}"]
        parts.append(f"{_number(r.ratio, '.2f'):>8}x" if r.ratio is not None else " " * 9)
        parts.append(f"{_number(r.peak_mb, '.1f'):>9} MB peak")
        if r.stored_mb is not None:
            parts.append(f"{r.stored_mb:>8.2f} MB stored ={_number(r.bytes_per_voxel, '.2f'):>6} B/voxel")
        if r.taps is not None:
            parts.append(f"{r.taps:>8.2f} taps/tile")
        if r.launches is not None:
            parts.append(f"{r.launches:>4} launches{r.aten_calls:>4} ops of torch")
        elif r.aten_calls is not None:
            parts.append(f"{r.aten_calls:>8,} ops of torch")
        if r.target:
            parts.append(f"   {r.target}: {_verdict(r)}")
        lines.append("".join(parts))
    return "\n".join(lines)


def markdown(rows: Iterable[Row]) -> str:
    """Render tables of the latest full measurement of every case, one section per device."""
    cases: dict[tuple[str, ...], list[Row]] = {}
    for r in rows:
        # A case is replaced as a whole, because its ratios belong to one run. All rows of a run have the same date.
        run = cases.setdefault((r.device, _what(r), r.scene, str(r.threads)), [])
        if r.quick or (run and run[0].date > r.date):
            continue
        if run and run[0].date < r.date:
            run.clear()
        run.append(r)
    kept = [r for run in cases.values() for r in run]
    devices = dict.fromkeys(r.device for r in kept)
    return "\n\n".join(_section(device, [r for r in kept if r.device == device]) for device in devices)


def write_readme(path: Path, text: str) -> None:
    """Replace the text between the two markers of a README."""
    page = path.read_text()
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        counts = f"{page.count(BEGIN)} and {page.count(END)}"
        raise ValueError(f"{path} must contain {BEGIN!r} and {END!r} once each, got them {counts} times")
    head, rest = page.split(BEGIN)
    path.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")


def _section(device: str, everything: Sequence[Row]) -> str:
    rows = [r for r in everything if r.launches is None]
    counts = sorted({r.threads for r in rows})
    columns = [f"{_plural(n)}: ms (spread), ratio" for n in counts]
    lines = [
        f"### {device}",
        "",
        f"| operation | scene | voxels | contender | {' | '.join(columns)} | peak memory, MB | target |",
    ]
    lines.append("|---|---|--:|---|" + "--:|" * len(counts) + "--:|---|")
    groups: dict[tuple[str, str, str], dict[int, Row]] = {}
    for r in rows:
        groups.setdefault((_what(r), r.scene, r.contender), {})[r.threads] = r
    for (op, scene, contender), at in groups.items():
        first = at[min(at)]
        times = [_timing(at[n]) if n in at else "" for n in counts]
        cells = [
            op,
            scene,
            f"{first.voxels:,}",
            contender,
            *times,
            _number(first.peak_mb, ".1f"),
            _goal(first),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    kept = [at[min(at)] for at in groups.values() if at[min(at)].stored_mb is not None]
    if kept:
        lines += [
            "",
            "| stored memory | scene | voxels | contender | MB | bytes per voxel | target |",
            "|---|---|--:|---|--:|--:|---|",
        ]
    for r in kept:
        cells = [
            _what(r),
            r.scene,
            f"{r.voxels:,}",
            r.contender,
            _number(r.stored_mb, ".2f"),
            _number(r.bytes_per_voxel, ".2f"),
        ]
        lines.append(f"| {' | '.join(cells)} | {_goal(r) if r.target.startswith(KEPT) else ''} |")
    plans = [at[min(at)] for at in groups.values() if at[min(at)].taps is not None]
    if plans:
        lines += [
            "",
            "| taps per tile | scene | voxels | contender | taps |",
            "|---|---|--:|---|--:|",
        ]
    for r in plans:
        cells = [_what(r), r.scene, f"{r.voxels:,}", r.contender, _number(r.taps, ".2f")]
        lines.append(f"| {' | '.join(cells)} |")
    lines += _steps_table([at[min(at)] for at in groups.values() if at[min(at)].aten_calls is not None])
    lines += _host_table([r for r in everything if r.launches is not None])
    runs = sorted({f"{r.date}, commit {r.commit}" for r in everything})
    r = everything[-1]
    versions = f"Python {r.python}, torch {r.torch}, triton {r.triton}, numpy {r.numpy}, sparsevox {r.sparsevox}"
    counted = {row.rounds for row in everything}
    rounds = " to ".join(str(n) for n in sorted({min(counted), max(counted)}))
    return "\n".join([*lines, "", f"{versions}; median of {rounds} rounds. Runs: {'; '.join(runs)}."])


def _steps_table(rows: Sequence[Row]) -> list[str]:
    """Render the number of ops of PyTorch per training step."""
    if not rows:
        return []
    lines = ["", "| ops of torch per call | scene | voxels | contender | ops | target |", "|---|---|--:|---|--:|---|"]
    for r in rows:
        cells = [_what(r), r.scene, f"{r.voxels:,}", r.contender, f"{r.aten_calls:,}"]
        lines.append(f"| {' | '.join(cells)} | {_goal(r) if r.target.startswith('aten_calls') else ''} |")
    return lines


def _host_table(rows: Sequence[Row]) -> list[str]:
    """Render the time of the host per layer and phase, with that of the baseline in the same run."""
    if not rows:
        return []
    lines = [
        "",
        "| time of the host | sparsevox, us (spread) | torch, us (spread) | times torch | kernel launches | "
        "ops of torch | target |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    cases: dict[tuple[str, int], list[Row]] = {}
    for r in rows:
        cases.setdefault((r.op, r.threads), []).append(r)
    for ours, theirs in cases.values():
        cells = [
            ours.op.removeprefix("host: "),
            *(f"{1e3 * r.median_ms:.1f} ({1e3 * r.iqr_ms:.1f})" for r in (ours, theirs)),
            f"{ours.median_ms / theirs.median_ms:.2f}",
            *(f"{a} ({b})" if b else f"{a}" for a, b in ((ours.launches, 0), (ours.aten_calls, theirs.aten_calls))),
            _goal(theirs),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _what(r: Row) -> str:
    """Name the operation, with the dtype if it is not the usual one."""
    return f"{r.op}, {r.dtype}" if r.dtype in ("float16", "bfloat16", "tf32") else r.op


def _timing(r: Row) -> str:
    ratio = "" if r.ratio is None else f", {r.ratio:.2f}x"
    return f"{r.median_ms:.2f} ({r.iqr_ms:.2f}){ratio}"


def _goal(r: Row) -> str:
    return f"{r.target}: {_verdict(r)}" if r.target else ""


def _verdict(r: Row) -> str:
    return {True: "met", False: "MISSED", None: "not measured"}[r.met]


def _plural(threads: int) -> str:
    return f"{threads} thread{'s'[: threads != 1]}"


def _threads(r: Row) -> str:
    return _plural(r.threads)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _parse(text: str, kind: Any) -> Any:
    options = typing.get_args(kind) or (kind,)
    if type(None) in options and not text:
        return None
    return text == "True" if bool in options else options[0](text)


@functools.cache
def _version(name: str) -> str:
    try:
        return str(getattr(importlib.import_module(name), "__version__", "unknown"))
    except ImportError:
        return "none"


@functools.cache
def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if sys.platform == "linux" and cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@functools.cache
def _commit() -> str:
    def git(*arguments: str) -> str:
        where = ["git", "-C", str(Path(sparsevox.__file__).parent)]
        return subprocess.run([*where, *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        # Files that the benches write do not count as changes.
        code = [":(top)", ":(top,exclude)bench/results", ":(top,exclude)bench/README.md"]
        dirty = git("status", "--porcelain", "--", *code)
        return git("rev-parse", "--short=12", "HEAD") + "+dirty" * bool(dirty)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
