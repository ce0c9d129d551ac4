"""`xcube view`: an interactive viewer, or a page that opens offline."""

import itertools
import sys
from collections.abc import Container
from pathlib import Path

from sparsevox import Grid, Mesh, Points, Voxels
from sparsevox.io import load_points, load_voxels
from xcube.data.loading import ShapeFolder
from xcube.data.sources import load_shape

Shape = Grid | Mesh | Points | Voxels


def view(
    shapes: list[str],
    page: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    limit: int = 16,
) -> int:
    """View meshes, point clouds, voxels and datasets in the browser.

    Args:
        shapes: Files, or folders of datasets.
        page: HTML file to write, which opens offline, instead of starting a server.
        host: Address that the server listens on.
        port: Port that the server listens on.
        limit: Maximum number of shapes to show of each dataset.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    found: dict[str, Shape | list[Voxels]] = {}
    for path in map(Path, shapes):
        if path.is_dir():
            found |= {_unused(f"{path.name}/{name}", path, found): v for name, v in _load_dataset(path, limit).items()}
        else:
            found[_unused(path.stem, path, found)] = _load_file(path)
    if page is not None:
        from sparsevox.viz import show_html

        show_html(found, page)
        sys.stdout.write(f"open {page} in a browser\n")
        return 0
    from sparsevox.viz import serve

    server = serve(found, host=host, port=port)
    sys.stdout.write(f"http://{host}:{server.get_port()} (Ctrl-C to stop)\n")
    sys.stdout.flush()
    try:
        server.sleep_forever()
    except KeyboardInterrupt:
        server.stop()
    return 0


def _load_dataset(path: Path, limit: int) -> dict[str, list[Voxels]]:
    shapes = ShapeFolder[list[Voxels]](path, None, level=range(len(ShapeFolder(path, None).card.box.levels)))
    return {shapes.entries[n].name: shapes[n] for n in range(min(limit, len(shapes)))}


def _unused(name: str, path: Path, taken: Container[str]) -> str:
    """The name, or a longer one if another shape has it."""
    numbered = (f"{path} ({number})" for number in itertools.count(2))
    return next(n for n in itertools.chain([name, path.name, str(path)], numbered) if n not in taken)


def _load_file(path: Path) -> Shape:
    """Load voxels, points or a mesh; arrays are voxels if they can be, else points."""
    suffix = path.suffix.lower()
    if suffix in (".npz", ".npy"):
        try:
            return load_voxels(path)
        except ValueError as error:
            try:
                return load_points(path)
            except ValueError:
                raise error from None  # that of the voxel format
    return load_shape(path)
