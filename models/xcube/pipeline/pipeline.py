"""The cascade from Python: shapes out of noise, out of coarse voxels, or through every VAE and back."""

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

import torch

from sparsevox import Grid, Voxels, checks
from sparsevox.shapes import Shape
from xcube.data.hierarchy import Box, Outside, build_hierarchy
from xcube.diffusion.samplers import SamplerConfig
from xcube.networks.conditions import Text
from xcube.networks.text_encoder import TextEncoder
from xcube.pipeline.checkpoint import (
    Cascade,
    Size,
    Stage,
    TextSource,
    check_stages,
    read_cascade,
    write_cascade,
)
from xcube.pipeline.inputs import box_size, from_shape, full_box
from xcube.pipeline.level import Level, through
from xcube.pipeline.options import Category, ConditionsMaker, HookMaker, Request, Sample, items_of
from xcube.pipeline.reconstruct import Reconstruction, reconstruct


class XCubePipeline:
    """A cascade of any number of levels.

    stages: The networks, from the coarsest level on; in evaluation mode from now on.
    size: Edges of the box, world units.

    Args:
        stages: The networks.
        size: Edges of the box around the origin. By default the box of the latents of the first level, or where these
            fill none a cube of edge 1.
        text: What embeds texts, for networks that read them, or where to find it when it is needed.

    Raises:
        TypeError: If something is no stage or no network of its kind.
        ValueError: If there is no stage, networks do not fit each other, or the size is another than that of the
            latents; the message says what.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        size: Sequence[float] | None = None,
        text: TextEncoder | TextSource | None = None,
    ) -> None:
        check_stages(stages)
        self.stages = tuple(stages)
        self._encoder = text if isinstance(text, TextEncoder) else None
        self._source = text if isinstance(text, TextSource) else None
        self.size = box_size(stages[0], size)
        for stage in stages:
            for model in stage.networks.values():
                model.eval()

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str]) -> "XCubePipeline":
        """The pipeline of a folder, on the CPU.

        `pipeline.json` names the sub-folders of each level. Without it they are vae-0, denoiser-0, refiner-0, which may
        be missing, vae-1, and so on: the folders of runs.

        Raises:
            FileNotFoundError: If there is no such folder, or no pipeline in it.
            ValueError: If a file is damaged, a network is missing, or networks do not fit each other.
        """
        found = read_cascade(folder)
        return cls(found.stages, size=found.size, text=found.text)

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write all networks and `pipeline.json`. A text model is not written, only where it came from, if known."""
        write_cascade(Cascade(self.stages, self.size, self._source), folder)

    @property
    def voxel_sizes(self) -> tuple[Size, ...]:
        """Edges of the voxels that each level makes."""
        return tuple(stage.vae.config.voxel_sizes for stage in self.stages)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Voxels of each level along the first axis of the box."""
        return tuple(round(self.size[0] / sizes[0]) for sizes in self.voxel_sizes)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.stages[0].vae.parameters()).device

    def to(self, device: torch.device | str) -> "XCubePipeline":
        """The same pipeline, on another device from now on. Results are on the CPU wherever it computes."""
        for stage in self.stages:
            for model in stage.networks.values():
                model.to(device)
        if self._encoder is not None:
            self._encoder.to(device)
        return self

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        steps: int | None = None,
        text: str | Sequence[str] | None = None,
        category: Category | Sequence[Category] | None = None,
        guidance: float | None = None,
        sampler: SamplerConfig = SamplerConfig(),  # noqa: B008  (immutable)
        batch_size: int = 16,
        budget: int = 500_000,
        min_component: float = 0.0,
        hooks: Mapping[int, HookMaker] | None = None,
        conditions: Mapping[int, ConditionsMaker] | None = None,
        quiet: bool = False,
    ) -> list[Sample]:
        """New shapes, on the CPU.

        A shape follows from the seed, its number and the level. The same call gives the same bits; with another batch
        size or budget numbers are added in another order, so that single voxels may differ.

        Args:
            n: How many; they have the numbers 0 to n - 1.
            seed: Of the noise.
            steps: Of the sampler, at each level.
            text: What shapes should be, one for all or one for each.
            category: The same, by the name or number of a class.
            guidance: Weight of text and category, at levels that were trained without them at times.
            sampler: How to sample. `steps` and `guidance` go first; networks that predict flows have their own kind.
            batch_size: Shapes of a batch, at most.
            budget: Voxels of a batch, at most, of latent grids as well as expected of decodes. What has more is a batch
                of its own. If the memory of a GPU runs out all the same, batches are halved.
            min_component: Connected components of less than this fraction of a shape's voxels are removed at each
                level. The largest one stays. 0 removes nothing.
            hooks: By level, what makes the hook that may change latents at every step, as `samplers.keep` does.
            conditions: By level, what changes or adds to the conditions of its denoiser.
            quiet: Show no progress.

        Warns:
            UserWarning: If nothing is left of a shape at some level. It is empty from there on.

        Raises:
            ImportError: If a text is to be embedded and transformers is not installed, or crumbs are to be removed and
                scipy is not.
            TypeError: If a number is of another kind, or a text no string.
            ValueError: If a number is out of range, a text, category or guidance is for a model without, there is not
                one for each shape, a category or a level is unknown, or the first level has no box.
        """
        if checks.integer("n", n) < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        told: dict[str, Any] = {"seed": seed, "steps": steps, "text": text, "category": category, "guidance": guidance}
        split: dict[str, Any] = {
            "sampler": sampler,
            "batch_size": batch_size,
            "budget": budget,
            "min_component": min_component,
        }
        edits: dict[str, Any] = {"hooks": hooks or {}, "conditions": conditions or {}, "quiet": quiet}
        return list(self.stream(range(n), **told, **split, **edits))

    def stream(
        self,
        numbers: Sequence[int],
        *,
        begin: Grid | Voxels | None = None,
        level: int | None = None,
        **options: Any,
    ) -> Iterator[Sample]:
        """The shapes of these numbers, batch by batch as they are finished; errors come before the first.

        Args:
            numbers: Of the shapes.
            begin: What `upsample` begins with, one for each number or one for all; by default noise in a box.
            level: At which to begin.
            options: Those of `sample`.

        Raises:
            ImportError, TypeError, ValueError: As `sample` and `upsample`.
        """
        asked = Request(**options)
        if begin is not None:
            first, voxels = from_shape(self.stages, self.size, begin, level)
            if voxels.batch_size not in (1, len(numbers)):
                raise ValueError(f"numbers must be one for each of {voxels.batch_size} shapes, got {len(numbers)}")
            grids = voxels.unbind() * (len(numbers) if voxels.batch_size == 1 else 1)
            return self._run(first, numbers, grids, asked)
        return self._run(0, numbers, [full_box(self.stages[0])] * len(numbers), asked)

    def upsample(
        self, shape: Grid | Voxels, level: int | None = None, *, numbers: Sequence[int] | None = None, **options: Any
    ) -> list[Sample]:
        """Finer shapes on grids that are given: the cascade from some level on.

        Args:
            shape: The latent grids of that level, which are what the level before makes: a batch of shapes. Normals
                that its denoiser takes are estimated where there are none, as `estimated_normals` does.
            level: At which to begin. By default the one whose latent voxels have that size.
            numbers: Of the shapes, from which their noise follows; 0, 1, ... by default. One shape may have several:
                there are as many variants of it.
            options: Those of `sample`.

        Raises:
            ImportError: If normals are to be estimated and scipy is not installed.
            TypeError: If `shape` is neither a Grid nor Voxels.
            ValueError: If there is no shape or no such level, voxels have another size, are not in the box, or lack an
                attribute; and as `sample`.
        """
        count = shape.batch_size if isinstance(shape, Grid | Voxels) else 1
        return list(self.stream(range(count) if numbers is None else numbers, begin=shape, level=level, **options))

    def reconstruct(
        self, shape: Shape, *, samples: int = 1_000_000, outside: Outside = "rescale"
    ) -> tuple[Reconstruction, ...]:
        """A shape through the VAE, and the refinement, of every level.

        Args:
            shape: A mesh, points, or the voxels of the finest level.
            samples: Points on the surface of a mesh, from which attributes come.
            outside: What to do with a shape that does not fit into the box: refuse it, cut it off, or scale it.

        Raises:
            ImportError: If the shape is a mesh and trimesh is not installed.
            KeyError: If it lacks an attribute that a VAE takes.
            TypeError: If it is something else.
            ValueError: If it cannot be used, or voxels of the levels are no cubes.
        """
        if any(len(set(sizes)) > 1 for sizes in self.voxel_sizes):
            raise ValueError(f"voxels of all levels must be cubes for hierarchies of a shape, got {self.voxel_sizes}")
        levels = build_hierarchy(shape, Box(self.resolutions, self.size), samples=samples, outside=outside)
        pairs = zip(levels, self.stages, strict=True)
        return tuple(reconstruct(voxels.to(self.device), stage.vae, stage.refiner).to("cpu") for voxels, stage in pairs)

    def _run(self, first: int, numbers: Sequence[int], grids: Sequence[Voxels], asked: Request) -> Iterator[Sample]:
        """Shapes from some level on. Errors come before the first batch."""
        stages = dict(enumerate(self.stages[first:], first))
        unknown = sorted({*asked.hooks, *asked.conditions} - set(stages))
        if unknown:
            raise ValueError(f"hooks and conditions must be of levels {first} to {len(self.stages) - 1}, got {unknown}")
        for number, stage in stages.items():
            if stage.denoiser.config.extra and number not in asked.conditions:
                raise ValueError(f"conditions must have an entry for level {number}, whose denoiser takes extra")
        items = items_of(tuple(stages.values()), numbers, grids, asked, self._embed)
        empty = None if items[0].text is None else self._embed("")
        levels = [Level(stage, number, asked, self.size, empty) for number, stage in stages.items()]
        batches = [items[n : n + asked.batch_size] for n in range(0, len(items), asked.batch_size)]
        return (sample for batch in batches for sample in through(levels, batch, asked.quiet))

    def _embed(self, text: str) -> Text:
        """A text, by what is loaded when the first one is to be embedded."""
        if self._encoder is None and self._source is None:
            raise ValueError("the model reads texts, so the pipeline needs text: an encoder, or where to find it")
        if self._encoder is None and self._source is not None:
            source = self._source
            self._encoder = TextEncoder.from_pretrained(source.model, source.tokenizer, subfolder=source.subfolder)
        assert self._encoder is not None
        expected = {stage.denoiser.config.text_channels for stage in self.stages} - {0}
        if {self._encoder.channels} != expected:
            raise ValueError(f"text must be an encoder of {expected} channels, got one of {self._encoder.channels}")
        return self._encoder.to(self.device)([text])
