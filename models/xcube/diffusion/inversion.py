"""Inversion of a sampler: the noise from which it makes given latents.

M latent voxels, L channels.
"""

from itertools import pairwise

import torch

from sparsevox import SparseTensor
from xcube.diffusion.objective import Denoiser, Diffusion
from xcube.diffusion.samplers import SamplerConfig, Solver, check_guidance
from xcube.diffusion.schedule import STEPS
from xcube.networks.conditions import Conditions

ITERATIONS = 8  # by then, the rounding error of float32 dominates


def invert_flow(
    denoiser: Denoiser,
    latents: SparseTensor,
    *,
    diffusion: Diffusion,
    sampler: SamplerConfig,
    conditions: Conditions = Conditions(),  # noqa: B008  (immutable)
    unconditional: Conditions | None = None,
) -> SparseTensor:
    """Find the noise [M, L] from which a flow makes given latents [M, L]. Gradients are not computed.

    An Euler step from the time t to s is x_s = x_t + (s - t) v(x_t, t), with times as fractions. It is solved for x_t
    by fixed-point iteration (Pan et al. 2023, arXiv:2309.04907), from the last step of the sampler to the first.

    Args:
        denoiser: The denoiser, or any function of noisy latents, times [B] and conditions.
        latents: Latents without noise, scaled as those of the denoiser.
        diffusion: The diffusion process that the denoiser was trained with.
        sampler: The sampler that is inverted.
        conditions: The conditions of the denoiser.
        unconditional: The conditions of the second call of each step, for classifier-free guidance.

    Raises:
        ValueError: If the denoiser does not predict a flow, or there is guidance without `unconditional`.
    """
    if not diffusion.is_flow:
        raise ValueError(f"diffusion must be a flow to be inverted, got a prediction of {diffusion.config.prediction}")
    check_guidance(sampler, unconditional)
    times = [*Solver(sampler, diffusion.config).times, torch.zeros(())]
    x = latents
    with torch.no_grad():
        for t, s in reversed(list(pairwise(times))):
            after, rows = x.feats, t.to(latents.device).expand(latents.batch_size)
            for _ in range(ITERATIONS):
                velocity = denoiser(x, rows, conditions).feats  # [M, L]
                if sampler.weight != 1 and unconditional is not None:
                    velocity = torch.lerp(denoiser(x, rows, unconditional).feats, velocity, sampler.weight)
                x = x.replace(after + float(t - s) / STEPS * velocity)
    return x
