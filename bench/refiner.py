"""The refiner compared with filters that need no training: `python -m bench.refiner --data D --vae V --refiner R`.

Held-out shapes are encoded, their latents noised as in training, and decoded. The decoded voxels are then improved by
the refiner or by a filter, and compared with the shape. This is a separate command, because it needs trained networks.
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
SMALL = 0.02  # maximum fraction of the voxels of a small component


def majority(grid: Grid, least: int) -> Grid:
    """Apply a majority filter: keep or add voxels with at least `least` of 27 neighbors, including themselves."""
    candidates = grid.dilate(1)
    table = candidates.kernel_map(3, target=candidates).up.table  # rows of neighbors, -1 if absent: [27, N]
    exists = torch.cat([grid.contains(candidates.coords), torch.zeros(1, dtype=torch.bool)])
    return candidates.prune(exists[table.long()].sum(0) >= least)


FILTERS: dict[str, Callable[[Grid], Grid]] = {
    "decoded": lambda grid: grid,
    **{f"majority of {least}": partial(majority, least=least) for least in (4, 6, 8, 10, 12, 14)},
    "opening": lambda grid: grid.erode(1).dilate(1),
    "closing": lambda grid: grid.dilate(1).erode(1),
    "closing by faces": lambda grid: grid.dilate(stencil=CROSS).erode(stencil=CROSS),
}


def count_components(grid: Grid) -> tuple[int, int]:
    """Count the connected components of a single grid, and the small ones among them."""
    sizes = component_sizes(grid)
    return len(sizes), int((sizes < SMALL * grid.num_voxels).sum())


def rough_shapes(
    shapes: ShapeFolder[Voxels], vae: VAE, count: int, scale: float, first: int, last: int
) -> Iterator[tuple[Voxels, Voxels]]:
    """Yield shapes, evenly spread over the split, and the voxels decoded from their noised latents."""
    generator = torch.Generator().manual_seed(0)
    for item in torch.linspace(0, len(shapes) - 1, min(count, len(shapes))).round().long().tolist():
        voxels = shapes[item]
        with torch.no_grad():
            yield voxels, noisy_decode(vae, voxels, generator, scale=scale, first=first, last=last)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    about = "Compare the refiner with filters that need no training."
    parser = argparse.ArgumentParser("python -m bench.refiner", description=about)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of a dataset")
    add("--vae", type=Path, required=True, help="folder of a trained VAE")
    add("--refiner", type=Path, required=True, help="folder of a trained refiner")
    add("--split", default="val", help="split of the dataset (default: val)")
    add("--level", type=int, default=-1, help="level of the dataset (default: -1, the finest)")
    add("--shapes", type=int, default=64, help="number of shapes (default: 64)")
    add("--first", type=int, default=200, help="first step of the noise (default: 200)")
    add("--last", type=int, default=400, help="last step of the noise (default: 400)")
    add("--picture", type=Path, help="PNG file to write, of input, decoded and refined voxels of six shapes")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    options = parse(arguments)
    vae, refiner = from_pretrained(options.vae, VAE), from_pretrained(options.refiner, Refiner)
    shapes = ShapeFolder[Voxels](options.data, options.split, level=options.level)
    scale = read_config(options.refiner)["metadata"].get("latent_scale")
    if scale is None:
        scale = latent_scale(vae, (shapes[item] for item in range(len(shapes))))
    found: dict[str, list[tuple[float, int, int]]] = {}
    angles: dict[str, list[float]] = {"decoded": [], "refined": []}
    seen: list[tuple[Voxels, Voxels, Voxels]] = []
    for real, rough in rough_shapes(shapes, vae, options.shapes, scale, options.first, options.last):
        with torch.no_grad():
            refined = refiner.refine(rough)
        grids = {name: improve(rough.grid) for name, improve in FILTERS.items()} | {"refined": refined.grid}
        for name, grid in grids.items():
            found.setdefault(name, []).append((float(voxel_iou(grid, real.grid)), *count_components(grid)))
        for name, voxels in (("decoded", rough), ("refined", refined)):
            angles[name].append(angle(voxels, real))
        seen.append((real, rough, refined))
    report(found, angles)
    if options.picture:
        draw(seen[:: max(1, len(seen) // 6)][:6], options.picture)
    return 0


def angle(voxels: Voxels, real: Voxels) -> float:
    """Compute the mean angle between predicted and true normals in degrees."""
    target: Tensor = true_attributes(real, voxels.grid, ["normal"])["normal"]
    return float(normal_angle(voxels.attributes["normal"], target))


def report(found: dict[str, list[tuple[float, int, int]]], angles: dict[str, list[float]]) -> None:
    """Print a row per filter and one for the refiner."""
    print(f"{'':>16} {'IoU':>6} {'worst':>6} {'components':>11} {'small':>7} {'normals':>8}")
    means: dict[str, float] = {}
    for name, rows in found.items():
        iou, count, small = (statistics.mean(column) for column in zip(*rows, strict=True))
        means[name] = iou
        degrees = f"{statistics.mean(angles[name]):7.1f}°" if name in angles else ""
        print(f"{name:>16} {iou:6.3f} {min(row[0] for row in rows):6.3f} {count:11.2f} {small:7.2f} {degrees:>8}")
    refined = means.pop("refined")
    best = max(means, key=lambda name: means[name])
    print(f"the refiner is {100 * (refined - means[best]):.1f} points of IoU above the best filter, {best!r}")


def draw(shapes: list[tuple[Voxels, Voxels, Voxels]], path: Path) -> None:
    """Draw a row each of input, decoded and refined voxels, with one column per shape."""
    rows: list[Image.Image] = []
    titles = ("input", "decoded from noised latents", "refined")
    for title, pieces in zip(titles, zip(*shapes, strict=True), strict=True):
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
