"""Presets: folders of YAML files that configure the training of each network of a cascade."""

from collections.abc import Collection, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, get_args, get_type_hints

from xcube.config import Config
from xcube.data.hierarchy import Box, as_box
from xcube.training.config import TrainConfig
from xcube.training.jobs import TRAINERS, NetworkKind, TrainingJob

PRESETS = Path(__file__).parents[1] / "presets"
# Arguments of the training functions that a preset cannot set.
RESERVED = {"data", "out", "vae", "denoiser", "coarse_vae", "coarse_denoiser", "restart", "quiet"}


def preset_names() -> list[str]:
    """Names of all option files in the package, such as demo/vae-0."""
    return sorted(path.relative_to(PRESETS).with_suffix("").as_posix() for path in PRESETS.rglob("*.yaml"))


def cascade_presets() -> list[str]:
    """Names of the presets that describe a whole cascade."""
    return sorted({path.parent.name for path in PRESETS.glob("*/denoiser-0.yaml")})


def read_preset(preset: str) -> list[TrainingJob]:
    """Read a preset: for each level the VAE and, where the preset has them, the other networks.

    Args:
        preset: Name of a preset of the package, or a folder with vae-0.yaml, denoiser-0.yaml and so on.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the folder describes no network, lacks one that another is trained with, describes one twice, or
            a file is invalid; the message names the file.
    """
    built_in = preset in {path.name for path in PRESETS.iterdir()}  # checked first: a demo lies in a folder called demo
    folder = PRESETS / preset if built_in else Path(preset)
    if not folder.is_dir():
        raise FileNotFoundError(f"preset must be a folder, or one of {', '.join(cascade_presets())}, got {preset!r}")
    jobs = [_read(file) for file in sorted(folder.glob("*.yaml"))]
    names = [job.name for job in jobs]
    missing = sorted({name for job in jobs for name in job.inputs.values()} - set(names))
    if not jobs or missing or len(set(names)) < len(names):
        problem = f"without {', '.join(missing)}" if missing else f"with {names}"
        raise ValueError(f"preset must have each network once, with those it needs, got {folder} {problem}")
    order = get_args(NetworkKind)
    return sorted(jobs, key=lambda job: (job.level, order.index(job.kind)))


def preset_box(jobs: Sequence[TrainingJob]) -> Box:
    """The box of edge length 1 whose levels have the voxel sizes of the VAEs."""
    sizes = {job.level: job.options["model"].voxel_size for job in jobs if job.kind == "vae"}
    return as_box(tuple(round(1 / sizes[level]) for level in sorted(sizes)))


def read_options(kind: NetworkKind, file: Path, names: Collection[str]) -> dict[str, Any]:
    """Read options of a network from a YAML file: arguments of its training function, with their types, and others.

    Args:
        kind: The kind of the network.
        file: The YAML file.
        names: Names of the options that the file may hold.

    Raises:
        ValueError: If the file is not a YAML mapping, or has an unknown option or an invalid value. It names the file.
    """
    import yaml

    try:
        values = yaml.safe_load(file.read_text()) or {}
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{file} must be a YAML file: {error}") from error
    if not isinstance(values, dict) or not values.keys() <= set(names):
        unknown = sorted(values.keys() - set(names)) if isinstance(values, dict) else values
        raise ValueError(f"{file} must hold options among {', '.join(names)}, got {unknown}")
    hints = get_type_hints(TRAINERS[kind])
    try:
        return {name: _typed(value, hints.get(name)) for name, value in values.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{file} must hold valid options: {error}") from error


def option_names(kind: NetworkKind) -> list[str]:
    """Names of the arguments of the training function of a network."""
    return list(signature(TRAINERS[kind]).parameters)


def _read(file: Path) -> TrainingJob:
    kind = next((kind for kind in TRAINERS if kind == file.stem.partition("-")[0]), None)
    if kind is None:
        raise ValueError(f"{file} must be named after one of {', '.join(TRAINERS)}")
    names = [name for name in option_names(kind) if name not in RESERVED]
    options = read_options(kind, file, names)
    if missing := [name for name in ("level", "model") if name in names and name not in options]:
        wanted = " and a ".join(name for name in ("level", "model") if name in names)
        raise ValueError(f"{file} must hold a {wanted}, got no {' and no '.join(missing)}")
    level, train = options.pop("level"), options.pop("train", TrainConfig())
    if not isinstance(level, int):
        raise ValueError(f"{file} must hold a level that is an int, got {level!r}")
    if kind == "finetune" and level < 1:
        raise ValueError(f"{file} must hold a level with a coarser one, got {level}")
    return TrainingJob(kind, level, train, options)


def _typed(value: Any, hint: Any) -> Any:
    """Convert a value from YAML to the type of an argument."""
    if isinstance(hint, type) and issubclass(hint, Config):
        return hint.from_dict(value)
    return Path(value) if hint in (Path, Path | None) and value is not None else value
