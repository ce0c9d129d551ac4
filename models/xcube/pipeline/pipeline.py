"""XCubePipeline: generates shapes with trained networks, level by level.

M latent voxels, N decoded voxels, L latent channels, B shapes of a batch.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any

import torch
from tqdm import tqdm

from sparsevox import Grid, SparseTensor, Voxels, checks
from sparsevox.shapes import Shape
from xcube.data.hierarchy import Box, Outside, build_hierarchy
from xcube.diffusion.objective import Noise
from xcube.diffusion.samplers import SamplerConfig, sample_latents
from xcube.geometry.components import without_small
from xcube.geometry.solids import Region
from xcube.networks.conditions import Conditions, Text
from xcube.networks.quantize import Bits
from xcube.networks.text_encoder import TextEncoder
from xcube.pipeline.batching import in_batches
from xcube.pipeline.checkpoint import Checkpoint, TextSource, read_pipeline, write_pipeline
from xcube.pipeline.edit import edited, plan_edit
from xcube.pipeline.inputs import box_size, full_box, latent_grid_of
from xcube.pipeline.level import Level, Size, check_levels, level_resolutions
from xcube.pipeline.options import Category, Sample, SampleOptions, ShapeRequest, class_number, shape_requests
from xcube.pipeline.packaged import packaged_model
from xcube.pipeline.reconstruct import Reconstruction, reconstruct


class XCubePipeline:
    """Hierarchical latent diffusion of sparse voxels (Ren et al. 2024, arXiv:2312.03806), with any number of levels.

    >>> pipeline = XCubePipeline.from_pretrained()  # doctest: +SKIP
    >>> shapes = pipeline.sample(4, category="chair", seed=1)  # doctest: +SKIP
    >>> mesh = sv.io.to_mesh(shapes[0].finest)  # doctest: +SKIP

    Args:
        levels: Networks of each level, coarse to fine. They are put into evaluation mode.
        size: Edge lengths of the box, centered at the origin, in world units. By default the box that the latents of
            the first level fill, or a unit cube if its latent grid is sparse.
        text: Text encoder for denoisers that take texts, or a `TextSource` to load it from when needed.

    Raises:
        TypeError: If `levels` holds anything other than a `Level`, or a network has the wrong type.
        ValueError: If there is no level, networks do not fit each other, or the size is not that of the latents.
    """

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

    @classmethod
    def from_pretrained(
        cls, folder: str | PathLike[str] | None = None, *, resolution: int | None = None
    ) -> "XCubePipeline":
        """Load a pipeline from a folder, by default the model `shapes` in the package, onto the CPU.

        `pipeline.json` names the subfolders of each level. Without it they are vae-0, denoiser-0, refiner-0 (which may
        be missing), vae-1, and so on: the folders that training writes; finetune-1 takes the place of denoiser-1.
        Levels finer than `resolution`, one of `resolutions`, are left out. By default it is the one that
        `pipeline.json` names, 64 for `shapes`, which has 16, 64 and 128, or else that of the last level.

        Raises:
            FileNotFoundError: If there is no such folder, or no pipeline in it.
            ValueError: If a file is damaged, a network is missing, networks do not fit each other, or no level has this
                resolution.
        """
        found = read_pipeline(packaged_model() if folder is None else folder, resolution)
        return cls(found.levels, size=found.size, text=found.text)

    def save_pretrained(self, folder: str | PathLike[str], *, bits: Bits = 32) -> None:
        """Write all networks and `pipeline.json`. Only the source of a text encoder is written, if it is known.

        Args:
            folder: The folder, created if necessary.
            bits: Number of bits per weight in the files, 32, 16 or 8.

        Raises:
            ValueError: If `bits` is another number.
        """
        write_pipeline(Checkpoint(self.levels, self.size, self._source), folder, bits)

    @property
    def voxel_sizes(self) -> tuple[Size, ...]:
        """Edge lengths of the voxels of each level, in world units."""
        return tuple(level.vae.config.voxel_sizes for level in self.levels)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Number of voxels of each level along the first axis of the box."""
        return level_resolutions(self.levels, self.size)

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return next(self.levels[0].vae.parameters()).device

    def to(self, device: torch.device | str) -> "XCubePipeline":
        """Move the networks to a device and return the pipeline. Results are always on the CPU."""
        for level in self.levels:
            for model in level.networks.values():
                model.to(device)
        if self._encoder is not None:
            self._encoder.to(device)
        return self

    def sample(
        self,
        n: int,
        options: SampleOptions = SampleOptions(),  # noqa: B008  (immutable)
        *,
        seed: int | None = None,
        category: Category | Sequence[Category] | None = None,
        text: str | Sequence[str] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> list[Sample]:
        """Generate shapes from noise.

        The same call gives bitwise identical shapes. A shape depends only on the seed and its number; but another batch
        size or budget changes the order of floating-point sums, and individual voxels may differ.

        Args:
            n: Number of shapes; they are numbered from 0 to n - 1.
            options: Options of sampling. The keywords below override its fields of the same names.
            seed: Seed of the noise.
            category: Category of all shapes, by name or number, or one per shape.
            text: Text prompt for all shapes, or one per shape.
            steps: Number of denoising steps at each level.
            guidance: Weight of classifier-free guidance by category and text; 1 for none.

        Returns:
            One Sample per shape, on the CPU.

        Warns:
            UserWarning: If a shape has no voxels left at some level; its finer levels are then empty.

        Raises:
            ImportError: If a text is to be embedded and transformers is not installed, or small components are to be
                removed and scipy is not.
            TypeError: If an option has the wrong type.
            ValueError: If an option is out of range, or the networks of this pipeline do not take it.
        """
        if checks.integer("n", n) < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        options = options.with_changes(seed=seed, category=category, text=text, steps=steps, guidance=guidance)
        return list(self.stream(range(n), options))

    def upsample(
        self,
        shape: Grid | Voxels,
        options: SampleOptions = SampleOptions(),  # noqa: B008  (immutable)
        *,
        level: int | None = None,
        numbers: Sequence[int] | None = None,
    ) -> list[Sample]:
        """Generate finer shapes from coarse voxels, with the levels of the cascade from `level` on.

        Args:
            shape: A batch of latent grids of the first level to run, such as the level before it generates. If the
                denoiser takes normals and there are none, they are estimated (`estimated_normals`).
            options: Options of sampling.
            level: First level to run. By default the level whose latent voxels have the voxel size of `shape`.
            numbers: Number of each result, on which its noise depends; 0, 1, ... by default. Several numbers for a
                single shape give as many variants of it.

        Returns:
            One Sample per number, on the CPU.

        Raises:
            ImportError: If normals are to be estimated and scipy is not installed.
            TypeError: If `shape` is neither a Grid nor Voxels.
            ValueError: If there is no shape or no such level, voxels have another size, are not in the box, or lack an
                attribute; also as in `sample`.
        """
        count = shape.batch_size if isinstance(shape, Grid | Voxels) else 1
        return list(self.stream(range(count) if numbers is None else numbers, options, shape=shape, level=level))

    def edit(
        self,
        shape: Voxels | Sample,
        options: SampleOptions = SampleOptions(),  # noqa: B008  (immutable)
        *,
        delete: Region | Sequence[Region] = (),
        add: Region | Sequence[Region] = (),
        margin: float | None = None,
        numbers: Sequence[int] = (0,),
    ) -> list[Sample]:
        """Delete or add parts of a shape, and generate its finer levels again there (section 4 of the paper).

        Outside of the edit and its margin, the voxels of all finer levels stay exactly as they are.

        Args:
            shape: A sample, or voxels with normals of the finest level.
            options: Options of sampling.
            delete: Parts to delete: the two corners of a box in world units, a mesh, or voxels; or several of these.
            add: Parts to add.
            margin: Width of the margin around the edit in which the shape may change too, in world units; by default
                one voxel of the coarsest level.
            numbers: Number of each variant, on which its noise depends.

        Returns:
            One Sample per number, on the CPU. Its coarsest level is that of the edited solid.

        Raises:
            ImportError, KeyError, TypeError, ValueError: As in `plan_edit` and `upsample`.
        """
        fine = shape.finest if isinstance(shape, Sample) else shape
        plan = plan_edit(fine.to("cpu"), Box(self.resolutions, self.size), delete=delete, add=add, margin=margin)
        return edited(self.levels, self.stream, plan, options, numbers)

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
        requests = shape_requests(levels, numbers, grids, options, self._embed)
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
        # 1. The latent grids, M voxels in all, and the conditions of the denoiser.
        latent = Voxels.stack([shape.voxels for shape in shapes]).to(self.device)
        conditions = self._conditions(number, options, latent, shapes)
        unconditional = None
        if sampler.weight != 1:
            every = torch.ones(len(shapes), dtype=torch.bool)
            empty_text = self._embed("") if level.denoiser.config.text_channels else None
            unconditional = conditions.drop(every, latent.grid, level.dropped, empty_text=empty_text)
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
            hook=None if make_hook is None else make_hook(latent.grid, numbers),
            watch=lambda step, steps: advance(len(shapes)),
        )
        # 3. Back to the scale of the VAE.
        return latents.map(lambda z: z / level.latent_scale).unbind()

    def _conditions(
        self, number: int, options: SampleOptions, latent: Voxels, shapes: Sequence[ShapeRequest]
    ) -> Conditions:
        """The conditions that the denoiser of a level takes: attributes of the latent grid, classes and texts."""
        level, config = self.levels[number], self.levels[number].denoiser.config
        of_shapes = Conditions(
            category=torch.tensor([class_number(level, s.category) for s in shapes]) if config.categories else None,
            text=Text.stack([s.text for s in shapes if s.text is not None]) if config.text_channels else None,
        ).to(self.device)
        edit = options.conditions.get(number)
        if edit is None:
            return Conditions.from_voxels(latent, config, category=of_shapes.category, text=of_shapes.text)
        taken = [name for name in ("normal", "fill", "label") if name in config.conditions]
        of_voxels: dict[str, Any] = {name: latent.attributes.get(name) for name in taken}
        known = replace(of_shapes, **of_voxels)
        return edit(known, latent.grid, [shape.number for shape in shapes])

    def _embed(self, text: str) -> Text:
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

    def reconstruct(
        self, shape: Shape, *, samples: int = 1_000_000, outside: Outside = "rescale"
    ) -> tuple[Reconstruction, ...]:
        """Encode and decode a shape with the VAE of every level, and refine the result.

        Args:
            shape: A mesh, points, or the voxels of the finest level.
            samples: Number of points to sample on the surface of a mesh, from which attributes are computed.
            outside: Treatment of a shape that does not fit into the box: "error" raises ValueError, "clip" crops it;
                "rescale" moves and scales every mesh and point cloud to fill the box.

        Returns:
            One Reconstruction per level, on the CPU.

        Raises:
            ImportError: If the shape is a mesh and trimesh is not installed.
            KeyError: If the shape lacks an attribute that a VAE takes.
            TypeError: If `shape` has another type.
            ValueError: If the shape cannot be used, or voxels of a level are not cubes.
        """
        if any(len(set(sizes)) > 1 for sizes in self.voxel_sizes):
            raise ValueError(f"voxels of all levels must be cubes for hierarchies of a shape, got {self.voxel_sizes}")
        fill = any(level.vae.config.fill for level in self.levels)
        pyramid = build_hierarchy(shape, Box(self.resolutions, self.size), samples=samples, outside=outside, fill=fill)
        pairs = zip(pyramid, self.levels, strict=True)
        return tuple(reconstruct(voxels.to(self.device), level.vae, level.refiner).to("cpu") for voxels, level in pairs)
