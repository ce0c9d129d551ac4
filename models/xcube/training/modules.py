"""Lightning modules of the VAE and the refiner: losses of a training step, optimizer and logs."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Self

import lightning
import torch
from torch import Tensor

from sparsevox import SparseTensor, Voxels
from xcube.config import Config
from xcube.diffusion.schedule import STEPS, add_ddpm_noise
from xcube.networks.encoder import Posterior
from xcube.networks.losses import LossConfig, Losses, vae_losses
from xcube.networks.pretrained import kind_of
from xcube.networks.refiner import Refiner, refiner_losses
from xcube.networks.vae import VAE
from xcube.training.config import TrainConfig

SCALE_SHAPES = 128  # shapes from which the scale of latents is computed, to half a percent


class NetworkModule(lightning.LightningModule, ABC):
    """Base of the modules that train a network: optimizer, schedule, logs, and noise that depends only on the step.

    All parameters get a gradient in every step, zeros where a decoded grid is empty, so that processes that train
    together (DDP) wait for the same ones.

    net: The network that is trained and saved.
    options: Settings of the run as plain values; a run can only be resumed with the same ones.
    metrics: Metrics of the last validation, by name.
    resumed: Whether the run begins with a checkpoint.
    """

    def __init__(self, net: torch.nn.Module, train: TrainConfig, **options: Any) -> None:
        super().__init__()
        self.net, self.config = net, train
        assert isinstance(net.config, Config)
        self.options = {"kind": kind_of(net), "model": net.config.to_dict(), "train": train.to_dict()} | options
        self.metrics: dict[str, float] = {}
        self.resumed = False
        self.started: float | None = None
        self.earlier = 0.0

    @abstractmethod
    def metadata(self, batches: Iterable[Voxels], shapes: int) -> dict[str, Any]:
        """Metadata to save with the trained network.

        Args:
            batches: Batches of the training split.
            shapes: Number of shapes in it.
        """

    @abstractmethod
    def losses(self, voxels: Voxels, step: int, generator: torch.Generator) -> Losses:
        """Losses and metrics of a batch; `generator` gives all noise."""

    def training_step(self, batch: Voxels, index: int) -> Tensor:
        number = self.global_step * self.config.accumulate + index % self.config.accumulate
        losses = self.losses(batch, self.global_step, self._noise(number, 0))
        self._log("train", losses, batch)
        self.log("voxels", float(batch.num_voxels), batch_size=1)
        return losses.total

    def validation_step(self, batch: Voxels, index: int) -> None:
        # Held-out shapes get the same noise in every validation.
        self._log("val", self.losses(batch, self.global_step, self._noise(index, 1)), batch)

    def on_validation_end(self) -> None:
        found = self.trainer.callback_metrics.items()
        self.metrics = {name.removeprefix("val/"): float(v) for name, v in found if name.startswith("val/")}

    def on_train_batch_end(self, *_: Any) -> None:
        # Lightning validates a run that should stop, but not one that reaches its last step.
        if self.global_step >= self.config.steps:
            self.trainer.should_stop = True

    def _noise(self, number: int, stream: int) -> torch.Generator:
        """A generator that a resumed run makes again at the same step; ranks differ in training only."""
        rank = 0 if stream else self.global_rank
        seed = ((self.config.seed * 2 + stream) * (1 << 16) + rank) * (1 << 32) + number
        return torch.Generator().manual_seed(seed % (1 << 63))

    def _log(self, stage: str, losses: Losses, batch: Voxels) -> None:
        values = {"loss": losses.total.detach()} | losses.terms | losses.metrics
        logged = {f"{stage}/{name}": value.detach() for name, value in values.items()}
        size = batch.batch_size
        self.log_dict(
            logged, batch_size=size, on_step=stage == "train", on_epoch=stage == "val", sync_dist=stage == "val"
        )

    def configure_optimizers(self) -> Any:
        config = self.config
        optimizer = torch.optim.AdamW(
            [p for p in self.net.parameters() if p.requires_grad],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            amsgrad=config.amsgrad,
            fused=not config.amsgrad,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: config.rate(step, self._clock()))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        parameters = [p for p in self.net.parameters() if p.grad is not None]
        if self.config.clip_value:
            torch.nn.utils.clip_grad_value_(parameters, self.config.clip_value)
        if self.config.clip_norm:
            torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_norm)

    def _clock(self) -> float:
        """Seconds of training that all ranks agree on: with different learning rates their weights would diverge."""
        if self.config.minutes is None or self.trainer.world_size == 1:
            return self.elapsed
        return float(self.trainer.strategy.broadcast(self.elapsed))

    @property
    def elapsed(self) -> float:
        """Seconds of training, including those before the run was resumed."""
        return self.earlier + (0.0 if self.started is None else time.monotonic() - self.started)

    def on_train_start(self) -> None:
        self.started = time.monotonic()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint |= {"elapsed": self.elapsed, "metrics": self.metrics, "options": self.options}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.earlier = float(checkpoint["elapsed"])
        self.metrics = checkpoint["metrics"] if "metrics" in checkpoint else checkpoint["figures"]  # its former name


class VAEModule(NetworkModule):
    """Trains the VAE of one level on the voxels of shapes."""

    net: VAE

    def __init__(self, net: VAE, train: TrainConfig, loss: LossConfig) -> None:
        super().__init__(net, train, loss=loss.to_dict())
        self.loss = loss

    def metadata(self, batches: Iterable[Voxels], shapes: int) -> dict[str, Any]:
        return {"latent_scale": latent_scale(self.net, batches, min(shapes, SCALE_SHAPES))}

    def losses(self, voxels: Voxels, step: int, generator: torch.Generator) -> Losses:
        """Losses of decoding a sample of the posterior, or its mean in evaluation."""
        check_labels(voxels, self.net.config.num_labels)
        posterior = self.net.encode(voxels)
        latents = _sampled(posterior, generator) if self.training else posterior.mode()
        decoded = self.net.decode(latents, voxels.grid)
        return vae_losses(self.net, voxels, posterior, decoded, self.loss, step)


class FrozenVAEModule(NetworkModule):
    """Base of the modules that train a network on the latents of a trained VAE, which does not change."""

    def __init__(self, net: torch.nn.Module, train: TrainConfig, vae: VAE, **options: Any) -> None:
        super().__init__(net, train, **options)
        self.vae = vae.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.vae.eval()
        return self


class RefinerModule(FrozenVAEModule):
    """Trains the refiner of one level on grids that a trained VAE decodes from noisy latents.

    Args:
        net: The refiner.
        train: Optimization.
        vae: The VAE of the level.
        scale: Factor that gives latents unit standard deviation.
        first: Minimum diffusion timestep of the noise.
        last: Maximum diffusion timestep of the noise.

    Raises:
        ValueError: If `first` and `last` are not timesteps in this order.
    """

    net: Refiner

    def __init__(
        self, net: Refiner, train: TrainConfig, vae: VAE, *, scale: float, first: int = 200, last: int = 400
    ) -> None:
        if not 0 <= first <= last < STEPS:
            raise ValueError(f"first and last must be diffusion timesteps, 0 to {STEPS - 1}, got {first} and {last}")
        super().__init__(net, train, vae, first=first, last=last, scale=scale)
        self.scale, self.first, self.last = scale, first, last

    def metadata(self, batches: Iterable[Voxels], shapes: int) -> dict[str, Any]:
        return {"latent_scale": self.scale, "first": self.first, "last": self.last}

    def losses(self, voxels: Voxels, step: int, generator: torch.Generator) -> Losses:
        """Losses of refining a noisy decoded grid, which may be empty."""
        check_labels(voxels, self.vae.config.num_labels)
        with torch.no_grad():
            rough = noisy_decode(self.vae, voxels, generator, scale=self.scale, first=self.first, last=self.last)
        return refiner_losses(self.net(rough), voxels)


def noisy_decode(
    vae: VAE, voxels: Voxels, generator: torch.Generator, *, scale: float, first: int = 200, last: int = 400
) -> Voxels:
    """Decode latents of voxels with the noise of random timesteps from `first` to `last`, one per grid."""
    latents = _sampled(vae.encode(voxels), generator)
    steps = torch.randint(first, last + 1, (voxels.batch_size,), generator=generator)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    return vae.decode(add_ddpm_noise(latents, steps, noise, scale), generated=True).voxels


def latent_scale(vae: VAE, batches: Iterable[Voxels], shapes: int = SCALE_SHAPES) -> float:
    """Return 1 / the standard deviation of latents sampled from the posterior, over all channels.

    Args:
        vae: The VAE.
        batches: Batches of voxels.
        shapes: Number of shapes after which to stop.

    Raises:
        ValueError: If there are no latents, or they are not finite or all the same.
    """
    generator, device = torch.Generator().manual_seed(0), next(vae.parameters()).device
    seen, count, total, squares = 0, 0, 0.0, 0.0
    with torch.no_grad():
        for batch in batches:
            latents = _sampled(vae.encode(batch.to(device)), generator).feats.double()
            count, total = count + latents.numel(), total + float(latents.sum())
            squares, seen = squares + float(latents.square().sum()), seen + batch.batch_size
            if seen >= shapes:
                break
    variance = squares / max(count, 1) - (total / max(count, 1)) ** 2
    if not 0 < variance < float("inf"):
        raise ValueError(f"latents of the VAE must be finite and differ, got {count} of variance {variance}")
    return float(variance**-0.5)


def check_labels(voxels: Voxels, count: int) -> None:
    """Raise ValueError if voxels have a label outside [0, count). A count of 0 means that labels are not used."""
    labels = voxels.attributes.get("label")
    if count and labels is not None and labels.numel():
        least, most = int(labels.min()), int(labels.max())
        if least < 0 or most >= count:
            raise ValueError(f"labels must lie in [0, {count}), as num_labels of the model says, got {least} to {most}")


def _sampled(posterior: Posterior, generator: torch.Generator) -> SparseTensor:
    return posterior.sample(torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean))
