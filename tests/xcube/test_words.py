"""Captions as a condition: words, the text encoder of the denoiser, and sampling."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsevox import Grid, SparseTensor, Voxels
from tests.xcube.balls import SIDE
from tests.xcube.cascades import random, same_bits, tiny, unet, watched
from xcube.networks.conditions import Conditions, stack_words
from xcube.networks.configs import UNetConfig, VAEConfig
from xcube.networks.losses import voxel_iou
from xcube.networks.pretrained import from_pretrained, save_pretrained
from xcube.networks.unet import UNet
from xcube.networks.words import LONGEST, WordEncoder, split_words, vocabulary_of, word_numbers
from xcube.pipeline.inputs import full_box
from xcube.pipeline.options import Sample, SampleOptions
from xcube.pipeline.pipeline import XCubePipeline
from xcube.training.latents import ShapeConditions

WORDS = ("a", "chair", "lamp", "no", "wide", "with")
AUTOENCODER = VAEConfig(voxel_size=1 / SIDE, channels=(8, 8, 8), latent_channels=2, hidden=4, dense_neck=(2, 2, 2))
NET = UNetConfig(latent_channels=2, channels=8, multipliers=(1,), attention=(), heads=2, dense=True)


# Words


def test_words_of_a_text() -> None:
    assert split_words("A wide, l-shaped Sofa (2 seats) & T-tail_x") == [
        "a", "wide", "l-shaped", "sofa", "2", "seats", "t-tail", "x",
    ]  # fmt: skip
    assert split_words(" -- ,. ") == []
    assert vocabulary_of(["a chair", "a lamp, a lamp", "chair"]) == ("a", "chair", "lamp")
    assert vocabulary_of(["a chair", "a lamp, a lamp", "chair"], 2) == ("a", "chair")
    assert word_numbers("A lamp, with a CHAIR", WORDS).tolist() == [[0, 2, 5, 0, 1]]
    assert word_numbers("a dragon lamp", WORDS, strict=False).tolist() == [[0, 2]]
    assert word_numbers("", WORDS, strict=False).shape == (1, 0)


@pytest.mark.parametrize(("text", "message"), [
    ("a lamb", "got 'lamb'; similar words: lamp; all 6: a chair lamp no wide with"),
    ("a dragon", "text must consist of words that the model knows, got 'dragon'; no word is similar"),
    ("?!", r"text must have at least one word, got '\?!'"),
    ("a " * 40, "text must have at most 32 words, got 40"),
])  # fmt: skip
def test_unknown_words_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        word_numbers(text, WORDS)


# The encoder


def encoder(seed: int = 0) -> WordEncoder:
    torch.manual_seed(seed)
    made = WordEncoder(len(WORDS), 10, 12)
    torch.nn.init.normal_(made.out.weight)
    return made


def test_captions_have_no_effect_at_first() -> None:
    embedded, guess = WordEncoder(4, 6)(torch.tensor([[0, 1], [2, -1]]))
    assert not embedded.any()
    assert guess is None


@given(st.lists(st.lists(st.integers(0, 5), max_size=6), min_size=1, max_size=4), st.booleans())
@settings(max_examples=40, deadline=None)
def test_other_captions_and_padding_do_not_matter(captions: list[list[int]], training: bool) -> None:
    network = encoder().train(training)
    alone = [torch.tensor([words], dtype=torch.int64).reshape(1, -1) for words in captions]
    together = stack_words([*alone, torch.full((1, 9), -1)])
    assert together.shape == (len(captions) + 1, 9)
    for found, alone_found in zip(network(together), zip(*map(network, alone), strict=True), strict=True):
        torch.testing.assert_close(found[:-1], torch.cat(list(alone_found)), rtol=1e-4, atol=1e-5)
        assert [bool(row.any()) for row in found] == [bool(words) for words in captions] + [False]


def test_the_order_of_words_matters() -> None:
    network = encoder()
    first, second = network.features(torch.tensor([[4, 1, 5, 3]])), network.features(torch.tensor([[3, 1, 5, 4]]))
    assert float((first - second).detach().abs().max()) > 1e-3
    assert not torch.equal(network.features(torch.tensor([[1]])), network.features(torch.tensor([[1, 1]])))
    embedded, guess = network(torch.zeros(1, LONGEST, dtype=torch.int64))
    assert embedded.shape == (1, 10)
    assert guess.shape == (1, 12)


# Conditions


def test_conditions() -> None:
    grid = full_box(tiny(0)).grid
    config = replace(unet(0).config, words=len(WORDS))
    words = Conditions(words=torch.tensor([[0, 1]]))
    words.check(grid, config)
    joined = Conditions.stack([words, Conditions(words=torch.tensor([[2, 3, 4]]))])
    assert joined.words is not None
    assert joined.words.tolist() == [[0, 1, -1], [2, 3, 4]]
    gone = words.drop(torch.tensor([True]), grid)
    assert gone.words is not None
    assert gone.words.tolist() == [[-1, -1]]
    for wrong, message in (
        (torch.tensor([[0, 6]]), r"conditions.words must lie in \[-1, 6\), got 0 to 6"),
        (torch.tensor([[0], [1]]), r"conditions.words must have shape \[1, 1\], got \[2, 1\]"),
        (torch.tensor([[0.5]]), "conditions.words must be integers"),
    ):
        with pytest.raises(ValueError, match=message):
            Conditions(words=wrong).check(grid, config)


def test_shapes_have_several_wordings() -> None:
    captions = {"b": ["wide chair", "a chair"], "a": ["lamp, dragon"]}
    found = ShapeConditions(["a", "b", "c"], captions=captions, vocabulary=WORDS)
    assert found.words is not None
    first = found.of(torch.tensor([2, 1, 0]))["words"]
    assert [[w for w in row if w >= 0] for row in first.tolist()] == [[], [4, 1], [2]]
    seen = set()
    for seed in range(30):
        words = found.of(torch.tensor([1, 0]), torch.Generator().manual_seed(seed))["words"]
        assert [w for w in words[1].tolist() if w >= 0] == [2]
        seen.add(tuple(w for w in words[0].tolist() if w >= 0))
    assert seen == {(4, 1), (0, 1)}


# Sampling


def reader(words: tuple[str, ...] = WORDS, box: int = 64) -> XCubePipeline:
    """Two levels, of which the first one reads captions."""
    net = random(UNet(replace(unet(0).config, words=len(words), box=box)), 10)
    return XCubePipeline([tiny(0, denoiser=net, words=words), tiny(1)])


def made(pipeline: XCubePipeline, count: int, **options: Any) -> list[Sample]:
    return pipeline.sample(count, steps=5, **options)


def test_shapes_from_texts(tmp_path: Path) -> None:
    pipeline = reader()
    chair = made(pipeline, 2, text="a chair")
    assert same_bits(chair, made(pipeline, 2, text=["A chair.", "a chair"]))
    assert not same_bits(chair, made(pipeline, 2, text="a lamp"))
    assert not same_bits(chair, made(pipeline, 2))
    assert same_bits(made(pipeline, 2), made(pipeline, 2, text=[None, None]))
    assert not same_bits(chair, made(pipeline, 2, text="a chair", guidance=3.0))
    pipeline.save_pretrained(tmp_path)
    again = XCubePipeline.from_pretrained(tmp_path)
    assert again.levels[0].words == WORDS
    assert same_bits(chair, made(again, 2, text="a chair"))


def test_shapes_follow_a_text_by_guidance() -> None:
    """By default, unless the options or the level say otherwise, or there is no text."""
    level = reader().levels[0]
    own = replace(level, sampler=replace(level.sampler, guidance=1.5))
    for chosen, options, expected in (
        (level, SampleOptions(text="a chair"), 5.0),
        (level, SampleOptions(), 1.0),
        (level, SampleOptions(text="a chair", guidance=1.0), 1.0),
        (own, SampleOptions(text="a chair"), 1.5),
        (tiny(1), SampleOptions(text="a chair"), 1.0),
    ):
        assert options.for_level(chosen).weight == expected


def test_what_the_network_takes() -> None:
    pipeline, seen = reader(), list[Conditions]()
    with watched(pipeline.levels[0].denoiser, lambda args: seen.append(args[2])):
        made(pipeline, 3, text=["a wide chair", "lamp", None], guidance=2.0)
    assert len(seen) == 10
    for call, conditions in enumerate(seen):
        assert conditions.words is not None
        expected = [[0, 4, 1], [2, -1, -1], [-1, -1, -1]] if call % 2 == 0 else [[-1] * 3] * 3
        assert conditions.words.tolist() == expected


def test_a_text_a_part_and_a_box_at_once() -> None:
    """Each shape of a batch has its own text and number; the observed voxels and the box are those of all."""
    net = random(UNet(replace(unet(0).config, words=len(WORDS), box=64, observed=8)), 10)
    pipeline = XCubePipeline([tiny(0, denoiser=net, words=WORDS, dropped=("words", "observed")), tiny(1)])
    axis = torch.arange(-5, 6)
    ijk = torch.cartesian_prod(axis, axis, axis)
    grid = Grid.from_coords(ijk[(ijk.abs().amax(1) == 5) & (ijk[:, 0] < 0)], voxel_size=1 / 16, origin=1 / 32)
    part = Voxels(grid, {"normal": torch.nn.functional.normalize(grid.ijk.float() + 0.5, dim=1)})
    options = SampleOptions(steps=3, quiet=True, text=["a chair", "a lamp", "a chair"], batch_size=2, seed=3)
    seen = list[Conditions]()
    with watched(net, lambda args: seen.append(args[2])):
        shapes = pipeline.complete(part, options, known=((-1, -1, -1), (0, 1, 1)), numbers=(0, 1, 0))
    assert [tuple(call.words.shape) for call in seen if call.words is not None] == [(2, 2)] * 6 + [(1, 2)] * 6
    assert bool(seen[0].observed is not None and seen[0].observed.any())
    assert all((part.grid - shape.finest.grid).num_voxels == 0 for shape in shapes)
    assert float(voxel_iou(shapes[0].finest.grid, shapes[2].finest.grid)) >= 0.99
    assert not same_bits(shapes[:1], shapes[1:2])
    other = pipeline.complete(part, replace(options, text="a chair", seed=4), known=((-1, -1, -1), (0, 1, 1)))
    assert len(other) == 4
    assert not same_bits(shapes[:1], other[:1])
    with pytest.raises(ValueError, match="got 'boat'"):
        pipeline.complete(part, replace(options, text="a boat"))


@pytest.mark.parametrize(("text", "message"), [
    ("a dragon", "text must consist of words that the model knows, got 'dragon'"),
    (["a chair", "a boat"], "got 'boat'"),
    ("", "text must have at least one word, got ''"),
    (["a chair", " "], "text must have at least one word"),
    (["a chair"], "text must be a single one, or one for each of 2 shapes, got 1"),
])  # fmt: skip
def test_bad_texts_are_named_before_any_work(text: Any, message: str) -> None:
    pipeline, calls = reader(), list[Any]()
    with watched(pipeline.levels[0].denoiser, calls.append), pytest.raises(ValueError, match=message):
        made(pipeline, 2, text=text)
    assert not calls


def test_the_guess_is_an_input() -> None:
    """Rows of the guess are those of the latent grid, for each shape of a batch."""
    net = reader().levels[0].denoiser
    assert net.words is not None
    seen: list[torch.Tensor] = []
    net.enter.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    grid = full_box(tiny(0)).grid
    x = SparseTensor(Grid.stack([grid, grid]), torch.zeros(128, 2))
    words = torch.tensor([[0, 1], [2, -1]])
    net(x, 500.0, Conditions(words=words))
    _, guess = net.words(words)
    assert guess is not None
    volume = seen[0][:, 2:]  # [2, 2, 4, 4, 4]
    rows = volume.permute(0, 2, 3, 4, 1).reshape(2, 64, 2)
    place = (grid.ijk + 2).long()
    order = (place[:, 0] * 4 + place[:, 1]) * 4 + place[:, 2]
    torch.testing.assert_close(rows[:, order].reshape(2, 128), guess)
    # Without a guess, captions still matter.
    plain = reader(box=0)
    assert not same_bits(made(plain, 1, text="a chair"), made(plain, 1, text="a lamp"))
    with pytest.raises(ValueError, match="box must be 0 without words or for a sparse network, got 64"):
        replace(unet(0).config, box=64)


def test_a_model_that_cannot_read() -> None:
    with pytest.raises(ValueError, match="text must be None for a model that takes none, got 'a chair'"):
        made(XCubePipeline([tiny(0)]), 1, text="a chair")
    with pytest.raises(ValueError, match=r"levels\[0\].words must have 6 entries, as the denoiser, got 5"):
        XCubePipeline([tiny(0, denoiser=reader().levels[0].denoiser, words=WORDS[:5])])


def test_a_damaged_folder(tmp_path: Path) -> None:
    reader().save_pretrained(tmp_path)
    file = tmp_path / "denoiser-0" / "config.json"
    values = json.loads(file.read_text())
    del values["metadata"]["options"]["words"]
    file.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"words must have 6 entries, as the denoiser, got 0"):
        XCubePipeline.from_pretrained(tmp_path)


def test_networks_keep_their_words(tmp_path: Path) -> None:
    net = reader().levels[0].denoiser
    save_pretrained(net, tmp_path / "net")
    assert from_pretrained(tmp_path / "net", UNet).config.words == len(WORDS)
