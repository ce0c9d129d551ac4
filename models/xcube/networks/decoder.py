"""The decoder of the VAE: at each resolution it predicts which voxels exist, and continues with those.

N voxels, M candidates, D resolutions, C channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from einops import rearrange
from torch import Tensor

import sparsevox as sv
from sparsevox import Grid, SparseTensor, Voxels
from sparsevox.io.voxelize import normalized
from xcube.geometry.parts import bridged
from xcube.geometry.shell import certain_parts, sealed
from xcube.networks.blocks import Head, ResBlock, at_least_float32, checkpointed, count_per_grid
from xcube.networks.configs import Triple, VAEConfig

LOGITS = "label_logits"  # an attribute of decoded voxels that only losses need


@dataclass(frozen=True)
class Structure:
    """The prediction of structure at one resolution.

    candidates: The grid of candidate voxels, M of them.
    logits: The logits of existence, [M].
    predicted: Whether each candidate exists by its logit and the threshold, bool [M].
    grid: The voxels that the decoder continued with; in training the ground truth may have changed them.
    truth: The true voxels that guided the decoder; None outside of training.
    rows: The row of each candidate among those, -1 for candidates that do not truly exist, [M]; None without truth.
    solid: The logits of being in the shape or its shell, [M], if `config.solid`, except on the latent grid; else None.
    """

    candidates: Grid
    logits: Tensor
    predicted: Tensor
    grid: Grid
    truth: Grid | None
    rows: Tensor | None
    solid: Tensor | None = field(default=None, kw_only=True)

    def rows_among(self, truth: Grid) -> Tensor:
        """The row of each candidate among true voxels, -1 where there is none: int64 [M]."""
        return self.rows if self.rows is not None and self.truth is truth else truth.index(self.candidates.coords)


@dataclass(frozen=True)
class Decoded:
    """The result of decoding.

    structure: The predictions of structure, one per resolution, from resolution 0 on.
    voxels: The voxels that exist with the predicted attributes: "normal" [N, 3], "color" [N, 3] and "fill" [N] as they
        leave the network, "label_logits" [N, classes] and "label" [N].
    """

    structure: tuple[Structure, ...]
    voxels: Voxels


class UpBlock(torch.nn.Module):
    """Features of the next finer resolution: a linear map to the channels of all children, and a residual block."""

    def __init__(self, in_channels: int, out_channels: int, stride: Triple) -> None:
        super().__init__()
        self.reduce = sv.nn.Linear(in_channels, out_channels * math.prod(stride))
        self.to_children = sv.nn.ChannelToSpace(stride)
        self.block = ResBlock(out_channels, out_channels)

    def forward(self, x: SparseTensor, grid: Grid, keep: Tensor) -> SparseTensor:
        """Compute features [M, out_channels] on `grid`, the children of the voxels of `x` that `keep` selects."""
        y = self.reduce(x)
        if self.to_children.factor == (2, 2, 2):  # the children of a voxel are consecutive rows
            children = rearrange(y.feats, "n (children c) -> (n children) c", children=8)
            y = SparseTensor(grid, children.index_select(0, keep.nonzero().squeeze(1)))
        else:
            y = self.to_children(y, grid=grid)
        z: SparseTensor = self.block(y)
        return z


class Decoder(torch.nn.Module):
    """From latents to voxels. Every voxel predicts the occupancy of its children before they get features."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        finest, top = config.channels[0], config.channels[-1]
        self.enter = self.first_layer(config.latent_channels, top)
        self.neck = self.block(top, top)
        self.attention = sv.nn.Attention(top) if config.attention else None
        widths = zip(config.channels[1:], config.channels[:-1], config.all_strides, strict=True)
        self.lifts = torch.nn.ModuleList(self.up_block(a, b, stride) for a, b, stride in widths)  # by finer resolution
        self.make_structure_heads()
        self.normal = self.head(finest, 3) if config.normal else None
        self.label = self.head(finest, config.num_labels) if config.num_labels else None
        self.color = self.color_head(finest) if config.color else None
        self.fill = self.head(finest, 1) if config.fill else None

    def forward(self, latents: SparseTensor, truth: Sequence[Grid] | None, generated: bool = False) -> Decoded:
        """Decode latents [M, L], which were encoded or generated.

        `truth`, the true grids of all resolutions, guides decoding as `config.keep` says.
        """
        # 1. The neck.
        x = self.neck(self.enter(latents))
        if self.attention is not None:
            x = x + self.attention(x)
        # 2. Which voxels exist, resolution by resolution.
        x, structure = self.decode_structure(x, truth, generated)
        # 3. Attributes of the voxels at resolution 0.
        made: dict[str, Tensor] = {}
        if self.normal is not None:
            made["normal"] = at_least_float32(self.normal(x))
        if self.color is not None:
            made["color"] = at_least_float32(self.color(x))
        if self.fill is not None:
            made["fill"] = at_least_float32(self.fill(x))[:, 0]
        if self.label is not None:
            made[LOGITS] = at_least_float32(self.label(x))
            made["label"] = made[LOGITS].argmax(1)
        return Decoded(tuple(structure), Voxels(x.grid, made))

    def decode_structure(
        self, x: SparseTensor, truth: Sequence[Grid] | None, generated: bool
    ) -> tuple[SparseTensor, list[Structure]]:
        """Compute features of the voxels at resolution 0, and the predictions of structure from resolution 0 on."""
        config = self.config
        # 1. Which latent voxels exist: one logit each.
        decision, keep = self.decide(x.grid, self.root(x), truth, generated, config.num_resolutions - 1)
        structure, x = [decision], SparseTensor(decision.grid, x.feats[keep])
        for resolution in reversed(range(config.num_resolutions - 1)):
            # 2. Child occupancy: logits [N, children] of the voxels become logits [N * children, 1] of candidates.
            to_children = sv.nn.ChannelToSpace(config.all_strides[resolution])
            children = to_children(x.replace(self.heads[resolution](x)))
            solid = None
            if config.solid:
                solid = to_children(x.replace(self.solids[resolution](x))).feats
            decision, keep = self.decide(children.grid, children.feats, truth, generated, resolution, solid)
            structure.insert(0, decision)
            # 3. Features of the children that exist.
            lift = partial(self.lifts[resolution], grid=decision.grid, keep=keep)
            x = checkpointed(lift, x, config.checkpointing)
        return x, structure

    def decide(
        self,
        candidates: Grid,
        logits: Tensor,
        truth: Sequence[Grid] | None,
        generated: bool,
        resolution: int,
        solid: Tensor | None = None,
    ) -> tuple[Structure, Tensor]:
        """Decide from logits [M, 1] which candidates exist; also return those to continue with, bool [M].

        Without the truth, logits `solid` [M, 1] of what is inside close the shell, and bridges connect the parts of
        generated shapes.
        """
        logits = at_least_float32(logits).squeeze(1)
        least, certain = _logit(self.config.all_thresholds[resolution]), _logit(self.config.certain)
        keep = predicted = logits.detach() > least
        if solid is not None:
            solid = at_least_float32(solid).squeeze(1)
        if truth is None and solid is not None:
            inside = solid.detach()
            parts = certain_parts(candidates, inside > least, inside > certain)
            keep = sealed(candidates, predicted, self.connected(candidates, parts, inside) if generated else parts)
        elif truth is None and generated:
            keep = self.connected(candidates, predicted, logits.detach())
        true_grid = rows = None
        if truth is not None:
            true_grid = truth[resolution]
            rows = true_grid.index(candidates.coords)
            keep = self.guided(candidates, predicted, rows >= 0, resolution)
        return Structure(candidates, logits, predicted, candidates.prune(keep), true_grid, rows, solid=solid), keep

    def connected(self, candidates: Grid, chosen: Tensor, logits: Tensor) -> Tensor:
        """The chosen candidates with bridges between their parts, bool [M]."""
        least = self.config.bridge
        return chosen if least is None else bridged(candidates, chosen, logits.sigmoid(), least)

    def guided(self, candidates: Grid, predicted: Tensor, real: Tensor, resolution: int) -> Tensor:
        """Choose the candidates to continue with in training, from those that truly exist: both bool [M]."""
        config = self.config
        keep = self.joined(candidates, predicted, real, resolution)
        if config.max_voxels is not None:
            children = math.prod(config.all_strides[resolution - 1]) if resolution else 1
            keep = torch.where(keep.sum() * children <= config.max_voxels, keep, real)
        return keep

    def joined(self, candidates: Grid, predicted: Tensor, real: Tensor, resolution: int) -> Tensor:
        """Join predicted and true candidates as `config.keep` says, bool [M]."""
        if self.config.keep == "predicted":
            return predicted
        limit = self.config.keep_ratio * count_per_grid(real, candidates)
        fits = count_per_grid(predicted, candidates) <= limit
        return real | (predicted & fits[candidates.batch.long()])

    # The layers of the modern architecture, which those of `official.OfficialDecoder` override.

    def first_layer(self, in_channels: int, out_channels: int) -> torch.nn.Module:
        """Make the first layer. It has no norm, which would remove the scale of the latents."""
        return sv.nn.Linear(in_channels, out_channels)

    def block(self, in_channels: int, out_channels: int) -> torch.nn.Module:
        """Make a block that keeps the grid."""
        return ResBlock(in_channels, out_channels)

    def up_block(self, in_channels: int, out_channels: int, stride: Triple) -> torch.nn.Module:
        """Make the layers that lead to the next finer resolution."""
        return UpBlock(in_channels, out_channels, stride)

    def head(self, in_channels: int, out_channels: int) -> Head:
        """Make the layers of a prediction per voxel."""
        return Head(in_channels, out_channels)

    def color_head(self, in_channels: int) -> Head:
        """Make the layers that predict colors. They have no norm, which would make shapes of a single color alike."""
        return Head(in_channels, 3, torch.nn.Identity())

    def make_structure_heads(self) -> None:
        """Add the heads of existence: `root` for the latent voxels, `heads` for children at finer resolutions.

        `solids` are the heads of being inside, of the same children.
        """
        config = self.config
        self.root = self.head(config.channels[-1], 1)
        pairs = list(zip(config.channels[1:], map(math.prod, config.all_strides), strict=True))
        self.heads = torch.nn.ModuleList(self.head(width, count) for width, count in pairs)
        if config.solid:
            self.solids = torch.nn.ModuleList(self.head(width, count) for width, count in pairs)


def tidy(voxels: Voxels) -> Voxels:
    """The voxels with normals of unit length, solid fractions and colors in [0, 1], and without label logits."""
    kept = {name: value for name, value in voxels.attributes.items() if name != LOGITS}
    if "fill" in kept:
        kept["fill"] = kept["fill"].clamp(0, 1)
    if "color" in kept:
        kept["color"] = kept["color"].clamp(0, 1)
    return with_unit_normals(Voxels(voxels.grid, kept))


def with_unit_normals(voxels: Voxels) -> Voxels:
    """Normalize the normals, if there are any."""
    if "normal" not in voxels.attributes:
        return voxels
    return voxels.with_attributes(normal=normalized(voxels.attributes["normal"]))


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
