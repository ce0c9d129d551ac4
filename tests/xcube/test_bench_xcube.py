"""The dense twins with which `bench.xcube` compares the networks compute what the networks do."""

import pytest
import torch

from bench import xcube as module
from bench.harness import Case, check
from bench.scenes import scene


def cases() -> dict[str, Case]:
    return {case.op: case for case in module.cases(torch.device("cpu"), quick=True)}


@pytest.mark.parametrize("part", ["step", "encode", "decode"])
def test_the_twin_of_the_vae_agrees(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    agree(f"XCube, VAE, {part}, batch of 2", monkeypatch)


def test_the_twin_of_the_refinement_network_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    agree("XCube, refinement, step, batch of 2", monkeypatch)


def agree(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HALF", 12)  # the box of dense volumes: 24^3
    case = cases()[op]
    everyone = case.prepare(scene("shell", 16))
    assert len(everyone) == 2
    check(case, everyone)
