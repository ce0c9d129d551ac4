"""Random partial observations of training shapes, for denoisers that complete shapes.

B shapes in volumes of X * Y * Z voxels.
"""

import math

import torch
from torch import Tensor

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


def visible(full: Tensor, direction: Tensor) -> Tensor:
    """Which voxels of a volume are seen from far away: bool [X, Y, Z].

    Args:
        full: Voxels that are opaque, bool [X, Y, Z].
        direction: Unit vector toward the camera.
    """
    places = _places(full.shape)
    blocked = torch.zeros_like(full)
    size = torch.tensor(full.shape)
    for number in range(1, math.ceil(math.hypot(*full.shape))):
        at = (places + number * direction).round().long()
        inside = ((at >= 0) & (at < size)).all(3)
        x, y, z = at.clamp(min=0).minimum(size - 1).unbind(3)
        blocked |= full[x, y, z] & inside
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
