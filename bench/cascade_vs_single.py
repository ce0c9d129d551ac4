"""Ablation: a cascade of two levels and a single level: `python -m bench.cascade_vs_single --out ablation`.

It trains the cascade of the demo, 16^3 and then 64^3, and a model that generates 64^3 directly from dense latents of
8^3 (`bench/single_level`). Both get the same data, seeds, classes and training time of one process with one thread, and
the samplers of their presets. The main metric is the distance of held-out shapes to the nearest of 64 samples (MMD). An
interrupted run continues when called again. To use two cores, run it twice in parallel, with one of `--models` each.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch

from xcube import cli
from xcube.procedural.shapes import FAMILIES

MODELS = {"cascade": ("demo", "16,64"), "single": (str(Path(__file__).parent / "single_level"), "64")}
METRICS = ("mmd", "one_nna", "coverage", "one_component", "empty")
SHAPES, SAMPLES = 1400, 64
ATTRIBUTES = "normal,fill"  # of the dataset
POINTS = 1024  # per shape


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    about = "Compare a cascade of two levels with a single level."
    parser = argparse.ArgumentParser("python -m bench.cascade_vs_single", description=about)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for data, networks and samples")
    add("--minutes", type=float, default=23.0, help="training time per model and seed in minutes (default: 23)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of training and sampling (default: 0 1 2)")
    add("--models", nargs="+", default=list(MODELS), choices=list(MODELS), help="models to run (default: both)")
    add("--shapes", type=int, default=SHAPES, help=f"number of shapes of the dataset (default: {SHAPES})")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Train, sample, evaluate, and print all results in the folder."""
    options = parse(arguments)
    torch.set_num_threads(1)
    for seed in options.seeds:
        for name in options.models:
            trial(name, seed, options)
    report({name: found for name in MODELS if (found := results(options.out, name))})
    return 0


def trial(name: str, seed: int, options: argparse.Namespace) -> None:
    """Run one model with one seed, from data to metrics, unless its metrics exist."""
    folder, data = options.out / f"{name}-{seed}", options.out / f"data-{name}"
    preset, levels = MODELS[name]
    runs, samples, number = folder / "runs", folder / "samples", str(seed)
    budget = {"minutes": options.minutes, "shapes": options.shapes}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "budget.json"
    if file.exists() and json.loads(file.read_text()) != budget:
        raise ValueError(f"{folder} must have been made with {budget}, got {file.read_text()}")
    file.write_text(json.dumps(budget))
    if (samples / "evaluation.json").exists():
        return
    build = ("--count", options.shapes, "--levels", levels, "--attributes", ATTRIBUTES)
    xcube("data", "procedural", "--out", data, *build)
    limits = ("--minutes", options.minutes, "--processes", 1, "--threads", 1, "--seed", number)
    xcube("train", "all", "--preset", preset, "--data", data, "--out", runs, *limits)
    categories = ("--category", ",".join(FAMILIES))
    xcube("sample", "--model", runs, "--out", samples, "--count", SAMPLES, "--seed", number, *categories)
    xcube("evaluate", samples, "--data", data, "--points", POINTS)


def xcube(*words: object) -> None:
    """Run a command of xcube.

    Raises:
        RuntimeError: If the command fails, after it has printed the reason.
    """
    command = [str(word) for word in words]
    if cli.main(command):
        raise RuntimeError(f"command failed: xcube {' '.join(command)}")


def results(out: Path, name: str) -> dict[str, dict[str, float]]:
    """Read the metrics of all seeds of a model."""
    files = sorted(out.glob(f"{name}-*/samples/evaluation.json"))
    return {file.parts[-3]: json.loads(file.read_text())["rows"]["samples"] for file in files}


def report(found: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print a row per model and seed, and the means over seeds."""
    print(f"{'':>14}" + "".join(f"{name:>14}" for name in METRICS))
    for name, rows in found.items():
        mean = {metric: statistics.mean(float(row[metric]) for row in rows.values()) for metric in METRICS}
        for title, row in (rows | {f"{name}, mean": mean}).items():
            print(f"{title:>14}" + "".join(f"{row[metric]:>14.4g}" for metric in METRICS))


if __name__ == "__main__":
    sys.exit(main())
