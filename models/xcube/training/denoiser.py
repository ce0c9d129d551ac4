"""Lightning module of the denoiser, which is trained on the latents of a trained VAE.

M latent voxels, L latent channels, B grids.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from sparsevox import Voxels
from xcube.data.augment import AugmentedShapes
from xcube.data.loading import ShapeFolder
from xcube.diffusion.objective import Diffusion, DiffusionConfig
from xcube.diffusion.samplers import SamplerConfig, check_sampler
from xcube.geometry.observation import EMPTY, UNKNOWN, from_volume, full_states, states, to_volume
from xcube.networks.conditions import DROPPED, NO_FILL, OF_VOXELS, Conditions
from xcube.networks.encoder import Posterior
from xcube.networks.losses import Losses, true_attributes
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.training.callbacks import Progress
from xcube.training.config import TrainConfig
from xcube.training.latents import SHAPE_INDEX, LatentDataset, ShapeConditions, first_value, with_shape_index
from xcube.training.modules import FrozenVAEModule
from xcube.training.observations import random_observations
from xcube.training.words import teach_words

LatentsKind = Literal["samples", "means"]
UNOBSERVED = 0.5  # fraction of the shapes of which nothing is observed, by default
# An attribute of latents, uint8 [M, S]: 255 times the states of the finer voxels in each latent voxel, 0 for empty.
FULL = "full"


class DenoiserModule(FrozenVAEModule):
    """Trains the denoiser of one level on scaled latents of a trained VAE.

    Args:
        net: The denoiser.
        train: Optimization.
        vae: The VAE of the level.
        scale: Factor that gives latents unit standard deviation.
        diffusion: Diffusion process and prediction target.
        shape_conditions: Conditions of whole shapes, for the splits "train" and "val".
        drop: Fraction of the training shapes whose conditions are dropped, for classifier-free guidance.
        dropped: Names of the conditions to drop.
        drop_each: Fraction of the training shapes that lose each of these conditions, independently of the others.
        latents: What the denoiser learns to make: "samples" of the posterior, or its "means".
        normal_noise: Standard deviation of the noise that is added to normals, the condition, in training.
        color_noise: Standard deviation of the noise that is added to colors, the condition, in training.
        fill_noise: Standard deviation of the noise that is added to solid fractions, the condition, in training.
        fill_drop: Fraction of the training shapes without solid fractions, so that the denoiser can do without them.
        unobserved: Fraction of the shapes of which nothing is observed, if the network takes observations; half of them
            by default.
        sampler: Default sampler of pipelines with this denoiser.
        cache: Whether to encode all shapes once and keep their latents in memory, instead of at every step.
        word_steps: Number of steps in which the text encoder of the network learns to predict latents before training,
            if shapes have captions; needs `cache`.

    Raises:
        ValueError: If `drop`, `drop_each`, `fill_drop` or `unobserved` is outside [0, 1], a standard deviation is
            negative, there is noise on a condition that the network does not take, it takes observations and is not
            dense or has another number of them than the VAE, `latents` is unknown, or the sampler does not fit the
            diffusion.
    """

    net: UNet

    def __init__(
        self,
        net: UNet,
        train: TrainConfig,
        vae: VAE,
        *,
        scale: float,
        diffusion: DiffusionConfig = DiffusionConfig(),  # noqa: B008  (immutable)
        shape_conditions: Mapping[str, ShapeConditions] | None = None,
        drop: float = 0.1,
        dropped: Sequence[str] = DROPPED,
        drop_each: float = 0.0,
        latents: LatentsKind = "samples",
        normal_noise: float = 0.0,
        color_noise: float = 0.0,
        fill_noise: float = 0.0,
        fill_drop: float = 0.0,
        unobserved: float | None = None,
        sampler: SamplerConfig = SamplerConfig(),  # noqa: B008  (immutable)
        cache: bool = True,
        word_steps: int = 0,
    ) -> None:
        self.sampler = sampler
        if unobserved is not None and not net.config.observed:
            raise ValueError(f"unobserved must be None for a model that takes no observations, got {unobserved}")
        self.unobserved = UNOBSERVED if unobserved is None else unobserved
        fractions = {"drop": drop, "drop_each": drop_each, "fill_drop": fill_drop, "unobserved": self.unobserved}
        for name, portion in fractions.items():
            if not 0 <= portion <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {portion}")
        self.latents, self.fill_drop = latents, fill_drop
        self.noises = {"normal": normal_noise, "color": color_noise, "fill": fill_noise}
        for name, noise, taken in (
            ("normal_noise", normal_noise, net.config.normal),
            ("color_noise", color_noise, net.config.color),
            ("fill_noise", fill_noise, net.config.fill),
            ("fill_drop", fill_drop, net.config.fill),
        ):
            if not noise >= 0:
                raise ValueError(f"{name} must not be negative, got {noise}")
            if noise and not taken:
                condition = name.partition("_")[0]
                raise ValueError(f"{name} must be 0 for a model that does not take {condition}, got {noise}")
        if latents not in get_args(LatentsKind):
            raise ValueError(f"latents must be one of {', '.join(get_args(LatentsKind))}, got {latents!r}")
        check_sampler(sampler, diffusion)
        recorded = [name for name in dropped if name != "words" or net.config.words]  # as runs of earlier versions
        options = {"diffusion": diffusion.to_dict(), "drop": drop, "dropped": recorded, "scale": scale}
        options |= {"latents": latents, "normal_noise": normal_noise, "fill_noise": fill_noise}
        options["fill_drop"] = fill_drop
        options |= {"color_noise": color_noise} if color_noise else {}
        options |= {"drop_each": drop_each} if drop_each else {}
        options |= {"word_steps": word_steps} if word_steps else {}
        if word_steps < 0 or (word_steps and not cache):
            raise ValueError(f"word_steps must not be negative, and 0 without cache, got {word_steps}")
        self.word_steps = word_steps
        self.explained: float | None = None  # fraction of the variance of the latents that captions explain
        if net.config.observed:
            if not net.config.dense or net.config.observed != math.prod(vae.config.factor):
                raise ValueError(
                    f"observed must be {math.prod(vae.config.factor)}, as the VAE decodes from a latent voxel, and the "
                    f"network dense, got {net.config.observed} and {net.config.dense}"
                )
            options["unobserved"] = self.unobserved
        super().__init__(net, train, vae, **options)
        self.scale, self.diffusion = scale, Diffusion(diffusion)
        self.drop, self.dropped, self.drop_each = drop, tuple(dropped), drop_each
        none = {"train": ShapeConditions(()), "val": ShapeConditions(())}
        self.shape_conditions, self.cache = none | dict(shape_conditions or {}), cache

    def setup(self, stage: str) -> None:
        """Attach to each shape its index in the dataset, and encode all shapes if they are cached."""
        trainer: Any = self.trainer
        device = trainer.strategy.root_device
        progress = next((each for each in trainer.callbacks if isinstance(each, Progress)), None)
        self.vae.to(device)
        for split, most in (("train", None), ("val", self.config.val_shapes)):
            shapes = getattr(trainer.datamodule, split)
            if isinstance(shapes, ShapeFolder | AugmentedShapes):
                latents = LatentDataset(shapes, most)
                if self.cache:
                    latents.encode(lambda voxels: self.encode(voxels.to(device)), self.config, progress)
                    if split == "train" and self.word_steps and not self.resumed:
                        self._teach_words(latents, progress)
                setattr(trainer.datamodule, split, latents)

    def _teach_words(self, latents: LatentDataset, progress: Progress | None) -> None:
        """Train the text encoder to predict the latents of the shapes from their captions."""
        known = self.shape_conditions["train"]
        if self.net.words is None or self.net.words.guess is None or known.words is None:
            return
        means = torch.stack([latents[item].attributes["mean"].flatten() for item in range(len(latents))]) * self.scale
        iterate = (lambda steps: progress.iterate(list(steps), "captions")) if progress else iter
        self.net.words.to(means.device)
        self.explained = teach_words(
            self.net.words,
            means,
            lambda chosen, generator: known.of(chosen, generator)["words"],
            self.word_steps,
            iterate,
            self.config.seed,
        )

    def metadata(self, batches: Iterable[Voxels], shapes: int) -> dict[str, Any]:
        diffusion, sampler = self.diffusion.config.to_dict(), self.sampler.to_dict()
        found = {"latent_scale": self.scale, "diffusion": diffusion, "sampler": sampler}
        return found if self.explained is None else found | {"captions_explain": self.explained}

    def encode(self, voxels: Voxels) -> Voxels:
        """Encode voxels to their latent grid, with "mean" and "logvar" of the posterior [M, L] and the conditions."""
        with torch.no_grad():
            posterior = self.vae.encode(voxels)
            wanted = {name for name in OF_VOXELS if name in self.net.config.conditions}
            known = true_attributes(voxels, posterior.grid, wanted)
        if self.net.config.observed:
            fill = voxels.attributes["fill"] if self.vae.config.fill else None
            full = states(posterior.grid.coords, self.vae.config.factor, voxels.grid, fill=fill)
            known[FULL] = (255 * full.clamp(min=0)).round().byte()
        latents = Voxels(posterior.grid, {"mean": posterior.mean, "logvar": posterior.logvar, **known})
        return with_shape_index(latents, voxels)

    def losses(self, voxels: Voxels, step: int, generator: torch.Generator) -> Losses:
        """The error of the prediction at a random time of each grid."""
        # 1. Scaled latents of the posterior.
        if "mean" not in voxels.attributes:
            voxels = self.encode(voxels)
        grid, device = voxels.grid, voxels.device
        mean = voxels.attributes["mean"]  # [M, L]
        draws = [torch.randn(mean.shape, generator=generator).to(device) for _ in range(2)]
        posterior = Posterior(grid, mean, voxels.attributes["logvar"])
        sampled = posterior.sample(draws[0]) if self.latents == "samples" else posterior.mode()
        latents = sampled.map(lambda z: z * self.scale)
        # 2. Draw times and conditions; some grids lose their conditions, for classifier-free guidance.
        t = self.diffusion.times(grid.batch_size, generator).to(device)  # [B]
        conditions = self._conditions(voxels, generator if self.training else None)
        if self.net.config.observed:
            conditions = replace(conditions, observed=self._observed(voxels, generator))
        if self.training:
            conditions = self._with_noise(conditions, generator)
        if self.training and self.fill_drop:
            which = torch.rand(grid.batch_size, generator=generator) < self.fill_drop
            conditions = conditions.drop(which, grid, ("fill",))
        if self.training and self.drop:
            which = torch.rand(grid.batch_size, generator=generator) < self.drop
            empty = self.shape_conditions["train"].empty_text
            conditions = conditions.drop(which, grid, self.dropped, empty_text=empty)
        for name in self.dropped if self.training and self.drop_each else ():
            which = torch.rand(grid.batch_size, generator=generator) < self.drop_each
            empty = self.shape_conditions["train"].empty_text
            conditions = conditions.drop(which, grid, (name,), empty_text=empty)
        # 3. Compare the prediction for noisy latents with its target.
        loss = self.diffusion.loss(self.net, latents, conditions, t, draws[1])
        return Losses({"mse": loss}, {"mse": 1.0})

    def _observed(self, latents: Voxels, generator: torch.Generator) -> Tensor:
        """States of the finer voxels in random observations of a batch, [M, S]; of some shapes, nothing."""
        factor = self.vae.config.factor
        volume = to_volume(latents.grid, latents.attributes[FULL], factor)  # [B, X, Y, Z]
        seen = random_observations(volume > 0, self.unobserved, generator)
        value = torch.where(volume > 0, volume / 255, EMPTY)
        if self.vae.config.fill:  # it is not known next to unknown voxels
            border = functional.max_pool3d((~seen).float()[:, None], 3, 1, 1)[:, 0] > 0
            unknown = full_states(value.new_full((), NO_FILL))
            value = torch.where(border & (volume > 0), unknown, value)
        return from_volume(latents.grid, torch.where(seen, value, UNKNOWN), factor)

    def _with_noise(self, conditions: Conditions, generator: torch.Generator) -> Conditions:
        """Add noise to the attributes of the coarser level, which in a cascade has errors.

        This is the conditioning augmentation of Ho et al. (2022, arXiv:2106.15282).
        """
        for name, deviation in self.noises.items():
            exact = getattr(conditions, name)
            if exact is None or not deviation:
                continue
            noise = deviation * torch.randn(exact.shape, generator=generator).to(exact)
            if name == "normal":
                noisy = torch.where(exact.norm(dim=1, keepdim=True) > 0, exact + noise, exact)
            elif name == "color":
                noisy = (exact + noise).clamp(0, 1)
            else:
                noisy = torch.where(exact >= 0, (exact + noise).clamp(0, 1), exact)
            changes: dict[str, Any] = {name: noisy}
            conditions = replace(conditions, **changes)
        return conditions

    def _conditions(self, voxels: Voxels, generator: torch.Generator | None) -> Conditions:
        known = self.shape_conditions["train" if self.training else "val"]
        others = known.of(first_value(voxels, SHAPE_INDEX), generator) if SHAPE_INDEX in voxels.attributes else {}
        return Conditions.from_voxels(voxels, self.net.config, **others)
