"""How good a set of generated shapes is, from distances to real ones, and whether a shape is sound.

G generated shapes, R real shapes, N voxels. Distance matrices come from `xcube.geometry.distances.distance_matrix`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsevox import Mesh, Voxels, checks
from sparsevox.io import describe, to_mesh
from xcube.geometry.components import component_sizes


def one_nna(generated: Tensor, between: Tensor, real: Tensor) -> float:
    """The accuracy of a nearest neighbor that tells generated shapes from real ones (Yang et al. 2019, PointFlow).

        1-NNA = (sum_{X in S_g} 1[N_X in S_g] + sum_{Y in S_r} 1[N_Y in S_r]) / (|S_g| + |S_r|)

    N_X is the shape nearest to X among all others of both sets. 0.5 is ideal: nobody can tell them apart. 1 means that
    they have nothing in common, and less than 0.5 that shapes were copied. Where the nearest of either set are equally
    far, the shape counts half, as a coin would decide. A shape that is infinitely far from everything, which is an
    empty one, counts as told apart.

    The sets are equally large, since only then chance is right half of the time. `one_nna_error` is the error.

    Args:
        generated: Distances among generated shapes [G, G]; the diagonal counts for nothing.
        between: From generated to real ones [G, R].
        real: Among real ones [R, R].

    Raises:
        TypeError: If distances are not floating-point.
        ValueError: If the shapes of the matrices do not fit, there is nothing in them, a distance is NaN or negative,
            or the sets differ in size.
    """
    between = _distances("between", between)
    count = len(between)
    if count != between.shape[1]:
        raise ValueError(f"sets must be equally large, got {count} generated shapes and {between.shape[1]} real ones")
    told = 0.0
    for name, within, across in (("generated", generated, between), ("real", real, between.T)):
        within = _distances(name, within)
        if within.shape != (count, count):
            raise ValueError(f"{name} must have shape [{count}, {count}], got {list(within.shape)}")
        own = within.clone().fill_diagonal_(torch.inf).amin(1)
        other = across.amin(1)
        right = (own < other).double() + (own == other).double() / 2
        right[own.isinf() & other.isinf()] = 1.0
        told += float(right.sum())
    return told / (2 * count)


def one_nna_error(shapes: int) -> float:
    """The standard error of the 1-NNA of so many shapes, generated and real ones together: 0.5 / sqrt(shapes).

    It is that of a binomial variable whose chance is 0.5: 4.4 points for 64 against 64. It is a little too small, as
    neighbors depend on each other.

    Raises:
        ValueError: If there are no shapes.
    """
    if shapes < 1:
        raise ValueError(f"shapes must be at least 1, got {shapes}")
    return float(0.5 / shapes**0.5)


def coverage(between: Tensor) -> float:
    """The share of real shapes that are the nearest real one of a generated shape (Achlioptas et al. 2018).

        COV = |{argmin_{Y in S_r} D(X, Y) : X in S_g}| / |S_r|

    The first of those equally near; an empty shape covers none. A set that collapsed to one shape covers one. Real
    shapes do not cover all of other real ones either: compare with such a set.

    Args:
        between: Distances from generated to real shapes [G, R], of any numbers.

    Raises:
        TypeError, ValueError: If these are no distances.
    """
    distance, nearest = _distances("between", between).min(1)
    return len(nearest[distance.isfinite()].unique()) / between.shape[1]


def minimum_matching_distance(between: Tensor) -> float:
    """How far real shapes are from the nearest generated one (Achlioptas et al. 2018).

        MMD = 1 / |S_r| sum_{Y in S_r} min_{X in S_g} D(X, Y)

    Args:
        between: Distances from generated to real shapes [G, R], of any numbers.

    Raises:
        TypeError, ValueError: If these are no distances.
    """
    return float(_distances("between", between).amin(0).mean())


def _distances(name: str, value: Tensor) -> Tensor:
    checked = checks.floats(name, checks.shape(name, value, "G", "R")).double()
    if not checked.numel():
        raise ValueError(f"{name} must hold a distance at least, got shape {list(checked.shape)}")
    if not bool((checked >= 0).all()):
        raise ValueError(f"{name} must hold distances of at least 0, got {float(checked[~(checked >= 0)][0])}")
    return checked


@dataclass(frozen=True)
class SetMetrics:
    """How a set of generated shapes compares with one of real shapes, as shares and in units of the distance."""

    one_nna: float
    coverage: float
    mmd: float


def set_metrics(generated: Tensor, between: Tensor, real: Tensor) -> SetMetrics:
    """`one_nna`, `coverage` and `minimum_matching_distance` from the same matrices."""
    return SetMetrics(one_nna(generated, between, real), coverage(between), minimum_matching_distance(between))


@dataclass(frozen=True)
class Soundness:
    """Whether a shape is whole.

    voxels: N.
    components: How many parts it has, 26 neighbors.
    largest: Share of the voxels in the largest part; 0 if there are none.
    closed: Whether its surface has no open edge.
    """

    voxels: int
    components: int
    largest: float
    closed: bool

    @property
    def valid(self) -> bool:
        """Whether it is one part with a closed surface. An empty shape is not."""
        return self.components == 1 and self.closed


def soundness(voxels: Voxels, surface: Mesh | None = None) -> Soundness:
    """The parts of one grid and whether its surface is closed.

    Args:
        voxels: One grid.
        surface: Its surface; by default the smooth one of `sv.io.to_mesh`. Without normals that goes around the
            voxels, and is closed around anything.

    Raises:
        ImportError: If scipy is not installed.
        ValueError: If the voxels are a batch, or normals are not finite or not [N, 3].
    """
    parts = component_sizes(voxels.grid)
    if not len(parts):
        return Soundness(0, 0, 0.0, False)
    mesh = to_mesh(voxels, "nets") if surface is None else surface
    return Soundness(voxels.num_voxels, len(parts), int(parts[0]) / voxels.num_voxels, describe(mesh).closed)
