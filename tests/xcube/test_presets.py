"""Presets: the arguments that the command line makes of them, and that official ones describe the official networks."""

import functools
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from tests.goldens import official_networks
from xcube import cli
from xcube.checkpoints import denoiser
from xcube.checkpoints.vae import config_from_official, vae_state
from xcube.data.hierarchy import as_box
from xcube.networks.configs import RefinerConfig, UNetConfig, VAEConfig
from xcube.networks.losses import LossConfig
from xcube.networks.refiner import Refiner
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.training.config import TrainConfig
from xcube.training.presets import PRESETS, cascade_presets, preset_names, read_preset

for package in ("jsonargparse", "lightning", "yaml"):
    pytest.importorskip(package, reason="the command line and training")

LEVELS, DENOISERS = ("vae-0", "vae-1"), ("denoiser-0", "denoiser-1")
# Folder: its name in the manifest, millions of parameters and weight of the divergence of the coarse and the fine VAE.
OFFICIAL = {
    "shapenet-chair": ("shapenet/chair", (59.63, 3.80), (0.03, 1.0)),
    "shapenet-car": ("shapenet/car", (59.63, 3.80), (0.03, 1.0)),
    "shapenet-plane": ("shapenet/plane", (59.63, 3.80), (0.03, 1.0)),
    "objaverse": ("objaverse", (236.32, 14.86), (0.03, 0.3)),
    "waymo": ("waymo", (59.39, 3.83), (0.03, 0.3)),
}
VAES = [f"{folder}/{level}" for folder in OFFICIAL for level in LEVELS]
# Shapes of an optimizer step of both denoisers, and batches per GPU in it; a guess for Objaverse.
DENOISER = {
    "shapenet-chair": ((256, 512), (4, 8)),
    "shapenet-car": ((256, 512), (4, 8)),
    "shapenet-plane": ((256, 512), (4, 8)),
    "objaverse": ((256, 256), (4, 4)),
    "waymo": ((512, 256), (4, 4)),
}
DENOISER_NAMES = [f"{folder}/{name}" for folder in OFFICIAL for name in DENOISERS]
OURS = [name for name in preset_names() if name.split("/")[0] in (*OFFICIAL, "small")]

Made = dict[str, Any]


@pytest.fixture(scope="module")
def called() -> Iterator[Callable[..., Made]]:
    """What a command line calls training with, by the names of its arguments."""
    calls: list[Made] = []
    about, verbs = cast(tuple[str, dict[str, Callable[..., int]]], cli.COMMANDS["train"])

    def recorder(function: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(function)
        def record(**arguments: Any) -> int:
            calls.append(arguments)
            return 0

        return record

    @functools.cache
    def call(*words: str) -> Made:
        assert cli.main(words) == 0
        return calls.pop()

    recorders = {verb: recorder(function) for verb, function in verbs.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "COMMANDS", {**cli.COMMANDS, "train": (about, recorders)})
        patch.setattr(cli, "CONFIGURED", tuple(recorders.values()))
        patch.setattr(cli, "parser", functools.cache(cli.parser))  # takes a quarter of a second
        yield call


@pytest.fixture(scope="module")
def made(called: Callable[..., Made]) -> Callable[..., Made]:
    """What training would be called with for a preset and further options."""

    def call(preset: str, *options: str) -> Made:
        verb = preset.partition("/")[2].partition("-")[0]
        inputs = {"vae": [], "finetune": ["vae", "denoiser", "coarse_vae", "coarse_denoiser"]}.get(verb, ["vae"])
        others = [word for name in inputs for word in (f"--{name}", name)]
        return called("train", verb, "--config", preset, "--data", "data", "--out", "out", *others, *options)

    return call


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_parses(made, name):
    values = made(name)
    assert (values["data"], values["out"]) == (Path("data"), Path("out"))
    kinds = {"vae": VAEConfig, "refiner": RefinerConfig, "denoiser": UNetConfig}
    kind = name.partition("/")[2].partition("-")[0]
    assert kind == "finetune" or type(values["model"]) is kinds[kind]
    assert isinstance(values["train"], TrainConfig)
    assert values["train"].steps > 1


def test_options_override_a_preset(made):
    values = made("waymo/refiner-1")
    changed = made("waymo/refiner-1", "--train.steps", "7", "--level", "0", "--model.voxel_size", "0.4")
    assert (changed["train"].steps, changed["level"], changed["model"].voxel_size) == (7, 0, 0.4)
    assert changed["model"].channels == values["model"].channels
    assert changed["train"] == replace(values["train"], steps=7)


def test_there_is_a_preset_for_every_network():
    parts = {folder: [*LEVELS, *DENOISERS, "refiner-1"] for folder in (*OFFICIAL, "small")}
    parts["small"].append("refiner-0")
    assert sorted(OURS) == sorted(f"{folder}/{part}" for folder, names in parts.items() for part in names)


@pytest.mark.parametrize("line", ["modell: 3", "model: {chanels: [8]}", "train: {step: 3}", "loss: {kld: 1.0}"])
def test_unknown_fields_are_errors(called, tmp_path, line):
    (tmp_path / "bad.yaml").write_text(f"level: 0\n{line}\n")
    with pytest.raises((SystemExit, AssertionError), match="2"):  # argparse leaves, we return
        called("train", "vae", "--config", str(tmp_path / "bad.yaml"), "--data", "x", "--out", "y")


@pytest.mark.parametrize("name", VAES)
def test_optimization_and_losses_of_vaes_are_the_official_ones(made, name):
    values = made(name)
    level = LEVELS.index(name.split("/")[1])
    loss, train, model = values["loss"], values["train"], values["model"]
    assert values["level"] == level
    assert loss == LossConfig(structure=20.0, normal=300.0, label=20.0, kl=OFFICIAL[name.split("/")[0]][2][level])
    assert (train.learning_rate, train.schedule, train.amsgrad, train.weight_decay) == (1e-4, "official", True, 0.0)
    assert (train.clip_value, train.clip_norm, train.ema, train.precision) == (0.5, 0.0, 0.0, "32-true")
    assert train.batch_size * train.accumulate == (32, 16)[level]
    # The rate falls by 0.7 every 50,000 shapes, to a hundredth.
    decay = 50_000 // (32, 16)[level]
    assert [train.rate(step, 0.0) for step in (0, decay - 1, decay + 1, 10**7)] == [1.0, 1.0, 0.7, 0.01]
    assert model.cutoff == (0.3 if name == "objaverse/vae-1" else None)
    assert model.keep == "predicted"


@pytest.mark.parametrize("name", VAES)
def test_sizes_of_vaes_are_the_official_ones(made, name):
    model = made(name)["model"]
    folder, level = name.split("/")
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in VAE(model).parameters())
    assert round(count / 1e6, 2) == OFFICIAL[folder][1][LEVELS.index(level)]
    free = (
        "voxel_size",
        "channels",
        "latent_channels",
        "dense_neck",
        "strides",
        "dilation",
        "max_voxels",
        "cutoff",
        "box",
    )
    attributes = ("normal", "intensity", "num_labels", "label_dim")
    assert model == VAEConfig.official(**{field: getattr(model, field) for field in (*free, *attributes)})


@pytest.mark.parametrize("name", VAES)
def test_parameters_of_vaes_are_the_official_ones(made, name):
    folder, level = name.split("/")
    entry = official_networks("vae")[f"{OFFICIAL[folder][0]}/{'vae_dense' if level == 'vae-0' else 'vae_sparse'}"]
    shapes = entry["state_dict"]
    values = made(name)
    with torch.device("meta"):
        network = VAE(values["model"])
        official = vae_state({n: torch.empty(shape) for n, shape in shapes.items()}, values["model"].num_resolutions)
    assert {n: v.shape for n, v in network.state_dict().items()} == {n: v.shape for n, v in official.items()}
    # `max_voxels` is not official, and a box is needed by a cutoff only.
    theirs, hparams = config_from_official(entry["hparams"]).to_dict(), entry["hparams"]
    ours = values["model"].to_dict()
    free = {"max_voxels"} | ({"box"} if ours["cutoff"] is None else set())
    assert {k: v for k, v in ours.items() if k not in free} == {k: v for k, v in theirs.items() if k not in free}
    assert values["train"].learning_rate == hparams["learning_rate"]["init"]
    assert (values["train"].clip_value, values["loss"].kl) == (hparams["grad_clip"], hparams["kl_weight"])
    weights = {"structure": "structure_weight", "normal": "normal_weight", "label": "semantic_weight"}
    for term, key in weights.items():
        assert getattr(values["loss"], term) == hparams["supervision"].get(key, 20.0)


@pytest.mark.parametrize("name", DENOISER_NAMES)
def test_optimization_of_denoisers_is_the_official_one(made, name):
    values = made(name)
    folder, level = name.split("/")[0], DENOISERS.index(name.split("/")[1])
    train, (shapes, batches) = values["train"], DENOISER[folder]
    assert (values["level"], values["diffusion"].prediction) == (level, "v")
    assert (train.learning_rate, train.schedule, train.amsgrad, train.weight_decay) == (5e-5, "constant", True, 0.0)
    assert [train.rate(step, 0.0) for step in (0, 10**7)] == [1.0, 1.0]
    assert (train.clip_value, train.clip_norm, train.precision) == (0.5, 0.0, "32-true")
    assert train.ema == pytest.approx(0.9999 ** batches[level], abs=1e-6)
    assert train.batch_size * train.accumulate == shapes[level]
    if folder == "objaverse":
        assert (values["drop"], values["dropped"]) == (0.1, ("text",))


@pytest.mark.parametrize("name", DENOISER_NAMES)
def test_parameters_of_denoisers_are_the_official_ones(made, name):
    folder, level = name.split("/")[0], DENOISERS.index(name.split("/")[1])
    entry = official_networks("diffusion")[f"{OFFICIAL[folder][0]}/diffusion_{('dense', 'sparse')[level]}"]
    values, hparams = made(name), entry["hparams"]
    assert values["model"] == denoiser.config_from_official(hparams, entry["derived"]["out_channels"])
    with torch.device("meta"):
        network = UNet(values["model"])
        theirs = {n: torch.empty(shape) for n, shape in entry["state_dict"].items()}
        theirs = denoiser.denoiser_state(theirs, values["model"])
    assert {n: v.shape for n, v in network.state_dict().items()} == {n: v.shape for n, v in theirs.items()}
    count = sum(value.numel() for value in network.parameters())
    assert count == entry["n_params_unet"] + entry["n_params_cond_stage"]
    train = values["train"]
    assert (train.learning_rate, train.weight_decay) == (hparams["learning_rate"]["init"], hparams["weight_decay"])
    assert train.clip_value == hparams["grad_clip"]
    assert hparams["learning_rate"]["decay_mult"] == 1  # constant
    assert train.ema == pytest.approx(hparams["ema_decay"] ** DENOISER[folder][1][level], abs=1e-6)
    assert hparams["network"]["scheduler"]["prediction_type"] == "v_prediction"
    assert values["drop"] == hparams.get("text_embed_drop_prob", 0.1)


@pytest.mark.parametrize("preset", cascade_presets())
def test_the_parts_of_a_whole_preset_fit_each_other(preset):
    """`xcube train all` would begin: each part can be built, and is trained with the VAE of its level."""
    parts = read_preset(preset)
    assert set(OFFICIAL) <= set(cascade_presets())
    vaes = {part.level: part.options["model"] for part in parts if part.kind == "vae"}
    assert sorted(vaes) == list(range(3 if preset == "shapes" else 2))
    assert {part.level for part in parts if part.kind == "denoiser"} == set(vaes)
    for part in parts:
        if part.kind == "finetune":
            (denoiser,) = (each for each in parts if each.name == part.inputs["denoiser"])
            assert denoiser.options["sampler"].steps == 1
            continue
        model, vae = part.options["model"], vaes[part.level]
        with torch.device("meta"):
            {"vae": VAE, "denoiser": UNet, "refiner": Refiner}[part.kind](model)
        if part.kind == "denoiser":
            assert model.latent_channels == vae.latent_channels
            assert model.dense == (vae.dense_neck is not None)
            coarser = vaes.get(part.level - 1)
            assert not model.normal or (coarser is not None and coarser.normal)
            assert model.num_labels in (0, coarser.num_labels if coarser else 0)
            assert (model.text_channels > 0) == ("captions" in part.options) == ("text_model" in part.options)
        if part.kind == "refiner":
            assert (model.voxel_size, model.num_labels) == (vae.voxel_size, vae.num_labels)
    # The latents of the fine level lie on the finest grid of the coarse one.
    for coarse, fine, ratio in zip(vaes[0].voxel_sizes, vaes[1].voxel_sizes, vaes[1].factor, strict=True):
        assert coarse == pytest.approx(fine * ratio, rel=1e-9)


@pytest.mark.parametrize("level", LEVELS)
def test_the_small_networks_are_small(made, level):
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in VAE(made(f"small/{level}")["model"]).parameters())
    assert round(count / 1e6, 2) == 0.85


@pytest.mark.parametrize("name", [*(f"{folder}/refiner-1" for folder in (*OFFICIAL, "small")), "small/refiner-0"])
def test_refiners_fit_their_vae(made, name):
    folder, level = name.split("/")[0], 0 if name.endswith("-0") else 1
    values, fine = made(name), made(f"{folder}/vae-{level}")["model"]
    model, ours = values["model"], folder == "small"
    assert (values["first"], values["last"], values["level"]) == (0 if ours else 200, 400, level)
    assert values["unscaled"] != ours
    assert (model.voxel_size, model.normal, model.num_labels) == (fine.voxel_size, fine.normal, fine.num_labels)
    with torch.device("meta"):
        assert len(Refiner(model).pool) >= 2


@pytest.mark.parametrize("name", OURS)
def test_commands_in_the_comments_make_the_data_that_a_preset_needs(called, name):
    *before, last = commands(name)
    part = name.split("/")[1]
    assert last[: last.index("--data")] == ["train", part.partition("-")[0], "--config", name]
    values = called(*last)
    if not part.startswith("vae"):
        level = part[-1] if part[-1].isdigit() else "1"
        assert not before
        assert values["vae"] == called(*commands(name.replace(part, f"vae-{level}"))[-1])["out"]
        return
    options = cli.parser().parse_args(before[0]).data
    built = options[options.subcommand]
    assert built.out == values["data"]
    size = getattr(built, "size", (1.0,))
    box, model, level = as_box(built.levels, size[0] if len(size) == 1 else size), values["model"], values["level"]
    assert model.voxel_size == pytest.approx(box.voxel_size(level), rel=1e-9)
    wanted = {"normal": model.normal, "label": model.num_labels, "intensity": model.intensity}
    assert {attribute for attribute, needed in wanted.items() if needed} <= set(built.attributes)
    if model.dense_neck is not None:
        latent = zip(model.dense_neck, model.factor, strict=True)
        assert tuple(2 * half * factor for half, factor in latent) == box.shape(level)
    if model.cutoff is not None:
        assert model.box == box.shape(level)


def commands(name: str) -> list[list[str]]:
    """The command lines in the comment at the head of a preset."""
    text = (PRESETS / f"{name}.yaml").read_text().replace("\\\n#", "")
    lines = [line[1:].strip() for line in text.splitlines() if line.startswith("#     ")]
    return [shlex.split(line)[1:] for line in lines]
