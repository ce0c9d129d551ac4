"""The nearest voxel of a point: branch and bound over the octree that sorted bricks imply.

Level 0 of the tree are the bricks; each further level merges eight cubes into one of twice the size. The children of a
node are consecutive rows. P points, B grids, L bricks, N voxels, n nodes of a level, Q (point, node) pairs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparsevox import morton
from sparsevox.reference._runs import encode, popcount, run_starts, true_indices

PAIRS = 1 << 13  # (point, node) pairs expanded at once; 64 numbers per pair should fit in the cache of a CPU core
POINTS = 1 << 14  # points that descend together
GPU_FACTOR = 16  # on a GPU, how many times more at once
NO_ROW = torch.iinfo(torch.int64).max
INFINITY = 0x7FF << 52  # as a float64


class _Level(NamedTuple):
    """Nodes of one size, in row order."""

    first: Tensor  # int64 [n + 1], row of each node's first child in the level below, and the end
    lower: Tensor  # int32 [3, n], smallest coordinates of the node's voxels
    upper: Tensor  # int32 [3, n], largest


class _Best:
    """The best candidate for the nearest voxel of each point so far."""

    def __init__(self, num_points: int, device: torch.device) -> None:
        # Upper bound of the squared distance of the nearest voxel.
        self.bound = torch.full((num_points,), torch.inf, dtype=torch.float64, device=device)
        # Smallest squared distance of a voxel so far, and the lowest row with that distance.
        self.distance = self.bound.clone()
        self.row = torch.full((num_points,), NO_ROW, device=device)

    def bound_by(self, point: Tensor, bound: Tensor) -> None:
        """Record squared distances within which there is a voxel."""
        self.bound.scatter_reduce_(0, point, bound, "amin")

    def meet(self, point: Tensor, distance: Tensor) -> Tensor:
        """Record squared distances of voxels. Returns the indices of those which are the smallest so far."""
        nearest = self.distance.scatter_reduce(0, point, distance, "amin")
        self.row.masked_fill_(nearest < self.distance, NO_ROW)
        self.distance = nearest
        self.bound = torch.minimum(self.bound, nearest)
        return true_indices(distance == nearest[point])

    def claim(self, point: Tensor, row: Tensor) -> None:
        """Record the rows of smallest distances."""
        self.row.scatter_reduce_(0, point, row, "amin")


def nearest_rows(
    points: Tensor,
    batch: Tensor,
    keys: Tensor,
    masks: Tensor,
    starts: Tensor,
    offsets: Tensor,
    rows: Tensor,
    voxel_size: list[float],
) -> Tensor:
    """Row of the nearest voxel center of each point's batch item, in world distance.

    Voxels are compared by d^2 = (s_x dx)^2 + (s_y dy)^2 + (s_z dz)^2 in float64, summed from left to right; among
    equal distances the lowest row wins. The bounds are those of Roussopoulos, Kelley and Vincent, "Nearest Neighbor
    Queries", 1995. They hold in floating point too: every rounded operation is monotonic, so the lower bound of a box
    never exceeds the distance of its nearest voxel, and the upper bound is never below it.

    Args:
        points: float64 [P, 3], in grid coordinates (voxel (i, j, k) has its center at (i, j, k)), at any distance.
        batch: int64 [P], batch item of each point.
        keys: int64 [L]; this and the next four are the arrays of `Bricks`.
        masks: int64 [L].
        starts: int32 [L].
        offsets: int64 [B + 1].
        rows: bool [N, 0].
        voxel_size: three edge lengths s.

    Returns:
        int64 [P]; -1 where the item has no voxel or does not exist.

    Raises:
        VoxelError: For the first point that is not finite.

    Memory: about 100 bytes per brick, and about 30 MB for PAIRS and POINTS. The time per point grows with the logarithm
    of N, except for points that are equally far from very many voxels.
    """
    finite = points.isfinite().all(1)
    if not finite.all():
        raise morton.VoxelError(int(true_indices(~finite)[0]))
    found = torch.full_like(batch, -1)
    num_items = offsets.shape[0] - 1
    if rows.shape[0] == 0:
        return found
    item = batch.clamp(0, num_items - 1)
    asked = true_indices((batch == item) & (offsets[item] < offsets[item + 1]))
    bricks = _Bricks.of(keys, masks, starts, num_items)
    tree = _build_tree(bricks, num_items)
    scale = torch.tensor(voxel_size, dtype=torch.float64, device=points.device)[:, None]
    for some in asked.split(POINTS * (GPU_FACTOR if points.is_cuda else 1)):
        found[some] = _descend(points[some].t().contiguous(), batch[some], bricks, tree, scale)
    return found


class _Bricks(NamedTuple):
    """The arrays of bricks that the search reads."""

    keys: Tensor
    masks: Tensor
    starts: Tensor
    corners: Tensor  # int32 [3, L]
    first: Tensor  # int64 [B + 1], first brick of each item

    @classmethod
    def of(cls, keys: Tensor, masks: Tensor, starts: Tensor, num_items: int) -> "_Bricks":
        corners = morton.decode(keys << 6).t()[1:].int().contiguous()
        first = torch.searchsorted(keys, morton.batch_keys(num_items, keys.device))
        return cls(keys, masks, starts, corners, first)


def _build_tree(bricks: _Bricks, num_items: int) -> list[_Level]:
    """Levels from the bricks up to one with at most eight nodes per batch item, and then the items themselves."""
    keys, items = bricks.keys, bricks.first
    tree = [_Level(items.new_empty(0), *_brick_boxes(bricks))]
    while (items[1:] - items[:-1]).max() > 8:
        keys = keys >> 3
        starts = run_starts(keys)
        first = torch.cat([starts, starts.new_tensor([keys.shape[0]])])
        tree.append(_Level(first, *_joined_boxes(tree[-1], first)))
        keys = keys[starts]
        items = torch.searchsorted(keys, morton.batch_keys(num_items, keys.device) >> 3 * (len(tree) - 1))
    nothing = bricks.corners.new_empty(3, 0)
    return [*tree, _Level(items, nothing, nothing)]


def _brick_boxes(bricks: _Bricks) -> tuple[Tensor, Tensor]:
    """Smallest and largest coordinates of the voxels of each brick."""
    lower, upper = bricks.corners.clone(), bricks.corners + 3
    for axis, planes in enumerate(morton.PLANES):
        empty = torch.stack([bricks.masks & plane == 0 for plane in planes])
        lower[axis] += empty.int().cumprod(0).sum(0)
        upper[axis] -= empty.flip(0).int().cumprod(0).sum(0)
    return lower, upper


def _joined_boxes(below: _Level, first: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest coordinates of the voxels of each node's children."""
    parents = torch.repeat_interleave(first[1:] - first[:-1]).expand(3, -1)
    empty = below.lower.new_empty(3, first.shape[0] - 1)
    lower = empty.scatter_reduce(1, parents, below.lower, "amin", include_self=False)
    upper = empty.scatter_reduce(1, parents, below.upper, "amax", include_self=False)
    return lower, upper


def _brick_before(place: Tensor, batch: Tensor, bricks: _Bricks) -> Tensor:
    """A brick of the point's item that contains the point or precedes it in Z-order, so it is often near: int64 [P]."""
    nearest = place.clamp(morton.COORD_MIN, morton.COORD_MAX).round().long()
    code = encode(torch.stack([batch, *nearest], 1))
    brick = torch.searchsorted(bricks.keys, code >> 6, right=True) - 1
    return torch.minimum(torch.maximum(brick, bricks.first[batch]), bricks.first[batch + 1] - 1)


def _descend(place: Tensor, batch: Tensor, bricks: _Bricks, tree: list[_Level], scale: Tensor) -> Tensor:
    """Rows of the nearest voxels of points [3, P].

    The search is depth first with chunks of pairs, so that at most eight chunks wait on every level. It begins with a
    brick near each point, whose voxels give a bound that prunes most of the tree.
    """
    most_pairs = PAIRS * (GPU_FACTOR if place.is_cuda else 1)
    best = _Best(place.shape[1], place.device)
    point = torch.arange(place.shape[1], device=place.device)
    least = torch.zeros_like(place[0])
    stack = [(len(tree) - 1, point, batch, least), (0, point, _brick_before(place, batch, bricks), least)]
    while stack:
        level, point, node, least = stack.pop()
        if point.shape[0] > most_pairs:
            stack.append((level, point[most_pairs:], node[most_pairs:], least[most_pairs:]))
            point, node, least = point[:most_pairs], node[:most_pairs], least[:most_pairs]
        # The bound may have decreased since the pair was pushed.
        kept = true_indices(least <= best.bound[point])
        point, node = point[kept], node[kept]
        if level == 0:
            _meet_voxels(place, point, node, bricks, scale, best)
        elif kept.shape[0]:
            point, node = _children(point, node, tree[level].first)
            pairs = _near_enough(place, point, node, tree[level - 1], scale, best)
            stack.append((level - 1, *pairs))
    return best.row


def _children(point: Tensor, node: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of each point with the children of its node."""
    begin = first[node]
    count = first[node + 1] - begin
    pair = torch.repeat_interleave(count)
    shift = begin - count.cumsum(0) + count
    return point[pair], shift[pair] + torch.arange(pair.shape[0], device=pair.device)


def _near_enough(
    place: Tensor, point: Tensor, node: Tensor, nodes: _Level, scale: Tensor, best: _Best
) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs whose node may contain the nearest voxel, with lower bounds [Q] of the squared distances.

    The lower bound is the distance of the node's box. For the upper bound: each face of the box has a voxel, at worst
    at the far corner of the nearer of two opposite faces.
    """
    own = place.index_select(1, point)
    below = nodes.lower.index_select(1, node) - own
    above = own - nodes.upper.index_select(1, node)
    least = _sum(_squares(torch.maximum(below, above).clamp_(min=0), scale))

    kept = true_indices(least <= best.bound[point])
    point, node, least = point[kept], node[kept], least[kept]
    below, above = below.index_select(1, kept).abs_(), above.index_select(1, kept).abs_()
    near, far = _squares(torch.minimum(below, above), scale), _squares(torch.maximum(below, above), scale)
    faces = [_sum([near[a] if a == axis else far[a] for a in range(3)]) for axis in range(3)]
    best.bound_by(point, torch.minimum(torch.minimum(faces[0], faces[1]), faces[2]))

    kept = true_indices(least <= best.bound[point])
    return point[kept], node[kept], least[kept]


def _meet_voxels(place: Tensor, point: Tensor, brick: Tensor, bricks: _Bricks, scale: Tensor, best: _Best) -> None:
    """Compare each point with all 64 positions of a brick at once, in the order of the bits of the mask."""
    steps = torch.arange(4, dtype=torch.int32, device=place.device)[:, None]
    planes = bricks.corners.index_select(1, brick)[:, None] + steps  # [3, 4, Q]
    x, y, z = _squares(place.index_select(1, point)[:, None] - planes, scale[:, None])
    high_low = [(2, 1, 1, 2, 1, 1, -1), (1, 2, 1, 1, 2, 1, -1), (1, 1, 2, 1, 1, 2, -1)]
    squares = _sum([a.view(shape) for a, shape in zip((x, y, z), high_low, strict=True)]).view(64, -1)
    bit = torch.arange(64, device=place.device)[:, None]
    # Infinity where there is no voxel, else 0; built from integer words, which is several times faster than
    # masked_fill.
    nowhere = (~bricks.masks[brick] << 63 - bit).bitwise_right_shift_(63).bitwise_and_(INFINITY)
    nearest = torch.maximum(squares, nowhere.view(torch.float64), out=squares).amin(0)

    hits = best.meet(point, nearest)
    same = squares.index_select(1, hits) == nearest[hits]
    word = same.long().bitwise_left_shift_(bit).sum(0)
    before = (word & -word) - 1  # the bits below the lowest
    brick = brick[hits]
    best.claim(point[hits], bricks.starts[brick] + popcount(bricks.masks[brick] & before))


def _squares(difference: Tensor, scale: Tensor) -> Tensor:
    return (difference * scale).square_()


def _sum(squares: Sequence[Tensor] | Tensor) -> Tensor:
    """Sum of the three axes' squares, in the order that defines which of two distances is smaller."""
    return squares[0] + squares[1] + squares[2]
