"""The networks as Lightning modules: what a training step computes, and what is logged."""

import time
from abc import ABC, abstractmethod
from typing import Any

import lightning
import torch
from torch import Tensor

from sparsevox import SparseTensor, Voxels
from xcube.losses import LossConfig, Losses, vae_losses
from xcube.noising import noised
from xcube.refine import RefineConfig, Refiner, refine_losses
from xcube.training.config import TrainConfig
from xcube.vae import VAE, Posterior


class Trained(lightning.LightningModule, ABC):
    """What all networks have in common: optimiser, schedule, logs, and noise that depends on the step alone.

    net: The network that is trained, and kept.
    """

    def __init__(self, net: torch.nn.Module, train: TrainConfig) -> None:
        super().__init__()
        self.net, self.config = net, train
        self.started, self.earlier = time.monotonic(), 0.0

    @abstractmethod
    def losses(self, voxels: Voxels, step: int, generator: torch.Generator) -> Losses:
        """All losses of a batch."""

    def training_step(self, batch: Voxels, index: int) -> Tensor:
        """The weighted loss."""
        number = self.global_step * self.config.accumulate + index % self.config.accumulate
        losses = self.losses(batch, self.global_step, self._noise(number, 0))
        self._log("train", losses, batch)
        self.log("voxels", float(batch.num_voxels), batch_size=1)
        return losses.total

    def validation_step(self, batch: Voxels, index: int) -> None:
        """Losses and metrics of held-out shapes, with the same noise every time."""
        self._log("val", self.losses(batch, self.global_step, self._noise(index, 1)), batch)

    def _noise(self, number: int, stream: int) -> torch.Generator:
        """Numbers that a run gives again when it is taken up at this step."""
        seed = ((self.config.seed * 2 + stream) * (1 << 16) + self.global_rank) * (1 << 32) + number
        return torch.Generator().manual_seed(seed % (1 << 63))

    def _log(self, stage: str, losses: Losses, batch: Voxels) -> None:
        values = {"loss": losses.total.detach()} | losses.terms | losses.metrics
        shown = {f"{stage}/{name}": value.detach() for name, value in values.items()}
        size = batch.batch_size
        self.log_dict(
            shown, batch_size=size, on_step=stage == "train", on_epoch=stage == "val", sync_dist=stage == "val"
        )

    def configure_optimizers(self) -> Any:
        """AdamW, and its rate step by step."""
        config = self.config
        optimizer = torch.optim.AdamW(
            [p for p in self.net.parameters() if p.requires_grad],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            amsgrad=config.amsgrad,
            fused=not config.amsgrad,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: config.rate(step, self.elapsed))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """By norm, by value, or both."""
        parameters = [p for p in self.net.parameters() if p.grad is not None]
        if self.config.clip_value:
            torch.nn.utils.clip_grad_value_(parameters, self.config.clip_value)
        if self.config.clip_norm:
            torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)

    @property
    def elapsed(self) -> float:
        """Seconds of training, in this run and those before it."""
        return self.earlier + time.monotonic() - self.started

    def on_train_start(self) -> None:
        """The clock begins with the first batch."""
        self.started = time.monotonic()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The time goes along."""
        checkpoint["elapsed"] = self.elapsed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The time goes on."""
        self.earlier = float(checkpoint["elapsed"])


class TrainVAE(Trained):
    """The VAE on the finest level of shapes."""

    net: VAE

    def __init__(self, net: VAE, train: TrainConfig, loss: LossConfig) -> None:
        super().__init__(net, train)
        self.loss = loss

    def losses(self, voxels: Voxels, step: int, generator: torch.Generator) -> Losses:
        """Of a sample of the posterior; in evaluation of its mean."""
        posterior = self.net.encode(voxels)
        latents = _sampled(posterior, generator) if self.training else posterior.mode()
        decoded = self.net.decode(latents, voxels.grid)
        return vae_losses(self.net, voxels, posterior, decoded, self.loss, step)


class TrainRefiner(Trained):
    """The refinement network on what a trained VAE decodes from noised latents.

    The VAE takes no part in training; its latents are noised at steps `first` to `last` of the diffusion.
    """

    net: Refiner

    def __init__(
        self, net: Refiner, train: TrainConfig, vae: VAE, *, scale: float, first: int = 200, last: int = 400
    ) -> None:
        super().__init__(net, train)
        self.vae = vae.requires_grad_(False).eval()
        self.scale, self.first, self.last = scale, first, last

    def train(self, mode: bool = True) -> "TrainRefiner":
        """The VAE stays as it is."""
        super().train(mode)
        self.vae.eval()
        return self

    def losses(self, voxels: Voxels, step: int, generator: torch.Generator) -> Losses:
        """Of repairing a noisy decode, which may be empty."""
        with torch.no_grad():
            rough = noisy_decode(self.vae, voxels, generator, scale=self.scale, first=self.first, last=self.last)
        return refine_losses(self.net(rough), voxels)


def noisy_decode(
    vae: VAE, voxels: Voxels, generator: torch.Generator, *, scale: float, first: int = 200, last: int = 400
) -> Voxels:
    """What a VAE decodes from a sample of its posterior with the noise of steps from `first` to `last`."""
    latents = _sampled(vae.encode(voxels), generator)
    steps = torch.randint(first, last + 1, (voxels.batch_size,), generator=generator)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    return vae.decode(noised(latents, steps, noise, scale)).voxels


def latent_scale(vae: VAE, batches: Any, most: int = 32) -> float:
    """1 / the standard deviation of all latents of some batches, as samples of the posterior."""
    generator, parts = torch.Generator().manual_seed(0), []
    with torch.no_grad():
        for _, batch in zip(range(most), batches, strict=False):
            parts.append(_sampled(vae.encode(batch), generator).feats.flatten())
    return 1 / float(torch.cat(parts).std())


def _sampled(posterior: Posterior, generator: torch.Generator) -> SparseTensor:
    return posterior.sample(torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean))


def refiner_for(vae: VAE, channels: tuple[int, ...] = (16, 32, 64)) -> Refiner:
    """A refinement network for what a VAE decodes."""
    config = vae.config
    return Refiner(
        RefineConfig(
            voxel_size=config.voxel_sizes[0], channels=channels, normal=config.normal, num_labels=config.num_labels
        )
    )
