"""The sparse structure VAE (section 3.2 of the paper): voxels with attributes to a latent a coarse voxel, and back.

N voxels at depth 0, M latent voxels, L latent channels, D depths, B grids. Depth 0 is the finest, D - 1 the latent one.
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

import sparsevox as sv
from sparsevox import Grid, SparseTensor, Voxels
from sparsevox.io.voxelize import normalized
from xcube.geometry.pyramid import check_voxels, pooling_tree, truth_tree
from xcube.networks.blocks import at_least_float32, block, centers, checkpointed, embed_position
from xcube.networks.configs import Triple, VAEConfig
from xcube.networks.decoder import Decoded, Decoder


@dataclass(frozen=True)
class Posterior:
    """Mean and log-variance [M, L] of the latents."""

    grid: Grid
    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor | None = None) -> SparseTensor:
        """Latents: `mean + exp(logvar / 2) * noise`, with standard normal noise [M, L] unless it is given."""
        noise = torch.randn_like(self.mean) if noise is None else noise
        return SparseTensor(self.grid, self.mean + torch.exp(0.5 * self.logvar) * noise)

    def mode(self) -> SparseTensor:
        """The mean as latents."""
        return SparseTensor(self.grid, self.mean)


class Featurizer(torch.nn.Module):
    """What the encoder sees of a voxel: position, normal, embedded label, intensity, color; then a linear map.

    Raises:
        KeyError: If voxels lack an attribute.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        channels = 33 + 3 * config.normal + config.intensity + 3 * config.color
        if config.num_labels:
            self.label = torch.nn.Embedding(config.num_labels, config.label_dim)
            channels += config.label_dim
        self.mix = torch.nn.Linear(channels, config.hidden)

    def forward(self, voxels: Voxels) -> SparseTensor:
        """Features [N, hidden]."""
        config, attributes = self.config, voxels.attributes
        wanted = [
            n
            for n, w in zip(
                ("normal", "intensity", "color"), (config.normal, config.intensity, config.color), strict=True
            )
            if w
        ] + ["label"] * (config.num_labels > 0)
        missing = [name for name in wanted if name not in attributes]
        if missing:
            raise KeyError(f"the model needs the attributes {wanted}, got voxels without {missing}")
        dtype = self.mix.weight.dtype
        parts = [embed_position(centers(voxels.grid, dtype))]
        if config.normal:
            parts.append(normalized(attributes["normal"].to(dtype)))
        if config.num_labels:
            parts.append(self.label(attributes["label"].long()))
        for name, channels in (("intensity", 1), ("color", 3)):
            if name in wanted:
                parts.append(attributes[name].to(dtype).reshape(voxels.num_voxels, channels))
        return SparseTensor(voxels.grid, self.mix(torch.cat(parts, 1)))


class EncoderStage(torch.nn.Module):
    """One depth of the encoder: pooling from the depth below, unless it is the first, and a block."""

    def __init__(self, config: VAEConfig, in_channels: int, out_channels: int, stride: Triple | None) -> None:
        super().__init__()
        self.pool: torch.nn.Module | None = None
        entering = in_channels
        if stride is not None and config.pooling == "max":
            self.pool = sv.nn.MaxPool3d(stride)
        elif stride is not None:
            self.pool = sv.nn.Conv3d(in_channels, out_channels, stride, stride=stride, padding=0)
            entering = out_channels
        self.block = block(config.block, entering, out_channels, middle=max(in_channels, out_channels // 2))

    def forward(self, x: SparseTensor, grid: Grid) -> SparseTensor:
        """Features on `grid`."""
        y: SparseTensor = self.block(x if self.pool is None else self.pool(x, grid=grid))
        return y


class Encoder(torch.nn.Module):
    """From voxels to the posterior of the latents."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        top, latent = config.channels[-1], config.latent_channels
        self.featurizer = Featurizer(config)
        self.enter = sv.nn.Linear(config.hidden, config.hidden)
        widths = (config.hidden, *config.channels)
        strides = (None, *config.all_strides)
        self.stages = torch.nn.ModuleList(
            EncoderStage(config, a, b, s) for (a, b), s in zip(pairwise(widths), strides, strict=True)
        )
        self.neck = block(config.block, top, top)
        self.attention = sv.nn.Attention(top) if config.attention else None
        if config.bottleneck == "relu":
            self.out: torch.nn.Module = block("gcr", top, 2 * latent)
        else:
            linear = sv.nn.Linear(top, 2 * latent)
            with torch.no_grad():
                linear.bias[latent:].fill_(config.logvar_init)
            self.out = linear

    def forward(self, voxels: Voxels) -> Posterior:
        """Mean and log-variance on the latent grid, or on the box of a dense neck."""
        config = self.config
        tree = pooling_tree(voxels.grid, config.all_strides, config.dilation)
        x = self.enter(self.featurizer(voxels))
        for stage, grid in zip(self.stages, tree, strict=True):
            x = checkpointed(partial(stage, grid=grid), x, config.checkpointing)
        if config.dense_neck is not None:
            x = x.to_grid(dense_box(x.grid, config.dense_neck))
        x = self.neck(x)
        if self.attention is not None:
            x = x + self.attention(x)
        x = self.out(x)
        mean, logvar = at_least_float32(x.feats).chunk(2, 1)
        return Posterior(x.grid, mean.contiguous(), logvar.contiguous())


def dense_box(grid: Grid, half: Triple) -> Grid:
    """All voxels from -half to half, exclusive, in every item of the batch."""
    lower = [-h for h in half]
    return Grid.full(
        lower,
        list(half),
        batch_size=grid.batch_size,
        voxel_size=grid.voxel_size,
        origin=grid.origin,
        device=grid.device,
    )


class VAE(torch.nn.Module):
    """Encoder and decoder."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, voxels: Voxels) -> Posterior:
        """The posterior of the latents.

        Raises:
            KeyError: If voxels lack an attribute that the model takes.
            ValueError: If the voxels have another size than those of the model.
        """
        check_voxels(voxels.grid, self.config.voxel_sizes, "voxels")
        return self.encoder(voxels)

    def decode(self, latents: SparseTensor, truth: Grid | None = None) -> Decoded:
        """Voxels from latents [M, L].

        Args:
            latents: On a latent grid.
            truth: The grid that should come out. In training it may guide what exists, as `config.keep` says.

        Raises:
            ValueError: If channels or voxel sizes are not those of the model.
        """
        if latents.channels != self.config.latent_channels:
            raise ValueError(f"latents must have {self.config.latent_channels} channels, got {latents.channels}")
        sizes = tuple(s * f for s, f in zip(self.config.voxel_sizes, self.config.factor, strict=True))
        check_voxels(latents.grid, sizes, "latents")
        tree = None if truth is None else self.truth(truth)
        return self.decoder(latents, tree if self.training else None)

    def forward(self, voxels: Voxels, noise: Tensor | None = None) -> tuple[Posterior, Decoded]:
        """Posterior and what a sample of it decodes to."""
        posterior = self.encode(voxels)
        return posterior, self.decode(posterior.sample(noise), voxels.grid)

    def truth(self, grid: Grid) -> list[Grid]:
        """The grids that the decoder should predict for a finest grid, depth 0 to D - 1."""
        return truth_tree(grid, self.config.all_strides, self.config.dilation)

    def latent_grid(self, grid: Grid) -> Grid:
        """The latent grid of a finest grid."""
        coarsest = pooling_tree(grid, self.config.all_strides, self.config.dilation)[-1]
        return coarsest if self.config.dense_neck is None else dense_box(coarsest, self.config.dense_neck)
