"""What VAEs keep of shapes that they never saw, by category: `python -m bench.unseen --data shapes --model runs`.

The shapes are those of the splits "val" and "test" of a dataset of `xcube data shapes`, which has procedural shapes and
models of furniture. Each is encoded to the means of its latents and decoded.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import sparsevox as sv
from sparsevox import Voxels
from sparsevox.io.meshes import describe
from xcube.data.dataset import Entry
from xcube.data.loading import ShapeFolder
from xcube.networks.losses import voxel_iou
from xcube.networks.pretrained import from_pretrained
from xcube.networks.vae import VAE
from xcube.pipeline.reconstruct import reconstruct
from xcube.procedural.shapes import FAMILIES

BATCH = 16  # shapes
KINDS = ("procedural", "furniture")


def kind_of(entry: Entry) -> tuple[str, str]:
    """The category of a shape, and whether it is procedural or furniture."""
    category = next(family for family in FAMILIES if entry.name.startswith(family))
    return category, KINDS["/" in entry.name]


def measure(vae: VAE, shapes: Sequence[Voxels]) -> list[tuple[float, bool]]:
    """The voxel IoU of each shape with its reconstruction, and whether the surface of that is closed."""
    found: list[tuple[float, bool]] = []
    for start in range(0, len(shapes), BATCH):
        batch = Voxels.stack(list(shapes[start : start + BATCH]))
        decoded = reconstruct(batch, vae).decoded
        closed = [each.num_voxels > 0 and describe(sv.io.to_mesh(each, "nets")).closed for each in decoded.unbind()]
        found += zip(voxel_iou(decoded.grid, batch.grid).tolist(), closed, strict=True)
    return found


def table(found: dict[tuple[str, str], list[tuple[float, bool]]]) -> list[str]:
    """The lines of a Markdown table: a row for each category, and one for all of them."""
    lines = [
        "| category | " + " | ".join(f"{kind}: shapes | voxel IoU | watertight" for kind in KINDS) + " |",
        "|---|" + "--:|" * 3 * len(KINDS),
    ]
    for category in (*FAMILIES, "all"):
        cells: list[str] = []
        for kind in KINDS:
            chosen = FAMILIES if category == "all" else (category,)
            rows = [row for each in chosen for row in found.get((each, kind), [])]
            cells += [str(len(rows))]
            if rows:
                cells += [
                    f"{statistics.fmean(iou for iou, _ in rows):.3f}",
                    f"{statistics.fmean(c for _, c in rows):.0%}",
                ]
            else:
                cells += ["", ""]
        lines.append(f"| {category} | " + " | ".join(cells) + " |")
    return lines


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    about = "Measure what the VAE of a level keeps of unseen shapes, by category."
    parser = argparse.ArgumentParser("python -m bench.unseen", description=about)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of a dataset of `xcube data shapes`")
    add("--model", type=Path, required=True, help="folder of training runs")
    add("--level", type=int, default=1, help="level of the cascade (default: 1)")
    add("--threads", type=int, default=1, help="number of CPU threads (default: 1)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    vae = from_pretrained(options.model / f"vae-{options.level}", VAE)
    folder = ShapeFolder[Voxels](options.data, None, level=options.level)
    chosen: dict[tuple[str, str], list[int]] = {}
    for item, entry in enumerate(folder.entries):
        if entry.split != "train":
            chosen.setdefault(kind_of(entry), []).append(item)
    found = {key: measure(vae, [folder[item] for item in items]) for key, items in chosen.items()}
    print("\n".join(table(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
