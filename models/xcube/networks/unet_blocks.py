"""What the denoisers are built of, on voxels and in volumes alike.

N voxels, B grids, C channels, E channels of the embedded time; `...` stands for the rows of a field (space.py).
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from xcube.networks.space import Context, Field, Space


def group_norm(space: Space, channels: int, groups: int, eps: float = 1e-5) -> torch.nn.Module:
    """At most so many groups: the most that divide the channels."""
    return space.norm(math.gcd(groups, channels), channels, eps)


def embed_time(t: Tensor, channels: int) -> Tensor:
    """Cosines, then sines, of t [B] times falling frequencies (Vaswani et al. 2017, arXiv:1706.03762): [B, channels].

    Frequencies fall from 1 to nearly 1 / 10,000.
    """
    half = channels // 2
    falling = torch.exp(-math.log(10_000) * torch.arange(half, dtype=t.dtype, device=t.device) / half)
    angles = t[:, None] * falling
    return torch.cat([angles.cos(), angles.sin()], 1)


def zeroed(module: torch.nn.Module) -> torch.nn.Module:
    """The module, with parameters of 0: what it is added to stays as it is at first."""
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    return module


class Pointwise(torch.nn.Linear):
    """A linear map of the channels of a field."""

    def __init__(self, space: Space, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.space = space

    def forward(self, x: Field) -> Field:
        """A field of `out_channels`."""
        return self.space.replace(x, super().forward(self.space.rows(x)))


class TimedResBlock(torch.nn.Module):
    """GroupNorm, SiLU, convolution, twice, plus the input. The time scales and shifts what the second norm gives.

    With `resample`, features go one level "down" or "up" before the first convolution.
    """

    def __init__(
        self,
        space: Space,
        in_channels: int,
        out_channels: int,
        time_channels: int,
        groups: int,
        resample: Literal["down", "up"] | None = None,
    ) -> None:
        super().__init__()
        self.space, self.resample = space, resample
        self.norm1 = group_norm(space, in_channels, groups)
        self.conv1 = space.conv(in_channels, out_channels)
        self.time = torch.nn.Linear(time_channels, 2 * out_channels)
        self.norm2 = group_norm(space, out_channels, groups)
        self.conv2 = zeroed(space.conv(out_channels, out_channels))
        same = in_channels == out_channels
        self.skip = torch.nn.Identity() if same else Pointwise(space, in_channels, out_channels)

    def forward(self, x: Field, time: Tensor, like: Field | None = None) -> Field:
        """A field of `out_channels`.

        Args:
            x: A field.
            time: Activated embedding [B, E].
            like: With `resample="up"`, a field of the level to go to.
        """
        space = self.space
        y = space.map(self.norm1(x), functional.silu)
        if self.resample == "down":
            x, y = space.down(x), space.down(y)
        elif self.resample == "up":
            x, y = space.up(x, like), space.up(y, like)
        y = space.modulate(self.norm2(self.conv1(y)), self.time(time))
        return self.skip(x) + self.conv2(space.map(y, functional.silu))


class SelfAttention(torch.nn.Module):
    """Attention between the voxels of a grid, added to the input."""

    def __init__(self, space: Space, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        self.space, self.heads = space, heads
        self.norm = group_norm(space, channels, groups)
        self.qkv = torch.nn.Linear(channels, 3 * channels)
        self.proj = zeroed(torch.nn.Linear(channels, channels))

    def forward(self, x: Field, context: Context | None = None) -> Field:
        """A field of the same channels."""
        q, k, v = self.qkv(self.space.rows(self.norm(x))).chunk(3, -1)
        return x + self.space.replace(x, self.proj(self.space.attend(x, q, k, v, self.heads, None)))


class Attention(torch.nn.Module):
    """Queries of rows [..., C], keys and values of the same rows or of tokens."""

    def __init__(self, space: Space, channels: int, heads: int, context_channels: int | None = None) -> None:
        super().__init__()
        self.space, self.heads = space, heads
        source = channels if context_channels is None else context_channels
        self.q = torch.nn.Linear(channels, channels, bias=False)
        self.k = torch.nn.Linear(source, channels, bias=False)
        self.v = torch.nn.Linear(source, channels, bias=False)
        self.proj = torch.nn.Linear(channels, channels)

    def forward(self, rows: Tensor, x: Field, context: Context | None) -> Tensor:
        """Rows [..., C]; `x` is the field that they belong to."""
        source = rows if context is None else context.tokens
        found = self.space.attend(x, self.q(rows), self.k(source), self.v(source), self.heads, context)
        out: Tensor = self.proj(found)
        return out


class FeedForward(torch.nn.Module):
    """A gated linear unit with GELU (Shazeer 2020, arXiv:2002.05202), four times as wide as the rows."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide = torch.nn.Linear(channels, 8 * channels)
        self.out = torch.nn.Linear(4 * channels, channels)

    def forward(self, rows: Tensor) -> Tensor:
        """Rows [..., C]."""
        value, gate = self.wide(rows).chunk(2, -1)
        out: Tensor = self.out(value * functional.gelu(gate))
        return out


class TextBlock(torch.nn.Module):
    """A transformer block that reads a text, added to the input: attention, attention to tokens, a gated unit.

    Args:
        space: Where it computes.
        channels: Of the input.
        inner: Channels inside.
        heads: Of both attentions.
        text_channels: Of tokens.
        attention: Whether voxels attend to each other, too.
        groups: Of the first norm.
        eps: Of the first norm.
    """

    def __init__(
        self,
        space: Space,
        channels: int,
        inner: int,
        heads: int,
        text_channels: int,
        *,
        attention: bool,
        groups: int,
        eps: float,
    ) -> None:
        super().__init__()
        self.space = space
        self.norm = group_norm(space, channels, groups, eps)
        self.enter = torch.nn.Linear(channels, inner)
        if attention:
            self.norm1: torch.nn.Module | None = torch.nn.LayerNorm(inner)
            self.voxels: torch.nn.Module | None = Attention(space, inner, heads)
        else:
            self.norm1 = self.voxels = None
        self.norm2, self.text = torch.nn.LayerNorm(inner), Attention(space, inner, heads, text_channels)
        self.norm3, self.gate = torch.nn.LayerNorm(inner), FeedForward(inner)
        self.proj = zeroed(torch.nn.Linear(inner, channels))

    def forward(self, x: Field, context: Context) -> Field:
        """A field of the same channels."""
        rows = self.enter(self.space.rows(self.norm(x)))
        if self.voxels is not None and self.norm1 is not None:
            rows = rows + self.voxels(self.norm1(rows), x, None)
        rows = rows + self.text(self.norm2(rows), x, context)
        rows = rows + self.gate(self.norm3(rows))
        return x + self.space.replace(x, self.proj(rows))
