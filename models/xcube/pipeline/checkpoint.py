"""The networks of a cascade, level by level: what belongs together, whether it fits, and the folder that holds it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch

from sparsevox.files import atomic_write
from xcube.diffusion.objective import DiffusionConfig
from xcube.geometry.pyramid import TOLERANCE
from xcube.networks.configs import VAEConfig
from xcube.networks.pretrained import CONFIG, KINDS, WEIGHTS, digest, from_pretrained, read_config, save_pretrained
from xcube.networks.refiner import Refiner
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE

FORMAT, INDEX = 1, "pipeline.json"
OLD_NAMES = {"denoiser": "diffusion", "refiner": "refine"}  # of the sub-folders that earlier versions wrote
DROPPED = ("category", "text")

Size = tuple[float, float, float]
M = TypeVar("M", bound=torch.nn.Module)


@dataclass(frozen=True, eq=False)
class Stage:
    """The networks of one level.

    vae: Its VAE.
    denoiser: Its denoiser.
    refiner: What repairs the decode, if anything does.
    scale: What latents are multiplied with before they are noised, as the denoiser was trained.
    diffusion: What the denoiser predicts.
    categories: Names of the classes of shapes that the denoiser knows, in order; none if it counts them only.
    dropped: Conditions that guidance leaves out: those without which the denoiser was trained at times.
    metadata: What else is known of the networks, by "vae", "denoiser" and "refiner"; it is kept in their folders.
    """

    vae: VAE
    denoiser: UNet
    refiner: Refiner | None = None
    scale: float = 1.0
    diffusion: DiffusionConfig = DiffusionConfig()  # noqa: RUF009  (immutable)
    categories: tuple[str, ...] = ()
    dropped: tuple[str, ...] = DROPPED
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        """By kind."""
        found = {"vae": self.vae, "denoiser": self.denoiser, "refiner": self.refiner}
        return {kind: model for kind, model in found.items() if model is not None}


@dataclass(frozen=True)
class TextSource:
    """Arguments of `xcube.networks.text_encoder.TextEncoder.from_pretrained`, which loads the text model."""

    model: str
    tokenizer: str | None = None
    subfolder: str = ""


@dataclass(frozen=True)
class Cascade:
    """What a folder of a pipeline holds.

    stages: From the coarsest level on.
    size: Edges of the box around the origin, world units; None if nothing says so.
    text: What embeds texts, if that is known.
    """

    stages: tuple[Stage, ...]
    size: Size | None = None
    text: TextSource | None = None


def latent_sizes(config: VAEConfig) -> Size:
    """Edges of a latent voxel."""
    x, y, z = (size * factor for size, factor in zip(config.voxel_sizes, config.factor, strict=True))
    return x, y, z


def same_size(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether edges are equal, but for rounding."""
    return all(abs(a - b) <= TOLERANCE * b for a, b in zip(first, second, strict=True))


def check_stages(stages: Sequence[Stage]) -> None:
    """Raise ValueError unless the networks of each level, and those of one level and the next, fit each other."""
    if not stages:
        raise ValueError("stages must hold one level at least, got none")
    for level, stage in enumerate(stages):
        _check_types(stage, f"stages[{level}]")
        _check_level(stage, f"stages[{level}]")
        _check_next(stages[level - 1] if level else None, stage, f"stages[{level}]")
    channels = {c for c in (stage.denoiser.config.text_channels for stage in stages) if c}
    if len(channels) > 1:
        raise ValueError(f"stages must read texts of one text model, got text_channels {sorted(channels)}")


def _check_types(stage: Stage, name: str) -> None:
    if not isinstance(stage, Stage):
        raise TypeError(f"{name} must be a Stage, got {type(stage).__name__}")
    for kind, model in stage.networks.items():
        if not isinstance(model, KINDS[kind][0]):
            raise TypeError(f"{name}.{kind} must be a {KINDS[kind][0].__name__}, got {type(model).__name__}")


def _check_level(stage: Stage, name: str) -> None:
    """What the networks of one level need of each other."""
    vae, denoiser = stage.vae.config, stage.denoiser.config
    if denoiser.latent_channels != vae.latent_channels:
        raise ValueError(
            f"{name}.denoiser must have the latent_channels of the VAE, {vae.latent_channels}, got "
            f"{denoiser.latent_channels}"
        )
    if denoiser.dense and vae.dense_neck is None:
        raise ValueError(f"{name}.denoiser must not be dense: the latents of the VAE, without dense_neck, fill no box")
    if not 0 < stage.scale < float("inf"):
        raise ValueError(f"{name}.scale must be positive and finite, got {stage.scale}")
    if stage.categories and len(stage.categories) != denoiser.categories:
        raise ValueError(
            f"{name}.categories must be {denoiser.categories}, as the denoiser has, got {list(stage.categories)}"
        )
    if stage.refiner is None:
        return
    refiner = stage.refiner.config
    if not same_size((refiner.voxel_size,) * 3, vae.voxel_sizes):
        raise ValueError(f"{name}.refiner must have the voxel_size {vae.voxel_sizes}, got {refiner.voxel_size}")
    if (refiner.normal and not vae.normal) or refiner.num_labels not in (0, vae.num_labels):
        raise ValueError(
            f"{name}.refiner must take the normal and num_labels that the VAE decodes, {vae.normal} and "
            f"{vae.num_labels}, got {refiner.normal} and {refiner.num_labels}"
        )


def _check_next(before: Stage | None, stage: Stage, name: str) -> None:
    """What a level needs of the one before, if there is one."""
    vae, denoiser = stage.vae.config, stage.denoiser.config
    if before is None:
        if vae.dense_neck is not None and (denoiser.normal or denoiser.num_labels):
            raise ValueError(f"{name}.denoiser must not take normal or label: nothing comes before a box of latents")
        return
    above = before.vae.config
    if vae.dense_neck is not None:
        raise ValueError(f"{name}.vae must have no dense_neck, since only the first level fills a box")
    if not same_size(latent_sizes(vae), above.voxel_sizes):
        raise ValueError(
            f"{name}.vae must have latent voxels of {above.voxel_sizes}, as the level before makes, got "
            f"{latent_sizes(vae)}"
        )
    if denoiser.normal and not above.normal:
        raise ValueError(f"{name}.denoiser takes normal, which the VAE of the level before does not decode")
    if denoiser.num_labels not in (0, above.num_labels):
        raise ValueError(
            f"{name}.denoiser must have num_labels {above.num_labels}, as the VAE of the level before decodes, or 0, "
            f"got {denoiser.num_labels}"
        )


def read_cascade(folder: str | PathLike[str]) -> Cascade:
    """The networks of a folder.

    `pipeline.json` names the sub-folders of each level. Without it they are vae-0, denoiser-0, refiner-0, vae-1 and so
    on, where refiners may be missing.

    Raises:
        FileNotFoundError: If there is no such folder, or no pipeline in it.
        ValueError: If `pipeline.json` is damaged or of another format, a network is missing or damaged, or networks do
            not fit each other; the message says which.
    """
    path = Path(folder)
    index = _read_index(path) if (path / INDEX).is_file() else _found(path)
    stages = tuple(_read_stage(path, level, names) for level, names in enumerate(index["levels"]))
    size, text = index.get("box"), index.get("text")
    if size is None:
        size = stages[0].metadata["vae"].get("size")
    if text is None:
        runs = (stage.metadata["denoiser"].get("options", {}) for stage in stages)
        text = next(
            ({"model": o["text_model"], "tokenizer": o["tokenizer"]} for o in runs if o.get("text_model")), None
        )
    check_stages(stages)
    try:
        edges = None if size is None else (float(size[0]), float(size[1]), float(size[2]))
        return Cascade(stages, edges, None if text is None else TextSource(**text))
    except (IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: box must be three edges and text name a model, got {size} and {text}") from error


def write_cascade(cascade: Cascade, folder: str | PathLike[str]) -> None:
    """Write networks to the sub-folders of a folder, and `pipeline.json`, the last."""
    path = Path(folder)
    levels = []
    for level, stage in enumerate(cascade.stages):
        known = {
            "latent_scale": stage.scale,
            "diffusion": stage.diffusion.to_dict(),
            "options": dict(stage.metadata.get("denoiser", {}).get("options", {}))
            | {"categories": list(stage.categories), "dropped": list(stage.dropped)},
        }
        names = {kind: f"{kind}-{level}" for kind in stage.networks}
        for kind, model in stage.networks.items():
            metadata = dict(stage.metadata.get(kind, {})) | (known if kind == "denoiser" else {})
            save_pretrained(model, path / names[kind], **metadata)
        levels.append(names)
    text = None if cascade.text is None else vars(cascade.text)
    index = {"format": FORMAT, "levels": levels, "box": cascade.size, "text": text}
    with atomic_write(path / INDEX) as file:
        file.write((json.dumps(index, indent=2) + "\n").encode())


def fingerprint(folder: str | PathLike[str]) -> str:
    """What tells the networks of a folder from others."""
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
            raise ValueError(f"{file} must name sub-folders, got {name!r}")
    return index


def _found(path: Path) -> dict[str, Any]:
    """What `pipeline.json` would say of sub-folders with the usual names."""
    levels: list[dict[str, str]] = []
    while True:
        names = {kind: _folder_name(path, kind, len(levels)) for kind in KINDS}
        there = {kind: name for kind, name in names.items() if (path / name / CONFIG).is_file()}
        if not there and not levels:
            raise FileNotFoundError(f"{path} holds no pipeline: neither {INDEX} nor {names['vae']}")
        if not there:
            return {"levels": levels}
        levels.append({kind: name for kind, name in names.items() if kind in there or kind != "refiner"})


def _folder_name(path: Path, kind: str, level: int) -> str:
    """The sub-folder of a network, by its present name or the one that earlier versions gave it."""
    old = f"{OLD_NAMES.get(kind, kind)}-{level}"
    return old if (path / old / CONFIG).is_file() else f"{kind}-{level}"


def _read_stage(path: Path, level: int, names: Mapping[str, str]) -> Stage:
    vae = _network(path, level, names, "vae", VAE)
    denoiser = _network(path, level, names, "denoiser", UNet)
    refiner = _network(path, level, names, "refiner", Refiner) if "refiner" in names else None
    metadata = {kind: read_config(path / name)["metadata"] for kind, name in names.items() if kind in KINDS}
    of_denoiser, options = metadata["denoiser"], metadata["denoiser"].get("options", {})
    _check_scale(path, names, metadata["vae"].get("latent_scale"), of_denoiser.get("latent_scale"))
    if not (path / INDEX).is_file():  # runs: whoever writes an index has put together what fits
        _check_vae(path, names, metadata)
    try:
        return Stage(
            vae,
            denoiser,
            refiner,
            scale=float(of_denoiser["latent_scale"]),
            diffusion=DiffusionConfig.from_dict(of_denoiser["diffusion"]),
            categories=tuple(options.get("categories", ())),
            dropped=tuple(options.get("dropped", DROPPED)),
            metadata=metadata,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        file = path / names["denoiser"] / CONFIG
        raise ValueError(f"{file} must say latent_scale and diffusion among the metadata: {error!r}") from error


def _check_scale(path: Path, names: Mapping[str, str], of_vae: object, of_denoiser: object) -> None:
    """A VAE that was trained again has latents of another scale."""
    if isinstance(of_vae, int | float) and isinstance(of_denoiser, int | float) and of_vae != of_denoiser:
        raise ValueError(
            f"{path / names['denoiser']} must be trained on latents of {names['vae']}, of latent_scale {of_vae}, got "
            f"{of_denoiser}"
        )


def _check_vae(path: Path, names: Mapping[str, str], metadata: Mapping[str, Mapping[str, Any]]) -> None:
    """A run says with which VAE it was trained."""
    there = digest(path / names["vae"] / WEIGHTS)
    for kind in metadata:
        before = metadata[kind].get("options", {}).get("vae")
        if kind != "vae" and before not in (None, there):
            raise ValueError(f"{path / names[kind]} must be trained with {names['vae']}, got a run with another VAE")


def _network(path: Path, level: int, names: Mapping[str, str], kind: str, cls: type[M]) -> M:
    if kind not in names or not (path / names[kind] / CONFIG).is_file():
        name = names.get(kind, f"{kind}-{level}")
        raise ValueError(f"{path} lacks {name}, the {kind} of level {level}")
    return from_pretrained(path / names[kind], cls)
