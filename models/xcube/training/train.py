"""Networks from data sets: `xcube train`. What is slow to import is imported by what is called."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from xcube.data.dataset import Card, read_card
from xcube.diffusion.objective import DiffusionConfig
from xcube.networks.configs import RefinerConfig, UNetConfig, VAEConfig
from xcube.networks.losses import LossConfig
from xcube.networks.pretrained import WEIGHTS, digest, from_pretrained, read_config
from xcube.networks.refiner import Refiner
from xcube.networks.text_encoder import TextEncoder
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.training.config import TrainConfig


def train_vae(
    data: Path,
    out: Path,
    level: int = -1,
    model: VAEConfig = VAEConfig(),  # noqa: B008  (immutable)
    loss: LossConfig = LossConfig(),  # noqa: B008  (immutable)
    train: TrainConfig = TrainConfig(),  # noqa: B008  (immutable)
    restart: bool = False,
    quiet: bool = False,
) -> VAE:
    """Train the VAE of one level of a data set, or go on with it.

    The folder gets checkpoints, from which the same call goes on, logs for TensorBoard and as CSV, and in the end
    metrics.json and the network: config.json and model.safetensors.

    Args:
        data: Folder of a data set, as xcube data makes them.
        out: Folder of the run.
        level: Which level of the data set; 0 is the coarsest, -1 the finest.
        model: The network.
        loss: Weights of the losses.
        train: Optimization.
        restart: Begin anew, whatever is in the folder.
        quiet: Show no progress bar.

    Raises:
        FileNotFoundError: If there is no data set.
        OSError: If `out` cannot be written to.
        ValueError: If there is no such level, the model does not fit the data, or `out` holds something damaged,
            another network, or a run with other options.
    """
    card = _level_of(data, level, model.voxel_sizes)
    _attributes_of(data, card, model.attributes)
    import lightning

    from xcube.training import run
    from xcube.training.modules import TrainVAE

    lightning.seed_everything(train.seed, verbose=False)
    module = TrainVAE(VAE(model), train, loss)
    run.train(module, data, out, level=level, restart=restart, quiet=quiet)
    return module.net.eval()


def train_refiner(
    data: Path,
    out: Path,
    vae: Path,
    level: int = -1,
    model: RefinerConfig = RefinerConfig(),  # noqa: B008  (immutable)
    train: TrainConfig = TrainConfig(),  # noqa: B008  (immutable)
    first: int = 200,
    last: int = 400,
    unscaled: bool = False,
    restart: bool = False,
    quiet: bool = False,
) -> Refiner:
    """Train the refinement network of one level, on what its VAE decodes from noised latents.

    Args:
        data: Folder of a data set.
        out: Folder of the run.
        vae: Folder of the trained VAE.
        level: Which level of the data set; 0 is the coarsest, -1 the finest.
        model: The network.
        train: Optimization.
        first: Least step of the diffusion of which latents get the noise.
        last: Largest one.
        unscaled: Add noise to the latents as they are, as in the paper, and not to latents of unit deviation.
        restart: Begin anew, whatever is in the folder.
        quiet: Show no progress bar.

    Raises:
        FileNotFoundError: If there is no data set or no VAE.
        OSError: If `out` cannot be written to.
        ValueError: If there is no such level, the networks do not fit each other or the data, or a folder holds
            something damaged, another network, or a run with other options.
    """
    decoder = from_pretrained(vae, VAE)
    card = _level_of(data, level, (model.voxel_size,) * 3)
    _level_of(data, level, decoder.config.voxel_sizes, "vae")
    decoded = (decoder.config.normal, decoder.config.num_labels)
    if (model.normal and not decoder.config.normal) or model.num_labels not in (0, decoder.config.num_labels):
        asked = (model.normal, model.num_labels)
        raise ValueError(f"model must take the normal and num_labels {decoded} that the VAE decodes, got {asked}")
    _attributes_of(data, card, decoder.config.attributes)
    import lightning

    from xcube.data.loading import ShapeFolder
    from xcube.training import run
    from xcube.training.data import training_batches
    from xcube.training.modules import SCALE_SHAPES, TrainRefiner, latent_scale

    lightning.seed_everything(train.seed, verbose=False)
    known = read_config(vae)["metadata"].get("latent_scale")
    shapes = ShapeFolder(data, "train", level=level)
    if unscaled:
        scale = 1.0
    elif known is not None:
        scale = float(known)
    else:  # of a VAE from elsewhere
        scale = latent_scale(decoder, training_batches(shapes, train, 0, 0, 1), min(len(shapes), SCALE_SHAPES))
    module = TrainRefiner(Refiner(model), train, decoder, scale=scale, first=first, last=last)
    module.options["vae"] = digest(vae / WEIGHTS)
    run.train(module, data, out, level=level, restart=restart, quiet=quiet)
    return module.net.eval()


def train_denoiser(
    data: Path,
    out: Path,
    vae: Path,
    level: int = -1,
    model: UNetConfig = UNetConfig(),  # noqa: B008  (immutable)
    diffusion: DiffusionConfig = DiffusionConfig(),  # noqa: B008  (immutable)
    train: TrainConfig = TrainConfig(),  # noqa: B008  (immutable)
    drop: float = 0.1,
    dropped: tuple[Literal["normal", "label", "category", "text"], ...] = ("category", "text"),
    categories: tuple[str, ...] = (),
    captions: Path | None = None,
    text_model: str | None = None,
    tokenizer: str | None = None,
    cache: bool = True,
    restart: bool = False,
    quiet: bool = False,
) -> UNet:
    """Train the denoiser of one level of a data set on the latents of its VAE, or go on with it.

    Args:
        data: Folder of a data set.
        out: Folder of the run.
        vae: Folder of the trained VAE.
        level: Which level of the data set; 0 is the coarsest, -1 the finest.
        model: The network.
        diffusion: What it predicts.
        train: Optimization; its `voxels` are those of latent grids, if they are kept in memory.
        drop: Share of shapes without conditions, for guidance.
        dropped: Which conditions these lack.
        categories: How the names of the shapes of each category begin.
        captions: A JSON file with a text for each name.
        text_model: Folder or name of the CLIP text model that embeds them.
        tokenizer: The same of its tokenizer, if that lies elsewhere.
        cache: Keep the latents of all shapes in memory.
        restart: Begin anew, whatever is in the folder.
        quiet: Show no progress bar.

    Raises:
        FileNotFoundError: If there is no data set, no VAE or no file of captions.
        ImportError: If there are captions and transformers is not installed.
        OSError: If `out` cannot be written to.
        ValueError: If there is no such level, the networks do not fit each other or the data, or a folder holds
            something damaged, another network, or a run with other options.
    """
    encoder = from_pretrained(vae, VAE)
    text = None if text_model is None else TextEncoder.from_pretrained(text_model, tokenizer)
    _check_denoiser(data, level, encoder, model, categories, captions, text)

    import lightning

    from xcube.data.loading import ShapeFolder
    from xcube.training import run
    from xcube.training.data import training_batches
    from xcube.training.denoiser import TrainDenoiser
    from xcube.training.latents import Whole
    from xcube.training.modules import SCALE_SHAPES, latent_scale

    lightning.seed_everything(train.seed, verbose=False)
    shapes = ShapeFolder(data, "train", level=level)
    everything = ShapeFolder(data, None, level=level).entries
    texts = None if captions is None else json.loads(captions.read_text())
    whole = {
        split: Whole([e.name for e in everything if e.split == split], categories, texts, text)
        for split in ("train", "val")
    }
    known = read_config(vae)["metadata"].get("latent_scale")
    if known is None:  # a VAE from elsewhere
        known = latent_scale(encoder, training_batches(shapes, train, 0, 0, 1), min(len(shapes), SCALE_SHAPES))
    module = TrainDenoiser(
        UNet(model),
        train,
        encoder,
        scale=float(known),
        diffusion=diffusion,
        whole=whole,
        drop=drop,
        dropped=dropped,
        cache=cache,
    )
    module.options |= {"vae": digest(vae / WEIGHTS), "categories": list(categories)}
    module.options |= {"text_model": _found_anywhere(text_model), "tokenizer": _found_anywhere(tokenizer)}
    run.train(module, data, out, level=level, restart=restart, quiet=quiet)
    return module.net.eval()


def _found_anywhere(model: str | None) -> str | None:
    """The name of a model, or its folder as it is called wherever one stands."""
    return str(Path(model).resolve()) if model is not None and Path(model).is_dir() else model


def _level_of(data: Path, level: int, sizes: tuple[float, float, float], whose: str = "model") -> Card:
    """What there is to know of a data set, one of whose levels has voxels of these sizes."""
    card = read_card(data)
    count = len(card.box.levels)
    if not -count <= level < count:
        raise ValueError(f"level must be among the {count} of {card.box.levels}, got {level}")
    expected = card.box.voxel_size(level)
    if any(abs(size - expected) > 1e-5 * expected for size in sizes):
        given = sizes[0] if len(set(sizes)) == 1 else sizes
        raise ValueError(f"{whose} must have the voxel_size of the level, {expected}, got {given}")
    return card


def _attributes_of(data: Path, card: Card, needed: Collection[str]) -> None:
    missing = sorted(set(needed) - set(card.attributes))
    if missing:
        raise ValueError(
            f"data must have the attributes {sorted(needed)} that the model needs, got {data} without {missing}; "
            "build it with them, or switch them off in the model"
        )


def _check_denoiser(
    data: Path,
    level: int,
    vae: VAE,
    model: UNetConfig,
    categories: Sequence[str],
    captions: Path | None,
    text: TextEncoder | None,
) -> None:
    """Raise ValueError unless data, VAE, network and conditions fit each other."""
    config = vae.config
    card = _level_of(data, level, config.voxel_sizes, "vae")
    if model.latent_channels != config.latent_channels:
        raise ValueError(
            f"model must have the latent_channels of the VAE, {config.latent_channels}, got {model.latent_channels}"
        )
    if model.dense and config.dense_neck is None:
        raise ValueError("model can be dense only if the latents of the VAE fill a box; this VAE has no dense_neck")
    if model.extra:
        raise ValueError(f"model must have extra 0: data sets hold nothing of the kind, got {model.extra}")
    told = {"normal": model.normal, "label": model.num_labels > 0}
    _attributes_of(data, card, {*config.attributes, *(name for name, wanted in told.items() if wanted)})
    if model.categories != len(categories):
        raise ValueError(f"categories must be as many as the model has, {model.categories}, got {list(categories)}")
    channels = 0 if captions is None or text is None else text.channels
    if model.text_channels != channels:
        raise ValueError(
            f"model must have as many text_channels as the text model, {channels} (0 without captions or text_model), "
            f"got {model.text_channels}"
        )
