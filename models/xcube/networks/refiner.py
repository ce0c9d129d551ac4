"""The refinement network (section 3.4 of the paper): repairs what a VAE has decoded, voxels and attributes.

N voxels of the decode, M candidates: the decode and the voxels around it.
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
from xcube.networks.blocks import Head, ResBlock, at_least_float32, centers, checkpointed, embed_position
from xcube.networks.configs import RefinerConfig
from xcube.networks.losses import Losses, mean_or_zero, structure_loss, true_attributes, voxel_iou


@dataclass(frozen=True)
class Refined:
    """The result of refining.

    candidates: All voxels that were asked, with the attributes that they would have.
    logits: Of existence [M].
    voxels: Those that exist.
    """

    candidates: Voxels
    logits: Tensor
    voxels: Voxels


class Refiner(torch.nn.Module):
    """Takes the voxels of a decode, with "normal" and "label" as the model was made for, and returns better ones."""

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        self.config = config
        inputs = 1 + 33 + 3 * config.normal + config.num_labels
        self.enter = sv.nn.Linear(inputs, config.channels[0])
        pairs = list(pairwise(config.channels))
        self.down = torch.nn.ModuleList(_stage(a, a, config.blocks) for a in config.channels)
        self.pool = torch.nn.ModuleList(sv.nn.Conv3d(a, b, 2, stride=2, padding=0) for a, b in pairs)
        self.lift = torch.nn.ModuleList(sv.nn.Linear(b, a) for a, b in pairs)
        self.up = torch.nn.ModuleList(_stage(2 * a, a, config.blocks) for a, _ in pairs)
        self.expand = sv.nn.Upsample(2)
        first = config.channels[0]
        self.keep = Head("residual", first, 1)
        self.prior = torch.nn.Parameter(torch.tensor(2.0))  # the decode is the first guess
        self.normal = Head("residual", first, 3) if config.normal else None
        self.label = Head("residual", first, config.num_labels) if config.num_labels else None

    def forward(self, voxels: Voxels) -> Refined:
        """Which of the candidates exist, and their attributes.

        Raises:
            KeyError: If voxels lack an attribute that the model takes.
            ValueError: If the voxels have another size than those of the model.
        """
        config = self.config
        check_voxels(voxels.grid, (config.voxel_size,) * 3, "voxels")
        grid = voxels.grid.dilate(config.radius)
        given = voxels.grid.index(grid.coords)
        flag = (given >= 0)[:, None].to(self.prior.dtype)
        x = self._unet(SparseTensor(grid, torch.cat([flag, *self._inputs(voxels, grid, given)], 1)))
        logits = at_least_float32(self.keep(x))[:, 0] + self.prior * (2 * flag[:, 0] - 1)
        made: dict[str, Tensor] = {}
        if self.normal is not None:
            made["normal"] = at_least_float32(self.normal(x))
        if self.label is not None:
            made["label_logits"] = at_least_float32(self.label(x))
            made["label"] = made["label_logits"].argmax(1)
        candidates = Voxels(grid, made)
        least = math.log(config.threshold / (1 - config.threshold))
        return Refined(candidates, logits, candidates.prune(logits.detach() > least))

    def _inputs(self, voxels: Voxels, grid: Grid, given: Tensor) -> list[Tensor]:
        config, dtype = self.config, self.prior.dtype
        wanted = ["normal"] * config.normal + ["label"] * (config.num_labels > 0)
        missing = [name for name in wanted if name not in voxels.attributes]
        if missing:
            raise KeyError(f"the model needs the attributes {wanted}, got voxels without {missing}")
        inputs = [embed_position(centers(grid, dtype))]
        if config.normal:
            inputs.append(_at(normalized(voxels.attributes["normal"].to(dtype)), given))
        if config.num_labels:
            labels = functional.one_hot(voxels.attributes["label"].long(), config.num_labels)
            inputs.append(_at(labels.to(dtype), given))
        return inputs

    def _unet(self, x: SparseTensor) -> SparseTensor:
        active = self.config.checkpointing
        x, skips = self.enter(x), []
        for level, stage in enumerate(self.down):
            x = checkpointed(stage, x, active)
            if level < len(self.pool):
                skips.append(x)
                x = self.pool[level](x)
        for level in reversed(range(len(self.pool))):
            skip = skips[level]
            x = sv.cat([skip, self.expand(self.lift[level](x), grid=skip.grid)])
            x = checkpointed(self.up[level], x, active)
        return x

    def refine(self, voxels: Voxels) -> Voxels:
        """The repaired voxels."""
        return self(voxels).voxels


def _stage(in_channels: int, out_channels: int, blocks: int) -> torch.nn.Module:
    widths = [in_channels] + [out_channels] * blocks
    return sv.nn.Sequential(*(ResBlock(a, b) for a, b in pairwise(widths)))


def _at(values: Tensor, rows: Tensor) -> Tensor:
    """`values[rows]`, zero where the row is -1."""
    return torch.cat([values, values.new_zeros(1, values.shape[1])])[rows]


def refiner_losses(refined: Refined, truth: Voxels, *, normal: float = 0.3, label: float = 0.3) -> Losses:
    """Losses of a repaired decode.

    "structure" is the cross entropy of existence, the mean over candidates, with weight 1; "normal" and "label" are the
    mean absolute difference and the cross entropy over candidates that truly exist. "iou" is a metric.
    """
    grid, attributes = refined.candidates.grid, refined.candidates.attributes
    real = truth.grid.contains(grid.coords)
    losses = Losses()
    losses.terms["structure"], losses.weights["structure"] = structure_loss(refined.logits, real), 1.0
    target = true_attributes(truth, grid, attributes)
    if "normal" in attributes:
        losses.terms["normal"] = mean_or_zero((attributes["normal"] - target["normal"]).abs()[real])
        losses.weights["normal"] = normal
    if "label_logits" in attributes:
        losses.terms["label"] = mean_or_zero(
            functional.cross_entropy(attributes["label_logits"], target["label"].long(), reduction="none")[real]
        )
        losses.weights["label"] = label
    losses.metrics["iou"] = voxel_iou(refined.voxels.grid, truth.grid).mean()
    return losses
