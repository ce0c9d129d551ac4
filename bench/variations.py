"""Variants of samples and shapes between them: `python -m bench.variations --picture assets/variations.png`.

Both are made of shapes that the model in the package generates. The table says how much they differ from the given
shapes at the coarsest level, and whether they are whole. The picture shows some of them.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch

from bench.pictures import draw_rows
from sparsevox import Voxels
from sparsevox.io import describe, to_mesh
from xcube.geometry.components import component_sizes
from xcube.networks.losses import voxel_iou
from xcube.pipeline.options import Sample, SampleOptions
from xcube.pipeline.pipeline import XCubePipeline

VARIED = """\
| strength | IoU with the shape | minimum IoU with the shape | single part | watertight | seconds per variant |
|--:|--:|--:|--:|--:|--:|"""
BETWEEN = """\
| interpolated | IoU of the ends | minimum IoU of neighbors | single part | watertight | seconds per shape |
|---|--:|--:|--:|--:|--:|"""
COUNT = 7  # shapes in a row


def overlap(first: Sample, second: Sample) -> float:
    """Voxel IoU of the coarsest levels."""
    return float(voxel_iou(first.levels[0].grid, second.levels[0].grid))


def wholeness(shapes: Sequence[Sample]) -> str:
    """Columns of a table: how many shapes are a single part, and how many are watertight."""
    single = statistics.fmean(len(component_sizes(each.finest.grid)) == 1 for each in shapes)
    closed = statistics.fmean(describe(to_mesh(each.finest)).closed for each in shapes)
    return f"{100 * single:.0f} % | {100 * closed:.0f} %"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    about = "Measure variants of generated shapes, and shapes between two of them."
    parser = argparse.ArgumentParser("python -m bench.variations", description=about)
    add = parser.add_argument
    add("--seed", type=int, default=0, help="seed of the shapes (default: 0)")
    add("--strengths", type=float, nargs="+", default=[0.3, 0.5, 0.7, 0.8], help="strengths (default: 0.3 0.5 0.7 0.8)")
    add("--count", type=int, default=COUNT - 1, help="number of variants of each shape (default: 6)")
    add("--threads", type=int, default=1, help="number of CPU threads (default: 1)")
    add("--picture", type=Path, help="PNG file for a picture of variants of a chair, and shapes between two pairs")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Generate, measure, print and draw."""
    chosen = parse(arguments)
    torch.set_num_threads(chosen.threads)
    pipeline, options = XCubePipeline.from_pretrained(), SampleOptions(seed=chosen.seed, quiet=True)
    names = pipeline.levels[0].categories
    shapes = dict(zip(names, pipeline.sample(len(names), options, category=names), strict=True))
    drawn: dict[str, Voxels] = {}
    print(VARIED)
    for strength in chosen.strengths:
        made: list[Sample] = []
        kept: list[float] = []
        start = time.perf_counter()
        for name, shape in shapes.items():
            category = options.with_changes(category=name)
            variants = pipeline.vary(shape, strength, category, numbers=range(chosen.count))
            made += variants
            kept += [overlap(shape, each) for each in variants]
            if name == "chair":
                drawn |= {f"{strength}: chair": shape.finest}
                drawn |= {f"{strength}: {n}, {strength:g}": each.finest for n, each in enumerate(variants[: COUNT - 1])}
        seconds = (time.perf_counter() - start) / len(made)
        print(f"| {strength:g} | {statistics.fmean(kept):.3f} | {min(kept):.3f} | {wholeness(made)} | {seconds:.2f} |")
    print(f"\n{BETWEEN}")
    for blend in ("noise", "latents"):
        made, ends, steps = [], [], []
        start = time.perf_counter()
        for first, second in pairwise(shapes):
            row = pipeline.interpolate(shapes[first], shapes[second], COUNT, options, blend=blend)
            made += row
            ends += [overlap(shapes[first], row[0]), overlap(shapes[second], row[-1])]
            steps.append(min(overlap(a, b) for a, b in pairwise(row)))
            if first in ("chair", "car"):
                drawn |= {f"{first} {blend}: {blend}, {n}": each.finest for n, each in enumerate(row)}
        seconds = (time.perf_counter() - start) / len(made)
        print(
            f"| {blend} | {statistics.fmean(ends):.3f} | {statistics.fmean(steps):.3f} | {wholeness(made)} | "
            f"{seconds:.2f} |"
        )
    if chosen.picture is not None:
        draw_rows(drawn, COUNT, chosen.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
