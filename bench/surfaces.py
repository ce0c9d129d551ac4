"""Meshing of voxels and fields, compared with NumPy and scikit-image on dense volumes by the enclosed volume."""

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import sparsevox as sv
from bench.contenders import grid
from bench.harness import Case, Contender, close
from sparsevox.io.faces import voxel_faces
from sparsevox.io.marching_cubes import marching_cubes
from sparsevox.io.surface_nets import surface_nets

Array = NDArray[Any]


def faces(coords: Tensor) -> Sequence[Contender]:
    """Compare exposed faces, merged into rectangles or not, with differences of a dense volume."""
    g = grid(coords)
    volume = dense_volume(coords).numpy()
    return (
        Contender("sparsevox, merged", lambda: voxel_faces(g), enclosed),
        Contender("sparsevox, unmerged", lambda: voxel_faces(g, merge=False), enclosed),
        Contender("NumPy, unmerged", lambda: dense_faces(volume), enclosed, baseline=True),
    )


def dense_volume(coords: Tensor) -> Tensor:
    """Convert voxels to a dense volume with an empty border: bool [X, Y, Z]."""
    ijk = coords[:, 1:].cpu().long()
    lower = ijk.amin(0) - 1
    volume = torch.zeros(*(ijk.amax(0) + 2 - lower).tolist(), dtype=torch.bool)
    volume[tuple((ijk - lower).unbind(1))] = True
    return volume


def dense_faces(volume: Array) -> tuple[Array, Array]:
    """Mesh the faces between True and False voxels of a volume: vertices [V, 3] and triangles [F, 3]."""
    shape = np.array(volume.shape) + 1
    quads = []
    for axis in range(3):
        second, third = np.roll(np.eye(3, dtype=np.int64), axis + 1, 1)[:2]
        steps = np.diff(volume.astype(np.int8), axis=axis)
        for sign, turn in ((-1, (0, 1, 2, 3)), (1, (0, 3, 2, 1))):
            at = np.argwhere(steps == sign) + np.eye(3, dtype=np.int64)[axis]
            corners = np.stack([at, at + second, at + second + third, at + third], 1)[:, turn]
            quads.append(np.ravel_multi_index(tuple(np.moveaxis(corners, -1, 0)), tuple(shape)))
    used, rows = np.unique(np.concatenate(quads), return_inverse=True)
    vertices = np.stack(np.unravel_index(used, tuple(shape)), 1).astype(np.float64)
    return vertices, rows.reshape(-1, 4)[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)


def level_set(coords: Tensor) -> Sequence[Contender]:
    """Compare level sets of the distance to a sphere, known around a shell, with scikit-image on the dense volume."""
    g = grid(coords).dilate(1)
    radius = g.ijk.double().norm(dim=1)
    middle = (radius.max() + radius.min()) / 2
    field = sv.SparseTensor(g, (radius - middle)[:, None])
    contenders = [
        Contender("surface nets", lambda: surface_nets(field), enclosed),
        Contender("marching cubes", lambda: marching_cubes(field), enclosed),
    ]
    if importlib.util.find_spec("skimage") is None:
        return contenders[:1]
    from skimage import measure

    def dense() -> tuple[Array, Array]:
        both = torch.cat([field.feats, torch.ones_like(field.feats)], 1)
        values, exists = sv.ops.to_dense(both, g)[0].cpu().numpy()
        mask = np.zeros(values.shape, bool)
        mask[1:, 1:, 1:] = np.lib.stride_tricks.sliding_window_view(exists > 0, (2, 2, 2)).all((3, 4, 5))
        return values.astype(np.float32), mask

    def march(volume: Array, mask: Array) -> Any:
        return measure.marching_cubes(volume, 0.0, mask=mask)[:2]

    kept = dense()
    return [
        *contenders,
        Contender("scikit-image", lambda: march(*dense()), enclosed, baseline=True),
        Contender("scikit-image, cached volume", lambda: march(*kept), enclosed),
    ]


def enclosed(mesh: Any) -> Tensor:
    """Compute the volume enclosed by a mesh."""
    if isinstance(mesh, sv.Mesh):
        vertices, triangles = mesh.vertices.cpu(), mesh.faces.cpu()
    else:
        vertices, triangles = (torch.from_numpy(np.ascontiguousarray(array)) for array in mesh)
    a, b, c = vertices.double()[triangles.long()].unbind(1)
    return (a.cross(b, dim=1) * c).sum() / 6


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Yield the faces of a shell of 200k voxels and of a terrain, and the level set in a shell five voxels thick."""
    yield Case("voxel_faces", "shell", 32 if quick else 256, faces, agree=close(1e-9))
    yield Case("voxel_faces", "terrain", 32 if quick else 256, faces, agree=close(1e-9))
    yield Case(
        "level set", "thick_shell", 24 if quick else 256, level_set, agree=close(5e-3), dtype="float64", rounds=3
    )
