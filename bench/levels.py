"""What a cascade is worth: `python -m bench.levels --out levels`.

A bench of its own, because it trains networks: the cascade of the demo, 16^3 and then 64^3, and a model that makes
64^3 at once, out of dense latents of 8^3 (`bench/single`). Both have the same data, minutes of one process with one
thread, seeds, classes and sampler. What counts is how far held-out shapes are from the nearest of 64 samples. Call it
again after an interruption, and twice at the same time with one of `--models` each to use two cores.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch

from xcube import cli
from xcube.procedural.shapes import FAMILIES

MODELS = {"cascade": ("demo", "16,64"), "single": (str(Path(__file__).parent / "single"), "64")}
METRICS = ("mmd", "one_nna", "coverage", "one_component", "empty")
SHAPES, SAMPLES, GUIDANCE = 1400, 64, 1.25
POINTS = 1024  # of a shape


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser("python -m bench.levels", description="Compare a cascade with a single level.")
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for data, networks and samples")
    add("--minutes", type=float, default=23.0, help="of training, for each model and seed (default: 23)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training and sampling (default: 0 1 2)")
    add("--models", nargs="+", default=list(MODELS), choices=list(MODELS), help="which (default: both)")
    add("--shapes", type=int, default=SHAPES, help=f"of the data set (default: {SHAPES})")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Train, sample, evaluate, and print what there is."""
    options = parse(arguments)
    torch.set_num_threads(1)
    for seed in options.seeds:
        for name in options.models:
            trial(name, seed, options)
    report({name: found for name in MODELS if (found := results(options.out, name))})
    return 0


def trial(name: str, seed: int, options: argparse.Namespace) -> None:
    """One model, from its data to its metrics; what is there already is kept."""
    folder, data = options.out / f"{name}-{seed}", options.out / f"data-{name}"
    preset, levels = MODELS[name]
    runs, samples, number = folder / "runs", folder / "samples", str(seed)
    budget = {"minutes": options.minutes, "shapes": options.shapes}
    folder.mkdir(parents=True, exist_ok=True)
    noted = folder / "budget.json"
    if noted.exists() and json.loads(noted.read_text()) != budget:
        raise ValueError(f"{folder} was made with {noted.read_text()}, not with {budget}")
    noted.write_text(json.dumps(budget))
    if (samples / "evaluation.json").exists():
        return
    xcube("data", "parts", "--out", data, "--count", options.shapes, "--levels", levels)
    limits = ("--minutes", options.minutes, "--processes", 1, "--threads", 1, "--seed", number)
    xcube("train", "all", "--preset", preset, "--data", data, "--out", runs, *limits)
    asked = ("--category", ",".join(FAMILIES), "--guidance", GUIDANCE, "--sampler", "ddpm")
    xcube("sample", "--model", runs, "--out", samples, "--count", SAMPLES, "--seed", number, *asked)
    xcube("evaluate", samples, "--data", data, "--points", POINTS)


def xcube(*words: object) -> None:
    """A command of xcube.

    Raises:
        RuntimeError: If it fails; it has said why.
    """
    said = [str(word) for word in words]
    if cli.main(said):
        raise RuntimeError(f"xcube {' '.join(said)}")


def results(out: Path, name: str) -> dict[str, dict[str, float]]:
    """Figures of all seeds of a model."""
    files = sorted(out.glob(f"{name}-*/samples/evaluation.json"))
    return {file.parts[-3]: json.loads(file.read_text())["rows"]["samples"] for file in files}


def report(found: dict[str, dict[str, dict[str, float]]]) -> None:
    """A row for each model and seed, and their means."""
    print(f"{'':>14}" + "".join(f"{name:>14}" for name in METRICS))
    for name, rows in found.items():
        mean = {figure: statistics.mean(float(row[figure]) for row in rows.values()) for figure in METRICS}
        for title, row in (rows | {f"{name}, mean": mean}).items():
            print(f"{title:>14}" + "".join(f"{row[figure]:>14.4g}" for figure in METRICS))


if __name__ == "__main__":
    sys.exit(main())
