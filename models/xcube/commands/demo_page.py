"""The page of `xcube demo --train`: metrics and pictures of the samples, the reconstructions and the training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sparsevox.files import atomic_write
from xcube.commands.demo_folder import OwnMesh, shell_lines
from xcube.commands.evaluate import COLUMNS, cells
from xcube.commands.report import (
    PICTURES,
    HeldOut,
    draw_curves,
    draw_held_out,
    draw_own_mesh,
    draw_samples,
    reconstruct_split,
    write_page,
)
from xcube.data.axes import Up
from xcube.evaluation.evaluate import Evaluation, evaluate_folder
from xcube.networks.pretrained import digest
from xcube.pipeline.output import GALLERY, SETTINGS, SampleFolder, draw_gallery
from xcube.pipeline.pipeline import XCubePipeline

METRICS, PAGE = "metrics.json", "index.html"
SAMPLES_SHOWN = 16
POINTS = 1024  # per shape for distances: half of the default, in half of the time
OWN_SHOWN = 8  # meshes of the user

TrainingMetrics = Mapping[str, Mapping[str, float]]


def write_demo_page(
    out: Path, trained: TrainingMetrics, own: Sequence[OwnMesh], preset: str, up: Up, quiet: bool
) -> None:
    """Write metrics.json, gallery.png, pictures and index.html, unless they exist for the same samples.

    Args:
        out: Folder of the demo, with data, runs and samples.
        trained: Metrics of the training of each network, by its name.
        own: Meshes of the user with their files.
        preset: Preset of the networks.
        up: Axis that points up in the files of these meshes.
        quiet: Hide the progress.
    """
    settings = digest(out / "samples" / SETTINGS)
    if _page_settings(out) == settings:
        return
    pipeline = XCubePipeline.from_pretrained(out / "runs").to("cuda" if torch.cuda.is_available() else "cpu")
    (out / PICTURES).mkdir(exist_ok=True)
    (out / GALLERY).unlink(missing_ok=True)  # it shows other samples
    evaluation = evaluate_folder(out / "samples", out / "data", points=POINTS, quiet=quiet)
    held_out = reconstruct_split(pipeline, out / "data")
    metrics = {
        "samples": evaluation.rows,
        "held_out": {"shapes": held_out.shapes, "iou": held_out.iou, "refined": held_out.refined},
        "training": trained,
        "settings": settings,
    }
    draw_held_out(held_out.examples, out / PICTURES / "held_out.png")
    draw_curves(out / "runs", list(trained), out / PICTURES / "curves.png")
    write_page(
        out / PAGE,
        title=f"XCube, {' and '.join(f'{n}^3' for n in pipeline.resolutions)} voxels",
        summary=_summary(evaluation, held_out),
        count=evaluation.settings["samples"],
        samples=_samples(out, evaluation),
        levels=None,
        columns=list(COLUMNS.values()),
        metrics=cells(evaluation.rows),
        held_out=_held_out_rows(pipeline, held_out),
        held_out_shapes=held_out.shapes,
        examples=len(held_out.examples),
        own=[draw_own_mesh(pipeline, source, out) for source, _ in own[:OWN_SHOWN]],
        training=[_training_row(name, values) for name, values in trained.items()],
        pictured=(out / GALLERY).is_file(),
        commands=_commands(out, preset, [path for _, path in own], up),
    )
    with atomic_write(out / METRICS) as file:  # last: if it exists, all of them do
        file.write((json.dumps(metrics, indent=2) + "\n").encode())


def _page_settings(out: Path) -> Any:
    """The digest of the settings of the samples that an existing page shows."""
    try:
        return json.loads((out / METRICS).read_text())["settings"]
    except (KeyError, OSError, TypeError, ValueError):
        return None


def _summary(evaluation: Evaluation, held_out: HeldOut) -> str:
    row, real = evaluation.rows["samples"], evaluation.rows["training"]
    iou = " and ".join(f"{value:.3f}" for value in held_out.iou)
    return (
        "Shapes generated from noise, level by level. The VAEs reconstruct held-out shapes with a voxel IoU of "
        f"{iou}. 1-NNA of {row['shapes']} samples: {row['one_nna']:.1%} ± {row['one_nna_error']:.1%} (50 % is ideal; "
        f"training shapes have {real['one_nna']:.1%}). {row['empty']} samples are empty, {row['one_component']:.0%} "
        f"have a single component, {row['watertight']:.0%} are watertight."
    )


def _samples(out: Path, evaluation: Evaluation) -> list[dict[str, Any]]:
    """Draw the first samples, in the gallery and one by one, and describe them for the page."""
    folder = SampleFolder(out / "samples")
    near = {int(each["name"].rpartition("-")[2]): each for each in evaluation.samples}
    first = {number: near[number] for number in sorted(near)[:SAMPLES_SHOWN]}
    draw_samples(folder, first, out / "data", out / PICTURES)
    finest = {folder.file(number).stem: folder.levels(number)[-1] for number in first}
    full = {name: voxels for name, voxels in finest.items() if voxels.num_voxels}
    if full:
        draw_gallery(full, out / GALLERY)
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
    parts = "1 component" if each["components"] == 1 else f"{each['components']} components"
    return f"{parts}; nearest {each['nearest_chamfer_shape']}, largest IoU {each['nearest_iou']:.1%}"


def _held_out_rows(pipeline: XCubePipeline, held_out: HeldOut) -> list[tuple[str, str, str]]:
    refined = ["-" if value is None else f"{value:.3f}" for value in held_out.refined]
    rows = zip(pipeline.resolutions, held_out.iou, refined, strict=True)
    return [(f"{n}^3", f"{iou:.3f}", refined_iou) for n, iou, refined_iou in rows]


def _training_row(name: str, values: Mapping[str, float]) -> tuple[str, ...]:
    iou = f"{values['iou']:.3f}" if "iou" in values else ""
    return name, f"{values['steps']:,.0f}", f"{values['seconds']:,.0f}", f"{values['loss']:.3f}", iou


def _commands(out: Path, preset: str, own: Sequence[Path], up: Up) -> list[str]:
    """Commands for the next steps."""
    runs, coarse = out / "runs", out / "samples" / "levels" / "0" / "shape-000000.npz"
    same: list[object] = ["--preset", preset, *(["--mesh", *own, "--up", up] if own else [])]
    return shell_lines(
        ["sample", "--model", runs, "--count", 100, "--seed", 1, "--out", "more"],
        ["upsample", coarse, "--model", runs, "--count", 4, "--out", "finer"],
        ["evaluate", out / "samples", "--data", out / "data", "--emd"],
        ["demo", "--train", "--out", out, *same, "--minutes", 60],
    )
