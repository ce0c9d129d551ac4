"""Options of sampling, requested shapes, and generated samples.

M latent voxels, B shapes of a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Real
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sparsevox import Grid, SparseTensor, Voxels, checks
from sparsevox.morton import MAX_BATCH
from xcube.diffusion.samplers import Hook, Kind, SamplerConfig
from xcube.geometry.distances import require_scipy
from xcube.networks.conditions import NO_CLASS, NO_WORD, Conditions, Text
from xcube.networks.words import word_numbers
from xcube.pipeline.level import Level

# Makes the hook of a level from the latent grids of a batch [M] and the numbers of its shapes; None for no hook.
HookMaker = Callable[[Grid, Sequence[int]], Hook | None]
# Edits the conditions of a level, given the latent grids of a batch [M] and the numbers of its shapes.
ConditionsMaker = Callable[[Conditions, Grid, Sequence[int]], Conditions]
Category = str | int
TEXT_GUIDANCE = 5.0  # by default, so that shapes follow a text


class Start(NamedTuple):
    """Latents that a level begins with, in place of noise alone: these get noise and are denoised again.

    latents: Latents [M, L] on the latent grids of a batch, scaled as those of the denoiser.
    strength: Fraction of the sampling steps that are taken, the last ones: 0 keeps the latents, 1 takes all steps.
    """

    latents: SparseTensor
    strength: float


# Makes the start of a level from the latent grids of a batch [M] and the numbers of its shapes.
StartMaker = Callable[[Grid, Sequence[int]], Start]


@dataclass(frozen=True)
class Sample:
    """A generated shape.

    Args:
        levels: Voxels with attributes of each level, coarse to fine: one grid each, on the CPU.
        first: Number of the first of these levels; 0 is the coarsest level of the cascade.
    """

    levels: tuple[Voxels, ...]
    first: int = 0

    @property
    def finest(self) -> Voxels:
        """Voxels of the finest level."""
        return self.levels[-1]

    @property
    def is_empty(self) -> bool:
        """Whether the finest level has no voxel."""
        return self.finest.num_voxels == 0


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Options of sampling: those of the sampler, for every level, and those of the pipeline.

    Options of the sampler that are None, the default, are those that each level was saved with (`Level.sampler`), or
    else the defaults of `SamplerConfig`. A level whose denoiser was trained at high noise only, for one or a few calls,
    always keeps its own, except for guidance.

    Args:
        sampler: Sampler: "ddim", "ddpm", "dpm++" or "flow" (see `SamplerConfig`), by default that of each level.
        steps: Number of denoising steps, at most 1000, by default that of each level.
        eta: Amount of noise that DDIM adds at each step, from 0 to 1, by default that of each level.
        spacing: Spacing of the timesteps of DDIM, "leading" or "trailing", by default that of each level.
        order: Order of DPM-Solver++, from 1 to 3, by default that of each level.
        karras: Whether DPM-Solver++ spaces its steps as in Karras et al. (2022), by default as each level says.
        official: Whether DPM-Solver++ takes its timesteps as in the official code, by default as each level says.
        guidance: Weight of classifier-free guidance, 1 for none, by default that of each level, or 5 with a text at a
            level that reads texts itself and has no guidance of its own.
        repeats: Number of times that each step is taken, with noise added back in between (RePaint), by default that of
            each level.
        formula: Formula of guidance, "usual" or "official" (see `SamplerConfig`), by default that of each level.
        seed: Seed of the noise. A shape depends on the seed, its number and the level.
        text: Text prompt for all shapes, or one per shape, of which some may be None.
        category: Category of all shapes, by name or number, or one per shape, of which some may be None.
        batch_size: Maximum number of shapes per batch.
        budget: Maximum number of voxels per batch, for latent grids and for decoded grids. A larger shape is a batch of
            its own. Batches are also halved when GPU memory runs out.
        min_component: Remove connected components with less than this fraction of a shape's voxels, at every level. The
            largest component is always kept. 0 removes none.
        quiet: Hide the progress bar.
        hooks: For each level, a function that makes a hook, which can change the latents before every step: see `Hook`
            in `xcube.diffusion.samplers`.
        conditions: For each level, a function that edits or adds conditions of the denoiser.
        starts: For each level, a function that makes the latents that sampling begins with; noise alone by default.

    Raises:
        ImportError: If small components are to be removed and scipy is not installed.
        TypeError: If a number has the wrong type, or a text is not a string.
        ValueError: If an option is out of range.
    """

    sampler: Kind | None = None
    steps: int | None = None
    eta: float | None = None
    spacing: Literal["leading", "trailing"] | None = None
    order: int | None = None
    karras: bool | None = None
    official: bool | None = None
    guidance: float | None = None
    repeats: int | None = None
    formula: Literal["usual", "official"] | None = None
    seed: int = 0
    text: str | Sequence[str | None] | None = None
    category: Category | Sequence[Category | None] | None = None
    batch_size: int = 16
    budget: int = 500_000
    min_component: float = 0.0
    quiet: bool = False
    hooks: Mapping[int, HookMaker] = field(default_factory=dict)
    conditions: Mapping[int, ConditionsMaker] = field(default_factory=dict)
    starts: Mapping[int, StartMaker] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._over(SamplerConfig(), steps=10)  # for_level checks the number of steps, which depends on the level
        for name in ("steps", "repeats"):
            if getattr(self, name) is not None:
                checks.integer(name, getattr(self, name))
        if checks.integer("seed", self.seed) < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if not 1 <= checks.integer("batch_size", self.batch_size) <= MAX_BATCH:
            raise ValueError(f"batch_size must lie in [1, {MAX_BATCH}], got {self.batch_size}")
        if checks.integer("budget", self.budget) < 1:
            raise ValueError(f"budget must be positive, got {self.budget}")
        if isinstance(self.min_component, bool) or not isinstance(self.min_component, Real):
            raise TypeError(f"min_component must be a number, got {self.min_component!r}")
        if not 0 <= self.min_component < 1:
            raise ValueError(f"min_component must lie in [0, 1), got {self.min_component}")
        if self.min_component:
            require_scipy()  # raises ImportError before anything is sampled
        texts = self.text if isinstance(self.text, Sequence) and not isinstance(self.text, str) else [self.text]
        if not all(text is None or isinstance(text, str) for text in texts):
            raise TypeError(f"text must be a string, or one per shape, got {self.text!r}")
        if any(text is not None and not text.strip() for text in texts):
            raise ValueError(f"text must have at least one word, got {self.text!r}")

    @classmethod
    def official_defaults(cls, **changes: Any) -> "SampleOptions":
        """The default sampler of the official code, as in `SamplerConfig.official_defaults`."""
        return cls(**(asdict(SamplerConfig.official_defaults()) | changes))

    def with_changes(self, **changes: Any) -> "SampleOptions":
        """The options with those changes that are not None."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    def within(self, levels: Sequence[Level], first: int, end: int) -> "SampleOptions":
        """The options that concern some of the levels, for a call that runs only those.

        Hooks, conditions and starts of other levels are left out, and so are category, text and guidance if none of
        these levels takes them.

        Args:
            levels: All levels.
            first: Number of the first of those that run.
            end: Number of the first one after these.
        """
        made: dict[str, Any] = {
            name: {number: value for number, value in getattr(self, name).items() if first <= number < end}
            for name in ("hooks", "conditions", "starts")
        }
        takes = {name for level in levels[first:end] for name in level.denoiser.config.conditions}
        made |= {"category": None} if "category" not in takes else {}
        made |= {"text": None} if not takes & {"text", "words"} else {}
        if not any(level.has_guidance for level in levels[first:end]):
            made["guidance"] = None
        return replace(self, **made)

    def with_hook(self, level: int, make: HookMaker) -> "SampleOptions":
        """The options with another hook of a level, which acts after the one that it has."""
        before = self.hooks.get(level)

        def both(grid: Grid, numbers: Sequence[int]) -> Hook | None:
            hooks = [hook for hook in (before and before(grid, numbers), make(grid, numbers)) if hook is not None]

            def run(x: SparseTensor, t: float | None) -> SparseTensor:
                for hook in hooks:
                    x = hook(x, t)
                return x

            return run if hooks else None

        return replace(self, hooks={**self.hooks, level: both})

    def with_conditions(self, level: int, edit: ConditionsMaker) -> "SampleOptions":
        """The options with another change of the conditions of a level, which acts after the one that it has."""
        before = self.conditions.get(level)

        def both(conditions: Conditions, grid: Grid, numbers: Sequence[int]) -> Conditions:
            return edit(conditions if before is None else before(conditions, grid, numbers), grid, numbers)

        return replace(self, conditions={**self.conditions, level: both})

    def of_shapes(self, chosen: Sequence[int], count: int) -> "SampleOptions":
        """The options for some of `count` shapes: their categories and texts, where these are lists."""
        made: dict[str, Any] = {}
        for name in ("category", "text"):
            value = getattr(self, name)
            is_list = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == count
            made[name] = [value[n] for n in chosen] if is_list else value
        return replace(self, **made)

    def for_level(self, level: Level) -> SamplerConfig:
        """The sampler of one level, from its own and the options that are not None.

        A flow has its own sampler, and guidance is 1 where it would have no effect. A denoiser that was trained at high
        noise only (`DiffusionConfig.first`) keeps the sampler that it was saved with, apart from guidance.

        Raises:
            ValueError: If the sampler does not fit the denoiser or the number of steps.
        """
        is_flow = level.diffusion.prediction == "flow"
        if self.sampler == "flow" and not is_flow:
            raise ValueError(f"sampler must not be 'flow' for a denoiser that predicts {level.diffusion.prediction!r}")
        kind: Kind = "flow" if is_flow else self.sampler or level.sampler.sampler
        guidance = level.sampler.guidance if self.guidance is None else self.guidance
        if self.guidance is None and self.text is not None and level.words and level.sampler.weight == 1:
            guidance = TEXT_GUIDANCE
        weight = guidance if level.has_guidance else 1.0
        if level.diffusion.first:
            own: Kind = "flow" if is_flow else level.sampler.sampler
            return replace(level.sampler, sampler=own, guidance=weight, formula=self.formula or level.sampler.formula)
        return self._over(level.sampler, sampler=kind, guidance=weight)

    def check_hooks(self, levels: Sequence[Level], first: int) -> None:
        """Raise ValueError unless hooks, conditions and starts are for these levels, and no condition is missing.

        Args:
            levels: Levels that the shapes go through.
            first: Number of the first of them.
        """
        last = first + len(levels) - 1
        unknown = sorted({*self.hooks, *self.conditions, *self.starts} - set(range(first, last + 1)))
        if unknown:
            raise ValueError(f"hooks, conditions and starts must be for levels {first} to {last}, got {unknown}")
        for number, level in enumerate(levels, first):
            if level.denoiser.config.extra and number not in self.conditions:
                raise ValueError(f"conditions must have an entry for level {number}, whose denoiser takes extra")

    def _over(self, level: SamplerConfig, **changes: Any) -> SamplerConfig:
        """The sampler of a level with the options of this object that are not None, and changes."""
        options = {f.name: getattr(self, f.name) for f in fields(SamplerConfig)}
        return replace(level, **({name: value for name, value in options.items() if value is not None} | changes))


@dataclass(frozen=True, eq=False)
class ShapeRequest:
    """A shape that is being generated, between two levels of the cascade.

    Args:
        number: Number of the shape; its noise depends on it.
        voxels: Latent grid of the next level: one grid, with the attributes that the level before decoded.
        category: Category of the shape, if it has one.
        text: Embedded prompt, if the model takes texts: a batch of one.
        prompt: The prompt itself, if there is one.
    """

    number: int
    voxels: Voxels
    category: Category | None = None
    text: Text | None = None
    prompt: str | None = None


def shape_requests(
    levels: Sequence[Level],
    numbers: Sequence[int],
    grids: Sequence[Voxels],
    options: SampleOptions,
    embed: Callable[[str], Text],
) -> list[ShapeRequest]:
    """Check the options of each shape against the levels, and embed the texts.

    Args:
        levels: Levels that the shapes go through.
        numbers: Number of each shape.
        grids: Latent grid of the first of these levels, one for each shape.
        options: Options of sampling.
        embed: Function that embeds a text, for denoisers that take texts.

    Raises:
        TypeError: If a number is not an integer, or a category is neither a string nor an int.
        ValueError: If there is no shape, a number is negative, a text, category or guidance is given to levels that
            take none, there is not one text or category per shape, or a category is unknown.
    """
    if not numbers:
        raise ValueError("numbers must hold at least one number, got none")
    for number in numbers:
        if checks.integer("numbers", number) < 0:
            raise ValueError(f"numbers must not be negative, got {number}")
    takes = {name for level in levels for name in level.denoiser.config.conditions}
    for name, conditions in (("text", {"text", "words"}), ("category", {"category"})):
        if getattr(options, name) is not None and not takes & conditions:
            raise ValueError(f"{name} must be None for a model that takes none, got {getattr(options, name)!r}")
    if options.guidance not in (None, 1) and not any(level.has_guidance for level in levels):
        raise ValueError(
            f"guidance must be 1 for a model that was trained without dropping conditions, got {options.guidance}"
        )
    categories = _for_each("category", options.category, len(numbers))
    for level in levels:
        for category in set(categories):
            class_number(level, category)
    prompts = _for_each("text", options.text, len(numbers))
    for prompt in {prompt for prompt in prompts if prompt is not None}:
        for level in levels:
            words_of(level, prompt)
    texts = ["" if text is None else text for text in prompts]
    embedded = {text: embed(text).to("cpu") for text in sorted(set(texts))} if "text" in takes else {}
    return [
        ShapeRequest(number, grid.to("cpu"), category, embedded.get(text), prompt)
        for number, grid, category, text, prompt in zip(numbers, grids, categories, texts, prompts, strict=True)
    ]


def _for_each(name: str, value: Any, count: int) -> list[Any]:
    """One value for each shape."""
    if value is None or isinstance(value, str | int):
        return [value] * count
    if not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a single one, or one for each of {count} shapes, got {value!r}")
    if len(value) != count:
        raise ValueError(f"{name} must be a single one, or one for each of {count} shapes, got {len(value)}")
    return list(value)


def words_of(level: Level, prompt: str | None) -> Tensor:
    """The words of a prompt at a level, int64 [1, S]; none without a prompt, or where the level takes no words.

    Raises:
        ValueError: If a word is unknown.
    """
    if prompt is None or not level.words:
        return torch.full((1, 1), NO_WORD)
    return word_numbers(prompt, level.words)


def class_number(level: Level, category: Category | None) -> int:
    """The number of a class at a level, from its name or number; -1 for no class, or where the level takes none.

    Raises:
        ValueError: If it is unknown.
    """
    count, names = level.denoiser.config.categories, level.categories
    if category is None or not count:
        return NO_CLASS
    if isinstance(category, str) and category in names:
        return names.index(category)
    if isinstance(category, int) and not isinstance(category, bool) and 0 <= category < count:
        return category
    known = f"one of {', '.join(names)} or " if names else ""
    raise ValueError(f"category must be {known}a number in [0, {count}), got {category!r}")
