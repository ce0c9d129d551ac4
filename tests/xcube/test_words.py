"""Captions as a condition: words, the text encoder of the denoiser, training with captions, and sampling."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsevox import Grid, SparseTensor, Voxels
from tests.xcube.balls import SIDE, ball_dataset
from tests.xcube.cascades import random, same_bits, tiny, unet, vae, watched
from xcube.data.captions import write_captions
from xcube.networks.conditions import Conditions, stack_words
from xcube.networks.configs import UNetConfig, VAEConfig
from xcube.networks.losses import voxel_iou
from xcube.networks.pretrained import from_pretrained, read_config, save_pretrained
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.networks.words import LONGEST, WordEncoder, split_words, vocabulary_of, word_numbers
from xcube.pipeline.inputs import full_box
from xcube.pipeline.options import Sample, SampleOptions
from xcube.pipeline.pipeline import XCubePipeline
from xcube.training.config import TrainConfig
from xcube.training.denoiser import DenoiserModule
from xcube.training.latents import ShapeConditions
from xcube.training.train import train_denoiser
from xcube.training.words import teach_words

WORDS = ("a", "chair", "lamp", "no", "wide", "with")
AUTOENCODER = VAEConfig(voxel_size=1 / SIDE, channels=(8, 8, 8), latent_channels=2, hidden=4, dense_neck=(2, 2, 2))
NET = UNetConfig(latent_channels=2, channels=8, multipliers=(1,), attention=(), heads=2, dense=True)


class Stop(Exception):
    """Pulls the plug."""


class Fragile(DenoiserModule):
    """Fails at a step."""

    def training_step(self, batch: Voxels, index: int) -> torch.Tensor:
        if self.global_step == 2:
            raise Stop
        return super().training_step(batch, index)


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


# Training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = ball_dataset(tmp_path_factory.mktemp("data"), SIDE)
    size = {f"{'small' if n < 4 else 'large'}-{n}": "small" if n < 4 else "large" for n in range(7)}
    write_captions(folder / "captions.json", {name: [f"a {size[name]} ball", size[name]] for name in size})
    return folder


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    save_pretrained(VAE(AUTOENCODER), folder, latent_scale=2.0)
    return folder


def run(data: Path, out: Path, vae: Path, steps: int = 3, **changes: Any) -> UNet:
    train = TrainConfig(
        steps=steps, batch_size=6, warmup=0, learning_rate=2e-2, ema=0.0, val_every=1000, save_every=1, seed=3
    )
    options: dict[str, Any] = {"model": NET, "train": train, "quiet": True, "captions": data / "captions.json"}
    return train_denoiser(data, out, vae, **(options | {"least_captions": 2, "word_steps": 3} | changes))


def test_a_denoiser_learns_to_read(data: Path, autoencoder: Path, tmp_path: Path) -> None:
    net = run(data, tmp_path, autoencoder, drop=0.2, drop_each=0.2)
    assert net.words is not None
    assert bool(net.words.out.weight.any())
    options = read_config(tmp_path)["metadata"]["options"]
    assert options["words"] == ["a", "ball", "large", "small"]
    assert options["drop_each"] == 0.2
    assert (net.config.words, net.config.box) == (4, 64)
    assert read_config(tmp_path)["metadata"]["captions_explain"] < 0.5  # after three steps
    # Words that too few shapes have are left out.
    run(data, tmp_path / "less", autoencoder, least_captions=3)
    assert read_config(tmp_path / "less")["metadata"]["options"]["words"] == ["a", "ball", "large", "small"]
    run(data, tmp_path / "least", autoencoder, least_captions=4)
    assert read_config(tmp_path / "least")["metadata"]["options"]["words"] == ["a", "ball"]


def test_a_run_starts_from_a_network_that_cannot_read(data: Path, autoencoder: Path, tmp_path: Path) -> None:
    plain = run(data, tmp_path / "plain", autoencoder, captions=None)
    still = TrainConfig(steps=1, batch_size=2, warmup=0, learning_rate=1e-12, ema=0.0, val_every=1000)
    made = run(data, tmp_path / "run", autoencoder, train=still, initial=tmp_path / "plain")
    before, after = plain.state_dict(), made.state_dict()
    after["enter.weight"], guessed = after["enter.weight"].split([2, 2], 1)
    assert float(guessed.abs().max()) < 1e-6
    assert all(torch.allclose(value, after[name], rtol=0, atol=1e-6) for name, value in before.items())
    x = SparseTensor(full_box(tiny(0, vae=vae(0), denoiser=unet(0))).grid, torch.randn(64, 2))
    words = Conditions(words=torch.tensor([[0, 1]]))
    torch.testing.assert_close(made(x, 500.0, words).feats, plain(x, 500.0).feats)


def test_a_network_that_reads_learns_to_complete(data: Path, autoencoder: Path, tmp_path: Path) -> None:
    """Observations become inputs before the guess, and have no effect at first."""
    reading = run(data, tmp_path / "reading", autoencoder)
    still = TrainConfig(steps=1, batch_size=2, warmup=0, learning_rate=1e-12, ema=0.0, val_every=1000)
    model = replace(NET, observed=64)
    both = run(data, tmp_path / "both", autoencoder, train=still, model=model, initial=tmp_path / "reading")
    x = SparseTensor(full_box(tiny(0)).grid, torch.randn(64, 2))
    words = torch.tensor([[0, 1]])
    seen = Conditions(words=words, observed=torch.randn(64, 64).sign())
    torch.testing.assert_close(both(x, 500.0, seen).feats, reading(x, 500.0, Conditions(words=words)).feats)


def test_other_captions_are_another_run(data: Path, autoencoder: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "run", autoencoder)
    names = [f"{'small' if n < 4 else 'large'}-{n}" for n in range(7)]
    write_captions(tmp_path / "swapped.json", {n: ["a large ball" if "small" in n else "a small ball"] for n in names})
    write_captions(tmp_path / "other.json", {n: ["one big sphere" if "small" in n else "tiny sphere"] for n in names})
    with pytest.raises(ValueError, match=r"holds a run with other options: captions"):
        run(data, tmp_path / "run", autoencoder, captions=tmp_path / "swapped.json")
    with pytest.raises(ValueError, match=r"words must be .*'sphere'.*, got .*'ball'"):
        run(data, tmp_path / "more", autoencoder, captions=tmp_path / "other.json", initial=tmp_path / "run")
    write_captions(tmp_path / "none.json", {"nothing": ["a ball"]})
    with pytest.raises(ValueError, match=r"captions must have words that 2 training shapes of .* got none in"):
        run(data, tmp_path / "none", autoencoder, captions=tmp_path / "none.json")


def test_a_run_with_captions_that_was_cut_short(data: Path, autoencoder: Path, tmp_path: Path) -> None:
    """It ends with the same bits, and captions predict latents only once."""
    whole = run(data, tmp_path / "whole", autoencoder, steps=4, drop_each=0.3)
    taught: list[int] = []

    def teach(*args: Any) -> float:
        taught.append(1)
        return teach_words(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xcube.training.denoiser.teach_words", teach)
        patch.setattr("xcube.training.denoiser.DenoiserModule", Fragile)
        with pytest.raises(Stop):
            run(data, tmp_path / "cut", autoencoder, steps=4, drop_each=0.3)
        patch.undo()
        patch.setattr("xcube.training.denoiser.teach_words", teach)
        cut = run(data, tmp_path / "cut", autoencoder, steps=4, drop_each=0.3)
    assert taught == [1]
    assert all(torch.equal(value, cut.state_dict()[name]) for name, value in whole.state_dict().items())


def test_runs_of_earlier_versions_are_known(data: Path, autoencoder: Path, tmp_path: Path) -> None:
    """Runs without captions are still finished: their options lack those that came later."""
    net = run(data, tmp_path, autoencoder, captions=None)
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    for name in ("color", "observed", "words", "box"):
        del values["config"][name]
    assert values["metadata"]["options"]["dropped"] == ["category", "text"]
    file.write_text(json.dumps(values))
    again = run(data, tmp_path, autoencoder, captions=None)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in net.state_dict().items())


def test_captions_predict_latents_first() -> None:
    """Afterwards, they are guessed up to what captions do not say."""
    network = WordEncoder(4, 6, 8)
    latents = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)) * 0.1
    latents[20:, :4] += 3.0
    captions = ShapeConditions(
        [str(n) for n in range(40)],
        captions={str(n): [f"a {'wide' if n >= 20 else 'no'} lamp", "no" if n < 20 else "wide"] for n in range(40)},
        vocabulary=("a", "lamp", "no", "wide"),
    )

    def words_of(chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        words: torch.Tensor = captions.of(chosen, generator)["words"]
        return words

    before = {name: value.clone() for name, value in network.state_dict().items()}
    explained = teach_words(network, latents, words_of, 200)
    assert explained > 0.9  # all but the noise
    assert not network.out.weight.any()
    _, guess = network(torch.tensor([[0, 2, 1], [0, 3, 1]]))
    assert guess is not None
    assert torch.allclose(guess[0], torch.zeros(8), atol=0.4)
    assert torch.allclose(guess[1], torch.tensor([3.0] * 4 + [0.0] * 4), atol=0.4)
    # The same bits every time, and none at all without steps.
    again = WordEncoder(4, 6, 8)
    again.load_state_dict(before)
    assert teach_words(again, latents, words_of, 200) == explained
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in again.state_dict().items())


def test_runs_begin_with_captions(data: Path, autoencoder: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "some", autoencoder, word_steps=5)
    assert read_config(tmp_path / "some")["metadata"]["options"]["word_steps"] == 5
    # Not if the network knows words, and not without captions.
    for name, changes in (("known", {"initial": tmp_path / "some"}), ("none", {"captions": None})):
        run(data, tmp_path / name, autoencoder, **changes)
        assert "word_steps" not in read_config(tmp_path / name)["metadata"]["options"]
    with pytest.raises(ValueError, match="word_steps must not be negative"):
        run(data, tmp_path / "bad", autoencoder, word_steps=-1)


def test_what_does_not_fit_is_named(data: Path, autoencoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model must have as many words as the captions, 4, or 0, got 3"):
        run(data, tmp_path, autoencoder, model=replace(NET, words=3))
    with pytest.raises(ValueError, match="model must have as many words as the captions, 0, or 0, got 3"):
        run(data, tmp_path, autoencoder, model=replace(NET, words=3), captions=None)
    with pytest.raises(ValueError, match=r"drop_each must lie in \[0, 1\], got 2.0"):
        run(data, tmp_path, autoencoder, drop_each=2.0)
    with pytest.raises(FileNotFoundError):
        run(data, tmp_path, autoencoder, captions=tmp_path / "none.json")
    assert not (tmp_path / "last.ckpt").exists()


@pytest.mark.parametrize(("changes", "message"), [
    ({"model": replace(NET, words=4, box=32)}, r"model must have the box of the VAE, .* \(2, 2, 2\), got 32"),
    ({"word_steps": -1}, "word_steps must not be negative"),
    ({"initial": Path("nowhere")}, "initial must be the folder of a trained network, got nowhere"),
])  # fmt: skip
def test_errors_come_before_work(
    data: Path, autoencoder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(data, tmp_path, autoencoder, **changes)


def test_few_steps_explain_little() -> None:
    network = WordEncoder(2, 4, 4)
    latents = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    for steps in (1, 5):
        explained = teach_words(network, latents, lambda chosen, generator: chosen[:, None] % 2, steps)
        assert explained < 0.9
    one = teach_words(network, latents[:1], lambda chosen, generator: chosen[:, None], 2)
    assert one <= 1


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
