"""Generated shapes against a data set: metrics, beside those that real shapes get.

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
from xcube.evaluation.load import Item, level_of, read_samples
from xcube.evaluation.metrics import Soundness, one_nna_error, set_metrics, soundness
from xcube.evaluation.novelty import TRAIN, Near, nearest_training
from xcube.geometry.distances import Metric, distance_matrix, normal_consistency, shape_points

On = Literal["voxels", "surface"]

POINTS, EMD_POINTS = 2048, 256  # of a shape

Metrics = dict[str, float | int]


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    settings: Data set, split, and how shapes were compared.
    rows: Figures of "samples", of as many "training" shapes in their place, and of the "held_out" shapes that both are
        compared with. A row lacks the metrics that make no sense for it.
    samples: Of each sample that was compared its name, its soundness and the nearest training shapes.
    """

    settings: Mapping[str, Any]
    rows: Mapping[str, Metrics]
    samples: Sequence[Mapping[str, Any]]

    def save(self, path: Path) -> None:
        """Write it as JSON, all or nothing; what is infinite, as the distance to nothing, becomes null."""
        with atomic_write(path) as file:
            file.write((json.dumps(_finite(asdict(self)), indent=2, allow_nan=False) + "\n").encode())


def evaluate(
    samples: Sequence[Item],
    data: str | PathLike[str],
    *,
    split: str = "test",
    count: int = 64,
    level: int = -1,
    on: On = "voxels",
    points: int = POINTS,
    emd: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Compare generated shapes with those of a data set that no network was trained on.

    - "one_nna", "coverage" and "mmd" as in `xcube.evaluation.metrics`, under the squared Chamfer distance of `points`
      points in world units; with `emd` also under the earth mover's distance of 256 points, "emd_one_nna" and so on.
    - "normal_consistency": of each held-out shape with the nearest sample, where all shapes have normals.
    - "one_component", "closed" and "valid", which is both: shares of the shapes; "empty" is a number. The surface is
      a smooth one by the normals of the voxels. Without normals it goes around the voxels, and is always closed.
    - "nearest_iou" is the share of voxels that a shape has in common with the training shape that shares most with it,
      at the coarsest level; "nearest_chamfer" the smallest Chamfer distance, of voxel centers, to one of the eight that
      share most; its mean leaves out empty shapes. Copies have 1 and 0.

    As many shapes of each set are compared as there are in the smallest one, `count` at most, drawn at random.

    Args:
        samples: Generated shapes, of one level of the data set; `read_samples` makes them of files.
        data: Folder of the data set, with a split "train".
        split: With which of its shapes to compare.
        count: How many shapes of each set, at least 2.
        level: At which level of the data set; -1 is the finest.
        on: Whether points are centers of voxels, or lie on meshes, those of `sv.io.to_mesh` for voxels.
        points: On each shape, for the Chamfer distance.
        emd: Whether to compute the earth mover's distance too, which takes a few times as long.
        seed: Of the drawing of shapes and points.
        progress: Whether to show progress bars, in a terminal.

    Raises:
        FileNotFoundError: If the data set is none.
        ImportError: If scipy is not installed, or tqdm and progress is wanted.
        IndexError: If there is no such level.
        ValueError: If an argument is out of range, a set holds fewer than two shapes, there is no such split, or voxels
            are of another level, or none.
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
            raise ValueError(f"samples must have voxels of {size}, got {item.voxels.grid.voxel_size} in {item.name!r}")
    drawn = {
        "samples": [samples[n] for n in _drawn(len(samples), used, seed)],
        "training": _items(training, _drawn(len(training), used, seed)),
        "held_out": _items(held_out, _drawn(len(held_out), used, seed)),
    }
    sets = {name: [_with_surface(item) for item in items] for name, items in _same_attributes(drawn).items()}
    sound = {name: [soundness(item.voxels, item.surface) for item in items] for name, items in sets.items()}
    rows = {name: _soundness_metrics(found_sound) for name, found_sound in sound.items()}
    metrics: tuple[Metric, ...] = ("chamfer", "emd") if emd else ("chamfer",)
    for metric in metrics:
        size = points if metric == "chamfer" else EMD_POINTS
        clouds = {name: [_cloud(item, on, size, seed) for item in items] for name, items in sets.items()}
        for name, row in _distribution_metrics(clouds, metric, progress).items():
            rows[name] |= row
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
    found_each = zip(sets["samples"], sound["samples"], near, strict=False)
    each = [{"name": item.name, "valid": s.valid} | asdict(s) | n._asdict() for item, s, n in found_each]
    return Evaluation(settings, rows, each)


def _check(split: str, count: int, on: str, points: int) -> None:
    if split == TRAIN:
        raise ValueError(f"split must be one that no network was trained on, got {split!r}")
    if checks.integer("count", count) < 2:
        raise ValueError(f"count must be at least 2, got {count}")
    if on not in get_args(On):
        raise ValueError(f"on must be 'voxels' or 'surface', got {on!r}")
    if checks.integer("points", points) < 1:
        raise ValueError(f"points must be at least 1, got {points}")


def _drawn(total: int, count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return sorted(torch.randperm(total, generator=generator)[:count].tolist())


def _items(shapes: "ShapeFolder[Voxels]", chosen: Sequence[int]) -> list[Item]:
    return [Item(shapes.entries[n].name, shapes[n]) for n in chosen]


def _same_attributes(sets: Mapping[str, Sequence[Item]]) -> dict[str, list[Item]]:
    """Normals of all shapes or of none: surfaces that are made in two ways would be told apart by that."""
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


def _with_surface(item: Item) -> Item:
    if item.surface is not None or not item.voxels.num_voxels:
        return item
    return replace(item, surface=to_mesh(item.voxels, "nets"))


def _cloud(item: Item, on: On, count: int, seed: int) -> Points:
    surface = item.surface if on == "surface" else None
    return shape_points(item.voxels if surface is None else surface, count, seed=seed)


def _soundness_metrics(found: Sequence[Soundness]) -> Metrics:
    count = len(found)
    return {
        "shapes": count,
        "empty": sum(s.voxels == 0 for s in found),
        "valid": sum(s.valid for s in found) / count,
        "one_component": sum(s.components == 1 for s in found) / count,
        "closed": sum(s.closed for s in found) / count,
    }


def _distribution_metrics(clouds: Mapping[str, Sequence[Points]], metric: Metric, progress: bool) -> dict[str, Metrics]:
    """Figures of the samples and of the training shapes, under one distance."""

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
            found_each = [_agreement(clouds[name][row], real_shape) for row, real_shape in pairs]
            made[name]["normal_consistency"] = sum(found_each) / len(found_each)
    return made


def _agreement(a: Points, b: Points) -> float:
    return normal_consistency(a, b) if len(a) and len(b) else 0.0


def _novelty_metrics(found: Sequence[Near]) -> Metrics:
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
    on: On = "voxels",
    points: int = POINTS,
    emd: bool = False,
    seed: int = 0,
    out: Path | None = None,
    quiet: bool = False,
) -> Evaluation:
    """Compare generated shapes with shapes that no network was trained on, and look for copies of training shapes.

    The same metrics are given for training shapes in the place of the generated ones: that is about
    the best that a model can do.

    Args:
        samples: folder of .npz files of voxels; of meshes, where there are no such files
        data: folder of the data set
        split: with which of its shapes to compare, test or val
        count: how many shapes of each set
        level: at which level of the data set, 0 is the coarsest and -1 the finest
        on: whether points are centers of voxels, or lie on surfaces
        points: on each shape, for the Chamfer distance
        emd: also use the earth mover's distance of 256 points, which takes a few times as long
        seed: of the drawing of shapes and points
        out: file for the metrics; evaluation.json in the folder of the samples by default
        quiet: show no progress bar

    Raises:
        FileNotFoundError: If a folder is missing or holds nothing.
        ValueError: If a file cannot be used, or an option is out of range.
    """
    _check(split, count, on, points)
    box = ShapeFolder(data, split, level=level).card.box
    found = read_samples(samples, box, level)
    how: dict[str, Any] = {"split": split, "count": count, "level": level, "on": on, "points": points}
    made = evaluate(found, data, **how, emd=emd, seed=seed, progress=not quiet)
    made.save(samples / "evaluation.json" if out is None else out)
    return made
