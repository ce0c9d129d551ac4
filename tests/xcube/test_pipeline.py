"""The cascade with small random networks: what it generates, in which batches, and its conditions."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsevox import Grid, SparseTensor, Voxels
from tests.xcube.cascades import random, refiner, tiny, unet, vae
from xcube.diffusion.objective import Diffusion, DiffusionConfig, Noise
from xcube.diffusion.samplers import Hook, SamplerConfig, keep_known_latents, sample_latents
from xcube.geometry.components import without_small_components
from xcube.networks.conditions import Conditions, Text
from xcube.networks.losses import voxel_iou
from xcube.networks.text_encoder import TextEncoder
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.pipeline.level import Level
from xcube.pipeline.options import Sample, SampleOptions
from xcube.pipeline.pipeline import XCubePipeline

STEPS = 2
TEXT = 6  # channels of a token


@pytest.fixture(scope="module")
def three() -> XCubePipeline:
    return XCubePipeline([tiny(0, refiner=refiner(0)), tiny(1), tiny(2, refiner=refiner(2))])


@pytest.fixture(scope="module")
def two() -> XCubePipeline:
    return XCubePipeline([tiny(0), tiny(1)])


def made(pipeline: XCubePipeline, n: int, **options: Any) -> list[Sample]:
    return pipeline.sample(n, SampleOptions(**({"steps": STEPS, "quiet": True} | options)))


def same_bits(first: Voxels, second: Voxels) -> bool:
    return (
        first.grid.same_voxels(second.grid)
        and first.attributes.keys() == second.attributes.keys()
        and all(torch.equal(value, second.attributes[name]) for name, value in first.attributes.items())
    )


def all_same(first: Sequence[Sample], second: Sequence[Sample]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(same_bits(a, b) for x, y in pairs for a, b in zip(x.levels, y.levels, strict=True))


def least_iou(first: Sequence[Sample], second: Sequence[Sample]) -> float:
    pairs = [(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x.levels, y.levels, strict=True)]
    return min(float(voxel_iou(a.grid, b.grid).min()) for a, b in pairs)


# What comes out


def test_every_level_of_three(three: XCubePipeline) -> None:
    assert (three.size, three.resolutions) == ((1.0, 1.0, 1.0), (8, 16, 32))
    shapes = made(three, 3)
    for shape in shapes:
        assert (len(shape.levels), shape.first, shape.is_empty) == (3, 0, False)
        for level, voxels in enumerate(shape.levels):
            size = 1 / (8 << level)
            assert voxels.grid.voxel_size == (size,) * 3
            assert voxels.grid.origin == (size / 2,) * 3
            assert set(voxels.attributes) == {"normal"}
            torch.testing.assert_close(voxels.attributes["normal"].norm(dim=1), torch.ones(voxels.num_voxels))
            half = 4 << level
            assert -half <= int(voxels.grid.ijk.min()) <= int(voxels.grid.ijk.max()) < half
        # A level without a refiner makes children of voxels of the level before, and of nothing else.
        assert not (shape.levels[1].grid.coarsen(2) - shape.levels[0].grid).num_voxels
    assert least_iou(shapes[:1], shapes[1:2]) < 0.9


def test_one_shape_is_what_its_parts_make(two: XCubePipeline) -> None:
    """Noise, denoiser, scale, decoder, normals, by hand."""
    first, second = two.levels
    box = Grid.full(-2, 2, voxel_size=1 / 4, origin=1 / 8)
    process: dict[str, Any] = {"diffusion": Diffusion(), "sampler": SamplerConfig(steps=STEPS)}
    latents = sample_latents(first.denoiser, box, 2, Noise(5, [0], 0), **process)
    with torch.no_grad():
        coarse = first.vae.decode(latents.replace(latents.feats / 0.5)).voxels
        normal = torch.nn.functional.normalize(coarse.attributes["normal"], dim=1)
        latents = sample_latents(
            second.denoiser, coarse.grid, 2, Noise(5, [0], 1), conditions=Conditions(normal=normal), **process
        )
        fine = second.vae.decode(latents.replace(latents.feats / 1.5)).voxels
    [shape] = made(two, 1, seed=5)
    assert shape.levels[0].grid.same_voxels(coarse.grid)
    assert float(voxel_iou(shape.finest.grid, fine.grid)) > 0.99
    torch.testing.assert_close(shape.levels[0].attributes["normal"], normal, atol=1e-4, rtol=0)


def test_bits_follow_from_the_call_and_shapes_from_seed_and_number(three: XCubePipeline) -> None:
    once = made(three, 4)
    assert all_same(once, made(three, 4))
    assert not all_same(once, made(three, 4, seed=1))
    for other in ({"batch_size": 1}, {"batch_size": 3}, {"budget": 70}):
        assert least_iou(once, made(three, 4, **other)) >= 0.99
    [third] = three.stream([2], SampleOptions(steps=STEPS, quiet=True))
    assert least_iou([once[2]], [third]) >= 0.99


def test_shapes_come_batch_by_batch(two: XCubePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(Level, "decode", counted(Level.decode, calls))
    stream = two.stream(range(5), SampleOptions(steps=STEPS, quiet=True, batch_size=2))
    assert calls == []
    next(stream)
    assert calls == [2, 2]
    assert len(list(stream)) == 4
    assert calls == [2, 2, 2, 2, 1, 1]


def counted(function: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def call(self: Level, latents: Any) -> Any:
        calls.append(len(latents))
        return function(self, latents)

    return call


@pytest.mark.parametrize(("prediction", "kind"), [("v", "dpm++"), ("epsilon", "ddpm"), ("flow", "ddim")])
def test_samplers(prediction: Any, kind: Any) -> None:
    config = DiffusionConfig(prediction)
    pipeline = XCubePipeline([tiny(0, diffusion=config), tiny(1, diffusion=config)])
    shapes = made(pipeline, 1, sampler=kind, steps=10)
    assert not shapes[0].is_empty


def test_progress_is_told_unless_quiet(two: XCubePipeline, capsys: pytest.CaptureFixture[str]) -> None:
    made(two, 1)
    assert capsys.readouterr().err == ""
    made(two, 1, quiet=False)
    assert "shapes 0 to 0, level 1" in capsys.readouterr().err


# Memory


def test_batches_keep_to_the_budget(two: XCubePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[int]] = {"denoised": [], "decoded": []}
    for part, name in ((two.levels[1].denoiser, "denoised"), (two.levels[1].vae.decoder, "decoded")):
        part.register_forward_pre_hook(lambda m, args, name=name: seen[name].append(args[0].grid.num_voxels))
    shapes = made(two, 4)
    sizes = [shape.levels[0].num_voxels for shape in shapes]
    assert seen == {"denoised": [sum(sizes)] * STEPS, "decoded": [sum(sizes)]}
    for values in seen.values():
        values.clear()
    made(two, 4, budget=max(sizes) * 2)
    assert max(seen["denoised"]) <= 2 * max(sizes)
    assert seen["decoded"] == sizes  # of which four times as many are expected: each is alone
    for part in (two.levels[1].denoiser, two.levels[1].vae.decoder):
        part._forward_pre_hooks.clear()


def test_when_memory_runs_out_batches_are_halved() -> None:
    class Small(UNet):
        most = 1

        def forward(self, x: SparseTensor, t: Tensor | float, conditions: Conditions | None = None) -> SparseTensor:
            if x.batch_size > self.most:
                raise torch.OutOfMemoryError("no more")
            return super().forward(x, t, conditions)

    net = random(Small(unet(1).config), 11)
    plain, small = (
        XCubePipeline([tiny(0), tiny(1)]),
        XCubePipeline([tiny(0), tiny(1, denoiser=net)]),
    )
    assert least_iou(made(plain, 3), made(small, 3)) >= 0.99
    net.most = 0
    with pytest.raises(torch.OutOfMemoryError):
        made(small, 2)


# Nothing


def closed(level: int) -> VAE:
    """A VAE that decodes to nothing."""
    model = vae(level)
    torch.nn.init.constant_(model.decoder.root.out.bias, -1e4)
    return model


@pytest.mark.parametrize("empty", [0, 1, 2])
def test_an_empty_level_is_an_empty_shape(empty: int) -> None:
    levels = [tiny(level, **({"vae": closed(level)} if level == empty else {})) for level in range(3)]
    with pytest.warns(UserWarning, match=rf"no voxels are left at level {empty} of the shapes \[0, 1\]"):
        shapes = made(XCubePipeline(levels), 2)
    for shape in shapes:
        assert shape.is_empty
        assert [voxels.num_voxels > 0 for voxels in shape.levels] == [level < empty for level in range(3)]
        for level, voxels in enumerate(shape.levels):
            assert voxels.grid.voxel_size == (1 / (8 << level),) * 3
            assert voxels.attributes["normal"].shape == (voxels.num_voxels, 3)


def test_an_empty_shape_changes_nothing_for_others(three: XCubePipeline) -> None:
    some, other = (made(three, 2)[n].levels[0] for n in range(2))
    nothing = some.prune(torch.zeros(some.num_voxels, dtype=torch.bool))
    given = Voxels.stack([some, nothing, other])
    found = three.upsample(given, SampleOptions(steps=STEPS, quiet=True))
    assert [shape.is_empty for shape in found] == [False, True, False]
    alone = three.upsample(other, SampleOptions(steps=STEPS, quiet=True), numbers=[2])
    assert least_iou([found[2]], alone) >= 0.99
    assert {name: v.shape[1:] for name, v in found[1].finest.attributes.items()} == {"normal": (3,)}


# Refinement


def test_what_is_refined_is_the_next_latent_grid() -> None:
    """A refiner that keeps all candidates: the decode, grown by a voxel, inside the box."""
    grows = refiner(0)
    with torch.no_grad():
        grows.keep.out.bias.fill_(1e4)
    seen: list[tuple[Grid, Tensor]] = []

    def look(conditions: Conditions, grid: Grid, numbers: Sequence[int]) -> Conditions:
        assert conditions.normal is not None
        seen.append((grid, conditions.normal))
        return conditions

    pipeline = XCubePipeline([tiny(0, refiner=grows), tiny(1)])
    [shape] = made(pipeline, 1, conditions={1: look})
    [plain] = made(XCubePipeline([tiny(0), tiny(1)]), 1)
    expected = plain.levels[0].grid.dilate(1).crop([-4] * 3, [4] * 3)
    assert shape.levels[0].grid.same_voxels(expected)
    assert expected.num_voxels < plain.levels[0].grid.dilate(1).num_voxels
    [(grid, normal)] = seen
    assert grid.same_voxels(expected)
    assert torch.equal(normal, shape.levels[0].attributes["normal"])
    torch.testing.assert_close(normal.norm(dim=1), torch.ones(len(normal)))


def test_small_components_are_removed_at_every_level() -> None:
    strict, fraction = refiner(0), 0.05
    torch.nn.init.constant_(strict.keep.out.bias, -0.4)  # it takes holes out of the decode
    pipeline = XCubePipeline([tiny(0, refiner=strict), tiny(1)])
    plain, clean = made(pipeline, 3), made(pipeline, 3, min_component=fraction)
    coarse = [without_small_components(shape.levels[0], fraction) for shape in plain]
    finer = pipeline.upsample(Voxels.stack(coarse), SampleOptions(steps=STEPS, quiet=True))
    expected = [Sample((a, without_small_components(b.finest, fraction))) for a, b in zip(coarse, finer, strict=True)]
    assert least_iou(expected, clean) == 1
    for level, rough in enumerate(([shape.levels[0] for shape in plain], [shape.finest for shape in finer])):
        assert sum(each.num_voxels for each in rough) > sum(shape.levels[level].num_voxels for shape in clean)
    assert all_same(plain, made(pipeline, 3, min_component=0.0))


def test_attributes_that_a_refiner_does_not_predict_stay() -> None:
    config: dict[str, Any] = {"num_labels": 3, "label_dim": 2, "color": True}
    with_all = tiny(0, vae=vae(0, **config), refiner=refiner(0, normal=True))
    [shape] = made(XCubePipeline([with_all, tiny(1, denoiser=unet(1, num_labels=3, label_dim=2))]), 1)
    first = shape.levels[0]
    assert set(first.attributes) == {"normal", "color", "label"}
    assert first.attributes["label"].dtype == torch.int64
    [rough] = made(XCubePipeline([replace(with_all, refiner=None), tiny(1)]), 1)
    rough_first = rough.levels[0]
    row = rough_first.grid.index(first.grid.coords)
    both = row >= 0
    assert bool(both.any())
    assert torch.equal(first.attributes["label"][both], rough_first.attributes["label"][row[both]])


# Known latents and conditions


def test_known_latents_are_kept_at_a_level(two: XCubePipeline) -> None:
    [before] = made(two, 1)
    grid = before.levels[0].grid
    known = SparseTensor(grid, torch.randn(grid.num_voxels, 2, generator=torch.Generator().manual_seed(3)))
    numbers_of_calls: list[list[int]] = []

    def maker(latent: Grid, numbers: Sequence[int]) -> Hook:
        numbers_of_calls.append(list(numbers))
        assert latent.same_voxels(grid)
        every = torch.ones(latent.num_voxels, dtype=torch.bool)
        return keep_known_latents(Diffusion(), known.replace(known.feats * 1.5), every, torch.zeros_like(known.feats))

    [after] = made(two, 1, hooks={1: maker})
    with torch.no_grad():
        expected = two.levels[1].vae.decode(known).voxels.grid
    assert numbers_of_calls == [[0]]
    assert same_bits(after.levels[0], before.levels[0])
    assert float(voxel_iou(after.finest.grid, expected)) >= 0.99
    assert float(voxel_iou(before.finest.grid, expected)) < 0.99


def test_conditions_can_be_added() -> None:
    pipeline = XCubePipeline([tiny(0), tiny(1, denoiser=unet(1, extra=2))])
    with pytest.raises(ValueError, match="conditions must have an entry for level 1, whose denoiser takes extra"):
        made(pipeline, 1)

    def more(value: float) -> Callable[[Conditions, Grid, Sequence[int]], Conditions]:
        return lambda conditions, grid, numbers: replace(conditions, extra=torch.full((grid.num_voxels, 2), value))

    first, second = (made(pipeline, 1, conditions={1: more(value)}) for value in (0.0, 5.0))
    assert same_bits(first[0].levels[0], second[0].levels[0])
    assert not same_bits(first[0].finest, second[0].finest)


@pytest.fixture(scope="module")
def classes() -> XCubePipeline:
    first = tiny(0, denoiser=unet(0, categories=2), categories=("chair", "lamp"))
    return XCubePipeline([first, tiny(1, denoiser=unet(1, categories=2), categories=("chair", "lamp"))])


def test_categories_and_guidance(classes: XCubePipeline) -> None:
    chair, lamp = made(classes, 2, category="chair"), made(classes, 2, category="lamp")
    assert not all_same(chair, lamp)
    assert all_same(made(classes, 2, category=0), chair)
    assert least_iou(made(classes, 2, category=["chair", "lamp"]), [chair[0], lamp[1]]) >= 0.99
    assert not all_same(made(classes, 2), chair)
    assert all_same(made(classes, 2, category="chair", guidance=1.0), chair)
    assert not all_same(made(classes, 2, category="chair", guidance=3.0), chair)
    assert least_iou(made(classes, 2, category="chair", guidance=0.0), made(classes, 2)) >= 0.99


class Letters(TextEncoder):
    """A token for each letter, and one more: the empty text has one."""

    def __init__(self) -> None:
        self.channels, self.calls = TEXT, 0

    def __call__(self, prompts: Sequence[str]) -> Text:
        self.calls += 1
        assert len(prompts) == 1
        codes = torch.tensor([0, *map(ord, prompts[0])], dtype=torch.float32)
        tokens = torch.sin(codes[:, None] * torch.arange(1, TEXT + 1))[None]
        return Text(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))

    def to(self, device: torch.device | str) -> "Letters":
        return self


def test_texts() -> None:
    encoder = Letters()
    levels = [tiny(0, denoiser=unet(0, text_channels=TEXT)), tiny(1, denoiser=unet(1, text_channels=TEXT))]
    pipeline = XCubePipeline(levels, text=encoder)
    chair = made(pipeline, 2, text="a chair", guidance=3.0)
    assert not all_same(made(pipeline, 2, guidance=3.0), chair)
    mixed = made(pipeline, 2, text=["a chair", "lamp"], guidance=3.0)
    assert least_iou(mixed[:1], chair[:1]) >= 0.99
    # Without a text, guidance has nothing to change.
    assert least_iou(made(pipeline, 2, text=[None, None]), made(pipeline, 2, guidance=3.0)) >= 0.99
    with pytest.raises(ValueError, match="text must be a TextEncoder or a TextSource"):
        made(XCubePipeline(levels), 1)
    encoder.channels = 3
    with pytest.raises(ValueError, match=r"must be an encoder with \{6\} channels, got one with 3"):
        made(pipeline, 1)
