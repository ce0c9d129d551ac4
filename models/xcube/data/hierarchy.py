"""Voxel hierarchies: one shape at the resolutions of all levels of a cascade (section 3 of the paper).

R voxels along an edge of the box, N voxels of a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

import sparsevox as sv
from sparsevox.grid import Grid
from sparsevox.io import fit, sample_surface, splat_attributes
from sparsevox.io.sampling import check_finite, interpolated
from sparsevox.io.trimesh import import_trimesh
from sparsevox.shapes import Mesh, Points, Shape, Voxels
from xcube.geometry.pyramid import enclosing_coarsen
from xcube.geometry.shell import solid_fractions

Outside = Literal["error", "clip", "rescale"]


@dataclass(frozen=True)
class Box:
    """A box around the world origin in which shapes lie, divided into voxels at each level.

    The lower corner of voxel (0, 0, 0) of every level is the world origin, so that the corners of all levels coincide;
    its center, the `origin` of grids, is half a voxel away.

    levels: Number of voxels along the first axis at each level, coarsest first. The first number is even, each
        other one is the one before times a power of two.
    size: Edge lengths of the box in world units; multiples of two voxels of the coarsest level.
    thin: Levels, by their numbers of voxels, without early dilation: their voxels are exactly those that contain voxels
        of the next finer level. A cascade has such a level where it was trained as the finest one and refined later.

    Raises:
        ValueError: If levels, size or thin break these rules.
    """

    levels: tuple[int, ...]
    size: tuple[float, float, float] = (1.0, 1.0, 1.0)
    thin: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.levels or self.levels[0] < 2 or self.levels[0] % 2:
            raise ValueError(f"levels must begin with an even number of voxels, got {self.levels}")
        for coarse, fine in zip(self.levels, self.levels[1:], strict=False):
            factor = fine // coarse
            if fine != coarse * factor or factor < 2 or factor & (factor - 1):
                raise ValueError(f"each of levels must be the one before times a power of two, got {self.levels}")
        if not set(self.thin) <= set(self.levels[:-1]) or tuple(sorted(self.thin)) != self.thin:
            raise ValueError(f"thin must be levels before the finest of {self.levels}, in order, got {self.thin}")
        if len(self.size) != 3 or not all(0 < edge < float("inf") for edge in self.size):
            raise ValueError(f"size must be three positive edges, got {self.size}")
        for edge in self.size:
            pairs = edge / (2 * self.voxel_size(0))
            if abs(pairs - round(pairs)) > 1e-6 or round(pairs) < 1:
                raise ValueError(f"size must be multiples of two voxels of {self.voxel_size(0)}, got {self.size}")

    def voxel_size(self, level: int) -> float:
        """Edge length of the voxels of a level; level 0 is the coarsest."""
        return self.size[0] / self.levels[level]

    def shape(self, level: int) -> tuple[int, int, int]:
        """Number of voxels along each axis at a level."""
        x, y, z = (round(edge / self.voxel_size(level)) for edge in self.size)
        return x, y, z

    @property
    def margin(self) -> float:
        """Distance that a shape must keep from the border, so that all levels stay inside the box.

        Early dilation adds up to half a voxel on each side at every coarser level.
        """
        dilated = (level for level, count in enumerate(self.levels[:-1]) if count not in self.thin)
        return sum(self.voxel_size(level) / 2 for level in dilated)

    def coarser(self, grid: Grid, level: int) -> Grid:
        """The grid of a level from that of the next finer one, with early dilation unless the level is thin."""
        factor = self.levels[level + 1] // self.levels[level]
        return grid.coarsen(factor) if self.levels[level] in self.thin else enclosing_coarsen(grid, factor)


def build_hierarchy(
    shape: Shape,
    box: Box,
    *,
    samples: int = 1_000_000,
    seed: int = 0,
    outside: Outside = "error",
    fill: bool = False,
    crop: bool = False,
) -> list[Voxels]:
    """Voxelize one shape at every level of a box, the coarsest first.

    The finest level holds the voxels that touch the mesh or contain a point. Each coarser level is computed from the
    voxel centers of the next finer one by early dilation (section 3.4 of the paper), unless it is in `box.thin`. This
    gives exactly the latent grid of a VAE of the finer level, so the cascade is trained on the grids that it samples.

    The attributes of all levels are averaged from the same points: samples on the surface of a mesh, the points
    themselves, or the voxel centers (`sv.io.splat_attributes`).

    Args:
        shape: A mesh, points, or the voxels of the finest level.
        box: The box with its levels.
        samples: Number of points to sample on the surface of a mesh.
        seed: Random seed of these points.
        outside: Treatment of a shape that is closer to the border than `box.margin`: "error" raises ValueError, "clip"
            drops the voxels there; "rescale" moves and scales every mesh and point cloud to fill the box.
        fill: Whether to add the attribute "fill", float32 [N]: the fraction of each voxel that lies inside of the shape
            or in its shell at the next finer level, 1 at the finest level. Needs about ten bytes of memory per voxel of
            the box around the shape.
        crop: Whether voxels, such as those of a sample, may lie closer to the border than `box.margin`. Coarser voxels
            outside of the box are then left out.

    Returns:
        A `Voxels` of one grid for each level.

    Raises:
        ImportError: If the shape is a mesh and trimesh is not installed.
        TypeError: If the shape is of another type.
        ValueError: If the shape is empty or not finite, does not fit and `outside` is "error", `outside` is invalid, or
            voxels are not of the finest level of the box.
    """
    if outside not in ("error", "clip", "rescale"):
        raise ValueError(f"outside must be 'error', 'clip' or 'rescale', got {outside!r}")
    finest = len(box.levels) - 1
    size = box.voxel_size(finest)
    if isinstance(shape, Voxels):
        fine = _aligned(shape, box, finest)
        points = Points(fine.to_world(fine.ijk), shape.attributes)
    elif isinstance(shape, Mesh):
        mesh = _cut(_fitted(shape, box, outside), box)
        fine = Grid.from_mesh(mesh.vertices, mesh.faces, voxel_size=size, origin=size / 2)
        points = sample_surface(mesh, samples, seed=seed)
    elif isinstance(shape, Points):
        points = _fitted(shape, box, outside)
        fine = Grid.from_points(points.positions, voxel_size=size, origin=size / 2)
    else:
        raise TypeError(f"shape must be a Mesh, Points or Voxels, got {type(shape).__name__}")
    fine = _inside(fine, box, outside, 0.0 if crop else box.margin)
    if not fine.num_voxels:
        raise ValueError(f"shape must have voxels inside the box, got {shape}")
    grids = [fine]
    for level in reversed(range(finest)):
        coarser = box.coarser(grids[0], level)
        upper = [count // 2 for count in box.shape(level)]
        grids.insert(0, coarser.crop([-u for u in upper], upper) if crop else coarser)
    levels = [splat_attributes(points, grid) for grid in grids]
    return with_fill(levels) if fill else levels


def with_fill(levels: Sequence[Voxels]) -> list[Voxels]:
    """Add to each level, coarsest first, the attribute "fill" that `build_hierarchy` describes.

    Raises:
        ImportError: If scipy is not installed.
    """
    made = [coarse.with_attributes(fill=solid_fractions(coarse.grid, fine.grid)) for coarse, fine in pairwise(levels)]
    finest = levels[-1]
    return [*made, finest.with_attributes(fill=torch.ones(finest.num_voxels, device=finest.device))]


def _aligned(voxels: Voxels, box: Box, level: int) -> Grid:
    size, grid = box.voxel_size(level), voxels.grid
    expected = sv.Grid.empty(1, voxel_size=size, origin=size / 2)
    if grid.batch_size != 1:
        raise ValueError(f"shape must be one grid, got a batch of {grid.batch_size}")
    for name, got, want in (
        ("voxel_size", grid.voxel_size, expected.voxel_size),
        ("origin", grid.origin, expected.origin),
    ):
        if max(abs(a - b) for a, b in zip(got, want, strict=True)) > 1e-5 * size:
            raise ValueError(f"shape must have {name} {want}, that of the finest level of the box, got {got}")
    return grid


S = TypeVar("S", Mesh, Points)


def _fitted(shape: S, box: Box, outside: Outside) -> S:
    """Scale the shape to fit, or drop parts far from the box, whose voxels might not fit into memory."""
    half = torch.tensor(box.size, dtype=torch.float64) / 2 - box.margin
    if outside == "rescale":
        # One fine voxel less, so that a side that lies on a border between voxels does not touch the next voxel.
        x, y, z = (half - box.voxel_size(-1)).tolist()
        if min(x, y, z) <= 0:
            raise ValueError(f"box {box} has no room inside the margin of {box.margin} that its levels need")
        return fit(shape, (-x, -y, -z), (x, y, z))
    corners = shape.positions[:, None] if isinstance(shape, Points) else shape.vertices[shape.faces.long()]
    check_finite("shape", corners.reshape(-1, 3))
    corners = corners.double()
    half = half.to(corners.device)
    if outside == "error" and bool((corners.abs() > half).any()):
        low, high = (tuple(bound.tolist()) for bound in corners.reshape(-1, 3).aminmax(dim=0))
        raise ValueError(f"{_too_wide(box)}, got one from {low} to {high}; {_CHOICES}")
    reach = half + 2 * box.voxel_size(-1)
    near = ((corners.amin(1) <= reach) & (corners.amax(1) >= -reach)).all(1)
    if bool(near.all()):
        return shape
    if isinstance(shape, Points):
        return shape[near]
    return replace(
        shape, faces=shape.faces[near], face_attributes={name: v[near] for name, v in shape.face_attributes.items()}
    )


def _cut(mesh: Mesh, box: Box) -> Mesh:
    """Cut off the parts of a mesh more than two voxels outside the box; cut faces keep their attributes."""
    reach = torch.tensor(box.size, dtype=torch.float64) / 2 + 2 * box.voxel_size(-1)
    corners = mesh.faces.long()
    if not len(corners) or bool((mesh.vertices[corners].abs().amax((0, 1)).cpu() <= reach).all()):
        return mesh
    # The texture coordinate of each face is its index, which tells where the pieces come from.
    triangles = mesh.vertices[corners].detach().cpu().double().numpy()
    count = len(triangles)
    number = np.stack([np.repeat(np.arange(count, dtype=np.float64), 3), np.zeros(3 * count)], 1)
    vertices, faces = triangles.reshape(-1, 3), np.arange(3 * count).reshape(-1, 3)
    for axis, sign in product(range(3), (-1.0, 1.0)):
        normal = np.eye(3)[axis] * sign
        vertices, faces, number = import_trimesh().intersections.slice_faces_plane(
            vertices, faces, normal, -normal * reach.numpy(), uv=number
        )
    source = np.rint(number[:, 0]).astype(np.int64)
    weights = torch.from_numpy(import_trimesh().triangles.points_to_barycentric(triangles[source], vertices))
    of_vertex = torch.from_numpy(source).to(mesh.device)
    of_face = of_vertex[torch.from_numpy(faces[:, 0].astype(np.int64)).to(mesh.device)]
    return Mesh(
        torch.from_numpy(vertices).to(mesh.device),
        torch.from_numpy(faces.astype(np.int64)).to(mesh.device),
        {n: interpolated(v, corners[of_vertex], weights.to(v.device)) for n, v in mesh.vertex_attributes.items()},
        {n: v[of_face] for n, v in mesh.face_attributes.items()},
    )


def _inside(fine: Grid, box: Box, outside: Outside, margin: float) -> Grid:
    size = box.voxel_size(-1)
    upper = [round((edge / 2 - margin) / size) for edge in box.size]
    lower = [-u for u in upper]
    ijk: Tensor = fine.ijk
    beyond = ((ijk < torch.tensor(lower, device=ijk.device)) | (ijk >= torch.tensor(upper, device=ijk.device))).any(1)
    if not bool(beyond.any()):
        return fine
    if outside == "clip":
        return fine.crop(lower, upper)
    row = int(beyond.int().argmax())
    first = tuple(fine.to_world(fine.ijk[row : row + 1])[0].tolist())
    expected = _too_wide(box) if margin else f"shape must lie in the box {box.size}"
    raise ValueError(f"{expected}, got {int(beyond.sum())} voxels beyond, the first at {first}; {_CHOICES}")


_CHOICES = "outside='clip' crops the shape, outside='rescale' scales meshes and points to fit"


def _too_wide(box: Box) -> str:
    return f"shape must keep a distance of {box.margin} from the border of the box {box.size}"


def as_box(levels: Sequence[int], size: float | Sequence[float] = 1.0, thin: Sequence[int] = ()) -> Box:
    """Make a box; the size is one edge length for a cube, or three."""
    edges = (size, size, size) if isinstance(size, int | float) else tuple(size)
    if len(edges) != 3:
        raise ValueError(f"size must be one edge length or three, got {edges}")
    return Box(tuple(levels), (float(edges[0]), float(edges[1]), float(edges[2])), tuple(thin))
