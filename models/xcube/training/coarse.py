"""Coarse voxels with the errors of a cascade, for shapes whose finer voxels are known."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from sparsevox import Voxels
from xcube.diffusion.objective import Diffusion, DiffusionConfig
from xcube.diffusion.samplers import SamplerConfig, check_sampler, sample_latents
from xcube.networks.conditions import OF_VOXELS, Conditions
from xcube.networks.decoder import tidy
from xcube.networks.losses import true_attributes
from xcube.networks.pretrained import WEIGHTS, digest, from_pretrained, read_config
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE


@dataclass(frozen=True)
class TrainedDenoiser:
    """A denoiser with what its folder says of its training.

    net: The denoiser.
    scale: Factor from the latents of the VAE to those of the denoiser.
    diffusion: Its training objective.
    sampler: Its default sampler.
    categories: Names of its categories, in order.
    words: Words of captions that it knows, in order.
    """

    net: UNet
    scale: float
    diffusion: DiffusionConfig
    sampler: SamplerConfig
    categories: tuple[str, ...]
    words: tuple[str, ...] = ()

    @classmethod
    def from_pretrained(cls, folder: Path, vae: Path, name: str) -> Self:
        """Load a denoiser that was trained on the latents of a VAE.

        Args:
            folder: Folder of the denoiser.
            vae: Folder of the VAE.
            name: Name of the denoiser in error messages.

        Raises:
            FileNotFoundError: If there is no such network.
            ValueError: If a file is damaged, the denoiser was trained with another VAE, or takes categories whose names
                are not recorded, a text or other features.
        """
        net, metadata = from_pretrained(folder, UNet), read_config(folder)["metadata"]
        options = metadata.get("options", {})
        try:
            made = cls(
                net,
                float(metadata["latent_scale"]),
                DiffusionConfig.from_dict(metadata["diffusion"]),
                SamplerConfig.from_dict(metadata.get("sampler", {})),
                tuple(options.get("categories", ())),
                tuple(options.get("words", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder} must have latent_scale and diffusion in its metadata: {error!r}") from error
        if options.get("vae") not in (None, digest(vae / WEIGHTS)):
            raise ValueError(f"{name} must be trained with the VAE {vae}, got {folder}, a run with another VAE")
        if unknown := [each for each in ("text", "extra") if each in net.config.conditions]:
            raise ValueError(f"{name} must take no {unknown[0]}, which the shapes do not have, got {folder}")
        if len(made.categories) != net.config.categories:
            count = len(made.categories)
            raise ValueError(f"{name} must have names for its {net.config.categories} categories, got {count}")
        return made


class CoarseLevel(torch.nn.Module):
    """The trained networks of a level, which change voxels of that level as sampling would. They do not learn.

    Args:
        vae: The VAE.
        denoiser: The denoiser of its latents.
        steps: Number of sampling steps from pure noise. There is no guidance.

    Raises:
        ValueError: If the networks do not fit each other, or the denoiser was not trained at the times of the steps.
    """

    def __init__(self, vae: VAE, denoiser: TrainedDenoiser, steps: int) -> None:
        super().__init__()
        is_flow = denoiser.diffusion.prediction == "flow"
        self.sampler = SamplerConfig("flow", steps) if is_flow else SamplerConfig("ddim", steps, spacing="trailing")
        check_sampler(self.sampler, denoiser.diffusion)
        check_latents(vae, denoiser.net, "coarse_denoiser")
        self.vae, self.denoiser, self.scale = vae, denoiser.net, denoiser.scale
        self.diffusion = Diffusion(denoiser.diffusion)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    @torch.no_grad()
    def regenerated(
        self, voxels: Voxels, strength: float, generator: torch.Generator, category: Tensor | None = None
    ) -> Voxels:
        """Encode voxels of this level, vary their latents by SDEdit (arXiv:2108.01073), and decode them.

        Args:
            voxels: Voxels of this level with the attributes that the VAE takes.
            strength: Fraction of the sampling steps that vary the latents, from 0 to 1; at 0, only the VAE changes
                the voxels.
            generator: Source of all noise.
            category: Category of each shape, int64 [B], if the denoiser takes one.

        Returns:
            The changed voxels with the attributes that the VAE decodes, as sampling without refiner and guidance would
            pass them to the next level.
        """
        # 1. Scaled latents of the posterior, and the conditions of the denoiser on their grid.
        posterior = self.vae.encode(voxels)
        draw = torch.randn(posterior.mean.shape, generator=generator).to(voxels.device)
        latents = posterior.sample(draw).map(lambda z: z * self.scale)
        wanted = {name for name in OF_VOXELS if name in self.denoiser.config.conditions}
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
        return tidy(self.vae.decode(latents.map(lambda z: z / self.scale), generated=True).voxels)


def check_latents(vae: VAE, denoiser: UNet, name: str) -> None:
    """Raise ValueError unless a denoiser takes the latents of a VAE."""
    theirs, ours = vae.config, denoiser.config
    if ours.latent_channels != theirs.latent_channels:
        raise ValueError(
            f"{name} must have the latent_channels of its VAE, {theirs.latent_channels}, got {ours.latent_channels}"
        )
    if ours.dense and theirs.dense_neck is None:
        raise ValueError(f"{name} must not be dense: the latents of a VAE without dense_neck fill no box")
