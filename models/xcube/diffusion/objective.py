"""The diffusion of latents (section 3.3 of the paper): forward process, prediction target and loss of a denoiser.

Every grid of a batch has its own time: from 0, without noise, to 1000. M latent voxels, L channels, B grids.
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
NAMES = {"v": "v_prediction", "epsilon": "epsilon"}  # the names in diffusers

# Predicts from noisy latents [M, L], the time of each grid [B], and conditions: [M, L].
Denoiser = Callable[[SparseTensor, Tensor, Conditions], SparseTensor]


@dataclass(frozen=True)
class DiffusionConfig(Config):
    """The prediction target of a denoiser and the distribution of training times.

    Args:
        prediction: Prediction target: "v", the velocity (Salimans & Ho 2022, arXiv:2202.00512), as in the official
            code; "epsilon", the noise (Ho et al. 2020, arXiv:2006.11239), both with 1000 timesteps; or "flow", flow
            matching along straight paths in continuous time (Liu et al. 2022, arXiv:2209.03003).
        times: Distribution of training times for flow matching: "uniform", or "logit-normal" with more of them in the
            middle (Esser et al. 2024, arXiv:2403.03206).
        shift: Shift of times toward noise for flow matching, in training and sampling (Esser et al. 2024); 1 for none.
        first: Minimum time of training. A denoiser that is only called at high noise, for example once at full noise,
            learns more in the same number of steps if it is not trained at lower noise.
    """

    prediction: Prediction = "v"
    times: Literal["uniform", "logit-normal"] = "logit-normal"
    shift: float = 1.0
    first: int = 0

    def __post_init__(self) -> None:
        self._check_choices(prediction=get_args(Prediction), times=("uniform", "logit-normal"))
        if not self.shift > 0:
            raise ValueError(f"shift must be positive, got {self.shift}")
        if not 0 <= self.first < STEPS:
            raise ValueError(f"first must be a timestep, 0 to {STEPS - 1}, got {self.first}")


class Diffusion:
    """The forward process, which adds noise to latents, and the prediction target of a denoiser.

    schedule: The `DDPMScheduler` of diffusers, None for a flow.
    """

    def __init__(self, config: DiffusionConfig = DiffusionConfig()) -> None:
        self.config = config
        self.schedule: Any = None if config.prediction == "flow" else official_schedule()

    @property
    def is_flow(self) -> bool:
        """Whether the denoiser predicts a flow, in continuous time."""
        return self.schedule is None

    def times(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw times to train at, [count]: integers up to 999, or for a flow numbers up to 1000."""
        if not self.is_flow:
            return torch.randint(self.config.first, STEPS, (count,), generator=generator)
        if self.config.times == "uniform":
            fraction = torch.rand(count, generator=generator)
        else:
            fraction = torch.randn(count, generator=generator).sigmoid()
        shift = self.config.shift
        first = self.config.first
        return first + (STEPS - first) * shift * fraction / (1 + (shift - 1) * fraction)

    def add_noise(self, latents: SparseTensor, noise: Tensor, t: Tensor | float) -> SparseTensor:
        """Add noise [M, L] to latents, scaled by the time of their grid.

        Args:
            latents: Latents without noise, [M, L].
            noise: Standard normal noise, [M, L].
            t: Time of each grid, [B], or one for all of them.

        Raises:
            ValueError: If shapes do not fit, a time is out of range, or is not an integer, except for a flow.
        """
        rows = self._rows(latents, noise, t)
        if self.is_flow:
            return latents.replace(torch.lerp(latents.feats, noise, (rows / STEPS).to(noise.dtype)[:, None]))
        return latents.map(lambda z: self.schedule.add_noise(z, noise, rows))

    def add_noise_back(self, x: SparseTensor, noise: Tensor, before: float | None, after: float) -> SparseTensor:
        """Add noise [M, L] to noisy latents, from one time to a later one.

        Latents at a time are a z + b n of latents z without noise and standard normal noise n. This is one step of the
        forward process between any two times: the variances of both noises add up.

        Args:
            x: Noisy latents at the time `before`.
            noise: Standard normal noise, [M, L].
            before: The earlier time; None for latents without noise.
            after: The later time.
        """
        (a, b), (c, d) = (self._scales(time) for time in (before, after))
        factor = c / a
        return x.map(lambda z: factor * z + max(d**2 - (factor * b) ** 2, 0.0) ** 0.5 * noise)

    def _scales(self, time: float | None) -> tuple[float, float]:
        """The factors of latents and of noise at a time."""
        if time is None:
            return 1.0, 0.0
        if self.is_flow:
            return 1 - time / STEPS, time / STEPS
        kept = float(self.schedule.alphas_cumprod[round(time)])
        return kept**0.5, (1 - kept) ** 0.5

    def target(self, latents: SparseTensor, noise: Tensor, t: Tensor | float) -> Tensor:
        """Compute the prediction target of the denoiser, [M, L]. Takes and raises the same as `add_noise`."""
        rows = self._rows(latents, noise, t)
        if self.is_flow:
            return noise - latents.feats
        if self.config.prediction == "epsilon":
            return noise
        velocity: Tensor = self.schedule.get_velocity(latents.feats, noise, rows)
        return velocity

    def denoised(self, x: SparseTensor, prediction: Tensor, t: Tensor | float) -> SparseTensor:
        """Estimate the latents without noise from noisy ones and a prediction [M, L]. Raises as `add_noise`."""
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
        """Compute the mean squared error of the prediction over all voxels and channels of the batch.

        Larger grids have more weight, as in the official code. It is 0 if there are no voxels. Raises as `add_noise`.
        """
        predicted = denoiser(self.add_noise(latents, noise, t), t, conditions).feats
        target = self.target(latents, noise, t).to(predicted.dtype)
        return mean_or_zero(functional.mse_loss(predicted, target, reduction="none"))

    def _rows(self, latents: SparseTensor, noise: Tensor, t: Tensor | float) -> Tensor:
        """Check the arguments and return the time of each row, [M]."""
        if noise.shape != latents.feats.shape:
            raise ValueError(f"noise must have shape {list(latents.feats.shape)}, got {list(noise.shape)}")
        times = torch.as_tensor(t, device=latents.device)
        times = times.expand(latents.batch_size) if times.ndim == 0 else times
        if times.shape != (latents.batch_size,):
            raise ValueError(f"t must have an entry for each of {latents.batch_size} grids, got {list(times.shape)}")
        if not self.is_flow and times.is_floating_point():
            raise ValueError(f"t must be integers unless the denoiser predicts a flow, got {times.dtype}")
        last = STEPS if self.is_flow else STEPS - 1
        if times.numel() and not 0 <= float(times.min()) <= float(times.max()) <= last:
            raise ValueError(f"t must lie in [0, {last}], got {float(times.min())} to {float(times.max())}")
        return times[latents.grid.batch.long()]


class Noise:
    """A source of standard normal noise, in which the noise of a shape does not depend on the rest of its batch.

    The noise depends on the seed, the index of the shape and the level. Each shape has its own random generator on the
    CPU, so it gets the same numbers in batches of any size and order, and on any device.

    Args:
        seed: Seed of all shapes.
        shapes: Index of each shape of the batch.
        level: Level of the cascade; 0 is the coarsest.

    Raises:
        TypeError: If one of them is not an integer.
        ValueError: If one of them is negative.
    """

    def __init__(self, seed: int, shapes: Sequence[int], level: int = 0) -> None:
        self._generators = [torch.Generator() for _ in shapes]
        for shape, generator in zip(shapes, self._generators, strict=True):
            parts = {"seed": seed, "shape": shape, "level": level}
            words = [checks.integer(name, value) for name, value in parts.items()]
            if min(words) < 0:
                raise ValueError(f"seed, shapes and level must not be negative, got {seed}, {shape}, {level}")
            # As a list, the three would be split into words of 32 bits, and large seeds could give the same words.
            mixed = np.random.SeedSequence(words[0], spawn_key=tuple(words[1:]))
            generator.manual_seed(int(mixed.generate_state(1, np.uint64)[0] >> 1))

    def __call__(self, grid: Grid, channels: int) -> Tensor:
        """Draw the next numbers of each shape, float32 [M, channels].

        Raises:
            ValueError: If the batch does not have one grid per shape.
        """
        if grid.batch_size != len(self._generators):
            raise ValueError(f"grid must have a batch of {len(self._generators)}, one per shape, got {grid.batch_size}")
        sizes = grid.offsets.diff().tolist()
        parts = [torch.randn(n, channels, generator=g) for n, g in zip(sizes, self._generators, strict=True)]
        return torch.cat([torch.zeros(0, channels), *parts]).to(grid.device)


def ddim_schedule(config: DiffusionConfig, spacing: str) -> Any:
    """Make a `DDIMScheduler` with the 1000 steps of the official code. Its last step ends without noise."""
    from diffusers import DDIMScheduler  # slow to import

    return DDIMScheduler.from_config(
        official_schedule().config,
        prediction_type=NAMES[config.prediction],
        timestep_spacing=spacing,
        set_alpha_to_one=True,
        steps_offset=0,
    )
