"""The layers of the denoisers, on sparse grids and on dense volumes alike.

N voxels, B grids, C channels, E channels of the embedded time; `...` stands for the rows of a field (space.py).
"""

import math

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from xcube.networks.configs import UNetConfig
from xcube.networks.space import Context, Dense, Field, Space, Sparse


def embed_time(t: Tensor, channels: int) -> Tensor:
    """Embed times [B] as cosines, then sines, of falling frequencies: [B, channels].

    Frequencies fall from 1 to nearly 1 / 10,000 (Vaswani et al. 2017, arXiv:1706.03762).
    """
    half = channels // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=t.dtype, device=t.device) / half)
    angles = t[:, None] * frequencies  # [B, channels / 2]
    return torch.cat([angles.cos(), angles.sin()], 1)


def zeroed(module: torch.nn.Module) -> torch.nn.Module:
    """Set all parameters to 0, so that a residual connection starts as the identity."""
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    return module


class Pointwise(torch.nn.Linear):
    """A linear map of the channels of a field."""

    def __init__(self, space: Space, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.space = space

    def forward(self, x: Field) -> Field:
        """Compute a field of `out_channels`."""
        return self.space.replace(x, super().forward(self.space.rows(x)))


class TimedResBlock(torch.nn.Module):
    """Twice GroupNorm, SiLU and a convolution, plus a skip connection; the time scales and shifts the second norm."""

    def __init__(self, space: Space, in_channels: int, out_channels: int, time_channels: int, groups: int) -> None:
        super().__init__()
        self.space = space
        self.norm1 = space.norm(in_channels, groups)
        self.conv1 = space.conv(in_channels, out_channels)
        self.time = torch.nn.Linear(time_channels, 2 * out_channels)
        self.norm2 = space.norm(out_channels, groups)
        self.conv2 = zeroed(space.conv(out_channels, out_channels))
        same = in_channels == out_channels
        self.skip = torch.nn.Identity() if same else Pointwise(space, in_channels, out_channels)

    def forward(self, x: Field, time: Tensor) -> Field:
        """Compute a field of `out_channels` from a field and the activated embedding of the time [B, E]."""
        return self.residual(x, self.space.map(self.norm1(x), functional.silu), time)

    def residual(self, x: Field, y: Field, time: Tensor) -> Field:
        """Compute all after the first activation: `x` takes the skip connection, `y` the convolutions."""
        y = self.space.modulate(self.norm2(self.conv1(y)), self.time(time))
        return self.skip(x) + self.conv2(self.space.map(y, functional.silu))


class SelfAttention(torch.nn.Module):
    """Attention between the voxels of each grid, added to the input."""

    def __init__(self, space: Space, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        self.space, self.heads = space, heads
        self.norm = space.norm(channels, groups)
        self.qkv = torch.nn.Linear(channels, 3 * channels)
        self.proj = zeroed(torch.nn.Linear(channels, channels))

    def forward(self, x: Field, context: Context | None = None) -> Field:
        """Compute a field of the same channels. The context is ignored."""
        rows = self.qkv(self.space.rows(self.norm(x)))
        q, k, v = rearrange(rows, "... (three c) -> three ... c", three=3)
        return x + self.space.replace(x, self.proj(self.space.attend(x, q, k, v, self.heads, None)))


class RowAttention(torch.nn.Module):
    """Attention of rows [..., C] to rows of the same grid, or to tokens with `context_channels`."""

    def __init__(self, space: Space, channels: int, heads: int, context_channels: int | None = None) -> None:
        super().__init__()
        self.space, self.heads = space, heads
        source = channels if context_channels is None else context_channels
        self.q = torch.nn.Linear(channels, channels, bias=False)
        self.k = torch.nn.Linear(source, channels, bias=False)
        self.v = torch.nn.Linear(source, channels, bias=False)
        self.proj = torch.nn.Linear(channels, channels)

    def forward(self, rows: Tensor, x: Field, context: Context | None) -> Tensor:
        """Compute rows [..., C]; `x` is the field that they belong to."""
        source = rows if context is None else context.tokens
        found = self.space.attend(x, self.q(rows), self.k(source), self.v(source), self.heads, context)
        out: Tensor = self.proj(found)
        return out


class FeedForward(torch.nn.Module):
    """A gated linear unit with GELU (GEGLU, Shazeer 2020, arXiv:2002.05202), four times as wide as its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide = torch.nn.Linear(channels, 8 * channels)
        self.out = torch.nn.Linear(4 * channels, channels)

    def forward(self, rows: Tensor) -> Tensor:
        """Compute rows [..., C]."""
        value, gate = self.wide(rows).chunk(2, -1)  # each [..., 4 C]
        out: Tensor = self.out(value * functional.gelu(gate))
        return out


class TextBlock(torch.nn.Module):
    """A transformer block that reads a text: self-attention, cross-attention to the tokens, and a feed-forward layer.

    Args:
        space: The space of its fields.
        channels: Number of channels of the input and the output.
        inner: Number of channels inside.
        heads: Number of heads of both attentions.
        text_channels: Number of channels of a token.
        self_attention: Whether voxels attend to each other, too.
        groups: Number of groups of the first norm.
        eps: Epsilon of the first norm.
    """

    def __init__(
        self,
        space: Space,
        channels: int,
        inner: int,
        heads: int,
        text_channels: int,
        *,
        self_attention: bool,
        groups: int,
        eps: float,
    ) -> None:
        super().__init__()
        self.space = space
        self.norm = space.norm(channels, groups, eps)
        self.enter = torch.nn.Linear(channels, inner)
        self.norm1 = torch.nn.LayerNorm(inner) if self_attention else None
        self.voxels = RowAttention(space, inner, heads) if self_attention else None
        self.norm2, self.text = torch.nn.LayerNorm(inner), RowAttention(space, inner, heads, text_channels)
        self.norm3, self.gate = torch.nn.LayerNorm(inner), FeedForward(inner)
        self.proj = zeroed(torch.nn.Linear(inner, channels))

    def forward(self, x: Field, context: Context) -> Field:
        """Compute a field of the same channels."""
        rows = self.enter(self.space.rows(self.norm(x)))  # [..., inner]
        if self.voxels is not None and self.norm1 is not None:
            rows = rows + self.voxels(self.norm1(rows), x, None)
        rows = rows + self.text(self.norm2(rows), x, context)
        rows = rows + self.gate(self.norm3(rows))
        return x + self.space.replace(x, self.proj(rows))


class ResAttention(torch.nn.Module):
    """A residual block; then attention (`mixer`) and upsampling to the next finer resolution (`lift`), if given."""

    def __init__(
        self, block: TimedResBlock, mixer: torch.nn.Module | None = None, lift: torch.nn.Module | None = None
    ) -> None:
        super().__init__()
        self.block, self.mixer, self.lift = block, mixer, lift

    def forward(self, x: Field, time: Tensor, context: Context | None, like: Field | None = None) -> Field:
        """Compute a field; `like` is one of the finer resolution to go up to."""
        x = self.block(x, time)
        if self.mixer is not None:
            x = self.mixer(x, context)
        return x if self.lift is None else self.lift(x, time, like)


class MeanDownsample(torch.nn.Module):
    """Average pooling to the next coarser resolution."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space = space

    def forward(self, x: Field, time: Tensor, context: Context | None) -> Field:
        """Compute a field of the coarser resolution; time and context are ignored."""
        return self.space.down(x)


class NearestUpsample(torch.nn.Module):
    """Nearest neighbors to the next finer resolution, on the voxels of `like`."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space = space

    def forward(self, x: Field, time: Tensor, like: Field) -> Field:
        """Compute a field on the voxels of `like`; the time is ignored."""
        return self.space.up(x, like)


class MiddleBlock(torch.nn.Module):
    """Residual block, attention, residual block, at the coarsest resolution."""

    def __init__(self, first: TimedResBlock, mixer: torch.nn.Module, second: TimedResBlock) -> None:
        super().__init__()
        self.first, self.mixer, self.second = first, mixer, second

    def forward(self, x: Field, time: Tensor, context: Context | None) -> Field:
        """Compute a field of the same channels."""
        return self.second(self.mixer(self.first(x, time), context), time)


class OutputLayer(torch.nn.Module):
    """GroupNorm, SiLU, and a convolution that starts at zero."""

    def __init__(self, space: Space, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.space = space
        self.norm = space.norm(in_channels, groups)
        self.conv = zeroed(space.conv(in_channels, out_channels))

    def forward(self, x: Field) -> Field:
        """Compute a field of `out_channels`."""
        return self.conv(self.space.map(self.norm(x), functional.silu))


class UNetLayers:
    """Makes the layers of a denoiser, those of the modern architecture; `official.OfficialUNetLayers` has the others.

    space: The space of its fields.
    skips_input: Whether the output of the first convolution is a skip connection, too.
    skip_first: Whether the channels of a skip connection come before those from the coarser resolution.
    text_eps: Epsilon of the GroupNorm before a text is read.
    """

    skips_input = False
    skip_first = True
    text_eps = 1e-5

    def __init__(self, config: UNetConfig) -> None:
        self.config, self.time_channels = config, 4 * config.channels
        self.space: Space = Dense() if config.dense else Sparse()

    def res_block(self, in_channels: int, out_channels: int) -> TimedResBlock:
        """Make a residual block."""
        return TimedResBlock(self.space, in_channels, out_channels, self.time_channels, self.config.groups)

    def downsample(self, channels: int) -> torch.nn.Module:
        """Make the layer between a resolution and the next coarser one."""
        return MeanDownsample(self.space)

    def upsample(self, channels: int) -> torch.nn.Module:
        """Make the layer between a resolution and the next finer one."""
        return NearestUpsample(self.space)

    def mixer(self, resolution: int, width: int, *, up: bool = False) -> torch.nn.Module | None:
        """Make the attention of one resolution, if it has any; `up` on the way up."""
        return self.attention(width) if 1 << resolution in self.config.attention else None

    def attention(self, width: int) -> torch.nn.Module:
        """Make self-attention, with attention to a text if the network takes one."""
        config = self.config
        if config.text_channels:
            return self.text_block(width, width, self_attention=True)
        return SelfAttention(self.space, width, config.heads, config.groups)

    def text_block(self, width: int, inner: int, *, self_attention: bool) -> TextBlock:
        """Make a transformer block that reads a text with `inner` channels."""
        config = self.config
        return TextBlock(
            self.space,
            width,
            inner,
            config.heads,
            config.text_channels,
            self_attention=self_attention,
            groups=config.groups,
            eps=self.text_eps,
        )
