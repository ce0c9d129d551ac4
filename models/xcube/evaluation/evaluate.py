"""Evaluation of generated shapes against held-out ones, with the metrics of training shapes for reference.

N voxels of a shape.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sparsevox import Points, Voxels, checks
from sparsevox.files import atomic_write
from sparsevox.io import to_mesh
from xcube.data.loading import ShapeFolder
from xcube.evaluation.load import NamedShape, level_of, read_samples
from xcube.evaluation.metrics import ShapeValidity, one_nna_error, set_metrics, shape_validity
from xcube.evaluation.novelty import TRAIN, NearestTraining, nearest_training
from xcube.geometry.distances import Metric, distance_matrix, normal_consistency, shape_points

PointsOn = Literal["voxels", "surface"]

POINTS, EMD_POINTS = 2048, 256  # points per shape

Metrics = dict[str, float | int]


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate_shapes`.

    settings: The dataset, the split, and how shapes were compared.
    rows: Metrics of "samples", of as many "training" shapes in their place, and of the "held_out" shapes that both are
        compared with. A row lacks metrics that are not defined for it.
    samples: For each sample that was compared: name, validity, and the nearest training shapes.
    """

    settings: Mapping[str, Any]
    rows: Mapping[str, Metrics]
    samples: Sequence[Mapping[str, Any]]

    def save(self, path: Path) -> None:
        """Write a JSON file, completely or not at all. Infinite distances, those to empty shapes, become null."""
        with atomic_write(path) as file:
            file.write((json.dumps(_finite(asdict(self)), indent=2, allow_nan=False) + "\n").encode())


def evaluate_shapes(
    samples: Sequence[NamedShape],
    data: str | PathLike[str],
    *,
    split: str = "test",
    count: int = 64,
    level: int = -1,
    on: PointsOn = "voxels",
    points: int = POINTS,
    emd: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Compare generated shapes with held-out shapes of a dataset, and search for copies of training shapes.

    - "one_nna", "coverage" and "mmd" are those of `xcube.evaluation.metrics`, under the squared Chamfer distance of
      `points` points in world units; with `emd` also under the earth mover's distance of 256 points ("emd_one_nna" and
      so on).
    - "normal_consistency" compares each held-out shape with the nearest sample, if all shapes have normals.
    - "one_component", "watertight" and "valid" (both) are fractions of the shapes, "open_edges" is the mean number of
      edges at holes of the surface, and "empty" is a count. No component is removed. The surface is reconstructed from
      the normals of the voxels. Without normals it surrounds the voxels and is always watertight.
    - "nearest_iou" is the largest voxel IoU with a training shape at the coarsest level, "nearest_chamfer" the smallest
      Chamfer distance of voxel centers to one of the eight training shapes of the largest IoU; its mean ignores empty
      shapes. Copies have IoU 1 and distance 0.

    All sets are subsampled at random to the size of the smallest one, and to at most `count`.

    Args:
        samples: Generated shapes of one level of the dataset, for example from `read_samples`.
        data: Folder of the dataset, with a split "train".
        split: The split to compare with.
        count: Maximum number of shapes in each set, at least 2.
        level: The level of the dataset; -1 is the finest.
        on: Points to compare: the centers of "voxels", or points on the "surface" (of voxels: `sv.io.to_mesh`).
        points: Number of points per shape for the Chamfer distance.
        emd: Whether to also compute metrics under the earth mover's distance, which takes a few times as long.
        seed: Random seed of the choice of shapes and points.
        progress: Whether to show progress bars in a terminal.

    Raises:
        FileNotFoundError: If there is no dataset.
        ImportError: If scipy is not installed, or tqdm if `progress`.
        IndexError: If there is no such level.
        ValueError: If an argument is out of range, a set has fewer than two shapes, there is no such split, or voxels
            belong to another level or to none.
    """
    _check(split, count, on, points)
    start = time.perf_counter()
    held_out, training = (ShapeFolder(data, name, level=level) for name in (split, TRAIN))
    used = min(count, len(samples), len(held_out), len(training))
    if used < 2:
        found = f"{len(samples)} samples, {len(held_out)} of {split!r} and {len(training)} of {TRAIN!r}"
        raise ValueError(f"each set must hold at least 2 shapes, got {found}")
    for item in samples:
        if level_of(item.voxels.grid, held_out.card.box) != level % len(held_out.card.box.levels):
            size = held_out.card.box.voxel_size(level)
            raise ValueError(
                f"samples must have voxels of size {size}, got {item.voxels.grid.voxel_size} in {item.name!r}"
            )
    # 1. Draw the same number of shapes from each set, and compute their surfaces.
    drawn = {
        "samples": [samples[n] for n in _draw(len(samples), used, seed)],
        "training": _shapes(training, _draw(len(training), used, seed)),
        "held_out": _shapes(held_out, _draw(len(held_out), used, seed)),
    }
    sets = {name: [_with_surface(item) for item in items] for name, items in _same_attributes(drawn).items()}
    # 2. Are the shapes connected and watertight?
    validity = {name: [shape_validity(item.voxels, item.surface) for item in items] for name, items in sets.items()}
    rows = {name: _validity_metrics(found) for name, found in validity.items()}
    # 3. Does the set of samples resemble that of held-out shapes?
    metrics: tuple[Metric, ...] = ("chamfer", "emd") if emd else ("chamfer",)
    for metric in metrics:
        size = points if metric == "chamfer" else EMD_POINTS
        clouds = {name: [_cloud(item, on, size, seed) for item in items] for name, items in sets.items()}
        for name, row in _distribution_metrics(clouds, metric, progress).items():
            rows[name] |= row
    # 4. Are the samples new?
    near = nearest_training([*sets["samples"], *sets["held_out"]], data, level=level, points=points, seed=seed)
    rows["samples"] |= _novelty_metrics(near[:used])
    rows["held_out"] |= _novelty_metrics(near[used:])
    settings = {
        "data": str(data),
        "split": split,
        "samples": len(samples),
        "shapes": used,
        "resolution": training.card.box.levels[level],
        "on": on,
        "points": points,
        "emd_points": EMD_POINTS if emd else None,
        "seed": seed,
        "seconds": round(time.perf_counter() - start, 1),
    }
    found_each = zip(sets["samples"], validity["samples"], near, strict=False)
    each = [{"name": item.name, "valid": v.valid} | asdict(v) | n._asdict() for item, v, n in found_each]
    return Evaluation(settings, rows, each)


def _check(split: str, count: int, on: str, points: int) -> None:
    if split == TRAIN:
        raise ValueError(f"split must be one that no network was trained on, got {split!r}")
    if checks.integer("count", count) < 2:
        raise ValueError(f"count must be at least 2, got {count}")
    if on not in get_args(PointsOn):
        raise ValueError(f"on must be 'voxels' or 'surface', got {on!r}")
    if checks.integer("points", points) < 1:
        raise ValueError(f"points must be at least 1, got {points}")


def _draw(total: int, count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return sorted(torch.randperm(total, generator=generator)[:count].tolist())


def _shapes(shapes: "ShapeFolder[Voxels]", chosen: Sequence[int]) -> list[NamedShape]:
    return [NamedShape(shapes.entries[n].name, shapes[n]) for n in chosen]


def _same_attributes(sets: Mapping[str, Sequence[NamedShape]]) -> dict[str, list[NamedShape]]:
    """Keep normals of all shapes or of none, since surfaces with and without them differ."""
    everything = [item.voxels for items in sets.values() for item in items]
    keep = all("normal" in voxels.attributes for voxels in everything if voxels.num_voxels)
    kept = ("normal",) if keep else ()
    return {
        name: [
            replace(item, voxels=Voxels(v.grid, {k: v.attributes[k] for k in kept if k in v.attributes}))
            for item in items
            for v in [item.voxels]
        ]
        for name, items in sets.items()
    }


def _with_surface(item: NamedShape) -> NamedShape:
    if item.surface is not None or not item.voxels.num_voxels:
        return item
    return replace(item, surface=to_mesh(item.voxels, "nets"))


def _cloud(item: NamedShape, on: PointsOn, count: int, seed: int) -> Points:
    surface = item.surface if on == "surface" else None
    return shape_points(item.voxels if surface is None else surface, count, seed=seed)


def _validity_metrics(found: Sequence[ShapeValidity]) -> Metrics:
    count = len(found)
    return {
        "shapes": count,
        "empty": sum(v.voxels == 0 for v in found),
        "valid": sum(v.valid for v in found) / count,
        "one_component": sum(v.components == 1 for v in found) / count,
        "watertight": sum(v.watertight for v in found) / count,
        "open_edges": sum(v.open_edges for v in found) / count,
    }


def _distribution_metrics(clouds: Mapping[str, Sequence[Points]], metric: Metric, progress: bool) -> dict[str, Metrics]:
    """Metrics of the samples and of the training shapes, under one distance."""

    def distances(*names: str) -> Tensor:
        title = f"{metric}: {', '.join(names)}" if progress else ""
        return distance_matrix(*([p.positions for p in clouds[name]] for name in names), metric=metric, progress=title)

    made: dict[str, Metrics] = {}
    prefix = "" if metric == "chamfer" else f"{metric}_"
    real = distances("held_out")
    for name in ("samples", "training"):
        between = distances(name, "held_out")
        found = set_metrics(distances(name), between, real)
        made[name] = {prefix + key: value for key, value in asdict(found).items()}
        made[name][prefix + "one_nna_error"] = one_nna_error(sum(between.shape))
        everything = [p for p in (*clouds[name], *clouds["held_out"]) if len(p)]
        if metric == "chamfer" and all("normal" in p.attributes for p in everything):
            pairs = zip(between.argmin(0).tolist(), clouds["held_out"], strict=True)
            agreements = [_agreement(clouds[name][row], real_shape) for row, real_shape in pairs]
            made[name]["normal_consistency"] = sum(agreements) / len(agreements)
    return made


def _agreement(a: Points, b: Points) -> float:
    return normal_consistency(a, b) if len(a) and len(b) else 0.0


def _novelty_metrics(found: Sequence[NearestTraining]) -> Metrics:
    iou, distance = [n.nearest_iou for n in found], [n.nearest_chamfer for n in found]
    finite = [value for value in distance if math.isfinite(value)]
    return {
        "nearest_iou": sum(iou) / len(iou),
        "nearest_iou_max": max(iou),
        "nearest_chamfer": sum(finite) / len(finite) if finite else math.inf,
        "nearest_chamfer_min": min(distance),
        "copies": sum(value == 1 for value in iou),
    }


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def evaluate_folder(
    samples: Path,
    data: Path,
    split: str = "test",
    count: int = 64,
    level: int = -1,
    on: PointsOn = "voxels",
    points: int = POINTS,
    emd: bool = False,
    seed: int = 0,
    out: Path | None = None,
    quiet: bool = False,
) -> Evaluation:
    """Compare generated shapes with held-out shapes, and search for copies of training shapes.

    The same metrics are computed for training shapes in place of the generated ones, as an estimate of the best
    values that a model can reach.

    Args:
        samples: Folder of the generated shapes: .npz files of voxels or, if there are none, meshes.
        data: Folder of the dataset.
        split: Split of the held-out shapes, test or val.
        count: Maximum number of shapes in each set.
        level: Level of the dataset; 0 is the coarsest, -1 the finest.
        on: Points to compare: the voxel centers ("voxels"), or points sampled on the "surface".
        points: Number of points per shape for the Chamfer distance.
        emd: Also compute metrics under the earth mover's distance of 256 points, which takes a few times as long.
        seed: Random seed of the choice of shapes and points.
        out: Output file of the metrics; by default evaluation.json in the folder of the samples.
        quiet: Hide the progress bar.

    Raises:
        FileNotFoundError: If a folder is missing or holds no shape.
        ValueError: If a file cannot be used, or an option is out of range.
    """
    _check(split, count, on, points)
    box = ShapeFolder(data, split, level=level).card.box
    found = read_samples(samples, box, level)
    evaluation = evaluate_shapes(
        found,
        data,
        split=split,
        count=count,
        level=level,
        on=on,
        points=points,
        emd=emd,
        seed=seed,
        progress=not quiet,
    )
    evaluation.save(samples / "evaluation.json" if out is None else out)
    return evaluation
