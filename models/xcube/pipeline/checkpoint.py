"""The folder of a pipeline: the networks of all levels, and `pipeline.json`, which assigns them to levels."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch

from sparsevox import checks
from sparsevox.files import atomic_write
from xcube.diffusion.objective import DiffusionConfig
from xcube.diffusion.samplers import SamplerConfig
from xcube.networks.conditions import DROPPED
from xcube.networks.pretrained import CONFIG, KINDS, WEIGHTS, digest, from_pretrained, read_config, save_pretrained
from xcube.networks.quantize import Bits
from xcube.networks.refiner import Refiner
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.pipeline.inputs import box_size
from xcube.pipeline.level import Level, Size, check_levels, level_resolutions
from xcube.pipeline.packaged import INDEX

FORMAT = 1
FINETUNED = "finetune"  # the subfolders of fine-tuned denoisers
OLD_NAMES = {"denoiser": "diffusion", "refiner": "refine"}  # of the subfolders that earlier versions wrote

M = TypeVar("M", bound=torch.nn.Module)


@dataclass(frozen=True)
class TextSource:
    """Arguments of `xcube.networks.text_encoder.TextEncoder.from_pretrained`, which loads the text model."""

    model: str
    tokenizer: str | None = None
    subfolder: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """The content of the folder of a pipeline.

    Args:
        levels: Networks of each level, coarse to fine.
        size: Edge lengths of the box, centered at the origin, in world units; None if they are not recorded.
        text: Source of the text encoder, if it is recorded.
    """

    levels: tuple[Level, ...]
    size: Size | None = None
    text: TextSource | None = None


def read_pipeline(folder: str | PathLike[str], resolution: int | None = None) -> Checkpoint:
    """Load the networks of a folder, onto the CPU.

    `pipeline.json` names the subfolders of each level. Without it they are vae-0, denoiser-0, refiner-0, vae-1 and so
    on, where refiners may be missing, and finetune-1 takes the place of denoiser-1.

    Args:
        folder: The folder.
        resolution: Number of voxels of the finest level to load along the first axis of the box; by default the one
            that `pipeline.json` names, or that of the last level.

    Raises:
        FileNotFoundError: If there is no such folder, or no pipeline in it.
        TypeError: If `resolution` is not an integer.
        ValueError: If `pipeline.json` is damaged or of another format, a network is missing or damaged, networks do not
            fit each other, or no level has this resolution.
    """
    path = Path(folder)
    index = _read_index(path) if (path / INDEX).is_file() else _usual_index(path)
    levels = tuple(_read_level(path, number, names) for number, names in enumerate(index["levels"]))
    size, text = index.get("box"), index.get("text")
    if size is None:
        size = levels[0].metadata["vae"].get("size")
    if text is None:
        runs = (level.metadata["denoiser"].get("options", {}) for level in levels)
        text = next(
            ({"model": o["text_model"], "tokenizer": o["tokenizer"]} for o in runs if o.get("text_model")), None
        )
    check_levels(levels)
    try:
        edges = None if size is None else (float(size[0]), float(size[1]), float(size[2]))
        source = None if text is None else TextSource(**text)
    except (IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: box must be three edges and text name a model, got {size} and {text}") from error
    wanted = index.get("resolution") if resolution is None else checks.integer("resolution", resolution)
    if wanted is not None:
        found = level_resolutions(levels, box_size(levels[0], edges))
        if wanted not in found:
            raise ValueError(f"resolution must be one of {', '.join(map(str, found))} for {path}, got {wanted!r}")
        levels = levels[: found.index(wanted) + 1]
    return Checkpoint(levels, edges, source)


def write_pipeline(checkpoint: Checkpoint, folder: str | PathLike[str], bits: Bits = 32) -> None:
    """Write the networks to subfolders of a folder, with this many bits per weight, and then `pipeline.json`."""
    path = Path(folder)
    entries = []
    for number, level in enumerate(checkpoint.levels):
        known = {
            "latent_scale": level.latent_scale,
            "diffusion": level.diffusion.to_dict(),
            "sampler": level.sampler.to_dict(),
            "options": dict(level.metadata.get("denoiser", {}).get("options", {}))
            | {"categories": list(level.categories), "dropped": list(level.dropped)}
            | ({"words": list(level.words)} if level.words else {}),
        }
        names = {kind: f"{kind}-{number}" for kind in level.networks}
        for kind, model in level.networks.items():
            metadata = dict(level.metadata.get(kind, {})) | (known if kind == "denoiser" else {})
            save_pretrained(model, path / names[kind], bits=bits, **metadata)
        entries.append(names)
    text = None if checkpoint.text is None else vars(checkpoint.text)
    index = {"format": FORMAT, "levels": entries, "box": checkpoint.size, "text": text}
    with atomic_write(path / INDEX) as file:
        file.write((json.dumps(index, indent=2) + "\n").encode())


def fingerprint(folder: str | PathLike[str]) -> str:
    """SHA-256 of all networks of a folder and of `pipeline.json`."""
    path = Path(folder)
    files = sorted(file for name in (CONFIG, WEIGHTS) for file in path.glob(f"*/{name}"))
    index = [path / INDEX] if (path / INDEX).is_file() else []
    return hashlib.sha256("".join(map(digest, [*index, *files])).encode()).hexdigest()


def _read_index(path: Path) -> dict[str, Any]:
    file = path / INDEX
    try:
        index: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    levels = index.get("levels") if isinstance(index, dict) and index.get("format") == FORMAT else None
    if not isinstance(levels, list) or not levels or not all(isinstance(names, dict) for names in levels):
        raise ValueError(f"{file} must have format {FORMAT} and a list of levels, got {index}")
    for name in (name for names in levels for name in names.values()):
        if not isinstance(name, str) or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{file} must name subfolders, got {name!r}")
    return index


def _usual_index(path: Path) -> dict[str, Any]:
    """The index of subfolders with the usual names."""
    levels: list[dict[str, str]] = []
    while True:
        names = {kind: _folder_name(path, kind, len(levels)) for kind in KINDS}
        found = {kind: name for kind, name in names.items() if (path / name / CONFIG).is_file()}
        if not found and not levels:
            raise FileNotFoundError(f"{path} holds no pipeline: neither {INDEX} nor {names['vae']}")
        if not found:
            return {"levels": levels}
        levels.append({kind: name for kind, name in names.items() if kind in found or kind != "refiner"})


def _folder_name(path: Path, kind: str, level: int) -> str:
    """The subfolder of a network, by its present name or the one that earlier versions gave it.

    A fine-tuned denoiser takes the place of the denoiser.
    """
    tuned = f"{FINETUNED}-{level}"
    if kind == "denoiser" and (path / tuned / CONFIG).is_file():
        return tuned
    name, old = f"{kind}-{level}", f"{OLD_NAMES.get(kind, kind)}-{level}"
    return old if (path / old / CONFIG).is_file() and not (path / name / CONFIG).is_file() else name


def _read_level(path: Path, number: int, names: Mapping[str, str]) -> Level:
    vae = _network(path, number, names, "vae", VAE)
    denoiser = _network(path, number, names, "denoiser", UNet)
    refiner = _network(path, number, names, "refiner", Refiner) if "refiner" in names else None
    metadata = {kind: read_config(path / name)["metadata"] for kind, name in names.items() if kind in KINDS}
    of_denoiser, options = metadata["denoiser"], metadata["denoiser"].get("options", {})
    _check_scale(path, names, metadata["vae"].get("latent_scale"), of_denoiser.get("latent_scale"))
    if not (path / INDEX).is_file():  # folders of runs; an index is only written for networks that fit
        _check_inputs(path, names, metadata)
    try:
        return Level(
            vae,
            denoiser,
            refiner,
            latent_scale=float(of_denoiser["latent_scale"]),
            diffusion=DiffusionConfig.from_dict(of_denoiser["diffusion"]),
            sampler=SamplerConfig.from_dict(of_denoiser.get("sampler", {})),
            categories=tuple(options.get("categories", ())),
            words=tuple(options.get("words", ())),
            dropped=tuple(options.get("dropped", DROPPED)),
            metadata=metadata,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        file = path / names["denoiser"] / CONFIG
        raise ValueError(f"{file} must have latent_scale and diffusion in its metadata: {error!r}") from error


def _check_scale(path: Path, names: Mapping[str, str], of_vae: object, of_denoiser: object) -> None:
    """Raise ValueError if the VAE was trained again, so that its latents have another scale."""
    if isinstance(of_vae, int | float) and isinstance(of_denoiser, int | float) and of_vae != of_denoiser:
        raise ValueError(
            f"{path / names['denoiser']} must be trained on latents of {names['vae']}, of latent_scale {of_vae}, got "
            f"{of_denoiser}"
        )


def _check_inputs(path: Path, names: Mapping[str, str], metadata: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError if a run records that it was trained with another VAE, or fine-tuned from another denoiser."""
    present = digest(path / names["vae"] / WEIGHTS)
    for kind in metadata:
        before = metadata[kind].get("options", {}).get("vae")
        if kind != "vae" and before not in (None, present):
            raise ValueError(f"{path / names[kind]} must be trained with {names['vae']}, got a run with another VAE")
    _, _, level = names["denoiser"].rpartition("-")
    trained = path / f"denoiser-{level}"
    before = metadata["denoiser"].get("options", {}).get("denoiser")
    if before is not None and (trained / WEIGHTS).is_file() and digest(trained / WEIGHTS) != before:
        raise ValueError(
            f"{path / names['denoiser']} must be fine-tuned from {trained.name}, got a run from another one"
        )


def _network(path: Path, number: int, names: Mapping[str, str], kind: str, cls: type[M]) -> M:
    if kind not in names or not (path / names[kind] / CONFIG).is_file():
        name = names.get(kind, f"{kind}-{number}")
        raise ValueError(f"{path} lacks {name}, the {kind} of level {number}")
    return from_pretrained(path / names[kind], cls)
