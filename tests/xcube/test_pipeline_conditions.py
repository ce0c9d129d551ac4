"""Conditions of the denoisers of a cascade, with small random networks; samplers, boxes, normals, folders."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsevox import Grid, Voxels
from tests.xcube.cascades import LATENT, agree, random, same_bits, watched
from tests.xcube.cascades import labeled as tiny
from xcube.diffusion.objective import Diffusion, DiffusionConfig
from xcube.diffusion.samplers import SamplerConfig, Solver, sample_latents
from xcube.geometry.normals import estimated_normals
from xcube.networks.conditions import Conditions
from xcube.networks.configs import UNetConfig, VAEConfig
from xcube.networks.pretrained import save_pretrained
from xcube.networks.vae import VAE
from xcube.pipeline.level import Level, in_box
from xcube.pipeline.options import ConditionsMaker, Sample, SampleOptions
from xcube.pipeline.pipeline import XCubePipeline

STEPS = 2


@lru_cache
def cascade(levels: int) -> XCubePipeline:
    return XCubePipeline([tiny(level) for level in range(levels)])


def made(pipeline: XCubePipeline, numbers: Sequence[int], **options: Any) -> list[Sample]:
    return list(pipeline.stream(numbers, SampleOptions(**({"steps": STEPS, "quiet": True} | options))))


# Conditions


def test_conditions_are_those_of_the_level_before_and_can_be_composed() -> None:
    pipeline, numbers = cascade(2), [4, 1, 3]
    seen: list[tuple[Conditions, Grid, list[int]]] = []

    def look(conditions: Conditions, grid: Grid, batch: Sequence[int]) -> Conditions:
        seen.append((conditions, grid, list(batch)))
        return conditions

    def classes(conditions: Conditions, grid: Grid, batch: Sequence[int]) -> Conditions:
        return replace(conditions, category=torch.tensor([n % 2 for n in batch]))

    def without_normals(conditions: Conditions, grid: Grid, batch: Sequence[int]) -> Conditions:
        assert conditions.normal is not None
        return replace(conditions, normal=torch.zeros_like(conditions.normal))

    def at_once(conditions: Conditions, grid: Grid, batch: Sequence[int]) -> Conditions:
        return without_normals(classes(conditions, grid, batch), grid, batch)

    def composed(*makers: ConditionsMaker) -> ConditionsMaker:
        def make(conditions: Conditions, grid: Grid, batch: Sequence[int]) -> Conditions:
            for maker in makers:
                conditions = maker(conditions, grid, batch)
            return conditions

        return make

    def edited(maker: ConditionsMaker, **options: Any) -> list[Sample]:
        return made(pipeline, numbers, conditions={1: maker}, **options)

    plain = made(pipeline, numbers, category=0)
    assert same_bits(edited(look, category=0), plain)
    [(conditions, grid, batch)] = seen
    before = Voxels.stack([shape.levels[0] for shape in plain])
    assert batch == numbers
    assert grid.same_voxels(before.grid)
    assert conditions.names == ("normal", "label", "category")
    for value, name in ((conditions.normal, "normal"), (conditions.label, "label")):
        assert value is not None
        assert torch.equal(value, before.attributes[name])
    assert same_bits(edited(composed(classes, look, without_normals)), edited(at_once))
    by_number = edited(classes)
    assert same_bits(by_number, made(pipeline, numbers, category=[0, 1, 1]))
    agree(by_number[0], plain[0])
    assert not same_bits(by_number[1:2], plain[1:2])


def test_normals_that_are_given_are_made_unit_long() -> None:
    given = made(cascade(2), [0])[0].levels[0]
    calls: list[Conditions] = []
    with watched(cascade(2).levels[1].denoiser, lambda args: calls.append(args[2])):
        cascade(2).upsample(
            given.with_attributes(normal=given.attributes["normal"] * 7), SampleOptions(steps=STEPS, quiet=True)
        )
    assert len(calls) == STEPS
    for conditions in calls:
        assert conditions.normal is not None
        torch.testing.assert_close(conditions.normal, given.attributes["normal"])


def test_guidance_leaves_out_what_was_dropped_and_nothing_else() -> None:
    calls: list[list[Conditions]] = [[], []]
    first, second = (part.denoiser for part in cascade(2).levels)
    with watched(first, lambda args: calls[0].append(args[2])), watched(second, lambda args: calls[1].append(args[2])):
        [shape] = made(cascade(2), [0], category=1, guidance=3.0)
    assert len(calls[0]) == STEPS  # which has no condition, and so is not called twice
    assert [conditions.category.tolist() for conditions in calls[1] if conditions.category is not None] == [
        [1],
        [-1],
    ] * STEPS
    for conditions in calls[1]:
        assert conditions.normal is not None
        assert conditions.label is not None
        assert torch.equal(conditions.normal, shape.levels[0].attributes["normal"])
        assert torch.equal(conditions.label, shape.levels[0].attributes["label"])


def test_what_cannot_be_done_is_said_before_anything_is() -> None:
    calls: list[object] = []
    with watched(cascade(2).levels[0].denoiser, calls.append):
        for options, message in (
            ({"category": 2}, r"category must be a number in \[0, 2\), got 2"),
            ({"conditions": {2: lambda conditions, grid, batch: conditions}}, r"must be for levels 0 to 1, got \[2\]"),
            ({"hooks": {-1: lambda grid, batch: None}}, r"must be for levels 0 to 1, got \[-1\]"),
        ):
            with pytest.raises(ValueError, match=message):
                cascade(2).stream([0], SampleOptions(**options))  # nobody asks for the first shape
        with pytest.raises(ValueError, match="guidance must be 1 for a model that was trained without dropping"):
            cascade(1).stream([0], SampleOptions(guidance=2.0))
        for values, message in (
            ({"category": 1.5}, "category must be a single one, or"),
            ({"text": 3}, "text must be a string"),
        ):
            with pytest.raises(TypeError, match=message):
                cascade(2).stream([0], SampleOptions(**values))
    assert not calls


@pytest.mark.parametrize("guidance", [float("nan"), float("inf")])
def test_guidance_is_a_number_wherever_it_is_said(guidance: float) -> None:
    with pytest.raises(ValueError, match=r"guidance must be finite, got (nan|inf)"):
        SamplerConfig(guidance=guidance)
    with pytest.raises(ValueError, match=r"guidance must be finite, got (nan|inf)"):
        cascade(2).stream([0], SampleOptions(guidance=guidance))


def test_flows_take_any_number_of_steps() -> None:
    """Also those with which DDIM would not begin at full noise."""
    part = tiny(0, diffusion=DiffusionConfig("flow"))
    assert SampleOptions(steps=350).for_level(part) == SamplerConfig("flow", steps=350)
    assert SampleOptions(sampler="dpm++", steps=7).for_level(part) == SamplerConfig("flow", steps=7)
    with pytest.raises(ValueError, match="steps of DDIM must nearly divide 1000"):
        SampleOptions(steps=350).for_level(tiny(0))


def test_guidance_may_leave_out_what_voxels_say() -> None:
    first, second = cascade(2).levels
    pipeline, calls = XCubePipeline([first, replace(second, dropped=("normal", "label"))]), []
    with watched(second.denoiser, lambda args: calls.append(args[2])):
        made(pipeline, [0], category=1, guidance=2.0)
    for conditions in calls[1::2]:
        assert not conditions.normal.any()
        assert bool((conditions.label == -1).all())
        assert conditions.category.tolist() == [1]


def test_whatever_else_is_known_is_taken_from_voxels() -> None:
    grid = Grid.full(-1, 1)
    voxels = Voxels(grid, {"extra": torch.ones(8, 2), "normal": torch.ones(8, 3)})
    assert Conditions.from_voxels(voxels, UNetConfig(LATENT, extra=2)).names == ("extra",)
    with pytest.raises(KeyError, match="extra"):
        Conditions.from_voxels(Voxels(grid), UNetConfig(LATENT, extra=2))


# Boxes, and voxels that are no cubes


def test_networks_no_longer_train() -> None:
    parts = tiny(0)
    for model in parts.networks.values():
        model.train()
    XCubePipeline([parts])
    assert not any(module.training for model in parts.networks.values() for module in model.modules())


def test_voxels_that_are_no_cubes() -> None:
    sizes = (1 / 8, 1 / 8, 1 / 2)
    config = VAEConfig(sizes, channels=(4, 6), latent_channels=LATENT, hidden=4, dense_neck=(2, 2, 1))
    pipeline = XCubePipeline([Level(random(VAE(config), 0), tiny(0).denoiser)])
    assert (pipeline.size, pipeline.voxel_sizes, pipeline.resolutions) == ((1.0, 1.0, 2.0), (sizes,), (8,))
    begun: list[Grid] = []
    with watched(pipeline.levels[0].denoiser, lambda args: begun.append(args[0].grid)):
        [shape] = made(pipeline, [0])
    assert torch.equal(
        begun[0].ijk.unique(dim=0), torch.cartesian_prod(*(torch.arange(-n, n) for n in (2, 2, 1))).int()
    )
    assert begun[0].origin == (1 / 8, 1 / 8, 1 / 2)
    assert shape.finest.grid.origin == (1 / 16, 1 / 16, 1 / 4)


def test_boxes_whose_edges_are_rounded() -> None:
    grid = Grid.full(-4, 4, voxel_size=0.1, origin=0.05)
    assert 0.6 / (2 * 0.1) < 3  # as numbers are rounded
    assert torch.equal(in_box(grid, (0.6, 0.6, 0.6)), ((grid.ijk >= -3) & (grid.ijk < 3)).all(1))


@pytest.mark.parametrize("sizes", [(1.0, 1.0, 1.0), (1.0, 1.0, 2.0), (3.0, 1.0, 1.0)])
def test_normals_of_a_slope(sizes: tuple[float, float, float]) -> None:
    """A half space that ends at a slanted plane, on voxels of any shape."""
    axis = torch.arange(-12, 12)
    ijk = torch.cartesian_prod(axis, axis, axis)
    outward = torch.nn.functional.normalize(torch.tensor([1.0, 0.5, 1.0]), dim=0)
    height = (ijk * torch.tensor(sizes)) @ outward
    grid = Grid.from_coords(ijk[height < 0], voxel_size=sizes)
    normal = estimated_normals(grid)
    depth = -(grid.ijk * torch.tensor(sizes)) @ outward
    middle = (grid.ijk.abs() < 5).all(1) & (depth < max(sizes))
    assert float((normal[middle] @ outward).mean()) > 0.995
    assert not normal[(grid.ijk < -4).all(1) & (grid.ijk >= -7).all(1)].any()  # deep inside nothing is known


def test_normals_end_where_nothing_is_known() -> None:
    """Of a half space: the blur reaches four voxels."""
    axis = torch.arange(-12, 12)
    ijk = torch.cartesian_prod(axis, axis, axis)
    grid = Grid.from_coords(ijk[ijk[:, 2] < 0])
    inner = (grid.ijk[:, :2].abs() < 4).all(1) & (grid.ijk[:, 2] >= -7)
    length = estimated_normals(grid).norm(dim=1)[inner]
    near = grid.ijk[inner, 2] >= -4
    torch.testing.assert_close(length, near.float())
    assert bool(near.any())
    assert not bool(near.all())


# Samplers


def test_noise_is_added_on_the_way_by_those_who_say_so() -> None:
    grid, draws = Grid.full(-1, 1), [0]

    def source(asked: Grid, channels: int) -> Tensor:
        draws[0] += 1
        return torch.zeros(asked.num_voxels, channels)

    for sampler, count in (
        (SamplerConfig(steps=5), 1),
        (SamplerConfig(steps=5, eta=0.5), 6),
        (SamplerConfig("ddpm", steps=5), 6),
    ):
        draws[0] = 0
        sample_latents(lambda x, t, conditions: x, grid, LATENT, source, diffusion=Diffusion(), sampler=sampler)
        assert draws == [count]


def test_the_sampler_of_a_level_is_the_default() -> None:
    one_call = SamplerConfig("ddim", steps=1, spacing="trailing", guidance=1.5)
    levels = [tiny(0), tiny(1, sampler=one_call)]
    free = SampleOptions()
    assert free.for_level(levels[0]) == SamplerConfig()
    assert free.for_level(levels[1]) == one_call
    assert SampleOptions(guidance=3).for_level(levels[0]).guidance == 1  # where it would have no effect
    # Spacing is an option of DDIM.
    assert SampleOptions(sampler="dpm++", steps=15).for_level(levels[1]).steps == 15
    chosen = SampleOptions(steps=4, eta=0.5)
    assert chosen.for_level(levels[0]) == SamplerConfig(steps=4, eta=0.5)
    assert chosen.for_level(levels[1]) == replace(one_call, steps=4, eta=0.5)
    with pytest.raises(ValueError, match="steps must divide 1000 with spacing 'trailing', got 7"):
        SampleOptions(steps=7).for_level(levels[1])
    calls: list[Conditions] = []
    with watched(levels[1].denoiser, lambda args: calls.append(args[2])):
        made(XCubePipeline(levels), [0], steps=None)
        assert len(calls) == 2  # with and without the category
        made(XCubePipeline(levels), [0], steps=None, guidance=1)
    assert len(calls) == 3


def test_a_denoiser_of_high_noise_keeps_its_sampler() -> None:
    once, high = SamplerConfig("ddim", steps=1, spacing="trailing"), DiffusionConfig(first=900)
    level = tiny(1, sampler=once, diffusion=high)
    for options in (SampleOptions(), SampleOptions(steps=50, sampler="ddpm", eta=0.5, spacing="leading")):
        assert options.for_level(level) == once
    assert SampleOptions(steps=50, guidance=2.0).for_level(level) == replace(once, guidance=2.0)
    for sampler, message in (
        (
            SamplerConfig(),
            r"levels\[1\].sampler does not fit .* at least 900, .*, got 50 steps of ddim",
        ),
        (replace(once, steps=2), r"at least 900, .*, got 2 steps of ddim, the last at 499"),
        (SamplerConfig("flow"), r"sampler must not be 'flow' for a denoiser that predicts 'v'"),
    ):
        with pytest.raises(ValueError, match=message):
            XCubePipeline([tiny(0), tiny(1, sampler=sampler, diffusion=high)])
    flow = DiffusionConfig("flow", first=900)
    XCubePipeline([tiny(0), tiny(1, sampler=SamplerConfig(steps=1), diffusion=flow)])


def test_times_of_a_flow_are_shifted() -> None:
    even, shifted = (Solver(SamplerConfig("flow", steps=8), DiffusionConfig("flow", shift=s)).times for s in (1.0, 3.0))
    torch.testing.assert_close(shifted, 3 * even / (1 + 2 * even / 1000), atol=7, rtol=0)
    assert float((shifted - even).max()) > 200


# Folders


def test_what_guidance_leaves_out_is_kept(tmp_path: Path) -> None:
    XCubePipeline([tiny(0, dropped=("category", "normal")), tiny(1)]).save_pretrained(tmp_path)
    found = XCubePipeline.from_pretrained(tmp_path).levels
    assert [part.dropped for part in found] == [("category", "normal"), ("category", "text", "words")]


def test_runs_know_the_size_of_their_box(tmp_path: Path) -> None:
    metadata: dict[str, Any] = {"latent_scale": 1.0, "diffusion": DiffusionConfig().to_dict()}
    save_pretrained(tiny(1).vae, tmp_path / "vae-0", size=[1.0, 1.0, 0.5])
    save_pretrained(tiny(1).denoiser, tmp_path / "denoiser-0", **metadata)
    assert XCubePipeline.from_pretrained(tmp_path).size == (1.0, 1.0, 0.5)
