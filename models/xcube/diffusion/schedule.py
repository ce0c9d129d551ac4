"""The noise schedule of the official code, and the noisy latents that the refiner is trained on.

M latent voxels, L channels, B grids.
"""

from typing import Any

from torch import Tensor

from sparsevox import SparseTensor

STEPS = 1000


def official_schedule() -> Any:
    """Make a `DDPMScheduler` with 1000 steps and linear betas from 1e-4 to 0.02 that predicts the velocity."""
    from diffusers import DDPMScheduler  # slow to import

    return DDPMScheduler(
        num_train_timesteps=STEPS,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        clip_sample=False,
    )


def add_ddpm_noise(latents: SparseTensor, steps: Tensor, noise: Tensor, scale: float = 1.0) -> SparseTensor:
    """Add the noise of a step of the diffusion process to latents (Ho et al. 2020, arXiv:2006.11239, equation 4).

    Args:
        latents: Latents without noise, [M, L].
        steps: Step of each grid, integers [B] from 0 to 999.
        noise: Standard normal noise, [M, L].
        scale: Factor that brings the latents to unit standard deviation. They are multiplied by it before noise is
            added, and divided by it afterwards. The paper adds noise to the latents as they are.

    Raises:
        ValueError: If there is not one step for each grid, or one is out of range.
    """
    if steps.shape != (latents.batch_size,):
        raise ValueError(f"steps must have one entry for each of {latents.batch_size} grids, got {list(steps.shape)}")
    if steps.numel() and not 0 <= int(steps.min()) <= int(steps.max()) < STEPS:
        raise ValueError(f"steps must lie in [0, {STEPS}), got {steps.tolist()}")
    if not latents.feats.numel():
        return latents
    per_row = steps.to(latents.device)[latents.grid.batch.long()].cpu()
    schedule = official_schedule()
    return latents.map(lambda z: schedule.add_noise(z * scale, noise, per_row) / scale)
