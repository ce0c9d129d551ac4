"""The sparse structure VAE (section 3.2 of the paper): voxels with attributes to latents on a coarse grid, and back.

M latent voxels, L latent channels, D resolutions. Resolution 0 is the finest, D - 1 the latent one.
"""

import torch
from torch import Tensor

from sparsevox import Grid, SparseTensor, Voxels
from xcube.geometry.pyramid import check_voxels, pooling_tree, truth_tree
from xcube.networks.configs import VAEConfig
from xcube.networks.decoder import Decoded, Decoder
from xcube.networks.encoder import Encoder, Posterior, dense_box
from xcube.networks.official import OfficialDecoder, OfficialEncoder


class VAE(torch.nn.Module):
    """The sparse structure VAE: an encoder and a decoder, in the architecture that the configuration names."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        official = config.architecture == "official"
        self.encoder = OfficialEncoder(config) if official else Encoder(config)
        self.decoder = OfficialDecoder(config) if official else Decoder(config)

    def encode(self, voxels: Voxels) -> Posterior:
        """Compute the posterior of the latents.

        Raises:
            KeyError: If the voxels lack an attribute that the model takes.
            ValueError: If the voxel size of the voxels is not that of the model.
        """
        check_voxels(voxels.grid, self.config.voxel_sizes, "voxels")
        return self.encoder(voxels)

    def decode(self, latents: SparseTensor, truth: Grid | None = None, *, generated: bool = False) -> Decoded:
        """Decode latents [M, L] to voxels with attributes.

        Args:
            latents: Latents on a latent grid.
            truth: The ground-truth grid at resolution 0. In training it guides the decoder as `config.keep` says;
                otherwise it is ignored.
            generated: Whether the latents were generated and not encoded. Then bridges connect the parts of a shape,
                as `config.bridge` says.

        Raises:
            ValueError: If the channels or the voxel size of the latents are not those of the model.
        """
        if latents.channels != self.config.latent_channels:
            raise ValueError(f"latents must have {self.config.latent_channels} channels, got {latents.channels}")
        sizes = tuple(s * f for s, f in zip(self.config.voxel_sizes, self.config.factor, strict=True))
        check_voxels(latents.grid, sizes, "latents")
        truths = self.truth(truth) if truth is not None and self.training else None
        return self.decoder(latents, truths, generated)

    def forward(self, voxels: Voxels, noise: Tensor | None = None) -> tuple[Posterior, Decoded]:
        """Encode, draw latents with the noise [M, L], and decode. In training, the voxels guide the decoder."""
        posterior = self.encode(voxels)
        return posterior, self.decode(posterior.sample(noise), voxels.grid)

    def truth(self, grid: Grid) -> list[Grid]:
        """The grids that the decoder should predict for a grid at resolution 0: one per resolution, finest first."""
        return truth_tree(grid, self.config.all_strides, self.config.dilation)

    def latent_grid(self, grid: Grid) -> Grid:
        """The latent grid of a grid at resolution 0."""
        coarsest = pooling_tree(grid, self.config.all_strides, self.config.dilation)[-1]
        return coarsest if self.config.dense_neck is None else dense_box(coarsest, self.config.dense_neck)
