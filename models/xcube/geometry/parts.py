"""Parts of shapes that were predicted voxel by voxel: which are left out, and which are connected by bridges.

Parts are connected components across faces, edges and corners (26-connectivity). M candidates.
"""

import math

import numpy as np
import torch
from torch import Tensor

from sparsevox import Grid
from xcube.geometry.components import component_labels, neighbor_pairs
from xcube.geometry.distances import require_scipy

STEP_COST = 1e-3  # cost of a step of length 1, so that of paths of the same probability the shortest is chosen
WIDTH = 0.5  # a bridge gets the neighbors that have this fraction of the probability of its voxels


def certain_parts(candidates: Grid, chosen: Tensor, certain: Tensor) -> Tensor:
    """Leave out the parts without a certain voxel: bool [M]. This is hysteresis thresholding (Canny 1986).

    A shape without any certain voxel keeps all of its parts.

    Args:
        candidates: Candidates of each shape.
        chosen: Which candidates are predicted to exist, bool [M].
        certain: Which candidates are predicted to exist with near certainty, bool [M].

    Raises:
        ImportError: If scipy is not installed.
    """
    certain = certain & chosen
    shape = candidates.batch.long()
    any_certain = torch.zeros(candidates.batch_size, dtype=torch.bool, device=chosen.device)
    any_certain[shape[certain]] = True
    labels = component_labels(candidates.prune(chosen))
    kept = torch.zeros(len(labels), dtype=torch.bool, device=chosen.device)  # by label
    kept[labels[certain[chosen]]] = True
    left = chosen.clone()
    left[chosen] = kept[labels] | ~any_certain[shape[chosen]]
    return left


def bridged(candidates: Grid, chosen: Tensor, probability: Tensor, minimum: float) -> Tensor:
    """Connect the parts of each shape by bridges of candidates, where there are likely ones: bool [M].

    A bridge is the path of candidates with the largest product of probabilities. Bridges form a minimum spanning tree
    of the parts (Mehlhorn 1988, A faster approximation algorithm for the Steiner problem in graphs). They are widened
    by the neighbors of their voxels that are about as probable.

    Args:
        candidates: Candidates of each shape.
        chosen: Which candidates exist, bool [M].
        probability: Probability that a candidate exists, [M].
        minimum: Minimum probability of the voxels of a bridge. Parts that no such bridge connects stay apart.

    Returns:
        `chosen` with the voxels of the bridges.

    Raises:
        ImportError: If scipy is not installed.
        ValueError: If `minimum` is not in (0, 1].
    """
    if not 0 < minimum <= 1:
        raise ValueError(f"minimum must lie in (0, 1], got {minimum}")
    # 1. Nothing to do where a shape has one part.
    if not chosen.any():
        return chosen
    labels, shape = component_labels(candidates.prune(chosen)), candidates.batch.long()
    owner = shape.new_zeros(int(labels.max()) + 1).scatter_(0, labels, shape[chosen])  # all of a part write the same
    several = owner.bincount(minlength=candidates.batch_size) > 1
    open_ = (chosen | (probability >= minimum)) & several[shape]
    if not open_.any():
        return chosen
    # 2. The graph of the others: an edge costs -log of the probabilities of its ends, by halves.
    part = torch.full_like(shape, -1)
    part[chosen] = labels
    of, cost = part[open_].cpu().numpy(), -probability[open_].double().log().cpu().numpy()
    cost[of >= 0] = 0.0
    source, target, length = (each.cpu().numpy() for each in neighbor_pairs(candidates.prune(open_)))
    weight = (cost[source] + cost[target]) / 2 + STEP_COST * length
    new = _bridges(of, source, target, weight)
    # 3. Widen the bridges.
    most = np.full(len(of), -np.inf)  # cost that a neighbor of a bridge may have
    for ours, theirs in ((source, target), (target, source)):
        np.maximum.at(most, theirs[new[ours]], cost[ours[new[ours]]])
    new |= cost <= most - math.log(WIDTH)
    made = chosen.clone()
    made[open_] |= torch.from_numpy(new).to(made.device)
    return made


def _bridges(part: np.ndarray, source: np.ndarray, target: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The nodes of the cheapest paths that connect parts, as a minimum spanning forest: bool [nodes].

    Args:
        part: Part of each node, -1 for those that belong to none.
        source: One end of each edge.
        target: The other end.
        weight: Weight of each edge, positive.
    """
    sparse = require_scipy().sparse
    size = len(part)
    graph = sparse.coo_array((weight, (source, target)), shape=(size, size)).tocsr()
    # 1. The nearest part of each node: its distance, and the way to it.
    inside = np.flatnonzero(part >= 0)
    distance, before, nearest = sparse.csgraph.dijkstra(
        graph, directed=False, indices=inside, min_only=True, return_predecessors=True
    )
    reached = np.isfinite(distance[source])  # then its neighbor is reached, too
    source, target, weight = source[reached], target[reached], weight[reached]
    # 2. Edges between the surroundings of two parts; the cheapest way for each pair.
    ends = np.sort(np.stack([part[nearest[source]], part[nearest[target]]]), axis=0)
    total = distance[source] + weight + distance[target]
    order = np.lexsort((total, ends[1], ends[0]))
    order = order[ends[0][order] != ends[1][order]]
    _, first = np.unique(ends[:, order], axis=1, return_index=True)
    pair = order[first]
    # 3. The pairs of a minimum spanning tree, and their ways back to both parts.
    parts = int(part.max()) + 1
    tree = sparse.csgraph.minimum_spanning_tree(
        sparse.coo_array((total[pair], (ends[0][pair], ends[1][pair])), shape=(parts, parts)).tocsr()
    ).tocoo()
    used = set(zip(tree.row.tolist(), tree.col.tolist(), strict=True))
    made = np.zeros(size, bool)
    for edge in pair:
        if (int(ends[0][edge]), int(ends[1][edge])) in used:
            for node in (source[edge], target[edge]):
                while part[node] < 0:
                    made[node] = True
                    node = before[node]
    return made
