"""A start for the text encoder of a denoiser: captions predict the latents of their shapes.

Trained from scratch with the denoiser, captions would be distinguished slowly, since most of the loss is at times when
noisy latents say more than a caption. At full noise the best prediction is the mean of the latents that fit the
caption, which is what is learned here. N shapes, S words, M latent voxels of a shape, L latent channels.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional

from xcube.networks.words import WordEncoder

BATCH, RATE = 64, 2e-3


def teach_words(
    encoder: WordEncoder,
    latents: Tensor,
    words_of: Callable[[Tensor, torch.Generator], Tensor],
    steps: int,
    iterate: Callable[[Iterable[int]], Iterable[int]] = iter,
    seed: int = 0,
) -> float:
    """Train a text encoder to guess the latents of shapes. The layer of its embedding stays as it is.

    Args:
        encoder: The text encoder, in place.
        latents: Latents of all shapes, [N, M * L], in the scale of the denoiser.
        words_of: Function that chooses a caption for each of some shapes, given their numbers int64 [B] and a random
            generator on the CPU, and returns its words, int64 [B, S].
        steps: Number of steps, each with the captions of 64 shapes.
        iterate: Function that shows a progress bar.
        seed: Random seed of the shapes and captions.

    Returns:
        The fraction of the variance of the latents that captions explain in the last tenth of the steps.
    """
    generator = torch.Generator().manual_seed(seed)
    assert encoder.guess is not None
    variance = float((latents - latents.mean(0)).square().mean())
    with torch.no_grad():
        encoder.guess.bias.copy_(latents.mean(0))
    trained = [value for name, value in encoder.named_parameters() if not name.startswith("out.")]
    optimizer = torch.optim.AdamW(trained, RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, max(steps, 2))
    errors = []
    with torch.enable_grad():
        for step in iterate(range(steps)):
            chosen = torch.randint(len(latents), (BATCH,), generator=generator)
            words = words_of(chosen, generator).to(latents.device)
            guess = encoder.guess(encoder.features(words))
            loss = functional.mse_loss(guess, latents[chosen.to(latents.device)])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step >= steps - max(steps // 10, 1):
                errors.append(float(loss.detach()))
    return 1 - sum(errors) / max(len(errors), 1) / max(variance, 1e-12)
