"""The parts of a cascade, as a preset describes them: which networks, how they are trained, and in which order."""

import heapq
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any, Literal, get_args

from xcube.config import Config
from xcube.data.hierarchy import Box, as_box
from xcube.diffusion.objective import DiffusionConfig
from xcube.networks.configs import RefinerConfig, UNetConfig, VAEConfig
from xcube.networks.losses import LossConfig
from xcube.training import train
from xcube.training.config import TrainConfig

PRESETS = Path(__file__).parents[1] / "presets"
WARMUP = 0.2  # of the steps, at most

Kind = Literal["vae", "denoiser", "refiner"]
TRAINERS: dict[Kind, Callable[..., Any]] = {
    "vae": train.train_vae,
    "denoiser": train.train_denoiser,
    "refiner": train.train_refiner,
}
GIVEN = {"data", "out", "vae", "restart", "quiet"}  # arguments that no file of options has
MODELS: dict[Kind, type[Config]] = {"vae": VAEConfig, "denoiser": UNetConfig, "refiner": RefinerConfig}


@dataclass(frozen=True)
class Part:
    """A network to train.

    kind: What it is.
    level: Of the data set; 0 is the coarsest.
    train: Optimization.
    options: Further arguments of the function that trains it, by name.
    """

    kind: Kind
    level: int
    train: TrainConfig
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """That of its folder, where pipelines look for it."""
        return f"{self.kind}-{self.level}"

    @property
    def needs(self) -> str | None:
        """The part that must be there before."""
        return None if self.kind == "vae" else f"vae-{self.level}"

    def seeded(self, seed: int) -> "Part":
        """With another seed; 0 is that of the preset."""
        return replace(self, train=replace(self.train, seed=self.train.seed + seed))

    def scaled(self, factor: float) -> "Part":
        """With so many times the steps and the minutes."""
        steps = max(1, round(self.train.steps * factor))
        minutes = None if self.train.minutes is None else self.train.minutes * factor
        warmup = min(self.train.warmup, round(WARMUP * steps))
        every = {name: max(1, min(getattr(self.train, name), steps)) for name in ("val_every", "save_every")}
        return replace(self, train=replace(self.train, steps=steps, minutes=minutes, warmup=warmup, **every))


def read_preset(preset: str) -> list[Part]:
    """The parts of a preset: level by level the VAE, the denoiser and what repairs, as far as they are there.

    Args:
        preset: The name of a preset in the package, or a folder with vae-0.yaml, denoiser-0.yaml and so on.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no part, or a file is not as it should be; the message names it.
    """
    named = preset in {path.name for path in PRESETS.iterdir()}  # first, as a demo lies in a folder called demo
    folder = PRESETS / preset if named else Path(preset)
    if not folder.is_dir():
        raise FileNotFoundError(f"preset must be a folder, or one of {', '.join(whole_presets())}, got {preset!r}")
    parts = [_read(file) for file in sorted(folder.glob("*.yaml"))]
    names = [part.name for part in parts]
    lacking = sorted({part.needs for part in parts if part.needs is not None} - set(names))
    if not parts or lacking or len(set(names)) < len(names):
        told = f"lack of {', '.join(lacking)}" if lacking else f"parts {names}"
        raise ValueError(f"preset must describe a VAE of each level, and each part once, got {folder} with {told}")
    order = get_args(Kind)
    return sorted(parts, key=lambda part: (part.level, order.index(part.kind)))


def presets() -> list[str]:
    """Names of all files of options in the package."""
    return sorted(path.relative_to(PRESETS).with_suffix("").as_posix() for path in PRESETS.rglob("*.yaml"))


def whole_presets() -> list[str]:
    """Names of those presets that train all of a cascade."""
    return sorted({path.parent.name for path in PRESETS.glob("*/denoiser-0.yaml")})


def box_of_parts(parts: Sequence[Part]) -> Box:
    """The box of edge 1 whose levels have the voxels of the VAEs."""
    sizes = {part.level: part.options["model"].voxel_size for part in parts if part.kind == "vae"}
    return as_box(tuple(round(1 / sizes[level]) for level in sorted(sizes)))


def ready(parts: Sequence[Part], done: Collection[str], begun: Collection[str]) -> Part | None:
    """The part to begin with next, None if there is none: of those that can be, the one on whose way most is left."""
    able = [p for p in parts if p.name not in begun and (p.needs is None or p.needs in done)]
    return max(able, key=lambda part: _way(part, parts), default=None)


def minutes_of(parts: Sequence[Part], workers: int) -> float | None:
    """How long training takes by the limits of the parts, in so many processes; None if a part has none."""
    if any(part.train.minutes is None for part in parts):
        return None
    now, done, begun = 0.0, set[str](), set[str]()
    running: list[tuple[float, str]] = []
    while len(done) < len(parts):
        while len(running) < workers and (part := ready(parts, done, begun)) is not None:
            begun.add(part.name)
            heapq.heappush(running, (now + _minutes(part), part.name))
        now, name = heapq.heappop(running)
        done.add(name)
    return now


def _minutes(part: Part) -> float:
    """Of a part without a limit, something to compare it by."""
    return part.train.steps / 100 if part.train.minutes is None else part.train.minutes


def _way(part: Part, parts: Sequence[Part]) -> float:
    """Minutes of a part and of the longest that waits for it."""
    return _minutes(part) + max((_minutes(p) for p in parts if p.needs == part.name), default=0.0)


def _read(file: Path) -> Part:
    import yaml

    kind = file.stem.partition("-")[0]
    if kind not in MODELS:
        raise ValueError(f"{file} must be named after one of {', '.join(MODELS)}")
    hints: dict[str, type[Config]] = {
        "model": MODELS[kind],
        "train": TrainConfig,
        "loss": LossConfig,
        "diffusion": DiffusionConfig,
    }
    known = set(signature(TRAINERS[kind]).parameters) - GIVEN
    try:
        values = yaml.safe_load(file.read_text())
        if unknown := sorted(set(values) - known):
            raise ValueError(f"there is no option {', '.join(unknown)}")
        if "captions" in values:
            values["captions"] = Path(values["captions"])
        made: dict[str, Any] = {
            name: hints[name].from_dict(value) if name in hints else value for name, value in values.items()
        }
        return Part(kind, int(made.pop("level")), made.pop("train", TrainConfig()), {"model": made.pop("model")} | made)
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file} must have a level, a model and options of training: {error!r}") from error
