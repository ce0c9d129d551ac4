"""Completion: whole shapes from a part of one (section 4 of the paper).

The coarsest level is completed by its denoiser, from the observation; finer levels are generated from it, and from the
observation where their denoisers take it. At each level, observed voxels are put in, and the shell of the result is
closed.

M latent voxels, L latent channels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Literal, get_args

import torch
from torch import Tensor

from sparsevox import Grid, SparseTensor, Voxels
from xcube.diffusion.objective import Noise
from xcube.diffusion.samplers import Hook, keep_known_latents
from xcube.geometry.observation import states
from xcube.geometry.shell import certain_parts
from xcube.geometry.solids import solid, surface
from xcube.networks.conditions import Conditions
from xcube.pipeline.attributes import joined_attributes
from xcube.pipeline.cascade import Cascade
from xcube.pipeline.inputs import full_box
from xcube.pipeline.level import Level
from xcube.pipeline.observation import Observation
from xcube.pipeline.options import Sample, SampleOptions

Method = Literal["trained", "resampling"]
REPEATS = 4  # of each step, by default, to resample
GUIDANCE = 3.0  # by default, for a denoiser that was trained to take observations and to do without them


def completed(
    cascade: Cascade,
    observed: Observation,
    options: SampleOptions,
    numbers: Sequence[int],
    method: Method | None = None,
) -> Iterator[Sample]:
    """Generate whole shapes from an observation, one by one. Errors are raised by the call, not by iteration.

    Args:
        cascade: The networks.
        observed: The observation, with the levels of the cascade.
        options: Options of sampling. Its hooks and conditions act before those of the completion.
        numbers: Number of each shape, on which its noise depends.
        method: How the coarsest level is completed: "trained", by a denoiser that takes observations, with guidance by
            them if it was trained for that (`dropped`), of weight 3 by default; "resampling", by any denoiser, whose
            latents are replaced where they are known (`keep_known_latents`), with each step taken four times if the
            options do not say otherwise. By default "trained" where the denoiser can do it.

    Raises:
        KeyError: If the observed voxels lack an attribute that a VAE takes.
        ValueError: If the method is unknown; "trained" is chosen and the denoiser of the first level takes no
            observations; "resampling" is chosen and no latent of the first level is known; or an option is invalid or
            not taken by the networks.
    """
    first = cascade.levels[0]
    can = bool(first.denoiser.config.observed)
    chosen: Method = method or ("trained" if can else "resampling")
    if chosen not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if chosen == "trained" and not can:
        raise ValueError("method must be 'resampling' for a denoiser that takes no observations, got 'trained'")
    cascade.stream(numbers, options)  # raises errors of the options
    for level, voxels in zip(cascade.levels, observed.full, strict=True):
        missing = [name for name in level.vae.config.attributes if name not in (*voxels.attributes, "fill")]
        if missing:
            raise KeyError(f"partial must have the attributes {missing}, which the VAE takes")
    begun = options.within(cascade.levels, 0, 1)
    if chosen == "trained":
        begun = begun.with_conditions(0, partial(_with_observation, first, observed, 0))
        if "observed" in first.dropped and options.guidance is None and first.sampler.weight == 1:
            begun = replace(begun, guidance=GUIDANCE)
    else:
        box = full_box(first).grid
        if not bool(known_latents(first, observed.unknown[0], box).any()):
            size = tuple(s * f for s, f in zip(first.vae.config.voxel_sizes, first.vae.config.factor, strict=True))
            raise ValueError(
                f"partial must have latent voxels of the size {size} of which all is known, to resample the others; "
                "give larger known or unknown parts, or a denoiser that takes observations"
            )
        repeats = 1 if options.for_level(first).sampler == "dpm++" else REPEATS
        keep = partial(_keep_known, first, observed, 0, options.seed)
        begun = replace(begun.with_hook(0, keep), repeats=options.repeats or repeats)
    coarsest = cascade.stream(numbers, begun, last=0)

    def generated() -> Iterator[Sample]:
        for start in range(0, len(numbers), options.batch_size):
            some = range(start, min(start + options.batch_size, len(numbers)))
            found = [[_put_in(observed, sample.finest)] for sample in islice(coarsest, len(some))]
            for number, level in enumerate(cascade.levels[1:], 1):
                keep = partial(_keep_known, level, observed, number, options.seed)
                wanted = options.of_shapes(some, len(numbers)).within(cascade.levels, number, number + 1)
                if level.denoiser.config.observed:
                    wanted = wanted.with_conditions(number, partial(_with_observation, level, observed, number))
                made = cascade.stream(
                    [numbers[n] for n in some],
                    wanted.with_hook(number, keep),
                    shape=Voxels.stack([levels[-1] for levels in found]),
                    level=number,
                    last=number,
                )
                for levels, sample in zip(found, made, strict=True):
                    levels.append(joined_with_observation(observed, number, sample.finest))
            yield from (Sample(tuple(levels)) for levels in found)

    return generated()


def joined_with_observation(observed: Observation, level: int, generated: Voxels) -> Voxels:
    """The observed voxels of a level, and generated ones in unknown space, as one closed shell.

    The solid of the result is that of the generated shape in unknown space. In known space it follows from the observed
    voxels and their normals.

    Args:
        observed: The observation.
        level: Number of the level.
        generated: Generated voxels of this level.
    """
    full, empty = observed.full[level], observed.empty[level]
    # 1. The solid: generated in unknown space, known elsewhere.
    whole = (solid(generated.grid) - empty) | full.grid | observed.inside[level]
    # 2. Its shell, and the rest of the generated shell, if it is connected with it.
    outer = surface(whole)
    every = outer | full.grid | (generated.grid - empty)
    chosen = torch.ones(every.num_voxels, dtype=torch.bool, device=every.device)
    connected = every.prune(certain_parts(every, chosen, outer.contains(every.coords)))
    # 3. Attributes.
    return joined_attributes(connected | full.grid, (full, generated), whole, tuple(generated.attributes))


def known_latents(level: Level, unknown: Grid, grid: Grid) -> Tensor:
    """Which latent voxels of a batch are known: bool [M].

    None of their voxels is unknown, and on sparse latent grids none of those of the latent voxels around them.

    Args:
        level: The level.
        unknown: Unknown voxels of the level, of one shape.
        grid: Latent grids [M] of a batch.
    """
    latent = unknown.coarsen(level.vae.config.factor)
    if level.vae.config.dense_neck is None:
        latent = latent.dilate(1)
    return ~latent.to(grid.device).contains(_of_one_shape(grid))


def _put_in(observed: Observation, generated: Voxels) -> Voxels:
    """Generated voxels of the coarsest level without those that are known to be empty, and with the observed ones."""
    full = observed.full[0]
    grid = (generated.grid - observed.empty[0]) | full.grid
    return joined_attributes(grid, (generated, full), grid, tuple(generated.attributes))


def _with_observation(
    level: Level, observed: Observation, number: int, conditions: Conditions, grid: Grid, shapes: Sequence[int]
) -> Conditions:
    """Conditions with the same observation of each shape of a batch."""
    full, empty = observed.full[number].to(grid.device), observed.empty[number].to(grid.device)
    fill = full.attributes.get("fill") if level.vae.config.fill and level.denoiser.config.dense else None
    return replace(conditions, observed=states(_of_one_shape(grid), level.vae.config.factor, full.grid, empty, fill))


def _keep_known(
    level: Level, observed: Observation, number: int, seed: int, grid: Grid, shapes: Sequence[int]
) -> Hook | None:
    """Make a hook that keeps the known latents of a batch of shapes."""
    known = known_latents(level, observed.unknown[number], grid)
    if not bool(known.any()):
        return None
    full = observed.full[number]
    if level.vae.config.fill:
        full = full.with_attributes(fill=full.attributes["fill"].clamp(min=0))
    with torch.no_grad():
        posterior = level.vae.encode(full.to(grid.device))
    rows = posterior.grid.index(_of_one_shape(grid))
    latents = posterior.mean[rows.clamp(min=0)] * level.latent_scale
    noise = Noise(seed, shapes, number)(grid, latents.shape[1])
    return keep_known_latents(level.objective, SparseTensor(grid, latents), known & (rows >= 0), noise)


def _of_one_shape(grid: Grid) -> Tensor:
    """The coordinates of a batch, as if all shapes were the first one: all have the same observation."""
    coords = grid.coords.clone()
    coords[:, 0] = 0
    return coords
