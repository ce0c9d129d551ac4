"""What is asked of a cascade: shapes, by their numbers, and what they should be.

B shapes of a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

from sparsevox import Grid, Voxels, checks
from sparsevox.morton import MAX_BATCH
from xcube.diffusion.samplers import Hook, SamplerConfig
from xcube.geometry.distances import library
from xcube.networks.conditions import NO_CLASS, Conditions, Text
from xcube.pipeline.checkpoint import Stage

# Makes the hook of a level from the latent grids of a batch and the numbers of its shapes; None for none.
HookMaker = Callable[[Grid, Sequence[int]], Hook | None]
# Makes other conditions of a level from those it has, the latent grids of a batch and the numbers of its shapes.
ConditionsMaker = Callable[[Conditions, Grid, Sequence[int]], Conditions]
Category = str | int


@dataclass(frozen=True)
class Sample:
    """One shape that a cascade made.

    levels: Its voxels, one grid each, with attributes, from level `first` on.
    first: The first of the levels.
    """

    levels: tuple[Voxels, ...]
    first: int = 0

    @property
    def finest(self) -> Voxels:
        """The last of them."""
        return self.levels[-1]

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left at the finest level."""
        return self.finest.num_voxels == 0


@dataclass(frozen=True)
class Request:
    """How to sample, at all levels. `XCubePipeline.sample` says what the fields are.

    Raises:
        ImportError: If crumbs are to be removed and scipy is not installed.
        TypeError: If a number is of another kind, or a text no string.
        ValueError: If one is out of range.
    """

    seed: int = 0
    steps: int | None = None
    text: str | Sequence[str] | None = None
    category: Category | Sequence[Category] | None = None
    guidance: float | None = None
    sampler: SamplerConfig = SamplerConfig()  # noqa: RUF009  (immutable)
    batch_size: int = 16
    budget: int = 500_000
    min_component: float = 0.0
    hooks: Mapping[int, HookMaker] = field(default_factory=dict)
    conditions: Mapping[int, ConditionsMaker] = field(default_factory=dict)
    quiet: bool = False

    def __post_init__(self) -> None:
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
            library()  # an error before anything is made
        if self.steps is not None:
            checks.integer("steps", self.steps)
        texts = self.text if isinstance(self.text, Sequence) else [self.text]
        if self.text is not None and not all(isinstance(text, str) for text in texts):
            raise TypeError(f"text must be a string or one for each shape, got {self.text!r}")

    @property
    def weight(self) -> float:
        """Guidance in the usual formula."""
        guidance = self.sampler.guidance if self.guidance is None else self.guidance
        return replace(self.sampler, guidance=guidance).weight

    def sampler_of(self, stage: Stage) -> SamplerConfig:
        """The sampler of a level: flows have their own, and what takes no conditions has no guidance."""
        is_flow = stage.diffusion.prediction == "flow"
        if self.sampler.kind == "flow" and not is_flow:
            raise ValueError(f"kind of the sampler must not be 'flow' for a network of {stage.diffusion.prediction!r}")
        asked: dict[str, Any] = {
            "kind": "flow" if is_flow else None,
            "steps": self.steps,
            "guidance": self.guidance if can_guide(stage) else 1.0,
        }
        # At once: steps that do for a flow may be none for the kind before.
        return replace(self.sampler, **{name: value for name, value in asked.items() if value is not None})


@dataclass(frozen=True, eq=False)
class Item:
    """A shape on its way through the cascade.

    number: Its noise follows from it.
    voxels: What the level before has made: one grid, which is the latent grid of this one.
    category: Its class, if it has one.
    text: Its text, if the model reads texts: one item.
    """

    number: int
    voxels: Voxels
    category: Category | None = None
    text: Text | None = None


def items_of(
    stages: Sequence[Stage],
    numbers: Sequence[int],
    grids: Sequence[Voxels],
    asked: Request,
    embed: Callable[[str], Text],
) -> list[Item]:
    """Shapes at their beginning, after a look at what they are told.

    Args:
        stages: The levels that they go through.
        numbers: Of the shapes.
        grids: The latent grid of the first of these levels, one for each shape.
        asked: What is asked for.
        embed: What embeds a text, for levels that read texts.

    Raises:
        TypeError: If a number is no integer, or the category of no kind that there is.
        ValueError: If there is no shape, a number is negative, a text, category or guidance is for levels that take
            none, there is not one for each shape, or a category is unknown.
    """
    if not numbers:
        raise ValueError("numbers must hold one at least, got none")
    for number in numbers:
        if checks.integer("numbers", number) < 0:
            raise ValueError(f"numbers must not be negative, got {number}")
    takes = {name for stage in stages for name in stage.denoiser.config.conditions}
    for name in ("text", "category"):
        if getattr(asked, name) is not None and name not in takes:
            raise ValueError(f"{name} must be None for a model that takes none, got {getattr(asked, name)!r}")
    if asked.weight != 1 and not any(map(can_guide, stages)):
        raise ValueError(f"guidance must be 1 for a model that always has its conditions, got {asked.guidance}")
    categories = _each("category", asked.category, len(numbers))
    for stage in stages:
        for category in set(categories):
            number_of(stage, category)
    texts = ["" if text is None else text for text in _each("text", asked.text, len(numbers))]
    embedded = {text: embed(text).to("cpu") for text in sorted(set(texts))} if "text" in takes else {}
    return [
        Item(number, grid.to("cpu"), category, embedded.get(text))
        for number, grid, category, text in zip(numbers, grids, categories, texts, strict=True)
    ]


def _each(name: str, value: Any, count: int) -> list[Any]:
    """One for each shape."""
    if value is None or isinstance(value, str | int):
        return [value] * count
    if not isinstance(value, Sequence):
        raise TypeError(f"{name} must be one, or one for each of {count} shapes, got {value!r}")
    if len(value) != count:
        raise ValueError(f"{name} must be one, or one for each of {count} shapes, got {len(value)}")
    return list(value)


def can_guide(stage: Stage) -> bool:
    """Whether guidance means something at a level."""
    return bool(set(stage.dropped) & set(stage.denoiser.config.conditions))


def number_of(stage: Stage, category: Category | None) -> int:
    """The class of a name, or of a number, at a level; -1 for none, and where the level takes none.

    Raises:
        ValueError: If it is unknown.
    """
    count, names = stage.denoiser.config.categories, stage.categories
    if category is None or not count:
        return NO_CLASS
    if isinstance(category, str) and category in names:
        return names.index(category)
    if isinstance(category, int) and not isinstance(category, bool) and 0 <= category < count:
        return category
    raise ValueError(f"category must be {', '.join([*names, f'0 to {count - 1}'])}, got {category!r}")
