"""A smoke test of each benchmark that is a separate command."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench import (
    build_dataset,
    cascade,
    cascade_vs_single,
    completion,
    edits,
    fine_level,
    networks,
    official_vae,
    pictures,
    report,
    samples_picture,
    steps,
    text,
    unseen,
    variations,
)
from bench import refiner as refiner_bench
from bench.scenes import sphere_mesh
from sparsevox import Grid, Voxels
from sparsevox.io import save_mesh, save_voxels
from sparsevox.shapes import Mesh
from tests.xcube.balls import SIDE, ball
from tests.xcube.cascades import refiner, unet, vae
from xcube.data import Box, Source, build, file_sources
from xcube.diffusion.objective import DiffusionConfig
from xcube.networks.configs import VAEConfig
from xcube.networks.pretrained import save_pretrained
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.networks.words import vocabulary_of
from xcube.pipeline.output import SampleFolder
from xcube.pipeline.pipeline import XCubePipeline
from xcube.procedural.captions import caption
from xcube.procedural.shapes import FAMILIES, make_shape, shape_voxels

for package in ("jsonargparse", "lightning", "yaml"):
    pytest.importorskip(package, reason="training from the command line")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("mesh") / "sphere.obj"
    save_mesh(Mesh(*sphere_mesh(0.3, 16)), path)
    return str(path)


def test_cascade(mesh: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cascade.main([mesh, "--preset", "demo", "--steps", "1"]) == 0
    printed = capsys.readouterr().out
    assert "denoise 1" in printed
    assert "target 12 GiB: met" in printed


def test_edits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert edits.main(["--picture", str(tmp_path / "edits.png")]) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[2].strip() for row in rows] == ["100.00 %"] * 5  # all voxels elsewhere are as before
    assert [row[3].strip() for row in rows] == ["100 %"] * 5  # no seam is open
    assert [row[4].strip() for row in rows] == ["0.0"] * 5  # nor is an edge of the surface
    assert [row[5].strip() for row in rows] == ["100 %"] * 5
    with Image.open(tmp_path / "edits.png") as picture:
        assert picture.width == 900


def test_completion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    box = Box((16, 64))
    sources = [
        Source(f"{name}-00000{n}", partial(shape_voxels, f"{name}-00000{n}", box), split="train" if n else "test")
        for name in ("chair", "table")
        for n in range(3)
    ]
    assert len(build(sources, tmp_path / "data", box, attributes=("normal", "fill")).built) == 6
    words = ["--data", str(tmp_path / "data"), "--shapes", "2", "--kinds", "half", "box", "view"]
    assert completion.main([*words, "--methods", "resampling", "--picture", str(tmp_path / "completion.png")]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    rows = {tuple(row[:2]): row[2:] for row in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)}
    assert {method for _, method in rows} == {"the observed part", "mirror", "nearest", "resampling"}
    assert rows.pop(("view", "resampling"))[0] == "-"  # no latent is known
    for (kind, method), row in rows.items():
        assert 0 < float(row[0]) <= 1
        assert row[3] == "100 %"
        assert method == "resampling" or float(row[0]) >= float(rows[kind, "the observed part"][0]) - 0.3
    with Image.open(tmp_path / "completion.png") as picture:
        assert picture.width == 900


def test_text(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The model in the package, with an untrained text encoder for all words of captions."""
    plain = XCubePipeline.from_pretrained()
    families = [family for _ in range(2) for family in FAMILIES]
    facts = [make_shape(family, text.FIRST["captions"] + n // len(FAMILIES)).facts for n, family in enumerate(families)]
    captions = [caption(family, facts[n], n).text for n, family in enumerate(families)]
    words = vocabulary_of([*captions, *text.EXAMPLES])
    before = plain.levels[0].denoiser
    after = UNet(replace(before.config, words=len(words)))
    kept = {name: value for name, value in before.state_dict().items() if not name.startswith("words.")}
    after.load_state_dict(after.state_dict() | kept)
    levels = [replace(plain.levels[0], denoiser=after, words=words, dropped=("words",)), *plain.levels[1:]]
    XCubePipeline(levels).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(text, "EPOCHS", 1)
    command = ["--model", str(tmp_path / "model"), "--judge", str(tmp_path / "judge"), "--shapes", "64", "--tests", "8"]
    command += ["--count", "16", "--guidance", "2", "--picture", str(tmp_path / "text.png")]
    assert text.main(command) == 0
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows[2:]] == ["real", "generated, seed 0"]
    assert all(0 <= float(cell.removesuffix(" %")) <= 100 for row in rows[2:] for cell in row[2:6])
    with Image.open(tmp_path / "text.png") as picture:
        assert picture.width == 900
    # The judge is kept, and right about what it was shown often enough.
    assert text.main(command[:-2]) == 0
    assert capsys.readouterr().out.splitlines()[0] == printed.splitlines()[0]


def test_the_judge() -> None:
    """A fact is found in a shape of the family with the right value, and only then."""
    answer = {("", "family"): "chair", ("chair", "arms"): "yes", ("chair", "base"): "legs"}
    assert text.agreements({"arms": "yes", "base": "swivel"}, "chair", answer) == [True, False]
    assert text.agreements({"arms": "yes"}, "sofa", answer | {("sofa", "arms"): "yes"}) == [False]
    bits = text.volume(shape_voxels("chair-000001", Box((16, 64))))
    assert int(np.unpackbits(bits).sum()) == shape_voxels("chair-000001", Box((16, 64))).num_voxels
    judge = text.Judge()
    targets = dict(zip(judge.kinds, judge.targets([{"family": "sofa", "arms": "no"}]), strict=True))
    assert targets["", "family"].tolist() == [FAMILIES.index("sofa")]
    assert targets["sofa", "arms"].tolist() == [judge.kinds["sofa", "arms"].index("no")]
    assert targets["chair", "arms"].tolist() == [-1]
    answers = judge.answers(np.stack([bits, bits]))
    assert answers[0] == answers[1]
    assert answers[0].keys() == judge.kinds.keys()


def test_variations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--strengths", "0.2", "0.9", "--count", "1", "--picture", str(tmp_path / "variations.png")]
    assert variations.main(words) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if line]
    assert [row[0] for row in rows if not row[0].startswith("-")] == [
        "strength",
        "0.2",
        "0.9",
        "interpolated",
        "noise",
        "latents",
    ]
    table = {row[0]: row[1:] for row in rows}
    assert float(table["0.2"][0]) > float(table["0.9"][0])
    assert min(float(table[blend][0]) for blend in ("noise", "latents")) > 0.95
    with Image.open(tmp_path / "variations.png") as picture:
        assert picture.width == 900


def test_official_vae(mesh: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert official_vae.main([mesh, "--resolution", "32"]) == 0
    assert "peak memory" in capsys.readouterr().out


def test_networks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(networks, "SHAPES", 2)
    for work in networks.WORK:
        assert networks.main(["--one", "denoiser-0", work, "--rounds", "1"]) == 0
        assert json.loads(capsys.readouterr().out)["seconds"] > 0


def test_build_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--shapes", "1", "--faces", "64", "--levels", "4", "8", "--samples", "100"]
    assert build_dataset.main(["--workers", "1", *options]) == 0
    assert "shapes/s" in capsys.readouterr().out


def test_refiner(mesh: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(file_sources([Path(mesh).parent]), tmp_path / "data", Box((8,)), samples=1000)
    save_pretrained(vae(0), tmp_path / "vae")
    save_pretrained(refiner(0), tmp_path / "refiner", latent_scale=1.0)
    folders = [word for name in ("data", "vae", "refiner") for word in (f"--{name}", str(tmp_path / name))]
    assert refiner_bench.main([*folders, "--split", "train", "--shapes", "1"]) == 0
    assert "above the best filter" in capsys.readouterr().out


def test_fine_level(mesh: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(file_sources([Path(mesh).parent]), tmp_path / "data", Box((8, 16)), samples=1000)
    save_pretrained(vae(1), tmp_path / "runs" / "vae-1")
    save_pretrained(unet(1), tmp_path / "runs" / "denoiser-1", latent_scale=1.0, diffusion=DiffusionConfig().to_dict())
    save_pretrained(refiner(1), tmp_path / "runs" / "refiner-1", latent_scale=1.0)
    words = ["--data", str(tmp_path / "data"), "--model", str(tmp_path / "runs"), "--split", "train"]
    assert fine_level.main([*words, "--seeds", "0", "--steps", "1"]) == 0
    printed = capsys.readouterr().out
    assert [line.split(" | ")[:2] for line in printed.splitlines()[2:]] == [
        [f"| {name}", refined]
        for name in ("encoder, means", "ddim, 1 calls", "ddpm, 50 calls")
        for refined in ("no", "yes")
    ]


def test_shapes_without_voxels_are_not_closed() -> None:
    row = fine_level.describe_row("name", False, [[0.0, 0.5, 0.5], [0, 1, 2], [0, 0, 4], [0.1, 0.1, 0.1]])
    assert row == "| name | no | 0.333 | 1.00 | 33 % | 1.3 | 33 % | 100 |"


def test_unseen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = {"chair-000001": "test", "lamp/a/1": "val", "lamp/a/2": "test", "lamp/a/3": "train"}
    sources = [Source(name, partial(ball, 3.0 + n / 2), split=split) for n, (name, split) in enumerate(named.items())]
    assert len(build(sources, tmp_path / "data", Box((SIDE,))).built) == len(named)
    save_pretrained(VAE(VAEConfig(1 / SIDE, channels=(4, 6), latent_channels=2, hidden=4)), tmp_path / "runs" / "vae-0")
    words = ["--data", str(tmp_path / "data"), "--model", str(tmp_path / "runs"), "--level", "0"]
    assert unseen.main(words) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == [
        "category",
        *("procedural: shapes", "voxel IoU", "watertight"),
        *("furniture: shapes", *rows[0][2:4]),
    ]
    counts = {row[0]: (row[1], row[4]) for row in rows[2:]}
    assert counts == dict.fromkeys(FAMILIES, ("0", "0")) | {
        "chair": ("1", "0"),
        "lamp": ("0", "2"),
        "all": ("1", "2"),
    }
    assert all(0 <= float(row[column]) <= 1 for row in rows[2:] for column in (2, 5) if row[column])


def test_cascade_vs_single(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "cascade-0" / "samples"
    folder.mkdir(parents=True)
    row = dict.fromkeys(cascade_vs_single.METRICS, 0.5)
    (folder / "evaluation.json").write_text(json.dumps({"rows": {"samples": row}}))
    (folder.parent / "budget.json").write_text(json.dumps({"minutes": 23.0, "shapes": 1400}))
    assert cascade_vs_single.main(["--out", str(tmp_path), "--seeds", "0", "--models", "cascade"]) == 0
    assert "cascade, mean" in capsys.readouterr().out


def test_samples_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures")
    folder = SampleFolder(tmp_path / "samples", {"seed": 0})
    for number, size in enumerate((3, 0, 4)):
        ijk = torch.cartesian_prod(*[torch.arange(size)] * 3)
        voxels = Voxels(Grid.from_coords(ijk, voxel_size=0.1), {"normal": torch.zeros(len(ijk), 3)})
        save_voxels(voxels, folder.file(number), half=True)
    assert samples_picture.main([str(tmp_path / "samples"), "--out", str(tmp_path / "small.png")]) == 0
    with Image.open(tmp_path / "small.png") as picture:
        assert picture.width == pictures.WIDTH


def test_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Local:
        """Answers in this process instead of a new one."""

        def __init__(self, root: Path, name: str) -> None:
            self.answers = steps.answers(name)

        def ask(self, question: str) -> Any:
            return self.answers[question]()

        def close(self) -> None:
            pass

    monkeypatch.setattr(steps, "Version", Local)
    out = tmp_path / "rows.csv"
    assert steps.main(["denoiser-0", "--before", str(steps.ROOT), "--rounds", "2", "--out", str(out)]) == 0
    assert "geometric mean of 1 networks" in capsys.readouterr().out
    ours, theirs = report.load([out])
    assert theirs.contender.startswith("commit ")
    assert ours.aten_calls == theirs.aten_calls  # the same code
