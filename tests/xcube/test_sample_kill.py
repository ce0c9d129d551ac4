"""`xcube sample` killed while it works, and the folder of shapes that it leaves and takes up again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsevox import Grid, Voxels
from sparsevox.io import load_mesh, load_voxels
from sparsevox.viz import show_html
from tests.xcube.cascades import halved, random
from xcube.cli import main
from xcube.diffusion.objective import DiffusionConfig
from xcube.networks.configs import UNetConfig, VAEConfig
from xcube.networks.pretrained import save_pretrained
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.pipeline.options import Sample
from xcube.pipeline.output import SampleFolder

pytest.importorskip("jsonargparse", reason="the command line")
pytest.importorskip("matplotlib", reason="paints the pictures")
pytest.importorskip("trimesh", reason="writes the meshes")

COUNT = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two levels, 4^3 latents to 8^3 and to 16^3."""
    folder = tmp_path_factory.mktemp("model")
    for level in range(2):
        neck = (2, 2, 2) if level == 0 else None
        config = VAEConfig(1 / (8 << level), channels=(4, 6), latent_channels=2, hidden=4, dense_neck=neck)
        save_pretrained(halved(random(VAE(config), level)), folder / f"vae-{level}")
        unet = UNetConfig(2, dense=level == 0, channels=4, multipliers=(1, 2), attention=(), heads=2, normal=level > 0)
        metadata: dict[str, Any] = {"latent_scale": 0.5, "diffusion": DiffusionConfig().to_dict()}
        save_pretrained(random(UNet(unet), 10 + level), folder / f"diffusion-{level}", **metadata)
    return folder


def words(model: Path, out: Path, steps: int = 10) -> list[str]:
    options = {"model": model, "out": out, "count": COUNT, "steps": steps, "batch_size": 1}
    return ["sample", *(word for name, value in options.items() for word in (f"--{name}", str(value))), "--quiet"]


def voxels(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("shape-*.npz"))}


def meshes(folder: Path) -> set[str]:
    return {p.name for p in folder.glob("*.glb")}


def finished(folder: Path) -> set[str]:
    return {p.name for p in folder.glob("shape-*.npz")}


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What comes out if nothing happens."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(words(model, out)) == 0
    return out


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills a process, as POSIX has it")
def test_killed_while_it_samples(model: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "xcube.cli", *words(model, out)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(finished(out)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL  # it was at work
    written = finished(out)
    assert 2 <= len(written) < COUNT
    assert written == {f"shape-{n:06}.npz" for n in range(len(written))}
    # What was written is complete, with its mesh and its coarse level, and what is not whole has no name of a shape.
    for name in written:
        assert load_voxels(out / name).num_voxels
        assert load_voxels(out / "levels" / "0" / name).num_voxels
        assert len(load_mesh((out / name).with_suffix(".glb")).faces)
    left = voxels(out)
    assert left == {name: voxels(whole)[name] for name in left}
    assert not (out / "index.html").exists()
    times = {name: (out / name).stat().st_mtime_ns for name in written}
    for folder in (out, out / "levels" / "0"):  # as if it had been at a file
        (folder / ".0123.part").write_bytes(b"half")
    capsys.readouterr()
    assert main(words(model, out)) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{COUNT - len(written)} shapes generated, {len(written)} already existed\n")
    assert {name: (out / name).stat().st_mtime_ns for name in times} == times
    assert voxels(out) == voxels(whole)
    assert meshes(out) == meshes(whole)
    assert {p.name for p in out.iterdir()} == {p.name for p in whole.iterdir()}
    assert not list(out.rglob("*.part"))


def test_every_word_counts(model: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(model, whole, steps=5)) == 2
    assert "holds shapes with other settings: steps" in capsys.readouterr().err
    assert main([*words(model, tmp_path / "out"), "--guidance", "2"]) == 2
    assert "guidance must be 1 for a model that was trained without dropping conditions" in capsys.readouterr().err
    assert main([*words(model, tmp_path / "out", steps=2), "--sampler", "dpm++", "--count", "1"]) == 0
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["sampler"] == "dpm++"


@pytest.mark.parametrize("reached", ["levels/0", "glb", "npz"])
def test_a_shape_is_there_once_all_of_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reached: str) -> None:
    """Cut off while one of its files is written, as by a kill, which leaves the part."""
    folder = SampleFolder(tmp_path, {"seed": 0})
    folder.write(0, shape())

    def fails(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if reached == "glb":
            patch.setattr("xcube.pipeline.output.save_mesh", fails)
        else:
            from sparsevox.io import save_voxels

            last = tmp_path if reached == "npz" else tmp_path / reached

            def some(made: Voxels, path: Path, **options: Any) -> None:
                if path.parent == last:
                    raise KeyboardInterrupt
                save_voxels(made, path, **options)

            patch.setattr("xcube.pipeline.output.save_voxels", some)
        with pytest.raises(KeyboardInterrupt):
            folder.write(1, shape())
    again = SampleFolder(tmp_path, {"seed": 0})
    assert again.missing(3) == [1, 2]
    again.write(1, shape())
    assert again.missing(3) == [2]
    assert [v.num_voxels for v in again.levels(1)] == [v.num_voxels for v in shape().levels]


# The folder


def cube(size: float, half: int, **attributes: Any) -> Voxels:
    grid = Grid.full(-half, half, voxel_size=size, origin=size / 2)
    normal = torch.nn.functional.normalize(grid.ijk + 0.5, dim=1)
    return Voxels(grid, {"normal": normal} | attributes)


def shape(first: int = 0, levels: int = 2) -> Sample:
    return Sample(tuple(cube(1 / (8 << level), 2 << level) for level in range(first, first + levels)), first)


def nothing() -> Sample:
    whole = shape()
    return Sample(tuple(v.prune(torch.zeros(v.num_voxels, dtype=torch.bool)) for v in whole.levels))


def test_coarse_levels_have_their_numbers(tmp_path: Path) -> None:
    folder = SampleFolder(tmp_path, {})
    folder.write(3, shape(first=1, levels=3))
    assert sorted(voxels(tmp_path)) == ["levels/1/shape-000003.npz", "levels/2/shape-000003.npz", "shape-000003.npz"]
    assert [v.grid.voxel_size[0] for v in folder.levels(3)] == [1 / 16, 1 / 32, 1 / 64]


def test_beginning_anew_leaves_nothing_of_the_old_shapes(tmp_path: Path) -> None:
    folder = SampleFolder(tmp_path, {"seed": 0})
    for number in range(2):
        folder.write(number, shape())
    folder.show(2, "cubes")
    (tmp_path / "notes.txt").write_text("mine")
    assert {"gallery.png", "index.html"} <= {p.name for p in tmp_path.iterdir()}
    SampleFolder(tmp_path, {"seed": 1}, restart=True)
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"settings.json", "notes.txt"}


def test_parts_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    SampleFolder(tmp_path, {}).write(0, shape())
    for place in (tmp_path, tmp_path / "levels" / "0"):
        (place / ".0123.part").write_bytes(b"half")
    SampleFolder(tmp_path, {})
    assert not list(tmp_path.rglob("*.part"))


def test_pictures_of_shapes_of_which_some_are_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with attributes that not all of them have."""
    calls: list[Any] = []

    def shown(*shapes: Any, **options: Any) -> None:
        calls.append((options["attributes"], options["color"]))
        show_html(*shapes, **options)

    monkeypatch.setattr("xcube.pipeline.output.show_html", shown)
    folder = SampleFolder(tmp_path, {})
    fine = cube(1 / 16, 4)
    folder.write(0, Sample((cube(1 / 8, 2), fine.with_attributes(color=torch.zeros(fine.num_voxels, 3)))))
    folder.write(1, nothing())
    folder.write(2, shape())
    folder.show(3, "cubes")
    page = (tmp_path / "index.html").read_text()
    assert "shape-000000" in page
    assert "shape-000001" not in page
    assert "shape-000002" in page
    assert not (tmp_path / "shape-000001.glb").exists()
    assert calls == [(["normal"], "normal")]


def test_voxels_of_unknown_normals_have_a_mesh(tmp_path: Path) -> None:
    grid = Grid.from_coords(torch.tensor([[0, 0, 0], [3, 0, 0]]), voxel_size=1 / 8, origin=1 / 16)
    folder = SampleFolder(tmp_path, {})
    folder.write(0, Sample((Voxels(grid, {"normal": torch.zeros(2, 3)}),)))
    assert len(load_mesh(tmp_path / "shape-000000.glb").faces)
