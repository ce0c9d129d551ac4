"""What `bench.cascade` measures: a cascade that makes the shape it is led by, and the memory and time of its parts."""

from pathlib import Path

import pytest
import torch

from bench.cascade import BETWEEN, Led, Meter, configs, levels_of, main, measured, pipeline_of
from bench.scenes import sphere_mesh
from sparsevox import SparseTensor
from sparsevox.io import save_mesh
from sparsevox.shapes import Mesh
from xcube.diffusion.samplers import SamplerConfig
from xcube.networks.configs import VAEConfig
from xcube.networks.vae import VAE


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("mesh") / "sphere.obj"
    save_mesh(Mesh(*sphere_mesh(0.3, 16)), path)
    return str(path)


def test_the_cascade_makes_the_shape(mesh: str) -> None:
    networks = configs("demo")
    shape = levels_of(mesh, [vae for vae, _, _ in networks])
    pipeline = pipeline_of(networks, shape, torch.device("cpu"))
    assert pipeline.resolutions == (16, 64)
    sample, meter = measured(pipeline, steps=2)
    for made, real in zip(sample.levels, shape, strict=True):
        assert made.grid.same_voxels(real.grid)
    assert {name: len(part.seconds) for name, part in meter.parts.items() if name != BETWEEN} == {
        "denoise 0": 4, "decode 0": 1, "refine 0": 1, "denoise 1": 4, "decode 1": 1, "refine 1": 1,
    }  # fmt: skip
    assert meter.parts["denoise 0"].rows == 4**3
    assert meter.parts["denoise 1"].rows == shape[0].num_voxels
    assert meter.parts["refine 1"].rows == shape[1].grid.dilate(1).num_voxels
    assert all(min(part.seconds) > 0 and part.peak > 1 << 20 for part in meter.parts.values())


def test_released_networks_have_the_released_sizes() -> None:
    (coarse, first, _), (fine, second, _) = configs("shapenet-car")
    assert (coarse.latent_channels, fine.latent_channels) == (first.latent_channels, second.latent_channels)
    assert [unet.channels * unet.multipliers[-1] for unet in (first, second)] == [768, 512]
    assert SamplerConfig.official_defaults(guidance=2.0).weight != 1  # two calls a step


@pytest.mark.parametrize("dilation", ["none", "all"])
def test_what_leads_a_decode_is_the_truth_whatever_the_weights(mesh: str, dilation: str) -> None:
    torch.manual_seed(0)
    config = VAEConfig.from_dict({"voxel_size": 1 / 64, "channels": (4, 4), "hidden": 4, "dilation": dilation})
    (shape,) = levels_of(mesh, [VAEConfig.from_dict(config.to_dict() | {"dense_neck": (16, 16, 16)})])
    led = Led(config, shape.grid).eval()
    latent = led.latent_grid(shape.grid)
    noise = SparseTensor(latent, torch.randn(latent.num_voxels, config.latent_channels))
    assert led.decode(noise).voxels.grid.same_voxels(shape.grid)
    assert not VAE.decode(led, noise).voxels.grid.same_voxels(shape.grid)


def test_a_peak_belongs_to_the_part_that_needed_it() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux sets a high-water mark back")
    meter = Meter(torch.device("cpu"))
    meter.turn("large")
    torch.ones(1 << 26)  # 256 MiB, gone at once
    meter.turn("small")
    meter.turn(BETWEEN)
    assert meter.parts["large"].peak - meter.parts["small"].peak > 200 << 20


def test_the_command_prints_levels_parts_and_the_peak(mesh: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([mesh, "--preset", "demo", "--steps", "1"]) == 0
    printed = capsys.readouterr().out
    assert "denoise 1" in printed
    assert "that are wanted: met" in printed


def test_a_preset_that_is_none(mesh: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([mesh, "--preset", "tiny"])
    assert "invalid choice: 'tiny'" in capsys.readouterr().err
