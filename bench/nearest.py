"""Search for the nearest voxel of points."""

import importlib.util
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bench.contenders import grid, ours
from bench.harness import Case, Contender


def nearest(coords: Tensor) -> Sequence[Contender]:
    """Compare with the k-d tree of scipy, if installed, on 100k points a few voxels away from the scene."""
    generator = torch.Generator().manual_seed(0)
    chosen = coords[torch.randint(len(coords), (100_000,), generator=generator).to(coords.device), 1:]
    points = chosen + 2 * torch.randn(len(chosen), 3, generator=generator).to(coords.device)
    g, centers = grid(coords), coords[:, 1:].double()

    def distance(rows: Tensor, voxels: Tensor) -> Tensor:
        """Compute distances, since several voxels can be equally near."""
        return (points.double() - voxels[rows.to(voxels.device)]).square().sum(1).sqrt()

    contenders = [ours(g.nearest, points, view=lambda rows: distance(rows, g.coords[:, 1:].double()))]
    if importlib.util.find_spec("scipy"):
        from scipy.spatial import cKDTree

        data, queries = centers.cpu().numpy(), points.double().cpu().numpy()
        tree = cKDTree(data)

        def view(found: tuple[object, object]) -> Tensor:
            return distance(torch.as_tensor(found[1]), centers)

        def search(tree: cKDTree) -> tuple[object, object]:
            found: tuple[object, object] = tree.query(queries, workers=torch.get_num_threads())
            return found

        contenders.append(Contender("scipy, cached tree", lambda: search(tree), view, baseline=True))
        contenders.append(Contender("scipy, building the tree", lambda: search(cKDTree(data)), view))
    return contenders


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Yield a shell of 100k voxels and a LiDAR sweep, which is sparse in places."""
    yield Case("nearest", "shell", 32 if quick else 180, nearest, dtype="float32")
    yield Case("nearest", "lidar", 64 if quick else 2048, nearest, dtype="float32")
