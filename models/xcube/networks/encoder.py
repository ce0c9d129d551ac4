"""The encoder of the VAE: from voxels with attributes to the posterior of a latent vector per coarse voxel.

N voxels at resolution 0, M latent voxels, L latent channels, D resolutions, C channels.
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

import sparsevox as sv
from sparsevox import Grid, SparseTensor, Voxels
from sparsevox.io.voxelize import normalized
from xcube.geometry.pyramid import pooling_tree
from xcube.networks.blocks import ResBlock, at_least_float32, centers, checkpointed, embed_position
from xcube.networks.configs import Triple, VAEConfig


@dataclass(frozen=True)
class Posterior:
    """The distribution of the latents: a normal distribution with mean and log-variance [M, L]."""

    grid: Grid
    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor | None = None) -> SparseTensor:
        """Draw latents, `mean + exp(logvar / 2) * noise`, where `noise` [M, L] is standard normal by default."""
        noise = torch.randn_like(self.mean) if noise is None else noise
        return SparseTensor(self.grid, self.mean + torch.exp(0.5 * self.logvar) * noise)

    def mode(self) -> SparseTensor:
        """Return the most likely latents, which are the mean."""
        return SparseTensor(self.grid, self.mean)


class Featurizer(torch.nn.Module):
    """The input features of a voxel: position, normal, embedded label, intensity, color and fill, through a linear map.

    Raises:
        KeyError: If the voxels lack an attribute that the model takes.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        channels = 33 + 3 * config.normal + config.intensity + 3 * config.color + config.fill
        if config.num_labels:
            self.label = torch.nn.Embedding(config.num_labels, config.label_dim)
            channels += config.label_dim
        self.mix = torch.nn.Linear(channels, config.hidden)

    def forward(self, voxels: Voxels) -> SparseTensor:
        """Compute features [N, hidden]."""
        wanted, given = self.config.attributes, voxels.attributes
        missing = [name for name in wanted if name not in given]
        if missing:
            raise KeyError(f"the model needs the attributes {list(wanted)}, got voxels without {missing}")
        dtype = self.mix.weight.dtype
        parts = [embed_position(centers(voxels.grid, dtype))]  # [N, 33]
        if "normal" in wanted:
            parts.append(normalized(given["normal"].to(dtype)))
        if "label" in wanted:
            parts.append(self.label(given["label"].long()))
        for name, channels in (("intensity", 1), ("color", 3), ("fill", 1)):
            if name in wanted:
                parts.append(given[name].to(dtype).reshape(voxels.num_voxels, channels))
        return SparseTensor(voxels.grid, self.mix(torch.cat(parts, 1)))


class DownBlock(torch.nn.Module):
    """One resolution of the encoder: downsampling from the finer resolution, except at resolution 0, and a block."""

    def __init__(self, pool: torch.nn.Module | None, block: torch.nn.Module) -> None:
        super().__init__()
        self.pool, self.block = pool, block

    def forward(self, x: SparseTensor, grid: Grid) -> SparseTensor:
        """Compute features [M, C] on `grid`, the grid of this resolution."""
        y: SparseTensor = self.block(x if self.pool is None else self.pool(x, grid=grid))
        return y


class Encoder(torch.nn.Module):
    """From voxels to the posterior of the latents."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        top = config.channels[-1]
        self.featurizer = Featurizer(config)
        self.enter = sv.nn.Linear(config.hidden, config.hidden)
        widths = pairwise((config.hidden, *config.channels))
        strides = (None, *config.all_strides)
        self.stages = torch.nn.ModuleList(self.down_block(a, b, s) for (a, b), s in zip(widths, strides, strict=True))
        self.neck = self.block(top, top)
        self.attention = sv.nn.Attention(top) if config.attention else None
        self.out = self.posterior_layer(top)

    def forward(self, voxels: Voxels) -> Posterior:
        """Compute the posterior on the latent grid, or on the box of a dense neck."""
        config = self.config
        # 1. The grid of each resolution, finest first.
        grids = pooling_tree(voxels.grid, config.all_strides, config.dilation)
        # 2. Attributes to features, resolution by resolution down to the latent grid.
        x = self.enter(self.featurizer(voxels))
        for stage, grid in zip(self.stages, grids, strict=True):
            x = checkpointed(partial(stage, grid=grid), x, config.checkpointing)
        # 3. The neck, on all voxels of a box if the latents are dense.
        if config.dense_neck is not None:
            x = x.to_grid(dense_box(x.grid, config.dense_neck))
        x = self.neck(x)
        if self.attention is not None:
            x = x + self.attention(x)
        # 4. The posterior.
        x = self.out(x)  # [M, 2 L]
        mean, logvar = at_least_float32(x.feats).chunk(2, 1)
        return Posterior(x.grid, mean.contiguous(), logvar.contiguous())

    # The layers of the modern architecture, which those of `official.OfficialEncoder` override.

    def block(self, in_channels: int, out_channels: int) -> torch.nn.Module:
        """Make a block that keeps the grid."""
        return ResBlock(in_channels, out_channels)

    def down_block(self, in_channels: int, out_channels: int, stride: Triple | None) -> DownBlock:
        """Make the layers of one resolution; `stride` is the factor from the finer resolution, None at resolution 0."""
        if stride is None:
            return DownBlock(None, ResBlock(in_channels, out_channels))
        pool = sv.nn.Conv3d(in_channels, out_channels, stride, stride=stride, padding=0)
        return DownBlock(pool, ResBlock(out_channels, out_channels))

    def posterior_layer(self, in_channels: int) -> torch.nn.Module:
        """Make the layer that gives mean and log-variance, [M, 2 L]."""
        latent = self.config.latent_channels
        linear = sv.nn.Linear(in_channels, 2 * latent)
        with torch.no_grad():
            linear.bias[latent:].fill_(self.config.logvar_init)
        return linear


def dense_box(grid: Grid, half: Triple) -> Grid:
    """The box of all voxels from -half to half, exclusive, for every grid of the batch."""
    return Grid.full(
        [-h for h in half],
        list(half),
        batch_size=grid.batch_size,
        voxel_size=grid.voxel_size,
        origin=grid.origin,
        device=grid.device,
    )
