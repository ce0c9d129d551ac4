"""`xcube complete`: whole shapes from a part of one."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from xcube.commands.generation import finest_voxels, load_pipeline, region_of, settings_of, write_shapes
from xcube.commands.list_types import Numbers
from xcube.data.axes import Up
from xcube.pipeline.complete import Method, completed
from xcube.pipeline.observation import observation
from xcube.pipeline.options import Sample, SampleOptions


def complete(
    partial: Path,
    known: list[str] = [],  # noqa: B006  (read only; the command line makes lists)
    unknown: list[str] = [],  # noqa: B006
    sensor: Numbers | None = None,
    model: Path | None = None,
    resolution: int | None = None,
    up: Up = "z",
    method: Method | None = None,
    out: Path = Path("completed"),
    count: int = 4,
    category: str | None = None,
    options: SampleOptions = SampleOptions(),  # noqa: B008  (immutable)
    device: str = "auto",
    restart: bool = False,
) -> int:
    """Generate whole shapes from a part of one. All voxels of the part are kept.

    A part of space is a mesh file, a file of voxels, or a box such as x=-0.1:0.1,z=0.2: with the range of each axis in
    world units. An axis that is left out, and an end of a range that is left out, has no limit. The box of the shapes
    has edge 1 around the origin.

    Args:
        partial: File of the part: voxels of the finest level with normals (.npz), or a mesh or a point cloud, which is
            voxelized where it is. With --unknown it may also be a whole shape.
        known: Parts of space that were observed completely, so that they hold nothing else.
        unknown: Parts of space to generate. Voxels of the file there are left out, and all other space counts as
            completely observed. Not together with --known.
        sensor: Position x,y,z from which the part was seen, in world units; the space between is empty.
        model: Folder of a saved pipeline, or of training runs; by default the model `shapes` of the package.
        resolution: Number of voxels of the finest level along the first axis of the box; by default 64 for the model
            `shapes`, which also has 128, and that of the finest level for others.
        up: Axis that points up in a mesh file of the part, "z" or "y"; with y up it is rotated so that z points up.
        method: How the coarsest level is completed: "trained", by a denoiser that takes observations, with a guidance
            of 3 by default if it was trained for that; "resampling", by any denoiser (RePaint). By default "trained"
            where the denoiser can do it.
        out: Output folder.
        count: Number of shapes.
        category: Category of the shapes, for class-conditional models; any by default.
        options: Options of sampling.
        device: Device to run on: cpu, cuda, or auto (a GPU if available).
        restart: Remove the shapes in the folder and start from scratch.
    """
    pipeline, settings = load_pipeline(model, resolution, count, device)
    box = pipeline.box
    part = finest_voxels(partial, pipeline, up, outside="error")
    parts = {
        name: [region_of(name, text, box) for text in texts] for name, texts in (("known", known), ("unknown", unknown))
    }
    seen = observation(part.to("cpu"), box, **parts, sensor=sensor)
    chosen = options.with_changes(category=category)
    completed(pipeline, seen, chosen, range(count), method)  # raises errors before the folder is made

    def generate(numbers: Sequence[int]) -> Iterator[Sample]:
        return completed(pipeline, seen, chosen, numbers, method)

    files = [Path(text) for text in (str(partial), *known, *unknown) if Path(text).is_file()]
    place = None if sensor is None else list(sensor)
    settings |= settings_of(chosen, files=files, known=known, unknown=unknown, sensor=place, method=method, up=up)
    return write_shapes(out, settings, count, generate, restart=restart, others={"partial": [seen.full[-1]]})
