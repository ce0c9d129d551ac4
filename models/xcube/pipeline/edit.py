"""Editing (section 4 of the paper): delete or add parts of a shape, and generate its finer levels again there.

A shape is edited as a solid, at its finest level. The coarse levels of the result are those of the new solid, and the
finer ones are generated from them near the edit. Everywhere else the voxels stay as they are.

M latent voxels, L latent channels. All grids hold one shape.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from sparsevox import Grid, SparseTensor, Voxels
from xcube.data.hierarchy import Box, build_hierarchy
from xcube.diffusion.objective import Noise
from xcube.diffusion.samplers import Hook, keep_known_latents
from xcube.geometry.shell import certain_parts
from xcube.geometry.solids import FACES, Region, as_regions, region_voxels, solid, surface
from xcube.pipeline.attributes import joined_attributes
from xcube.pipeline.level import Level, in_box
from xcube.pipeline.options import Sample, SampleOptions


@dataclass(frozen=True)
class Edit:
    """A shape before and after an edit, and where finer levels are generated again.

    before: Voxels of the shape at each level, coarse to fine, with attributes.
    after: The same of the edited solid. The levels but the coarsest are replaced by generated ones.
    zones: At each level, the voxels of space in which the shape may change: those of the edit and of the margin.
    changes: At each level, the voxels of space that the edit adds to the solid or deletes from it, without the margin.
    """

    before: Sequence[Voxels]
    after: Sequence[Voxels]
    zones: Sequence[Grid]
    changes: Sequence[Grid]


def plan_edit(
    shape: Voxels,
    box: Box,
    *,
    delete: Region | Sequence[Region] = (),
    add: Region | Sequence[Region] = (),
    margin: float | None = None,
) -> Edit:
    """Delete and then add parts of a shape.

    Args:
        shape: Voxels of the finest level, with normals: one closed shell.
        box: The box of the cascade, with its levels.
        delete: A part of space to delete from the shape, or several.
        add: A part of space to add to the shape, or several.
        margin: Width of the margin around the edit in which the shape may change too, in world units; by default one
            voxel of the coarsest level.

    Raises:
        ImportError: If scipy is not installed.
        KeyError: If the shape has no normals.
        TypeError: If a part has another type.
        ValueError: If there is nothing to delete or add, a part to delete does not overlap the shape, a part to add
            lies outside of the box, nothing is left, or the margin is negative.
    """
    deleted, added = as_regions(delete), as_regions(add)
    if not deleted and not added:
        raise ValueError("delete or add must hold at least one part, got none")
    if "normal" not in shape.attributes:
        raise KeyError("shape must have normals, got none")
    size = box.voxel_size(-1)
    if margin is not None and not 0 <= margin < float("inf"):
        raise ValueError(f"margin must not be negative, got {margin}")
    limits = [count // 2 + 1 for count in box.shape(len(box.levels) - 1)]  # a voxel more than the box
    # 1. The solid, and its edits.
    old = new = solid(shape.grid)
    for number, region in enumerate(deleted):
        part = region_voxels(f"delete[{number}]", region, shape.grid, limits)
        if not (part & old).num_voxels:
            raise ValueError(f"delete[{number}] must overlap the shape, got a part without any voxel of it")
        new = new - part
    for number, region in enumerate(added):
        part = region_voxels(f"add[{number}]", region, shape.grid, limits)
        if not part.num_voxels or not bool(in_box(part, box.size).all()):
            raise ValueError(f"add[{number}] must lie in the box {box.size} around the origin, and contain a voxel")
        new = new | part
    if not new.num_voxels:
        raise ValueError("the edit must leave a part of the shape, got nothing")
    changed = old ^ new
    # 2. Its shell, with the attributes of the shape where it stays.
    near = changed.dilate(1)
    shell = surface(new) | ((shape.grid - near) & new)
    stays = shape.prune(~near.contains(shape.grid.coords))
    edited_shape = joined_attributes(shell, (stays,), new, tuple(shape.attributes))
    after = build_hierarchy(edited_shape, box, fill=True, crop=True)
    plain = Voxels(shape.grid, {"normal": shape.attributes["normal"]})
    coarser = build_hierarchy(plain, box, fill=True, crop=True)[:-1]
    # 3. Where it may change at each level.
    width = box.voxel_size(0) if margin is None else margin
    zone = changed.dilate(max(1, round(width / size)))
    factors = [box.levels[-1] // count for count in box.levels]
    zones, changes = ([g if n == 1 else g.coarsen(n) for n in factors] for g in (zone, changed))
    return Edit([*coarser, shape], after, zones, changes)


def edited(
    levels: Sequence[Level],
    stream: Callable[..., Iterable[Sample]],
    plan: Edit,
    options: SampleOptions,
    numbers: Sequence[int],
) -> list[Sample]:
    """Generate the finer levels of an edited shape, one variant for each number.

    Args:
        levels: All levels of the cascade.
        stream: The method of that name of its pipeline.
        plan: The edit.
        options: Options of sampling.
        numbers: Number of each variant.
    """
    if len(levels) > 1:
        stream(numbers, options, shape=plan.after[0], level=1)  # raises errors of options that these levels do not take
    found = [[plan.after[0]] for _ in numbers]
    for number, level in enumerate(levels[1:], 1):
        keep = partial(keep_outside, level, plan, number, options.seed)
        hooked = options.within(levels, number, number + 1).with_hook(number, keep)
        coarse = Voxels.stack([variant[-1] for variant in found])
        made = stream(numbers, hooked, shape=coarse, level=number, last=number)
        for variant, sample in zip(found, made, strict=True):
            variant.append(joined_shapes(plan.before[number], sample.finest, plan.zones[number], plan.changes[number]))
    return [Sample(tuple(variant)) for variant in found]


def keep_outside(level: Level, edit: Edit, number: int, seed: int, grid: Grid, shapes: Sequence[int]) -> Hook:
    """Make a hook that keeps the latents of the shape outside of the zone of an edit.

    Args:
        level: The level whose latents are sampled.
        edit: The edit.
        number: Number of the level.
        seed: Seed of the noise that is added to these latents at each step.
        grid: Latent grids of a batch of variants [M].
        shapes: Number of each variant.
    """
    coords = grid.coords.clone()
    coords[:, 0] = 0  # all variants have the same known latents
    posterior = level.vae.encode(edit.before[number].to(grid.device))
    rows = posterior.grid.index(coords)
    stays = (rows >= 0) & ~edit.zones[number - 1].dilate(1).to(grid.device).contains(coords)
    known = SparseTensor(grid, posterior.mean[rows.clamp(min=0)] * level.latent_scale)
    noise = Noise(seed, shapes, number)(grid, known.channels)
    return keep_known_latents(level.objective, known, stays, noise)


def joined_shapes(before: Voxels, generated: Voxels, zone: Grid, changed: Grid) -> Voxels:
    """The voxels of a shape outside of a zone, and generated ones inside, joined without a gap.

    Outside of the zone, voxels and attributes are exactly those of before. The solid of the result is that of the
    shape outside of the zone and that of the generated voxels inside. Where a voxel deep inside of the shape would
    touch empty space in the zone, a layer of voxels in the zone covers it, so the shell has no hole if that of before
    has none.

    A shell can be thicker than one voxel. Where one of its deep voxels outside of the zone would lose the voxels that
    connect it with the surface, more of the shape of before is kept.

    Args:
        before: The shape before the edit.
        generated: The generated shape.
        zone: The voxels of space in which the shape may change.
        changed: The voxels of the zone where it must change.
    """
    while True:
        joined, loose = _joined_once(before, generated, zone)
        smaller = zone - (loose.dilate(2) - changed.dilate(1))
        if smaller.num_voxels == zone.num_voxels:
            return joined
        zone = smaller


def _joined_once(before: Voxels, generated: Voxels, zone: Grid) -> tuple[Voxels, Grid]:
    """The joined shape, and the voxels outside of the zone that are not connected with its surface."""
    kept = before.prune(~zone.contains(before.grid.coords))
    outside = solid(before.grid) - zone
    inside = solid(generated.grid) & zone
    # 1. Cover what the zone would lay open.
    deep = outside - before.grid
    inside = inside | (deep.dilate(stencil=FACES.to(zone.device)) & zone)
    # 2. The shell in the zone: the boundary of the joined solid, and the rest of the generated shell.
    whole = outside | inside
    outer = surface(whole)
    shell = (outer | generated.grid) & inside
    every = kept.grid | shell
    chosen = torch.ones(every.num_voxels, dtype=torch.bool, device=every.device)
    connected = every.prune(certain_parts(every, chosen, outer.contains(every.coords)))
    shell = shell & connected
    # 3. Attributes.
    new = joined_attributes(shell, (generated,), whole, tuple(generated.attributes))
    grid = kept.grid | new.grid  # disjoint
    rows = grid.index(torch.cat([kept.grid.coords, new.grid.coords]))
    shared = [name for name in kept.attributes if name in new.attributes]
    both = {name: torch.cat([kept.attributes[name], new.attributes[name]]) for name in shared}
    attributes = {name: torch.empty_like(value).index_copy(0, rows, value) for name, value in both.items()}
    return Voxels(grid, attributes), kept.grid - connected
