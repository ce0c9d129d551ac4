"""Training of denoisers on the latents of a trained VAE.

M latent voxels, L channels.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from sparsevox import Voxels
from xcube.data.loading import ShapeFolder
from xcube.diffusion.objective import Diffusion, DiffusionConfig
from xcube.networks.conditions import Conditions
from xcube.networks.encoder import Posterior
from xcube.networks.losses import Losses, true_attributes
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.training.config import TrainConfig
from xcube.training.latents import NUMBER, Prepared, Whole, first_of, numbered
from xcube.training.modules import Trained


class TrainDenoiser(Trained):
    """A denoiser on samples of the posterior of a trained VAE, scaled. The VAE takes no part in training.

    Args:
        net: The denoiser.
        train: Optimization.
        vae: The VAE of its level.
        scale: What latents are multiplied with: 1 / their standard deviation.
        diffusion: What the denoiser predicts.
        whole: Conditions of shapes, of the splits "train" and "val".
        drop: Share of the shapes that are trained on without the conditions named in `dropped`.
        dropped: Names of conditions.
        cache: Whether latents of all shapes are computed once and kept in memory. Else they are computed at every step.
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
        whole: Mapping[str, Whole] | None = None,
        drop: float = 0.1,
        dropped: Sequence[str] = ("category", "text"),
        cache: bool = True,
    ) -> None:
        if not 0 <= drop <= 1:
            raise ValueError(f"drop must lie in [0, 1], got {drop}")
        told = {"diffusion": diffusion.to_dict(), "drop": drop, "dropped": list(dropped), "scale": scale}
        super().__init__(net, train, **told)
        self.vae = vae.requires_grad_(False).eval()
        self.scale, self.diffusion, self.drop, self.dropped = scale, Diffusion(diffusion), drop, tuple(dropped)
        self.whole, self.cache = {"train": Whole(()), "val": Whole(())} | dict(whole or {}), cache

    def train(self, mode: bool = True) -> "TrainDenoiser":
        """The VAE stays as it is."""
        super().train(mode)
        self.vae.eval()
        return self

    def setup(self, stage: str) -> None:
        """Number the shapes, and encode them if there is a cache."""
        batches: Any = self.trainer.datamodule  # type: ignore[attr-defined]  # there is one once data is given as such
        device = self.trainer.strategy.root_device
        quiet = self.trainer.progress_bar_callback is None
        self.vae.to(device)
        for split, most in (("train", None), ("val", self.config.val_shapes)):
            shapes = getattr(batches, split)
            if isinstance(shapes, ShapeFolder):
                prepared = Prepared(shapes, most)
                if self.cache:
                    prepared.encode(lambda voxels: self.encode(voxels.to(device)), self.config, quiet=quiet)
                setattr(batches, split, prepared)

    def metadata(self, batches: Iterable[Voxels], shapes: int) -> dict[str, Any]:
        """What sampling needs to know."""
        return {"latent_scale": self.scale, "diffusion": self.diffusion.config.to_dict()}

    def encode(self, voxels: Voxels) -> Voxels:
        """The latent grid, with the "mean" and "logvar" of the posterior [M, L] and what the denoiser is told."""
        with torch.no_grad():
            posterior = self.vae.encode(voxels)
            wanted = {name for name in ("normal", "label") if name in self.net.config.conditions}
            known = true_attributes(voxels, posterior.grid, wanted)
        return Voxels(
            posterior.grid,
            {"mean": posterior.mean, "logvar": posterior.logvar, **known, **numbered(voxels, posterior.grid)},
        )

    def losses(self, voxels: Voxels, step: int, generator: torch.Generator) -> Losses:
        """The error of the prediction, at a random time of each grid."""
        if "mean" not in voxels.attributes:
            voxels = self.encode(voxels)
        grid, device = voxels.grid, voxels.device
        mean = voxels.attributes["mean"]
        draws = [torch.randn(mean.shape, generator=generator).to(device) for _ in range(2)]
        latents = Posterior(grid, mean, voxels.attributes["logvar"]).sample(draws[0]).map(lambda z: z * self.scale)
        t = self.diffusion.times(grid.batch_size, generator).to(device)
        conditions = self._conditions(voxels)
        if self.training and self.drop:
            which = torch.rand(grid.batch_size, generator=generator) < self.drop
            empty = self.whole["train"].empty
            conditions = conditions.drop(which, grid, self.dropped, empty_text=empty)
        loss = self.diffusion.loss(self.net, latents, conditions, t, draws[1])
        return Losses({"mse": loss}, {"mse": 1.0})

    def _conditions(self, voxels: Voxels) -> Conditions:
        whole = self.whole["train" if self.training else "val"]
        others = whole.of(first_of(voxels, NUMBER)) if NUMBER in voxels.attributes else {}
        return Conditions.from_voxels(voxels, self.net.config, **others)
