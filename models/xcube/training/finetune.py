"""Lightning module that fine-tunes a one-step denoiser through the decoder, on coarse voxels with errors.

M latent voxels, L latent channels, B grids.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sparsevox import SparseTensor, Voxels
from xcube.data.augment import AugmentedShapes
from xcube.data.loading import ShapeFolder
from xcube.diffusion.objective import Diffusion
from xcube.diffusion.samplers import Solver, check_sampler
from xcube.diffusion.schedule import STEPS
from xcube.networks.conditions import Conditions
from xcube.networks.losses import LossConfig, Losses, true_attributes, vae_losses
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.training.coarse import CoarseLevel, TrainedDenoiser, check_latents
from xcube.training.config import TrainConfig
from xcube.training.latents import SHAPE_INDEX, LatentDataset, first_value
from xcube.training.modules import FrozenVAEModule
from xcube.training.observations import Observations

Categories = Mapping[str, Tensor | None]  # the category of each shape, int64 [shapes], by split


class FinetuneModule(FrozenVAEModule):
    """Trains a one-step denoiser so that the voxels decoded from its latents match the true ones.

    In training on latents it learns their mean, which a decoder that has only seen latents of real shapes may decode
    to gaps; and it never sees the errors of the coarser level. Here the loss is that of the decoded voxels, and most of
    the coarse voxels are those that the networks of the coarser level make of the true ones. This is a form of
    conditioning augmentation (Ho et al. 2022, arXiv:2106.15282).

    Args:
        denoiser: The denoiser, trained on latents.
        train: Optimization.
        vae: The VAE of the level.
        coarse: The networks of the coarser level.
        loss: Weights of the losses of the decoded voxels.
        categories: Categories of the shapes for the denoiser.
        coarse_categories: Categories of the shapes for the coarser level.
        exact: Fraction of the batches with exact coarse voxels.
        strength: Maximum fraction of the sampling steps of the coarser level by which the others are changed.
        fill_drop: Fraction of the shapes without solid fractions, so that the denoiser can do without them.
        unobserved: Fraction of the shapes of which nothing is observed, if the network takes observations. Where all is
            known, the coarse voxels are exact, as completion puts them in. Half of them by default.

    Raises:
        ValueError: If the sampler takes more than one step or has guidance, the networks do not fit each other, or a
            fraction is outside [0, 1].
    """

    net: UNet

    def __init__(
        self,
        denoiser: TrainedDenoiser,
        train: TrainConfig,
        vae: VAE,
        coarse: CoarseLevel,
        *,
        loss: LossConfig = LossConfig(),  # noqa: B008  (immutable)
        categories: Categories | None = None,
        coarse_categories: Categories | None = None,
        exact: float = 0.3,
        strength: float = 0.6,
        fill_drop: float = 0.1,
        unobserved: float | None = None,
    ) -> None:
        fractions = {"exact": exact, "strength": strength, "fill_drop": fill_drop}
        if denoiser.net.config.observed:
            fractions["unobserved"] = 0.5 if unobserved is None else unobserved
        elif unobserved is not None:
            raise ValueError(f"unobserved must be None for a denoiser that takes no observations, got {unobserved}")
        for name, value in fractions.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        check_latents(vae, denoiser.net, "denoiser")
        _check_levels(vae, denoiser.net, coarse)
        options = {"loss": loss.to_dict(), "scale": denoiser.scale, "coarse_steps": coarse.sampler.steps}
        options |= {"diffusion": denoiser.diffusion.to_dict(), "sampler": denoiser.sampler.to_dict()}
        super().__init__(denoiser.net, train, vae, **options, **fractions)
        self.coarse, self.loss = coarse, loss
        self.categories, self.coarse_categories = dict(categories or {}), dict(coarse_categories or {})
        self.scale, self.diffusion, self.sampler = denoiser.scale, Diffusion(denoiser.diffusion), denoiser.sampler
        self.exact, self.strength, self.fill_drop = exact, strength, fill_drop
        self.unobserved = fractions.get("unobserved", 1.0)
        self.time = _only_time(denoiser)
        self.edges = _box_edges(vae, coarse.vae) if denoiser.net.config.observed else ()

    def setup(self, stage: str) -> None:
        """Attach to each shape its index in the dataset, by which its category is found."""
        trainer: Any = self.trainer
        for split in ("train", "val"):
            shapes = getattr(trainer.datamodule, split)
            if isinstance(shapes, ShapeFolder | AugmentedShapes):
                setattr(trainer.datamodule, split, LatentDataset(shapes))

    def metadata(self, batches: Iterable[Voxels], shapes: int) -> dict[str, Any]:
        diffusion, sampler = self.diffusion.config.to_dict(), self.sampler.to_dict()
        return {"latent_scale": self.scale, "diffusion": diffusion, "sampler": sampler}

    def losses(self, voxels: Voxels, step: int, generator: torch.Generator) -> Losses:
        """The losses of the voxels that are decoded from one call of the denoiser.

        Validation has the same kinds of coarse voxels, all with their solid fractions.
        """
        # 1. The coarse voxels: exact, or with the errors of the cascade.
        coarse, seen = self._coarse(voxels, generator)
        category = self._category(self.categories, voxels) if self.net.config.categories else None
        conditions = Conditions.from_voxels(coarse, self.net.config, category=category)
        if seen is not None:
            conditions = replace(conditions, observed=seen.states(coarse.grid))
        if self.training and self.fill_drop and self.net.config.fill:
            which = torch.rand(voxels.batch_size, generator=generator) < self.fill_drop
            conditions = conditions.drop(which, coarse.grid, ("fill",))
        # 2. One call of the denoiser, from noise to latents.
        noise = torch.randn(coarse.num_voxels, self.net.config.latent_channels, generator=generator)
        x = SparseTensor(coarse.grid, noise.to(voxels.device))
        prediction = self.net(x, self.time.to(voxels.device).expand(voxels.batch_size), conditions).feats
        latents = self.diffusion.denoised(x, prediction, self.time).map(lambda z: z / self.scale)
        # 3. Decode. In training the true voxels guide the decoder, as they do in the training of the VAE.
        decoded = self.vae.decoder(latents, self.vae.truth(voxels.grid) if self.training else None, generated=True)
        return vae_losses(self.vae, voxels, None, decoded, self.loss, step)

    def _coarse(self, voxels: Voxels, generator: torch.Generator) -> tuple[Voxels, Observations | None]:
        """Voxels of the coarser level, which are the latent grid, with the attributes that networks take.

        Also observations of the shapes, if the denoiser takes them.
        """
        grid = self.vae.latent_grid(voxels.grid)
        wanted = {*self.coarse.vae.config.attributes, *self.net.config.conditions}
        true = Voxels(grid, true_attributes(voxels, grid, wanted))
        seen = None
        if self.net.config.observed:
            seen = Observations(voxels.grid, self.edges, self.vae.config, self.unobserved, generator)
        exact, strength = torch.rand(2, generator=generator).tolist()
        if exact < self.exact:
            return true, seen
        category = self._category(self.coarse_categories, voxels) if self.coarse.denoiser.config.categories else None
        made = self.coarse.regenerated(true, strength * self.strength, generator, category)
        return (made if seen is None else seen.joined(true, made)), seen

    def _category(self, categories: Categories, voxels: Voxels) -> Tensor:
        """The category of each shape, int64 [B]."""
        known = categories["train" if self.training else "val"]
        assert known is not None
        return known.to(voxels.device)[first_value(voxels, SHAPE_INDEX)]


def _only_time(denoiser: TrainedDenoiser) -> Tensor:
    """The time of the only call of a denoiser; raise ValueError unless that is one from pure noise."""
    sampler = denoiser.sampler
    if sampler.steps != 1 or sampler.weight != 1:
        given = f"{sampler.steps} and guidance {sampler.guidance}"
        raise ValueError(f"denoiser must have a sampler with steps 1 and without guidance, got steps {given}")
    check_sampler(sampler, denoiser.diffusion)
    (time,) = Solver(sampler, denoiser.diffusion).times
    if float(time) < STEPS - 1:
        raise ValueError(f"denoiser must have a sampler that starts at full noise, {STEPS - 1}, got time {time:g}")
    return time


def _box_edges(vae: VAE, coarse: VAE) -> tuple[int, ...]:
    """Number of voxels of the box along each axis; the coarser level fills it with latents."""
    neck = coarse.config.dense_neck
    if neck is None:
        raise ValueError("coarse_vae must have a dense_neck, for a denoiser that takes observations")
    factors = zip(neck, coarse.config.factor, vae.config.factor, strict=True)
    return tuple(2 * half * first * second for half, first, second in factors)


def _check_levels(vae: VAE, denoiser: UNet, coarse: CoarseLevel) -> None:
    """Raise ValueError unless the voxels of the coarser level are the latent grid, with what the denoiser takes."""
    config, known = denoiser.config, coarse.vae.config
    sizes = [s * f for s, f in zip(vae.config.voxel_sizes, vae.config.factor, strict=True)]
    if any(abs(a - b) > 1e-6 * b for a, b in zip(known.voxel_sizes, sizes, strict=True)):
        raise ValueError(
            f"coarse_vae must have the voxel_size of the latents of vae, {sizes[0]}, got {known.voxel_size}"
        )
    if config.num_labels not in (0, known.num_labels):
        raise ValueError(
            f"denoiser must have the num_labels of coarse_vae, {known.num_labels}, got {config.num_labels}"
        )
    missing = [name for name in ("normal", "color", "fill") if getattr(config, name) and not getattr(known, name)]
    if missing:
        raise ValueError(f"coarse_vae must decode {' and '.join(missing)}, which the denoiser takes")
