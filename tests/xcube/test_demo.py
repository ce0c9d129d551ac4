"""The demo with the weights in the package: what it writes, and what it refuses."""

import json
import shlex
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

from sparsevox.io import describe, load_mesh, save_mesh, to_mesh
from tests.xcube.balls import ball
from tests.xcube.pages import Links
from xcube import cli
from xcube.commands import demo as command
from xcube.commands.demo_folder import own_meshes
from xcube.pipeline.output import SampleFolder

trimesh = pytest.importorskip("trimesh", reason="reads meshes")
for package in ("jsonargparse", "matplotlib", "scipy"):
    pytest.importorskip(package, reason="the demo")

SAMPLES = 3


def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "SAMPLES", SAMPLES)
    mesh, out = tmp_path / "my <mesh>.glb", tmp_path / "demo"
    save_mesh(to_mesh(ball(5.0)), mesh)
    words = ["demo", "--out", str(out), "--mesh", str(mesh)]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert f"open {out / 'index.html'}" in said
    assert "sample --category chair --count 4 --out chairs" in said

    meshes = [load_mesh(out / "samples" / f"shape-{n:06}.glb") for n in range(SAMPLES)]
    assert all(describe(each).closed for each in meshes)
    for name in ("reconstruction", "variant-0", "variant-1"):
        assert describe(load_mesh(out / "yours" / mesh.stem / f"{name}.glb")).closed
    page = Links((out / "index.html").read_text())
    for link in page.found:
        assert (out / unquote(link.partition("#")[0])).is_file(), link
    assert len([link for link in page.found if link.endswith(".glb")]) == SAMPLES + 3
    assert {"gallery.png", "pictures/levels.png"} <= set(page.found)
    assert "yours/my <mesh>: IoU" in page.text
    for line in said.partition("next:\n")[2].splitlines():
        assert line.strip() in page.text

    # A second call keeps the shapes; another seed needs another folder, or a restart.
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    assert cli.main(words) == 0
    assert files == {path: path.stat().st_mtime_ns for path in files}
    assert cli.main([*words, "--seed", "1"]) == 2
    assert "use another folder, or restart" in capsys.readouterr().err


def test_meshes_with_y_up_are_rotated(tmp_path: Path) -> None:
    flat = trimesh.creation.box((1.0, 0.2, 0.6))  # low along y
    flat.export(tmp_path / "flat.obj")
    [(lying, _)] = own_meshes([tmp_path / "flat.obj"])
    [(standing, path)] = own_meshes([tmp_path / "flat.obj"], "y")
    for source, size in ((lying, (1.0, 0.2, 0.6)), (standing, (0.6, 1.0, 0.2))):
        low, high = source.load().bounds
        assert (high - low).tolist() == pytest.approx(size)
    assert (standing.name, standing.split, path) == ("yours/flat", "train", tmp_path / "flat.obj")


def test_the_commands_to_try_next_are_commands(tmp_path: Path) -> None:
    parser = cli.parser()
    for line in command._next_commands(tmp_path / "shape-000000.npz"):
        parser.parse_args(shlex.split(line)[1:])


def test_its_first_shape_is_that_of_the_command_sample(tmp_path: Path) -> None:
    """Without --model, sample takes the weights in the package."""
    words = ["--category", "chair,table,sofa,lamp,airplane,car,bed,cabinet", "--count", "1", "--quiet"]
    assert cli.main(["sample", "--out", str(tmp_path / "samples"), *words]) == 0
    settings = json.loads((tmp_path / "samples" / "settings.json").read_text())
    coarse, fine = SampleFolder(tmp_path / "samples").levels(0)
    assert (coarse.grid.voxel_size[0], fine.grid.voxel_size[0]) == (1 / 16, 1 / 64)
    assert settings["category"][0] == "chair"
    assert cli.main(["upsample", str(tmp_path / "samples" / "levels" / "0" / "shape-000000.npz"), "--quiet",
                     "--out", str(tmp_path / "finer")]) == 0  # fmt: skip
    [finer] = SampleFolder(tmp_path / "finer").levels(0)
    same = (finer.grid & fine.grid).num_voxels / (finer.grid | fine.grid).num_voxels
    assert same > 0.99  # the stored attributes of the coarse level have 16 bits


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--minutes", "5"], "--minutes needs --train"),
        (["--preset", "demo"], "--preset needs --train"),
        (["--seed", "-1"], "seed must not be negative, got -1"),
        (["--mesh", "nowhere.obj"], "nowhere.obj: no such file or folder"),
    ],
)
def test_what_is_refused_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert cli.main(["demo", "--out", str(tmp_path / "demo"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_the_default_folders_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that training follows the first demo without a word about the folder."""
    monkeypatch.chdir(tmp_path)
    found: list[Path] = []

    def called(out: Path, *_: object) -> int:
        found.append(out)
        return 0

    monkeypatch.setattr(command, "_sample_demo", called)
    monkeypatch.setattr("xcube.commands.demo_training.train_demo", called)
    assert command.demo() == command.demo(train=True) == 0
    assert found == [Path("demo"), Path("demo-trained")]


def test_samples_do_not_depend_on_the_seed_of_torch(tmp_path: Path) -> None:
    grids = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        assert cli.main(["sample", "--out", str(tmp_path / str(seed)), "--count", "1", "--quiet"]) == 0
        grids.append(SampleFolder(tmp_path / str(seed)).levels(0)[-1].grid)
    assert grids[0].same_voxels(grids[1])
