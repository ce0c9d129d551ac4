"""The layers of the official networks that differ from ours. Official checkpoints need exactly these.

VAE: blocks "GCR" (GroupNorm, convolution, ReLU), max pooling, nearest upsampling, a posterior that ends in ReLU, and
existence from two columns of logits per candidate, without child occupancy. UNet: residual blocks between resolutions,
pooling over whole windows, more skip connections, and attention to texts in other blocks.

N voxels, M candidates, C channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

import sparsevox as sv
from sparsevox import Grid, SparseTensor
from xcube.networks.blocks import Head, at_least_float32, checkpointed, make_norm
from xcube.networks.configs import Triple, UNetConfig
from xcube.networks.decoder import Decoder, Structure
from xcube.networks.encoder import DownBlock, Encoder
from xcube.networks.space import Field, Space, Sparse
from xcube.networks.unet_blocks import ResAttention, TimedResBlock, UNetLayers


class GCRUnit(torch.nn.Module):
    """GroupNorm, a convolution without bias, and ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = make_norm(in_channels)
        self.conv = sv.nn.Conv3d(in_channels, out_channels, 3, bias=False)

    def forward(self, x: SparseTensor, upsample: torch.nn.Module | None = None) -> SparseTensor:
        """Compute features [N, out_channels], or those of all children if there is an `upsample` layer.

        Children are copies of their parents, with the same mean and deviation: upsampling after the norm saves memory.
        """
        x = self.norm(x)
        y: SparseTensor = self.conv(x if upsample is None else upsample(x))
        return y.map(torch.relu)


class GCRBlock(torch.nn.Module):
    """Two GCR units with `middle` channels between them."""

    def __init__(self, in_channels: int, out_channels: int, middle: int | None = None) -> None:
        super().__init__()
        middle = out_channels if middle is None else middle
        self.first = GCRUnit(in_channels, middle)
        self.second = GCRUnit(middle, out_channels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Map features [N, in_channels] to [N, out_channels]."""
        y: SparseTensor = self.second(self.first(x))
        return y


class OfficialEncoder(Encoder):
    """The encoder of the official VAE."""

    def block(self, in_channels: int, out_channels: int) -> torch.nn.Module:
        return GCRBlock(in_channels, out_channels)

    def down_block(self, in_channels: int, out_channels: int, stride: Triple | None) -> DownBlock:
        block = GCRBlock(in_channels, out_channels, middle=max(in_channels, out_channels // 2))
        return DownBlock(None if stride is None else sv.nn.MaxPool3d(stride), block)

    def posterior_layer(self, in_channels: int) -> torch.nn.Module:
        """Make a block that ends in ReLU, so mean and log-variance are not negative."""
        return GCRBlock(in_channels, 2 * self.config.latent_channels)


@dataclass(frozen=True)
class OfficialStructure(Structure):
    """The prediction of structure at one resolution.

    columns: The two logits of each candidate, [M, 2]: column 0 for existence, column 1 against it. The sigmoid of
        `logits`, their difference, is the softmax of the columns.
    """

    columns: Tensor


class OfficialUpBlock(torch.nn.Module):
    """Features of all children: nearest upsampling and a GCR block."""

    def __init__(self, in_channels: int, out_channels: int, stride: Triple, checkpointing: bool) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.upsample = sv.nn.Upsample(stride)
        self.block = GCRBlock(in_channels, out_channels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Map features [N, in_channels] to those of all children, [N * children, out_channels]."""
        y = checkpointed(partial(self.block.first, upsample=self.upsample), x, self.checkpointing)
        return checkpointed(self.block.second, y, self.checkpointing)


class OfficialDecoder(Decoder):
    """The decoder of the official VAE: every candidate gets features, from which it predicts its own existence."""

    def decode_structure(
        self, x: SparseTensor, truth: Sequence[Grid] | None, generated: bool
    ) -> tuple[SparseTensor, list[Structure]]:
        structure: list[Structure] = []
        for resolution in reversed(range(self.config.num_resolutions)):
            # 1. Which candidates exist.
            columns = at_least_float32(checkpointed(self.heads[resolution], x, self.config.checkpointing))  # [M, 2]
            logits = columns[:, :1] - columns[:, 1:]  # [M, 1]
            decision, keep = self.decide(x.grid, logits, truth, generated, resolution)
            structure.insert(0, OfficialStructure(**vars(decision), columns=columns))
            x = SparseTensor(decision.grid, x.feats[keep])
            # 2. Features of all children of those.
            if resolution:
                x = self.lifts[resolution - 1](x)
        return x, structure

    def joined(self, candidates: Grid, predicted: Tensor, real: Tensor, resolution: int) -> Tensor:
        """Drop all voxels of a resolution that exceed the fraction `cutoff` of the box, to bound memory in training."""
        config, keep = self.config, super().joined(candidates, predicted, real, resolution)
        if config.cutoff is not None and config.box is not None and resolution < config.num_resolutions - 1:
            edges = zip(config.box, config.factor_to(resolution), strict=True)
            volume = candidates.batch_size * math.prod(edge // factor for edge, factor in edges)
            keep = keep & (keep.sum() <= config.cutoff * volume)
        return keep

    def first_layer(self, in_channels: int, out_channels: int) -> torch.nn.Module:
        return GCRBlock(in_channels, out_channels)

    def block(self, in_channels: int, out_channels: int) -> torch.nn.Module:
        return GCRBlock(in_channels, out_channels)

    def up_block(self, in_channels: int, out_channels: int, stride: Triple) -> torch.nn.Module:
        return OfficialUpBlock(in_channels, out_channels, stride, self.config.checkpointing)

    def head(self, in_channels: int, out_channels: int) -> Head:
        return Head(in_channels, out_channels, GCRUnit(in_channels, in_channels))

    def color_head(self, in_channels: int) -> Head:
        return self.head(in_channels, 3)

    def make_structure_heads(self) -> None:
        """Add the heads of existence, one per resolution, with two columns of logits."""
        self.heads = torch.nn.ModuleList(self.head(width, 2) for width in self.config.channels)


class ResampleBlock(TimedResBlock):
    """A residual block that goes to the next coarser or finer resolution before its first convolution."""

    def __init__(
        self, space: Space, channels: int, time_channels: int, groups: int, direction: Literal["down", "up"]
    ) -> None:
        super().__init__(space, channels, channels, time_channels, groups)
        self.direction = direction

    def forward(self, x: Field, time: Tensor, like: Field | None = None) -> Field:
        """Compute a field of the same channels; `like` is a field of the finer resolution to go "up" to."""
        y = self.space.map(self.norm1(x), functional.silu)
        if self.direction == "down":
            return self.residual(self.space.down(x), self.space.down(y), time)
        return self.residual(self.space.up(x, like), self.space.up(y, like), time)


class OfficialUNetLayers(UNetLayers):
    """The layers of the official denoisers."""

    skips_input = True

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        self.skip_first = not config.dense
        self.text_eps = 1e-6 if config.dense else 1e-5
        if isinstance(self.space, Sparse):
            self.space = Sparse("window")

    def downsample(self, channels: int) -> torch.nn.Module:
        """Make a residual block, whose output is a skip connection too."""
        return ResAttention(self._resample(channels, "down"))

    def upsample(self, channels: int) -> torch.nn.Module:
        return self._resample(channels, "up")

    def _resample(self, channels: int, direction: Literal["down", "up"]) -> ResampleBlock:
        return ResampleBlock(self.space, channels, self.time_channels, self.config.groups, direction)

    def mixer(self, resolution: int, width: int, *, up: bool = False) -> torch.nn.Module | None:
        """Make the attention of one resolution, if it has any.

        The sparse network reads a text after every block; on the way up, with the channels of the last resolution.
        """
        if not self.config.text_everywhere:
            return super().mixer(resolution, width, up=up)
        inner = self.config.widths[-1] if up else width
        return self.text_block(width, inner, self_attention=1 << resolution in self.config.attention)
