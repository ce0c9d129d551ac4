"""The schedulers of the original code: noise, velocities, steps, whole loops, averages."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from sparsevox import Grid, SparseTensor
from tests.goldens import GoldenFile, close
from xcube.diffusion.objective import Diffusion, DiffusionConfig
from xcube.diffusion.samplers import SamplerConfig, Solver
from xcube.diffusion.schedule import official_schedule
from xcube.training.callbacks import WeightEMA

# The cumulative product of 1 - beta: the square of the factor of the clean latents.
KEPT = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)


class File(GoldenFile):
    """The recorded arrays, and the denoiser that the recorded loops ran with."""

    def model(self, x: Tensor, t: Tensor) -> Tensor:
        return 0.3 * x + 0.1 * self["model_output"] * math.cos(0.01 * float(t))


@pytest.fixture(scope="module")
def file() -> File:
    return File("scheduler")


def test_the_schedule(file: File) -> None:
    schedule = official_schedule()
    close(schedule.betas, file["betas"])
    close(schedule.alphas_cumprod, file["alphas_cumprod"])
    assert torch.equal(schedule.timesteps, file["ddpm/timesteps_default"])
    for steps in (20, 50, 100):
        assert torch.equal(
            Solver(SamplerConfig.official_defaults(steps=steps), DiffusionConfig()).times,
            file[f"ddim/timesteps_{steps}"],
        )
    assert SamplerConfig.official_defaults().eta == float(file["ddim/default_eta_is_1"])


def test_noise_and_velocity_of_the_original(file: File) -> None:
    """The file has a time per row; here each row is the one voxel of a grid of the batch, and each grid has a time."""
    coords = torch.tensor([[n, 0, 0, 0] for n in range(64)])
    latents, diffusion = SparseTensor(Grid.from_coords(coords), file["sample"]), Diffusion()
    t = file["train/timesteps"]
    close(diffusion.add_noise(latents, file["noise"], t).feats, file["train/add_noise"])
    close(diffusion.target(latents, file["noise"], t), file["train/velocity_target"])
    for t_name in ("ddim/n100/t990", "ddim/n100/t500", "ddpm/t999", "ddpm/t1", "ddpm/t0"):
        time = int(t_name.split("/t")[1])
        close(diffusion.denoised(latents, file["model_output"], time).feats, file[f"{t_name}/x0"])


@pytest.mark.parametrize("eta", [0, 1])
def test_steps_of_ddim(file: File, eta: int) -> None:
    solver = Solver(SamplerConfig.official_defaults(eta=float(eta)), DiffusionConfig())
    for t in (990, 500, 10, 0):
        found = solver.step(file["model_output"], torch.tensor(t), file["sample"], file["noise"])
        close(found, file[f"ddim/n100/t{t}/eta{eta}/prev"])
    spread = (1 - KEPT[490]) / (1 - KEPT[500]) * (1 - KEPT[500] / KEPT[490])
    assert float(file["ddim/n100/t500/variance"]) == pytest.approx(float(spread), rel=1e-4)


@pytest.mark.parametrize("eta", [0, 1])
def test_loops_of_ddim(file: File, eta: int) -> None:
    solver, x = Solver(SamplerConfig.official_defaults(steps=20, eta=float(eta)), DiffusionConfig()), file["noise"]
    for n, t in enumerate(solver.times):
        noise = file["ddim/loop20/variance_noise"][n] if eta else None
        x = solver.step(file.model(x, t), t, x, noise)
        if n in (0, 9, 18, 19):
            close(x, file[f"ddim/loop20/eta{eta}/x_after_{n}"])


def test_steps_of_ancestral_sampling(file: File) -> None:
    solver = Solver(SamplerConfig("ddpm", steps=1000), DiffusionConfig())
    for t in (999, 500, 1):
        found = solver.step(file["model_output"], torch.tensor(t), file["sample"], file["ddpm/noise"])
        close(found, file[f"ddpm/t{t}/prev"])
    # The last step of the original code multiplies by beta / (1 - kept): 1 but for rounding, in float32 0.9998.
    found = solver.step(file["model_output"], torch.tensor(0), file["sample"], file["ddpm/noise"])
    close(found, file["ddpm/t0/x0"])
    close(found * (file["betas"][0] / (1 - file["alphas_cumprod"][0])), file["ddpm/t0/prev"])


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("steps", [10, 25])
def test_loops_of_dpm_solver(file: File, order: int, karras: bool, steps: int) -> None:
    name = f"dpmpp/order{order}/karras{int(karras)}/n{steps}"
    if karras and order == 3 and steps == 25:
        assert bool(file[f"{name}/x_after_24"].isnan().all())
        with pytest.raises(ValueError, match="steps must be below 15 with official, karras and order 3"):
            SamplerConfig("dpm++", steps, order=order, karras=karras, official=True)
        return
    sampler = SamplerConfig("dpm++", steps, order=order, karras=karras, official=True)
    solver, x = Solver(sampler, DiffusionConfig()), file["noise"]
    assert torch.equal(solver.times, file[f"{name}/timesteps"])
    for n, t in enumerate(solver.times):
        x = solver.step(file.model(x, t), t, x, None)
        if n in (0, 2, steps - 1):
            close(x, file[f"{name}/x_after_{n}"])


def test_the_average_of_weights(file: File) -> None:
    module = torch.nn.Linear(3, 2, bias=False)
    average: Any = AveragedModel(module, **WeightEMA(0.9999)._kwargs)
    module.weight.data = file["ema/params"][0].clone()
    average.update_parameters(module)  # the first one is a copy
    for n in range(20):
        module.weight.data = file["ema/params"][n + 1].clone()
        average.update_parameters(module)
        close(average.module.weight.detach(), file["ema/shadow"][n])
