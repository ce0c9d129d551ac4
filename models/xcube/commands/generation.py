"""Shared parts of the commands that generate shapes: the pipeline, the shape in a file, and the folder of results."""

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from sparsevox import Mesh, Voxels
from sparsevox.io import load_voxels
from xcube.data.axes import Up, upright
from xcube.data.hierarchy import Box, Outside, build_hierarchy
from xcube.data.painted import SUFFIX as PAINTED
from xcube.data.painted import load_painted, load_scaled
from xcube.data.sources import load_shape
from xcube.geometry.solids import Region
from xcube.networks.pretrained import digest
from xcube.pipeline.options import Sample, SampleOptions
from xcube.pipeline.packaged import packaged_model

if TYPE_CHECKING:
    from xcube.pipeline.pipeline import XCubePipeline

AXES = "xyz"
VOXELS = (".npz", ".npy")
# Options on which the shapes do not depend, or that only Python has.
NOT_SETTINGS = ("batch_size", "budget", "quiet", "hooks", "conditions", "starts")


def load_pipeline(
    model: Path | None, resolution: int | None, count: int, device: str
) -> tuple["XCubePipeline", dict[str, Any]]:
    """The pipeline of a folder on a device, and the settings that name it, after cheap checks of the arguments.

    Args:
        model: The folder, by default that of the model in the package.
        resolution: Resolution of the finest level to load, by default as the folder says.
        count: Number of shapes.
        device: The device, or "auto".
    """
    from xcube.pipeline.checkpoint import fingerprint  # slow to import, and other commands do not need them
    from xcube.pipeline.pipeline import XCubePipeline

    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # torch raises either for a missing device
        raise ValueError(f"device must be available on this machine, got {device!r}: {error}") from error
    folder = packaged_model() if model is None else model
    pipeline = XCubePipeline.from_pretrained(folder, resolution=resolution).to(device)
    settings: dict[str, Any] = {"model": fingerprint(folder)}
    return pipeline, settings | ({} if resolution is None else {"resolution": resolution})


def finest_voxels(file: Path, pipeline: "XCubePipeline", up: Up, outside: Outside = "rescale") -> Voxels:
    """The voxels of the finest level of a shape in a file; meshes and points are treated as `build_hierarchy` says."""
    check_voxel_file(file, up)
    suffix = file.suffix.lower()
    if suffix in VOXELS:
        return load_voxels(file)
    box = pipeline.box
    if suffix == PAINTED:
        return load_painted(file, box, -1)
    return build_hierarchy(upright(load_shape(file), up), box, outside=outside)[-1]


def is_mesh(file: Path) -> bool:
    """Whether a file holds a mesh or points, by its name, and not voxels."""
    return file.suffix.lower() not in (*VOXELS, PAINTED)


def check_voxel_file(file: Path, up: Up) -> None:
    """Raise FileNotFoundError if there is no such file, or ValueError if it holds voxels and is to be rotated."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file")
    if not is_mesh(file) and up != "z":
        raise ValueError(f"up must be 'z' for voxels, got {up!r}")


def region_of(name: str, text: str, box: Box) -> Region:
    """The part of space that a word of the command line stands for."""
    path = Path(text)
    if path.is_file():
        if path.suffix.lower() == PAINTED:
            return load_scaled(path, box, -1)
        shape = load_voxels(path) if path.suffix.lower() in VOXELS else load_shape(path)
        if not isinstance(shape, Voxels | Mesh):
            raise ValueError(f"{name} must be a mesh or voxels, got the points of {path}")
        return shape
    if "=" not in text:
        raise FileNotFoundError(f"{name}: there is no file {text}, and it is no box such as x=-0.1:0.1,z=0.2:")
    low, high = [-math.inf] * 3, [math.inf] * 3
    for part in text.split(","):
        axis, _, ends = part.strip().partition("=")
        first, colon, last = ends.partition(":")
        if axis not in tuple(AXES) or not colon:
            raise ValueError(f"{name} must be a file or a box such as x=-0.1:0.1,z=0.2:, got {text!r}")
        place = AXES.index(axis)
        try:
            low[place], high[place] = float(first or -math.inf), float(last or math.inf)
        except ValueError as error:
            raise ValueError(f"{name} must have numbers as ends of ranges, got {text!r}") from error
    return low, high


def settings_of(options: SampleOptions, *, files: Sequence[Path] = (), **others: Any) -> dict[str, Any]:
    """Settings that determine shapes: options of sampling, the contents of files, and others, as JSON values."""
    found = {name: value for name, value in asdict(options).items() if name not in NOT_SETTINGS}
    found |= {"files": {str(file): digest(file) for file in files}} if files else {}
    return found | others


def write_shapes(
    out: Path,
    settings: Mapping[str, Any],
    count: int,
    generate: Callable[[Sequence[int]], Iterable[Sample]],
    *,
    restart: bool,
    columns: int | None = None,
    others: Mapping[str, Sequence[Voxels]] = MappingProxyType({}),
) -> int:
    """Generate the shapes that a folder lacks, draw all of them, and say so. The exit status is 0.

    Args:
        out: The folder.
        settings: JSON values that determine the shapes.
        count: Number of shapes in the folder.
        generate: Function of the numbers of shapes that generates them, in this order.
        restart: Whether to generate all of them again.
        columns: Number of shapes in a row of the picture, by default four.
        others: Levels of other shapes to show before them, by their titles.
    """
    from xcube.pipeline.output import COLUMNS, GALLERY, PAGE, SampleFolder  # slow to import

    folder = SampleFolder(out, settings, restart=restart)
    missing = folder.missing(count)
    if missing:
        (out / PAGE).unlink(missing_ok=True)  # it shows fewer shapes
        for number, sample in zip(missing, generate(missing), strict=True):
            folder.write(number, sample)
    if missing or not (out / PAGE).is_file():
        folder.show(count, out.name, others, columns=columns or COLUMNS)
    kept = f", {count - len(missing)} already existed" if len(missing) < count else ""
    sys.stdout.write(f"{len(missing)} shapes generated{kept}\n")
    if (out / PAGE).is_file():
        sys.stdout.write(f"view {out / GALLERY}, or open {out / PAGE} in a browser\n")
    return 0
