"""Cascades that are loaded up to one of their levels."""

import json
from pathlib import Path
from typing import Any

import pytest

from sparsevox.io import from_trimesh, load_voxels, save_mesh
from tests.xcube.cascades import same_bits, tiny, vae
from xcube.cli import main
from xcube.data.hierarchy import Box
from xcube.pipeline.options import SampleOptions
from xcube.pipeline.packaged import INDEX
from xcube.pipeline.pipeline import XCubePipeline

QUIET = SampleOptions(steps=2, quiet=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three levels, of 8^3, 16^3 and 32^3 voxels."""
    folder = tmp_path_factory.mktemp("model")
    XCubePipeline([tiny(0), tiny(1), tiny(2)]).save_pretrained(folder)
    return folder


def with_default(model: Path, out: Path, resolution: Any) -> Path:
    """The same cascade, with a resolution that its index names."""
    out.mkdir()
    for entry in model.iterdir():
        (out / entry.name).symlink_to(entry)
    (out / INDEX).unlink()
    (out / INDEX).write_text(json.dumps(json.loads((model / INDEX).read_text()) | {"resolution": resolution}))
    return out


def test_finer_levels_are_left_out(model: Path) -> None:
    full = XCubePipeline.from_pretrained(model)
    assert full.resolutions == (8, 16, 32)
    expected = full.sample(2, QUIET)
    for number, resolution in enumerate(full.resolutions, 1):
        part = XCubePipeline.from_pretrained(model, resolution=resolution)
        assert part.resolutions == full.resolutions[:number]
        for less, more in zip(part.sample(2, QUIET), expected, strict=True):
            assert same_bits([less], [type(more)(more.levels[:number])])


def test_a_folder_can_name_the_default(model: Path, tmp_path: Path) -> None:
    folder = with_default(model, tmp_path / "model", 16)
    assert XCubePipeline.from_pretrained(folder).resolutions == (8, 16)
    assert XCubePipeline.from_pretrained(folder, resolution=32).resolutions == (8, 16, 32)
    assert XCubePipeline.from_pretrained(folder, resolution=8).resolutions == (8,)


def test_the_box_of_a_cascade() -> None:
    """A level is thin if the VAE of the next finer one does not dilate its latent grid."""
    assert XCubePipeline([tiny(0), tiny(1), tiny(2)]).box == Box((8, 16, 32))
    plain = tiny(2, vae=vae(2, dilation="none"))
    assert XCubePipeline([tiny(0), tiny(1), plain]).box == Box((8, 16, 32), thin=(16,))


def test_folders_of_runs(model: Path, tmp_path: Path) -> None:
    """Without an index, the networks record no box; the first level tells it."""
    for entry in model.iterdir():
        if entry.is_dir():
            (tmp_path / entry.name).symlink_to(entry)
    assert XCubePipeline.from_pretrained(tmp_path, resolution=16).resolutions == (8, 16)


def test_resolutions_that_no_level_has(model: Path, tmp_path: Path) -> None:
    for bad in (0, 4, 17, 64, -8):
        with pytest.raises(ValueError, match=rf"resolution must be one of 8, 16, 32 for .*, got {bad}"):
            XCubePipeline.from_pretrained(model, resolution=bad)
    with pytest.raises(TypeError, match="resolution must be an int, got '16'"):
        XCubePipeline.from_pretrained(model, resolution="16")  # type: ignore[arg-type]
    for number, named in enumerate((64, "16", [16])):
        with pytest.raises(ValueError, match="resolution must be one of 8, 16, 32"):
            XCubePipeline.from_pretrained(with_default(model, tmp_path / str(number), named))


def test_the_command_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trimesh = pytest.importorskip("trimesh", reason="a mesh")
    for name in ("jsonargparse", "matplotlib", "scipy"):
        pytest.importorskip(name, reason="the command line, the pictures and the meshes")
    words = ["--model", str(model), "--steps", "2", "--quiet", "--count", "1"]
    out = tmp_path / "samples"
    assert main(["sample", *words, "--out", str(out), "--resolution", "16"]) == 0
    shape = load_voxels(out / "shape-000000.npz")
    assert shape.grid.voxel_size[0] == 1 / 16
    # A sample is the start of the next level.
    finer = tmp_path / "finer"
    assert main(["upsample", str(out / "shape-000000.npz"), *words, "--out", str(finer), "--resolution", "32"]) == 0
    assert load_voxels(finer / "shape-000000.npz").grid.voxel_size[0] == 1 / 32
    save_mesh(from_trimesh(trimesh.creation.box()), tmp_path / "box.ply")
    edit = ["edit", str(tmp_path / "box.ply"), "--delete", "x=0.25:", *words, "--out", str(tmp_path / "edited")]
    assert main([*edit, "--resolution", "16"]) == 0
    assert load_voxels(tmp_path / "edited" / "shape-000000.npz").grid.voxel_size[0] == 1 / 16
    # The folder belongs to one resolution.
    capsys.readouterr()
    assert main(["sample", *words, "--out", str(out), "--resolution", "8"]) == 2
    assert "resolution" in capsys.readouterr().err
    assert main(["sample", *words, "--out", str(tmp_path / "new"), "--resolution", "48"]) == 2
    assert "resolution must be one of 8, 16, 32" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
