"""Random partial observations of training shapes, for denoisers that complete shapes.

B shapes in volumes of X * Y * Z voxels, M latent voxels, S finer voxels in each of them.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sparsevox import Grid, Voxels
from xcube.geometry.observation import children
from xcube.networks.blocks import rows_or_zero
from xcube.networks.configs import VAEConfig

PORTIONS = (0.4, 0.2, 0.25, 0.15)  # how often each kind of observation is drawn, in the order below


def random_observations(full: Tensor, nothing: float, generator: torch.Generator) -> Tensor:
    """Draw which voxels of each shape are observed: bool [B, X, Y, Z].

    The kinds of observations are: one side of a plane near the center of the shape; all but a box around one of its
    voxels; the view of a camera far away, with the empty space before the shape; and some of the voxels in such views.

    Args:
        full: The voxels of the shapes, bool [B, X, Y, Z].
        nothing: Fraction of the shapes of which nothing is observed.
        generator: Random generator on the CPU.
    """
    seen = torch.zeros_like(full, device="cpu")
    drawn = torch.multinomial(torch.tensor(PORTIONS), len(full), replacement=True, generator=generator).tolist()
    some = torch.rand(len(full), generator=generator) >= nothing
    makers = (_half, _all_but_a_box, _view, _hits)
    for shape in some.nonzero().flatten().tolist():
        seen[shape] = makers[drawn[shape]](full[shape].cpu(), generator)
    return seen.to(full.device)


def _half(full: Tensor, generator: torch.Generator) -> Tensor:
    """One side of a plane: half of the time at a right angle to an axis."""
    normal = _direction(generator)
    places = _places(full.shape)
    inside = places[full]
    center = inside.mean(0) if len(inside) else places.mean((0, 1, 2))
    extent = float(((inside - center) @ normal).abs().max()) if len(inside) else 1.0
    shift = extent * (0.6 * float(torch.rand((), generator=generator)) - 0.3)
    return (places - center) @ normal < shift


def _all_but_a_box(full: Tensor, generator: torch.Generator) -> Tensor:
    places = _places(full.shape)
    inside = places[full]
    if not len(inside):
        return torch.ones_like(full)
    middle = inside[int(torch.randint(len(inside), (), generator=generator))]
    half = torch.tensor(full.shape) * (0.12 + 0.25 * torch.rand(3, generator=generator))
    return ~((places - middle).abs() <= half).all(3)


def _view(full: Tensor, generator: torch.Generator) -> Tensor:
    """The voxels that a camera far away sees, and the empty ones before them."""
    return visible(full, _direction(generator))


def _hits(full: Tensor, generator: torch.Generator) -> Tensor:
    """Voxels that one or two cameras see, without the space before them."""
    seen = visible(full, _direction(generator))
    if float(torch.rand((), generator=generator)) < 0.5:
        seen |= visible(full, _direction(generator))
    portion = 0.3 + 0.7 * float(torch.rand((), generator=generator))
    return seen & full & (torch.rand(full.shape, generator=generator) < portion)


class Observations:
    """Random observations of a batch of shapes at a level whose latent grid is sparse.

    Args:
        fine: The voxels of the shapes, in a box around the origin.
        edges: Number of voxels of the box along each axis.
        vae: The configuration of the VAE of the level.
        nothing: Fraction of the shapes of which nothing is observed.
        generator: Random generator on the CPU.
    """

    def __init__(
        self, fine: Grid, edges: Sequence[int], vae: VAEConfig, nothing: float, generator: torch.Generator
    ) -> None:
        self.factor = vae.factor
        self.full = torch.zeros((fine.batch_size, *edges), dtype=torch.bool, device=fine.device)
        places, inside = _places_of(fine.coords, edges)
        if not bool(inside.all()):
            raise ValueError(f"fine must lie in the box of {tuple(edges)} voxels, got {int((~inside).sum())} outside")
        self.full[places] = True
        self.seen = random_observations(self.full, nothing, generator)
        # A latent voxel is known if all voxels are that it is computed from: with early dilation those of half a latent
        # voxel around it, too.
        wider = 0 if vae.dilation == "none" else 1
        kernel, padding = [f + wider * f for f in self.factor], [wider * f // 2 for f in self.factor]
        unknown = functional.max_pool3d((~self.seen).float()[:, None], kernel, self.factor, padding)[:, 0] > 0
        self.known = ~unknown

    def joined(self, true: Voxels, made: Voxels) -> Voxels:
        """Voxels of the coarser level: the true ones where they are known, and those of a network elsewhere."""
        inside = true.prune(_looked_up(self.known, true.grid.coords))
        outside = made.prune(~_looked_up(self.known, made.grid.coords))
        grid = inside.grid | outside.grid
        names = inside.attributes.keys() & outside.attributes.keys()
        rows = inside.grid.index(grid.coords), outside.grid.index(grid.coords)
        first = rows[0] >= 0
        values = {}
        for name in names:
            a, b = (rows_or_zero(v.attributes[name], row) for v, row in zip((inside, outside), rows, strict=True))
            values[name] = torch.where(first.view(-1, *[1] * (a.ndim - 1)), a, b)
        return Voxels(grid, values)

    def states(self, latent: Grid) -> Tensor:
        """States of the finer voxels in each latent voxel, float32 [M, S]: 1 for full, -1 for empty, 0 for unknown."""
        coords = children(latent.coords, self.factor)
        seen, full = (_looked_up(volume, coords.view(-1, 4)) for volume in (self.seen, self.full))
        return torch.where(seen, 2.0 * full - 1, 0.0).view(coords.shape[:2])


def _looked_up(volume: Tensor, coords: Tensor) -> Tensor:
    """Entries of a volume, bool [B, X, Y, Z], for voxels [N, 4]; False outside of it."""
    places, inside = _places_of(coords, volume.shape[1:])
    return volume[places] & inside


def _places_of(coords: Tensor, edges: Sequence[int]) -> tuple[tuple[Tensor, ...], Tensor]:
    """Indices into volumes [B, X, Y, Z] of voxels whose coordinates count from the center of the box.

    Also whether they lie in the box, bool [N]; the indices of others are those of the nearest voxel in it.
    """
    size = torch.tensor(edges, device=coords.device)
    places = coords[:, 1:].long() + size // 2
    inside = ((places >= 0) & (places < size)).all(1)
    return (coords[:, 0].long(), *places.clamp(min=0).minimum(size - 1).unbind(1)), inside


def visible(full: Tensor, direction: Tensor) -> Tensor:
    """Which voxels of a volume are seen from far away: bool [X, Y, Z].

    Args:
        full: Voxels that are opaque, bool [X, Y, Z].
        direction: Unit vector toward the camera.
    """
    blocked = torch.zeros_like(full)
    for number in range(1, math.ceil(math.hypot(*full.shape))):
        # The voxels this far ahead, those of a shifted volume.
        offset = (number * direction).round().int().tolist()
        if any(abs(o) >= n for o, n in zip(offset, full.shape, strict=True)):
            break
        here = tuple(slice(max(-o, 0), n - max(o, 0)) for o, n in zip(offset, full.shape, strict=True))
        ahead = tuple(slice(max(o, 0), n - max(-o, 0)) for o, n in zip(offset, full.shape, strict=True))
        blocked[here] |= full[ahead]
    return ~blocked


def _direction(generator: torch.Generator) -> Tensor:
    """A random unit vector: half of the time along an axis."""
    if float(torch.rand((), generator=generator)) < 0.5:
        axis = int(torch.randint(3, (), generator=generator))
        sign = 1 - 2 * int(torch.randint(2, (), generator=generator))
        return sign * torch.eye(3)[axis]
    vector = torch.randn(3, generator=generator)
    return vector / vector.norm().clamp(min=1e-6)


def _places(shape: torch.Size) -> Tensor:
    """The indices of all voxels of a volume, float32 [X, Y, Z, 3]."""
    return torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij"), 3)
