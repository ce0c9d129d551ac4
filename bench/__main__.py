"""Command line of the benchmarks: `python -m bench bricks topology --threads 1 2`."""

import argparse
import datetime
import functools
import importlib
import sys
import traceback
from pathlib import Path

import torch
from torch import Tensor

from bench import report, scenes
from bench.harness import Case, measure

HERE = Path(__file__).parent
BENCHES = (
    "bricks",
    "topology",
    "morphology",
    "neighbors",
    "plans",
    "conv",
    "segment",
    "pool",
    "norm",
    "sample",
    "attention",
    "dense",
    "voxelize",
    "nearest",
    "surfaces",
    "html",
    "xcube",
    "denoise",
    "host",
)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser("python -m bench", description="Compare sparsevox with baselines.")
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"benchmarks to run: {', '.join(BENCHES)} (default: all)")
    add("--device", default="cpu", choices=["cpu", "cuda"], help="device (default: cpu)")
    add("--threads", type=int, nargs="+", default=[1], help="numbers of CPU threads (default: 1)")
    add("--scenes", nargs="+", choices=list(scenes.SCENES), help="run only the cases on these scenes")
    add("--rounds", type=int, default=7, help="number of rounds, of which the median is taken (default: 7)")
    add("--out", type=Path, default=HERE / "results", help="folder of the CSV files (default: bench/results)")
    add("--quick", action="store_true", help="use small scenes, to check that everything runs; timings are meaningless")
    add("--readme", action="store_true", help="measure nothing; write the tables in bench/README.md from the CSV files")
    options = parser.parse_args(arguments)
    options.names = options.names or list(BENCHES)
    for name in options.names:
        if name not in BENCHES:
            parser.error(f"NAME must be one of {', '.join(BENCHES)}, got {name!r}")
    if min(options.threads) < 1 or options.rounds < 1:
        parser.error("--threads and --rounds must be at least 1")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the benches. The exit status is 1 if a case failed or gave a wrong answer."""
    options = parse(arguments)
    if options.readme:
        rows = report.load(sorted(options.out.glob("*.csv")))
        report.write_readme(HERE / "README.md", report.markdown(rows))
        return 0
    torch.set_num_threads(options.threads[0])  # also for making scenes and operands
    date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    coords = functools.lru_cache(maxsize=2)(lambda scene, size: scenes.scene(scene, size).to(options.device))
    failed = []
    for name in options.names:
        module = importlib.import_module(f"bench.{name}")
        for case in module.cases(torch.device(options.device), options.quick):
            if options.scenes and case.scene not in options.scenes:
                continue
            try:
                run(case, coords(case.scene, case.size), options, date)
            except Exception:  # a failed case must not stop the others
                traceback.print_exc()
                failed.append(f"{case.op} on {case.scene} {case.size}")
    for line in failed:
        print(f"FAILED: {line}", file=sys.stderr)
    return int(bool(failed))


def run(case: Case, coords: Tensor, options: argparse.Namespace, date: str) -> None:
    """Measure a case, print the rows and append them to the CSV file."""
    rows = measure(case, coords, options.threads, options.rounds, options.quick, date)
    print(report.describe(rows), flush=True)
    report.append(rows, options.out / f"{options.device}.csv")


if __name__ == "__main__":
    sys.exit(main())
