"""Variants of shapes and shapes between them, and the inversion of the sampler that these need."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsevox import Grid, SparseTensor, Voxels
from sparsevox.io import load_voxels, save_voxels
from tests.xcube.cascades import same_bits, tiny, unet
from xcube.cli import main
from xcube.data.hierarchy import Box
from xcube.diffusion.inversion import invert_flow
from xcube.diffusion.objective import Diffusion, DiffusionConfig
from xcube.diffusion.samplers import SamplerConfig, sample_latents
from xcube.networks.conditions import Conditions
from xcube.networks.losses import voxel_iou
from xcube.pipeline.options import Sample, SampleOptions, Start
from xcube.pipeline.pipeline import XCubePipeline
from xcube.pipeline.variations import coarse_latents, on_great_circle
from xcube.procedural.shapes import shape_voxels

pytest.importorskip("scipy", reason="finds the inside")

FLOW = Diffusion(DiffusionConfig(prediction="flow"))
QUIET = SampleOptions(quiet=True)
BOX = Box((16, 64))


def overlap(first: Sample, second: Sample, level: int = 0) -> float:
    return float(voxel_iou(first.levels[level].grid, second.levels[level].grid))


def grids(count: int) -> Grid:
    return Grid.full((-2, -2, -2), (2, 2, 2), batch_size=count, voxel_size=1 / 4, origin=1 / 8)


def bent(x: SparseTensor, t: torch.Tensor, conditions: Conditions) -> SparseTensor:
    """A velocity that depends on the place, the time and, if any, the category."""
    rows = t[x.grid.batch.long()][:, None] / 1000
    shift = 0.0 if conditions.category is None else conditions.category[x.grid.batch.long()][:, None]
    return x.map(lambda z: torch.sin(2 * z) + z.roll(1, 1) * (1 - rows) + shift)


@pytest.mark.parametrize("steps", [1, 4, 25])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_sampler_makes_the_latents_again(steps: int, shift: float) -> None:
    flow = Diffusion(DiffusionConfig(prediction="flow", shift=shift))
    grid, sampler = grids(2), SamplerConfig(sampler="flow", steps=steps)
    latents = SparseTensor(grid, torch.randn(grid.num_voxels, 3, generator=torch.Generator().manual_seed(steps)))
    slow: Any = lambda x, t, c: bent(x, t, c).map(lambda z: 0.3 * z)  # noqa: E731  (fixed points need small steps)
    noise = invert_flow(slow, latents, diffusion=flow, sampler=sampler)
    again = sample_latents(slow, grid, 3, lambda grid, channels: noise.feats, diffusion=flow, sampler=sampler)
    assert (again.feats - latents.feats).abs().max() < (1e-2 if steps == 1 else 1e-4)
    assert (noise.feats - latents.feats).abs().max() > 0.1


def test_guidance_is_inverted_too() -> None:
    grid, sampler = grids(2), SamplerConfig(sampler="flow", steps=20, guidance=2.0)
    latents = SparseTensor(grid, torch.zeros(grid.num_voxels, 2))
    given, none = (Conditions(category=torch.tensor(each)) for each in ([1, 3], [-1, -1]))
    made: dict[str, Any] = {"diffusion": FLOW, "sampler": sampler, "conditions": given, "unconditional": none}
    noise = invert_flow(bent, latents, **made)
    again = sample_latents(bent, grid, 2, lambda grid, channels: noise.feats, **made)
    assert (again.feats - latents.feats).abs().max() < 1e-4
    with pytest.raises(ValueError, match=r"unconditional must be given for guidance 2\.0, got None"):
        invert_flow(bent, latents, diffusion=FLOW, sampler=sampler, conditions=given)
    with pytest.raises(ValueError, match="diffusion must be a flow to be inverted, got a prediction of v"):
        invert_flow(bent, latents, diffusion=Diffusion(), sampler=SamplerConfig())


@given(st.integers(0, 99), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_great_circles(seed: int, weight: float) -> None:
    """Angles are proportional to the weight; the length of unit vectors stays."""
    first, second = torch.nn.functional.normalize(
        torch.randn(2, 12, generator=torch.Generator().manual_seed(seed)).double(), dim=1
    )
    found = on_great_circle(first.view(3, 4), second.view(3, 4), weight).view(12)
    whole = math.acos(float(first @ second))
    assert abs(float(found.norm()) - 1) < 1e-9
    assert abs(math.acos(min(1.0, float(first @ found))) - weight * whole) < 1e-6
    assert abs(math.acos(min(1.0, float(second @ found))) - (1 - weight) * whole) < 1e-6


def test_great_circles_of_parallel_vectors() -> None:
    ones = torch.ones(2, 2)
    assert torch.equal(on_great_circle(ones, 3 * ones, 0.25), 1.5 * ones)


@pytest.fixture(scope="module")
def pipeline() -> XCubePipeline:
    return XCubePipeline.from_pretrained()


@pytest.fixture(scope="module")
def shapes(pipeline: XCubePipeline) -> list[Sample]:
    return pipeline.sample(2, QUIET, category=["chair", "airplane"])


def test_variants_depend_on_the_strength(pipeline: XCubePipeline, shapes: list[Sample]) -> None:
    means = []
    for strength in (0.0, 0.5, 0.9):
        made = pipeline.vary(shapes[0], strength, QUIET, numbers=(0, 1, 2))
        assert all(sample.finest.grid.voxel_size[0] == 1 / 64 for sample in made)
        means.append(sum(overlap(shapes[0], sample) for sample in made) / 3)
        if strength == 0:
            assert all(sample.levels[0].grid.same_voxels(made[0].levels[0].grid) for sample in made)
        else:
            assert not made[0].levels[0].grid.same_voxels(made[1].levels[0].grid)
    assert means[0] > 0.97  # what the VAE keeps
    assert means[0] >= means[1] > means[2] + 0.1


def test_all_steps_make_new_shapes(pipeline: XCubePipeline, shapes: list[Sample]) -> None:
    """With strength 1 nothing of the shape is left: a flow begins with the noise alone."""
    first, second = (pipeline.vary(shape, 1.0, QUIET, numbers=(3, 4)) for shape in shapes)
    assert same_bits(first, second)


@pytest.mark.parametrize("blend", ["noise", "latents"])
def test_the_ends_are_the_given_shapes(pipeline: XCubePipeline, shapes: list[Sample], blend: Any) -> None:
    made = pipeline.interpolate(shapes[0], shapes[1], 5, QUIET, blend=blend)
    assert len(made) == 5
    assert min(overlap(made[0], shapes[0]), overlap(made[-1], shapes[1])) > 0.95
    kept = [(overlap(sample, shapes[0]), overlap(sample, shapes[1])) for sample in made]
    assert all(before[0] >= after[0] - 0.02 for before, after in pairwise(kept))
    assert all(before[1] <= after[1] + 0.02 for before, after in pairwise(kept))
    assert all(sample.finest.num_voxels > 300 for sample in made)
    assert not made[2].levels[0].grid.same_voxels(made[0].levels[0].grid)


def test_the_ends_with_categories_guidance_and_repeats(pipeline: XCubePipeline, shapes: list[Sample]) -> None:
    """The sampler runs backward with the conditions that it runs forward with, of each end its own."""
    options = QUIET.with_changes(category=["chair", "sofa", "airplane"], guidance=1.5, repeats=3, batch_size=2)
    made = pipeline.interpolate(shapes[0], shapes[1], 3, options)
    assert min(overlap(made[0], shapes[0]), overlap(made[-1], shapes[1])) > 0.95


def test_voxels_are_like_their_sample(pipeline: XCubePipeline) -> None:
    """Of voxels, the coarse levels are computed as in training; of a sample the generated ones are taken."""
    shape = shape_voxels("chair-900001", BOX)
    [variant] = pipeline.vary(shape, 0.0, QUIET, numbers=(0,))
    assert float(voxel_iou(variant.finest.grid, shape.grid)) > 0.6
    made = pipeline.sample(1, QUIET, category="chair")[0]
    direct, derived = coarse_latents(pipeline, made), coarse_latents(pipeline, made.finest)
    assert direct.shape == derived.shape == (64, 8)
    assert torch.corrcoef(torch.stack([direct.view(-1), derived.view(-1)]))[0, 1] > 0.95
    upsampled = replace(made, levels=made.levels[1:], first=1)
    assert torch.equal(coarse_latents(pipeline, upsampled), derived)


def test_hooks_of_other_levels_go_along(pipeline: XCubePipeline, shapes: list[Sample]) -> None:
    seen: list[int] = []

    def watch(level: int) -> Callable[..., None]:
        return lambda grid, numbers: seen.append(level)

    hooked = QUIET.with_changes(hooks={1: watch(1)})
    assert len(pipeline.interpolate(shapes[0], shapes[1], 2, hooked)) == 2
    pipeline.vary(shapes[0], 0.1, hooked, numbers=(0,))
    pipeline.edit(shapes[0], hooked, delete=((-1, -1, 0.2), (1, 1, 1)))
    assert seen == [1, 1, 1]
    # Options that the levels of an edit do not take are not ignored.
    for changes, message in (
        ({"hooks": {0: watch(0)}}, "hooks, conditions and starts must be for levels 1 to 1"),
        ({"category": "chair"}, "category must be None for a model that takes none"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline.edit(shapes[0], QUIET.with_changes(**changes), delete=((-1, -1, 0.2), (1, 1, 1)))


def test_starts_of_any_level() -> None:
    pipeline = XCubePipeline([tiny(0), tiny(1)])
    options = SampleOptions(steps=4, quiet=True)
    base = pipeline.sample(2, options)
    known: list[torch.Tensor] = []

    def start(grid: Grid, numbers: Any) -> Start:
        known.append(torch.ones(grid.num_voxels, 2))
        return Start(SparseTensor(grid, known[-1]), 0.0)

    made = pipeline.sample(2, options.with_changes(starts={1: start}))
    assert [each.levels[0].grid.same_voxels(other.levels[0].grid) for each, other in zip(made, base, strict=True)] == [
        True
    ] * 2
    level = pipeline.levels[1]
    for sample in made:
        latents = SparseTensor(sample.levels[0].grid, torch.ones(sample.levels[0].num_voxels, 2) / level.latent_scale)
        assert level.decode([latents])[0].grid.same_voxels(sample.finest.grid)
    with pytest.raises(ValueError, match=r"hooks, conditions and starts must be for levels 0 to 1, got \[2\]"):
        pipeline.sample(1, options.with_changes(starts={2: start}))


def test_what_is_refused(pipeline: XCubePipeline, shapes: list[Sample]) -> None:
    with pytest.raises(ValueError, match=r"strength must lie in \[0, 1\], got 1.5"):
        pipeline.vary(shapes[0], 1.5)
    with pytest.raises(TypeError, match="shape must be Voxels or a Sample, got Grid"):
        pipeline.vary(shapes[0].finest.grid)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="count must be at least 2, got 1"):
        pipeline.interpolate(shapes[0], shapes[1], 1)
    with pytest.raises(ValueError, match="blend must be one of noise, latents, got 'time'"):
        pipeline.interpolate(shapes[0], shapes[1], blend="time")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"category must be one of .*, got 'spaceship'"):
        pipeline.interpolate(shapes[0], shapes[1], 3, QUIET.with_changes(category="spaceship"))
    with pytest.raises(ValueError, match="shape must have voxels, got none"):
        pipeline.vary(
            Sample((shapes[0].levels[0], shapes[0].finest.prune(torch.zeros(shapes[0].finest.num_voxels) > 0)))
        )
    wrong = Voxels(Grid.from_coords(torch.zeros(1, 3).int(), voxel_size=0.3), {"normal": torch.ones(1, 3)})
    with pytest.raises(ValueError, match="voxel"):
        pipeline.vary(wrong)
    plain = XCubePipeline([tiny(0), tiny(1)])  # predicts the velocity of a schedule
    made = plain.sample(1, SampleOptions(steps=2, quiet=True))[0]
    with pytest.raises(ValueError, match="blend must be 'latents' for a denoiser that predicts v, no flow"):
        plain.interpolate(made, made)
    assert len(plain.interpolate(made, made, 3, SampleOptions(steps=2, quiet=True), blend="latents")) == 3
    sparse = XCubePipeline([tiny(1, denoiser=unet(1))])
    with pytest.raises(ValueError, match="the latents of the first level fill no box"):
        sparse.vary(made.finest)


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("jsonargparse", "matplotlib", "trimesh"):
        pytest.importorskip(package, reason="the command line")
    for name in ("chair", "table"):
        save_voxels(shape_voxels(f"{name}-900001", BOX), tmp_path / f"{name}.npz")
    chair, out = str(tmp_path / "chair.npz"), tmp_path / "variants"
    words = ["vary", chair, "--count", "2", "--strength", "0.4", "--category", "chair", "--quiet"]
    assert main([*words, "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("2 shapes generated\n")
    [expected] = XCubePipeline.from_pretrained().vary(
        load_voxels(tmp_path / "chair.npz"), 0.4, QUIET.with_changes(category="chair"), numbers=(1,)
    )
    found = load_voxels(out / "shape-000001.npz")
    assert float(voxel_iou(found.grid, expected.finest.grid)) > 0.97  # other batches round differently
    assert json.loads((out / "settings.json").read_text())["strength"] == 0.4
    assert "before" in (out / "index.html").read_text()
    assert main([*words, "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("0 shapes generated, 2 already existed\n")

    # A mesh with y up, and voxels.
    pytest.importorskip("trimesh").creation.box((0.3, 0.2, 0.5)).export(tmp_path / "box.obj")
    words = ["interpolate", chair, "--to", str(tmp_path / "box.obj"), "--up", "y", "--count", "2", "--quiet"]
    assert main([*words, "--out", str(tmp_path / "mixed")]) == 0
    assert capsys.readouterr().out.startswith("2 shapes generated\n")
    assert main(["interpolate", chair, "--to", chair, "--up", "y", "--out", str(tmp_path / "no")]) == 2
    assert "up must be 'z' for voxels, got 'y'" in capsys.readouterr().err

    between = tmp_path / "between"
    line = ["interpolate", chair, "--to", str(tmp_path / "table.npz"), "--count", "3", "--quiet", "--out", str(between)]
    assert main(line) == 0
    assert capsys.readouterr().out.startswith("3 shapes generated\n")
    (between / "shape-000001.npz").unlink()  # as after an interruption
    assert main(line) == 0
    assert capsys.readouterr().out.startswith("1 shapes generated, 2 already existed\n")
    for wrong, message in (
        (
            ["vary", chair, "--quiet", "--strength", "2", "--out", str(tmp_path / "no")],
            "strength must lie in [0, 1], got 2.0",
        ),
        (["interpolate", chair, "--to", "nothing.npz", "--out", str(tmp_path / "no")], "there is no such file"),
        ([*line[:4], "--count", "1", "--out", str(tmp_path / "no")], "count must be at least 2, got 1"),
    ):
        assert main(wrong) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "no").exists()
