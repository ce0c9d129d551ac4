"""`xcube vary` and `xcube interpolate`: variants of a shape, and shapes between two others."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from xcube.commands.generation import check_voxel_file, finest_voxels, is_mesh, load_pipeline, settings_of, write_shapes
from xcube.data.axes import Up
from xcube.pipeline.options import Sample, SampleOptions
from xcube.pipeline.variations import Blend, shapes_between, variants


def vary(
    shape: Path,
    strength: float = 0.7,
    model: Path | None = None,
    resolution: int | None = None,
    up: Up = "z",
    out: Path = Path("variants"),
    count: int = 4,
    category: str | None = None,
    options: SampleOptions = SampleOptions(),  # noqa: B008  (immutable)
    device: str = "auto",
    restart: bool = False,
) -> int:
    """Generate variants of a shape: others that resemble it.

    Noise is added to the latents of its coarsest level, which are denoised again; the finer levels follow from them.

    Args:
        shape: File of the shape: voxels of the finest level, such as a sample (.npz) or painted ones (.vox), or a mesh,
            which is voxelized.
        strength: How much variants differ, from 0 (the shape as the networks reconstruct it) to 1 (other shapes).
        model: Folder of a saved pipeline, or of training runs; by default the model `shapes` of the package.
        resolution: Number of voxels of the finest level along the first axis of the box; by default 64 for the model
            `shapes`, which also has 128, and that of the finest level for others.
        up: Axis that points up in a mesh file of the shape, "z" or "y"; with y up it is rotated so that z points up.
        out: Output folder.
        count: Number of variants.
        category: Category of the variants, for class-conditional models; any by default.
        options: Options of sampling.
        device: Device to run on: cpu, cuda, or auto (a GPU if available).
        restart: Remove the shapes in the folder and start from scratch.
    """
    pipeline, settings = load_pipeline(model, resolution, count, device)
    before = finest_voxels(shape, pipeline, up)
    chosen = options.with_changes(category=category)
    variants(pipeline, before, strength, chosen, range(count))  # raises errors before the folder is made

    def generate(numbers: Sequence[int]) -> Iterator[Sample]:
        return variants(pipeline, before, strength, chosen, numbers)

    settings |= settings_of(chosen, files=[shape], strength=strength, up=up)
    return write_shapes(out, settings, count, generate, restart=restart, others={"before": [before]})


def interpolate(
    shape: Path,
    to: Path,
    model: Path | None = None,
    resolution: int | None = None,
    up: Up = "z",
    blend: Blend = "noise",
    out: Path = Path("interpolated"),
    count: int = 7,
    category: str | None = None,
    options: SampleOptions = SampleOptions(),  # noqa: B008  (immutable)
    device: str = "auto",
    restart: bool = False,
) -> int:
    """Generate shapes between two others.

    Args:
        shape: File of the first shape: voxels of the finest level, such as a sample (.npz) or painted ones (.vox), or a
            mesh, which is voxelized.
        to: File of the second shape.
        model: Folder of a saved pipeline, or of training runs; by default the model `shapes` of the package.
        resolution: Number of voxels of the finest level along the first axis of the box; by default 64 for the model
            `shapes`, which also has 128, and that of the finest level for others.
        up: Axis that points up in mesh files, "z" or "y"; with y up meshes are rotated so that z points up.
        blend: Interpolate the "noise" from which the sampler makes the coarsest levels of the two shapes, so that each
            shape between them is a sample of the model; or their "latents", which changes more evenly.
        out: Output folder.
        count: Number of shapes, at least 2; the first and the last are the given ones, generated again.
        category: Category of all shapes, for class-conditional models; any by default.
        options: Options of sampling.
        device: Device to run on: cpu, cuda, or auto (a GPU if available).
        restart: Remove the shapes in the folder and start from scratch.
    """
    pipeline, settings = load_pipeline(model, resolution, count, device)
    if not any(is_mesh(file) for file in (shape, to)):
        check_voxel_file(shape, up)
    ends = [finest_voxels(file, pipeline, up if is_mesh(file) else "z") for file in (shape, to)]
    chosen = options.with_changes(category=category)
    shapes_between(pipeline, ends[0], ends[1], count, chosen, blend, 0)  # raises errors before the folder is made

    def generate(numbers: Sequence[int]) -> Iterator[Sample]:
        every = shapes_between(pipeline, ends[0], ends[1], count, chosen, blend, 0)
        return (sample for number, sample in enumerate(every) if number in numbers)

    settings |= settings_of(chosen, files=[shape, to], blend=blend, count=count, up=up)
    return write_shapes(out, settings, count, generate, restart=restart, columns=count)
