"""Two processes, also where one of them has an empty batch, give the gradients of one process."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sparsevox as sv

WORKER = Path(__file__).parent / "ranks.py"


@pytest.mark.parametrize("counts", [(50, 0), (50, 30)], ids=["one is empty", "both have voxels"])
def test_two_ranks(counts: tuple[int, int], tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("ranks", WORKER)
    assert spec is not None
    assert spec.loader is not None
    ranks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ranks)
    commands = [[sys.executable, str(WORKER), str(rank), str(tmp_path), *map(str, counts)] for rank in range(2)]
    env = {**os.environ, "PYTHONPATH": str(WORKER.parents[1])}
    processes = [subprocess.Popen(c, stderr=subprocess.PIPE, text=True, env=env) for c in commands]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors

    model = ranks.network()
    whole = ranks.step(model, sv.stack([ranks.item(rank, counts[rank]) for rank in range(2)]))
    parameters = dict(model.named_parameters())
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == whole.keys()
        for name, value in found.items():
            # Processes average their gradients; buffers they share as they are.
            expected = whole[name] / 2 if name in parameters else whole[name]
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9, msg=name)
