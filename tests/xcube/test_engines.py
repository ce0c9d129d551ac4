"""Engines: what they are given comes back, also if a process dies; and Ray makes the same dataset."""

import os
import sys
from functools import partial

import numpy as np
import pytest
import torch

from xcube.data import Box, Source, build, voxel_sources
from xcube.data.engines import AHEAD, run_here, run_processes, run_ray


def test_here():
    torch_threads = torch.get_num_threads()
    assert list(run_here(abs, [-1, 2])) == [(-1, 1), (2, 2)]
    assert torch.get_num_threads() == torch_threads


def test_processes():
    assert sorted(run_processes(abs, range(-30, 0), 2)) == [(n, -n) for n in range(-30, 0)]
    assert list(run_processes(abs, [], 2)) == []


def test_processes_have_one_thread_and_are_others():
    pairs = list(run_processes(eval, ["__import__('torch').get_num_threads()", "__import__('os').getpid()"], 1))
    found = dict(pairs)
    assert found["__import__('torch').get_num_threads()"] == 1
    assert found["__import__('os').getpid()"] != os.getpid()


def test_few_inputs_are_under_way():
    taken = []

    def inputs():
        for number in range(100):
            taken.append(number)
            yield number

    results = run_processes(abs, inputs(), 1)
    for done in range(1, 6):
        next(results)
        assert len(taken) <= done + AHEAD
    results.close()
    assert len(taken) < 10


def test_an_error_ends_the_run():
    with pytest.raises(ZeroDivisionError):
        list(run_processes(eval, ["1", "1 / 0", "2"], 2))


def test_a_process_that_dies():
    death = "__import__('os')._exit(3)"
    inputs = ["1", death, "2", "3", death + " or 1", "4", "5"]
    assert sorted(run_processes(eval, inputs, 2)) == sorted(
        [(each, None if "exit" in each else int(each)) for each in inputs]
    )


# --- Ray


BOX = Box((4, 16))


@pytest.fixture
def sources(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(6):
        np.save(tmp_path / "in" / f"{number}.npy", np.arange(3 * (number + 1)).reshape(-1, 3) % 7 + 4)
    return voxel_sources(tmp_path / "in", BOX)


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_ray_makes_the_same(sources, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="another engine: pip install 'sparsevox[ray]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    build(sources, tmp_path / "here", BOX, attributes=())
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        killer = Source("killer", partial(os._exit, 9))
        report = build([*sources, killer], tmp_path / "ray", BOX, attributes=(), workers=2, engine="ray")
        assert [(s.name, s.reason) for s in report.skipped] == [("killer", "worker died")]
        build(sources, tmp_path / "ray", BOX, attributes=(), workers=2, engine="ray")
        assert contents(tmp_path / "ray") == contents(tmp_path / "here")
        with pytest.raises(ZeroDivisionError):
            list(run_ray(eval, ["1", "1 / 0", "2"], 2))
    finally:
        ray.shutdown()


def test_ray_starts_and_ends_by_itself(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="another engine: pip install 'sparsevox[ray]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    assert sorted(run_ray(abs, [-3, 1], 1)) == [(-3, 3), (1, 1)]
    assert not ray.is_initialized()


def test_without_ray(sources, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"the engine 'ray' needs Ray: pip install 'sparsevox\[ray\]'"):
        build(sources, tmp_path / "out", BOX, attributes=(), workers=1, engine="ray")
