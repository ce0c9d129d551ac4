"""Networks from data sets: what `xcube train` calls."""

from pathlib import Path

import lightning

from xcube.config import VAEConfig
from xcube.data.loading import ShapeFolder
from xcube.losses import LossConfig
from xcube.pretrained import from_pretrained, read_config
from xcube.refine import RefineConfig, Refiner
from xcube.training.config import TrainConfig
from xcube.training.data import training_batches
from xcube.training.modules import TrainRefiner, TrainVAE, latent_scale
from xcube.training.run import train
from xcube.vae import VAE


def train_vae(
    data: Path,
    out: Path,
    level: int = -1,
    model: VAEConfig = VAEConfig(),  # noqa: B008  (immutable)
    loss: LossConfig = LossConfig(),  # noqa: B008  (immutable)
    train_config: TrainConfig = TrainConfig(),  # noqa: B008  (immutable)
    resume: bool = True,
    progress: bool = True,
) -> VAE:
    """Train the VAE of one level of a data set, or go on with it.

    Args:
        data: Folder of a data set, as `xcube data` makes them.
        out: Folder of the run: checkpoints, logs and the network.
        level: Which level of the data set; 0 is the coarsest, -1 the finest.
        model: The network.
        loss: Weights of the losses.
        train_config: Optimisation.
        resume: Whether to go on from the last checkpoint in `out`.
        progress: Whether to show a bar.
    """
    lightning.seed_everything(train_config.seed, verbose=False)
    shapes = ShapeFolder(data, "train", level=level)
    expected = shapes.card.box.voxel_size(level)
    if any(abs(size - expected) > 1e-5 * expected for size in model.voxel_sizes):
        raise ValueError(f"model must have the voxel_size of the level, {expected}, got {model.voxel_size}")
    module = TrainVAE(VAE(model), train_config, loss)
    train(module, data, out, level=level, resume=resume, progress=progress)
    return module.net.eval()


def train_refine(
    data: Path,
    out: Path,
    vae: Path,
    level: int = -1,
    model: RefineConfig = RefineConfig(),  # noqa: B008  (immutable)
    train_config: TrainConfig = TrainConfig(),  # noqa: B008  (immutable)
    first: int = 200,
    last: int = 400,
    scaled: bool = True,
    resume: bool = True,
    progress: bool = True,
) -> Refiner:
    """Train the refinement network of one level on what its VAE decodes from noised latents.

    Args:
        data: Folder of a data set.
        out: Folder of the run.
        vae: Folder of the trained VAE.
        level: Which level of the data set.
        model: The network.
        train_config: Optimisation.
        first: Least step of the diffusion of which latents get the noise.
        last: Largest one.
        scaled: Whether latents are brought to unit standard deviation first; the paper's are not.
        resume: Whether to go on from the last checkpoint in `out`.
        progress: Whether to show a bar.
    """
    lightning.seed_everything(train_config.seed, verbose=False)
    decoder = from_pretrained(vae, VAE)
    known = read_config(vae)["facts"].get("latent_scale")
    shapes = ShapeFolder(data, "train", level=level)
    if not scaled:
        scale = 1.0
    elif known is not None:
        scale = float(known)
    else:
        scale = latent_scale(decoder, training_batches(shapes, train_config, 0, 0, 1))
    module = TrainRefiner(Refiner(model), train_config, decoder, scale=scale, first=first, last=last)
    train(module, data, out, level=level, resume=resume, progress=progress, latent_scale=scale)
    return module.net.eval()
