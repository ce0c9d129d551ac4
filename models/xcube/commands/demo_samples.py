"""`xcube demo` without --train: samples, meshes and a page, with the weights in the package."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from xcube.commands.demo_folder import logger, other_samples, own_meshes, prepare_demo, shell_lines
from xcube.commands.list_types import Names
from xcube.commands.report import PICTURES, draw_own_mesh, draw_shape, write_page
from xcube.commands.sample import sample
from xcube.data.axes import Up
from xcube.pipeline.options import SampleOptions
from xcube.pipeline.output import GALLERY, PAGE, SampleFolder
from xcube.pipeline.packaged import packaged_model
from xcube.pipeline.pipeline import XCubePipeline

SAMPLES = 16


def sample_demo(out: Path, mesh: Sequence[Path], up: Up, seed: int, restart: bool, quiet: bool) -> int:
    """Generate shapes with the weights in the package. The arguments are those of `xcube demo`."""
    log, model = logger(quiet), packaged_model()
    pipeline = XCubePipeline.from_pretrained(model).to("cuda" if torch.cuda.is_available() else "cpu")
    own = own_meshes(mesh, up, pipeline.box)
    prepare_demo(out, {"weights": model.name}, restart)
    categories, folder = Names(pipeline.levels[0].categories), out / "samples"

    log(f"sampling: {SAMPLES} shapes, seed {seed}")
    again = restart or other_samples(folder, model, seed)
    options = SampleOptions(seed=seed, quiet=quiet)
    sample(model, out=folder, count=SAMPLES, category=categories, options=options, restart=again)

    log(f"pictures, and reconstructions and variants of your meshes ({len(own)})" if own else "pictures")
    (out / PICTURES).mkdir(exist_ok=True)
    samples = SampleFolder(folder)
    full = [number for number in range(SAMPLES) if samples.file(number).with_suffix(".glb").is_file()]
    if full:
        shutil.copyfile(folder / GALLERY, out / GALLERY)
        draw_shape(samples.levels(full[0]), out / PICTURES / "levels.png")
    kinds = {number: categories[number % len(categories)] for number in full}
    commands = _next_commands(folder / "levels" / "0" / samples.file(full[0] if full else 0).name)
    write_page(
        out / PAGE,
        title=f"XCube, {' and '.join(f'{n}^3' for n in pipeline.resolutions)} voxels",
        summary="Shapes generated from noise, level by level, with the weights in the package.",
        pictured=bool(full),
        count=SAMPLES,
        levels=f"{samples.file(full[0]).stem}, {kinds[full[0]]}" if full else None,
        meshes=[(samples.file(n).stem, kind, f"samples/{samples.file(n).stem}.glb") for n, kind in kinds.items()],
        samples=None,
        metrics=None,
        own=[draw_own_mesh(pipeline, source, out, seed) for source, _ in own],
        training=None,
        commands=commands,
    )
    log("done")
    sys.stdout.write(f"open {out / PAGE} in a browser, or view {out / GALLERY}; meshes are in {folder}\n\nnext:\n")
    sys.stdout.write("".join(f"  {command}\n" for command in commands))
    return 0


def _next_commands(coarse: Path) -> list[str]:
    """Commands for the next steps."""
    return shell_lines(
        ["sample", "--category", "chair", "--count", 4, "--out", "chairs"],
        ["upsample", coarse, "--count", 4, "--out", "finer"],
        ["demo", "--mesh", "YOUR_MESH.glb", "--up", "y", "--out", "mine"],
        ["demo", "--train"],
    )
