"""HTML pages of voxels: time to write them and their size, compared with the page of trimesh of the same faces."""

import atexit
import base64
import importlib.util
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import sparsevox as sv
from bench import contenders
from bench.harness import Case, Contender, Target
from sparsevox.viz import show_html
from sparsevox.viz.sides import DIRECTIONS, exposed_faces, quads

Written = tuple[Path]  # a tuple, because the harness cannot check whether a file is reused


def pages(coords: Tensor) -> Sequence[Contender]:
    """Compare writing the exposed faces of a grid, colored by normals."""
    grid = contenders.grid(coords)
    normal = torch.nn.functional.normalize(grid.ijk.float(), dim=1)
    voxels = sv.Voxels(grid, {"normal": normal})
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    def ours() -> Written:
        path = folder / "sparsevox.html"
        show_html(voxels, path)
        return (path,)

    found = [Contender("sparsevox", ours, _our_faces, nbytes=_size)]
    if importlib.util.find_spec("trimesh"):
        found.append(Contender("trimesh", _trimesh_page(grid, normal, folder), _their_faces, True, _size))
    return found


def _trimesh_page(grid: sv.Grid, normal: Tensor, folder: Path) -> Callable[[], Written]:
    import trimesh
    from trimesh.viewer.notebook import scene_to_html

    def run() -> Written:
        row, side = (index.numpy() for index in exposed_faces(grid))
        corners = (grid.ijk.numpy()[row, None] + quads()[side]).reshape(-1, 3)
        faces = np.arange(len(corners)).reshape(-1, 4)[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)
        colors = ((normal + 1) * 127.5).round().to(torch.uint8).numpy()[row].repeat(4, 0)
        mesh = trimesh.Trimesh(corners, faces, vertex_colors=colors, process=False)
        path = folder / "trimesh.html"
        path.write_text(scene_to_html(trimesh.Scene(mesh)), encoding="utf-8")
        return (path,)

    return run


def _size(written: Written) -> int:
    return written[0].stat().st_size


def _our_faces(written: Written) -> Tensor:
    """Read the doubled centers of the faces, which both pages hold: int64 [F, 3], sorted."""
    page = written[0].read_text(encoding="utf-8")
    level = json.loads(_between(page, 'id="manifest">', "</script>"))["shapes"][0]["levels"][0]
    data = zlib.decompress(base64.b64decode(_between(page, 'id="data-0-0">', "</script>")))
    places = np.frombuffer(data, "<u2", 4 * level["rows"]).reshape(4, -1).T.astype(np.int64)
    row, side = np.nonzero(places[:, 3:] // 6 ** np.arange(6) % 6)
    return _sorted(2 * (places[row, :3] + np.array(level["origin"])) + np.array(DIRECTIONS)[side])


def _their_faces(written: Written) -> Tensor:
    import trimesh

    page = written[0].read_text(encoding="utf-8")
    glb = base64.b64decode(max(re.findall(r"[A-Za-z0-9+/=]{64,}", page), key=len))
    mesh: Any = trimesh.load(BytesIO(glb), file_type="glb", force="mesh", process=False)
    return _sorted(mesh.triangles.reshape(-1, 6, 3)[:, [0, 1, 2, 5]].mean(1) * 2)


def _sorted(centers: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.unique(np.rint(centers).astype(np.int64), axis=0))


def _between(text: str, start: str, end: str) -> str:
    return text.split(start, 1)[1].split(end, 1)[0]


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Yield a shell of half a million voxels, whose page may take 15 MB."""
    small = Target("stored_mb", "<=", 15)
    yield Case("show_html", "shell", 32 if quick else 400, pages, small, dtype="uint8", rounds=3)
