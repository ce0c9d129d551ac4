"""`xcube sample` and `xcube upsample`: generate shapes with trained networks."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsevox import Voxels
from sparsevox.io import load_voxels
from xcube.commands.generation import VOXELS, check_voxel_file, load_pipeline, settings_of, write_shapes
from xcube.commands.list_types import Names
from xcube.data.axes import Up, upright
from xcube.data.hierarchy import build_hierarchy
from xcube.data.painted import SUFFIX as PAINTED
from xcube.data.painted import load_painted
from xcube.data.sources import load_shape
from xcube.networks.pretrained import digest
from xcube.pipeline.options import Sample, SampleOptions

if TYPE_CHECKING:
    from xcube.pipeline.pipeline import XCubePipeline


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
    pipeline, settings = load_pipeline(model, resolution, count, device)
    return _write_samples(pipeline, settings, out, count, category, options, restart)


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
    pipeline, settings = load_pipeline(model, resolution, count, device)
    shape = _coarse_voxels(file, pipeline, level, up)
    settings |= {"file": digest(file), "level": level} | ({"up": up} if up != "z" else {})
    return _write_samples(pipeline, settings, out, count, category, options, restart, shape=shape, level=level)


def _coarse_voxels(file: Path, pipeline: "XCubePipeline", level: int | None, up: Up) -> Voxels:
    """The shape of a file, as coarse as the latent grid of a level."""
    check_voxel_file(file, up)
    suffix = file.suffix.lower()
    if suffix in VOXELS:
        voxels = load_voxels(file)
        if voxels.batch_size != 1:
            raise ValueError(f"{file} must hold one shape, got {voxels.batch_size}")
        return voxels
    number = 1 if level is None else level
    if not 1 <= number < len(pipeline.levels):
        raise ValueError(f"level must lie in [1, {len(pipeline.levels)}) for a file without voxel size, got {number}")
    box, fill = pipeline.box, pipeline.levels[number].denoiser.config.fill
    if suffix == PAINTED:
        return load_painted(file, box, number - 1)
    return build_hierarchy(upright(load_shape(file), up), box, outside="rescale", fill=fill)[number - 1]


def _write_samples(
    pipeline: "XCubePipeline",
    settings: dict[str, Any],
    out: Path,
    count: int,
    category: Names | None,
    options: SampleOptions,
    restart: bool,
    *,
    shape: Voxels | None = None,
    level: int | None = None,
) -> int:
    """Generate the shapes that a folder lacks, from noise or from coarse voxels."""

    def generate(numbers: Sequence[int]) -> Iterator[Sample]:
        names = [category[number % len(category)] for number in numbers] if category else None
        return pipeline.stream(numbers, options.with_changes(category=names), shape=shape, level=level)

    generate(range(len(category or [0])))  # raises errors before the folder is made
    settings = settings_of(options) | settings | {"category": category}
    return write_shapes(out, settings, count, generate, restart=restart)
