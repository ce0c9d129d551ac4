"""Lightning module that fine-tunes a denoiser of one step through the decoder, on coarse voxels with errors.

M latent voxels, L latent channels, B grids.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparsevox import SparseTensor, Voxels
from xcube.data.augment import AugmentedShapes
from xcube.data.loading import ShapeFolder
from xcube.diffusion.objective import Diffusion, DiffusionConfig
from xcube.diffusion.samplers import SamplerConfig, Solver
from xcube.networks.conditions import NO_CLASS, Conditions
from xcube.networks.losses import LossConfig, Losses, true_attributes, vae_losses
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.training.coarse import CoarseLevel
from xcube.training.config import TrainConfig
from xcube.training.latents import SHAPE_INDEX, LatentDataset, first_value
from xcube.training.modules import FrozenVAEModule


class FinetuneModule(FrozenVAEModule):
    """Trains a denoiser of one step to make latents whose decoded voxels are right.

    In training on latents it learns their mean, which a decoder that has only seen latents of real shapes may decode
    to gaps; and it never sees the errors of the coarser level. Here the loss is that of the decoded voxels, and most of
    the coarse voxels are those that the coarser level makes of the true ones. Changing the condition like this is the
    conditioning augmentation of Ho et al. (2022, arXiv:2106.15282).

    Args:
        net: The denoiser, trained on latents.
        train: Optimization.
        vae: The VAE of the level.
        coarse: The networks of the coarser level.
        scale: Factor from the latents of the VAE to those of the denoiser.
        diffusion: Training objective of the denoiser, which says what it predicts.
        sampler: Sampler of the denoiser, of one step.
        loss: Weights of the losses of the decoded voxels.
        categories: Category of each shape for the splits "train" and "val", int64 [shapes]; None if their names tell
            none.
        exact: Fraction of the batches with exact coarse voxels.
        strength: Maximum fraction of the sampling steps of the coarser level that change the others.
        fill_drop: Fraction of the shapes without solid fractions, so that the denoiser can do without them.

    Raises:
        ValueError: If the sampler takes more than one step, the denoiser takes a condition that coarse voxels do not
            have, or a fraction is outside [0, 1].
    """

    net: UNet

    def __init__(
        self,
        net: UNet,
        train: TrainConfig,
        vae: VAE,
        coarse: CoarseLevel,
        *,
        scale: float,
        diffusion: DiffusionConfig,
        sampler: SamplerConfig,
        loss: LossConfig = LossConfig(),  # noqa: B008  (immutable)
        categories: Mapping[str, Tensor | None] | None = None,
        exact: float = 0.3,
        strength: float = 0.6,
        fill_drop: float = 0.1,
    ) -> None:
        if sampler.steps != 1:
            raise ValueError(f"denoiser must have a sampler of one step, got {sampler.steps}")
        fractions = {"exact": exact, "strength": strength, "fill_drop": fill_drop}
        for name, value in fractions.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        _check_conditions(net, coarse)
        options = {"loss": loss.to_dict(), "scale": scale, "coarse_steps": coarse.sampler.steps} | fractions
        super().__init__(net, train, vae, **options)
        self.coarse, self.loss, self.categories = coarse, loss, dict(categories or {})
        self.scale, self.diffusion, self.sampler = scale, Diffusion(diffusion), sampler
        self.exact, self.strength, self.fill_drop = exact, strength, fill_drop
        (self.time,) = Solver(sampler, diffusion).times

    def setup(self, stage: str) -> None:
        """Attach to each shape its index in the dataset, by which its category is found."""
        trainer: Any = self.trainer
        for split, most in (("train", None), ("val", self.config.val_shapes)):
            shapes = getattr(trainer.datamodule, split)
            if isinstance(shapes, ShapeFolder | AugmentedShapes):
                setattr(trainer.datamodule, split, LatentDataset(shapes, most))

    def metadata(self, batches: Iterable[Voxels], shapes: int) -> dict[str, Any]:
        diffusion, sampler = self.diffusion.config.to_dict(), self.sampler.to_dict()
        return {"latent_scale": self.scale, "diffusion": diffusion, "sampler": sampler}

    def losses(self, voxels: Voxels, step: int, generator: torch.Generator) -> Losses:
        """The losses of the voxels that are decoded from one call of the denoiser; in validation without guidance."""
        # 1. The coarse voxels: exact, or with the errors of the cascade.
        category = self._categories(voxels)
        coarse = self._coarse(voxels, category, generator)
        own = category if self.net.config.categories else None
        conditions = Conditions.from_voxels(coarse, self.net.config, category=own)
        if self.training and self.fill_drop and self.net.config.fill:
            which = torch.rand(voxels.batch_size, generator=generator) < self.fill_drop
            conditions = conditions.drop(which, coarse.grid, ("fill",))
        # 2. One call of the denoiser, from noise to latents.
        noise = torch.randn(coarse.num_voxels, self.net.config.latent_channels, generator=generator)
        x = SparseTensor(coarse.grid, noise.to(voxels.device))
        prediction = self.net(x, self.time.to(voxels.device).expand(voxels.batch_size), conditions).feats
        latents = self.diffusion.denoised(x, prediction, self.time).map(lambda z: z / self.scale)
        # 3. Decode. In training the true voxels guide the decoder, as they do in the training of the VAE.
        decoded = self.vae.decoder(latents, self.vae.truth(voxels.grid) if self.training else None)
        return vae_losses(self.vae, voxels, None, decoded, self.loss, step)

    def _coarse(self, voxels: Voxels, category: Tensor, generator: torch.Generator) -> Voxels:
        """Voxels of the coarser level, which are the latent grid, with all attributes that its VAE takes or decodes."""
        grid = self.vae.latent_grid(voxels.grid)
        true = Voxels(grid, true_attributes(voxels, grid, {"fill", *voxels.attributes}))
        exact, strength = torch.rand(2, generator=generator).tolist()
        if not self.training or exact < self.exact:
            return true
        return self.coarse.regenerated(true, strength * self.strength, generator, category)

    def _categories(self, voxels: Voxels) -> Tensor:
        """The category of each shape, int64 [B]; -1 for none."""
        known = self.categories.get("train" if self.training else "val")
        if known is None:
            return torch.full((voxels.batch_size,), NO_CLASS, device=voxels.device)
        return known.to(voxels.device)[first_value(voxels, SHAPE_INDEX)]


def _check_conditions(net: UNet, coarse: CoarseLevel) -> None:
    """Raise ValueError if the denoiser takes a condition that the coarser level does not have."""
    config = coarse.vae.config
    given = {"normal": config.normal, "fill": config.fill, "label": config.num_labels > 0}
    given["category"] = net.config.categories == coarse.denoiser.config.categories
    missing = [name for name in net.config.conditions if not given.get(name, False)]
    if missing:
        raise ValueError(
            f"denoiser must take no condition that the coarser level lacks, got one that takes {', '.join(missing)}"
        )
