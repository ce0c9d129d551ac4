import importlib
from dataclasses import replace
from itertools import product

import pytest
import torch

from bench import __main__ as command
from bench import baseline
from bench.harness import Case, Contender, Wanted, WrongAnswer, check, close, judge, measure
from bench.report import Row
from bench.scenes import TINY, scene

DATE = "2026-01-01T00:00:00+00:00"


def contender(name: str, value: float = 1.0, **options) -> Contender:
    return Contender(name, lambda: torch.full((3,), value), torch.as_tensor, **options)


def case(*contenders: Contender) -> Case:
    return Case("op", "block", TINY["block"], lambda coords: contenders)


def rows(*times: float) -> list[Row]:
    pytest.importorskip("pytest_benchmark")
    everyone = [contender(str(number)) for number in range(len(times))]
    found = measure(case(*everyone), scene("block", 2), [1], 1, True, DATE)
    return [replace(row, median_ms=time, peak_mb=time) for row, time in zip(found, times, strict=True)]


@pytest.mark.parametrize("name", command.BENCHES)
def test_cases_name_themselves_once(name):
    module = importlib.import_module(f"bench.{name}")
    for device in ("cpu", "cuda"):
        for quick in (False, True):
            cases = [(c.op, c.scene, c.size, c.dtype) for c in module.cases(torch.device(device), quick)]
            assert cases
            assert len(set(cases)) == len(cases)


def test_contenders_that_disagree_are_not_timed():
    with pytest.raises(WrongAnswer, match="b and a differ"):
        check(case(), [contender("a"), contender("b", 2.0)])


def test_a_result_that_is_remembered_is_not_timed():
    kept = torch.ones(3)
    with pytest.raises(WrongAnswer, match="a remembers its result"):
        check(case(), [Contender("a", lambda: kept, torch.as_tensor)])


def test_who_is_wrong_with_more_threads_is_left_out_there():
    pytest.importorskip("pytest_benchmark")
    threads = torch.get_num_threads()
    try:
        found = measure(case(contender("a"), contender("b", max_threads=1)), scene("block", 2), [1, 2], 1, True, DATE)
    finally:
        torch.set_num_threads(threads)
    assert [(row.contender, row.threads) for row in found] == [("a", 1), ("b", 1), ("a", 2)]


@pytest.mark.parametrize(
    ("wanted", "met"),
    [
        (Wanted("speed", ">=", 4), True),
        (Wanted("speed", ">=", 4.1), False),
        (Wanted("memory", "<=", 0.25), True),
        (Wanted("memory", "<=", 0.2), False),
    ],
)
def test_what_is_wanted_beside_another(wanted, met):
    found = rows(2.0, 8.0)
    judge(case(), [contender("0"), contender("1", beside=wanted)], found)
    assert (found[0].wanted, found[0].met) == ("", None)
    assert (found[1].wanted, found[1].met) == (f"0: {wanted}", met)


def test_close_looks_at_the_largest_difference():
    a = torch.linspace(0, 100, 1000)
    agree = close(1e-3)
    assert agree(a, a + 0.05)
    assert not agree(a, a.clone().index_fill_(0, torch.tensor([3]), 1.0))
    assert not agree(a, a.clone().index_fill_(0, torch.tensor([3]), torch.nan))
    assert not agree(a, a[:, None])


@pytest.mark.parametrize("name", ["shell", "lidar", "batch"])
def test_strided_lists(name):
    voxels = set(map(tuple, scene(name, TINY[name]).tolist()))
    steps = list(product((-1, 0, 1), repeat=3))
    reached = {
        (b, (x - dx) // 2, (y - dy) // 2, (z - dz) // 2)
        for b, x, y, z in voxels
        for dx, dy, dz in steps
        if (x - dx) % 2 == (y - dy) % 2 == (z - dz) % 2 == 0
    }
    keys = baseline.build(torch.tensor(sorted(voxels)))
    coarse = baseline.strided(keys)
    table = baseline.strided_table(keys, coarse, baseline.TAPS)
    rows, found = baseline.decode(keys).tolist(), baseline.decode(coarse).tolist()
    assert set(map(tuple, found)) == reached
    for (dx, dy, dz), column in zip(steps, table.tolist(), strict=True):
        for (b, x, y, z), row in zip(found, column, strict=True):
            there = (b, 2 * x + dx, 2 * y + dy, 2 * z + dz)
            assert (tuple(rows[row]) == there) if row >= 0 else (there not in voxels)
