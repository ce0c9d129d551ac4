"""Procedural data for the example networks: labeled street scenes, and shapes of five families."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import sparsevox as sv

CLASSES = ("ground", "building", "car", "pole", "tree")
PALETTE = torch.tensor(
    [[0.62, 0.62, 0.66], [0.85, 0.55, 0.35], [0.20, 0.45, 0.85], [0.95, 0.80, 0.15], [0.25, 0.65, 0.30]]
)
SHAPES = ("ball", "box", "cylinder", "cone", "ring")


def street(seed: int, half: float = 10.0, points: int = 14_000) -> tuple[Tensor, Tensor]:
    """Generate a LiDAR scan of a street: points [P, 3] in meters and their classes [P].

    Buildings, cars, poles and trees stand at random places on the ground. The density of points falls with distance,
    and all points have noise of 3 cm.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(count: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    parts, labels = [], []

    def add(part: Tensor, label: str) -> None:
        parts.append(part)
        labels.append(torch.full((len(part),), CLASSES.index(label)))

    ground = torch.stack([uniform(points // 2, -half, half), uniform(points // 2, -half, half)], 1)
    height = 0.08 * torch.sin(0.6 * ground[:, 0]) + 0.08 * torch.cos(0.5 * ground[:, 1])
    add(torch.cat([ground, height[:, None]], 1), "ground")
    count_per_object = points // 24
    for label, count, low, high in (
        ("building", 3, (3, 3, 4), (6, 6, 7)),
        ("car", 5, (3.8, 1.7, 1.4), (4.6, 1.9, 1.7)),
    ):
        for _ in range(count):
            size = torch.tensor([float(uniform(1, a, b)) for a, b in zip(low, high, strict=True)])
            number = count_per_object * (2 if label == "building" else 1)
            add(_box(number, size, generator) + _place(half, size[2] / 2, generator), label)
    for label, count in (("pole", 6), ("tree", 5)):
        for _ in range(count):
            place = _place(half, 0, generator)
            trunk = _cylinder(count_per_object // 3, 0.15, 4.0 if label == "pole" else 1.6, generator)
            add(trunk + place, label)
            if label == "tree":
                crown = torch.nn.functional.normalize(torch.randn(count_per_object, 3, generator=generator), dim=1)
                radius = uniform(count_per_object, 0.9, 1.5)[:, None]
                add(crown * radius + place + torch.tensor([0.0, 0.0, 2.6]), label)
    cloud, classes = torch.cat(parts), torch.cat(labels)
    seen = torch.rand(len(cloud), generator=generator) < (6 / cloud[:, :2].norm(dim=1).clamp(min=6))
    cloud = cloud[seen] + 0.03 * torch.randn(int(seen.sum()), 3, generator=generator)
    return cloud, classes[seen]


def voxel_labels(grid: sv.Grid, points: Tensor, classes: Tensor) -> Tensor:
    """Find the most frequent class of the points in each voxel of a single grid: int64 [N]."""
    ijk = torch.floor(grid.to_ijk(points) + 0.5).long()
    votes = torch.zeros(grid.num_voxels, len(CLASSES))
    votes.index_put_((grid.index(ijk), classes), torch.ones(len(points)), accumulate=True)
    return votes.argmax(1)


def shape(kind: str, seed: int, points: int = 4000) -> Tensor:
    """Sample points [P, 3] in [-1, 1] on a shape of the given family, with random proportions and rotation."""
    generator = torch.Generator().manual_seed(seed)
    a, b, c = (0.45 + 0.5 * torch.rand(3, generator=generator)).tolist()
    cloud = _FAMILIES[kind](points, a, b, c, generator)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
    cloud = cloud @ rotation
    return cloud / cloud.norm(dim=1).max() + 0.01 * torch.randn(points, 3, generator=generator)


def _place(half: float, height: float | Tensor, generator: torch.Generator) -> Tensor:
    x, y = ((2 * torch.rand(2, generator=generator) - 1) * 0.9 * half).tolist()
    return torch.tensor([x, y, float(height)])


def _box(count: int, size: Tensor, generator: torch.Generator) -> Tensor:
    cloud = torch.rand(count, 3, generator=generator) - 0.5
    side = torch.randint(0, 3, (count,), generator=generator)
    rows = torch.arange(count)
    cloud[rows, side] = cloud[rows, side].sign() / 2
    return cloud * size


def _cylinder(count: int, radius: float, height: float, generator: torch.Generator) -> Tensor:
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin(), height * torch.rand(count, generator=generator)], 1)


def _ball(count: int, a: float, b: float, c: float, generator: torch.Generator) -> Tensor:
    cloud = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    return cloud * torch.tensor([1, 0.7 + 0.3 * a, 0.7 + 0.3 * b])


def _cuboid(count: int, a: float, b: float, c: float, generator: torch.Generator) -> Tensor:
    return _box(count, torch.tensor([a, b, c]), generator)


def _tin(count: int, a: float, b: float, c: float, generator: torch.Generator) -> Tensor:
    return _capped(count, a / 2, a / 2, 2 * b, generator)


def _cone(count: int, a: float, b: float, c: float, generator: torch.Generator) -> Tensor:
    return _capped(count, a, 0.0, 1.5 * b, generator)


def _capped(count: int, bottom: float, top: float, height: float, generator: torch.Generator) -> Tensor:
    """Sample the surface of a truncated cone, including its caps."""
    z, angle = torch.rand(count, generator=generator), 2 * math.pi * torch.rand(count, generator=generator)
    radius = bottom + (top - bottom) * z
    lid = torch.rand(count, generator=generator) < 0.3
    z = torch.where(lid, z.round(), z)
    radius = torch.where(lid, (bottom + (top - bottom) * z) * torch.rand(count, generator=generator).sqrt(), radius)
    return torch.stack([radius * angle.cos(), radius * angle.sin(), height * (z - 0.5)], 1)


def _ring(count: int, a: float, b: float, c: float, generator: torch.Generator) -> Tensor:
    u, v = (2 * math.pi * torch.rand(2, count, generator=generator)).unbind(0)
    radius = 1 + 0.35 * a * v.cos()
    return torch.stack([radius * u.cos(), radius * u.sin(), 0.35 * a * v.sin()], 1)


_FAMILIES: dict[str, Callable[[int, float, float, float, torch.Generator], Tensor]] = dict(
    zip(SHAPES, (_ball, _cuboid, _tin, _cone, _ring), strict=True)
)


def batch_of(samples: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Concatenate the points of all samples, and return the batch index of each point as well."""
    index = torch.cat([torch.full((len(s),), n) for n, s in enumerate(samples)])
    return torch.cat(list(samples)), index
