"""Coarse voxels as a cascade generates them, with its errors, for shapes whose finer voxels are known."""

from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from sparsevox import Voxels
from xcube.diffusion.objective import Diffusion, DiffusionConfig
from xcube.diffusion.samplers import SamplerConfig, sample_latents
from xcube.networks.conditions import Conditions
from xcube.networks.decoder import tidy
from xcube.networks.losses import true_attributes
from xcube.networks.pretrained import from_pretrained, read_config
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE


class CoarseLevel(torch.nn.Module):
    """The trained networks of a level, which change the voxels of that level as sampling would. They do not learn.

    categories: Names of the categories of the denoiser, in order.

    Args:
        vae: The VAE.
        denoiser: The denoiser of its latents.
        scale: Factor from the latents of the VAE to those of the denoiser.
        diffusion: Training objective of the denoiser.
        sampler: Sampler of its latents.
        categories: Names of the categories of the denoiser, in order.
    """

    def __init__(
        self,
        vae: VAE,
        denoiser: UNet,
        *,
        scale: float,
        diffusion: DiffusionConfig,
        sampler: SamplerConfig,
        categories: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.vae, self.denoiser = vae, denoiser
        self.scale, self.diffusion, self.sampler, self.categories = scale, Diffusion(diffusion), sampler, categories
        self.requires_grad_(False).eval()

    @classmethod
    def from_pretrained(cls, vae: Path, denoiser: Path, steps: int) -> Self:
        """Load the networks of a level from their folders, with a sampler without guidance that takes `steps` steps.

        Raises:
            FileNotFoundError: If there are no such networks.
            ValueError: If a file is damaged, the denoiser takes a text or other features, or `steps` is out of range.
        """
        network, metadata = from_pretrained(denoiser, UNet), read_config(denoiser)["metadata"]
        unknown = [name for name in ("text", "extra") if name in network.config.conditions]
        if unknown:
            raise ValueError(f"coarse_denoiser must take no {unknown[0]}, which the shapes do not have, got {denoiser}")
        diffusion = DiffusionConfig.from_dict(metadata["diffusion"])
        is_flow = diffusion.prediction == "flow"
        sampler = SamplerConfig("flow", steps) if is_flow else SamplerConfig("ddim", steps, spacing="trailing")
        categories = tuple(metadata.get("options", {}).get("categories", ()))
        return cls(
            from_pretrained(vae, VAE),
            network,
            scale=float(metadata["latent_scale"]),
            diffusion=diffusion,
            sampler=sampler,
            categories=categories,
        )

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    @torch.no_grad()
    def regenerated(
        self, voxels: Voxels, strength: float, generator: torch.Generator, category: Tensor | None = None
    ) -> Voxels:
        """Encode the voxels of this level, vary their latents, and decode them: SDEdit (arXiv:2108.01073).

        Args:
            voxels: Voxels of this level with the attributes that the VAE takes.
            strength: Fraction of the sampling steps that vary the latents, from 0 to 1; at 0, only the VAE changes
                the voxels.
            generator: Source of all noise.
            category: Category of each shape, int64 [B], if the denoiser takes one.

        Returns:
            The changed voxels with the attributes that the VAE decodes, as sampling gives them to the next level.
        """
        # 1. Scaled latents of the posterior, and the conditions of the denoiser on their grid.
        posterior = self.vae.encode(voxels)
        draw = torch.randn(posterior.mean.shape, generator=generator).to(voxels.device)
        latents = posterior.sample(draw).map(lambda z: z * self.scale)
        wanted = {name for name in ("normal", "fill", "label") if name in self.denoiser.config.conditions}
        known = Voxels(latents.grid, true_attributes(voxels, latents.grid, wanted))
        category = category if self.denoiser.config.categories else None
        # 2. Noise, and the last steps of the sampler.
        latents = sample_latents(
            self.denoiser,
            latents.grid,
            latents.channels,
            lambda grid, channels: torch.randn(grid.num_voxels, channels, generator=generator).to(grid.device),
            diffusion=self.diffusion,
            sampler=self.sampler,
            conditions=Conditions.from_voxels(known, self.denoiser.config, category=category),
            start=latents,
            strength=strength,
        )
        # 3. Decode, as in sampling.
        return tidy(self.vae.decode(latents.map(lambda z: z / self.scale)).voxels)
