"""The standard scenes: distinct coordinates (b, i, j, k), int32 [N, 4], in random order.

They depend only on their size and import nothing from sparsevox, so they also serve as independent inputs of the tests:
`TINY` holds the sizes at which they have a few hundred voxels. All scenes have negative coordinates.
N voxels, C columns, R rays, S solids of the LiDAR scene.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

SEED = 2024


def scene(name: str, size: int) -> Tensor:
    """Generate the coordinates of a scene, int32 [N, 4]. The functions in `SCENES` document the meaning of `size`."""
    if name not in SCENES:
        raise ValueError(f"name must be one of {', '.join(SCENES)}, got {name!r}")
    coords = SCENES[name](size)
    if coords.shape[1] == 3:
        coords = torch.cat([torch.zeros_like(coords[:, :1]), coords], 1)
    return coords[torch.randperm(len(coords), generator=_generator())].int()


def shell(size: int, thickness: int = 1) -> Tensor:
    """Generate a hollow sphere, `size` voxels across: the voxels with size/2 - thickness <= |x| < size/2.

    It works column by column, so that memory is proportional to the surface and not to the volume, and in doubled
    coordinates, so that odd sizes stay integers and square roots are exact.
    """
    half = (size - 1) // 2
    x, y = torch.cartesian_prod(torch.arange(-half, half + 1), torch.arange(-half, half + 1)).unbind(1)
    rest = size**2 - 4 * (x * x + y * y)
    x, y, rest = x[rest > 0], y[rest > 0], rest[rest > 0]  # [C]
    top = _root_above(rest)
    bottom = _root_above((rest - size**2 + max(size - 2 * thickness, 0) ** 2).clamp(min=0))
    column, z = _ranges(bottom, top)
    mirrored = z > 0
    upper = torch.stack([x[column], y[column], z], 1)
    return torch.cat([upper, upper[mirrored] * torch.tensor([1, 1, -1])])


def thick_shell(size: int) -> Tensor:
    """Generate a hollow sphere, `size` voxels across, with a wall of three voxels."""
    return shell(size, thickness=3)


def terrain(size: int) -> Tensor:
    """Generate a height field of six octaves and noise over `size` x `size` columns, one voxel per column."""
    generator = _generator()
    axis = torch.arange(size) - size // 2
    x, y = torch.cartesian_prod(axis, axis).unbind(1)
    height = torch.randn(len(x), generator=generator)  # noise
    for octave in range(6):
        wavelength = max(size, 32) / 2**octave
        angle, phase = (2 * math.pi * torch.rand(2, generator=generator)).tolist()
        along = x * math.cos(angle) + y * math.sin(angle)
        height += 0.05 * wavelength * torch.sin(2 * math.pi * along / wavelength + phase)
    return torch.stack([x, y, height.round().long()], 1)


def lidar(size: int) -> Tensor:
    """Generate a sweep of a 64-beam LiDAR, `size` directions per ring, in voxels of 0.1 m.

    Rays start 1.8 m above a ground plane with boxes (cars, walls) and upright cylinders (poles, trunks). The range has
    noise of 2 cm, and returns beyond 80 m are lost.
    """
    generator = _generator()
    azimuth = torch.arange(size) * (2 * math.pi / size)
    elevation = torch.linspace(-24.8, 2.0, 64).deg2rad()
    elevation, azimuth = torch.cartesian_prod(elevation, azimuth).unbind(1)
    level = elevation.cos()
    rays = torch.stack([level * azimuth.cos(), level * azimuth.sin(), elevation.sin()], 1)  # [R, 3]
    hits = torch.minimum(_hit_ground(rays), torch.minimum(_hit_boxes(rays), _hit_cylinders(rays)))
    hits += 0.02 * torch.randn(len(hits), generator=generator)
    seen = (hits > 0.5) & (hits < 80)
    return _distinct((rays * hits[:, None])[seen].mul(10).floor().long())


def scatter(size: int) -> Tensor:
    """Generate about `size` random voxels, which fill one percent of a cube."""
    side = math.ceil((100 * size) ** (1 / 3))
    return _distinct(torch.randint(-side // 2, side // 2, (size, 3), generator=_generator()))


def curves(size: int) -> Tensor:
    """Generate sixteen smooth closed curves, one voxel thick, in a cube `size` voxels across."""
    generator = _generator()
    time = torch.arange(32 * size) * (2 * math.pi / (32 * size))
    frequency = torch.randint(1, 6, (16, 1, 3), generator=generator)
    phase = 2 * math.pi * torch.rand(16, 1, 3, generator=generator)
    points = torch.sin(time[:, None] * frequency + phase) * (size / 2)  # [16, 32 * size, 3]
    return _distinct(points.flatten(0, 1).floor().long())


def block(size: int) -> Tensor:
    """Generate a solid cube of `size` voxels per side, not aligned with bricks."""
    axis = torch.arange(size) - size // 2 - 1
    return torch.cartesian_prod(axis, axis, axis)


def batch(size: int) -> Tensor:
    """Generate 64 small grids: shells of `size` to `size` + 3 voxels across, each at a random place."""
    moves = torch.randint(-1000, 1000, (64, 3), generator=_generator())
    items = []
    for item, move in enumerate(moves):
        ijk = shell(size + item % 4) + move
        items.append(torch.cat([torch.full_like(ijk[:, :1], item), ijk], 1))
    return torch.cat(items)


SCENES: dict[str, Callable[[int], Tensor]] = {
    "shell": shell,
    "thick_shell": thick_shell,
    "terrain": terrain,
    "lidar": lidar,
    "scatter": scatter,
    "curves": curves,
    "block": block,
    "batch": batch,
}
# Sizes for tests: 300 to 1500 voxels each.
TINY = {
    "shell": 16,
    "thick_shell": 12,
    "terrain": 24,
    "lidar": 16,
    "scatter": 700,
    "curves": 12,
    "block": 9,
    "batch": 1,
}


def tile_batch(coords: Tensor) -> Tensor:
    """Place the items of a batch next to each other in a single grid, with the same number of voxels and bricks.

    They do not touch, and their distance is a multiple of 16, so that voxels keep their place in the brick.
    """
    item, ijk = coords[:, :1].long(), coords[:, 1:].long()
    batch_size = int(item.max()) + 1
    index = item.expand_as(ijk)
    first = ijk.new_zeros(batch_size, 3).scatter_reduce(0, index, ijk, "amin", include_self=False) & ~15
    local = ijk - first[item[:, 0]]
    pitch = (int(local.max()) + 32) & ~15
    row = math.ceil(batch_size ** (1 / 3))
    place = torch.cat([item // row**2, item // row % row, item % row], 1)
    return torch.cat([torch.zeros_like(item), local + (place - row // 2) * pitch], 1).to(coords.dtype)


def sphere_mesh(radius: float, rings: int) -> tuple[Tensor, Tensor]:
    """Generate a sphere of `rings` x 2 `rings` quads of two triangles: vertices float64 [V, 3], faces int64 [F, 3]."""
    theta = torch.linspace(0, math.pi, rings + 1, dtype=torch.float64)
    phi = torch.arange(2 * rings, dtype=torch.float64) * (math.pi / rings)
    theta, phi = torch.cartesian_prod(theta, phi).unbind(1)
    vertices = radius * torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()], 1)
    ring, step = torch.cartesian_prod(torch.arange(rings), torch.arange(2 * rings)).unbind(1)
    a, b = ring * 2 * rings + step, ring * 2 * rings + (step + 1) % (2 * rings)
    c, d = a + 2 * rings, b + 2 * rings
    return vertices, torch.cat([torch.stack([a, b, c], 1), torch.stack([b, d, c], 1)])


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def _distinct(ijk: Tensor) -> Tensor:
    rows: Tensor = torch.unique(ijk, dim=0)
    return rows


def _root_above(doubled: Tensor) -> Tensor:
    """Compute the smallest integer z >= 0 with (2 z)^2 >= `doubled`."""
    root = (doubled.double() / 4).sqrt().ceil().long()
    return root - (root > 0).long() * (4 * (root - 1).clamp(min=0) ** 2 >= doubled).long()


def _ranges(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenate the integers of the ranges [first, last), and return the range that each belongs to."""
    counts = (last - first).clamp(min=0)
    owner = torch.repeat_interleave(counts)
    start = counts.cumsum(0) - counts
    return owner, torch.arange(len(owner)) - start[owner] + first[owner]


GROUND = -1.8  # m below the scanner


def _hit_ground(rays: Tensor) -> Tensor:
    """Compute the distance [R] to the ground, infinite for rays that point upward."""
    return torch.where(rays[:, 2] < -1e-3, GROUND / rays[:, 2], math.inf)


def _hit_boxes(rays: Tensor) -> Tensor:
    """Compute the distance [R] to the nearest of 60 boxes on the ground, by the slab test."""
    generator = _generator()
    half = torch.tensor([4.0, 4.0, 2.0]) * (0.25 + 0.75 * torch.rand(60, 3, generator=generator))
    center = _around_the_scanner(60, nearest=8, generator=generator)
    center = torch.cat([center, GROUND + half[:, 2:]], 1)  # [S, 3]
    inverse = 1 / torch.where(rays.abs() < 1e-9, 1e-9, rays)
    nearest = torch.full((len(rays),), math.inf)
    for low, high in zip(center - half, center + half, strict=True):
        planes = torch.stack([low * inverse, high * inverse])  # [2, R, 3]
        near, far = planes.amin(0).amax(1), planes.amax(0).amin(1)
        nearest = torch.where((near < far) & (near > 0), torch.minimum(nearest, near), nearest)
    return nearest


def _hit_cylinders(rays: Tensor) -> Tensor:
    """Compute the distance [R] to the nearest of 40 upright cylinders, with radii of 0.1 to 0.5 m, up to 6 m high."""
    generator = _generator()
    radius = (0.1 + 0.4 * torch.rand(40, generator=generator)).tolist()
    top = (GROUND + 2 + 4 * torch.rand(40, generator=generator)).tolist()
    nearest = torch.full((len(rays),), math.inf)
    for (x, y), r, z in zip(_around_the_scanner(40, 5, generator).tolist(), radius, top, strict=True):
        a = rays[:, 0] ** 2 + rays[:, 1] ** 2
        b = rays[:, 0] * x + rays[:, 1] * y
        root = b * b - a * (x * x + y * y - r * r)
        hit = (b - root.clamp(min=0).sqrt()) / a
        seen = (root > 0) & (hit > 0) & (hit * rays[:, 2] < z)
        nearest = torch.where(seen, torch.minimum(nearest, hit), nearest)
    return nearest


def _around_the_scanner(count: int, nearest: float, generator: torch.Generator) -> Tensor:
    """Draw places float32 [count, 2] on the ground, between `nearest` and 60 m away."""
    distance, angle = torch.rand(2, count, generator=generator)
    distance, angle = nearest + (60 - nearest) * distance, 2 * math.pi * angle
    return torch.stack([distance * angle.cos(), distance * angle.sin()], 1)
