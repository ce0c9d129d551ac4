"""`xcube view`: an interactive viewer, or a page that opens offline."""

import sys
from pathlib import Path

from sparsevox import Grid, Mesh, Points, Voxels
from sparsevox.io import load_mesh, load_points, load_voxels
from xcube.data.loading import ShapeFolder

Shape = Grid | Mesh | Points | Voxels


def view(
    shapes: list[str],
    page: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    limit: int = 16,
) -> int:
    """Look at meshes, point clouds, voxels and data sets.

    Args:
        shapes: files, or folders of data sets
        page: write a page that opens offline in place of serving one
        host: address at which to serve
        port: port at which to serve
        limit: how many shapes of a data set to show
    """
    found: dict[str, Shape | list[Voxels]] = {}
    for text in shapes:
        path = Path(text)
        if path.is_dir():
            found |= {f"{path.name}/{name}": levels for name, levels in _of_data_set(path, limit).items()}
        else:
            found[path.stem if path.stem not in found else path.name] = _of_file(path)
    if page is not None:
        from sparsevox.viz import show_html

        show_html(found, page)
        sys.stdout.write(f"{page} opens in a browser\n")
        return 0
    from sparsevox.viz import serve

    server = serve(found, host=host, port=port)
    sys.stdout.write(f"http://{host}:{server.get_port()}, until Ctrl-C\n")
    sys.stdout.flush()
    try:
        server.sleep_forever()
    except KeyboardInterrupt:
        server.stop()
    return 0


def _of_data_set(path: Path, limit: int) -> dict[str, list[Voxels]]:
    shapes = ShapeFolder[list[Voxels]](path, None, level=range(len(ShapeFolder(path, None).card.box.levels)))
    return {shapes.entries[n].name: shapes[n] for n in range(min(limit, len(shapes)))}


def _of_file(path: Path) -> Shape:
    """Voxels, then points, then a mesh, by the suffix and by what is in the file."""
    if path.suffix == ".npz":
        try:
            return load_voxels(path)
        except ValueError:
            return load_points(path)
    if path.suffix in (".npy", ".bin"):
        return load_points(path)
    try:
        return load_mesh(path)
    except ValueError:
        if path.suffix == ".ply":
            return load_points(path)
        raise
