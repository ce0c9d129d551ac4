"""Voxels of a mesh: which unit boxes its triangles touch.

V vertices, F faces, T triangles of a block of faces, Q (triangle, cube) pairs, n cells per axis of a cube, M voxels.
Tensors of pairs have the pairs on their last axis, so that every elementwise loop runs over contiguous memory.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from sparsevox import morton
from sparsevox.reference._runs import run_starts, true_indices

CHUNK = 1 << 18  # cells tested at once; their intermediate results should fit in the cache of a CPU
GPU_FACTOR = 16  # on a GPU, how many times more cells at once
FACES = 1 << 17  # faces processed at once
MERGE = 1 << 24  # voxels collected before duplicates are removed

# Tolerance of a test, relative to the largest coordinate. It exceeds all rounding errors, and it is less than half a
# unit in the last place of short dyadic numbers, which are computed without errors: so the tests are right for both.
SLACK = 2.0**-47


def mesh_voxels(vertices: Tensor, faces: Tensor) -> Tensor:
    """Coordinates of every voxel whose closed box [i - 0.5, i + 0.5]^3 touches a triangle.

    A triangle and a box are tested on their 13 separating axes (Akenine-Moeller, "Fast 3D Triangle-Box Overlap
    Testing", 2001), with one range per edge and coordinate plane (Schwarz and Seidel, "Fast Parallel Surface and Solid
    Voxelization on GPUs", 2010). The boxes are cells of cubes: a triangle starts with the smallest cube of 2^k voxels
    per axis that contains it, and each step divides the edge of its cells by four. There are no divisions and no
    normalized vectors, so degenerate triangles (segments, points) need no special case: their missing axes are zero and
    separate nothing.

    No touched voxel is ever missed. A voxel is returned in error only if its distance to the triangle is a rounding
    error: about 1e-14 of the triangle's extent, more only for needles. The result is exact if coordinates are multiples
    of 2^-f and no triangle extends over more than 2^(14 - f) voxels per axis.

    Args:
        vertices: float64 [V, 3], finite, in grid coordinates (voxel (i, j, k) has its center at (i, j, k)).
        faces: int64 [F, 3], rows of `vertices`; an index may occur twice in a face.

    Returns:
        int32 [M, 3] in no particular order, with duplicates where triangles share voxels. The order depends on the
        order of the faces, the set does not.

    Memory: about 100 MB for CHUNK cells and FACES faces, for any mesh, and 24 bytes per row of the result, or 60 where
    duplicates are removed. That happens whenever there are more than MERGE rows, and more than twice as many as were
    left the last time: the result has at most MERGE rows, or twice as many as there are voxels.
    """
    parts: list[Tensor] = []
    count, limit = 0, MERGE
    for part in _all_parts(vertices, faces):
        parts.append(part)
        count += part.shape[1]
        if count > limit:
            parts = [_distinct(torch.cat(parts, 1))]
            count = parts[0].shape[1]
            limit = max(MERGE, 2 * count)
    if not parts:
        return torch.empty((0, 3), dtype=torch.int32, device=vertices.device)
    return torch.cat(parts, 1).t().contiguous()


def _all_parts(vertices: Tensor, faces: Tensor) -> Iterator[Tensor]:
    """Voxels int32 [3, ...], for one batch of triangles after the other."""
    for block in faces.split(FACES):
        corners = vertices[block].permute(1, 2, 0)  # [3 corners, 3 axes, T]
        # First voxel that the triangle's bounding box touches: the smallest i with x <= i + 0.5, as boxes are closed.
        base = torch.ceil(corners.amin(0) + 0.5) - 1
        # Move near the origin, then to boxes [i, i + 1]: errors become relative to the triangle's extent.
        corners = corners - base + 0.5
        _, bits = torch.frexp(corners.amax(0).floor().amax(0))  # extent <= 2^bits voxels
        for size in torch.unique(bits).tolist():
            rows = true_indices(bits == size)
            yield from _descend(corners.index_select(2, rows), base.index_select(1, rows).int(), size)


def _descend(corners: Tensor, base: Tensor, bits: int) -> Iterator[Tensor]:
    """Voxels of triangles that fit into a cube of 2^bits voxels per axis.

    The search is depth first with chunks of pairs, so that at most 64 chunks wait on each of the nine levels.
    """
    chunk = CHUNK * (GPU_FACTOR if corners.is_cuda else 1)
    owner = torch.arange(corners.shape[2], device=corners.device)
    cube = torch.zeros_like(base)
    cell_bits = 2 - bits % 2 if bits else 0
    stack = [(bits - cell_bits, cell_bits, owner, cube)]
    while stack:
        level, cell_bits, owner, cube = stack.pop()
        pairs = max(1, chunk >> 3 * cell_bits)
        if owner.shape[0] > pairs:
            stack.append((level, cell_bits, owner[pairs:], cube[:, pairs:]))
            owner, cube = owner[:pairs], cube[:, :pairs]
        touched = _touched_cells(corners.index_select(2, owner), cube, 1 << cell_bits, 1 << level, 2.0**bits * SLACK)
        hits = true_indices(touched.flatten())
        cell = torch.div(hits, owner.shape[0], rounding_mode="floor")
        pair = hits - cell * owner.shape[0]
        if level == 0:
            cube = cube + base.index_select(1, owner)
        cube = cube.index_select(1, pair) + (_cells(cell_bits, cube.device) << level).index_select(1, cell)
        if level == 0:
            yield cube
        elif hits.shape[0]:
            stack.append((level - 2, 2, owner[pair], cube))


def _cells(bits: int, device: torch.device) -> Tensor:
    """Positions of the cells of a cube, in row-major order: int32 [3, 8^bits]."""
    cell = torch.arange(8**bits, dtype=torch.int32, device=device)
    return torch.stack([cell >> 2 * bits, cell >> bits, cell]) & (1 << bits) - 1


def _touched_cells(corners: Tensor, cube: Tensor, n: int, edge: int, slack: float) -> Tensor:
    """Whether each triangle touches the closed cells of a cube: bool [n, n, n, Q].

    Args:
        corners: float64 [3 corners, 3 axes, Q].
        cube: int32 [3, Q], the cube's lowest corner.
        n: number of cells per axis.
        edge: edge length of a cell.
        slack: bound of the rounding errors, as a shift of a corner or a cell.
    """
    sides = corners.roll(-1, 0) - corners
    steps = edge * torch.arange(n, dtype=torch.int32, device=cube.device)
    places = (cube[:, None] + steps[:, None]).double()  # [3, n, Q], lowest corners
    touched = _plane_meets(corners[0], sides, places, edge, slack)
    boxes = (places <= corners.amax(0)[:, None]) & (places + edge >= corners.amin(0)[:, None])
    for axis, others in enumerate((slice(1, 3), slice(0, 3, 2), slice(0, 2))):
        flat = _projections_meet(corners[:, others], sides[:, others], places[others], edge, slack)
        flat &= boxes[others][0][:, None] & boxes[others][1]
        touched &= flat.unsqueeze(axis)
    return touched


def _plane_meets(corner: Tensor, sides: Tensor, places: Tensor, edge: int, slack: float) -> Tensor:
    """Whether the triangle's plane meets each cell: bool [n, n, n, Q].

    normal . (p - corner) varies over a cell by half its edge times |normal|_1 around the value at the center.
    """
    half = 0.5 * edge
    normal = torch.linalg.cross(sides[0], sides[1], dim=0)  # [3, Q]
    middle = (normal * (half - corner)).sum(0)
    # The normal of a needle may be all rounding error, which scales with the products, not with their difference.
    doubt = slack * sides[0].abs().sum(0) * sides[1].abs().sum(0)
    radius = (half + slack) * normal.abs().sum(0) + doubt
    x, y, z = normal[:, None] * places  # [n, Q] each
    distance = (x + middle)[:, None, None] + (y[:, None] + z)
    return distance.abs_() <= radius


def _projections_meet(corners: Tensor, sides: Tensor, places: Tensor, edge: int, slack: float) -> Tensor:
    """Whether no side of the triangle, projected along an axis, separates it from a cell: bool [n, n, Q].

    For a side s from corner c, the function f(p) = s_a (p_b - c_b) - s_b (p_a - c_a) is 0 along the side and `area` at
    the third corner; over a cell it varies by half the edge times |s_a| + |s_b| around the value at the center. All
    arguments have only the two other axes, a and b.
    """
    half = 0.5 * edge
    side_a, side_b = sides.unbind(1)  # [3 sides, Q]
    area = side_a * side_b.roll(-1, 0) - side_b * side_a.roll(-1, 0)
    middle = side_a * (half - corners[:, 1]) - side_b * (half - corners[:, 0]) - 0.5 * area
    radius = (half + slack) * (side_a.abs() + side_b.abs()) + 0.5 * area.abs()
    along_a = middle[:, None] - side_b[:, None] * places[0]  # [3, n, Q]
    along_b = side_a[:, None] * places[1]
    meets = (along_a[:, :, None] + along_b[:, None]).abs_() <= radius[:, None, None]
    return meets[0] & meets[1] & meets[2]


def _distinct(voxels: Tensor) -> Tensor:
    """Each of the voxels [3, M] once."""
    # Boxes of vertices at the limits of the range reach one voxel beyond, where codes would wrap around.
    shift, bits = -morton.COORD_MIN + 1, morton.AXIS_BITS + 2
    code = torch.zeros_like(voxels[0], dtype=torch.int64)
    for axis in voxels:
        code.bitwise_left_shift_(bits).add_(axis).add_(shift)
    code = torch.sort(code).values
    code = code[run_starts(code)]
    low = (1 << bits) - 1
    return torch.stack([code >> 2 * bits, code >> bits & low, code & low]).sub_(shift).int()
