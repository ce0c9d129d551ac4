"""Building a dataset with one and with several worker processes: `python -m bench.build_dataset --workers 1 2`.

All numbers of workers build the same dataset, which is compared byte by byte. This is a separate command, because it
runs processes and measures the peak memory of each.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.scenes import sphere_mesh
from sparsevox.io import save_mesh
from sparsevox.shapes import Mesh
from xcube.data import Box, build, file_sources


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    about = "Measure how building a dataset scales with the number of worker processes."
    parser = argparse.ArgumentParser("python -m bench.build_dataset", description=about)
    add = parser.add_argument
    add("--workers", type=int, nargs="+", default=[1, 2], help="numbers of worker processes (default: 1 2)")
    add("--shapes", type=int, default=24, help="number of meshes (default: 24)")
    add("--faces", type=int, default=20_000, help="triangles per mesh (default: 20000)")
    add("--levels", type=int, nargs="+", default=[16, 128, 512], help="resolutions of the levels (default: 16 128 512)")
    add("--samples", type=int, default=1_000_000, help="points sampled per mesh (default: 1000000)")
    add("--rounds", type=int, default=1, help="number of rounds, of which the fastest counts (default: 1)")
    options = parser.parse_args(arguments)
    if min(*options.workers, options.shapes, options.rounds) < 1:
        parser.error("--workers, --shapes and --rounds must be at least 1")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Build, compare and print. The exit status is 1 if the datasets differ."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_meshes(root / "meshes", options.shapes, options.faces)
        once(root, argparse.Namespace(**vars(options) | {"levels": [2], "samples": 1}), 1)  # start the fork server
        measured = [once(root, options, count) for _ in range(options.rounds) for count in options.workers]
        if len({made for _, _, made in measured}) > 1:
            print("FAILED: the datasets differ", file=sys.stderr)
            return 1
    print(
        f"{options.shapes} meshes of {options.faces:,} triangles, levels {options.levels}, {options.samples:,} samples"
    )
    print(f"{'workers':>8} {'seconds':>8} {'shapes/s':>9} {'speed':>6} {'MB/worker':>12}")
    best = {count: min(measured[n :: len(options.workers)]) for n, count in enumerate(options.workers)}
    first = best[options.workers[0]][0]
    for count, (seconds, peak, _) in best.items():
        print(f"{count:8} {seconds:8.1f} {options.shapes / seconds:9.2f} {first / seconds:5.2f}x {peak / 1e6:12.0f}")
    return 0


def once(root: Path, options: argparse.Namespace, workers: int) -> tuple[float, int, tuple[bytes, ...]]:
    """Build once; return the seconds, the peak memory of the largest worker in bytes, and the contents of all files."""
    box = Box(tuple(options.levels))
    with tempfile.TemporaryDirectory(dir=root) as out, peak_memory() as peaks:
        start = time.perf_counter()
        report = build(file_sources([root / "meshes"]), out, box, samples=options.samples, workers=workers)
        seconds = time.perf_counter() - start
        if len(report.built) != options.shapes:
            raise RuntimeError(str(report))
        made = tuple(path.read_bytes() for path in sorted(Path(out).rglob("*.*")) if path.name != "report.csv")
    return seconds, max(peaks.values(), default=0), made


def write_meshes(folder: Path, count: int, faces: int) -> None:
    """Write spheres with different bumps."""
    folder.mkdir()
    vertices, triangles = sphere_mesh(radius=1.0, rings=max(4, round((faces / 4) ** 0.5)))
    for number in range(count):
        frequency = torch.tensor([2.0 + number % 5, 3.0 + number % 3, 1.0 + number % 7], dtype=torch.float64)
        bumps = 1 + 0.2 * torch.sin(vertices * frequency + number).prod(1, keepdim=True)
        save_mesh(Mesh(0.35 * vertices * bumps, triangles), folder / f"{number:04}.ply")


@contextlib.contextmanager
def peak_memory() -> Iterator[dict[int, int]]:
    """Watch the peak memory in bytes of all descendant processes, by id (Linux only)."""
    peaks: dict[int, int] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            for pid in descendants(os.getpid()):
                with contextlib.suppress(OSError, StopIteration):
                    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                    peaks[pid] = 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def descendants(parent: int) -> set[int]:
    """List all descendant processes of a process."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = {parent}
    while new := {pid for pid, owner in parents.items() if owner in found} - found:
        found |= new
    return found - {parent}


if __name__ == "__main__":
    sys.exit(main())
