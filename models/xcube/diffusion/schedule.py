"""Latents that a diffusion model has not quite finished: what the refinement network is trained on.

M latent voxels, L channels, B grids.
"""

from typing import Any

from torch import Tensor

from sparsevox import SparseTensor

STEPS = 1000


def official_schedule() -> Any:
    """A `DDPMScheduler` of 1000 steps with linear betas from 1e-4 to 0.02 that predicts the velocity."""
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
    """Latents with the noise that they have at a step of the diffusion (Ho et al. 2020, arXiv:2006.11239, equation 4).

    Args:
        latents: [M, L].
        steps: One for each grid, integers [B] from 0 to 999.
        noise: Standard normal [M, L].
        scale: What brings latents to unit standard deviation, 1 / their own: noise is added to the product, and the
            result divided by it. The paper's refinement adds it to the latents as they are.

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
