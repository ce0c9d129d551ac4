"""`xcube sample` and `xcube upsample`: generate shapes with trained networks."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparsevox import Voxels
from sparsevox.io import load_voxels
from xcube.commands.list_types import Names
from xcube.data.axes import Up, upright
from xcube.data.hierarchy import Box, build_hierarchy
from xcube.data.painted import SUFFIX as PAINTED
from xcube.data.painted import load_painted
from xcube.data.sources import load_shape
from xcube.networks.pretrained import digest
from xcube.pipeline.options import Sample, SampleOptions
from xcube.pipeline.packaged import packaged_model

if TYPE_CHECKING:
    from xcube.pipeline.pipeline import XCubePipeline

VOXELS = (".npz", ".npy")
# Options on which the shapes do not depend, or that only Python has.
NOT_SETTINGS = ("batch_size", "budget", "quiet", "hooks", "conditions")


@dataclass(frozen=True)
class Start:
    """Coarse voxels that shapes start from, the level that takes them, and the file and axis that they come from."""

    shape: Voxels
    level: int | None
    file: Path
    up: Up


def sample(
    model: Path | None = None,
    resolution: int | None = None,
    out: Path = Path("samples"),
    count: int = 16,
    category: Names | None = None,
    options: SampleOptions = SampleOptions(),  # noqa: B008  (immutable)
    device: str = "auto",
    restart: bool = False,
) -> int:
    """Generate shapes from noise, and write voxels, meshes, a picture and an HTML page.

    Every shape is written as soon as it is finished. The same command continues after an interruption, or with a larger
    count, and keeps finished shapes.

    Args:
        model: Folder of a saved pipeline, or of training runs: vae-0, denoiser-0, refiner-0, vae-1 and so on; by
            default the model `shapes` of the package.
        resolution: Number of voxels along the first axis of the box, which must be that of one of the levels; by
            default 64 for the model `shapes`, which also has 16 and 128, and that of the finest level for others.
        out: Output folder.
        count: Number of shapes.
        category: Category of the shapes, for class-conditional models; a list such as chair,lamp is cycled through.
        options: Options of sampling.
        device: Device to run on: cpu, cuda, or auto (a GPU if available).
        restart: Remove the shapes in the folder and start from scratch.
    """
    folder = packaged_model() if model is None else model
    pipeline = load_pipeline(folder, count, device, resolution)
    return _fill_folder(pipeline, folder, out, count, category, options, restart, resolution=resolution)


def upsample(
    file: Path,
    model: Path | None = None,
    resolution: int | None = None,
    level: int | None = None,
    up: Up = "z",
    out: Path = Path("upsampled"),
    count: int = 1,
    category: Names | None = None,
    options: SampleOptions = SampleOptions(),  # noqa: B008  (immutable)
    device: str = "auto",
    restart: bool = False,
) -> int:
    """Generate finer shapes from coarse voxels, and write voxels, meshes, a picture and an HTML page.

    Normals are estimated if a network needs them and the voxels have none. The same command continues after an
    interruption.

    Args:
        file: File of one shape: voxels (.npz or .npy), or a mesh or a point cloud, which is voxelized for the level. A
            MagicaVoxel file (.vox) holds the voxels that the level takes, around the origin of its scene.
        model: Folder of a saved pipeline, or of training runs: vae-0, denoiser-0, refiner-0, vae-1 and so on; by
            default the model `shapes` of the package.
        resolution: Number of voxels along the first axis of the box, which must be that of one of the levels; by
            default 64 for the model `shapes`, which also has 16 and 128, and that of the finest level for others.
        level: First level to generate; by default the one that takes voxels of this size, or 1 if the file has no voxel
            size.
        up: Axis that points up in the file, "z" or "y"; a mesh or points with y up are rotated so that z points up.
        out: Output folder.
        count: Number of variants.
        category: Category of the shapes, for class-conditional models; a list such as chair,lamp is cycled through.
        options: Options of sampling.
        device: Device to run on: cpu, cuda, or auto (a GPU if available).
        restart: Remove the shapes in the folder and start from scratch.
    """
    folder = packaged_model() if model is None else model
    pipeline = load_pipeline(folder, count, device, resolution)
    shape = _coarse_voxels(file, pipeline, level, up)
    start = Start(shape, level, file, up)
    return _fill_folder(pipeline, folder, out, count, category, options, restart, resolution=resolution, start=start)


def load_pipeline(model: Path, count: int, device: str, resolution: int | None) -> "XCubePipeline":
    """The pipeline of a folder on a device, after cheap checks of the arguments."""
    from xcube.pipeline.pipeline import XCubePipeline  # slow to import, and other commands do not need it

    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # torch raises either for a missing device
        raise ValueError(f"device must be available on this machine, got {device!r}: {error}") from error
    return XCubePipeline.from_pretrained(model, resolution=resolution).to(device)


def _coarse_voxels(file: Path, pipeline: "XCubePipeline", level: int | None, up: Up) -> Voxels:
    """The shape of a file, as coarse as the latent grid of a level."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file")
    suffix = file.suffix.lower()
    if suffix in (*VOXELS, PAINTED) and up != "z":
        raise ValueError(f"up must be 'z' for voxels, got {up!r}")
    if suffix in VOXELS:
        voxels = load_voxels(file)
        if voxels.batch_size != 1:
            raise ValueError(f"{file} must hold one shape, got {voxels.batch_size}")
        return voxels
    number = 1 if level is None else level
    if not 1 <= number < len(pipeline.levels):
        raise ValueError(f"level must lie in [1, {len(pipeline.levels)}) for a file without voxel size, got {number}")
    box, fill = Box(pipeline.resolutions, pipeline.size), pipeline.levels[number].denoiser.config.fill
    if suffix == PAINTED:
        return load_painted(file, box, number - 1)
    return build_hierarchy(upright(load_shape(file), up), box, outside="rescale", fill=fill)[number - 1]


def _fill_folder(
    pipeline: "XCubePipeline",
    model: Path,
    out: Path,
    count: int,
    category: Names | None,
    options: SampleOptions,
    restart: bool,
    *,
    resolution: int | None,
    start: Start | None = None,
) -> int:
    """Generate the shapes that a folder lacks, and draw all of them."""
    from xcube.pipeline.checkpoint import fingerprint
    from xcube.pipeline.output import GALLERY, PAGE, SampleFolder

    def generate(numbers: Sequence[int]) -> Iterator[Sample]:
        names = [category[number % len(category)] for number in numbers] if category else None
        shape, level = (None, None) if start is None else (start.shape, start.level)
        return pipeline.stream(numbers, options.with_changes(category=names), shape=shape, level=level)

    generate(range(len(category or [0])))  # raises errors before the folder is made
    settings: dict[str, Any] = {name: value for name, value in asdict(options).items() if name not in NOT_SETTINGS}
    settings |= {"model": fingerprint(model), "category": category}
    settings |= {} if resolution is None else {"resolution": resolution}
    if start is not None:
        settings |= {"file": digest(start.file), "level": start.level}
        settings |= {"up": start.up} if start.up != "z" else {}
    folder = SampleFolder(out, settings, restart=restart)
    missing = folder.missing(count)
    if missing:
        (out / PAGE).unlink(missing_ok=True)  # it shows fewer shapes
        for number, generated in zip(missing, generate(missing), strict=True):
            folder.write(number, generated)
    if missing or not (out / PAGE).is_file():
        folder.show(count, out.name)
    kept = f", {count - len(missing)} already existed" if len(missing) < count else ""
    sys.stdout.write(f"{len(missing)} shapes generated{kept}\n")
    if (out / PAGE).is_file():
        sys.stdout.write(f"view {out / GALLERY}, or open {out / PAGE} in a browser\n")
    return 0
