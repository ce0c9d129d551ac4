"""The denoiser (section 3.3 of the paper): a U-Net on the voxels of a latent grid, or on the volume of a full box.

M latent voxels, L latent channels, B grids, E channels of the embedded time.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from sparsevox import SparseTensor
from sparsevox.io.voxelize import normalized
from xcube.networks.blocks import at_least_float32, centers, checkpointed, embed_position
from xcube.networks.conditions import Conditions
from xcube.networks.configs import UNetConfig
from xcube.networks.official import OfficialUNetLayers
from xcube.networks.unet_blocks import MiddleBlock, OutputLayer, ResAttention, UNetLayers, embed_time
from xcube.networks.words import WordEncoder


class UNet(torch.nn.Module):
    """The denoiser: a U-Net that predicts noise, velocity or flow from noisy latents, their time and conditions."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        layers = OfficialUNetLayers(config) if config.architecture == "official" else UNetLayers(config)
        self.space, self.skips_input, self.skip_first = layers.space, layers.skips_input, layers.skip_first
        channels, widths, embedded = config.channels, config.widths, layers.time_channels
        self.time = torch.nn.Sequential(
            torch.nn.Linear(channels, embedded), torch.nn.SiLU(), torch.nn.Linear(embedded, embedded)
        )
        self.category = torch.nn.Embedding(config.categories, embedded) if config.categories else None
        guessed = config.box * config.latent_channels
        self.words = WordEncoder(config.words, embedded, guessed) if config.words else None
        self.label = torch.nn.Embedding(config.num_labels, config.label_dim) if config.num_labels else None
        self.enter = self.space.conv(config.in_channels, channels)

        # The way down. The output of every ResAttention is a skip connection to its resolution on the way up.
        self.encoder, width = torch.nn.ModuleList(), channels
        skips: list[list[int]] = [[] for _ in widths]  # the channels of the skip connections of each resolution
        if self.skips_input:
            skips[0].append(channels)
        for resolution, wide in enumerate(widths):
            if resolution:
                self.encoder.append(layers.downsample(width))
                if isinstance(self.encoder[-1], ResAttention):
                    skips[resolution].append(width)
            for _ in range(config.blocks):
                self.encoder.append(ResAttention(layers.res_block(width, wide), layers.mixer(resolution, wide)))
                skips[resolution].append(width := wide)

        attention = layers.attention(width)
        self.middle = MiddleBlock(layers.res_block(width, width), attention, layers.res_block(width, width))

        # The way up. The last block of each resolution but the finest leads to the next finer one.
        self.decoder = torch.nn.ModuleList()
        for resolution, wide in reversed(list(enumerate(widths))):
            while skips[resolution]:
                block = layers.res_block(width + skips[resolution].pop(), wide)
                lift = layers.upsample(wide) if resolution and not skips[resolution] else None
                self.decoder.append(ResAttention(block, layers.mixer(resolution, wide, up=True), lift))
                width = wide
        self.out = OutputLayer(self.space, width, config.latent_channels, config.groups)

    def forward(self, x: SparseTensor, t: Tensor | float, conditions: Conditions | None = None) -> SparseTensor:
        """Predict [M, L] from noisy latents.

        Args:
            x: Noisy latents [M, L]. With `config.dense`, on full boxes whose edges can be halved between resolutions.
            t: Time of each grid, [B], or one for all of them: from 0, without noise, to 1000.
            conditions: The conditions that the network takes, `config.conditions`.

        Raises:
            ValueError: If shapes do not fit, or the conditions are not exactly those that the network takes.
        """
        config, active = self.config, self.config.checkpointing
        conditions = Conditions() if conditions is None else conditions
        if x.channels != config.latent_channels:
            raise ValueError(f"x must have {config.latent_channels} channels, got {x.channels}")
        conditions.check(x.grid, config)

        # 1. Inputs of all layers: the embedding of time, category and caption [B, E], and the text.
        caption = guess = None
        if self.words is not None and conditions.words is not None:
            caption, guess = self.words(conditions.words)
        time = self._embed_time(x, t, conditions, caption)
        text = conditions.text
        context = None if text is None else self.space.context(text.tokens.to(time.dtype), text.mask)

        # 2. Latents and the conditions on their voxels to features.
        inputs = x.replace(torch.cat(list(self._inputs(x, conditions, guess)), 1))  # [M, in_channels]
        y = self.space.from_sparse(inputs)
        if config.dense:
            self._check_box(y)
        y = self.enter(y)

        # 3. Down, resolution by resolution.
        skips = [y] if self.skips_input else []
        for layer in self.encoder:
            y = checkpointed(partial(layer, time=time, context=context), y, active)
            if isinstance(layer, ResAttention):
                skips.append(y)

        # 4. The coarsest resolution.
        y = checkpointed(partial(self.middle, time=time, context=context), y, active)

        # 5. Up, with the skip connections. The next one tells which voxels the next finer resolution has.
        for layer in self.decoder:
            skip = skips.pop()
            y = self.space.cat(skip, y) if self.skip_first else self.space.cat(y, skip)
            like = skips[-1] if skips else None
            y = checkpointed(partial(layer, time=time, context=context, like=like), y, active)

        # 6. The prediction.
        return self.space.to_sparse(self.out(y), x).map(at_least_float32)

    def _embed_time(self, x: SparseTensor, t: Tensor | float, conditions: Conditions, caption: Tensor | None) -> Tensor:
        """Embed time, category and caption, with the activation that all residual blocks share: [B, E]."""
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
        if caption is not None:
            embedded = embedded + caption
        return functional.silu(embedded)

    def _inputs(self, x: SparseTensor, conditions: Conditions, guess: Tensor | None) -> Iterator[Tensor]:
        """Yield the inputs of the first convolution: latents, position, conditions of voxels, guessed latents."""
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
        if conditions.fill is not None:  # [M, 2]: the fraction, and whether it is known
            known = conditions.fill >= 0
            yield torch.stack([torch.where(known, conditions.fill, 0), known], 1).to(dtype)
        if conditions.normal is not None:
            yield normalized(conditions.normal.to(dtype))
        if conditions.color is not None:
            yield conditions.color.to(dtype)
        if conditions.observed is not None:
            yield conditions.observed.to(dtype)
        if guess is not None:  # all grids fill the same box, so their rows have the same order
            yield guess.reshape(-1, self.config.latent_channels).to(dtype)

    def _check_box(self, volume: Tensor) -> None:
        unit = 1 << (len(self.config.multipliers) - 1)
        if any(edge % unit for edge in volume.shape[2:]):
            raise ValueError(f"the edges of a box must be multiples of {unit}, got {list(volume.shape[2:])}")


def embedding_or_zero(table: torch.nn.Embedding, indices: Tensor) -> Tensor:
    """Look up rows of an embedding; the index -1 gives zeros."""
    known = indices >= 0
    found: Tensor = table(indices.clamp(min=0).long())
    return torch.where(known[:, None], found, 0)
