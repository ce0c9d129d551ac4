"""Training steps of the demo's networks, before and after a change: `python -m bench.steps --before DIR`.

DIR is a checkout of an earlier version. Each version runs in a process of its own, and the two take turns, step by
step, so that a machine that slows down affects both. A step is that of `bench.networks`. Times are CPU times of the
thread, which other processes do not lengthen. A call is one of an ATen operator by Python or by autograd, not by
another ATen operator; `CALLS` counts them in a small batch, where they take most of the time.
"""

import argparse
import datetime
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench import report, scenes, xcube
from bench.harness import Target, no_garbage_collector, peak_mb_cpu
from bench.networks import Network
from bench.report import Row

ROOT = Path(__file__).parents[1]
NETWORKS = ("vae-0", "denoiser-0", "vae-1", "denoiser-1")
CALLS = "calls"  # not a network of the demo, but a small problem of `bench.xcube`
TARGETS = {
    "vae-1": Target("ratio", ">=", 1.8),
    "denoiser-1": Target("ratio", ">=", 1.8),
    CALLS: Target("aten_calls", "<=", 9000),
}
WARMUP = 3  # steps, after which memory and caches have settled


class Version:
    """A process that runs the training steps of one network with the code of one checkout."""

    def __init__(self, root: Path, name: str) -> None:
        paths = os.pathsep.join(str(path) for path in (root, root / "models"))
        # The file of this version, so that both are measured in the same way; it imports the code of the checkout.
        command = [sys.executable, "-P", str(Path(__file__).resolve()), "--serve", name]
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process: Any = subprocess.Popen(command, cwd=root, env=environment, **pipes)  # type: ignore[call-overload]

    def ask(self, question: str) -> Any:
        """Have the process do something, and return its answer."""
        self._process.stdin.write(f"{question}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def answers(name: str) -> dict[str, Callable[[], Any]]:
    """Prepare the training step of a network, and return what a process can do with it by the question."""
    if name == CALLS:
        coords = scenes.scene("shell", 32)
        run, rows = xcube.training(coords, pieces=2, alone=True)[0].run, len(coords)
    else:
        work = Network("demo", name, torch.device("cpu")).training()
        run, rows = work.run, work.rows
    environment = asdict(report.environment_of(torch.device("cpu"), 1, ""))
    for _ in range(WARMUP):
        run()
    return {
        "describe": lambda: {"rows": rows, "environment": environment},
        "time": lambda: thread_seconds(run),
        "memory": lambda: peak_mb_cpu(run),
        "calls": lambda: aten_calls(run),
    }


def serve(name: str) -> None:
    """Answer questions on the standard input about the training step of a network."""
    torch.set_num_threads(1)
    known = answers(name)
    with no_garbage_collector():
        for line in sys.stdin:
            print(json.dumps(known[line.strip()]()), flush=True)


def thread_seconds(run: Callable[[], object]) -> float:
    """Measure the CPU time of this thread during a call."""
    start = time.thread_time()
    run()
    return time.thread_time() - start


def aten_calls(run: Callable[[], object]) -> int:
    """Count the ATen operators that Python and autograd call during a call."""
    recorded: Any
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        run()
    return sum(event.name.startswith("aten::") and not _inside_aten(event) for event in recorded.events())


def _inside_aten(event: Any) -> bool:
    parent = event.cpu_parent
    while parent is not None and not parent.name.startswith("aten::"):
        parent = parent.cpu_parent
    return parent is not None


def measure(name: str, before: Path, rounds: int, date: str) -> list[Row]:
    """Measure one network with the code of this checkout and with that of an earlier one."""
    versions = [Version(root, name) for root in (ROOT, before)]
    try:
        described = [version.ask("describe") for version in versions]
        seconds: list[list[float]] = [[], []]
        for _ in range(rounds):
            for version, some in zip(versions, seconds, strict=True):
                some.append(version.ask("time"))
        peaks = [statistics.median(version.ask("memory") for _ in range(3)) for version in versions]
        calls = [version.ask("calls") for version in versions]
    finally:
        for version in versions:
            version.close()
    medians = [statistics.median(some) for some in seconds]
    rows = []
    for number, found in enumerate(described):
        environment = found["environment"] | {"date": date}
        quartiles = statistics.quantiles(seconds[number], n=4)
        row = Row(
            **environment,
            op=f"XCube, training step of {'the VAE' if name == CALLS else name}",
            scene="shell 32" if name == CALLS else "demo",
            voxels=found["rows"],
            dtype="float32",
            contender=f"commit {environment['commit']}" if number else "sparsevox",
            median_ms=1e3 * medians[number],
            iqr_ms=1e3 * (quartiles[2] - quartiles[0]),
            ratio=medians[1] / medians[number],
            peak_mb=peaks[number],
            stored_mb=None,
            bytes_per_voxel=None,
            rounds=rounds,
            calls=1,
            quick=False,
            aten_calls=calls[number],
        )
        rows.append(row)
    if name in TARGETS:
        target = TARGETS[name]
        rows[0].target, rows[0].met = str(target), target.met(getattr(rows[0], target.column))
    return rows


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    about = "Compare the training steps of the demo's networks with those of an earlier version, on one CPU thread."
    parser = argparse.ArgumentParser("python -m bench.steps", description=about)
    names = (*NETWORKS, CALLS)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"steps to measure: {', '.join(names)} (default: all)")
    add("--before", type=Path, help="checkout of the earlier version")
    add("--rounds", type=int, default=15, help="number of rounds, of which the median is taken (default: 15)")
    add("--out", type=Path, help="CSV file to append the rows to (default: none)")
    add("--serve", choices=names, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.names = options.names or list(names)
    if unknown := set(options.names) - set(names):
        parser.error(f"NAME must be one of {', '.join(names)}, got {', '.join(sorted(unknown))}")
    if options.rounds < 2:
        parser.error(f"--rounds must be at least 2, got {options.rounds}")
    if not options.serve and (options.before is None or not (options.before / "bench" / "networks.py").exists()):
        parser.error(f"--before must be a checkout of this repository, got {options.before}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and append rows to the CSV file."""
    options = parse(arguments)
    if options.serve:
        serve(options.serve)
        return 0
    date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    ratios = []
    for name in options.names:
        rows = measure(name, options.before.resolve(), options.rounds, date)
        print(report.describe(rows), flush=True)
        if options.out:
            report.append(rows, options.out)
        ratios += [rows[1].median_ms / rows[0].median_ms] * (name != CALLS)
    if ratios:
        print(f"geometric mean of {len(ratios)} networks: {math.prod(ratios) ** (1 / len(ratios)):.2f}x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
