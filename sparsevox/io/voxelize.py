"""Meshes and point clouds to voxels with attributes.

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

NORMAL_EPS = 1e-6  # XCube divides a splatted normal by its length plus this
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
    """The voxels that a shape touches, with its attributes.

    The voxels of a mesh are those whose closed box a triangle touches; its attributes, and a "normal", come from points
    sampled on its surface. The voxels of points are those that contain them. `splat_attributes` says how attributes
    come from points.

    Args:
        shape: On the device where the work is to be done.
        voxel_size: Edges of a voxel. Either this or `grid`.
        origin: Center of voxel (0, 0, 0).
        grid: One grid whose voxels receive the attributes, in place of those that the shape touches.
        splat: "trilinear": a point counts for the eight voxels around it, by their weights. "nearest": for the voxel
            that contains it.
        samples: How many points to sample on a mesh; 10 for each voxel by default.
        seed: Of the sampled points.
        density: Whether to count the points in each voxel as the attribute "density".

    Raises:
        ImportError: If the shape is a mesh and trimesh is not installed.
        TypeError: If the shape is neither mesh nor points.
        ValueError: If both or none of `voxel_size` and `grid` are given, or a position is not finite or out of range.
    """
    if not isinstance(shape, Mesh | Points):
        raise TypeError(f"shape must be a Mesh or Points, got {type(shape).__name__}")
    if (grid is None) == (voxel_size is None):
        raise ValueError("give either voxel_size or grid")
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
    """Attributes of voxels from those of points.

    - "normal": the weighted sum of the normals around, divided by its length plus 1e-6. Zero where there are none.
    - other floats: the weighted mean. A voxel that no point reaches takes the row of the nearest one that some reach.
    - integers: what most points in the voxel say, the smallest of equally many, channel by channel; else as the nearest
      voxel with points.
    - "density", if asked for: how many points the voxel contains.

    Weights are trilinear, or 1 for the voxel that contains the point with `splat="nearest"`.

    Args:
        points: Points [P] with attributes.
        grid: What receives.
        batch: Batch item of each point, integers [P], 0 by default.
        splat: "trilinear" or "nearest".
        density: Whether to count.

    Raises:
        TypeError: If `batch` does not hold integers.
        ValueError: If `splat` is unknown, a position is not finite, or shapes or devices do not fit.
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
    # Sums of many points, and how many there are, are beyond 16 bits.
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
    """Normals [N, 3] divided by their length plus 1e-6, as XCube does: zero stays zero."""
    return normals / (torch.linalg.vector_norm(normals, dim=1, keepdim=True) + NORMAL_EPS)


def _sum_at(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Sum [N, C] of the values [P, C] of each row, in the order of the points; rows of -1 are left out."""
    ordered, order = torch.sort(rows, stable=True)
    offsets = torch.searchsorted(ordered, torch.arange(count + 1, device=rows.device))
    return ops.segment_reduce(values[order], offsets, "sum")


def _nearest_of(grid: Grid, marked: Tensor) -> Tensor:
    """For each voxel its own row if it is marked, else that of the nearest marked one of its item: int64 [N].

    An item without a marked voxel keeps its own rows.
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
    """The commonest label of each voxel, the smallest of equally common ones."""
    inside = rows >= 0
    classes, number = torch.unique(labels[inside], return_inverse=True)
    made = labels.new_zeros(grid.num_voxels)
    if not len(classes):
        return made
    votes, counts = torch.unique(rows[inside] * len(classes) + number, return_counts=True)
    # The last entry written to a voxel wins, so the commonest comes last, and of those the smallest label.
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
