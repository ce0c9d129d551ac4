"""The parts of the pages of `xcube demo`: reconstructions, pictures of samples, training curves, the template."""

import csv
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import torch

import sparsevox as sv
from sparsevox import Grid, Mesh, Voxels
from sparsevox.files import atomic_write
from sparsevox.io import save_mesh, to_mesh
from sparsevox.viz import render_row
from xcube.data.hierarchy import build_hierarchy
from xcube.data.loading import ShapeFolder
from xcube.data.sources import Source
from xcube.networks.losses import voxel_iou
from xcube.pipeline.options import SampleOptions
from xcube.pipeline.output import SampleFolder, shown_colors, stack_pictures
from xcube.pipeline.pipeline import XCubePipeline
from xcube.pipeline.reconstruct import Reconstruction, reconstruct

PICTURES = "pictures"
BATCH = 16  # shapes reconstructed at once
EXAMPLES = 6  # reconstructions in the picture
TILE = 300  # width of a shape in a picture, in pixels
VARIANTS = 2  # samples from the coarse voxels of each mesh of the user
SMOOTH = 0.1  # weight of a new value in a smoothed curve


@dataclass(frozen=True)
class HeldOut:
    """Reconstructions of held-out shapes.

    shapes: Number of shapes.
    iou: Mean voxel IoU of the decoded shapes at each level, coarsest first.
    refined: The same after the refiner; None for a level without one.
    examples: Some of the reconstructions: for each shape those of all levels.
    """

    shapes: int
    iou: list[float]
    refined: list[float | None]
    examples: list[list[Reconstruction]] = field(repr=False)


def reconstruct_split(pipeline: XCubePipeline, data: Path, split: str = "test") -> HeldOut:
    """Reconstruct all shapes of a split with the VAE and the refiner of each level.

    Raises:
        ValueError: If the split is empty.
    """
    found: list[list[Reconstruction]] = []
    iou: list[float] = []
    refined: list[float | None] = []
    count = 0
    for number, level in enumerate(pipeline.levels):
        shapes = ShapeFolder[Voxels](data, split, level=number)
        count = len(shapes)
        if not count:
            raise ValueError(f"data must have shapes of the split {split!r}, got {data}")
        chosen = torch.linspace(0, count - 1, min(count, EXAMPLES)).round().long().tolist()
        decoded: list[torch.Tensor] = []
        refined_iou: list[torch.Tensor] = []
        for begin in range(0, count, BATCH):
            batch = sv.collate([shapes[item] for item in range(begin, min(begin + BATCH, count))])
            made = reconstruct(batch.to(pipeline.device), level.vae, level.refiner)
            decoded.append(voxel_iou(made.decoded.grid, made.input.grid))
            if made.refined is not None:
                refined_iou.append(voxel_iou(made.refined.grid, made.input.grid))
        iou.append(float(torch.cat(decoded).mean()))
        refined.append(float(torch.cat(refined_iou).mean()) if refined_iou else None)
        found.append([reconstruct(shapes[n].to(pipeline.device), level.vae, level.refiner) for n in chosen])
    return HeldOut(count, iou, refined, [list(levels) for levels in zip(*found, strict=True)])


def draw_levels(rows: Mapping[str, Sequence[Voxels]], path: Path) -> None:
    """Write a picture with a titled row of shapes, colored by their normals, for each entry; each row has one scale."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{n}.png" for n in range(len(rows))]
        for file, (title, shapes) in zip(files, rows.items(), strict=True):
            titles, colors = [title, *[""] * (len(shapes) - 1)], [shown_colors(v) for v in shapes]
            render_row([v.grid for v in shapes], file, titles=titles, colors=colors, width=TILE * len(shapes))
        stack_pictures(files, path)


def draw_held_out(examples: Sequence[Sequence[Reconstruction]], path: Path) -> None:
    """Write a picture of reconstructions: for each level a row of inputs and a row of outputs."""
    rows: dict[str, list[Voxels]] = {}
    for level in range(len(examples[0])):
        rows[f"level {level}: input"] = [shape[level].input for shape in examples]
        rows[f"level {level}: output"] = [shape[level].best for shape in examples]
    draw_levels({title: shapes for title, shapes in rows.items() if all(v.num_voxels for v in shapes)}, path)


def draw_own_mesh(pipeline: XCubePipeline, source: Source, out: Path, seed: int = 0) -> dict[str, Any]:
    """Reconstruct a mesh of the user and sample its fine levels from its coarse voxels.

    The meshes of both are written to a folder named like the source, and a picture to that of the pictures.

    Args:
        pipeline: The networks.
        source: The mesh.
        out: Folder of the demo.
        seed: Seed of the samples.

    Returns:
        Values for the page.
    """
    box = pipeline.box
    levels = build_hierarchy(source.load(), box, outside="rescale", fill=True)
    back = pipeline.reconstruct(levels[-1])
    again = pipeline.upsample(
        levels[0].unbind()[0], SampleOptions(seed=seed, quiet=True), level=1, numbers=range(VARIANTS)
    )
    rows = {
        "input": [each.input for each in back],
        "reconstruction": [each.best for each in back],
        "from coarse voxels": [levels[0], *(each.finest for each in again)],
    }
    picture = f"{PICTURES}/{source.name.replace('/', '-')}.png"
    draw_levels({title: shapes for title, shapes in rows.items() if all(v.num_voxels for v in shapes)}, out / picture)
    made = {"reconstruction": back[-1].best} | {f"variant-{n}": each.finest for n, each in enumerate(again)}
    meshes = {name: f"{source.name}/{name}.glb" for name, voxels in made.items() if voxels.num_voxels}
    for name, file in meshes.items():
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        save_mesh(to_mesh(made[name]), out / file)
    text = " and ".join(
        f"{each.metrics()['iou']:.3f} at {n}^3" for each, n in zip(back, pipeline.resolutions, strict=True)
    )
    return {
        "name": unquote(source.name),
        "picture": quote(picture),
        "text": f"IoU {text}",
        "meshes": {name: quote(file) for name, file in meshes.items()},
    }


def draw_shape(levels: Sequence[Voxels], path: Path) -> None:
    """Write a picture of the levels of a shape, colored by their normals, and of its mesh."""
    mesh = to_mesh(levels[-1])
    row: list[Grid | Mesh] = [*(voxels.grid for voxels in levels), mesh]
    titles = [*map(size_title, levels), f"mesh of {len(mesh.faces):,} triangles"]
    render_row(row, path, titles=titles, colors=[*map(shown_colors, levels), None], width=TILE * len(row))


def draw_samples(samples: SampleFolder, near: Mapping[int, Mapping[str, Any]], data: Path, out: Path) -> None:
    """Write a picture of each sample that is not empty: its levels, and next to them the nearest training shape.

    Args:
        samples: The folder of the samples.
        near: Metrics of each sample to draw, by its number, from `Evaluation.samples`.
        data: Folder of the dataset.
        out: Folder for the pictures, which are named like the samples.
    """
    out.mkdir(parents=True, exist_ok=True)
    training = ShapeFolder[Voxels](data, "train", level=-1)
    indices = {entry.name: item for item, entry in enumerate(training.entries)}
    for number, metadata in near.items():
        levels = samples.levels(number)
        nearest = training[indices[metadata["nearest_chamfer_shape"]]]
        shown = {size_title(voxels): voxels for voxels in levels} | {"nearest training shape": nearest}
        if not all(voxels.num_voxels for voxels in shown.values()):
            continue
        file = out / f"{samples.file(number).stem}.png"
        grids, colors = [v.grid for v in shown.values()], [shown_colors(v) for v in shown.values()]
        render_row(grids, file, titles=list(shown), colors=colors, width=TILE * len(shown))


def size_title(voxels: Voxels) -> str:
    """Describe voxels by their number and size."""
    return f"{voxels.num_voxels:,} voxels of 1/{round(1 / voxels.grid.voxel_size[0])}"


def draw_curves(runs: Path, names: Sequence[str], path: Path) -> None:
    """Write a picture of the training losses, smoothed, and the validation losses of runs."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(names), figsize=(3.2 * len(names), 2.6), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        with (runs / name / "logs" / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        for column, style in (("train/loss", "-"), ("val/loss", "o")):
            points = [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]
            if points:
                steps, values = zip(*points, strict=True)
                smooth = values if style == "o" else smoothed(values)
                axis.plot(steps, smooth, style, label="held-out" if style == "o" else "training")
        axis.set(title=name, xlabel="step", yscale="log")
        axis.grid(visible=True, alpha=0.3)
    axes[0][0].set_ylabel("loss")
    axes[0][-1].legend()
    figure.tight_layout()
    with atomic_write(path) as picture:
        figure.savefig(picture, dpi=110, format="png")
    pyplot.close(figure)


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the exponential moving average of values."""
    made = [values[0]]
    for value in values[1:]:
        made.append(made[-1] + SMOOTH * (value - made[-1]))
    return made


def write_page(path: Path, **values: Any) -> None:
    """Fill the template of the page; pictures that it shows are already in the folder of the page.

    Raises:
        ImportError: If jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ImportError("the page needs jinja2: pip install 'sparsevox[xcube]'") from error
    template = (resources.files("xcube.commands") / "report.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    with atomic_write(path) as file:
        file.write(page.from_string(template).render(**values).encode())
