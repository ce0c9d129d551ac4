"""Completion of held-out shapes: `python -m bench.completion --data shapes --picture assets/completion.png`.

A part of each shape is removed or not seen, and completed by the model and by baselines. The table has the voxel IoU of
the result with the true shape, in which every method keeps the observed voxels:

- mirror: the observed part and its reflection, across the plane of the cut for halves, and else across y = 0, the plane
  of symmetry of most shapes;
- nearest: the training shape whose coarse voxels agree best with the observation.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch

from bench.pictures import draw_rows
from sparsevox import Grid, Voxels
from sparsevox.io import describe, to_mesh
from xcube.data.hierarchy import Box
from xcube.data.loading import ShapeFolder
from xcube.geometry.components import component_sizes
from xcube.geometry.solids import as_regions
from xcube.pipeline.complete import Method, completed, known_latents
from xcube.pipeline.inputs import full_box
from xcube.pipeline.observation import Observation, observation
from xcube.pipeline.options import SampleOptions
from xcube.pipeline.pipeline import XCubePipeline
from xcube.training.observations import visible

HEAD = """\
| observed | method | IoU | best of four | IoU of two of four | observed voxels kept | single part | watertight | \
seconds per shape |
|---|---|--:|--:|--:|--:|--:|--:|--:|"""
KINDS = ("half", "box", "view")
FAR = 1.0  # beyond the box
VARIANTS = 4


@dataclass(frozen=True)
class Task:
    """A partial observation of a shape.

    shape: The true shape, at the finest level.
    part: The observed voxels.
    options: What is known of space, as `observation` takes it.
    axis: The axis of the plane of a half, and its place in world units; None for others.
    """

    shape: Voxels
    part: Voxels
    options: dict[str, Any] = field(default_factory=dict)
    axis: tuple[int, float] | None = None


def tasks(shapes: Sequence[Voxels], kind: str, seed: int) -> list[Task]:
    """A partial observation of each shape: a half along a random axis, all but a box, or a view from one side."""
    draw = random.Random(seed)
    made = []
    for shape in shapes:
        size = shape.grid.voxel_size[0]
        low, high = ((bound[0].double() * size).tolist() for bound in shape.grid.bounds())
        axis, sign = draw.randrange(3), draw.choice((-1, 1))
        middle = round((low[axis] + high[axis]) / 2 / size) * size
        begin, end = [-FAR] * 3, [FAR] * 3
        if kind == "view":
            made.append(seen_from_afar(shape, axis, sign))
            continue
        if kind == "half":
            (begin if sign > 0 else end)[axis] = middle
        else:
            for n in range(3):
                center = draw.uniform(low[n], high[n])
                half = draw.uniform(0.2, 0.35) * (high[n] - low[n])
                begin[n], end[n] = center - half, center + half
        hidden = _in_box(shape.grid, begin, end)
        if bool(hidden.all()) or not bool(hidden.any()):
            continue
        cut = (axis, middle) if kind == "half" else None
        made.append(Task(shape, shape.prune(~hidden), {"unknown": as_regions((begin, end))}, cut))
    return made


def seen_from_afar(shape: Voxels, axis: int, sign: int) -> Task:
    """The voxels that a camera far away sees, and the empty space before them."""
    grid = shape.grid
    low, high = (bound[0] for bound in grid.bounds())
    margin = 1
    full = torch.zeros([int(n) + 2 * margin for n in (high - low)], dtype=torch.bool)
    place = (grid.ijk - low + margin).long()
    full[place[:, 0], place[:, 1], place[:, 2]] = True
    seen = visible(full, sign * torch.eye(3)[axis])
    free = (seen & ~full).nonzero() + low - margin
    empty = Grid.from_coords(free.int(), voxel_size=grid.voxel_size, origin=grid.origin)
    return Task(shape, shape.prune(seen[place[:, 0], place[:, 1], place[:, 2]]), {"known": [empty]})


def _in_box(grid: Grid, begin: Sequence[float], end: Sequence[float]) -> torch.Tensor:
    centers = grid.to_world(grid.ijk.double())
    return ((centers > torch.tensor(begin)) & (centers < torch.tensor(end))).all(1)


def overlap(first: Grid, second: Grid) -> float:
    """Voxel IoU of two grids."""
    return (first & second).num_voxels / max(1, (first | second).num_voxels)


def mirrored(task: Task, seen: Observation) -> Grid:
    """The observed voxels and the part of their reflection that lies in unknown space."""
    axis, place = task.axis or (1, 0.0)
    flipped = task.part.grid.ijk.clone()
    flipped[:, axis] = round(2 * place / task.part.grid.voxel_size[0]) - 1 - flipped[:, axis]
    other = Grid.from_coords(flipped, voxel_size=task.part.grid.voxel_size, origin=task.part.grid.origin)
    return task.part.grid | (other & seen.unknown[-1])


class Nearest:
    """Training shapes, of which the one is found that agrees best with an observation."""

    def __init__(self, data: Path, box: Box) -> None:
        self.fine = ShapeFolder[Voxels](data, "train", level=1)
        coarse = ShapeFolder[Voxels](data, "train", level=0)
        self.size = box.levels[0]
        self.volumes = torch.zeros(len(coarse), self.size**3, dtype=torch.bool)
        for number in range(len(coarse)):
            self.volumes[number, self._places(coarse[number].grid)] = True

    def _places(self, grid: Grid) -> torch.Tensor:
        i, j, k = (grid.ijk.long() + self.size // 2).unbind(1)
        return (i * self.size + j) * self.size + k

    def complete(self, task: Task, seen: Observation) -> Grid:
        """The observed voxels, and those of the nearest training shape in unknown space."""
        full, known = torch.zeros(self.size**3, dtype=torch.bool), torch.zeros(self.size**3, dtype=torch.bool)
        full[self._places(seen.full[0].grid)] = True
        known[self._places(seen.empty[0])] = True
        known |= full
        theirs = self.volumes & known
        score = (theirs & full).sum(1) / (theirs | full).sum(1)
        best = self.fine[int(score.argmax())]
        return task.part.grid | (best.grid & seen.unknown[-1])


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser("python -m bench.completion", description="Complete held-out shapes.")
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of a dataset with the levels 16 and 64")
    add("--model", type=Path, help="folder of a pipeline (default: the model in the package)")
    add("--shapes", type=int, default=48, help="number of shapes (default: 48)")
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of observations (default: all)")
    add("--methods", nargs="+", choices=get_args(Method), default=list(get_args(Method)), help="methods (default: all)")
    add("--seed", type=int, default=0, help="seed of the parts and of the samples (default: 0)")
    add("--threads", type=int, default=1, help="number of CPU threads (default: 1)")
    add("--picture", type=Path, help="PNG file for a picture of the first shapes")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Complete, measure, print and draw."""
    chosen = parse(arguments)
    torch.set_num_threads(chosen.threads)
    pipeline = XCubePipeline.from_pretrained(chosen.model)
    box = pipeline.box
    folder = ShapeFolder[Voxels](chosen.data, "test", level=1)
    picked = torch.linspace(0, len(folder) - 1, min(chosen.shapes, len(folder))).round().long().tolist()
    nearest = Nearest(chosen.data, box)
    takes = bool(pipeline.levels[0].denoiser.config.observed)
    methods = [name for name in chosen.methods if takes or name != "trained"]
    drawn: dict[str, Voxels] = {}
    print(HEAD, flush=True)
    for kind in chosen.kinds:
        todo = tasks([folder[n] for n in picked], kind, chosen.seed)
        seen = [observation(task.part, box, **task.options) for task in todo]
        baselines: dict[str, Callable[[Task, Observation], Grid]] = {"mirror": mirrored, "nearest": nearest.complete}
        parts = statistics.fmean(overlap(task.part.grid, task.shape.grid) for task in todo)
        print(f"| {kind} | the observed part | {parts:.3f} | | | 100 % | | | |", flush=True)
        for name, baseline in baselines.items():
            found = statistics.fmean(overlap(baseline(t, s), t.shape.grid) for t, s in zip(todo, seen, strict=True))
            print(f"| {kind} | {name} | {found:.3f} | | | 100 % | | | |", flush=True)
        for method in methods:
            shown = drawn if method == methods[0] else {}
            if method == "resampling" and not all(has_known_latents(pipeline, each) for each in seen):
                print(f"| {kind} | {method} | - | - | - | - | - | - | - |", flush=True)
                continue
            print(measure(pipeline, todo, seen, kind, method, chosen.seed, shown), flush=True)
    if chosen.picture is not None:
        draw_rows(drawn, 2 + VARIANTS, chosen.picture)
    return 0


def has_known_latents(pipeline: XCubePipeline, seen: Observation) -> bool:
    """Whether resampling is possible: some latents of the coarsest level are known."""
    first = pipeline.levels[0]
    return bool(known_latents(first, seen.unknown[0], full_box(first).grid).any())


def measure(
    pipeline: XCubePipeline,
    todo: Sequence[Task],
    seen: Sequence[Observation],
    kind: str,
    method: Method,
    seed: int,
    drawn: dict[str, Voxels],
) -> str:
    """A row of the table: completions of all shapes by the model. Some are added to the shapes to draw."""
    mean, best, alike, kept, single, closed = [], [], [], [], [], []
    spent, rows = 0.0, {0, len(todo) // 2}  # of the picture
    options = SampleOptions(seed=seed, quiet=True)
    for number, (task, each) in enumerate(zip(todo, seen, strict=True)):
        start = time.perf_counter()
        made = [sample.finest for sample in completed(pipeline, each, options, range(VARIANTS), method)]
        spent += time.perf_counter() - start
        scores = [overlap(voxels.grid, task.shape.grid) for voxels in made]
        pairs = [overlap(a.grid, b.grid) for n, a in enumerate(made) for b in made[:n]]
        mean.append(statistics.fmean(scores))
        best.append(max(scores))
        alike.append(statistics.fmean(pairs))
        kept += [(task.part.grid & voxels.grid).num_voxels / task.part.num_voxels for voxels in made]
        single += [len(component_sizes(voxels.grid)) == 1 for voxels in made]
        closed += [describe(to_mesh(voxels)).closed for voxels in made]
        if number in rows:
            row = {"truth": task.shape, kind: task.part} | {str(n): voxels for n, voxels in enumerate(made)}
            drawn |= {f"{kind} {number}: {name}": voxels for name, voxels in row.items()}
    seconds = spent / len(mean) / VARIANTS
    fractions = " | ".join(f"{100 * statistics.fmean(values):.0f} %" for values in (kept, single, closed))
    columns = " | ".join(f"{statistics.fmean(values):.3f}" for values in (mean, best, alike))
    return f"| {kind} | {method} | {columns} | {fractions} | {seconds:.2f} |"


if __name__ == "__main__":
    sys.exit(main())
