"""What `bench.stages` measures: training and sampling of every part of the demo, here with two shapes."""

from dataclasses import replace

import pytest
import torch

from bench import stages
from bench.stages import WORK, Stage, main, measure
from xcube.training.jobs import read_preset

PARTS = tuple(part.name for part in read_preset("demo"))


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "SHAPES", 2)


def stage_of(name: str) -> Stage:
    stage = Stage("demo", name, torch.device("cpu"))
    stage.part = replace(stage.part, train=replace(stage.part.train, batch_size=2))
    return stage


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("name", PARTS)
def test_training_gives_gradients_and_sampling_is_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_of(name)
    module = stage.trained(stage.shapes(2))
    monkeypatch.setattr(stage, "trained", lambda batch: module)
    work = stage.training()
    work.run()
    gradients = [parameter.grad for parameter in module.net.parameters()]
    assert any(gradient is not None and bool(gradient.any()) for gradient in gradients)
    assert (work.steps, work.shapes) == (1, 2)
    found = measure(stage.sampling(), 1, torch.device("cpu"))
    assert found["shapes"] == 2
    assert found["seconds"] > 0
    assert found["peak"] >= found["rest"] > 1


@pytest.mark.usefixtures("two")
def test_a_step_of_the_sampler_is_one_of_ten() -> None:
    work = stage_of("denoiser-0").sampling()
    assert work.steps == stages.STEPS
    assert work.rows == 2 * 4**3


def test_the_command_prints_a_row_for_each_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"seconds": 0.5, "peak": 1.0, "rest": 1.0, "shapes": 2, "rows": 3}
    monkeypatch.setattr(stages, "alone", lambda *_: found)
    assert main([]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert [tuple(row.split()[:2]) for row in rows] == [(part, work) for work in WORK for part in PARTS]
    assert {len(head), *map(len, rows)} == {len(head)}
    assert rows[0].split()[4:6] == ["500.0", "2.00"]


def test_a_process_of_its_own_is_asked_for_one_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["vae-2", "training"], ["vae-0", "work"]):
        with pytest.raises(SystemExit):
            main(["--alone", *wrong])
        assert "--alone must be one of vae-0" in capsys.readouterr().err
