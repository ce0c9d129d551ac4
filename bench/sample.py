"""Trilinear sampling of features at points, and splatting of values from points to voxels."""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from bench import baseline
from bench.contenders import BACKWARD, grid, on_features, random
from bench.harness import Case, Contender, close
from sparsevox.ops.sample import sample_trilinear, splat_trilinear

CHANNELS, POINTS = 32, 100_000
CORNERS = [[0, x, y, z] for x, y, z in itertools.product((0, 1), repeat=3)]


class Searches:
    """Trilinear interpolation in plain PyTorch, with eight searches in the voxel list."""

    def __init__(self, coords: Tensor) -> None:
        self._keys, self._order = torch.sort(baseline.pack(coords))

    def corners(self, points: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the row (-1 if absent) and the weight of each of the eight voxels around points [P, 3]."""
        base = points.floor()
        first = torch.nn.functional.pad(base.int(), (1, 0))
        for corner in CORNERS:
            found = baseline.find(self._keys, baseline.pack(first + first.new_tensor(corner)))
            rows = torch.where(found >= 0, self._order[found], -1)
            offset = points.new_tensor(corner[1:])
            yield rows, (1 - (points - base - offset).abs()).prod(1)

    def sample(self, feats: Tensor, points: Tensor) -> Tensor:
        """Interpolate features [N, C] at points: [P, C]."""
        padded = torch.nn.functional.pad(feats, (0, 0, 0, 1))  # the last row, -1, is 0
        out = feats.new_zeros(len(points), feats.shape[1])
        for rows, weights in self.corners(points):
            out = out + weights[:, None] * padded[rows]
        return out

    def splat(self, values: Tensor, points: Tensor, rows: int) -> Tensor:
        """Splat values [P, C] to features [N, C]."""
        out = values.new_zeros(rows + 1, values.shape[1])
        for target, weights in self.corners(points):
            out = out.index_add(0, torch.where(target < 0, rows, target), weights[:, None] * values)
        return out[:rows]


def points_near(coords: Tensor) -> Tensor:
    """Draw points float32 [P, 3] within about a voxel of the scene, in random order."""
    generator = torch.Generator().manual_seed(0)
    chosen = coords[torch.randint(len(coords), (POINTS,), generator=generator).to(coords.device), 1:]
    return chosen + (torch.rand(POINTS, 3, generator=generator) - 0.5).to(coords.device)


def trilinear(coords: Tensor, *, backward: bool) -> Sequence[Contender]:
    """Compare interpolation with `grid_sample` on a dense volume (cached or built) and with eight searches."""
    g, points = grid(coords), points_near(coords)
    feats = random(g.num_voxels, CHANNELS, like=points)
    lower, upper = (bound[0] for bound in g.bounds())
    size = (upper - lower).tolist()
    x, y, z = (g.ijk - lower).long().unbind(1)
    # grid_sample orders axes from the last to the first, and coordinates range from -1 to 1.
    places = (2 * (points - lower) / (upper - lower - 1) - 1).flip(1)[None, None, None]

    def filled(features: Tensor) -> Tensor:
        volume = features.new_zeros(*size, CHANNELS)
        volume[x, y, z] = features
        return volume.permute(3, 0, 1, 2)[None]

    def sampled(volume: Tensor) -> Tensor:
        found = torch.nn.functional.grid_sample(volume, places, align_corners=True)
        return found.flatten(1)[0].t() if found.ndim == 2 else found[0, :, 0, 0].t()

    def ours(features: Tensor) -> Tensor:
        return sample_trilinear(features, g, points)

    contenders = [
        on_features("sparsevox", ours, feats, backward=backward),
        on_features(
            "grid_sample, building the volume", lambda f: sampled(filled(f)), feats, backward=backward, baseline=True
        ),
        on_features(
            "voxel list, 8 searches",
            partial(Searches(g.coords).sample, points=points),
            feats,
            backward=backward,
            baseline=True,
        ),
    ]
    if not backward:
        volume = filled(feats)
        contenders.append(on_features("grid_sample, cached volume", lambda f: sampled(volume), feats, baseline=True))
    return contenders


def splat(coords: Tensor, *, backward: bool) -> Sequence[Contender]:
    """Compare splatting values of points to the voxels around them."""
    g, points = grid(coords), points_near(coords)
    values = random(POINTS, CHANNELS, like=points)
    searched = partial(Searches(g.coords).splat, points=points, rows=g.num_voxels)

    def ours(v: Tensor) -> Tensor:
        return splat_trilinear(points, v, g)

    return (
        on_features("sparsevox", ours, values, backward=backward),
        on_features("voxel list, 8 searches", searched, values, backward=backward, baseline=True),
    )


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """Yield 100k points around a shell of 50k voxels, whose dense volume takes 270 MB."""
    size = 32 if quick else 128
    for backward in (False, True):
        for name, prepare in (("sample_trilinear", trilinear), ("splat_trilinear", splat)):
            name += BACKWARD * backward
            yield Case(name, "shell", size, partial(prepare, backward=backward), agree=close(1e-4), dtype="float32")
