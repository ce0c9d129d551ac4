"""What the refinement network is worth: `python -m bench.refine --data parts --vae runs/vae --refine runs/refine`.

A bench of its own, because it needs trained networks. Held-out shapes are encoded, their latents noised at the steps of
training, and decoded; then the decode is repaired by the network, or by filters that need no training.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sparsevox import Grid, Voxels
from sparsevox.viz import render_row
from xcube.data import ShapeFolder
from xcube.geometry.components import component_sizes
from xcube.networks.losses import normal_angle, true_attributes, voxel_iou
from xcube.networks.pretrained import from_pretrained, read_config
from xcube.networks.refiner import Refiner
from xcube.networks.vae import VAE
from xcube.training.modules import latent_scale, noisy_decode

CROSS = torch.zeros(3, 3, 3, dtype=torch.bool)
CROSS[1, 1] = CROSS[1, :, 1] = CROSS[:, 1, 1] = True
CRUMB = 0.02  # a connected component with less than this share of the voxels


def majority(grid: Grid, least: int) -> Grid:
    """The voxels, of the grid and around it, of whose 27 neighbors, themselves included, at least `least` exist."""
    candidates = grid.dilate(1)
    table = candidates.kernel_map(3, target=candidates).up.table  # rows of neighbors, -1 where there is none
    there = torch.cat([grid.contains(candidates.coords), torch.zeros(1, dtype=torch.bool)])
    return candidates.prune(there[table.long()].sum(0) >= least)


FILTERS: dict[str, Callable[[Grid], Grid]] = {
    "decode": lambda grid: grid,
    **{f"majority of {least}": partial(majority, least=least) for least in (4, 6, 8, 10, 12, 14)},
    "opening": lambda grid: grid.erode(1).dilate(1),
    "closing": lambda grid: grid.dilate(1).erode(1),
    "closing by faces": lambda grid: grid.dilate(stencil=CROSS).erode(stencil=CROSS),
}


def count_parts(grid: Grid) -> tuple[int, int]:
    """How many connected parts one grid has, and how many of them are min_component."""
    sizes = component_sizes(grid)
    return len(sizes), int((sizes < CRUMB * grid.num_voxels).sum())


def rough_shapes(
    shapes: ShapeFolder[Voxels], vae: VAE, count: int, scale: float, first: int, last: int
) -> Iterator[tuple[Voxels, Voxels]]:
    """Held-out shapes, evenly spread over the split, and what their noised latents decode to."""
    generator = torch.Generator().manual_seed(0)
    for item in torch.linspace(0, len(shapes) - 1, min(count, len(shapes))).round().long().tolist():
        voxels = shapes[item]
        with torch.no_grad():
            yield voxels, noisy_decode(vae, voxels, generator, scale=scale, first=first, last=last)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser("python -m bench.refine", description="Measure what refinement is worth.")
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of a data set")
    add("--vae", type=Path, required=True, help="folder of a trained VAE")
    add("--refine", type=Path, required=True, help="folder of a trained refinement network")
    add("--split", default="val", help="of the data set (default: val)")
    add("--level", type=int, default=-1, help="of the data set (default: -1, the finest)")
    add("--shapes", type=int, default=64, help="how many (default: 64)")
    add("--first", type=int, default=200, help="least step of the noise (default: 200)")
    add("--last", type=int, default=400, help="largest step of the noise (default: 400)")
    add("--picture", type=Path, help="PNG for input, decode and refined decode of six shapes")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    options = parse(arguments)
    vae, refiner = from_pretrained(options.vae, VAE), from_pretrained(options.refine, Refiner)
    shapes = ShapeFolder[Voxels](options.data, options.split, level=options.level)
    scale = read_config(options.refine)["metadata"].get("latent_scale")
    if scale is None:
        scale = latent_scale(vae, (shapes[item] for item in range(len(shapes))))
    found: dict[str, list[tuple[float, int, int]]] = {}
    angles: dict[str, list[float]] = {"decode": [], "refined": []}
    seen: list[tuple[Voxels, Voxels, Voxels]] = []
    for real, rough in rough_shapes(shapes, vae, options.shapes, scale, options.first, options.last):
        with torch.no_grad():
            refined = refiner.refine(rough)
        grids = {name: repair(rough.grid) for name, repair in FILTERS.items()} | {"refined": refined.grid}
        for name, grid in grids.items():
            found.setdefault(name, []).append((float(voxel_iou(grid, real.grid)), *count_parts(grid)))
        for name, voxels in (("decode", rough), ("refined", refined)):
            angles[name].append(angle(voxels, real))
        seen.append((real, rough, refined))
    report(found, angles)
    if options.picture:
        draw(seen[:: max(1, len(seen) // 6)][:6], options.picture)
    return 0


def angle(voxels: Voxels, real: Voxels) -> float:
    """Between predicted and true normals, in degrees."""
    target: Tensor = true_attributes(real, voxels.grid, ["normal"])["normal"]
    return float(normal_angle(voxels.attributes["normal"], target))


def report(found: dict[str, list[tuple[float, int, int]]], angles: dict[str, list[float]]) -> None:
    """A row for each way to repair."""
    print(f"{'':>16} {'IoU':>6} {'worst':>6} {'components':>11} {'min_component':>7} {'normals':>8}")
    means: dict[str, float] = {}
    for name, rows in found.items():
        iou, parts, min_component = (statistics.mean(column) for column in zip(*rows, strict=True))
        means[name] = iou
        turned = f"{statistics.mean(angles[name]):7.1f}°" if name in angles else ""
        print(
            f"{name:>16} {iou:6.3f} {min(row[0] for row in rows):6.3f} {parts:11.2f} {min_component:7.2f} {turned:>8}"
        )
    refined = means.pop("refined")
    best = max(means, key=lambda name: means[name])
    print(f"refined is {100 * (refined - means[best]):.1f} points above the best filter, {best!r}")


def draw(shapes: list[tuple[Voxels, Voxels, Voxels]], path: Path) -> None:
    """Input, decode and refined decode: a row of each, a column a shape."""
    rows: list[Image.Image] = []
    for title, pieces in zip(("input", "decode of noised latents", "refined"), zip(*shapes, strict=True), strict=True):
        colors: list[Tensor | None] = [(v.attributes["normal"].clamp(-1, 1) + 1) / 2 for v in pieces]
        render_row([v.grid for v in pieces], path, titles=[title] + [""] * (len(pieces) - 1), colors=colors)
        with Image.open(path) as picture:
            rows.append(picture.convert("RGB"))
    whole = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
    for number, row in enumerate(rows):
        whole.paste(row, (0, sum(r.height for r in rows[:number])))
    whole.save(path)


if __name__ == "__main__":
    sys.exit(main())
