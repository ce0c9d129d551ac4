"""Fine-tuning of a denoiser of one step: `xcube train finetune`. Slow imports are inside the function."""

from pathlib import Path

import torch

from xcube.data.augment import Augment
from xcube.data.loading import ShapeFolder
from xcube.diffusion.objective import DiffusionConfig
from xcube.diffusion.samplers import SamplerConfig
from xcube.networks.losses import LossConfig
from xcube.networks.pretrained import WEIGHTS, digest, from_pretrained, read_config
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.training.checks import check_attributes, check_level
from xcube.training.config import TrainConfig

KNOWN = {"normal", "color", "fill", "label"}  # attributes of coarse voxels that are computed from finer ones


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
    steps: int = 10,
    fill_drop: float = 0.1,
    restart: bool = False,
    quiet: bool = False,
) -> UNet:
    """Fine-tune a denoiser of one step through the decoder of its VAE, or resume.

    A denoiser that is trained on the latents of true shapes does not know the errors of the coarser level, and the
    decoder does not know those of the denoiser: thin parts get gaps. Here the loss is that of the decoded voxels, and
    the coarse voxels are changed by the networks of the coarser level: their latents get noise and are denoised again.
    The result takes the place of the denoiser in a folder of networks.

    Args:
        data: Folder of a dataset made by `xcube data`.
        out: Output folder of the run.
        vae: Folder of the trained VAE of the same level.
        denoiser: Folder of the trained denoiser of the same level, whose sampler takes one step.
        coarse_vae: Folder of the trained VAE of the coarser level.
        coarse_denoiser: Folder of the trained denoiser of the coarser level.
        level: Level of the dataset, from 1; -1 is the finest.
        loss: Weights of the losses of the decoded voxels.
        train: Optimization.
        augment: Random changes of the training shapes.
        exact: Fraction of the batches with exact coarse voxels.
        strength: Maximum noise of the changed coarse voxels, as a fraction of the sampling steps of their level.
        steps: Number of sampling steps of the coarser level from pure noise.
        fill_drop: Fraction of the training shapes without solid fractions, so that the denoiser also upsamples voxels
            that have none.
        restart: Train from the given denoiser again, even if the folder holds a run.
        quiet: Hide the progress bar.

    Raises:
        FileNotFoundError: If there is no dataset, or a network is missing.
        OSError: If `out` cannot be written to.
        ValueError: If there is no such level, the networks do not fit each other or the data, an option is out of
            range, or a folder holds a damaged file, another network, or a run with other options.
    """
    decoder, network = from_pretrained(vae, VAE), from_pretrained(denoiser, UNet)
    metadata = read_config(denoiser)["metadata"]
    options = metadata.get("options", {})
    card = check_level(data, level, decoder.config.voxel_sizes, "vae")
    number = level % len(card.box.levels)
    if number == 0:
        raise ValueError(f"level must have a coarser one, got {level}")
    if options.get("vae") not in (None, digest(vae / WEIGHTS)):
        raise ValueError(f"denoiser must be trained with the VAE {vae}, got {denoiser}, a run with another VAE")

    import lightning

    from xcube.training.coarse import CoarseLevel
    from xcube.training.finetune import FinetuneModule
    from xcube.training.latents import ShapeConditions
    from xcube.training.run import train_module

    lightning.seed_everything(train.seed, verbose=False)
    coarse = CoarseLevel.from_pretrained(coarse_vae, coarse_denoiser, steps)
    check_level(data, number - 1, coarse.vae.config.voxel_sizes, "coarse_vae")
    if unknown := sorted(set(coarse.vae.config.attributes) - KNOWN):
        raise ValueError(f"coarse_vae must take attributes among {sorted(KNOWN)}, got one that takes {unknown}")
    check_attributes(data, card, {*decoder.config.attributes, *coarse.vae.config.attributes} - {"fill"})
    entries = ShapeFolder(data, None, level=level).entries
    categories: dict[str, torch.Tensor | None] = {
        split: ShapeConditions([e.name for e in entries if e.split == split], coarse.categories).category
        for split in ("train", "val")
    }
    module = FinetuneModule(
        network,
        train,
        decoder,
        coarse,
        scale=float(metadata["latent_scale"]),
        diffusion=DiffusionConfig.from_dict(metadata["diffusion"]),
        sampler=SamplerConfig.from_dict(metadata.get("sampler", {})),
        loss=loss,
        categories=categories,
        exact=exact,
        strength=strength,
        fill_drop=fill_drop,
    )
    used = {"vae": vae, "denoiser": denoiser, "coarse_vae": coarse_vae, "coarse_denoiser": coarse_denoiser}
    module.options |= {name: digest(folder / WEIGHTS) for name, folder in used.items()}
    module.options |= {name: options[name] for name in ("categories", "dropped") if name in options}
    train_module(module, data, out, level=level, augment=augment, restart=restart, quiet=quiet)
    return module.net.eval()
