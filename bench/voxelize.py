"""Voxelization of points and triangles."""

import importlib.util
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import sparsevox as sv
from bench import baseline
from bench.contenders import ours, voxel_list
from bench.harness import Case, Contender, Target
from bench.scenes import sphere_mesh


def from_points(coords: Tensor) -> Sequence[Contender]:
    """Compare voxelizing one random point per voxel of the scene."""
    jitter = torch.rand(len(coords), 3, generator=torch.Generator().manual_seed(0)).to(coords.device) - 0.5
    points = 0.1 * (coords[:, 1:] + 0.98 * jitter)

    def build(points: Tensor) -> Tensor:
        ijk = torch.floor(points.double() / 0.1 + 0.5).long()
        return baseline.build(torch.cat([torch.zeros_like(ijk[:, :1]), ijk], 1))

    return ours(lambda p: sv.Grid.from_points(p, voxel_size=0.1), points), voxel_list(build, points)


def from_mesh(coords: Tensor, triangles: int | None = None) -> Sequence[Contender]:
    """Compare voxelizing a sphere with trimesh, if installed. By default it has a triangle per two voxels."""
    rings = max(4, round(((triangles or len(coords) / 2) / 4) ** 0.5))
    vertices, faces = sphere_mesh(radius=float(coords.max()), rings=rings)
    vertices, faces = vertices.to(coords.device), faces.to(coords.device)
    contenders = [ours(lambda: sv.Grid.from_mesh(vertices, faces, voxel_size=1.0))]
    if importlib.util.find_spec("trimesh"):
        import trimesh

        mesh = trimesh.Trimesh(vertices.cpu().numpy(), faces.cpu().numpy(), process=False)
        contenders.append(Contender("trimesh", lambda: mesh.voxelized(1.0), _trimesh_keys, baseline=True))
    return contenders


def covers(ours: Tensor, theirs: Tensor) -> bool:
    """Check that `ours` has all voxels of `theirs`. trimesh splits triangles and rounds corners, so it misses some."""
    return bool(baseline.contains(ours, theirs).all())


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Yield points of 1M voxels, a sphere with a shell of 100k voxels, and one of 70k triangles at 512^3."""
    yield Case("from_points", "shell", 32 if quick else 565, from_points, dtype="float32")
    yield Case("from_points", "lidar", 64 if quick else 2048, from_points, dtype="float32")
    yield Case("from_mesh", "shell", 32 if quick else 180, from_mesh, agree=covers, dtype="float64")
    yield Case(
        "from_mesh, 70k faces",
        "shell",
        34 if quick else 510,
        partial(from_mesh, triangles=70_000),
        agree=covers,
        dtype="float64",
        rounds=3,
        target=Target("ratio", ">=", 10),
    )


def _trimesh_keys(voxels: Any) -> Tensor:
    ijk = torch.from_numpy(voxels.points).round().long()
    return baseline.build(torch.cat([torch.zeros_like(ijk[:, :1]), ijk], 1))
