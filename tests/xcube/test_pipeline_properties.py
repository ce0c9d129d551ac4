"""What holds of every cascade, with small random networks: batches, noise, known latents, empty shapes."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsevox import Grid, SparseTensor, Voxels
from tests.xcube.cascades import LATENT, agree, labeled, same_bits, watched
from xcube.diffusion.objective import Diffusion, DiffusionConfig, Noise
from xcube.diffusion.samplers import Hook, keep_known_latents
from xcube.networks.decoder import Decoded
from xcube.networks.losses import voxel_iou
from xcube.networks.vae import VAE
from xcube.pipeline.level import Level
from xcube.pipeline.options import HookMaker, Sample, SampleOptions
from xcube.pipeline.pipeline import XCubePipeline

STEPS = 2


class Mortal(VAE):
    """Decodes latents that are very large to nothing."""

    def decode(self, latents: SparseTensor, truth: Grid | None = None, *, generated: bool = False) -> Decoded:
        found = super().decode(latents, truth, generated=generated)
        dead = torch.stack([item.feats.abs().max() > 1e3 for item in latents.unbind()])
        return replace(found, voxels=found.voxels.prune(~dead[found.voxels.grid.batch.long()]))


def tiny(level: int, **changes: Any) -> Level:
    return labeled(level, Mortal, **changes)


@lru_cache
def cascade(levels: int) -> XCubePipeline:
    return XCubePipeline([tiny(level) for level in range(levels)])


def made(pipeline: XCubePipeline, numbers: Sequence[int], **options: Any) -> list[Sample]:
    return list(pipeline.stream(numbers, SampleOptions(**({"steps": STEPS, "quiet": True} | options))))


@lru_cache
def alone(levels: int, number: int, eta: float = 0.0) -> Sample:
    [shape] = made(cascade(levels), [number], eta=eta)
    return shape


numbers_of_shapes = st.lists(st.sampled_from([0, 1, 2, 5, 1_000_000]), min_size=1, max_size=4, unique=True)


# Batches


@settings(max_examples=3)
@given(
    levels=st.integers(1, 3),
    numbers=numbers_of_shapes,
    batch_size=st.integers(1, 4),
    budget=st.sampled_from([1, 100, 700, 500_000]),
    eta=st.sampled_from([0.0, 1.0]),
)
@example(levels=2, numbers=[5, 0, 1_000_000, 1], batch_size=3, budget=500_000, eta=1.0)
@example(levels=3, numbers=[1, 0, 2], batch_size=3, budget=400, eta=0.0)
def test_a_shape_is_the_same_in_every_batch(
    levels: int, numbers: list[int], batch_size: int, budget: int, eta: float
) -> None:
    options: dict[str, Any] = {"batch_size": batch_size, "budget": budget, "eta": eta}
    shapes = made(cascade(levels), numbers, **options)
    if levels < 3:
        assert same_bits(made(cascade(levels), numbers, **options), shapes)
    for number, shape in zip(numbers, shapes, strict=True):
        assert len(shape.levels) == levels
        agree(shape, alone(levels, number, eta))


def test_shapes_differ_by_seed_and_number() -> None:
    shapes = [alone(2, 0), alone(2, 1), *made(cascade(2), [0], seed=1)]
    for n, shape in enumerate(shapes):
        assert all(float(voxel_iou(shape.finest.grid, other.finest.grid)) < 0.9 for other in shapes[:n])


@settings(max_examples=2)
@given(numbers=numbers_of_shapes, seed=st.sampled_from([0, 7, 2**40]), batch_size=st.integers(1, 4))
@example(numbers=[5, 2, 0], seed=7, batch_size=2)
def test_noise_follows_from_seed_number_and_level(numbers: list[int], seed: int, batch_size: int) -> None:
    begun: dict[tuple[int, int], tuple[Grid, Tensor]] = {}

    def maker(level: int) -> HookMaker:
        def make(grid: Grid, batch: Sequence[int]) -> Hook:
            def hook(x: SparseTensor, t: float | None) -> SparseTensor:
                for number, item in zip(batch, x.unbind(), strict=True):
                    begun.setdefault((number, level), (item.grid, item.feats))
                return x

            return hook

        return make

    made(cascade(2), numbers, seed=seed, batch_size=batch_size, hooks={level: maker(level) for level in range(2)})
    assert begun.keys() == {(number, level) for number in numbers for level in range(2)}
    for (number, level), (grid, noise) in begun.items():
        assert torch.equal(noise, Noise(seed, [number], level)(grid, LATENT))


@pytest.mark.parametrize("gone", [False, True])
def test_progress_ends_at_its_total(monkeypatch: pytest.MonkeyPatch, gone: bool) -> None:
    bars: list[list[int]] = []

    class Bar:
        def __init__(self, total: int, **_: Any) -> None:
            bars.append([total, 0])

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, steps: int) -> None:
            bars[-1][1] += steps

    first = [alone(2, n).levels[0] for n in range(3)]
    monkeypatch.setattr("xcube.pipeline.cascade.tqdm", Bar)
    if gone:
        first[1] = first[1].prune(torch.zeros(first[1].num_voxels, dtype=torch.bool))
    options = SampleOptions(steps=STEPS, budget=first[2].num_voxels)
    list(cascade(2).stream([0, 1, 2], options, shape=Voxels.stack(first)))
    assert bars == [[(3 - gone) * STEPS] * 2]


def test_when_memory_runs_out_decodes_are_halved() -> None:
    class Small(Mortal):
        def decode(self, latents: SparseTensor, truth: Grid | None = None, *, generated: bool = False) -> Decoded:
            if latents.batch_size > 1:
                raise torch.OutOfMemoryError("no more")
            return super().decode(latents, truth, generated=generated)

    small = Small(cascade(1).levels[0].vae.config)
    small.load_state_dict(cascade(1).levels[0].vae.state_dict())
    for number, shape in enumerate(made(XCubePipeline([tiny(0, vae=small)]), [0, 1, 2])):
        agree(shape, alone(1, number))


# Known latents


def known(number: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents of a shape, and which of them are known: two parts without a common row."""
    generator = torch.Generator().manual_seed(number)
    share = torch.rand(rows, generator=generator)
    return torch.randn(rows, LATENT, generator=generator), share < 0.3, share > 0.6


@settings(max_examples=2)
@given(
    level=st.integers(0, 1),
    numbers=numbers_of_shapes,
    batch_size=st.integers(1, 3),
    prediction=st.sampled_from(["v", "flow"]),
)
@example(level=0, numbers=[2, 0, 5], batch_size=2, prediction="v")
@example(level=1, numbers=[2, 0, 5], batch_size=2, prediction="v")
def test_known_latents_are_left_in_the_end(level: int, numbers: list[int], batch_size: int, prediction: Any) -> None:
    config = DiffusionConfig(prediction)
    pipeline = XCubePipeline([replace(part, diffusion=config) for part in cascade(2).levels])

    def maker(parts: Sequence[Sequence[int]]) -> HookMaker:
        def make(grid: Grid, batch: Sequence[int]) -> Hook:
            rows = grid.offsets.diff().tolist()
            shapes = [known(number, count) for number, count in zip(batch, rows, strict=True)]
            values, *masks = (torch.cat(each) for each in zip(*shapes, strict=True))
            latents, noise = SparseTensor(grid, values), torch.zeros_like(values)
            hooks = [
                keep_known_latents(Diffusion(config), latents, torch.stack([masks[n] for n in part]).any(0), noise)
                for part in parts
            ]

            def hook(x: SparseTensor, t: float | None) -> SparseTensor:
                for each in hooks:
                    x = each(x, t)
                return x

            return hook

        return make

    found: list[SparseTensor] = []
    with watched(pipeline.levels[level].vae.decoder, lambda args: found.extend(args[0].unbind())):
        shapes = made(pipeline, numbers, batch_size=batch_size, hooks={level: maker([[0, 1]])})
    scale = pipeline.levels[level].latent_scale
    for number, latents in zip(numbers, found, strict=True):
        values, first, second = known(number, len(latents.feats))
        is_known = first | second
        assert torch.equal(latents.feats[is_known], (values / scale)[is_known])
        assert not bool((latents.feats == values / scale)[~is_known].any())
    # Hooks one after the other.
    assert same_bits(made(pipeline, numbers, batch_size=batch_size, hooks={level: maker([[0], [1]])}), shapes)


# Nothing


def dying(doomed: set[int]) -> HookMaker:
    """Makes the latents of some shapes such that a `Mortal` decodes them to nothing."""

    def make(grid: Grid, batch: Sequence[int]) -> Hook:
        dead = torch.tensor([number in doomed for number in batch])[grid.batch.long()]

        def hook(x: SparseTensor, t: float | None) -> SparseTensor:
            return x if t is not None else x.replace(torch.where(dead[:, None], 1e6, x.feats))

        return hook

    return make


@settings(max_examples=1)
@given(
    level=st.integers(0, 2),
    doomed=st.sets(st.sampled_from([0, 1, 2, 5]), min_size=1),
    batch_size=st.integers(1, 4),
    budget=st.sampled_from([100, 500_000]),
)
@example(level=0, doomed={1}, batch_size=4, budget=100)
@example(level=1, doomed={1, 2}, batch_size=4, budget=100)
@example(level=2, doomed={0, 1, 2, 5}, batch_size=3, budget=500_000)
def test_shapes_that_become_empty_are_named_and_change_no_other(
    level: int, doomed: set[int], batch_size: int, budget: int
) -> None:
    numbers = [0, 1, 2, 5]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        options: dict[str, Any] = {"batch_size": batch_size, "budget": budget}
        shapes = made(cascade(3), numbers, hooks={level: dying(doomed)}, **options)
    batches = [numbers[n : n + batch_size] for n in range(0, 4, batch_size)]
    gone = [[number for number in batch if number in doomed] for batch in batches]
    expected = [f"no voxels are left at level {level} of the shapes {some}" for some in gone if some]
    assert [str(warning.message) for warning in caught] == expected
    for number, shape in zip(numbers, shapes, strict=True):
        whole = alone(3, number)
        if number not in doomed:
            agree(shape, whole)
            continue
        assert shape.is_empty
        for n, (voxels, other) in enumerate(zip(shape.levels, whole.levels, strict=True)):
            assert (voxels.num_voxels > 0) == (n < level)
            assert (voxels.grid.voxel_size, voxels.grid.origin) == (other.grid.voxel_size, other.grid.origin)
            kinds = [{k: (v.dtype, v.shape[1:]) for k, v in each.attributes.items()} for each in (voxels, other)]
            assert kinds[0] == kinds[1]
