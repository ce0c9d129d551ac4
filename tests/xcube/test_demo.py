"""The demo with the weights in the package: what it writes, what a second call does, and what it refuses."""

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
import torch

from sparsevox import Mesh, Points
from sparsevox.io import load_mesh, save_mesh, save_points, to_mesh
from tests.xcube.balls import ball
from tests.xcube.pages import Links
from xcube import cli
from xcube.commands import demo as entry
from xcube.commands import demo_folder
from xcube.commands import demo_samples as command
from xcube.commands.demo_folder import own_meshes, prepare_demo, shell_lines
from xcube.data.hierarchy import Box
from xcube.pipeline.output import SampleFolder

trimesh = pytest.importorskip("trimesh", reason="reads meshes")
for package in ("jsonargparse", "matplotlib", "scipy"):
    pytest.importorskip(package, reason="the demo")

SAMPLES = 3
BOX = Box((16, 64))


@pytest.mark.slow
def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One test, because sampling takes seconds."""
    monkeypatch.setattr(command, "SAMPLES", SAMPLES)
    mesh, out = tmp_path / "my <mesh>.glb", tmp_path / "demo"
    save_mesh(to_mesh(ball(5.0)), mesh)
    words = ["demo", "--out", str(out), "--quiet"]
    assert cli.main([*words, "--mesh", str(mesh)]) == 0
    said = capsys.readouterr().out
    assert f"open {out / 'index.html'}" in said

    for number in range(SAMPLES):
        assert len(load_mesh(out / "samples" / f"shape-{number:06}.glb").faces) > 500
    for name in ("reconstruction", "variant-0", "variant-1"):
        assert len(load_mesh(out / "yours" / quote(mesh.stem, safe="") / f"{name}.glb").faces) > 100
    page = Links((out / "index.html").read_text())
    for link in page.found:
        assert (out / unquote(link.partition("#")[0])).is_file(), link
    assert len([link for link in page.found if link.endswith(".glb")]) == SAMPLES + 3
    assert {"gallery.png", "pictures/levels.png", "samples/index.html"} <= set(page.found)
    assert "yours/my <mesh>: IoU" in page.text
    commands = [line.strip() for line in said.partition("next:\n")[2].splitlines()]
    assert len(commands) == 4
    assert all(line in page.text for line in commands)

    # A second call makes what is missing, and that alone.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    (out / "samples" / "shape-000001.npz").unlink()
    assert cli.main(words) == 0
    changed = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {"shape-000001.npz"}

    # Another seed makes other shapes, also after an interruption of that call.
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "sample", interrupted)
        assert cli.main([*words, "--seed", "1"]) == 130
    assert cli.main([*words, "--seed", "1"]) == 0
    assert json.loads((out / "samples" / "settings.json").read_text())["seed"] == 1


def test_a_shape_without_voxels_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "SAMPLES", 1)
    monkeypatch.setattr(command, "sample", lambda *_, **__: SampleFolder(tmp_path / "out" / "samples", {"seed": 0}))
    assert cli.main(["demo", "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert Links((tmp_path / "out" / "index.html").read_text()).found == []


def test_the_commands_to_try_next_are_commands(tmp_path: Path) -> None:
    parser = cli.parser()
    for line in command._next_commands(tmp_path / "shape-000000.npz"):
        words = shlex.split(line)
        parser.parse_args(words[3:] if words[1] == "-m" else words[1:])


def test_commands_name_the_program_of_this_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "env" / "bin"
    folder.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shell_lines(["demo", "--out", "a b"]) == [f"{folder / 'python'} -m xcube.cli demo --out 'a b'"]
    for place in (folder, tmp_path):  # another xcube, in the path
        shutil.copy(shutil.which("true", path="/usr/bin:/bin") or sys.executable, place / "xcube")
        (place / "xcube").chmod(0o755)
    assert shell_lines(["demo"]) == [f"{folder / 'xcube'} demo"]
    monkeypatch.chdir(tmp_path)
    assert shell_lines(["demo"]) == ["env/bin/xcube demo"]
    monkeypatch.setenv("PATH", str(folder))
    assert shell_lines(["demo"]) == ["xcube demo"]


def test_meshes_with_y_up_are_rotated(tmp_path: Path) -> None:
    flat = trimesh.creation.box((1.0, 0.2, 0.6))  # low along y
    flat.export(tmp_path / "flat.obj")
    [(lying, _)] = own_meshes([tmp_path / "flat.obj"], "z", BOX)
    [(standing, path)] = own_meshes([tmp_path / "flat.obj"], "y", BOX)
    for source, size in ((lying, (1.0, 0.2, 0.6)), (standing, (0.6, 1.0, 0.2))):
        mesh = source.load()
        assert isinstance(mesh, Mesh)
        low, high = mesh.bounds
        assert (high - low).tolist() == pytest.approx(size)
    assert (standing.name, standing.split, path) == ("yours/flat", "train", tmp_path / "flat.obj")


def test_meshes_that_cannot_be_used_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.obj").write_text("v 0 0 0\n")
    save_points(Points(torch.rand(100, 3)), tmp_path / "bare.ply")
    for name in ("empty.obj", "bare.ply"):
        assert cli.main(["demo", "--out", str(tmp_path / "demo"), "--mesh", str(tmp_path / name)]) == 2
        assert f"{name} cannot be used: " in capsys.readouterr().err
        assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--minutes", "5"], "--minutes needs --train"),
        (["--preset", "demo"], "--preset needs --train"),
        (["--seed", "-1"], "seed must not be negative, got -1"),
        (["--up", "y"], "up must be 'z' without --mesh, got 'y'"),
        (["--mesh", "nowhere.obj"], "nowhere.obj: no such file or folder"),
    ],
)
def test_what_is_refused_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert cli.main(["demo", "--out", str(tmp_path / "demo"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_a_demo_does_not_replace_one_that_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whose networks took longer; nor the other way round."""
    (tmp_path / "runs").mkdir()
    (tmp_path / demo_folder.OPTIONS).write_text('{"preset": "demo", "meshes": {}}')
    assert cli.main(["demo", "--out", str(tmp_path), "--restart"]) == 2
    assert "holds a demo with --train, and this is one without it; use another folder" in capsys.readouterr().err
    assert (tmp_path / "runs").is_dir()
    (tmp_path / demo_folder.OPTIONS).write_text('{"weights": "shapes"}')
    with pytest.raises(ValueError, match="holds a demo without --train, and this is one with it"):
        prepare_demo(tmp_path, {"preset": "demo", "meshes": {}}, restart=True)


def test_the_default_folders_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a demo that trains can follow the first one without a word about the folder."""
    found: list[Path] = []

    def called(out: Path, *_: object) -> int:
        found.append(out)
        return 0

    monkeypatch.setattr(command, "sample_demo", called)
    monkeypatch.setattr("xcube.commands.demo_training.train_demo", called)
    assert entry.demo() == entry.demo(train=True) == 0
    assert found == [Path("demo"), Path("demo-trained")]
