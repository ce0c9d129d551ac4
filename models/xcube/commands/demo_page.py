"""What `xcube demo` shows: metrics, pictures, and a page of them."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import torch

from sparsevox.files import atomic_write
from xcube.commands.evaluate import COLUMNS, cells
from xcube.commands.options import MIN_COMPONENT
from xcube.commands.report import (
    PICTURES,
    Unseen,
    draw_curves,
    draw_levels,
    draw_samples,
    draw_unseen,
    reconstruct_split,
    write_page,
)
from xcube.data import Source
from xcube.data.hierarchy import Box, build_hierarchy
from xcube.evaluation.evaluate import Evaluation, evaluate_folder
from xcube.networks.pretrained import digest
from xcube.pipeline.options import SampleOptions
from xcube.pipeline.output import GALLERY, SETTINGS, SampleFolder, gallery
from xcube.pipeline.pipeline import XCubePipeline

METRICS, PAGE = "metrics.json", "index.html"
SHOWN = 16  # samples
POINTS = 1024  # of a shape, for distances: half of the usual number, in half of the time
VARIANTS = 2  # of each mesh of the user
OWN_SHOWN = 8  # meshes of the user

Trained = Mapping[str, Mapping[str, float]]


def show(out: Path, trained: Trained, own: Sequence[tuple[Source, Path]], preset: str, quiet: bool) -> None:
    """Write metrics.json, gallery.png, pictures and index.html, unless they are there and of the same samples.

    Args:
        out: Folder of the demo, with data, runs and samples.
        trained: Figures of the networks.
        own: Meshes of the user.
        preset: Of the networks.
        quiet: Show no progress.
    """
    made_of = digest(out / "samples" / SETTINGS)
    if _made_of(out) == made_of:
        return
    pipeline = XCubePipeline.from_pretrained(out / "runs").to("cuda" if torch.cuda.is_available() else "cpu")
    (out / PICTURES).mkdir(exist_ok=True)
    (out / GALLERY).unlink(missing_ok=True)  # that of other samples
    evaluation = evaluate_folder(out / "samples", out / "data", points=POINTS, quiet=quiet)
    unseen = reconstruct_split(pipeline, out / "data")
    metrics = {
        "samples": evaluation.rows,
        "unseen": {"shapes": unseen.shapes, "iou": unseen.iou, "refined": unseen.refined},
        "training": trained,
        "made_of": made_of,
    }
    draw_unseen(unseen.examples, out / PICTURES / "unseen.png")
    draw_curves(out / "runs", list(trained), out / PICTURES / "curves.png")
    write_page(
        out / PAGE,
        title=f"XCube, {' and '.join(f'{n}^3' for n in pipeline.resolutions)} voxels",
        summary=_summary(evaluation, unseen),
        made=evaluation.settings["samples"],
        samples=_samples(out, evaluation),
        columns=list(COLUMNS.values()),
        metrics=cells(evaluation.rows),
        unseen=_unseen_rows(pipeline, unseen),
        unseen_shapes=unseen.shapes,
        examples=len(unseen.examples),
        own=[_own(pipeline, source, out) for source, _ in own[:OWN_SHOWN]],
        training=[_training_row(name, values) for name, values in trained.items()],
        pictured=(out / GALLERY).is_file(),
        commands=_commands(out, preset, [path for _, path in own]),
    )
    with atomic_write(out / METRICS) as file:  # last: where it is, all is
        file.write((json.dumps(metrics, indent=2) + "\n").encode())


def _made_of(out: Path) -> Any:
    """Of which samples the metrics are that are there."""
    try:
        return json.loads((out / METRICS).read_text())["made_of"]
    except (KeyError, OSError, TypeError, ValueError):
        return None


def _summary(evaluation: Evaluation, unseen: Unseen) -> str:
    row, real = evaluation.rows["samples"], evaluation.rows["training"]
    iou = " and ".join(f"{value:.3f}" for value in unseen.iou)
    apart, error = f"{row['one_nna']:.1%}", f"{row['one_nna_error']:.1%}"
    return (
        "New shapes out of noise, level by level. Shapes that the networks have not seen come through the VAEs with an "
        f"IoU of {iou}. A nearest neighbor tells {row['shapes']} samples from held-out shapes in {apart} of the cases "
        f"(±{error}; 50 % is ideal, training shapes give {real['one_nna']:.1%}). {row['empty']} samples are empty, "
        f"{row['one_component']:.0%} are connected; components of less than {MIN_COMPONENT:.0%} of a shape are removed."
    )


def _samples(out: Path, evaluation: Evaluation) -> list[dict[str, Any]]:
    """The first samples, in the gallery and one by one."""
    folder = SampleFolder(out / "samples")
    near = {int(each["name"].rpartition("-")[2]): each for each in evaluation.samples}
    first = {number: near[number] for number in sorted(near)[:SHOWN]}
    draw_samples(folder, first, out / "data", out / PICTURES)
    finest = {folder.file(number).stem: folder.levels(number)[-1] for number in first}
    full = {name: voxels for name, voxels in finest.items() if voxels.num_voxels}
    if full:
        gallery(full, out / GALLERY)
    return [
        {
            "name": name,
            "picture": f"{PICTURES}/{name}.png" if name in full else "",
            "mesh": f"samples/{name}.glb" if name in full else "",
            "text": _sample_text(each),
        }
        for name, each in zip(finest, first.values(), strict=True)
    ]


def _sample_text(each: Mapping[str, Any]) -> str:
    if not each["voxels"]:
        return "empty"
    parts = "one part" if each["components"] == 1 else f"{each['components']} parts"
    return f"{parts}; nearest {each['nearest_chamfer_shape']}, greatest IoU {each['nearest_iou']:.1%}"


def _unseen_rows(pipeline: XCubePipeline, unseen: Unseen) -> list[tuple[str, str, str]]:
    refined = ["-" if value is None else f"{value:.3f}" for value in unseen.refined]
    rows = zip(pipeline.resolutions, unseen.iou, refined, strict=True)
    return [(f"{n}^3", f"{iou:.3f}", repaired) for n, iou, repaired in rows]


def _training_row(name: str, values: Mapping[str, float]) -> tuple[str, ...]:
    iou = f"{values['iou']:.3f}" if "iou" in values else ""
    return name, f"{values['steps']:,.0f}", f"{values['seconds']:,.0f}", f"{values['loss']:.3f}", iou


def _own(pipeline: XCubePipeline, source: Source, out: Path) -> dict[str, Any]:
    """A mesh of the user: reconstructed, and made again from its coarse voxels."""
    box = Box(pipeline.resolutions, pipeline.size)
    levels = build_hierarchy(source.load(), box, outside="rescale")
    back = pipeline.reconstruct(levels[-1])
    options = SampleOptions(sampler="ddpm", min_component=MIN_COMPONENT, quiet=True)
    again = pipeline.upsample(levels[0].unbind()[0], options, level=1, numbers=range(VARIANTS))
    rows = {
        "in": [each.input for each in back],
        "out": [each.best for each in back],
        "from its coarse voxels": [levels[0], *(each.finest for each in again)],
    }
    picture = f"{PICTURES}/{source.name.replace('/', '-')}.png"
    draw_levels({title: shapes for title, shapes in rows.items() if all(v.num_voxels for v in shapes)}, out / picture)
    text = " and ".join(
        f"{each.metrics()['iou']:.3f} at {n}^3" for each, n in zip(back, pipeline.resolutions, strict=True)
    )
    return {"name": unquote(source.name), "picture": quote(picture), "text": f"IoU {text}"}


def _commands(out: Path, preset: str, own: Sequence[Path]) -> list[str]:
    """What to do next, as it can be pasted into a shell."""
    runs, coarse = out / "runs", out / "samples" / "levels" / "0" / "shape-000000.npz"
    again: list[object] = ["--preset", preset, *(["--mesh", *own] if own else [])]
    how = ("--sampler", "ddpm", "--min_component", MIN_COMPONENT)
    words: list[list[object]] = [
        ["sample", "--model", runs, "--count", 100, "--seed", 1, *how, "--out", "more"],
        ["upsample", coarse, "--model", runs, "--count", 4, *how, "--out", "finer"],
        ["evaluate", out / "samples", "--data", out / "data", "--emd"],
        ["demo", "--out", out, *again, "--minutes", 60],
    ]
    return [shlex.join(["xcube", *map(str, each)]) for each in words]
