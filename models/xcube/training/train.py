"""Training of one network: `xcube train vae`, `denoiser` and `refiner`. Slow imports are inside functions."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from xcube.data.augment import Augment, AugmentedShapes
from xcube.data.captions import read_captions
from xcube.data.dataset import read_card, read_index
from xcube.data.loading import ShapeFolder
from xcube.diffusion.objective import DiffusionConfig
from xcube.diffusion.samplers import SamplerConfig
from xcube.networks.conditions import DROPPED, Droppable
from xcube.networks.configs import RefinerConfig, UNetConfig, VAEConfig
from xcube.networks.losses import LossConfig
from xcube.networks.pretrained import CONFIG, WEIGHTS, digest, from_pretrained, read_config
from xcube.networks.refiner import Refiner
from xcube.networks.text_encoder import TextEncoder
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.networks.words import vocabulary_of
from xcube.training.checks import check_attributes, check_level
from xcube.training.config import TrainConfig


def train_vae(
    data: Path,
    out: Path,
    level: int = -1,
    model: VAEConfig = VAEConfig(),  # noqa: B008  (immutable)
    loss: LossConfig = LossConfig(),  # noqa: B008  (immutable)
    train: TrainConfig = TrainConfig(),  # noqa: B008  (immutable)
    augment: Augment = Augment(),  # noqa: B008  (immutable)
    initial: Path | None = None,
    restart: bool = False,
    quiet: bool = False,
) -> VAE:
    """Train the VAE of one level of a dataset, or resume.

    Checkpoints and logs (TensorBoard and CSV) are written to the output folder, at the end also metrics.json and the
    network: config.json and model.safetensors. The same command resumes after an interruption.

    Args:
        data: Folder of a dataset made by `xcube data`.
        out: Output folder of the run.
        level: Level of the dataset; 0 is the coarsest, -1 the finest.
        model: Architecture of the VAE.
        loss: Weights of the losses.
        train: Optimization.
        augment: Random changes of the training shapes.
        initial: Folder of a trained network with the same configuration. Training starts from its weights instead of
            random ones.
        restart: Train from scratch, or from `initial` again, even if the folder holds a run.
        quiet: Hide the progress bar.

    Raises:
        FileNotFoundError: If there is no dataset, or no network in `initial`.
        OSError: If `out` cannot be written to.
        ValueError: If there is no such level, the model does not fit the data, or `out` holds a damaged file, another
            network, or a run with other options.
    """
    card = check_level(data, level, model.voxel_sizes)
    check_attributes(data, card, model.attributes)
    import lightning

    from xcube.training.initial import load_initial
    from xcube.training.modules import VAEModule
    from xcube.training.run import train_module

    lightning.seed_everything(train.seed, verbose=False)
    module = VAEModule(VAE(model), train, loss)
    if initial is not None:
        load_initial(module, initial, out)
    train_module(module, data, out, level=level, augment=augment, restart=restart, quiet=quiet)
    return module.net.eval()


def train_refiner(
    data: Path,
    out: Path,
    vae: Path,
    level: int = -1,
    model: RefinerConfig = RefinerConfig(),  # noqa: B008  (immutable)
    train: TrainConfig = TrainConfig(),  # noqa: B008  (immutable)
    augment: Augment = Augment(),  # noqa: B008  (immutable)
    first: int = 200,
    last: int = 400,
    unscaled: bool = False,
    initial: Path | None = None,
    restart: bool = False,
    quiet: bool = False,
) -> Refiner:
    """Train the refiner of one level on grids that its VAE decodes from noisy latents, or resume.

    Args:
        data: Folder of a dataset made by `xcube data`.
        out: Output folder of the run.
        vae: Folder of the trained VAE of the same level.
        level: Level of the dataset; 0 is the coarsest, -1 the finest.
        model: Architecture of the refiner.
        train: Optimization.
        augment: Random changes of the training shapes.
        first: Minimum diffusion timestep of the noise that is added to latents, from 0 to 999.
        last: Maximum diffusion timestep of the noise that is added to latents, from 0 to 999.
        unscaled: Add the noise to unscaled latents, as in the paper, instead of latents of unit standard deviation.
        initial: Folder of a trained network with the same configuration. Training starts from its weights instead of
            random ones.
        restart: Train from scratch, or from `initial` again, even if the folder holds a run.
        quiet: Hide the progress bar.

    Raises:
        FileNotFoundError: If there is no dataset, no VAE or no network in `initial`.
        OSError: If `out` cannot be written to.
        ValueError: If there is no such level, the networks do not fit each other or the data, or a folder holds a
            damaged file, another network, or a run with other options.
    """
    decoder = from_pretrained(vae, VAE)
    card = check_level(data, level, (model.voxel_size,) * 3)
    check_level(data, level, decoder.config.voxel_sizes, "vae")
    decoded = (decoder.config.normal, decoder.config.num_labels)
    if (model.normal and not decoder.config.normal) or model.num_labels not in (0, decoder.config.num_labels):
        got = (model.normal, model.num_labels)
        raise ValueError(f"model must have the normal and num_labels that the VAE decodes, {decoded}, got {got}")
    check_attributes(data, card, decoder.config.attributes)
    import lightning

    from xcube.training.initial import load_initial
    from xcube.training.modules import RefinerModule
    from xcube.training.run import train_module

    lightning.seed_everything(train.seed, verbose=False)
    shapes = ShapeFolder(data, "train", level=level)
    scale = 1.0 if unscaled else _latent_scale(vae, decoder, AugmentedShapes(shapes, augment, train.seed), train)
    module = RefinerModule(Refiner(model), train, decoder, scale=scale, first=first, last=last)
    module.options["vae"] = digest(vae / WEIGHTS)
    if initial is not None:
        load_initial(module, initial, out)
    train_module(module, data, out, level=level, augment=augment, restart=restart, quiet=quiet)
    return module.net.eval()


def train_denoiser(
    data: Path,
    out: Path,
    vae: Path,
    level: int = -1,
    model: UNetConfig = UNetConfig(),  # noqa: B008  (immutable)
    diffusion: DiffusionConfig = DiffusionConfig(),  # noqa: B008  (immutable)
    train: TrainConfig = TrainConfig(),  # noqa: B008  (immutable)
    augment: Augment = Augment(),  # noqa: B008  (immutable)
    drop: float = 0.1,
    dropped: tuple[Droppable, ...] = DROPPED,
    drop_each: float = 0.0,
    latents: Literal["samples", "means"] = "samples",
    normal_noise: float = 0.0,
    color_noise: float = 0.0,
    fill_noise: float = 0.0,
    fill_drop: float = 0.0,
    unobserved: float | None = None,
    sampler: SamplerConfig = SamplerConfig(),  # noqa: B008  (immutable)
    categories: tuple[str, ...] = (),
    captions: Path | None = None,
    least_captions: int = 8,
    word_steps: int = 4000,
    text_model: str | None = None,
    tokenizer: str | None = None,
    cache: bool = True,
    initial: Path | None = None,
    restart: bool = False,
    quiet: bool = False,
) -> UNet:
    """Train the denoiser of one level of a dataset on the latents of its VAE, or resume.

    Args:
        data: Folder of a dataset made by `xcube data`.
        out: Output folder of the run.
        vae: Folder of the trained VAE of the same level.
        level: Level of the dataset; 0 is the coarsest, -1 the finest.
        model: Architecture of the denoiser.
        diffusion: Diffusion process and prediction target.
        train: Optimization.
        augment: Random changes of the training shapes.
        drop: Fraction of shapes whose conditions are dropped in training, for classifier-free guidance.
        dropped: Names of the conditions to drop.
        drop_each: Fraction of shapes that lose each of these conditions in training, independently of the others, so
            that some of them are enough.
        latents: What the denoiser learns to make: "samples" of the posterior of the VAE, or its "means".
        normal_noise: Standard deviation of the noise that is added to normals, the condition, in training, so that the
            denoiser is robust to the errors of the coarser level.
        color_noise: Standard deviation of the noise that is added to colors, the condition, in training.
        fill_noise: Standard deviation of the noise that is added to solid fractions, the condition, in training.
        fill_drop: Fraction of the training shapes without solid fractions, so that the denoiser also upsamples voxels
            that have none.
        unobserved: Fraction of the training shapes of which nothing is observed, if the network takes observations;
            half of them by default.
        sampler: Default sampler of pipelines with this denoiser.
        categories: Categories to condition on. A shape has a category if its name begins with it.
        captions: JSON file that maps the name of each shape to its text, or to a list of texts in several wordings, of
            which one is chosen at random. Without a text model the network learns to read them itself; their words are
            the vocabulary, if enough shapes have them (`least_captions`).
        least_captions: Minimum number of shapes with a word in one of their texts, for words of the vocabulary.
        word_steps: Number of steps in which the text encoder of the network learns to predict the latents of shapes
            from their captions, before the training; not if `initial` knows words.
        text_model: Folder or Hugging Face name of the CLIP text model that embeds the texts.
        tokenizer: Folder or Hugging Face name of the tokenizer, if it is not in the folder of the text model.
        cache: Keep the latents of all shapes in memory instead of encoding them at every step.
        initial: Folder of a trained network with the same configuration, except that it may take no observations and no
            words. Training starts from its weights instead of random ones.
        restart: Train from scratch, or from `initial` again, even if the folder holds a run.
        quiet: Hide the progress bar.

    Raises:
        FileNotFoundError: If there is no dataset, no VAE, no file of captions or no network in `initial`.
        ImportError: If there are captions and transformers is not installed.
        OSError: If `out` cannot be written to.
        ValueError: If there is no such level, the networks do not fit each other or the data, or a folder holds a
            damaged file, another network, or a run with other options.
    """
    encoder = from_pretrained(vae, VAE)
    text = None if text_model is None else TextEncoder.from_pretrained(text_model, tokenizer)
    texts = None if captions is None else read_captions(captions)
    words: tuple[str, ...] = ()
    if texts is not None and text is None:
        entries = read_index(data, read_card(data))
        joined = (" ".join(texts.get(entry.name, ())) for entry in entries if entry.split == "train")
        words = vocabulary_of(joined, least_captions)
        if not words:
            raise ValueError(
                f"captions must have words that {least_captions} training shapes of {data} have (least_captions), got "
                f"none in {captions}"
            )
        edges = encoder.config.dense_neck if model.dense else None
        box = 0 if edges is None else 8 * math.prod(edges)
        model = replace(model, words=model.words or len(words), box=model.box or box)
    _check_denoiser(data, level, encoder, model, categories, text, words)

    import lightning

    from xcube.training.denoiser import DenoiserModule
    from xcube.training.initial import load_initial
    from xcube.training.latents import ShapeConditions
    from xcube.training.run import train_module

    lightning.seed_everything(train.seed, verbose=False)
    shapes = ShapeFolder(data, "train", level=level)
    everything = ShapeFolder(data, None, level=level).entries
    conditions = {
        split: ShapeConditions([e.name for e in everything if e.split == split], categories, texts, text, words)
        for split in ("train", "val")
    }
    scale = _latent_scale(vae, encoder, AugmentedShapes(shapes, augment, train.seed), train)
    module = DenoiserModule(
        UNet(model),
        train,
        encoder,
        scale=scale,
        diffusion=diffusion,
        shape_conditions=conditions,
        drop=drop,
        dropped=dropped,
        drop_each=drop_each,
        latents=latents,
        normal_noise=normal_noise,
        color_noise=color_noise,
        fill_noise=fill_noise,
        fill_drop=fill_drop,
        unobserved=unobserved,
        sampler=sampler,
        cache=cache,
        word_steps=word_steps if words and model.dense and cache and not _reads(initial) else 0,
    )
    module.options |= {"vae": digest(vae / WEIGHTS), "categories": list(categories)}
    module.options |= {"text_model": _absolute(text_model), "tokenizer": _absolute(tokenizer)}
    if words and captions is not None:
        module.options |= {"words": list(words), "captions": digest(captions)}
    if initial is not None:
        load_initial(module, initial, out)
    train_module(module, data, out, level=level, augment=augment, restart=restart, quiet=quiet)
    return module.net.eval()


def _latent_scale(folder: Path, vae: VAE, shapes: AugmentedShapes, train: TrainConfig) -> float:
    """The latent scale recorded in the folder of a VAE or, for a VAE that no run trained, the measured one."""
    from xcube.training.data import training_batches
    from xcube.training.modules import SCALE_SHAPES, latent_scale

    known = read_config(folder)["metadata"].get("latent_scale")
    if known is not None:
        return float(known)
    return latent_scale(vae, training_batches(shapes, train, 0, 0, 1), min(len(shapes), SCALE_SHAPES))


def _reads(initial: Path | None) -> bool:
    """Whether a network knows words."""
    if initial is None or not (initial / CONFIG).is_file():
        return False  # `load_initial` says what is missing
    return bool(read_config(initial)["config"].get("words"))


def _absolute(model: str | None) -> str | None:
    """The name of a model, or the absolute path of its folder."""
    return str(Path(model).resolve()) if model is not None and Path(model).is_dir() else model


def _check_denoiser(
    data: Path,
    level: int,
    vae: VAE,
    model: UNetConfig,
    categories: Sequence[str],
    text: TextEncoder | None,
    words: Sequence[str],
) -> None:
    """Raise ValueError unless data, VAE, network and conditions fit each other."""
    config = vae.config
    card = check_level(data, level, config.voxel_sizes, "vae")
    if model.latent_channels != config.latent_channels:
        raise ValueError(
            f"model must have the latent_channels of the VAE, {config.latent_channels}, got {model.latent_channels}"
        )
    if model.dense and config.dense_neck is None:
        raise ValueError("model must not be dense: the latents of a VAE without dense_neck do not fill a box")
    if model.fill and config.dense_neck is not None:
        raise ValueError("model must have fill off: the latents of a VAE with dense_neck have no coarser level")
    if model.extra:
        raise ValueError(f"model must have extra 0, since datasets hold no extra conditions, got {model.extra}")
    conditions = {"normal": model.normal, "color": model.color, "label": model.num_labels > 0}
    check_attributes(data, card, {*config.attributes, *(name for name, used in conditions.items() if used)})
    if model.categories != len(categories):
        raise ValueError(f"categories must have {model.categories} entries, as the model, got {list(categories)}")
    channels = 0 if text is None else text.channels
    if model.text_channels != channels:
        raise ValueError(
            f"model must have the text_channels of the text model, {channels} (0 without text_model), got "
            f"{model.text_channels}"
        )
    if model.box not in (0, 0 if config.dense_neck is None else 8 * math.prod(config.dense_neck)):
        raise ValueError(f"model must have the box of the VAE, with a dense_neck {config.dense_neck}, got {model.box}")
    if model.words != len(words):
        raise ValueError(f"model must have as many words as the captions, {len(words)}, or 0, got {model.words}")
