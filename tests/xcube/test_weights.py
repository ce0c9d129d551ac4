"""The weights in the package: they load, they are small, and they keep what they promise."""

import shutil
from pathlib import Path

import pytest
import torch

from sparsevox import Voxels
from sparsevox.io import describe, from_trimesh, to_mesh
from tests.xcube.cascades import same_bits
from xcube import cli
from xcube.data.hierarchy import Box, build_hierarchy
from xcube.geometry.components import component_sizes
from xcube.networks.losses import voxel_iou
from xcube.networks.pretrained import from_pretrained, read_config
from xcube.networks.vae import VAE
from xcube.pipeline import packaged
from xcube.pipeline.options import Sample, SampleOptions
from xcube.pipeline.packaged import DEFAULT_VAE, MODEL, packaged_model
from xcube.pipeline.pipeline import XCubePipeline
from xcube.pipeline.reconstruct import box_of, reconstruct
from xcube.procedural.shapes import FAMILIES, shape_voxels

pytest.importorskip("scipy", reason="finds the inside")

WEIGHTS = MODEL.parent
NAMES = sorted(path.parent.relative_to(WEIGHTS).as_posix() for path in WEIGHTS.rglob("config.json"))


def test_all_are_small() -> None:
    assert {f"shapes/{kind}-{level}" for kind in ("vae", "denoiser") for level in range(3)} == set(NAMES)
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*")) < 14e6


@pytest.mark.parametrize("level", [0, 1, 2])
def test_vaes_reconstruct_shapes_that_they_never_saw(level: int) -> None:
    folder = WEIGHTS / "shapes" / f"vae-{level}"
    vae = from_pretrained(folder, VAE)
    box = Box((16, 64, 128) if level == 2 else (16, 64))
    assert box_of(vae, read_config(folder)["metadata"]) == (box, level)
    pyramids = [build_hierarchy(shape_voxels(f"{name}-900001", box), box, fill=True) for name in FAMILIES]
    shapes = Voxels.stack([levels[level] for levels in pyramids])
    with torch.no_grad():
        found = reconstruct(shapes, vae).decoded
    assert float(voxel_iou(found.grid, shapes.grid).min()) > 0.9
    assert float(voxel_iou(found.grid, shapes.grid).mean()) > 0.96


def test_most_shapes_are_whole() -> None:
    """Nothing is removed. All eight are whole with AVX-512, AVX2 and neither; sums round differently elsewhere."""
    pipeline = XCubePipeline.from_pretrained()
    names = pipeline.levels[0].categories
    assert set(names) == set(FAMILIES)
    samples = pipeline.sample(len(names), SampleOptions(quiet=True), category=names)
    whole = [describe(to_mesh(each.finest)).closed and len(component_sizes(each.finest.grid)) == 1 for each in samples]
    assert sum(whole) >= len(names) - 1
    assert all(sample.finest.num_voxels > 300 for sample in samples)


def test_shapes_of_128() -> None:
    """The coarser levels are the same shapes; a sample of 64^3 can be refined later."""
    names = ["chair", "car"]
    fine = XCubePipeline.from_pretrained(resolution=128)
    coarse = XCubePipeline.from_pretrained()
    assert (coarse.resolutions, fine.resolutions) == ((16, 64), (16, 64, 128))
    expected = coarse.sample(2, SampleOptions(quiet=True), category=names)
    found = fine.sample(2, SampleOptions(quiet=True), category=names)
    again = fine.upsample(Voxels.stack([sample.finest for sample in expected]), SampleOptions(quiet=True))
    for two, three, one in zip(expected, found, again, strict=True):
        assert same_bits([two], [Sample(three.levels[:2])])
        assert three.finest.grid.voxel_size[0] == 1 / 128
        assert describe(to_mesh(three.finest)).closed
        assert len(component_sizes(three.finest.grid)) == 1
        assert one.first == 2
        assert float(voxel_iou(one.finest.grid, three.finest.grid)) > 0.99
        # The fine shape is the coarse one, with more detail: nearly all of its voxels lie in those of 64^3.
        assert float(two.finest.grid.contains(three.finest.grid.coarsen(2).coords).double().mean()) > 0.95


def test_parts_of_a_mesh_stay_apart() -> None:
    """Bridges are for generated shapes."""
    trimesh = pytest.importorskip("trimesh", reason="two meshes")
    ball = trimesh.creation.icosphere(radius=0.12).apply_translation((0, 0.26, 0))
    mesh = from_trimesh(trimesh.util.concatenate([trimesh.creation.box((0.4, 0.2, 0.2)), ball]))
    vae = from_pretrained(MODEL / DEFAULT_VAE, VAE)
    assert vae.config.bridge is not None
    voxels = build_hierarchy(mesh, Box((16, 64)))[1]
    with torch.no_grad():
        decoded = reconstruct(voxels, vae).decoded
        bridged = vae.decode(vae.encode(voxels).mode(), generated=True).voxels
    assert [len(component_sizes(each.grid)) for each in (voxels, decoded, bridged)] == [2, 2, 1]


def test_the_default_vae_is_that_of_the_last_level() -> None:
    assert from_pretrained(MODEL / DEFAULT_VAE, VAE).config == XCubePipeline.from_pretrained().levels[-1].vae.config


def test_unknown_categories_are_refused_with_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jsonargparse", reason="the command line")
    assert cli.main(["sample", "--category", "spaceship", "--out", str(tmp_path / "out")]) == 2
    known = ", ".join(XCubePipeline.from_pretrained().levels[0].categories)
    assert f"category must be one of {known} or a number in [0, 8), got 'spaceship'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the weights, which the package uses in place of its own."""
    shutil.copytree(MODEL, tmp_path / "shapes")
    monkeypatch.setattr(packaged, "MODEL", tmp_path / "shapes")
    assert packaged_model() == tmp_path / "shapes"
    return tmp_path / "shapes"


@pytest.mark.parametrize("file", ["denoiser-1/model.safetensors", "vae-0/config.json", "pipeline.json", "SHA256SUMS"])
def test_missing_weights(copied: Path, file: str) -> None:
    (copied / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"missing: .*{file}; install the package again"):
        XCubePipeline.from_pretrained()


@pytest.mark.parametrize("file", ["denoiser-0/model.safetensors", "pipeline.json", "SHA256SUMS"])
def test_damaged_weights(copied: Path, file: str) -> None:
    """One changed bit would otherwise give other shapes, and no error."""
    content = bytearray((copied / file).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / file).write_bytes(bytes(content))
    with pytest.raises((ValueError, FileNotFoundError), match="install the package again"):
        XCubePipeline.from_pretrained()


def test_a_list_of_checksums_that_was_cut_off(copied: Path) -> None:
    lines = (copied / packaged.SUMS).read_text().splitlines()
    for kept in (lines[:1], [], [*lines, "half a line"]):
        (copied / packaged.SUMS).write_text("".join(f"{line}\n" for line in kept))
        with pytest.raises(ValueError, match=rf"damaged: .*{packaged.SUMS}; install the package again"):
            XCubePipeline.from_pretrained()


def test_every_file_has_a_checksum() -> None:
    folder = packaged_model()
    lines = (folder / packaged.SUMS).read_text().splitlines()
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {line.partition("  ")[2] for line in lines} == files - {packaged.SUMS}
