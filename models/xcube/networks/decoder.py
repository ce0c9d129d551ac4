"""The decoder of the VAE: at every depth it decides which voxels exist, and goes on with those.

N voxels, M candidates, D depths, B grids.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import sparsevox as sv
from sparsevox import Grid, SparseTensor, Voxels
from xcube.networks.blocks import DoubleConv, Head, at_least_float32, block, checkpointed
from xcube.networks.configs import Triple, VAEConfig


@dataclass(frozen=True)
class Structure:
    """What was decided at one depth.

    candidates: The grid of voxels that were asked.
    logits: Of existence: [M, 2], where column 0 means yes and 1 no, or [M, 1].
    predicted: Whether each exists, by the logits: bool [M].
    grid: Those that went on; in training the truth may have changed them.
    """

    candidates: Grid
    logits: Tensor
    predicted: Tensor
    grid: Grid

    @property
    def exists(self) -> Tensor:
        """The logit of existence [M]: of two columns, their difference, whose sigmoid is their softmax."""
        return existence(self.logits)


@dataclass(frozen=True)
class Decoded:
    """The result of decoding.

    structure: What was decided, by depth, from 0.
    voxels: Those that exist, with the predicted attributes: "normal" and "color" as they come out of the network,
        "label_logits" [N, classes] and "label" [N].
    """

    structure: tuple[Structure, ...]
    voxels: Voxels


def existence(logits: Tensor) -> Tensor:
    """[M] of logits [M, 2] or [M, 1]."""
    return logits[:, 0] - logits[:, 1] if logits.shape[1] == 2 else logits[:, 0]


class Lift(torch.nn.Module):
    """Features of the next finer depth: upsampling to children, and a block."""

    def __init__(self, config: VAEConfig, in_channels: int, out_channels: int, stride: Triple) -> None:
        super().__init__()
        children = stride[0] * stride[1] * stride[2]
        self.checkpointing = config.checkpointing
        self.up: torch.nn.Module = sv.nn.Upsample(stride)
        if config.upsample == "shuffle":
            self.reduce: torch.nn.Module = sv.nn.Linear(in_channels, out_channels * children)
            self.up = sv.nn.ChannelToSpace(stride)
        elif config.block == "residual":  # fewer channels before there are eight times the voxels
            self.reduce = sv.nn.Linear(in_channels, out_channels)
        else:
            self.reduce = torch.nn.Identity()
        self.block = block(config.block, in_channels if config.block == "gcr" else out_channels, out_channels)

    def forward(self, x: SparseTensor, grid: Grid | None = None) -> SparseTensor:
        """Features of the children of all voxels, or of those in `grid`."""
        if isinstance(self.block, DoubleConv) and grid is None:
            y = checkpointed(partial(self.block.first, up=self.up), x, self.checkpointing)
            return checkpointed(self.block.second, y, self.checkpointing)
        return checkpointed(partial(self._at_once, grid=grid), x, self.checkpointing)

    def _at_once(self, x: SparseTensor, grid: Grid | None) -> SparseTensor:
        y: SparseTensor = self.block(self.up(self.reduce(x), grid=grid))
        return y


class Decoder(torch.nn.Module):
    """From latents to voxels."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        *lower, top = config.channels
        # GroupNorm of latents would take the scale from them, which only the paper's network can do without.
        first = config.latent_channels
        self.enter = block("gcr", first, top) if config.block == "gcr" else sv.nn.Linear(first, top)
        self.neck = block(config.block, top, top)
        self.attention = sv.nn.Attention(top) if config.attention else None
        steps = zip(config.channels[1:], lower, config.all_strides, strict=True)
        self.lifts = torch.nn.ModuleList(Lift(config, a, b, stride) for a, b, stride in steps)  # by finer depth
        logits = 2 if config.block == "gcr" else 1
        if config.child_masks:
            # Of the latent voxels one logit, then of every voxel one for each child.
            self.root = Head(config.block, top, 1)
            counts = (x * y * z for x, y, z in config.all_strides)
            pairs = zip(config.channels[1:], counts, strict=True)
            self.heads = torch.nn.ModuleList(Head(config.block, c, count) for c, count in pairs)
        else:
            self.heads = torch.nn.ModuleList(Head(config.block, c, logits) for c in config.channels)
        finest = config.channels[0]
        self.normal = Head(config.block, finest, 3) if config.normal else None
        self.label = Head(config.block, finest, config.num_labels) if config.num_labels else None
        self.color = Head(config.block, finest, 3) if config.color else None

    def forward(self, latents: SparseTensor, truth: Sequence[Grid] | None) -> Decoded:
        """Voxels; with `truth`, the grids of all depths, what goes on follows `config.keep`."""
        x = self.neck(self.enter(latents))
        if self.attention is not None:
            x = x + self.attention(x)
        x, structure = self._children_first(x, truth) if self.config.child_masks else self._ask_each(x, truth)
        return Decoded(tuple(structure), self._attributes(x))

    def _ask_each(self, x: SparseTensor, truth: Sequence[Grid] | None) -> tuple[SparseTensor, list[Structure]]:
        """Every candidate has features, and decides for itself."""
        structure: list[Structure] = []
        for depth in reversed(range(self.config.depths)):
            logits = checkpointed(self.heads[depth], x, self.config.checkpointing)
            decided, keep = self._decide(x.grid, logits, truth, depth)
            structure.insert(0, decided)
            x = SparseTensor(decided.grid, x.feats[keep])
            if depth:
                x = self.lifts[depth - 1](x)
        return x, structure

    def _children_first(self, x: SparseTensor, truth: Sequence[Grid] | None) -> tuple[SparseTensor, list[Structure]]:
        """A voxel decides for its children, and only those that exist get features."""
        decided, keep = self._decide(x.grid, self.root(x), truth, self.config.depths - 1)
        structure, x = [decided], SparseTensor(decided.grid, x.feats[keep])
        for depth in reversed(range(self.config.depths - 1)):
            children = sv.nn.ChannelToSpace(self.config.all_strides[depth])(x.replace(self.heads[depth](x)))
            decided, _ = self._decide(children.grid, children.feats, truth, depth)
            structure.insert(0, decided)
            x = self.lifts[depth](x, decided.grid)
        return x, structure

    def _decide(
        self, candidates: Grid, logits: Tensor, truth: Sequence[Grid] | None, depth: int
    ) -> tuple[Structure, Tensor]:
        logits = at_least_float32(logits)
        predicted = existence(logits.detach()) > 0
        keep = predicted
        if truth is not None:
            keep = self._guided(candidates, predicted, truth[depth], depth)
        return Structure(candidates, logits, predicted, candidates.prune(keep)), keep

    def _guided(self, candidates: Grid, predicted: Tensor, truth: Grid, depth: int) -> Tensor:
        """What goes on in training."""
        config, keep = self.config, predicted
        real = truth.contains(candidates.coords)
        if config.keep == "union":
            fits = count_per_grid(predicted, candidates) <= config.keep_ratio * count_per_grid(real, candidates)
            keep = real | (predicted & fits[candidates.batch.long()])
        if config.cutoff is not None and config.box is not None and depth < config.depths - 1:
            volume = candidates.batch_size
            for edge, stride in zip(config.box, self._stride_to(depth), strict=True):
                volume *= edge // stride
            keep = keep & (keep.sum() <= config.cutoff * volume)
        if config.max_voxels is not None:
            children = math.prod(config.all_strides[depth - 1]) if depth else 1
            keep = torch.where(keep.sum() * children <= config.max_voxels, keep, real)
        return keep

    def _stride_to(self, depth: int) -> Triple:
        x, y, z = 1, 1, 1
        for a, b, c in self.config.all_strides[:depth]:
            x, y, z = x * a, y * b, z * c
        return x, y, z

    def _attributes(self, x: SparseTensor) -> Voxels:
        made: dict[str, Tensor] = {}
        if self.normal is not None:
            made["normal"] = at_least_float32(self.normal(x))
        if self.color is not None:
            made["color"] = at_least_float32(self.color(x))
        if self.label is not None:
            made["label_logits"] = at_least_float32(self.label(x))
            made["label"] = made["label_logits"].argmax(1)
        return Voxels(x.grid, made)


def count_per_grid(flags: Tensor, grid: Grid) -> Tensor:
    """How many flags [N] are set in each item of the batch: float32 [B]."""
    return sv.ops.global_pool(flags[:, None].float(), grid, "sum").squeeze(1)
