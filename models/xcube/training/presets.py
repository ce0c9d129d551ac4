"""Presets: folders of YAML files that configure the training of each network of a cascade."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from xcube.config import Config
from xcube.data.hierarchy import Box, as_box
from xcube.training.config import TrainConfig
from xcube.training.jobs import TRAINERS, NetworkKind, TrainingJob

PRESETS = Path(__file__).parents[1] / "presets"
# Arguments of the training functions that a file of options cannot set.
RESERVED = {"data", "out", "vae", "restart", "quiet", "return"}


def preset_names() -> list[str]:
    """Names of all option files in the package, such as demo/vae-0."""
    return sorted(path.relative_to(PRESETS).with_suffix("").as_posix() for path in PRESETS.rglob("*.yaml"))


def cascade_presets() -> list[str]:
    """Names of the presets that describe a whole cascade."""
    return sorted({path.parent.name for path in PRESETS.glob("*/denoiser-0.yaml")})


def read_preset(preset: str) -> list[TrainingJob]:
    """Read a preset: for each level the VAE and, where the preset has them, the denoiser and the refiner.

    Args:
        preset: Name of a preset of the package, or a folder with vae-0.yaml, denoiser-0.yaml and so on.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the folder describes no network, lacks the VAE of a level, describes a network twice, or a file
            is invalid; the message names the file.
    """
    built_in = preset in {path.name for path in PRESETS.iterdir()}  # checked first: a demo lies in a folder called demo
    folder = PRESETS / preset if built_in else Path(preset)
    if not folder.is_dir():
        raise FileNotFoundError(f"preset must be a folder, or one of {', '.join(cascade_presets())}, got {preset!r}")
    jobs = [_read(file) for file in sorted(folder.glob("*.yaml"))]
    names = [job.name for job in jobs]
    missing = sorted({job.requires for job in jobs if job.requires is not None} - set(names))
    if not jobs or missing or len(set(names)) < len(names):
        problem = f"without {', '.join(missing)}" if missing else f"with {names}"
        raise ValueError(f"preset must have a VAE for each level, and each network once, got {folder} {problem}")
    order = get_args(NetworkKind)
    return sorted(jobs, key=lambda job: (job.level, order.index(job.kind)))


def preset_box(jobs: Sequence[TrainingJob]) -> Box:
    """The box of edge length 1 whose levels have the voxel sizes of the VAEs."""
    sizes = {job.level: job.options["model"].voxel_size for job in jobs if job.kind == "vae"}
    return as_box(tuple(round(1 / sizes[level]) for level in sorted(sizes)))


def _read(file: Path) -> TrainingJob:
    import yaml

    kind = file.stem.partition("-")[0]
    if kind not in TRAINERS:
        raise ValueError(f"{file} must be named after one of {', '.join(TRAINERS)}")
    hints = get_type_hints(TRAINERS[kind])
    try:
        values = yaml.safe_load(file.read_text())
        if unknown := sorted(values.keys() - (hints.keys() - RESERVED)):
            raise ValueError(f"unknown option {', '.join(unknown)}")
        made = {name: _typed(value, hints[name]) for name, value in values.items()}
        level, train = int(made.pop("level")), made.pop("train", TrainConfig())
        return TrainingJob(kind, level, train, {"model": made.pop("model")} | made)
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file} must hold a level, a model and options of training: {error!r}") from error


def _typed(value: Any, hint: Any) -> Any:
    """Convert a value from YAML to the type of an argument."""
    if isinstance(hint, type) and issubclass(hint, Config):
        return hint.from_dict(value)
    return Path(value) if hint == Path | None and value is not None else value
