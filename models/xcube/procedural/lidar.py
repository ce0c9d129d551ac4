"""Simulated sweeps of a spinning LiDAR through a scene, by sphere tracing.

R rays, P returns.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from sparsevox import checks
from sparsevox.shapes import Points
from xcube.procedural.poses import Triple
from xcube.procedural.scenes import Scene
from xcube.procedural.solids import Solid, Union

HIT_DISTANCE = 0.004  # meters from a surface at which a ray hits it
MAX_STEPS = 200  # of sphere tracing

# Fraction of the light that a class reflects at normal incidence. Class 0 stands for any other label.
REFLECTANCE: Mapping[int, float] = MappingProxyType(
    {0: 0.3, 1: 0.22, 2: 0.75, 3: 0.35, 4: 0.32, 5: 0.24, 6: 0.45, 7: 0.35}
    | {8: 0.4, 9: 0.42, 10: 0.3, 11: 0.5, 12: 0.95, 13: 0.5, 14: 0.45, 15: 0.4}
)


@dataclass(frozen=True)
class Scanner:
    """A spinning LiDAR.

    beams: Number of beams, one above the other.
    azimuths: Number of rays per beam and turn.
    lowest: Elevation of the lowest beam, in degrees.
    highest: Elevation of the highest beam, in degrees.
    reach: Maximum range in meters.
    noise: Standard deviation of the range, in meters.
    drop: Fraction of the returns that are lost at random, in addition to weak returns.

    Raises:
        ValueError: If a number is out of range.
    """

    beams: int = 64
    azimuths: int = 1024
    lowest: float = -24.8
    highest: float = 2.0
    reach: float = 80.0
    noise: float = 0.015
    drop: float = 0.03

    def __post_init__(self) -> None:
        for name in ("beams", "azimuths"):
            if checks.integer(name, getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not -90 <= self.lowest <= self.highest <= 90:
            raise ValueError(f"lowest and highest must rise within -90 and 90, got {self.lowest} and {self.highest}")
        if not (self.reach > 0 and self.noise >= 0 and 0 <= self.drop <= 1):
            raise ValueError(
                "reach must be positive, noise not negative and drop between 0 and 1, "
                f"got {self.reach}, {self.noise} and {self.drop}"
            )

    def directions(self) -> Tensor:
        """Unit vectors of the rays, beam by beam from the lowest: float64 [R, 3]."""
        up = torch.deg2rad(torch.linspace(self.lowest, self.highest, self.beams, dtype=torch.float64))[:, None]
        around = torch.arange(self.azimuths, dtype=torch.float64)[None] * (2 * torch.pi / self.azimuths)
        parts = (up.cos() * around.cos(), up.cos() * around.sin(), up.sin().expand(-1, self.azimuths))
        return torch.stack([part.reshape(-1) for part in parts], 1)


def sweep(
    scene: Scene,
    scanner: Scanner | None = None,
    *,
    position: Triple | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Points:
    """Simulate one turn of a scanner in a scene.

    Args:
        scene: The scene.
        scanner: The scanner, by default with 64 beams of 1024 rays.
        position: World position of the scanner, by default `scene.sensor`.
        seed: Seed of noise and losses.
        device: Device of the computation and of the result.

    Returns:
        Points in world coordinates, float64 [P, 3], with "normal" float32 [P, 3], out of the surface; "intensity"
        float32 [P, 1] in [0, 1], from material, incidence and range; and "label" int64 [P], of `scenes.CLASSES`.

    Raises:
        ValueError: If the position lies inside of an object.
    """
    scanner = Scanner() if scanner is None else scanner
    origin = torch.tensor(scene.sensor if position is None else position, dtype=torch.float64, device=device)
    if float(scene.solid.distance(origin[None])) <= 0:
        raise ValueError(f"position must lie in free space, got {tuple(origin.tolist())}")
    directions = scanner.directions().to(device)
    ranges, part = first_hits(scene.solid, origin, directions, scanner.reach)
    met = ranges.isfinite()
    ranges, directions, part = ranges[met], directions[met], part[met]
    positions = origin + ranges[:, None] * directions
    normal, label = _surfaces(scene.solid, part, positions)
    facing = -(normal * directions).sum(1)
    # Surfaces are rough, so they reflect some light at grazing angles too.
    returned = _reflectance(label) * facing.clamp(0.01, 1).sqrt() * (1 - 0.5 * ranges / scanner.reach)
    # NumPy's generator is the same on every device and platform.
    chance = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, scene.seed])))
    noise, luck, speckle = torch.from_numpy(chance.standard_normal((3, len(ranges)))).to(device)
    lost = torch.special.ndtr(luck) < scanner.drop + 0.5 * (-25 * returned).exp()
    ranges = ranges + scanner.noise * noise
    points = Points(
        origin + ranges[:, None] * directions,
        {
            "normal": normal.float(),
            "intensity": (returned * (1 + 0.08 * speckle)).clamp(0, 1).float()[:, None],
            "label": label,
        },
    )
    return points[~lost & (ranges <= scanner.reach)]


def _reflectance(label: Tensor) -> Tensor:
    table = torch.tensor([REFLECTANCE[i] for i in range(len(REFLECTANCE))], dtype=torch.float64, device=label.device)
    return table[torch.where(label < len(table), label, 0)]


def first_hits(solid: Solid, origin: Tensor, directions: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """Find the first hits of rays with a solid.

    The parts of a union are traced one by one, by the distance of their bounds, and only by the rays that enter these
    bounds before their closest hit so far.

    Args:
        solid: Any solid.
        origin: Common origin of the rays, float64 [3].
        directions: Unit vectors, float64 [R, 3].
        reach: Maximum range.

    Returns:
        The range of each hit, float64 [R], infinite for a miss; and the index of the part of the union, int64 [R].
    """
    parts = solid.parts if isinstance(solid, Union) else (solid,)
    ranges = torch.full_like(directions[:, 0], torch.inf)
    part = torch.zeros_like(ranges, dtype=torch.int64)
    for number in _by_distance(parts, origin):
        start, end = _through(parts[number], origin, directions, reach)
        row = (start < torch.minimum(end, ranges)).nonzero().squeeze(1)
        if len(row):
            met = _traced(parts[number], origin, directions[row], start[row], torch.minimum(end, ranges)[row])
            found = row[met.isfinite()]
            ranges[found], part[found] = met[met.isfinite()], number
    return ranges, part


def _by_distance(parts: tuple[Solid, ...], origin: Tensor) -> list[int]:
    """Indices of the parts, sorted by the distance of their bounds from the origin."""
    lower, upper = (torch.tensor([part.bounds[i] for part in parts], dtype=torch.float64) for i in (0, 1))
    outside = torch.maximum(lower - origin.cpu(), origin.cpu() - upper).clamp_min(0)
    return torch.linalg.vector_norm(outside, dim=1).argsort(stable=True).tolist()


def _through(solid: Solid, origin: Tensor, directions: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """Ranges at which rays enter and leave the bounds of a solid; for rays that miss, the second is smaller."""
    lower, upper = (directions.new_tensor(corner) for corner in solid.bounds)
    safe = torch.where(directions.abs() < 1e-12, 1e-12, directions)
    a, b = (lower - origin) / safe, (upper - origin) / safe
    start, end = torch.minimum(a, b).amax(1), torch.maximum(a, b).amin(1)
    return start.clamp_min(0), end.clamp_max(reach)


def _traced(solid: Solid, origin: Tensor, directions: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Range at which each ray hits a solid between two ranges, infinite for a miss."""
    met = torch.full_like(start, torch.inf)
    row, ranges = torch.arange(len(start), device=start.device), start.clone()
    for _ in range(MAX_STEPS):
        distance = solid.distance(origin + ranges[:, None] * directions[row])
        hit = distance < HIT_DISTANCE
        met[row[hit]] = ranges[hit]
        ranges = ranges + distance
        going = ~hit & (ranges < end[row])
        row, ranges = row[going], ranges[going]
        if not len(row):
            break
    return met


def _surfaces(solid: Solid, part: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Normals and labels of points on the surfaces of the parts of a union."""
    parts = solid.parts if isinstance(solid, Union) else (solid,)
    normal, label = torch.zeros_like(positions), torch.zeros_like(part)
    for number, each in enumerate(parts):
        row = (part == number).nonzero().squeeze(1)
        if len(row):
            normal[row], label[row] = each.normal(positions[row]), each.label(positions[row])
    return normal, label
