"""A cascade of two levels with random networks, as training leaves it, and true voxels of both levels."""

from pathlib import Path
from typing import Any

import torch

from sparsevox import Voxels
from tests.xcube.balls import SIDE, ball
from tests.xcube.cascades import halved, random
from xcube.diffusion.objective import DiffusionConfig
from xcube.diffusion.samplers import SamplerConfig
from xcube.networks.configs import UNetConfig, VAEConfig
from xcube.networks.losses import LossConfig, true_attributes
from xcube.networks.pretrained import from_pretrained, save_pretrained
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.training.coarse import CoarseLevel, TrainedDenoiser
from xcube.training.latents import SHAPE_INDEX

FINE = VAEConfig(voxel_size=1 / SIDE, channels=(8, 8), latent_channels=2, hidden=4, solid=True)
COARSE = VAEConfig(
    voxel_size=2 / SIDE, channels=(8, 8), latent_channels=2, hidden=4, dense_neck=(2, 2, 2), fill=True, solid=True
)
SMALL: dict[str, Any] = {"latent_channels": 2, "channels": 8, "multipliers": (1,), "attention": (), "heads": 2}
NET = UNetConfig(**SMALL, position="ijk", normal=True, fill=True)
BOX = UNetConfig(**SMALL, dense=True, categories=2)
FLOW, ONCE = DiffusionConfig("flow"), SamplerConfig("ddim", 1, spacing="trailing")
LOSS = LossConfig(structure=1.0, solid=1.0, normal=0.3)


def save_networks(folder: Path) -> Path:
    """A cascade with random networks, as runs leave them."""
    for name, config in (("vae-0", COARSE), ("vae-1", FINE)):
        torch.manual_seed(0)
        save_pretrained(halved(random(VAE(config), 1), 0.5), folder / name, latent_scale=2.0)
    options = {"categories": ["small", "large"], "dropped": ["category"]}
    flow: dict[str, Any] = {
        "diffusion": FLOW.to_dict(),
        "sampler": SamplerConfig("flow", 4).to_dict(),
        "options": options,
    }
    once: dict[str, Any] = {"diffusion": DiffusionConfig(first=900).to_dict(), "sampler": ONCE.to_dict()}
    for name, network, metadata in (("denoiser-0", BOX, flow), ("denoiser-1", NET, once)):
        torch.manual_seed(0)
        save_pretrained(UNet(network), folder / name, latent_scale=2.0, **metadata)
    return folder


def trained(networks: Path, level: int) -> TrainedDenoiser:
    return TrainedDenoiser.from_pretrained(networks / f"denoiser-{level}", networks / f"vae-{level}", "denoiser")


def coarse_of(networks: Path, steps: int = 10) -> CoarseLevel:
    return CoarseLevel(from_pretrained(networks / "vae-0", VAE), trained(networks, 0), steps)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shapes() -> Voxels:
    voxels = Voxels.stack([ball(3.0), ball(4.0)])
    return voxels.with_attributes(**{SHAPE_INDEX: voxels.grid.batch.int()})


def true_coarse(networks: Path) -> Voxels:
    voxels, vae = shapes(), from_pretrained(networks / "vae-1", VAE)
    grid = vae.latent_grid(voxels.grid)
    return Voxels(grid, true_attributes(voxels, grid, {"normal", "fill"}))
