"""Voxelization of meshes and point clouds, with their attributes.

P points, N voxels, C channels.
"""

from typing import Literal

import torch
from torch import Tensor

from sparsevox import checks, ops
from sparsevox._gather import containing_rows
from sparsevox.grid import Grid, Scale
from sparsevox.io.sampling import check_finite, sample_surface
from sparsevox.ops.voxelize import check_points
from sparsevox.shapes import Attributes, Mesh, Points, Voxels, as_columns

NORMAL_EPS = 1e-6  # added to the length of a splatted normal before the division, as in XCube
SAMPLES_PER_VOXEL = 10

Splat = Literal["trilinear", "nearest"]


def voxelize(
    shape: Mesh | Points,
    *,
    voxel_size: Scale | None = None,
    origin: Scale = 0.0,
    grid: Grid | None = None,
    splat: Splat = "trilinear",
    samples: int | None = None,
    seed: int = 0,
    density: bool = False,
) -> Voxels:
    """Voxelize the surface of a mesh, or a point cloud, with its attributes.

    A mesh occupies the voxels whose closed box intersects a triangle. Its attributes, and a "normal", come from points
    sampled on its surface. Points occupy the voxels that contain them. See `splat_attributes` for how attributes of
    points become attributes of voxels.

    Args:
        shape: Mesh or points, on the device to compute on.
        voxel_size: Edge lengths of a voxel in world units, one number or one per axis. Either this or `grid`.
        origin: World position of the center of voxel (0, 0, 0).
        grid: A single grid whose voxels receive the attributes, instead of those that the shape occupies.
        splat: "trilinear" distributes a point over the eight voxels around it, "nearest" assigns it to the voxel that
            contains it.
        samples: Number of points to sample on a mesh. By default 10 per voxel.
        seed: Seed of the sampling.
        density: Whether to add the attribute "density", the number of points per voxel.

    Raises:
        ImportError: If the shape is a mesh and trimesh is not installed.
        TypeError: If the shape is neither a Mesh nor Points.
        ValueError: If not exactly one of `voxel_size` and `grid` is given, or a position is not finite or out of range.
    """
    if not isinstance(shape, Mesh | Points):
        raise TypeError(f"shape must be a Mesh or Points, got {type(shape).__name__}")
    if (grid is None) == (voxel_size is None):
        raise ValueError(
            f"exactly one of voxel_size and grid must be given, got {'neither' if grid is None else 'both'}"
        )
    if grid is None:
        assert voxel_size is not None
        if isinstance(shape, Mesh):
            grid = Grid.from_mesh(shape.vertices, shape.faces, voxel_size=voxel_size, origin=origin)
        else:
            grid = Grid.from_points(shape.positions, voxel_size=voxel_size, origin=origin)
    if isinstance(shape, Mesh):
        shape = sample_surface(shape, SAMPLES_PER_VOXEL * grid.num_voxels if samples is None else samples, seed=seed)
    return splat_attributes(shape, grid, splat=splat, density=density)


def splat_attributes(
    points: Points, grid: Grid, batch: Tensor | None = None, *, splat: Splat = "trilinear", density: bool = False
) -> Voxels:
    """Transfer attributes from points to voxels.

    - "normal": weighted sum of the normals of nearby points, divided by its length plus 1e-6; zero if there are none.
    - other floats: weighted mean. Voxels without nearby points copy the nearest voxel that has some.
    - integers: majority vote of the points in the voxel, per channel; ties go to the smallest value. Voxels without
      points copy the nearest voxel that has some.
    - "density": number of points in the voxel, float32 [N, 1], if `density` is set.

    Weights are trilinear, or with `splat="nearest"` 1 for the voxel that contains the point.

    Args:
        points: P points with attributes.
        grid: Grid whose N voxels receive the attributes.
        batch: Batch item of each point, integers [P]. By default 0.
        splat: "trilinear" or "nearest".
        density: Whether to add the attribute "density".

    Raises:
        TypeError: If `batch` does not hold integers.
        ValueError: If `splat` is unknown, a position is not finite, or shapes or devices do not match.
    """
    if splat not in ("trilinear", "nearest"):
        raise ValueError(f"splat must be 'trilinear' or 'nearest', got {splat!r}")
    positions, items = check_points(points.positions, batch)
    checks.same_device("points", positions, "grid", grid.device)
    check_finite("points.positions", positions)
    rows = containing_rows(grid, positions, items)
    made: dict[str, Tensor] = {}
    floats = {name: value for name, value in points.attributes.items() if value.is_floating_point()}
    if floats:
        made |= _splat_floats(positions, floats, grid, items, rows if splat == "nearest" else None)
    for name, value in points.attributes.items():
        if name not in floats:
            votes = [_majority(column, grid, rows) for column in as_columns(value).unbind(1)]
            made[name] = votes[0] if value.ndim == 1 else torch.stack(votes, 1)
    if density:
        made["density"] = _sum_at(torch.ones_like(rows)[:, None].float(), rows, grid.num_voxels)
    order = [*points.attributes, *(["density"] if density else [])]
    return Voxels(grid, {name: made[name] for name in order})


def _splat_floats(
    positions: Tensor, attributes: Attributes, grid: Grid, batch: Tensor, rows: Tensor | None
) -> dict[str, Tensor]:
    columns = [as_columns(value) for value in attributes.values()]
    # The ones are float32 and promote half-precision attributes, whose sums would overflow or lose precision.
    values = torch.cat([*columns, torch.ones(len(positions), 1, device=positions.device)], 1)
    if rows is None:
        sums = ops.splat_trilinear(positions, values, grid, batch)
    else:
        sums = _sum_at(values, rows, grid.num_voxels)
    *parts, weight = sums.split([*(column.shape[1] for column in columns), 1], 1)
    reached = weight.squeeze(1) > 0
    made: dict[str, Tensor] = {}
    nearest = None
    for (name, value), part in zip(attributes.items(), parts, strict=True):
        if name == "normal":
            made[name] = normalized(part).to(value.dtype)
            continue
        nearest = _nearest_of(grid, reached) if nearest is None else nearest
        mean = part / torch.where(reached[:, None], weight, 1)
        made[name] = mean[nearest].to(value.dtype).reshape(grid.num_voxels, *value.shape[1:])
    return made


def normalized(normals: Tensor) -> Tensor:
    """Divide normals [N, 3] by their length plus 1e-6, as XCube does. Zero stays zero."""
    return normals / (torch.linalg.vector_norm(normals, dim=1, keepdim=True) + NORMAL_EPS)


def _sum_at(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Sum values [P, C] by their rows [P] to [N, C], in the order of the points. Rows of -1 are skipped."""
    ordered, order = torch.sort(rows, stable=True)
    offsets = torch.searchsorted(ordered, torch.arange(count + 1, device=rows.device))
    return ops.segment_reduce(values[order], offsets, "sum")


def _nearest_of(grid: Grid, marked: Tensor) -> Tensor:
    """Find the nearest marked voxel of the same batch item, for each voxel: int64 [N].

    Marked voxels, and all voxels of an item without marked ones, get their own row.
    """
    own = torch.arange(grid.num_voxels, device=grid.device)
    missing = ~marked
    if not bool(missing.any()):
        return own
    kept = grid.prune(marked)
    found = kept.nearest(grid.to_world(grid.ijk[missing].double()), grid.batch[missing])
    own[missing] = torch.where(
        found < 0, own[missing], own[marked][found] if len(found) and kept.num_voxels else own[missing]
    )
    return own


def _majority(labels: Tensor, grid: Grid, rows: Tensor) -> Tensor:
    """Find the most common label of each voxel; ties go to the smallest label."""
    inside = rows >= 0
    classes, number = torch.unique(labels[inside], return_inverse=True)
    made = labels.new_zeros(grid.num_voxels)
    if not len(classes):
        return made
    votes, counts = torch.unique(rows[inside] * len(classes) + number, return_counts=True)
    # Sort by voxel, then by count, then by descending label: the last entry of each voxel is its majority.
    order = torch.arange(len(votes), device=votes.device).flip(0)
    order = order[torch.sort(counts[order], stable=True).indices]
    order = order[torch.sort(votes[order] // len(classes), stable=True).indices]
    voxel = votes[order] // len(classes)
    last = torch.ones_like(voxel, dtype=torch.bool)
    last[:-1] = voxel[1:] != voxel[:-1]
    made[voxel[last]] = classes[votes[order[last]] % len(classes)]
    marked = torch.zeros(grid.num_voxels, dtype=torch.bool, device=grid.device)
    marked[voxel[last]] = True
    return made[_nearest_of(grid, marked)]
