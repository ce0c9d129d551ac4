"""What holds of every cascade, with small random networks: batches, noise, known latents, empty shapes."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsevox import Grid, SparseTensor, Voxels
from xcube.config import VAEConfig
from xcube.decoder import Decoded
from xcube.diffusion import Diffusion, DiffusionConfig, Noise
from xcube.losses import voxel_iou
from xcube.pipeline import XCubePipeline
from xcube.refine import RefineConfig, Refiner
from xcube.request import HookMaker, Sample
from xcube.sampling import Hook, SamplerConfig, keep
from xcube.stages import Stage
from xcube.unet import UNet
from xcube.unet_config import UNetConfig
from xcube.vae import VAE

STEPS = 2
LATENT = 2  # channels
LABELS = 3


class Mortal(VAE):
    """Decodes latents that are very large to nothing."""

    def decode(self, latents: SparseTensor, truth: Grid | None = None) -> Decoded:
        found = super().decode(latents, truth)
        dead = torch.stack([item.feats.abs().max() > 1e3 for item in latents.unbind()])
        return replace(found, voxels=found.voxels.prune(~dead[found.voxels.grid.batch.long()]))


def random(model: Any, seed: int) -> Any:
    """The network with random parameters, also those that begin at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def stage(level: int, **changes: Any) -> Stage:
    """4 x 4 x 2 latents fill the box of level 0, which makes 8 x 8 x 4; further levels make twice as fine voxels."""
    neck = (2, 2, 1) if level == 0 else None
    options: dict[str, Any] = {"num_labels": LABELS, "label_dim": 2, "color": True, "dense_neck": neck}
    vae = random(
        Mortal(VAEConfig(1 / (8 << level), channels=(4, 6), latent_channels=LATENT, hidden=4, **options)), level
    )
    with torch.no_grad():  # about half of the children exist
        vae.decoder.root.out.bias.fill_(0.5)
        for head in vae.decoder.heads:
            head.out.bias.zero_()
    told: dict[str, Any] = {"normal": True, "num_labels": LABELS, "label_dim": 2, "categories": 2} if level else {}
    small: dict[str, Any] = {"channels": 4, "multipliers": (1, 2), "attention": (), "heads": 2}
    unet = random(UNet(UNetConfig(LATENT, dense=level == 0, **small, **told)), 10 + level)
    refiner = None
    if level == 0:  # it knows of normals only; labels and colors go past it
        refiner = random(Refiner(RefineConfig(1 / 8, channels=(4, 4, 4))), 20)
        with torch.no_grad():  # most of the decode stays, and little is added
            refiner.prior.fill_(0.4)
            refiner.keep.out.bias.fill_(-0.2)
    return Stage(**({"vae": vae, "denoiser": unet, "refiner": refiner, "scale": 0.5 + level} | changes))


@lru_cache
def cascade(levels: int) -> XCubePipeline:
    return XCubePipeline([stage(level) for level in range(levels)])


def made(pipeline: XCubePipeline, numbers: Sequence[int], **options: Any) -> list[Sample]:
    return list(pipeline.stream(numbers, **({"steps": STEPS, "quiet": True} | options)))


@lru_cache
def alone(levels: int, number: int, eta: float = 0.0) -> Sample:
    [shape] = made(cascade(levels), [number], sampler=SamplerConfig(eta=eta))
    return shape


def same_bits(first: Sequence[Sample], second: Sequence[Sample]) -> bool:
    pairs = [(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x.levels, y.levels, strict=True)]
    return all(
        a.grid.same_voxels(b.grid)
        and a.attributes.keys() == b.attributes.keys()
        and all(torch.equal(value, b.attributes[name]) for name, value in a.attributes.items())
        for a, b in pairs
    )


def agree(first: Sample, second: Sample) -> None:
    """The same shape, but for the order of additions."""
    for a, b in zip(first.levels, second.levels, strict=True):
        assert float(voxel_iou(a.grid, b.grid)) >= 0.99
        assert (a.grid.voxel_size, a.grid.origin) == (b.grid.voxel_size, b.grid.origin)
        row = b.grid.index(a.grid.coords)
        both = row >= 0
        for name, value in a.attributes.items():
            close = (value - b.attributes[name][row])[both].abs() < 1e-2
            assert float(close.float().mean()) > 0.98


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
    told: dict[str, Any] = {"batch_size": batch_size, "budget": budget, "sampler": SamplerConfig(eta=eta)}
    shapes = made(cascade(levels), numbers, **told)
    if levels < 3:
        assert same_bits(made(cascade(levels), numbers, **told), shapes)
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
    monkeypatch.setattr("xcube.cascade.tqdm", Bar)
    if gone:
        first[1] = first[1].prune(torch.zeros(first[1].num_voxels, dtype=torch.bool))
    list(cascade(2).stream([0, 1, 2], begin=Voxels.stack(first), steps=STEPS, budget=first[2].num_voxels))
    assert bars == [[(3 - gone) * STEPS] * 2]


def test_when_memory_runs_out_decodes_are_halved() -> None:
    class Small(Mortal):
        def decode(self, latents: SparseTensor, truth: Grid | None = None) -> Decoded:
            if latents.batch_size > 1:
                raise torch.OutOfMemoryError("no more")
            return super().decode(latents, truth)

    small = Small(cascade(1).stages[0].vae.config)
    small.load_state_dict(cascade(1).stages[0].vae.state_dict())
    for number, shape in enumerate(made(XCubePipeline([stage(0, vae=small)]), [0, 1, 2])):
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
    pipeline = XCubePipeline([replace(part, diffusion=config) for part in cascade(2).stages])

    def maker(parts: Sequence[Sequence[int]]) -> HookMaker:
        def make(grid: Grid, batch: Sequence[int]) -> Hook:
            rows = grid.offsets.diff().tolist()
            shapes = [known(number, count) for number, count in zip(batch, rows, strict=True)]
            values, *masks = (torch.cat(each) for each in zip(*shapes, strict=True))
            latents, noise = SparseTensor(grid, values), torch.zeros_like(values)
            hooks = [
                keep(Diffusion(config), latents, torch.stack([masks[n] for n in part]).any(0), noise) for part in parts
            ]

            def hook(x: SparseTensor, t: float | None) -> SparseTensor:
                for each in hooks:
                    x = each(x, t)
                return x

            return hook

        return make

    found: list[SparseTensor] = []
    with watched(pipeline.stages[level].vae.decoder, lambda args: found.extend(args[0].unbind())):
        shapes = made(pipeline, numbers, batch_size=batch_size, hooks={level: maker([[0, 1]])})
    scale = pipeline.stages[level].scale
    for number, latents in zip(numbers, found, strict=True):
        values, first, second = known(number, len(latents.feats))
        is_known = first | second
        assert torch.equal(latents.feats[is_known], (values / scale)[is_known])
        assert not bool((latents.feats == values / scale)[~is_known].any())
    # Hooks one after the other.
    assert same_bits(made(pipeline, numbers, batch_size=batch_size, hooks={level: maker([[0], [1]])}), shapes)


@contextmanager
def watched(model: torch.nn.Module, see: Callable[[Any], object]) -> Iterator[None]:
    """Shows the arguments of each call."""

    def hook(_: torch.nn.Module, args: Any) -> None:
        see(args)

    handle = model.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


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
        told: dict[str, Any] = {"batch_size": batch_size, "budget": budget}
        shapes = made(cascade(3), numbers, hooks={level: dying(doomed)}, **told)
    batches = [numbers[n : n + batch_size] for n in range(0, 4, batch_size)]
    gone = [[number for number in batch if number in doomed] for batch in batches]
    expected = [f"nothing is left at level {level} of the shapes {some}" for some in gone if some]
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
