"""The diffusion of latents (section 3.3 of the paper): how they are noised, what a denoiser predicts, and its loss.

Every grid of a batch has a time of its own: from 0, without noise, to 1000. M latent voxels, L channels, B grids.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sparsevox import Grid, SparseTensor, checks
from xcube.config import Config
from xcube.diffusion.schedule import STEPS, official_schedule
from xcube.networks.conditions import Conditions
from xcube.networks.losses import mean_or_zero

Prediction = Literal["v", "epsilon", "flow"]
NAMES = {"v": "v_prediction", "epsilon": "epsilon"}  # as diffusers has them

# Predicts from noisy latents [M, L], the time of each grid [B], and conditions: [M, L].
Denoiser = Callable[[SparseTensor, Tensor, Conditions], SparseTensor]


@dataclass(frozen=True)
class DiffusionConfig(Config):
    """What a denoiser is trained for.

    Args:
        prediction: "v": the velocity (Salimans & Ho 2022, arXiv:2202.00512), as in the release; "epsilon": the noise
            (Ho et al. 2020, arXiv:2006.11239), both with the release's 1000 steps; "flow": the straight way from
            latents to noise (Liu et al. 2022, arXiv:2209.03003), in continuous time.
        times: In training, times of a flow are "uniform", or "logit-normal": more of them in the middle (Esser et al.
            2024, arXiv:2403.03206).
        shift: Of times of a flow, toward noise, as in the same paper.
    """

    prediction: Prediction = "v"
    times: Literal["uniform", "logit-normal"] = "logit-normal"
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.prediction not in get_args(Prediction):
            raise ValueError(f"prediction must be one of {', '.join(get_args(Prediction))}, got {self.prediction!r}")
        if self.times not in ("uniform", "logit-normal"):
            raise ValueError(f"times must be 'uniform' or 'logit-normal', got {self.times!r}")
        if not self.shift > 0:
            raise ValueError(f"shift must be positive, got {self.shift}")


class Diffusion:
    """Noise, and what is to be predicted."""

    def __init__(self, config: DiffusionConfig = DiffusionConfig()) -> None:
        self.config = config
        self.schedule: Any = None if config.prediction == "flow" else official_schedule()

    @property
    def is_flow(self) -> bool:
        """Whether time is continuous."""
        return self.schedule is None

    def times(self, count: int, generator: torch.Generator) -> Tensor:
        """Times to train at: integers from 0 to 999, [count], or for a flow numbers from 0 to 1000."""
        if not self.is_flow:
            return torch.randint(STEPS, (count,), generator=generator)
        if self.config.times == "uniform":
            share = torch.rand(count, generator=generator)
        else:
            share = torch.randn(count, generator=generator).sigmoid()
        shift = self.config.shift
        return STEPS * shift * share / (1 + (shift - 1) * share)

    def add_noise(self, latents: SparseTensor, noise: Tensor, t: Tensor | float) -> SparseTensor:
        """Latents with the noise [M, L] that they have at the time of their grid, [B] or one for all.

        Raises:
            ValueError: If shapes do not fit, or a time is out of range.
        """
        rows = self._rows(latents, noise, t)
        if self.is_flow:
            return latents.replace(torch.lerp(latents.feats, noise, (rows / STEPS).to(noise.dtype)[:, None]))
        return latents.map(lambda z: self.schedule.add_noise(z, noise, rows))

    def target(self, latents: SparseTensor, noise: Tensor, t: Tensor | float) -> Tensor:
        """What the denoiser should predict, [M, L]. Raises as `add_noise`."""
        rows = self._rows(latents, noise, t)
        if self.is_flow:
            return noise - latents.feats
        if self.config.prediction == "epsilon":
            return noise
        velocity: Tensor = self.schedule.get_velocity(latents.feats, noise, rows)
        return velocity

    def denoised(self, x: SparseTensor, prediction: Tensor, t: Tensor | float) -> SparseTensor:
        """The latents that a prediction [M, L] for noisy ones amounts to. Raises as `add_noise`."""
        rows = self._rows(x, prediction, t)
        if self.is_flow:
            return x.replace(x.feats - (rows / STEPS).to(x.dtype)[:, None] * prediction)
        kept = self.schedule.alphas_cumprod.to(x.device, x.dtype)[rows][:, None]
        if self.config.prediction == "epsilon":
            return x.replace((x.feats - (1 - kept).sqrt() * prediction) / kept.sqrt())
        return x.replace(kept.sqrt() * x.feats - (1 - kept).sqrt() * prediction)

    def loss(
        self, denoiser: Denoiser, latents: SparseTensor, conditions: Conditions, t: Tensor, noise: Tensor
    ) -> Tensor:
        """Mean squared error over all voxels and channels of the batch, as in the release: large grids count for more.

        0 if there is no voxel. Raises as `add_noise`.
        """
        predicted = denoiser(self.add_noise(latents, noise, t), t, conditions).feats
        target = self.target(latents, noise, t).to(predicted.dtype)
        return mean_or_zero(functional.mse_loss(predicted, target, reduction="none"))

    def _rows(self, latents: SparseTensor, noise: Tensor, t: Tensor | float) -> Tensor:
        """The time of each row, [M], after a look at the arguments."""
        if noise.shape != latents.feats.shape:
            raise ValueError(f"noise must have shape {list(latents.feats.shape)}, got {list(noise.shape)}")
        times = torch.as_tensor(t, device=latents.device)
        times = times.expand(latents.batch_size) if times.ndim == 0 else times
        if times.shape != (latents.batch_size,):
            raise ValueError(f"t must have an entry for each of {latents.batch_size} grids, got {list(times.shape)}")
        if not self.is_flow and times.is_floating_point():
            raise ValueError(f"t must be integers where there are {STEPS} steps, got {times.dtype}")
        last = STEPS if self.is_flow else STEPS - 1
        if times.numel() and not 0 <= float(times.min()) <= float(times.max()) <= last:
            raise ValueError(f"t must lie in [0, {last}], got {float(times.min())} to {float(times.max())}")
        return times[latents.grid.batch.long()]


class Noise:
    """Standard normal numbers that follow from a seed, the number of a shape and a level, whatever its batch is.

    A shape draws its numbers on the CPU, row by row, and goes on where it stopped: batches of other sizes, in another
    order, or on another device get the same ones.

    Args:
        seed: Of all shapes.
        shapes: Their numbers, one for each grid of the batch.
        level: Of the cascade.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If one is negative.
    """

    def __init__(self, seed: int, shapes: Sequence[int], level: int = 0) -> None:
        self._generators = [torch.Generator() for _ in shapes]
        for shape, generator in zip(shapes, self._generators, strict=True):
            parts = {"seed": seed, "shape": shape, "level": level}
            words = [checks.integer(name, value) for name, value in parts.items()]
            if min(words) < 0:
                raise ValueError(f"seed, shapes and level must not be negative, got {seed}, {shape}, {level}")
            # A list of three would be cut into words of 32 bits, and large seeds meet other shapes and levels.
            mixed = np.random.SeedSequence(words[0], spawn_key=tuple(words[1:]))
            generator.manual_seed(int(mixed.generate_state(1, np.uint64)[0] >> 1))

    def __call__(self, grid: Grid, channels: int) -> Tensor:
        """The next numbers, float32 [M, channels].

        Raises:
            ValueError: If the batch does not have as many grids as there are shapes.
        """
        if grid.batch_size != len(self._generators):
            raise ValueError(f"grid must have a batch of {len(self._generators)}, one a shape, got {grid.batch_size}")
        sizes = grid.offsets.diff().tolist()
        parts = [torch.randn(n, channels, generator=g) for n, g in zip(sizes, self._generators, strict=True)]
        return torch.cat([torch.zeros(0, channels), *parts]).to(grid.device)


def ddim_schedule(config: DiffusionConfig, spacing: str) -> Any:
    """A `DDIMScheduler` with the release's steps; the last one ends without noise."""
    from diffusers import DDIMScheduler  # slow to import

    return DDIMScheduler.from_config(
        official_schedule().config,
        prediction_type=NAMES[config.prediction],
        timestep_spacing=spacing,
        set_alpha_to_one=True,
        steps_offset=0,
    )
