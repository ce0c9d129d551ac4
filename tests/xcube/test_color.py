"""Colors: voxel models as datasets, losses and conditions with colors, cascades with them, and pictures."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sparsevox import Grid, SparseTensor, Voxels
from sparsevox.io import load_mesh, save_mesh, save_voxels, to_mesh
from tests.xcube.balls import SIDE, ball
from tests.xcube.cascades import halved, random, same_bits, tiny, unet, vae, watched
from xcube.cli import main
from xcube.data import Box, ShapeFolder, build, cube_sources
from xcube.data.colors import unit_colors
from xcube.data.converters import load_cubes
from xcube.data.sources import Source
from xcube.networks.conditions import Conditions
from xcube.networks.configs import UNetConfig, VAEConfig
from xcube.networks.losses import psnr, true_attributes
from xcube.networks.pretrained import read_config
from xcube.networks.unet import UNet
from xcube.networks.vae import VAE
from xcube.pipeline.options import SampleOptions
from xcube.pipeline.output import draw_gallery, shown_colors
from xcube.pipeline.pipeline import XCubePipeline
from xcube.training.config import TrainConfig
from xcube.training.train import train_denoiser, train_vae

RED, BLUE = (255, 0, 0), (0, 0, 255)


def half_red(radius: float = 4.0) -> Voxels:
    """A ball with a red and a blue half."""
    voxels = ball(radius)
    red = voxels.grid.ijk[:, 1] < 0
    return voxels.with_attributes(
        color=torch.where(red[:, None], torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.2, 0.8]))
    )


# Data


def test_colors_as_floats() -> None:
    assert unit_colors(torch.tensor([[0, 51, 255]], dtype=torch.uint8)).tolist() == [[0.0, pytest.approx(0.2), 1.0]]
    assert unit_colors(torch.tensor([[0.0, 0.5, 1.0]], dtype=torch.float16)).dtype == torch.float32
    with pytest.raises(ValueError, match=r"color must lie in \[0, 1\], got 0.0 to 255.0"):
        unit_colors(torch.tensor([[0.0, 3.0, 255.0]]))


def voxel_model(folder: Path, name: str = "model") -> Path:
    """Two red cubes below a blue one, as arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    ijk = np.array([[0, 0, 0], [1, 0, 0], [0, 0, 1]], dtype=np.int16)
    np.savez(folder / f"{name}.npz", ijk=ijk, color=np.array([RED, RED, BLUE], dtype=np.uint8))
    return folder


def test_voxel_models_become_cubes(tmp_path: Path) -> None:
    mesh = load_cubes(voxel_model(tmp_path) / "model.npz")
    assert len(mesh.faces) == 2 * (3 * 6 - 2 * 2)
    corners = mesh.vertices[mesh.faces.long()]
    assert corners.reshape(-1, 3).amin(0).tolist() == [-0.5, -0.5, -0.5]
    blue = mesh.face_attributes["color"][:, 2] > 0.5
    assert bool((corners[blue][:, :, 2] >= 0.5).all())
    assert mesh.face_attributes["color"].unique(dim=0).tolist() == [[0, 0, 1], [1, 0, 0]]
    # A dataset of them fills the box.
    (entry,) = build(
        cube_sources(tmp_path), tmp_path / "out", Box((8, 32)), attributes=("normal", "color"), outside="rescale"
    ).built
    assert entry.watertight
    shape = ShapeFolder[Voxels](tmp_path / "out", entry.split, level=1)[0]
    low, high = shape.grid.bounds()
    assert int((high - low).max()) >= 24
    top = shape.grid.ijk[:, 2] == int(high[0, 2]) - 1
    assert torch.allclose(shape.attributes["color"][top], torch.tensor([0.0, 0.0, 1.0]), atol=0.02)


def test_painted_files_are_voxel_models(tmp_path: Path) -> None:
    grid = Grid.from_coords(torch.tensor([[0, 0, 0], [0, 0, 1]]))
    save_voxels(Voxels(grid, {"color": torch.tensor([RED, BLUE]) / 255}), tmp_path / "two.vox")
    assert [source.name for source in cube_sources(tmp_path)] == ["two"]
    assert load_cubes(tmp_path / "two.vox").face_attributes["color"].unique(dim=0).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_bad_voxel_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must hold .vox or .npz files, got none"):
        cube_sources(tmp_path)
    np.savez(tmp_path / "gray.npz", ijk=np.zeros((1, 3), np.int16))
    with pytest.raises(ValueError, match=r"gray.npz must have colors \[1, 3\]"):
        load_cubes(tmp_path / "gray.npz")
    np.savez(tmp_path / "none.npz", ijk=np.zeros((0, 3), np.int16), color=np.zeros((0, 3), np.uint8))
    with pytest.raises(ValueError, match=r"none.npz must hold one shape, got 1 of 0 voxels"):
        load_cubes(tmp_path / "none.npz")


# Losses


@given(st.integers(0, 100), st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_the_signal_to_noise_ratio(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    coords = torch.randint(-3, 3, (count, 4), generator=generator)
    coords[:, 0] = coords[:, 0].abs()
    grid = Grid.from_coords(coords.unique(dim=0), batch_size=4)
    first, second = (torch.rand(grid.num_voxels, 3, generator=generator) for _ in range(2))
    ratios = []
    for item in range(4):
        rows = (grid.batch == item).numpy()
        if rows.any():
            ratios.append(-10 * np.log10(np.mean((first.numpy()[rows] - second.numpy()[rows]) ** 2)))
    assert float(psnr(first, second, grid)) == pytest.approx(np.mean(ratios), rel=1e-4)
    assert float(psnr(first, first, grid)) == 100
    assert float(psnr(torch.zeros(0, 3), torch.zeros(0, 3), Grid.empty(2))) == 0


def test_colors_of_larger_voxels_are_means() -> None:
    """Of the finer voxels in and around them, so that neighbors do not matter where all have one color."""
    voxels = half_red()
    coarse = voxels.grid.coarsen(2)
    found = true_attributes(voxels, coarse, {"color"})["color"]
    deep = coarse.ijk[:, 1].abs() >= 2
    red = coarse.ijk[:, 1] < 0
    expected = torch.where(red[:, None], torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.2, 0.8]))
    assert torch.allclose(found[deep], expected[deep], atol=1e-5)
    between = found[~deep]
    assert bool((between[:, 0] < 0.85).any())
    assert bool((found.min(0).values >= torch.tensor([0.1, 0.1, 0.1]) - 1e-5).all())
    # Those of voxels of the same size are exact.
    assert torch.equal(true_attributes(voxels, voxels.grid, {"color"})["color"], voxels.attributes["color"])


# Networks


def test_the_denoiser_sees_colors() -> None:
    net = random(UNet(UNetConfig(2, channels=4, multipliers=(1,), attention=(), heads=2, color=True)), 3)
    assert net.config.conditions == ("color",)
    assert net.config.in_channels == 5
    voxels = half_red()
    x = voxels.grid
    latents = SparseTensor(x, torch.randn(x.num_voxels, 2, generator=torch.Generator().manual_seed(0)))
    first = net(latents, 500.0, Conditions.from_voxels(voxels, net.config)).feats
    other = net(latents, 500.0, Conditions(color=1 - voxels.attributes["color"])).feats
    assert float((first - other).detach().abs().max()) > 1e-3
    gone = Conditions(color=voxels.attributes["color"]).drop(torch.tensor([True]), x)
    assert gone.color is not None
    assert not gone.color.any()
    with pytest.raises(ValueError, match=r"conditions.color must have shape"):
        net(latents, 500.0, Conditions(color=torch.zeros(3, 3)))


def pipeline_with_colors() -> XCubePipeline:
    first = halved(
        random(
            VAE(VAEConfig(1 / 8, channels=(4, 6), latent_channels=2, hidden=4, dense_neck=(2, 2, 2), color=True)), 0
        ),
        0.5,
    )
    second = vae(1, color=True)
    return XCubePipeline([tiny(0, vae=first), tiny(1, vae=second, denoiser=unet(1, color=True))])


def test_colors_go_from_level_to_level(tmp_path: Path) -> None:
    pipeline, seen = pipeline_with_colors(), list[Conditions]()
    options = SampleOptions(steps=2, quiet=True)
    with watched(pipeline.levels[1].denoiser, lambda args: seen.append(args[2])):
        (sample,) = pipeline.sample(1, options)
    assert seen[0].color is not None
    assert torch.equal(seen[0].color, sample.levels[0].attributes["color"])
    assert bool(((sample.finest.attributes["color"] >= 0) & (sample.finest.attributes["color"] <= 1)).all())
    pipeline.save_pretrained(tmp_path)
    assert same_bits([sample], XCubePipeline.from_pretrained(tmp_path).sample(1, options))
    # From coarse voxels with colors as bytes.
    coarse = sample.levels[0]
    bytes_ = coarse.with_attributes(color=(coarse.attributes["color"] * 255).round().byte())
    assert pipeline.upsample(bytes_, options)[0].finest.num_voxels > 0
    with pytest.raises(ValueError, match=r"shape must have the attributes \['normal', 'color'\]"):
        pipeline.upsample(Voxels(coarse.grid, {"normal": coarse.attributes["normal"]}), options)
    with pytest.raises(ValueError, match="denoiser takes color, which the VAE of the level before does not decode"):
        XCubePipeline([tiny(0), pipeline.levels[1]])
    # A mesh file has the colors of the sample.
    mesh = to_mesh(sample.finest)
    save_mesh(mesh, tmp_path / "mesh.glb")
    loaded = load_mesh(tmp_path / "mesh.glb")
    assert torch.allclose(loaded.vertex_attributes["color"], mesh.vertex_attributes["color"], atol=0.02)


def test_training_with_colors(tmp_path: Path) -> None:
    sources = [
        Source(f"ball-{n}", partial(half_red, 3.0 + 0.2 * n), split="val" if n == 2 else "train") for n in range(4)
    ]
    build(sources, tmp_path / "data", Box((8, SIDE)), attributes=("normal", "color"), workers=0)
    train = TrainConfig(steps=12, batch_size=3, warmup=1, val_every=12, learning_rate=2e-2, ema=0.0)
    model = VAEConfig(1 / SIDE, channels=(8, 8), latent_channels=4, hidden=8, color=True)
    trained = train_vae(tmp_path / "data", tmp_path / "vae", model=model, train=train, quiet=True)
    assert trained.config.color
    assert json.loads((tmp_path / "vae" / "metrics.json").read_text())["psnr"] > 5
    net = UNetConfig(4, channels=8, multipliers=(1,), attention=(), heads=2, normal=True, color=True)
    options: dict[str, Any] = {"model": net, "train": train, "quiet": True}
    train_denoiser(tmp_path / "data", tmp_path / "run", tmp_path / "vae", color_noise=0.1, **options)
    assert read_config(tmp_path / "run")["metadata"]["options"]["color_noise"] == 0.1
    for value, message in ((-0.1, "color_noise must not be negative"), (0.1, "color_noise must be 0 for a model that")):
        plain = net if value < 0 else UNetConfig(4, channels=8, multipliers=(1,), attention=(), heads=2, normal=True)
        with pytest.raises(ValueError, match=message):
            train_denoiser(
                tmp_path / "data", tmp_path / "no", tmp_path / "vae", color_noise=value, **options | {"model": plain}
            )


# Pictures


def test_pictures_have_the_colors_of_the_voxels(tmp_path: Path) -> None:
    voxels = half_red()
    shown = shown_colors(voxels)
    assert shown is not None
    assert torch.equal(shown, voxels.attributes["color"])
    assert shown_colors(Voxels(voxels.grid)) is None
    draw_gallery({"ball": voxels}, tmp_path / "ball.png")
    pixels = np.asarray(Image.open(tmp_path / "ball.png").convert("RGB")).astype(int)
    red = (pixels[:, :, 0] > 2 * pixels[:, :, 1]) & (pixels[:, :, 0] > 2 * pixels[:, :, 2])
    blue = (pixels[:, :, 2] > 2 * pixels[:, :, 0]) & (pixels[:, :, 2] > 2 * pixels[:, :, 1])
    assert red.sum() > 1000
    assert blue.sum() > 1000


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jsonargparse", reason="the command line")
    folder, out = voxel_model(tmp_path / "in"), tmp_path / "out"
    command = ["data", "build", str(folder), "--layout", "cubes", "--levels", "8,16", "--outside", "rescale"]
    command += ["--attributes", "normal,color", "--samples", "5000", "--workers", "0", "--out", str(out)]
    assert main(command) == 0
    assert "1 shapes built" in capsys.readouterr().out
