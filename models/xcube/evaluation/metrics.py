"""Metrics of a set of generated shapes, from distances to real ones, and of a single shape: connected, watertight.

G generated shapes, R real shapes, N voxels. Distance matrices come from `xcube.geometry.distances.distance_matrix`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsevox import Mesh, Voxels, checks
from sparsevox.io import describe, to_mesh
from xcube.geometry.components import component_sizes


def one_nna(generated: Tensor, between: Tensor, real: Tensor) -> float:
    """1-NNA: accuracy of a 1-nearest-neighbor classifier of generated and real shapes (Yang et al. 2019, PointFlow).

        1-NNA = (sum_{X in S_g} 1[N_X in S_g] + sum_{Y in S_r} 1[N_Y in S_r]) / (|S_g| + |S_r|)

    N_X is the shape nearest to X among all others of both sets. 0.5 is ideal: the sets cannot be distinguished. 1 means
    that they have nothing in common, less than 0.5 that shapes were copied. A shape whose nearest neighbors in both
    sets are equally far counts as half correct. An empty shape, infinitely far from all others, counts as correct.

    The sets must be equally large, since only then a random guess is right half of the time. `one_nna_error` gives the
    standard error.

    Args:
        generated: Distances among generated shapes [G, G]; the diagonal is ignored.
        between: Distances from generated to real shapes [G, R].
        real: Distances among real shapes [R, R].

    Raises:
        TypeError: If distances are not floating-point.
        ValueError: If the matrices do not fit each other or are empty, a distance is NaN or negative, or the sets
            differ in size.
    """
    between = _distances("between", between)
    count = len(between)
    if count != between.shape[1]:
        raise ValueError(f"sets must be equally large, got {count} generated shapes and {between.shape[1]} real ones")
    correct = 0.0
    for name, within, across in (("generated", generated, between), ("real", real, between.T)):
        within = _distances(name, within)
        if within.shape != (count, count):
            raise ValueError(f"{name} must have shape [{count}, {count}], got {list(within.shape)}")
        own = within.clone().fill_diagonal_(torch.inf).amin(1)
        other = across.amin(1)
        right = (own < other).double() + (own == other).double() / 2
        right[own.isinf() & other.isinf()] = 1.0
        correct += float(right.sum())
    return correct / (2 * count)


def one_nna_error(shapes: int) -> float:
    """Standard error of the 1-NNA, 0.5 / sqrt(shapes), where `shapes` counts generated and real ones together.

    This is the error of a binomial variable with probability 0.5: 4.4 percentage points for 64 against 64 shapes. It is
    a little too small, since neighbors depend on each other.

    Raises:
        ValueError: If there are no shapes.
    """
    if shapes < 1:
        raise ValueError(f"shapes must be at least 1, got {shapes}")
    return float(0.5 / shapes**0.5)


def coverage(between: Tensor) -> float:
    """COV: fraction of real shapes that are the nearest real shape of a generated one (Achlioptas et al. 2018).

        COV = |{argmin_{Y in S_r} D(X, Y) : X in S_g}| / |S_r|

    Of equally near shapes the first counts; an empty shape covers none. A set that collapsed to one shape covers one.
    Even another set of real shapes does not reach 1, so compare with its coverage.

    Args:
        between: Distances from generated to real shapes [G, R].

    Raises:
        TypeError: If distances are not floating-point.
        ValueError: If there are none, or one is NaN or negative.
    """
    distance, nearest = _distances("between", between).min(1)
    return len(nearest[distance.isfinite()].unique()) / between.shape[1]


def minimum_matching_distance(between: Tensor) -> float:
    """MMD: mean distance of real shapes to the nearest generated one (Achlioptas et al. 2018).

        MMD = 1 / |S_r| sum_{Y in S_r} min_{X in S_g} D(X, Y)

    Args:
        between: Distances from generated to real shapes [G, R].

    Raises:
        TypeError: If distances are not floating-point.
        ValueError: If there are none, or one is NaN or negative.
    """
    return float(_distances("between", between).amin(0).mean())


def _distances(name: str, value: Tensor) -> Tensor:
    checked = checks.floats(name, checks.shape(name, value, "G", "R")).double()
    if not checked.numel():
        raise ValueError(f"{name} must hold at least one distance, got shape {list(checked.shape)}")
    if not bool((checked >= 0).all()):
        raise ValueError(f"{name} must hold distances of at least 0, got {float(checked[~(checked >= 0)][0])}")
    return checked


@dataclass(frozen=True)
class SetMetrics:
    """Metrics of a set of generated shapes: two fractions, and `mmd` in the unit of the distance."""

    one_nna: float
    coverage: float
    mmd: float


def set_metrics(generated: Tensor, between: Tensor, real: Tensor) -> SetMetrics:
    """Compute `one_nna`, `coverage` and `minimum_matching_distance` from the same matrices."""
    return SetMetrics(one_nna(generated, between, real), coverage(between), minimum_matching_distance(between))


@dataclass(frozen=True)
class ShapeValidity:
    """Whether a shape is connected and watertight.

    voxels: Number of voxels.
    components: Number of connected components (26-connectivity).
    largest_fraction: Fraction of the voxels in the largest component; 0 for an empty shape.
    watertight: Whether every edge of the surface belongs to exactly two faces.
    open_edges: Number of edges of the surface that belong to one face: the borders of holes.
    """

    voxels: int
    components: int
    largest_fraction: float
    watertight: bool
    open_edges: int

    @property
    def valid(self) -> bool:
        """Whether the shape has one component and is watertight. An empty shape is not valid."""
        return self.components == 1 and self.watertight


def shape_validity(voxels: Voxels, surface: Mesh | None = None) -> ShapeValidity:
    """Count the connected components of one grid, and check whether its surface is watertight.

    Args:
        voxels: One grid.
        surface: Its surface; by default the smooth one of `sv.io.to_mesh`. Without normals that surrounds the voxels,
            and is always watertight.

    Raises:
        ImportError: If scipy is not installed.
        ValueError: If the voxels are a batch, or normals are not finite or not [N, 3].
    """
    parts = component_sizes(voxels.grid)
    if not len(parts):
        return ShapeValidity(0, 0, 0.0, False, 0)
    mesh = to_mesh(voxels, "nets") if surface is None else surface
    info, largest = describe(mesh), int(parts[0]) / voxels.num_voxels
    return ShapeValidity(voxels.num_voxels, len(parts), largest, info.closed, info.boundary_edges)
