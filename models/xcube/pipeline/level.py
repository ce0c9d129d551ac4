"""One level of a cascade at work: from latent grids to voxels, in batches that fit into memory.

M latent voxels, N decoded voxels, B shapes of a batch.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from tqdm import tqdm

import sparsevox as sv
from sparsevox import Grid, SparseTensor, Voxels
from sparsevox.data import VoxelBudgetSampler
from xcube.diffusion.objective import Diffusion, Noise
from xcube.diffusion.samplers import sample_latents
from xcube.geometry.components import without_small_components
from xcube.networks.blocks import centers
from xcube.networks.conditions import Conditions, Text
from xcube.pipeline.checkpoint import Size, Stage
from xcube.pipeline.inputs import in_box
from xcube.pipeline.options import Item, Request, Sample, number_of
from xcube.pipeline.reconstruct import with_unit_normals

LOGITS = "label_logits"  # what a decoder gives beside labels, and nobody needs afterwards

T = TypeVar("T")
R = TypeVar("R")


class Level:
    """One level at work.

    Args:
        stage: Its networks.
        number: Which it is.
        request: What is asked for.
        size: Edges of the box.
        empty: The text of what has none, if the model reads texts.
    """

    def __init__(self, stage: Stage, number: int, request: Request, size: Size, empty: Text | None) -> None:
        self.stage, self.number, self.request, self.empty = stage, number, request, empty
        self.sampler, self.diffusion = request.sampler_of(stage), Diffusion(stage.diffusion)
        self.size, self.device = size, next(stage.vae.parameters()).device

    def __call__(self, items: Sequence[Item], watch: Callable[[int], object]) -> list[Voxels]:
        """The voxels of each shape, on the CPU; nothing where there is no latent voxel.

        Args:
            items: Shapes.
            watch: Told after each step of a batch how many shapes it has.
        """
        made = [nothing(self.stage) for _ in items]
        some = [n for n, item in enumerate(items) if item.voxels.num_voxels]
        sizes = [items[n].voxels.num_voxels for n in some]
        for batch in budgeted(sizes, self.request.budget):
            chosen = [some[n] for n in batch]
            latents = halved(lambda part: self._latents(part, watch), [items[n] for n in chosen])
            # The decode of a surface grows with the square of the factor.
            growth = math.prod(self.stage.vae.config.factor) ** (2 / 3)
            expected = [math.ceil(each.grid.num_voxels * growth) for each in latents]
            for part in budgeted(expected, self.request.budget):
                for n, voxels in zip(part, halved(self._decoded, [latents[n] for n in part]), strict=True):
                    made[chosen[n]] = voxels
        return made

    def _latents(self, items: Sequence[Item], watch: Callable[[int], object]) -> list[SparseTensor]:
        """Latents of a batch, shape by shape."""
        stage, numbers = self.stage, [item.number for item in items]
        given = Voxels.stack([item.voxels for item in items]).to(self.device)
        told = self._conditions(given, items)
        every = torch.ones(len(items), dtype=torch.bool)
        without = None
        if self.sampler.weight != 1:
            without = told.drop(every, given.grid, stage.dropped, empty_text=self.empty)
        maker = self.request.hooks.get(self.number)

        def watched(done: int, steps: int) -> None:
            watch(len(items))

        latents = sample_latents(
            stage.denoiser,
            given.grid,
            stage.vae.config.latent_channels,
            Noise(self.request.seed, numbers, self.number),
            diffusion=self.diffusion,
            sampler=self.sampler,
            conditions=told,
            unconditional=without,
            hook=None if maker is None else maker(given.grid, numbers),
            watch=watched,
        )
        return latents.map(lambda z: z / stage.scale).unbind()

    def _conditions(self, given: Voxels, items: Sequence[Item]) -> Conditions:
        config, whole = self.stage.denoiser.config, Conditions()
        if config.categories:
            category = torch.tensor([number_of(self.stage, item.category) for item in items])
            whole = replace(whole, category=category)
        texts = [item.text for item in items if item.text is not None]
        if config.text_channels:
            whole = replace(whole, text=Text.stack(texts))
        whole = whole.to(self.device)
        edit = self.request.conditions.get(self.number)
        if edit is None:
            return Conditions.from_voxels(given, config, category=whole.category, text=whole.text)
        known: dict[str, Any] = {
            name: given.attributes[name] for name in ("normal", "label") if name in config.conditions
        }
        return edit(replace(whole, **known), given.grid, [item.number for item in items])

    def _decoded(self, latents: Sequence[SparseTensor]) -> list[Voxels]:
        """The voxels of latents, repaired and without min_component, shape by shape."""
        with torch.no_grad():
            voxels = tidy(self.stage.vae.decode(sv.stack(list(latents))).voxels)
            if self.stage.refiner is not None:
                refined = tidy(self.stage.refiner.refine(voxels))
                voxels = cropped(with_others(refined, voxels), self.size)
            voxels = without_small_components(voxels, self.request.min_component)
        return [item.to("cpu") for item in voxels.unbind()]


def through(levels: Sequence[Level], items: Sequence[Item], quiet: bool) -> list[Sample]:
    """A batch of shapes through all levels. Warns of those of which nothing is left."""
    made: list[list[Voxels]] = [[] for _ in items]
    for level in levels:
        alive = [item.voxels.num_voxels > 0 for item in items]
        title = f"shapes {items[0].number} to {items[-1].number}, level {level.number}"
        steps = sum(alive) * level.sampler.steps
        with tqdm(total=steps, desc=title, unit="step", disable=quiet, leave=False) as bar:
            found = level(items, bar.update)
        items = [replace(item, voxels=voxels) for item, voxels in zip(items, found, strict=True)]
        gone = [item.number for item, was in zip(items, alive, strict=True) if was and not item.voxels.num_voxels]
        if gone:
            warnings.warn(f"nothing is left at level {level.number} of the shapes {gone}", stacklevel=2)
        for one, voxels in zip(made, found, strict=True):
            one.append(voxels)
    return [Sample(tuple(one), levels[0].number) for one in made]


def budgeted(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Places of items of these sizes, in order, in batches of at most a budget; what is larger is alone."""
    return list(VoxelBudgetSampler(sizes, budget, shuffle=False, rank=0, replicas=1)) if sizes else []


def halved(function: Callable[[Sequence[T]], list[R]], items: Sequence[T]) -> list[R]:
    """What a function makes of items: at once, or of one half after the other if memory runs out."""
    try:
        return function(items)
    except torch.OutOfMemoryError:
        if len(items) == 1:
            raise
    middle = len(items) // 2  # out of the handler, which keeps alive what the attempt has made
    return halved(function, items[:middle]) + halved(function, items[middle:])


def tidy(voxels: Voxels) -> Voxels:
    """Voxels with normals of unit length, and without what only losses need."""
    kept = {name: value for name, value in voxels.attributes.items() if name != LOGITS}
    return with_unit_normals(Voxels(voxels.grid, kept))


def with_others(refined: Voxels, decoded: Voxels) -> Voxels:
    """Repaired voxels with the attributes that only the decode has: those of the nearest of its voxels."""
    others = {name: value for name, value in decoded.attributes.items() if name not in refined.attributes}
    if not others or not refined.num_voxels:
        return refined.with_attributes(**{name: value[:0] for name, value in others.items()})
    nearest = decoded.grid.nearest(centers(refined.grid, torch.float64), refined.grid.batch)
    return refined.with_attributes(**{name: value[nearest] for name, value in others.items()})


def cropped(voxels: Voxels, size: Size) -> Voxels:
    """The voxels that lie in the box."""
    inside = in_box(voxels.grid, size)
    return voxels if bool(inside.all()) else voxels.prune(inside)


def nothing(stage: Stage) -> Voxels:
    """No voxel, with the attributes that a level makes, on the CPU."""
    config = stage.vae.config
    x, y, z = (size / 2 for size in config.voxel_sizes)
    attributes = {name: torch.zeros(0, 3) for name in ("normal", "color") if getattr(config, name)}
    if config.num_labels:
        attributes["label"] = torch.zeros(0, dtype=torch.int64)
    return Voxels(Grid.empty(1, voxel_size=config.voxel_sizes, origin=(x, y, z)), attributes)
