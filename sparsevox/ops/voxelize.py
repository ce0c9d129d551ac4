"""Voxels of points and of triangle meshes.

World to grid is `(p - origin) / voxel_size` in float64, with a division, so that every device gets the same bits.
P points, V vertices, F faces, M voxels.
"""

from typing import Literal

import torch
from torch import Tensor

from sparsevox import checks, morton
from sparsevox._readback import read_back, send
from sparsevox.checks import Triple
from sparsevox.morton import Bricks
from sparsevox.ops import _library, morphology
from sparsevox.ops.bricks import build, limits
from sparsevox.reference import voxelize as reference

OUTSIDE = 1 << 30  # a coordinate that no voxel has

_mesh_voxels = _library.register(
    "mesh_voxels(Tensor vertices, Tensor faces) -> Tensor",
    reference=reference.mesh_voxels,
    kernels=None,  # wide elementwise float64 arithmetic, chunk by chunk, which serves every device
    fake=lambda vertices, faces: faces.new_empty((_library.dynamic_size(), 3), dtype=torch.int32),
)


def to_grid(points: Tensor, voxel_size: Triple, origin: Triple) -> Tensor:
    """Convert world positions [..., 3] to continuous voxel coordinates float64 [..., 3]; integers are voxel centers."""
    return (points.double() - send(origin, points.device)) / send(voxel_size, points.device)


def to_world(ijk: Tensor, voxel_size: Triple, origin: Triple) -> Tensor:
    """Convert voxel coordinates [..., 3] to world positions float64 [..., 3]."""
    return send(origin, ijk.device) + send(voxel_size, ijk.device) * ijk.double()


def check_points(points: object, batch: object) -> tuple[Tensor, Tensor]:
    """Return points [P, 3] and their batch indices int64 [P], 0 by default, once both are known to be valid."""
    checked = checks.floats("points", checks.shape("points", points, "P", 3))
    if batch is None:
        return checked, torch.zeros(checked.shape[0], dtype=torch.int64, device=checked.device)
    items = checks.integers("batch", checks.shape("batch", batch, checked.shape[0]))
    checks.same_device("batch", items, "points", checked.device)
    return checked, items.long()


def from_points(
    points: object,
    batch: object,
    voxel_size: Triple,
    origin: Triple,
    batch_size: int | None,
    mode: Literal["containing", "enclosing"],
) -> Bricks:
    """Build bricks of the voxels that contain the points, or of the eight whose centers enclose each point.

    Raises:
        TypeError: If points are not floating-point or batch indices not integers.
        ValueError: If shapes or devices do not fit, `mode` is unknown, a point is not finite, or a voxel lies outside
            of [-2^17, 2^17).
    """
    positions, items = check_points(points, batch)
    if mode not in ("containing", "enclosing"):
        raise ValueError(f"mode must be 'containing' or 'enclosing', got {mode!r}")
    if batch_size is not None:
        batch_size = checks.batch_size(batch_size)
    elif batch is None:
        batch_size = 1
    ijk = to_grid(positions.detach(), voxel_size, origin)
    ijk = (ijk + 0.5 if mode == "containing" else ijk).floor()
    largest = morton.COORD_MAX if mode == "containing" else morton.COORD_MAX - 1
    ijk = torch.where((ijk >= morton.COORD_MIN) & (ijk <= largest), ijk, OUTSIDE).long()  # NaN compares False
    try:
        bricks = build(torch.cat([items[:, None], ijk], 1), batch_size, name="voxel")
    except ValueError:
        _explain(positions, items, ijk, batch_size)
        raise
    return bricks if mode == "containing" else morphology.dilate(bricks, [0, 0, 0], [1, 1, 1])


def _explain(points: Tensor, items: Tensor, ijk: Tensor, batch_size: int | None) -> None:
    """Raise an error that names the first point without a voxel."""
    batches = morton.MAX_BATCH if batch_size is None else batch_size
    rows = torch.cat([items[:, None], ijk], 1)
    outside = ~morton.in_range(rows) | (items >= batches)
    if not outside.any():
        return
    index = int(outside.int().argmax())
    point = tuple(points[index].tolist())
    if not bool(points[index].isfinite().all()):
        raise ValueError(f"points must be finite, got points[{index}] = {point}") from None
    if not 0 <= int(items[index]) < batches:
        raise ValueError(f"batch[{index}] = {int(items[index])} is out of range: {limits(batch_size)}") from None
    raise ValueError(f"points[{index}] = {point} lies outside the grid: {limits(batch_size)}") from None


def from_mesh(vertices: object, faces: object, voxel_size: Triple, origin: Triple) -> Bricks:
    """Build bricks of every voxel whose closed box a triangle touches.

    Args:
        vertices: World positions, floating point [V, 3].
        faces: Rows of vertices, integers [F, 3]. Degenerate triangles mark the voxels that they touch.
        voxel_size: Edge lengths of a voxel.
        origin: Center of voxel (0, 0, 0).

    Raises:
        TypeError: If vertices are not floating-point or faces not integers.
        ValueError: If shapes or devices do not fit, a vertex of a face is not finite, a face refers to a vertex that
            does not exist, or a voxel lies outside of [-2^17, 2^17).
    """
    points = checks.floats("vertices", checks.shape("vertices", vertices, "V", 3))
    triangles = checks.integers("faces", checks.shape("faces", faces, "F", 3)).long()
    checks.same_device("faces", triangles, "vertices", points.device)
    positions = to_grid(points.detach(), voxel_size, origin)
    _check_mesh(points, positions, triangles)
    coords = _mesh_voxels(positions, triangles)
    return build(torch.nn.functional.pad(coords, (1, 0)), 1, name="voxel")


def _check_mesh(vertices: Tensor, positions: Tensor, faces: Tensor) -> None:
    if faces.shape[0] == 0:
        return
    count = vertices.shape[0]
    dangling = ((faces < 0) | (faces >= count)).any(1)
    corners = positions[faces.clamp(0, count - 1)] if count else positions.new_zeros(faces.shape[0], 3, 3)
    # A box that only touches the border of the range belongs to a voxel that cannot exist.
    inside = (corners > morton.COORD_MIN - 0.5) & (corners < morton.COORD_MAX + 0.5)
    outside = ~inside.all(2).all(1)
    # Projected along an axis, a triangle covers at least as many voxels as its area.
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).abs().amax(1) / 2
    largest = torch.where(area < 1 << 62, area, 0).amax().ceil()
    some_dangling, first, some_outside, other, covered = read_back(
        dangling.any(), dangling.int().argmax(), outside.any(), outside.int().argmax(), largest
    )
    if some_dangling:
        raise ValueError(
            f"faces must hold vertex rows in [0, {count}), got faces[{first}] = {tuple(faces[first].tolist())}"
        )
    if some_outside:
        vertex = faces[other][int((~inside[other].all(1)).int().argmax())]
        position = tuple(vertices[vertex].tolist())
        if not bool(vertices[vertex].isfinite().all()):
            raise ValueError(f"vertices must be finite, got vertices[{int(vertex)}] = {position}")
        raise ValueError(f"vertices[{int(vertex)}] = {position} lies outside the grid: {limits(1)}")
    morton.check_total(covered)
