"""Losses and metrics of the VAE.

N voxels of the prediction, M latent voxels, L latent channels.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

import sparsevox as sv
from sparsevox import Grid, Voxels
from sparsevox.io.voxelize import normalized
from xcube.config import Config
from xcube.networks.blocks import centers
from xcube.networks.decoder import Decoded
from xcube.networks.vae import VAE, Posterior


@dataclass(frozen=True)
class LossConfig(Config):
    """Weights of the losses; the defaults are those of the paper's release.

    Args:
        structure: Of the cross entropy of existence, at every depth.
        normal: Of the normals.
        label: Of the labels.
        color: Of the colors.
        kl: Of the Kullback-Leibler divergence; its value after annealing.
        kl_start: Its value at first, if it is annealed.
        anneal: Steps over which the weight of the divergence rises linearly from `kl_start`; 0 for none.
        float32_positions: Whether true normals are splatted from positions rounded as the release rounds them. What
            falls beside a true voxel by such an error then gets a short normal in place of none.
    """

    structure: float = 20.0
    normal: float = 300.0
    label: float = 20.0
    color: float = 20.0
    kl: float = 1.0
    kl_start: float = 1e-7
    anneal: int = 0
    float32_positions: bool = False

    def kl_at(self, step: int) -> float:
        """The weight of the divergence at a step."""
        if step >= self.anneal:
            return self.kl
        return self.kl_start + (self.kl - self.kl_start) * step / self.anneal


@dataclass(frozen=True)
class Losses:
    """Losses before weighting, by name, their weights, and metrics without gradients."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """The weighted sum."""
        return torch.stack([self.terms[name] * weight for name, weight in self.weights.items()]).sum()


def vae_losses(
    model: VAE, voxels: Voxels, posterior: Posterior, decoded: Decoded, config: LossConfig, step: int = 0
) -> Losses:
    """All losses of one batch.

    - "structure-d": cross entropy of existence, the mean over the candidates at depth d. True voxels that no candidate
      is count nothing there.
    - "normal", "color": mean absolute difference to the truth, splatted onto the predicted voxels.
    - "label": cross entropy with the label of the nearest true voxel.
    - "kl": divergence from the standard normal distribution, summed over channels, the mean over latent voxels.

    Means over nothing are 0. The metrics are "accuracy-d", "iou", and "normal_angle" in degrees.
    """
    losses, attributes = Losses(), decoded.voxels.attributes
    truth = model.truth(voxels.grid)
    for depth, decision in enumerate(decoded.structure):
        real = truth[depth].contains(decision.candidates.coords)
        losses.terms[f"structure-{depth}"] = structure_loss(decision.exists, real)
        losses.weights[f"structure-{depth}"] = config.structure
        losses.metrics[f"accuracy-{depth}"] = mean_or_zero((decision.predicted == real).float())
    target = true_attributes(voxels, decoded.voxels.grid, attributes, float32_positions=config.float32_positions)
    for name in ("normal", "color"):
        if name in attributes:
            losses.terms[name] = mean_or_zero((attributes[name] - target[name]).abs())
            losses.weights[name] = getattr(config, name)
    if "label_logits" in attributes:
        entropy = functional.cross_entropy(attributes["label_logits"], target["label"].long(), reduction="none")
        losses.terms["label"] = mean_or_zero(entropy)
        losses.weights["label"] = config.label
    losses.terms["kl"] = kl_divergence(posterior.mean, posterior.logvar)
    losses.weights["kl"] = config.kl_at(step)
    losses.metrics["iou"] = voxel_iou(decoded.voxels.grid, voxels.grid).mean()
    if "normal" in attributes:
        losses.metrics["normal_angle"] = normal_angle(attributes["normal"], target["normal"])
    return losses


def structure_loss(logits: Tensor, real: Tensor) -> Tensor:
    """Cross entropy of logits of existence [M] with what exists, bool [M]: their mean, 0 for none."""
    return mean_or_zero(functional.binary_cross_entropy_with_logits(logits, real.to(logits.dtype), reduction="none"))


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """From the standard normal distribution, of [M, L]: summed over channels, the mean over voxels."""
    return mean_or_zero(-0.5 * (1 + logvar - mean.square() - logvar.exp()).sum(1))


def true_attributes(
    voxels: Voxels, grid: Grid, names: Collection[str], *, float32_positions: bool = False
) -> dict[str, Tensor]:
    """Attributes of true voxels at the voxels of another grid: those of the given names that there are.

    Normals are splatted from the centers and normalized, zero where there are none; colors and labels are those of the
    nearest true voxel of the item, 0 where it has none.
    """
    made: dict[str, Tensor] = {}
    for name in voxels.attributes.keys() & set(names):
        value = voxels.attributes[name]
        if name == "normal":
            points = voxels.grid.to_world(voxels.grid.ijk)
            if float32_positions:
                points = _rounded(points, voxels.grid)
            made[name] = normalized(sv.ops.splat_trilinear(points, value.float(), grid, voxels.grid.batch))
        elif name in ("color", "label"):
            nearest = voxels.grid.nearest(centers(grid, torch.float64), grid.batch)
            padded = torch.cat([value, value.new_zeros(1, *value.shape[1:])])  # row -1 is of no voxel
            made[name] = padded[nearest]
    return made


def _rounded(points: Tensor, grid: Grid) -> Tensor:
    """Positions after the way to voxel coordinates in float32, by a product and a sum, and back."""
    size, origin = (torch.tensor(t, dtype=torch.float64, device=points.device) for t in (grid.voxel_size, grid.origin))
    ijk = points.float() * (1 / size).float() + (-origin / size).float()
    return grid.to_world(ijk.double())


def voxel_iou(predicted: Grid, real: Grid) -> Tensor:
    """Intersection over union of the voxels of each item: float32 [B]; 1 where both are empty."""
    found = predicted.contains(real.coords)
    both = sv.ops.global_pool(found[:, None].float(), real, "sum").squeeze(1)
    union = predicted.offsets.diff() + real.offsets.diff() - both
    return torch.where(union > 0, both / union.clamp(min=1), 1.0)


def normal_angle(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean angle in degrees between normals [N, 3], where the target is not zero."""
    known = target.norm(dim=1) > 0.5
    cosine = functional.cosine_similarity(predicted[known].detach(), target[known], dim=1)
    return mean_or_zero(torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))))


def mean_or_zero(values: Tensor) -> Tensor:
    """Of all elements; of none it is 0, and has a gradient all the same."""
    return values.sum() / max(values.numel(), 1)
