"""A smoke test of each benchmark of `python -m bench`: names are unique, and the contenders of a small case agree."""

import importlib
from dataclasses import replace

import pytest
import torch

from bench import __main__ as command
from bench.harness import Case, Contender, WrongAnswer, check_results
from bench.scenes import TINY, scene


@pytest.mark.parametrize("name", command.BENCHES)
def test_names_of_cases_are_unique(name):
    module = importlib.import_module(f"bench.{name}")
    for device in ("cpu", "cuda"):
        cases = list(module.cases(torch.device(device), quick=True))
        names = [(case.op, case.scene, case.size, case.dtype) for case in cases]
        assert names or (name, device) == ("host", "cuda")
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", [name for name in command.BENCHES if name != "host"])  # that one: test_host.py
def test_contenders_agree(name, monkeypatch):
    module = importlib.import_module(f"bench.{name}")
    case = next(module.cases(torch.device("cpu"), quick=True))
    if name == "xcube":
        monkeypatch.setattr(module, "HALF", 12)  # of the box of the dense volumes
    size = case.size if name == "denoise" else TINY[case.scene]
    check_results(replace(case, size=size), case.prepare(scene(case.scene, size)))


def test_wrong_and_cached_results_are_not_timed():
    def contender(value: float) -> Contender:
        return Contender(f"{value}", lambda: torch.full((3,), value), torch.as_tensor)

    case = Case("op", "block", TINY["block"], lambda coords: ())
    check_results(case, [contender(1), contender(1)])
    with pytest.raises(WrongAnswer, match="differ"):
        check_results(case, [contender(1), contender(2)])
    kept = torch.ones(3)
    with pytest.raises(WrongAnswer, match="caches its result"):
        check_results(case, [Contender("a", lambda: kept, torch.as_tensor)])
