"""Training of denoisers with captions: vocabularies, starts, and runs that were cut short."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsevox import SparseTensor
from tests.xcube.balls import SIDE, ball_dataset
from tests.xcube.cascades import tiny, unet, vae
from tests.xcube.test_train_denoiser import Fragile, Stop
from xcube.data.captions import write_captions
from xcube.networks.conditions import Conditions
from xcube.networks.configs import UNetConfig, VAEConfig
from xcube.networks.pretrained import read_config, save_pretrained
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.networks.words import WordEncoder
from xcube.pipeline.inputs import full_box
from xcube.training.config import TrainConfig
from xcube.training.latents import ShapeConditions
from xcube.training.train import train_denoiser
from xcube.training.words import teach_words

WORDS = ("a", "chair", "lamp", "no", "wide", "with")
AUTOENCODER = VAEConfig(voxel_size=1 / SIDE, channels=(8, 8, 8), latent_channels=2, hidden=4, dense_neck=(2, 2, 2))
NET = UNetConfig(latent_channels=2, channels=8, multipliers=(1,), attention=(), heads=2, dense=True)


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
