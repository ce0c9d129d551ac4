"""The refiner (section 3.4 of the paper): a network that adds and removes voxels of a decoded shape.

N decoded voxels, M candidates (the decoded voxels and those around them), C channels.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

import sparsevox as sv
from sparsevox import Grid, SparseTensor, Voxels
from sparsevox.io.voxelize import normalized
from xcube.geometry.pyramid import check_voxels
from xcube.networks.blocks import (
    Head,
    ResBlock,
    at_least_float32,
    centers,
    checkpointed,
    embed_position,
    rows_or_zero,
)
from xcube.networks.configs import RefinerConfig
from xcube.networks.decoder import LOGITS
from xcube.networks.losses import Losses, mean_or_zero, structure_loss, true_attributes, voxel_iou


@dataclass(frozen=True)
class Refined:
    """The result of refining.

    candidates: All candidate voxels, with their predicted attributes.
    logits: The logits of existence [M].
    voxels: The candidates that exist.
    """

    candidates: Voxels
    logits: Tensor
    voxels: Voxels


class Refiner(torch.nn.Module):
    """A U-Net that adds and removes voxels of decoded shapes, and predicts "normal" and "label" as configured."""

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        self.config = config
        finest, pairs = config.channels[0], list(pairwise(config.channels))
        self.enter = sv.nn.Linear(1 + 33 + 3 * config.normal + config.num_labels, finest)
        self.down = torch.nn.ModuleList(_res_blocks(a, a, config.blocks) for a in config.channels)
        self.pool = torch.nn.ModuleList(sv.nn.Conv3d(a, b, 2, stride=2, padding=0) for a, b in pairs)
        self.lift = torch.nn.ModuleList(sv.nn.Linear(b, a) for a, b in pairs)
        self.up = torch.nn.ModuleList(_res_blocks(2 * a, a, config.blocks) for a, _ in pairs)
        self.expand = sv.nn.Upsample(2)
        self.keep = Head(finest, 1)
        self.prior = torch.nn.Parameter(torch.tensor(2.0))  # the first guess is that the decoded voxels are right
        self.normal = Head(finest, 3) if config.normal else None
        self.label = Head(finest, config.num_labels) if config.num_labels else None

    def forward(self, voxels: Voxels) -> Refined:
        """Predict which candidates exist, and their attributes.

        Raises:
            KeyError: If the voxels lack an attribute that the model takes.
            ValueError: If the voxel size of the voxels is not that of the model.
        """
        config = self.config
        check_voxels(voxels.grid, (config.voxel_size,) * 3, "voxels")

        # 1. The candidates, and the row of each among the decoded voxels, -1 for the added ones.
        grid = voxels.grid.dilate(config.radius)
        rows = voxels.grid.index(grid.coords)  # [M]
        decoded = (rows >= 0)[:, None].to(self.prior.dtype)  # [M, 1]

        # 2. Their features: decoded or not, position, normal, label.
        x = SparseTensor(grid, torch.cat([decoded, *self._inputs(voxels, grid, rows)], 1))
        x = self.enter(x)

        # 3. Down and up again.
        x = self._unet(x)

        # 4. Existence: the prediction corrects the decoded voxels.
        logits = at_least_float32(self.keep(x))[:, 0] + self.prior * (2 * decoded[:, 0] - 1)  # [M]

        # 5. Attributes of all candidates.
        made: dict[str, Tensor] = {}
        if self.normal is not None:
            made["normal"] = at_least_float32(self.normal(x))
        if self.label is not None:
            made[LOGITS] = at_least_float32(self.label(x))
            made["label"] = made[LOGITS].argmax(1)
        candidates = Voxels(grid, made)
        least = math.log(config.threshold / (1 - config.threshold))  # the logit of the threshold
        return Refined(candidates, logits, candidates.prune(logits.detach() > least))

    def refine(self, voxels: Voxels) -> Voxels:
        """Return the refined voxels only."""
        return self(voxels).voxels

    def _inputs(self, voxels: Voxels, grid: Grid, rows: Tensor) -> list[Tensor]:
        config, dtype = self.config, self.prior.dtype
        wanted = ["normal"] * config.normal + ["label"] * (config.num_labels > 0)
        missing = [name for name in wanted if name not in voxels.attributes]
        if missing:
            raise KeyError(f"the model needs the attributes {wanted}, got voxels without {missing}")
        inputs = [embed_position(centers(grid, dtype))]  # [M, 33]
        if config.normal:
            inputs.append(rows_or_zero(normalized(voxels.attributes["normal"].to(dtype)), rows))
        if config.num_labels:
            labels = functional.one_hot(voxels.attributes["label"].long(), config.num_labels)
            inputs.append(rows_or_zero(labels.to(dtype), rows))
        return inputs

    def _unet(self, x: SparseTensor) -> SparseTensor:
        active, skips = self.config.checkpointing, []
        for resolution, blocks in enumerate(self.down):
            x = checkpointed(blocks, x, active)
            if resolution < len(self.pool):
                skips.append(x)
                x = self.pool[resolution](x)
        for resolution in reversed(range(len(self.pool))):
            skip = skips[resolution]
            x = sv.cat([skip, self.expand(self.lift[resolution](x), grid=skip.grid)])
            x = checkpointed(self.up[resolution], x, active)
        return x


def _res_blocks(in_channels: int, out_channels: int, blocks: int) -> torch.nn.Module:
    widths = [in_channels] + [out_channels] * blocks
    return sv.nn.Sequential(*(ResBlock(a, b) for a, b in pairwise(widths)))


def refiner_losses(refined: Refined, truth: Voxels, *, normal: float = 0.3, label: float = 0.3) -> Losses:
    """Compute the losses of refined voxels.

    "structure" is the cross entropy of existence, its mean over the candidates, with weight 1. "normal" and "label" are
    the mean absolute error and the cross entropy over the candidates that truly exist. "iou" is a metric.
    """
    grid, attributes = refined.candidates.grid, refined.candidates.attributes
    rows = truth.grid.index(grid.coords)
    real = rows >= 0
    losses = Losses()
    losses.terms["structure"], losses.weights["structure"] = structure_loss(refined.logits, real), 1.0
    target = true_attributes(truth, grid, attributes, rows=rows)
    if "normal" in attributes:
        losses.terms["normal"] = mean_or_zero((attributes["normal"] - target["normal"]).abs()[real])
        losses.weights["normal"] = normal
    if LOGITS in attributes:
        entropy = functional.cross_entropy(attributes[LOGITS], target["label"].long(), reduction="none")
        losses.terms["label"] = mean_or_zero(entropy[real])
        losses.weights["label"] = label
    losses.metrics["iou"] = voxel_iou(refined.voxels.grid, truth.grid).mean()
    return losses
