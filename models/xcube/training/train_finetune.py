"""Fine-tuning of a one-step denoiser: `xcube train finetune`. Slow imports are inside the function."""

import math
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from xcube.data.augment import Augment
from xcube.data.loading import ShapeFolder
from xcube.networks.losses import LossConfig
from xcube.networks.pretrained import WEIGHTS, digest, from_pretrained
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.training.checks import check_attributes, check_level
from xcube.training.config import TrainConfig

COMPUTED = {"normal", "color", "fill", "label"}  # attributes of coarse voxels that `true_attributes` computes


def train_finetune(
    data: Path,
    out: Path,
    vae: Path,
    denoiser: Path,
    coarse_vae: Path,
    coarse_denoiser: Path,
    level: int = -1,
    loss: LossConfig = LossConfig(),  # noqa: B008  (immutable)
    train: TrainConfig = TrainConfig(),  # noqa: B008  (immutable)
    augment: Augment = Augment(),  # noqa: B008  (immutable)
    exact: float = 0.3,
    strength: float = 0.6,
    coarse_steps: int = 10,
    fill_drop: float = 0.1,
    observed: bool = False,
    unobserved: float | None = None,
    restart: bool = False,
    quiet: bool = False,
) -> UNet:
    """Fine-tune a one-step denoiser through the decoder of its VAE, or resume.

    A denoiser that is trained on the latents of true shapes does not know the errors of the coarser level, and the
    decoder does not know those of the denoiser: thin parts get gaps. Here the loss is that of the decoded voxels, and
    the coarse voxels are changed by the networks of the coarser level: their latents get noise and are denoised again.
    In a folder of runs, the network in finetune-1 is used in place of the one in denoiser-1.

    Args:
        data: Folder of a dataset made by `xcube data`.
        out: Output folder of the run.
        vae: Folder of the trained VAE of the same level.
        denoiser: Folder of the trained denoiser of the same level, whose sampler takes one step.
        coarse_vae: Folder of the trained VAE of the coarser level.
        coarse_denoiser: Folder of the trained denoiser of the coarser level.
        level: Level of the dataset, from 1; -1 is the finest.
        loss: Weights of the losses of the decoded voxels; those of the divergence have no effect.
        train: Optimization.
        augment: Random changes of the training shapes.
        exact: Fraction of the batches with exact coarse voxels.
        strength: Maximum noise of the changed coarse voxels, as a fraction of the sampling steps of their level.
        coarse_steps: Number of sampling steps of the coarser level from pure noise.
        fill_drop: Fraction of the training shapes without solid fractions, so that the denoiser also upsamples voxels
            that have none.
        observed: Whether the denoiser takes partial observations of the finer voxels, too, for completion. One that did
            not take them starts without an effect of them.
        unobserved: Fraction of the training shapes of which nothing is observed, if the denoiser takes observations;
            half of them by default.
        restart: Train from the given denoiser again, even if the folder holds a run.
        quiet: Hide the progress bar.

    Raises:
        FileNotFoundError: If there is no dataset, or a network is missing.
        OSError: If `out` cannot be written to.
        ValueError: If there is no such level, the networks do not fit each other or the data, an option is out of
            range, or a folder holds a damaged file, another network, or a run with other options.
    """
    decoder, coarse_decoder = from_pretrained(vae, VAE), from_pretrained(coarse_vae, VAE)
    card = check_level(data, level, decoder.config.voxel_sizes, "vae")
    number = level % len(card.box.levels)
    if number == 0:
        raise ValueError(f"level must have a coarser one, got {level}")
    check_level(data, number - 1, coarse_decoder.config.voxel_sizes, "coarse_vae")
    coarse_attributes = set(coarse_decoder.config.attributes)
    if unknown := sorted(coarse_attributes - COMPUTED):
        raise ValueError(f"coarse_vae must take attributes among {sorted(COMPUTED)}, got one that takes {unknown}")
    check_attributes(data, card, {*decoder.config.attributes, *(coarse_attributes - {"fill"})})

    import lightning

    from xcube.training.coarse import CoarseLevel, TrainedDenoiser
    from xcube.training.finetune import FinetuneModule
    from xcube.training.initial import with_observations
    from xcube.training.latents import ShapeConditions
    from xcube.training.run import train_module

    lightning.seed_everything(train.seed, verbose=False)
    own = TrainedDenoiser.from_pretrained(denoiser, vae, "denoiser")
    if observed:
        own = replace(own, net=with_observations(own.net, math.prod(decoder.config.factor)))
    coarser = TrainedDenoiser.from_pretrained(coarse_denoiser, coarse_vae, "coarse_denoiser")
    entries = ShapeFolder(data, None, level=level).entries

    def categories(names: tuple[str, ...]) -> dict[str, Tensor | None]:
        splits = {split: [e.name for e in entries if e.split == split] for split in ("train", "val")}
        return {split: ShapeConditions(shapes, names).category for split, shapes in splits.items()}

    module = FinetuneModule(
        own,
        train,
        decoder,
        CoarseLevel(coarse_decoder, coarser, coarse_steps),
        loss=loss,
        categories=categories(own.categories),
        coarse_categories=categories(coarser.categories),
        exact=exact,
        strength=strength,
        fill_drop=fill_drop,
        unobserved=unobserved,
    )
    used = {"vae": vae, "denoiser": denoiser, "coarse_vae": coarse_vae, "coarse_denoiser": coarse_denoiser}
    module.options |= {name: digest(folder / WEIGHTS) for name, folder in used.items()}
    module.options |= {"categories": list(own.categories), "dropped": []}  # guidance would need dropped conditions
    module.options |= {"words": list(own.words)} if own.words else {}
    train_module(module, data, out, level=level, augment=augment, restart=restart, quiet=quiet)
    return module.net.eval()
