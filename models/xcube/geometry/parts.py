"""Bridges between the parts of shapes that were predicted voxel by voxel.

Parts are connected components across faces, edges and corners (26-connectivity). M candidates, and of these the nodes
and edges of a graph.
"""

import math

import numpy as np
import torch
from torch import Tensor

from sparsevox import Grid, checks
from xcube.geometry.components import component_labels, neighbor_pairs
from xcube.geometry.distances import require_scipy

STEP_COST = 1e-3  # cost of a step of length 1, so that of paths of the same probability the shortest is chosen
WIDTH = 0.5  # a bridge is widened by neighbors with this fraction of the probability of its voxels


def bridged(candidates: Grid, chosen: Tensor, probability: Tensor, minimum: float) -> Tensor:
    """Connect the parts of each shape by bridges of unchosen candidates: bool [M].

    A bridge is the path with the largest product of probabilities. The bridges of a shape form a minimum spanning tree
    of its parts (Mehlhorn 1988, A faster approximation algorithm for the Steiner problem in graphs). They are widened
    by neighbors of their voxels that are at least half as probable.

    Args:
        candidates: Candidates of each shape.
        chosen: Which candidates exist, bool [M].
        probability: Probability that a candidate exists, floats [M] in [0, 1].
        minimum: Minimum probability of the voxels of a bridge. Parts that no such bridge connects stay apart.

    Returns:
        `chosen` with the voxels of the bridges.

    Raises:
        ImportError: If scipy is not installed.
        ValueError: If `minimum` is not in (0, 1], or `chosen` or `probability` has another shape.
    """
    if not 0 < minimum <= 1:
        raise ValueError(f"minimum must lie in (0, 1], got {minimum}")
    chosen = checks.shape("chosen", chosen, candidates.num_voxels)
    probability = checks.shape("probability", probability, candidates.num_voxels).detach()
    if not chosen.any():
        return chosen
    # 1. Nothing to do where a shape has one part.
    labels, shape = component_labels(candidates.prune(chosen)), candidates.batch.long()  # [chosen], [M]
    owner = shape.new_zeros(int(labels.max()) + 1).scatter_(0, labels, shape[chosen])  # shape of each part
    several = owner.bincount(minlength=candidates.batch_size) > 1
    allowed = (chosen | (probability >= minimum)) & several[shape]
    if not allowed.any():
        return chosen
    # 2. A graph of the candidates of the other shapes. Crossing a candidate that is not chosen costs -log(probability).
    part = torch.full_like(shape, -1)
    part[chosen] = labels
    part_of_node = part[allowed].cpu().numpy()  # [nodes]
    cost = -probability[allowed].double().log().cpu().numpy()  # [nodes]
    cost[part_of_node >= 0] = 0.0
    source, target, length = (each.cpu().numpy() for each in neighbor_pairs(candidates.prune(allowed)))  # [edges]
    useful = (part_of_node[source] < 0) | (part_of_node[target] < 0)  # the others lie within a part
    source, target, length = source[useful], target[useful], length[useful]
    weight = (cost[source] + cost[target]) / 2 + STEP_COST * length
    # 3. The cheapest paths, widened.
    new = widened(spanning_paths(part_of_node, source, target, weight), source, target, cost)
    made = chosen.clone()
    made[allowed] |= torch.from_numpy(new).to(made.device)
    return made


def spanning_paths(part: np.ndarray, source: np.ndarray, target: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Find the nodes between parts on the paths of a minimum spanning forest of the parts: bool [nodes].

    Args:
        part: Number of the part of each node, -1 for those in no part.
        source: One end of each edge. No edge lies within a part.
        target: The other end.
        weight: Weight of each edge, positive.
    """
    made = np.zeros(len(part), bool)
    ends = np.unique(np.concatenate([source, target]))
    starts = ends[part[ends] >= 0]
    if not len(starts):
        return made
    # 1. The nearest part of each node: its distance, and the node before it on the path from there.
    sparse = require_scipy().sparse
    graph = sparse.coo_array((weight, (source, target)), shape=(len(part),) * 2).tocsr()
    distance, before, nearest = sparse.csgraph.dijkstra(
        graph, directed=False, indices=starts, min_only=True, return_predecessors=True
    )
    # 2. Each edge between nodes with different nearest parts completes a path between these; the cheapest per pair.
    crossing = np.flatnonzero(np.isfinite(distance[source]))  # then the target is reached, too
    pair = np.sort(np.stack([part[nearest[each[crossing]]] for each in (source, target)]), axis=0)  # [2, edges]
    total = distance[source[crossing]] + weight[crossing] + distance[target[crossing]]
    order = np.lexsort((total, pair[1], pair[0]))
    order = order[pair[0][order] != pair[1][order]]
    _, first = np.unique(pair[:, order], axis=1, return_index=True)
    cheapest = order[first]
    # 3. A minimum spanning forest of the parts, and the nodes on its paths.
    count = int(part.max()) + 1
    low, high = pair[:, cheapest]
    between = sparse.coo_array((total[cheapest], (low, high)), shape=(count, count)).tocsr()
    forest = sparse.csgraph.minimum_spanning_tree(between).tocoo()
    used = np.isin(low * count + high, forest.row.astype(np.int64) * count + forest.col)
    for edge in crossing[cheapest[used]]:
        for node in (source[edge], target[edge]):
            while part[node] < 0 and not made[node]:
                made[node] = True
                node = before[node]
    return made


def widened(path: np.ndarray, source: np.ndarray, target: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Add the neighbors of path nodes whose probability is at least `WIDTH` times that of such a node: bool [nodes].

    Args:
        path: Which nodes lie on a path.
        source: One end of each edge.
        target: The other end.
        cost: -log of the probability of each node.
    """
    limit = np.full(len(path), -np.inf)
    for ours, theirs in ((source, target), (target, source)):
        on_path = path[ours]
        np.maximum.at(limit, theirs[on_path], cost[ours[on_path]] - math.log(WIDTH))
    wide: np.ndarray = path | (cost <= limit)
    return wide
