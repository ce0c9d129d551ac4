"""Edits of samples: `python -m bench.edits --picture assets/edits.png`.

Four edits of each of eight shapes that the model in the package generates: what they keep, and whether the seam is
closed. The picture shows the first shapes before and after.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import trimesh

from bench.pictures import draw_rows
from sparsevox import Voxels
from sparsevox.io import describe, from_trimesh, to_mesh
from xcube.data.hierarchy import Box
from xcube.geometry.solids import Region, solid
from xcube.pipeline.edit import plan_edit
from xcube.pipeline.options import SampleOptions
from xcube.pipeline.pipeline import XCubePipeline

HEAD = """\
| edit | voxels outside unchanged | closed seam | open edges | watertight | voxels changed | seconds |
|---|--:|--:|--:|--:|--:|--:|"""
FAR = 1.0  # beyond the box
SHOWN = 4  # shapes in the picture


def edits(shape: Voxels) -> dict[str, dict[str, Any]]:
    """Parts to delete and to add, by the name of the edit."""
    size = shape.grid.voxel_size[0]
    low, high = (end[0].double() * size for end in shape.grid.bounds())
    (x, y, z), height = ((low + high) / 2).tolist(), float(high[2] - low[2])
    top, side = float(high[2]), float(high[1])
    knob = trimesh.creation.icosphere(radius=0.09).apply_translation((x, y, min(top, 0.36)))
    return {
        "cut off the top": {"delete": ((-FAR, -FAR, top - 0.3 * height), (FAR, FAR, FAR))},
        "cut off a corner": {"delete": corner(shape, (x, y, z))},
        "add a ball": {"add": from_trimesh(knob)},
        "cut off a side, add a block": {
            "delete": ((-FAR, side - 0.25 * (side - y), -FAR), (FAR, FAR, FAR)),
            "add": ((x - 0.1, y - 0.1, z - 0.1), (x + 0.1, y + 0.1, z + 0.1)),
        },
    }


def corner(shape: Voxels, middle: tuple[float, float, float]) -> Region:
    """The octant about a point with the most voxels."""
    upper = shape.grid.to_world(shape.grid.ijk.double()) > torch.tensor(middle)
    octants, counts = upper.unique(dim=0, return_counts=True)
    most = octants[counts.argmax()].tolist()
    ends = [(m, FAR) if above else (-FAR, m) for m, above in zip(middle, most, strict=True)]
    return [low for low, _ in ends], [high for _, high in ends]


def unchanged(before: Voxels, after: Voxels, parts: dict[str, Any], box: Box) -> float:
    """Fraction of the voxels outside of the zone of an edit that are the same, with the same normals."""
    zone = plan_edit(before, box, **parts).zones[-1]
    ours, theirs = ((~zone.contains(each.grid.coords)) for each in (before, after))
    rows = after.grid.index(before.grid.coords[ours])
    same = rows >= 0
    normal = after.attributes["normal"][rows.clamp(min=0)] == before.attributes["normal"][ours]
    extra = int(theirs.sum()) - int(same.sum())
    return int((same & normal.all(1)).sum()) / (int(ours.sum()) + extra)


def has_closed_seam(before: Voxels, after: Voxels, parts: dict[str, Any], box: Box) -> bool:
    """Whether what was inside of the shape, outside of the zone of an edit, still is: a gap would open it."""
    zone = plan_edit(before, box, **parts).zones[-1]
    return not ((solid(before.grid) - zone) - solid(after.grid)).num_voxels


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser("python -m bench.edits", description="Measure edits of generated shapes.")
    parser.add_argument("--seed", type=int, default=0, help="seed of the shapes and edits (default: 0)")
    parser.add_argument("--threads", type=int, default=1, help="number of CPU threads (default: 1)")
    parser.add_argument("--picture", type=Path, help="PNG file for a picture of the first shapes, before and after")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Edit, measure, print and draw."""
    chosen = parse(arguments)
    torch.set_num_threads(chosen.threads)
    pipeline, options = XCubePipeline.from_pretrained(), SampleOptions(seed=chosen.seed, quiet=True)
    box = pipeline.box
    names = pipeline.levels[0].categories
    shapes = pipeline.sample(len(names), options, category=names)
    rows: dict[str, list[tuple[float, ...]]] = {}
    drawn: dict[str, Voxels] = {}
    for name, sample in zip(names, shapes, strict=True):
        before = sample.finest
        drawn[name] = before
        for edit, parts in edits(before).items():
            start = time.perf_counter()
            [after] = pipeline.edit(before, options, **parts)
            seconds = time.perf_counter() - start
            found = after.finest
            info = describe(to_mesh(found))
            old, new = solid(before.grid), solid(found.grid)
            rows.setdefault(edit, []).append(
                (
                    unchanged(before, found, parts, box),
                    has_closed_seam(before, found, parts, box),
                    info.boundary_edges,
                    info.closed,
                    (old ^ new).num_voxels / old.num_voxels,
                    seconds,
                )
            )
            drawn[f"{name}: {edit}"] = found
    print(HEAD)
    for edit, each in [*rows.items(), ("all", [row for several in rows.values() for row in several])]:
        kept, seam, edges, closed, changed, seconds = (statistics.fmean(column) for column in zip(*each, strict=True))
        print(
            f"| {edit} | {100 * kept:.2f} % | {100 * seam:.0f} % | {edges:.1f} | {100 * closed:.0f} % | "
            f"{100 * changed:.0f} % | {seconds:.1f} |"
        )
    if chosen.picture is not None:
        columns = 1 + len(rows)
        draw_rows(dict(list(drawn.items())[: SHOWN * columns]), columns, chosen.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
