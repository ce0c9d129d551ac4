"""`xcube edit`: delete or add parts of a shape, and generate its finer levels again there."""

from collections.abc import Sequence
from pathlib import Path

from xcube.commands.generation import finest_voxels, load_pipeline, region_of, settings_of, write_shapes
from xcube.data.axes import Up
from xcube.pipeline.options import Sample, SampleOptions


def edit(
    shape: Path,
    delete: list[str] = [],  # noqa: B006  (read only; the command line makes lists)
    add: list[str] = [],  # noqa: B006
    model: Path | None = None,
    resolution: int | None = None,
    up: Up = "z",
    margin: float | None = None,
    out: Path = Path("edited"),
    count: int = 1,
    options: SampleOptions = SampleOptions(),  # noqa: B008  (immutable)
    device: str = "auto",
    restart: bool = False,
) -> int:
    """Delete or add parts of a shape, and generate its finer levels again there.

    Elsewhere the voxels of the finer levels stay exactly as they are. A part is a mesh file, a file of voxels, or a box
    such as x=-0.1:0.1,z=0.2: with the range of each axis in world units. An axis that is left out, and an end of a
    range that is left out, has no limit. The box of the shapes has edge 1 around the origin. A MagicaVoxel file (.vox)
    holds voxels of the finest level; the origin of its scene is that of the box.

    Args:
        shape: File of the shape: voxels of the finest level, such as a sample (.npz) or painted ones (.vox), or a mesh,
            which is voxelized.
        delete: Parts to delete from the shape: boxes, mesh files or files of voxels.
        add: Parts to add to the shape: boxes, mesh files or files of voxels.
        model: Folder of a saved pipeline, or of training runs; by default the model `shapes` of the package.
        resolution: Number of voxels of the finest level along the first axis of the box; by default 64 for the model
            `shapes`, which also has 128, and that of the finest level for others.
        up: Axis that points up in a mesh file of the shape, "z" or "y"; with y up it is rotated so that z points up.
        margin: Width of the margin around the edit in which the shape may change too, in world units; by default one
            voxel of the coarsest level.
        out: Output folder.
        count: Number of variants.
        options: Options of sampling.
        device: Device to run on: cpu, cuda, or auto (a GPU if available).
        restart: Remove the shapes in the folder and start from scratch.
    """
    from xcube.pipeline.edit import plan_edit  # slow to import, and other commands do not need it

    pipeline, settings = load_pipeline(model, resolution, count, device)
    before = finest_voxels(shape, pipeline, up)
    box = pipeline.box
    parts = {name: [region_of(name, text, box) for text in texts] for name, texts in (("delete", delete), ("add", add))}
    plan = plan_edit(before, box, **parts, margin=margin)  # raises errors early
    files = [Path(text) for text in (str(shape), *delete, *add) if Path(text).is_file()]
    settings |= settings_of(options, files=files, delete=delete, add=add, margin=margin, up=up)

    def generate(numbers: Sequence[int]) -> list[Sample]:
        return pipeline.edit(before, options, **parts, margin=margin, numbers=numbers)

    return write_shapes(out, settings, count, generate, restart=restart, others={"before": plan.before})
