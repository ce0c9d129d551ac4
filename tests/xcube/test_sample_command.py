"""`xcube sample` and `xcube upsample` with small random networks: what is on the disk, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsevox import Grid, Voxels
from sparsevox.io import from_trimesh, load_mesh, load_voxels, save_mesh, save_voxels
from tests.xcube.cascades import halved, random
from xcube.cli import main
from xcube.data.hierarchy import Box
from xcube.diffusion.objective import DiffusionConfig
from xcube.evaluation.load import read_samples
from xcube.networks.configs import UNetConfig, VAEConfig
from xcube.networks.losses import voxel_iou
from xcube.networks.pretrained import save_pretrained
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.pipeline.options import Sample, SampleOptions
from xcube.pipeline.pipeline import XCubePipeline

trimesh = pytest.importorskip("trimesh", reason="writes the meshes")
pytest.importorskip("jsonargparse", reason="the command line")
pytest.importorskip("matplotlib", reason="paints the pictures")
pytest.importorskip("scipy", reason="makes meshes of normals")

NAMES = ("chair", "lamp")


def write(folder: Path, *, seed: int = 0, empty: bool = False) -> None:
    """Runs of two levels, 4^3 latents to 8^3 and to 16^3, as training leaves them."""
    for level in range(2):
        neck = (2, 2, 2) if level == 0 else None
        config = VAEConfig(1 / (8 << level), channels=(4, 6), latent_channels=2, hidden=4, dense_neck=neck)
        vae = halved(random(VAE(config), seed + level))
        if empty and level:
            torch.nn.init.constant_(vae.decoder.root.out.bias, -1e4)
        place: dict[str, Any] = {"levels": [8, 16], "level": level, "size": [1.0, 1.0, 1.0]}
        save_pretrained(vae, folder / f"vae-{level}", latent_scale=0.5, **place)
        unet = UNetConfig(2, dense=level == 0, channels=4, multipliers=(1, 2), attention=(2,), heads=2,
                          normal=level == 1, categories=2)  # fmt: skip
        options = {"categories": NAMES, "text_model": None, "dropped": ["category"]}
        metadata: dict[str, Any] = {"latent_scale": 0.5, "diffusion": DiffusionConfig().to_dict(), "options": options}
        save_pretrained(random(UNet(unet), 10 + seed + level), folder / f"denoiser-{level}", **metadata, **place)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write(folder)
    return folder


def run(model: Path, out: Path, *words: str) -> int:
    return main(["sample", "--model", str(model), "--out", str(out), "--steps", "2", "--quiet", *words])


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command says."""
    assert main([*words, "--quiet"]) == 2
    return capsys.readouterr().err


def test_every_shape_is_in_files_of_its_own(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "samples"
    assert run(model, out, "--count", "3", "--seed", "1", "--category", "lamp", "--guidance", "2") == 0
    look = f"view {out / 'gallery.png'}, or open {out / 'index.html'} in a browser"
    assert capsys.readouterr().out == f"3 shapes generated\n{look}\n"
    names = [f"shape-00000{n}" for n in range(3)]
    expected = {f"{name}{suffix}" for name in names for suffix in (".npz", ".glb")}
    expected |= {f"levels/0/{name}.npz" for name in names} | {"settings.json", "gallery.png", "index.html"}
    assert set(files(out)) == expected
    for name in names:
        fine, coarse = load_voxels(out / f"{name}.npz"), load_voxels(out / "levels" / "0" / f"{name}.npz")
        assert (fine.grid.voxel_size[0], coarse.grid.voxel_size[0]) == (1 / 16, 1 / 8)
        assert not (fine.grid.coarsen(2) - coarse.grid).num_voxels
        bounds = load_mesh(out / f"{name}.glb").bounds
        assert bool((bounds.abs() <= 0.6).all())
    assert "shape-000002" in (out / "index.html").read_text()
    # What xcube evaluate takes.
    for level, size in ((1, 1 / 16), (0, 1 / 8)):
        items = read_samples(out, Box((8, 16)), level)
        assert [item.voxels.grid.voxel_size[0] for item in items] == [size] * 3


def test_the_same_command_goes_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    words = ("--count", "4", "--batch_size", "2")
    assert run(model, whole, *words) == 0

    def killed(voxels: Voxels, *others: Any, **options: Any) -> None:
        if len(list(cut.glob("shape-*.glb"))) == 3 and voxels.grid.voxel_size[0] == 1 / 16:
            raise KeyboardInterrupt
        save_voxels(voxels, *others, **options)

    with monkeypatch.context() as patch:
        patch.setattr("xcube.pipeline.output.save_voxels", killed)
        assert run(model, cut, *words) == 130
    assert {p.name for p in cut.glob("shape-*.npz")} == {"shape-000000.npz", "shape-000001.npz"}
    times = {p.name: p.stat().st_mtime_ns for p in cut.glob("shape-*.npz")}
    (cut / ".0.part").write_bytes(b"half")
    capsys.readouterr()
    assert run(model, cut, *words) == 0
    assert capsys.readouterr().out.startswith("2 shapes generated, 2 already existed\n")
    assert {name: (cut / name).stat().st_mtime_ns for name in times} == times
    voxels = [name for name in files(whole) if name.endswith(".npz")]
    assert {name: files(cut).get(name) for name in voxels} == {name: files(whole)[name] for name in voxels}
    assert files(cut).keys() == files(whole).keys()
    # More of them.
    assert run(model, cut, "--count", "5", "--batch_size", "2") == 0
    assert capsys.readouterr().out.startswith("1 shapes generated, 4 already existed\n")
    assert (cut / "shape-000004.npz").is_file()


def test_other_settings_need_another_folder(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "samples"
    assert run(model, out, "--count", "2") == 0
    before = files(out)
    assert run(model, out, "--count", "2", "--seed", "1") == 2
    assert "holds shapes with other settings: seed 0, now 1; use another folder" in capsys.readouterr().err
    write(tmp_path / "other", seed=5)
    assert run(tmp_path / "other", out, "--count", "2") == 2
    assert "other settings: model" in capsys.readouterr().err
    assert files(out) == before
    assert run(model, out, "--count", "1", "--seed", "1", "--restart") == 0
    assert {p.name for p in out.glob("shape-*")} == {"shape-000000.npz", "shape-000000.glb"}
    assert json.loads((out / "settings.json").read_text())["seed"] == 1
    (out / "settings.json").write_text("{")
    assert "is damaged" in refused(capsys, "sample", "--model", str(model), "--out", str(out))
    (out / "settings.json").unlink()
    assert "or a folder of samples" in refused(capsys, "sample", "--model", str(model), "--out", str(out))


def test_more_shapes_with_other_threads(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, threads = tmp_path / "samples", list[int]()

    def stream(self: XCubePipeline, *others: Any, **options: Any) -> Iterator[Sample]:
        for generated in original(self, *others, **options):
            threads.append(torch.get_num_threads())
            yield generated

    original = XCubePipeline.stream
    monkeypatch.setattr(XCubePipeline, "stream", stream)
    assert run(model, out, "--count", "1") == 0
    settings = (out / "settings.json").read_bytes()
    assert run(model, out, "--count", "2", "--threads", "2") == 0
    assert threads == [1, 2]
    assert (out / "settings.json").read_bytes() == settings
    assert b"threads" not in settings


def test_python_keeps_its_threads(model: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        XCubePipeline.from_pretrained(model).sample(1, SampleOptions(steps=2, quiet=True))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_small_components(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, clean = tmp_path / "plain", tmp_path / "clean"
    assert run(model, plain, "--count", "2") == 0
    assert run(model, clean, "--count", "2", "--min_component", "0.1") == 0
    found = [load_voxels(clean / f"shape-00000{n}.npz").grid for n in range(2)]
    expected = XCubePipeline.from_pretrained(model).sample(2, SampleOptions(steps=2, min_component=0.1, quiet=True))
    assert all(a.same_voxels(b.finest.grid) for a, b in zip(found, expected, strict=True))
    assert not all(a.same_voxels(load_voxels(plain / f"shape-00000{n}.npz").grid) for n, a in enumerate(found))
    capsys.readouterr()
    assert run(model, plain, "--count", "2", "--min_component", "0.1") == 2
    assert "other settings: min_component 0.0, now 0.1" in capsys.readouterr().err
    assert run(model, tmp_path / "none", "--min_component", "2") == 2
    assert "min_component must lie in [0, 1), got 2" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_empty_shapes_are_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "model", empty=True)
    with pytest.warns(UserWarning, match="no voxels are left at level 1"):
        assert run(tmp_path / "model", tmp_path / "out", "--count", "2") == 0
    assert capsys.readouterr().out == "2 shapes generated\n"
    assert load_voxels(tmp_path / "out" / "shape-000001.npz").num_voxels == 0
    assert set(files(tmp_path / "out")) == {
        "settings.json", *(f"{where}shape-00000{n}.npz" for n in range(2) for where in ("", "levels/0/"))
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--threads", "0"), "threads must be at least 1, got 0"),
        (("--count", "0"), "count must be at least 1, got 0"),
        (("--seed", "-1"), "seed must not be negative"),
        (("--text", "a chair"), "text must be None for a model that takes none, got 'a chair'"),
        (("--category", "sofa"), "category must be one of chair, lamp or a number in [0, 2), got 'sofa'"),
        (("--steps", "600"), "steps of DDIM must nearly divide 1000"),
        (("--batch_size", "0"), "batch_size must lie in"),
        (("--budget", "0"), "budget must be positive"),
        (("--device", "nowhere"), "device must be available on this machine, got 'nowhere'"),
        (("--model", "nowhere"), "nowhere holds no pipeline: neither pipeline.json nor vae-0"),
    ],
)
def test_bad_words_are_refused_before_there_is_a_folder(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "samples"
    assert message in refused(capsys, "sample", "--model", str(model), "--out", str(out), *words)
    assert not out.exists()


@pytest.mark.parametrize("words", [("--count", "many"), ("--seed", "0.5"), ("--sampler", "euler"), ("--steps", "x")])
def test_words_of_the_wrong_kind(model: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["sample", "--model", str(model), *words])
    assert caught.value.code == 2
    assert words[0].strip("-") in capsys.readouterr().err


def test_a_missing_network_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    (tmp_path / "denoiser-1" / "config.json").unlink()
    message = refused(capsys, "sample", "--model", str(tmp_path), "--out", str(tmp_path / "out"))
    assert "lacks denoiser-1, the denoiser of level 1" in message


def coarse(folder: Path, **changes: Any) -> Path:
    axis = torch.arange(-3, 3)
    ijk = torch.cartesian_prod(axis, axis, axis)
    grid = Grid.from_coords(ijk, **({"voxel_size": 1 / 8, "origin": 1 / 16} | changes))
    save_voxels(Voxels(grid), folder / "cube.npz")
    return folder / "cube.npz"


def test_upsample(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = coarse(tmp_path), tmp_path / "out"
    words = ["upsample", str(file), "--model", str(model), "--out", str(out), "--steps", "2", "--quiet"]
    assert main([*words, "--level", "1", "--count", "2"]) == 0
    assert capsys.readouterr().out.startswith("2 shapes generated\n")
    first, second = (load_voxels(out / f"shape-00000{n}.npz") for n in range(2))
    given = load_voxels(file).grid
    for voxels in (first, second):
        assert voxels.num_voxels
        assert not (voxels.grid.coarsen(2) - given).num_voxels
    assert float(voxel_iou(first.grid, second.grid).min()) < 0.9
    assert main([*words, "--level", "1", "--count", "2"]) == 0
    assert capsys.readouterr().out.startswith("0 shapes generated, 2 already existed\n")
    (tmp_path / "cube.npz").unlink()
    save_voxels(Voxels(given.crop([-3] * 3, [3, 3, 2])), file)
    assert main([*words, "--level", "1"]) == 2
    assert "other settings: file" in capsys.readouterr().err


def test_upsample_of_a_mesh(model: Path, tmp_path: Path) -> None:
    save_mesh(from_trimesh(trimesh.creation.icosphere(2)), tmp_path / "ball.obj")
    words = ["upsample", str(tmp_path / "ball.obj"), "--model", str(model), "--out", str(tmp_path / "out")]
    assert main([*words, "--steps", "2", "--quiet"]) == 0
    assert load_voxels(tmp_path / "out" / "shape-000000.npz").grid.voxel_size[0] == 1 / 16


def test_shapes_that_cannot_be_upsampled(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def message(file: Path, *words: str) -> str:
        text = refused(capsys, "upsample", str(file), "--model", str(model), "--out", str(tmp_path / "out"), *words)
        assert not (tmp_path / "out").exists()
        return text

    assert "level must lie in [1, 2), got 0; level 0 starts from noise in a box" in message(
        coarse(tmp_path), "--level", "0"
    )
    assert "level must lie in [1, 2), got 2" in message(coarse(tmp_path), "--level", "2")
    assert "shape must have a voxel_size of" in message(coarse(tmp_path, voxel_size=1.0, origin=0.5))
    assert "shape must have voxel_size" in message(coarse(tmp_path, voxel_size=1.0, origin=0.5), "--level", "1")
    far = Grid.from_coords(torch.tensor([[9, 0, 0]]), voxel_size=1 / 8, origin=1 / 16)
    save_voxels(Voxels(far), tmp_path / "far.npz")
    assert "shape must lie in the box (1.0, 1.0, 1.0) around the origin, got 1 voxels outside, the first (9, 0, 0)" in (
        message(tmp_path / "far.npz")
    )
    save_voxels(Voxels(Grid.stack([far, far])), tmp_path / "two.npz")
    assert "must hold one shape, got 2" in message(tmp_path / "two.npz")
    assert "there is no such file" in message(tmp_path / "nothing.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK")
    assert "bad.npz" in message(tmp_path / "bad.npz")
    save_mesh(from_trimesh(trimesh.creation.box()), tmp_path / "box.ply")
    assert "level must lie in [1, 2) for a file without voxel size, got 2" in message(
        tmp_path / "box.ply", "--level", "2"
    )


def test_the_model_in_the_package_is_the_default(tmp_path: Path) -> None:
    """Its shapes do not depend on the seed of PyTorch, and the fine level is nearly determined by the coarse one."""
    grids = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        out = tmp_path / str(seed)
        assert main(["sample", "--out", str(out), "--category", "chair", "--count", "1", "--quiet"]) == 0
        coarse, fine = out / "levels" / "0" / "shape-000000.npz", load_voxels(out / "shape-000000.npz")
        assert (load_voxels(coarse).grid.voxel_size[0], fine.grid.voxel_size[0]) == (1 / 16, 1 / 64)
        grids.append(fine.grid)
    assert grids[0].same_voxels(grids[1])
    assert main(["upsample", str(coarse), "--out", str(tmp_path / "finer"), "--quiet"]) == 0
    again = load_voxels(tmp_path / "finer" / "shape-000000.npz").grid
    assert (again & grids[0]).num_voxels > 0.9 * (again | grids[0]).num_voxels  # stored normals have 16 bits


def test_a_mesh_with_y_up(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    low = trimesh.creation.box((1.0, 0.2, 0.6))
    low.export(tmp_path / "low.obj")
    words = ["--model", str(model), "--up", "y", "--steps", "2", "--quiet"]
    assert main(["upsample", str(tmp_path / "low.obj"), "--out", str(tmp_path / "up"), *words]) == 0
    assert json.loads((tmp_path / "up" / "settings.json").read_text())["up"] == "y"
    save_voxels(Voxels(Grid.from_coords(torch.zeros(1, 3).int(), voxel_size=1 / 8, origin=1 / 16)), tmp_path / "v.npz")
    assert main(["upsample", str(tmp_path / "v.npz"), "--out", str(tmp_path / "no"), *words]) == 2
    assert "up must be 'z' for voxels, got 'y'" in capsys.readouterr().err
