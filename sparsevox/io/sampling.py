"""Sampling points on the surface of a mesh, with trimesh, and fitting shapes into a box."""

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sparsevox import checks
from sparsevox.io.trimesh import import_trimesh, to_trimesh
from sparsevox.shapes import Mesh, Points, as_columns

S = TypeVar("S", Mesh, Points)


def sample_surface(mesh: Mesh, count: int, *, seed: int = 0) -> Points:
    """Sample points uniformly on the surface of a mesh. Their "normal" is that of their face.

    Points also get the face attributes, and the vertex attributes by barycentric interpolation. Integer vertex
    attributes are taken from the nearest vertex of the face.

    Args:
        mesh: Mesh to sample. If its area is zero, there are no points.
        count: Number of points P.
        seed: Seed of the sampling.

    Returns:
        Points with positions float64 [P, 3] and "normal" float32 [P, 3], on the device of the mesh.

    Raises:
        ImportError: If trimesh is not installed.
        ValueError: If `count` is negative, or a vertex is not finite.
    """
    if checks.integer("count", count) < 0:
        raise ValueError(f"count must not be negative, got {count}")
    check_finite("mesh.vertices", mesh.vertices)
    surface = to_trimesh(mesh)
    if not len(mesh.faces) or not surface.area > 0:
        count = 0
    faces, where = np.zeros(0, np.int64), np.zeros((0, 3))
    if count:
        where, faces = import_trimesh().sample.sample_surface(surface, count, seed=seed)[:2]
    row, positions = torch.from_numpy(np.array(faces, np.int64)), torch.from_numpy(np.array(where, np.float64))
    device = mesh.device
    attributes = {"normal": torch.from_numpy(surface.face_normals[faces].astype(np.float32)).to(device)}
    attributes |= {name: value[row.to(device)] for name, value in mesh.face_attributes.items()}
    if mesh.vertex_attributes:
        corners = mesh.faces[row.to(device)]
        weights = torch.from_numpy(import_trimesh().triangles.points_to_barycentric(surface.triangles[faces], where))
        for name, value in mesh.vertex_attributes.items():
            if name != "normal":
                attributes[name] = interpolated(value, corners, weights.to(device))
    return Points(positions.to(device), attributes)


def interpolated(value: Tensor, corners: Tensor, weights: Tensor) -> Tensor:
    """Interpolate a vertex attribute at points inside faces, from vertices [P, 3] and barycentric weights [P, 3]."""
    if not value.is_floating_point():
        return value[corners.gather(1, weights.argmax(1, keepdim=True)).squeeze(1)]
    columns = as_columns(value)[corners]  # [P, 3, C]
    return (columns * weights[:, :, None].to(value.dtype)).sum(1).reshape(len(corners), *value.shape[1:])


def fit(
    shape: S, lower: float | tuple[float, float, float] = -0.5, upper: float | tuple[float, float, float] = 0.5
) -> S:
    """Center a shape in a box and scale it, by the same factor on all axes, to the largest size that fits.

    A shape without extent is only moved.

    Args:
        shape: Mesh or points. Vertices of a mesh that no face uses are ignored.
        lower: Lower corner of the box, one number or one per axis.
        upper: Upper corner of the box, likewise.

    Raises:
        ValueError: If the box is empty or a position is not finite.
    """
    low, high = (
        torch.tensor(checks.float_triple(n, v), dtype=torch.float64) for n, v in (("lower", lower), ("upper", upper))
    )
    if not bool((low < high).all()):
        raise ValueError(f"lower must lie below upper on every axis, got {low.tolist()} and {high.tolist()}")
    positions = _positions(shape)
    check_finite("shape", positions)
    if not len(positions):
        return shape
    bounds = torch.stack([positions.amin(0), positions.amax(0)]).double()
    low, high = low.to(bounds.device), high.to(bounds.device)
    extent = bounds[1] - bounds[0]
    scale = float(torch.where(extent > 0, (high - low) / extent, torch.inf).min())
    scale = 1.0 if scale == float("inf") else scale
    middle, target = bounds.mean(0), (low + high) / 2
    return shape.transform(lambda p: ((p - middle) * scale + target).to(p.dtype))


def _positions(shape: Mesh | Points) -> Tensor:
    """Get the positions of points, or of those vertices of a mesh that its faces use."""
    if isinstance(shape, Points):
        return shape.positions
    return shape.vertices[shape.faces.reshape(-1).long()] if len(shape.faces) else shape.vertices


def check_finite(name: str, positions: Tensor) -> None:
    """Raise unless all positions [., 3] are finite."""
    finite = positions.isfinite().all(1)
    if not bool(finite.all()):
        row = int((~finite).int().argmax())
        raise ValueError(f"{name} must be finite, got {tuple(positions[row].tolist())} in row {row}")
