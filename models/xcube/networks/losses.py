"""Losses and metrics of the VAE.

N predicted voxels, M latent voxels, L latent channels, B grids.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

import sparsevox as sv
from sparsevox import Grid, Points, Voxels
from sparsevox.io.voxelize import normalized, splat_attributes
from xcube.config import Config
from xcube.geometry.pyramid import same_lattice
from xcube.geometry.shell import is_solid, solid_fractions
from xcube.networks.blocks import centers, count_per_grid, rows_or_zero
from xcube.networks.conditions import NO_FILL
from xcube.networks.decoder import LOGITS, Decoded
from xcube.networks.encoder import Posterior
from xcube.networks.vae import VAE


@dataclass(frozen=True)
class LossConfig(Config):
    """Weights of the losses of the VAE. The defaults are those of the official code.

    Args:
        structure: Weight of the cross entropy of voxel existence at each resolution.
        solid: Weight of the cross entropy of being inside of the shape at each resolution, if the decoder predicts it.
        normal: Weight of the mean absolute error of the normals.
        label: Weight of the cross entropy of the semantic labels.
        color: Weight of the mean absolute error of the colors.
        fill: Weight of the mean absolute error of the solid fractions.
        kl: Weight of the Kullback-Leibler divergence after annealing.
        kl_start: Weight of the Kullback-Leibler divergence at the first step, if it is annealed.
        anneal: Number of steps over which the weight of the divergence rises linearly from `kl_start` to `kl`; 0
            disables annealing.
        float32_positions: Whether positions are rounded to float32, as in the official code, before true normals are
            splatted from them. Voxels next to a true one then get a short normal instead of zero.
    """

    structure: float = 20.0
    solid: float = 20.0
    normal: float = 300.0
    label: float = 20.0
    color: float = 20.0
    fill: float = 20.0
    kl: float = 1.0
    kl_start: float = 1e-7
    anneal: int = 0
    float32_positions: bool = False

    def kl_at(self, step: int) -> float:
        """The weight of the Kullback-Leibler divergence at a training step."""
        if step >= self.anneal:
            return self.kl
        return self.kl_start + (self.kl - self.kl_start) * step / self.anneal


@dataclass(frozen=True)
class Losses:
    """Losses before weighting, their weights, and metrics without gradients, by name."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """The weighted sum of all losses."""
        return torch.stack([self.terms[name] * weight for name, weight in self.weights.items()]).sum()


def vae_losses(
    model: VAE, voxels: Voxels, posterior: Posterior | None, decoded: Decoded, config: LossConfig, step: int = 0
) -> Losses:
    """Compute all losses of a batch (section 3.2 of the paper).

    - "structure-d": mean cross entropy of existence over the candidates at resolution d. True voxels that are not
      among the candidates do not count.
    - "solid-d": mean cross entropy of being inside of the shape or in its shell over the same candidates.
    - "normal": mean absolute difference to the true normals, splatted onto the predicted voxels.
    - "color": mean absolute difference to the true colors, those of the nearest true voxel.
    - "fill": mean absolute difference to the solid fraction, over the predicted voxels that truly exist.
    - "label": cross entropy with the label of the nearest true voxel.
    - "kl": divergence from the standard normal distribution, summed over channels, its mean over latent voxels; absent
      without a posterior.

    The mean of no elements is 0. The metrics are "accuracy-d", "iou", "normal_angle" in degrees, and "psnr" of the
    colors in decibels.
    """
    losses, attributes = Losses(), decoded.voxels.attributes
    truth = model.truth(voxels.grid)
    for resolution, decision in enumerate(decoded.structure):
        real = decision.rows_among(truth[resolution]) >= 0
        losses.terms[f"structure-{resolution}"] = structure_loss(decision.logits, real)
        losses.weights[f"structure-{resolution}"] = config.structure
        losses.metrics[f"accuracy-{resolution}"] = mean_or_zero(((decision.logits.detach() > 0) == real).float())
        if decision.solid is not None:
            inside = is_solid(decision.candidates, truth[resolution])
            losses.terms[f"solid-{resolution}"] = structure_loss(decision.solid, inside)
            losses.weights[f"solid-{resolution}"] = config.solid
            right = (decision.solid.detach() > 0) == inside
            losses.metrics[f"accuracy-solid-{resolution}"] = mean_or_zero(right.float())
    target = true_attributes(voxels, decoded.voxels.grid, attributes, float32_positions=config.float32_positions)
    for name in ("normal", "color"):
        if name in attributes:
            losses.terms[name] = mean_or_zero((attributes[name] - target[name]).abs())
            losses.weights[name] = getattr(config, name)
    if "fill" in attributes:
        known = target["fill"] >= 0
        losses.terms["fill"] = mean_or_zero((attributes["fill"] - target["fill"])[known].abs())
        losses.weights["fill"] = config.fill
    if LOGITS in attributes:
        entropy = functional.cross_entropy(attributes[LOGITS], target["label"].long(), reduction="none")
        losses.terms["label"] = mean_or_zero(entropy)
        losses.weights["label"] = config.label
    if posterior is not None:
        losses.terms["kl"] = kl_divergence(posterior.mean, posterior.logvar)
        losses.weights["kl"] = config.kl_at(step)
    losses.metrics["iou"] = voxel_iou(decoded.voxels.grid, voxels.grid).mean()
    if "normal" in attributes:
        losses.metrics["normal_angle"] = normal_angle(attributes["normal"], target["normal"])
    if "color" in attributes:
        losses.metrics["psnr"] = psnr(attributes["color"].detach(), target["color"], decoded.voxels.grid)
    return losses


def structure_loss(logits: Tensor, real: Tensor) -> Tensor:
    """Compute the mean binary cross entropy of logits [M] with existence, bool [M]; 0 for no candidates."""
    return mean_or_zero(functional.binary_cross_entropy_with_logits(logits, real.to(logits.dtype), reduction="none"))


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """Compute the divergence of N(mean, exp(logvar)) from N(0, 1), both [M, L]: sum over channels, mean over rows."""
    return mean_or_zero(-0.5 * (1 + logvar - mean.square() - logvar.exp()).sum(1))


def true_attributes(
    voxels: Voxels,
    grid: Grid,
    names: Collection[str],
    *,
    float32_positions: bool = False,
    rows: Tensor | None = None,
) -> dict[str, Tensor]:
    """Transfer the attributes of true voxels to the voxels of another grid, for those of `names` that they have.

    Normals are splatted from the voxel centers and normalized, and zero where no true voxel is near. Solid fractions
    are those of the same voxel, -1 where it does not exist; those of larger voxels are computed from the true grid,
    even without the attribute. Colors and labels are those of the nearest true voxel of the same grid of the batch, and
    0 if it has no voxels; colors of larger voxels are weighted means (`splat_attributes`). `rows`, the row of each
    voxel among the true ones, -1 where there is none, saves a look-up if it is known.
    """
    made: dict[str, Tensor] = {}
    if "fill" in names and not same_lattice(voxels.grid, grid):
        made["fill"] = solid_fractions(grid, voxels.grid)
    for name in (voxels.attributes.keys() & set(names)) - made.keys():
        value = voxels.attributes[name]
        if name == "fill":
            rows = voxels.grid.index(grid.coords) if rows is None else rows
            made[name] = torch.where(rows >= 0, rows_or_zero(value.float(), rows), NO_FILL)
        elif name == "normal" and not float32_positions and same_lattice(voxels.grid, grid):
            # Each center coincides with the center of the voxel itself, so it is splatted to no other.
            rows = voxels.grid.index(grid.coords) if rows is None else rows
            made[name] = normalized(rows_or_zero(value.float(), rows))
        elif name == "normal":
            points = voxels.grid.to_world(voxels.grid.ijk)
            if float32_positions:
                points = _round_to_float32(points, voxels.grid)
            made[name] = normalized(sv.ops.splat_trilinear(points, value.float(), grid, voxels.grid.batch))
        elif name == "color" and not same_lattice(voxels.grid, grid) and voxels.num_voxels:
            colored = Points(voxels.grid.to_world(voxels.grid.ijk), {name: value.float()})
            made[name] = splat_attributes(colored, grid, voxels.grid.batch).attributes[name]
        elif name in ("color", "label"):
            nearest = voxels.grid.nearest(centers(grid, torch.float64), grid.batch)
            made[name] = rows_or_zero(value, nearest)
    return made


def _round_to_float32(points: Tensor, grid: Grid) -> Tensor:
    """Round positions as the official code does: to voxel coordinates by a product and a sum in float32, and back."""
    size, origin = (torch.tensor(t, dtype=torch.float64, device=points.device) for t in (grid.voxel_size, grid.origin))
    ijk = points.float() * (1 / size).float() + (-origin / size).float()
    return grid.to_world(ijk.double())


def voxel_iou(predicted: Grid, real: Grid) -> Tensor:
    """Compute the intersection over union of the voxels of each grid, float32 [B]; 1 where both are empty."""
    both = count_per_grid(predicted.contains(real.coords), real)
    union = predicted.offsets.diff() + real.offsets.diff() - both
    return torch.where(union > 0, both / union.clamp(min=1), 1.0)


def normal_angle(predicted: Tensor, target: Tensor) -> Tensor:
    """Compute the mean angle in degrees between normals [N, 3], where the target is not zero."""
    known = target.norm(dim=1) > 0.5
    cosine = functional.cosine_similarity(predicted[known].detach(), target[known], dim=1)
    return mean_or_zero(torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))))


def psnr(predicted: Tensor, target: Tensor, grid: Grid) -> Tensor:
    """Compute the peak signal-to-noise ratio of colors in [0, 1], both [N, 3], in decibels: its mean over the grids.

    Grids without voxels do not count; 100 is the maximum.
    """
    error = (predicted.clamp(0, 1) - target).square().mean(1)  # [N]
    sums = torch.zeros(grid.batch_size, dtype=error.dtype, device=error.device).index_add_(0, grid.batch.long(), error)
    count = grid.offsets.diff()
    means = (sums / count.clamp(min=1)).clamp(min=1e-10)
    return mean_or_zero(-10 * means.log10()[count > 0])


def mean_or_zero(values: Tensor) -> Tensor:
    """Compute the mean of all elements. That of no elements is 0, and it has a gradient, too."""
    return values.sum() / max(values.numel(), 1)
