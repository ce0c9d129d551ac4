"""The dense twins with which `bench.xcube` compares the networks compute what the networks do."""

import pytest
import torch

from bench import denoise
from bench import xcube as module
from bench.harness import Case, check
from bench.scenes import scene


def cases() -> dict[str, Case]:
    return {case.op: case for case in module.cases(torch.device("cpu"), quick=True)}


@pytest.mark.parametrize("part", ["step", "encode", "decode"])
def test_the_twin_of_the_vae_agrees(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    agree(f"XCube, VAE, {part}, batch of 2", monkeypatch)


def test_the_twin_of_the_refiner_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    agree("XCube, refiner, step, batch of 2", monkeypatch)


def agree(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HALF", 12)  # the box of dense volumes: 24^3
    case = cases()[op]
    everyone = case.prepare(scene("shell", 16))
    assert len(everyone) == 2
    check(case, everyone)


@pytest.mark.parametrize("what", ["step", "sampling step"])
@pytest.mark.parametrize(("level", "scene_", "size"), [("coarse", "block", 8), ("fine", "shell", 12)])
def test_the_twin_of_a_denoiser_agrees(level: str, scene_: str, size: int, what: str) -> None:
    found = {case.op: case for case in denoise.cases(torch.device("cpu"), quick=True)}
    case = found[f"XCube, {level} denoiser, {what}, batch of 8"]
    assert (case.scene, case.size) == (scene_, size)
    everyone = case.prepare(scene(case.scene, case.size))
    assert len(everyone) == 2
    check(case, everyone)


def test_a_denoiser_depends_on_what_lies_before_its_zero_layers() -> None:
    problem = denoise.Problem(scene("shell", 12), 1)
    (latents,) = problem.sampling(problem.net)()
    torch.nn.init.zeros_(problem.net.get_parameter("middle.first.conv1.weight"))
    (others,) = problem.sampling(problem.net)()
    assert (latents - others).abs().amax() > 1e-3 * latents.abs().amax()
