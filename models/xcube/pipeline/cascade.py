"""The levels of a pipeline, and how shapes go through them.

M latent voxels, L latent channels.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self

import torch
from tqdm import tqdm

from sparsevox import Grid, SparseTensor, Voxels, checks
from xcube.data.hierarchy import Box
from xcube.diffusion.objective import Noise
from xcube.diffusion.samplers import SamplerConfig, sample_latents
from xcube.geometry.components import without_small
from xcube.networks.conditions import OF_VOXELS, Conditions, Text, stack_words
from xcube.networks.text_encoder import TextEncoder
from xcube.pipeline.batching import in_batches
from xcube.pipeline.checkpoint import TextSource
from xcube.pipeline.inputs import box_size, full_box, latent_grid_of
from xcube.pipeline.level import Level, Size, check_levels, level_resolutions
from xcube.pipeline.options import Sample, SampleOptions, ShapeRequest, class_number, shape_requests, words_of


class Cascade:
    """Levels of networks, coarse to fine, that generate shapes one after the other: the base of `XCubePipeline`."""

    def __init__(
        self,
        levels: Sequence[Level],
        *,
        size: Sequence[float] | None = None,
        text: TextEncoder | TextSource | None = None,
    ) -> None:
        check_levels(levels)
        self.levels = tuple(levels)
        self.size: Size = box_size(levels[0], size)
        self._encoder = text if isinstance(text, TextEncoder) else None
        self._source = text if isinstance(text, TextSource) else None
        for level in levels:
            for model in level.networks.values():
                model.eval()

    @property
    def voxel_sizes(self) -> tuple[Size, ...]:
        """Edge lengths of the voxels of each level, in world units."""
        return tuple(level.vae.config.voxel_sizes for level in self.levels)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Number of voxels of each level along the first axis of the box."""
        return level_resolutions(self.levels, self.size)

    @property
    def box(self) -> Box:
        """The box with its levels. A level is thin if the next finer VAE does not dilate its latent grid."""
        counts = self.resolutions
        pairs = zip(counts, self.levels[1:], strict=False)
        return Box(counts, self.size, tuple(count for count, finer in pairs if finer.vae.config.dilation == "none"))

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return next(self.levels[0].vae.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """Move the networks to a device and return the pipeline. Results are always on the CPU."""
        for level in self.levels:
            for model in level.networks.values():
                model.to(device)
        if self._encoder is not None:
            self._encoder.to(device)
        return self

    def stream(
        self,
        numbers: Sequence[int],
        options: SampleOptions = SampleOptions(),  # noqa: B008  (immutable)
        *,
        shape: Grid | Voxels | None = None,
        level: int | None = None,
        last: int | None = None,
    ) -> Iterator[Sample]:
        """Generate the shapes with the given numbers, batch by batch, and yield them one by one.

        Args:
            numbers: Number of each shape, on which its noise depends.
            options: Options of sampling.
            shape: Coarse voxels to start from, as `upsample` takes them: one for each number, or one for all. By
                default shapes start from noise in the box.
            level: First level to run, with `shape`.
            last: Last level to run, by default the finest.

        Raises:
            ImportError, TypeError, ValueError: As in `sample` and `upsample`; raised by the call, not by iteration.
        """
        first, grids = 0, [full_box(self.levels[0])] * len(numbers) if shape is None else []
        if shape is not None:
            first, voxels = latent_grid_of(self.levels, self.size, shape, level)
            if voxels.batch_size not in (1, len(numbers)):
                raise ValueError(f"numbers must be one for each of {voxels.batch_size} shapes, got {len(numbers)}")
            grids = voxels.unbind() * (len(numbers) if voxels.batch_size == 1 else 1)
        end = len(self.levels) if last is None else checks.integer("last", last) + 1
        if not first < end <= len(self.levels):
            raise ValueError(f"last must lie in [{first}, {len(self.levels)}), got {last}")
        levels = self.levels[first:end]
        options.check_hooks(levels, first)
        samplers = [options.for_level(each) for each in levels]
        requests = shape_requests(levels, numbers, grids, options, self.embed)
        return self._generate(first, samplers, requests, options)

    def _generate(
        self, first: int, samplers: Sequence[SamplerConfig], requests: Sequence[ShapeRequest], options: SampleOptions
    ) -> Iterator[Sample]:
        """The method of the paper (figure 2): for each level, denoise latents, decode the structure, refine it."""
        budget = options.budget
        for start in range(0, len(requests), options.batch_size):
            batch = list(requests[start : start + options.batch_size])
            generated: list[list[Voxels]] = [[] for _ in batch]
            for number, sampler in enumerate(samplers, first):
                level = self.levels[number]
                # Shapes that have no voxels stay empty.
                alive = [n for n, request in enumerate(batch) if request.voxels.num_voxels]
                shapes = [batch[n] for n in alive]
                title = f"shapes {batch[0].number} to {batch[-1].number}, level {number}"
                total = len(shapes) * sampler.steps
                with tqdm(total=total, desc=title, unit="step", disable=options.quiet, leave=False) as bar:
                    # 1. Denoise: from noise on the latent grids to latents [M, L] of each shape.
                    denoise = partial(self._denoise, number, sampler, options, bar.update)
                    latents = in_batches(denoise, shapes, [shape.voxels.num_voxels for shape in shapes], budget)
                # 2. Decode: which of the finer voxels exist, and their attributes.
                decoded = in_batches(level.decode, latents, [level.decoded_size(z) for z in latents], budget)
                # 3. Refine: add and remove voxels of the decoded structure, and predict the attributes again.
                sizes = [voxels.num_voxels for voxels in decoded]
                refined = in_batches(partial(level.refine, box=self.size), decoded, sizes, budget)
                # 4. Remove small connected components.
                clean = partial(without_small, fraction=options.min_component)
                voxels = [level.empty() for _ in batch]
                for n, result in zip(alive, in_batches(clean, refined, sizes, budget), strict=True):
                    voxels[n] = result.to("cpu")
                # 5. The voxels of this level are the latent grids of the next.
                for n, result in enumerate(voxels):
                    batch[n] = replace(batch[n], voxels=result)
                    generated[n].append(result)
                lost = [batch[n].number for n in alive if not voxels[n].num_voxels]
                if lost:
                    warnings.warn(f"no voxels are left at level {number} of the shapes {lost}", stacklevel=2)
            yield from (Sample(tuple(levels), first) for levels in generated)

    def _denoise(
        self,
        number: int,
        sampler: SamplerConfig,
        options: SampleOptions,
        advance: Callable[[int], bool | None],
        shapes: Sequence[ShapeRequest],
    ) -> list[SparseTensor]:
        """Latents [M, L] of each shape of a batch, from noise on its latent grid."""
        level, numbers = self.levels[number], [shape.number for shape in shapes]
        # 1. The latent grids, M voxels in all, the conditions of the denoiser, and latents to start from.
        latent = Voxels.stack([shape.voxels for shape in shapes]).to(self.device)
        conditions, unconditional = self.conditions(number, sampler, options, latent, shapes)
        make_start = options.starts.get(number)
        start = None if make_start is None else make_start(latent.grid, numbers)
        # 2. Noise of each shape from the seed, its number and the level; then the steps of the sampler.
        make_hook = options.hooks.get(number)
        latents = sample_latents(
            level.denoiser,
            latent.grid,
            level.vae.config.latent_channels,
            Noise(options.seed, numbers, number),
            diffusion=level.objective,
            sampler=sampler,
            conditions=conditions,
            unconditional=unconditional,
            start=None if start is None else start.latents,
            strength=1.0 if start is None else start.strength,
            hook=None if make_hook is None else make_hook(latent.grid, numbers),
            watch=lambda step, steps: advance(len(shapes)),
        )
        # 3. Back to the scale of the VAE.
        return latents.map(lambda z: z / level.latent_scale).unbind()

    def conditions(
        self,
        number: int,
        sampler: SamplerConfig,
        options: SampleOptions,
        latent: Voxels,
        shapes: Sequence[ShapeRequest],
    ) -> tuple[Conditions, Conditions | None]:
        """The conditions of the denoiser of a level, and those of the second call if there is guidance.

        Args:
            number: Number of the level.
            sampler: The sampler of the level.
            options: Options of sampling.
            latent: Latent grids of a batch of shapes, with attributes.
            shapes: The shapes.
        """
        given = self._given_conditions(number, options, latent, shapes)
        if sampler.weight == 1:
            return given, None
        level, every = self.levels[number], torch.ones(len(shapes), dtype=torch.bool)
        empty_text = self.embed("") if level.denoiser.config.text_channels else None
        return given, given.drop(every, latent.grid, level.dropped, empty_text=empty_text)

    def _given_conditions(
        self, number: int, options: SampleOptions, latent: Voxels, shapes: Sequence[ShapeRequest]
    ) -> Conditions:
        """The conditions that the denoiser of a level takes: attributes of the latent grid, classes and texts."""
        level, config = self.levels[number], self.levels[number].denoiser.config
        of_shapes = Conditions(
            category=torch.tensor([class_number(level, s.category) for s in shapes]) if config.categories else None,
            text=Text.stack([s.text for s in shapes if s.text is not None]) if config.text_channels else None,
            words=stack_words([words_of(level, s.prompt) for s in shapes]) if config.words else None,
        ).to(self.device)
        edit = options.conditions.get(number)
        if edit is None:
            return Conditions.from_voxels(latent, config, **{n: getattr(of_shapes, n) for n in of_shapes.names})
        if config.observed:
            of_shapes = replace(
                of_shapes, observed=torch.zeros(latent.num_voxels, config.observed, device=latent.device)
            )
        taken = [name for name in OF_VOXELS if name in config.conditions]
        of_voxels: dict[str, Any] = {name: latent.attributes.get(name) for name in taken}
        known = replace(of_shapes, **of_voxels)
        return edit(known, latent.grid, [shape.number for shape in shapes])

    def embed(self, text: str) -> Text:
        """Embed a text. The text encoder is loaded for the first one."""
        if self._encoder is None and self._source is None:
            raise ValueError("text must be a TextEncoder or a TextSource for a model that takes texts, got None")
        if self._encoder is None and self._source is not None:
            source = self._source
            self._encoder = TextEncoder.from_pretrained(source.model, source.tokenizer, subfolder=source.subfolder)
        assert self._encoder is not None
        expected = {level.denoiser.config.text_channels for level in self.levels} - {0}
        if {self._encoder.channels} != expected:
            raise ValueError(f"text must be an encoder with {expected} channels, got one with {self._encoder.channels}")
        return self._encoder.to(self.device)([text])
