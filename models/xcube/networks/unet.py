"""The denoiser (section 3.3 of the paper): a U-Net on the voxels of a latent grid, or on the volume of a full box.

M latent voxels, L latent channels, B grids.
"""

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sparsevox import SparseTensor
from sparsevox.io.voxelize import normalized
from xcube.networks.blocks import at_least_float32, centers, checkpointed, embed_position
from xcube.networks.conditions import Conditions
from xcube.networks.configs import UNetConfig
from xcube.networks.space import Context, Dense, Field, Space, Sparse
from xcube.networks.unet_blocks import SelfAttention, TextBlock, TimedResBlock, embed_time, group_norm


class Step(torch.nn.Module):
    """A residual block, then attention of some kind, then the way up to the next level, where there are such."""

    def __init__(
        self, block: TimedResBlock, mixer: torch.nn.Module | None = None, lift: torch.nn.Module | None = None
    ) -> None:
        super().__init__()
        self.block, self.mixer, self.lift = block, mixer, lift

    def forward(self, x: Field, time: Tensor, context: Context | None, like: Field | None = None) -> Field:
        """A field; `like` is one of the level to go up to."""
        x = self.block(x, time)
        if self.mixer is not None:
            x = self.mixer(x, context)
        return x if self.lift is None else self.lift(x, time, like)


class Down(torch.nn.Module):
    """To the next level without a block."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space = space

    def forward(self, x: Field, time: Tensor, context: Context | None) -> Field:
        """Means over blocks of voxels."""
        return self.space.down(x)


class Up(torch.nn.Module):
    """Back from the next level without a block."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space = space

    def forward(self, x: Field, time: Tensor, like: Field) -> Field:
        """Features of the parents of the voxels of `like`."""
        return self.space.up(x, like)


class Middle(torch.nn.Module):
    """Block, attention, block, at the last level."""

    def __init__(self, first: TimedResBlock, mixer: torch.nn.Module, second: TimedResBlock) -> None:
        super().__init__()
        self.first, self.mixer, self.second = first, mixer, second

    def forward(self, x: Field, time: Tensor, context: Context | None) -> Field:
        """A field of the same channels."""
        return self.second(self.mixer(self.first(x, time), context), time)


class Out(torch.nn.Module):
    """GroupNorm, SiLU, and a convolution that begins at zero."""

    def __init__(self, space: Space, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.space = space
        self.norm = group_norm(space, in_channels, groups)
        self.conv = space.conv(in_channels, out_channels)
        for parameter in self.conv.parameters():
            torch.nn.init.zeros_(parameter)

    def forward(self, x: Field) -> Field:
        """A field of `out_channels`."""
        return self.conv(self.space.map(self.norm(x), functional.silu))


class UNet(torch.nn.Module):
    """Predicts noise, velocity or flow from noisy latents, their time and the conditions."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.space: Space = Dense() if config.dense else Sparse(config.pool)
        widths, embedded = config.widths, 4 * config.channels
        self.time = torch.nn.Sequential(
            torch.nn.Linear(config.channels, embedded), torch.nn.SiLU(), torch.nn.Linear(embedded, embedded)
        )
        self.category = torch.nn.Embedding(config.categories, embedded) if config.categories else None
        self.label = torch.nn.Embedding(config.num_labels, config.label_dim) if config.num_labels else None
        self.enter = self.space.conv(config.inputs, config.channels)
        # The release hands over whatever the way down gives, also the first convolution and the blocks between levels.
        self.all_skips = config.resample == "block"
        self.encoder, width = torch.nn.ModuleList(), config.channels
        skips = [width] if self.all_skips else []
        for level, wide in enumerate(widths):
            for _ in range(config.blocks):
                self.encoder.append(Step(self._block(width, wide), self._mixer(level, wide)))
                skips.append(width := wide)
            if level < len(widths) - 1 and self.all_skips:
                self.encoder.append(Step(self._block(wide, wide, "down")))
                skips.append(wide)
            elif level < len(widths) - 1:
                self.encoder.append(Down(self.space))
        middle = self._attention(width, width, attention=True)
        self.middle = Middle(self._block(width, width), middle, self._block(width, width))
        self.decoder = torch.nn.ModuleList()
        for level, wide in reversed(list(enumerate(widths))):
            for left in reversed(range(config.blocks + self.all_skips)):
                block = self._block(width + skips.pop(), wide)
                lift = self._lift(wide) if level and not left else None
                inner = widths[-1] if config.inner == "last" else wide
                self.decoder.append(Step(block, self._mixer(level, inner, wide), lift))
                width = wide
        self.out = Out(self.space, width, config.latent_channels, config.groups)

    def forward(self, x: SparseTensor, t: Tensor | float, conditions: Conditions | None = None) -> SparseTensor:
        """A prediction [M, L].

        Args:
            x: Noisy latents [M, L]. With `config.dense`, on full boxes whose edges can be halved at every level.
            t: Time of each grid, [B], or of all of them: from 0, without noise, to 1000.
            conditions: Those that the network takes.

        Raises:
            ValueError: If shapes do not fit, or conditions are missing or more than the network takes.
        """
        config, conditions = self.config, Conditions() if conditions is None else conditions
        if x.channels != config.latent_channels:
            raise ValueError(f"x must have {config.latent_channels} channels, got {x.channels}")
        conditions.check(x.grid, config)
        time = self._time(x, t, conditions)
        text = conditions.text
        context = None if text is None else self.space.context(text.tokens.to(time.dtype), text.mask)
        field = self.space.from_sparse(x.replace(torch.cat(list(self._inputs(x, conditions)), 1)))
        if config.dense:
            self._check_box(field)
        result = self.space.to_sparse(self._unet(field, time, context), x)
        return result.map(at_least_float32)

    def _unet(self, x: Field, time: Tensor, context: Context | None) -> Field:
        active = self.config.checkpointing
        x = self.enter(x)
        skips = [x] if self.all_skips else []
        for step in self.encoder:
            x = checkpointed(partial(step, time=time, context=context), x, active)
            if self.all_skips or isinstance(step, Step):
                skips.append(x)
        x = checkpointed(partial(self.middle, time=time, context=context), x, active)
        for step in self.decoder:
            skip = skips.pop()
            x = self.space.cat(skip, x) if self.config.skip_first else self.space.cat(x, skip)
            like = skips[-1] if skips else None
            x = checkpointed(partial(step, time=time, context=context, like=like), x, active)
        return self.out(x)

    def _time(self, x: SparseTensor, t: Tensor | float, conditions: Conditions) -> Tensor:
        """The activated embedding of time and category, [B, E]."""
        first = self.time[0]
        assert isinstance(first, torch.nn.Linear)
        time = torch.as_tensor(t, device=x.device).to(first.weight.dtype)
        if time.ndim == 0:
            time = time.expand(x.batch_size)
        if time.shape != (x.batch_size,):
            raise ValueError(f"t must have one entry, or one for each of {x.batch_size} grids, got {list(time.shape)}")
        embedded = self.time(embed_time(time, self.config.channels))
        if self.category is not None and conditions.category is not None:
            embedded = embedded + embedding_or_zero(self.category, conditions.category)
        return functional.silu(embedded)

    def _inputs(self, x: SparseTensor, conditions: Conditions) -> Iterator[Tensor]:
        """What goes into the first convolution: latents, position, label, what else is known, normal."""
        dtype, position = x.dtype, self.config.position
        yield x.feats
        if position == "ijk":
            yield x.grid.ijk.to(dtype)
        elif position == "embedded":
            yield embed_position(x.grid.ijk.to(dtype))
        elif position == "world":
            yield embed_position(centers(x.grid, dtype))
        if self.label is not None and conditions.label is not None:
            yield embedding_or_zero(self.label, conditions.label).to(dtype)
        if conditions.extra is not None:
            yield conditions.extra.to(dtype)
        if conditions.normal is not None:
            yield normalized(conditions.normal.to(dtype))

    def _check_box(self, field: Tensor) -> None:
        unit = 1 << (len(self.config.multipliers) - 1)
        if any(edge % unit for edge in field.shape[2:]):
            raise ValueError(f"the edges of a box must be multiples of {unit}, got {list(field.shape[2:])}")

    def _block(
        self, in_channels: int, out_channels: int, resample: Literal["down", "up"] | None = None
    ) -> TimedResBlock:
        config = self.config
        return TimedResBlock(self.space, in_channels, out_channels, 4 * config.channels, config.groups, resample)

    def _lift(self, width: int) -> torch.nn.Module:
        return self._block(width, width, "up") if self.all_skips else Up(self.space)

    def _mixer(self, level: int, inner: int, width: int | None = None) -> torch.nn.Module | None:
        """What connects the voxels of a level, if anything does."""
        config = self.config
        attention = 1 << level in config.attention
        if not attention and not (config.text_channels and config.text_everywhere):
            return None
        return self._attention(inner if width is None else width, inner, attention=attention)

    def _attention(self, width: int, inner: int, *, attention: bool) -> torch.nn.Module:
        config = self.config
        if not config.text_channels:
            return SelfAttention(self.space, width, config.heads, config.groups)
        return TextBlock(
            self.space,
            width,
            inner,
            config.heads,
            config.text_channels,
            attention=attention,
            groups=config.groups,
            eps=config.text_eps,
        )


def embedding_or_zero(table: torch.nn.Embedding, numbers: Tensor) -> Tensor:
    """Rows of a table, zero where the number is -1."""
    some = numbers >= 0
    found: Tensor = table(numbers.clamp(min=0).long())
    return torch.where(some[:, None], found, 0)
