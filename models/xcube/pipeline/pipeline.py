"""XCubePipeline: generating, editing and reconstructing shapes with trained networks."""

from collections.abc import Sequence
from os import PathLike

from sparsevox import Grid, Voxels, checks
from sparsevox.shapes import Shape
from xcube.data.hierarchy import Outside, build_hierarchy
from xcube.geometry.solids import Region, as_regions
from xcube.networks.quantize import Bits
from xcube.pipeline.cascade import Cascade
from xcube.pipeline.checkpoint import Checkpoint, read_pipeline, write_pipeline
from xcube.pipeline.complete import Method, completed
from xcube.pipeline.edit import edited, plan_edit
from xcube.pipeline.inputs import check_cubes
from xcube.pipeline.observation import observation
from xcube.pipeline.options import Category, Sample, SampleOptions
from xcube.pipeline.packaged import packaged_model
from xcube.pipeline.reconstruct import Reconstruction, reconstruct
from xcube.pipeline.variations import Blend, shapes_between, variants


class XCubePipeline(Cascade):
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

        Levels that `from_pretrained` left out, finer than its `resolution`, are not written.

        Args:
            folder: The folder, created if necessary.
            bits: Number of bits per weight in the files, 32, 16 or 8.

        Raises:
            ValueError: If `bits` is another number.
        """
        write_pipeline(Checkpoint(self.levels, self.size, self._source), folder, bits)

    def sample(
        self,
        n: int,
        options: SampleOptions = SampleOptions(),  # noqa: B008  (immutable)
        *,
        seed: int | None = None,
        category: Category | Sequence[Category | None] | None = None,
        text: str | Sequence[str | None] | None = None,
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
            category: Category of all shapes, by name or number, or one per shape, of which some may be None.
            text: Text prompt for all shapes, or one per shape, of which some may be None.
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
        plan = plan_edit(fine.to("cpu"), self.box, delete=delete, add=add, margin=margin)
        return edited(self.levels, self.stream, plan, options, numbers)

    def complete(
        self,
        partial: Voxels | Sample,
        options: SampleOptions = SampleOptions(),  # noqa: B008  (immutable)
        *,
        known: Region | Sequence[Region] = (),
        unknown: Region | Sequence[Region] = (),
        sensor: Sequence[float] | None = None,
        method: Method | None = None,
        numbers: Sequence[int] = (0, 1, 2, 3),
    ) -> list[Sample]:
        """Generate whole shapes from a part of one.

        Every shape has all observed voxels, with their attributes.

        Args:
            partial: Observed voxels of the finest level, with normals; or a sample, of which a part is unknown.
            options: Options of sampling.
            known: Parts of space that were observed completely, so that they hold no other voxels: the two corners of a
                box in world units, a mesh, or voxels; or several of these.
            unknown: Parts of space to generate, instead: voxels there are left out, and all other space is known.
            sensor: Position from which the voxels were seen, in world units: the space before them is empty.
            method: How the coarsest level is completed: "trained", by a denoiser that takes observations, with a
                guidance of 3 unless the options say otherwise, if it was trained for that; "resampling", by any
                denoiser (RePaint). By default "trained" where the denoiser can do it.
            numbers: Number of each shape, on which its noise depends.

        Returns:
            One Sample per number, on the CPU.

        Raises:
            ImportError, KeyError, TypeError, ValueError: As in `observation`, `completed` and `sample`.
        """
        part = partial.finest if isinstance(partial, Sample) else partial
        if not isinstance(part, Voxels):
            raise TypeError(f"partial must be Voxels or a Sample, got {type(part).__name__}")
        check_cubes(self.voxel_sizes)
        spaces = {"known": as_regions(known), "unknown": as_regions(unknown)}
        observed = observation(part.to("cpu"), self.box, **spaces, sensor=sensor)
        return list(completed(self, observed, options, numbers, method))

    def vary(
        self,
        shape: Voxels | Sample,
        strength: float = 0.7,
        options: SampleOptions = SampleOptions(),  # noqa: B008  (immutable)
        *,
        numbers: Sequence[int] = (0, 1, 2, 3),
    ) -> list[Sample]:
        """Generate variants of a shape: other shapes that resemble it.

        Args:
            shape: A sample, or voxels with attributes of the finest level.
            strength: How much variants differ: the fraction of the sampling steps of the coarsest level that are taken
                again after noise was added to its latents, from 0 (the shape as the networks reconstruct it) to 1.
            options: Options of sampling.
            numbers: Number of each variant, on which its noise depends.

        Returns:
            One Sample per number, on the CPU.

        Raises:
            KeyError, TypeError, ValueError: As in `variants` and `sample`.
        """
        return list(variants(self, shape, strength, options, numbers))

    def interpolate(
        self,
        first: Voxels | Sample,
        second: Voxels | Sample,
        n: int = 7,
        options: SampleOptions = SampleOptions(),  # noqa: B008  (immutable)
        *,
        blend: Blend = "noise",
        number: int = 0,
    ) -> list[Sample]:
        """Generate shapes between two others.

        Args:
            first: A sample, or voxels with attributes of the finest level.
            second: Another one.
            n: Number of shapes, at least 2. The first and the last are the given ones, generated again.
            options: Options of sampling. Hooks, starts and repeats of the coarsest level have no effect.
            blend: Interpolate the "noise" from which the sampler makes the coarsest levels of the two shapes, so that
                those between are samples too, which needs a denoiser that predicts a flow; or their "latents".
            number: Number of the noise of the finer levels.

        Returns:
            n Samples, on the CPU.

        Raises:
            KeyError, TypeError, ValueError: As in `shapes_between` and `sample`.
        """
        return list(shapes_between(self, first, second, n, options, blend, number))

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
        check_cubes(self.voxel_sizes)
        fill = any(level.vae.config.fill for level in self.levels)
        pyramid = build_hierarchy(shape, self.box, samples=samples, outside=outside, fill=fill)
        pairs = zip(pyramid, self.levels, strict=True)
        return tuple(reconstruct(voxels.to(self.device), level.vae, level.refiner).to("cpu") for voxels, level in pairs)
