"""Every kernel, compiled for sm_80 and sm_90, runs in the interpreter of PTX and agrees with the reference.

The schedule is random: the order of programs and warps, of atomics, and of stores that collide follows from the seed.
Races, bad addresses and missing waits fail a test even where the results are right.
"""

import re
from collections.abc import Callable, Iterator
from importlib import import_module
from inspect import getsource
from typing import Any

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.aot

triton = pytest.importorskip("triton", reason="kernels need Triton")
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set: this process interprets kernels", allow_module_level=True)

from sparsevox import ptx  # noqa: E402  (only where kernels are compiled)
from sparsevox.kernels import _conv_configs as configs  # noqa: E402  (as above)
from sparsevox.kernels.conv import conv, conv_weight  # noqa: E402  (as above)
from tests.ptx.cases import BRAIN, CONVS, DOUBLE, FAMILIES, HALF, SINGLE, Case, Conv, conv_problem  # noqa: E402  (as above)
from tests.test_aot import CONV_KERNELS, OTHER_POINTEES, flags_of, kernels, launches  # noqa: E402  (as above)
from tests.test_conv_kernels import TOLERANCES, expected_conv, expected_weight  # noqa: E402  (as above)

SEEDS: dict[str, tuple[int, ...]] = {"sm_80": (0, 1, 2), "sm_90": (3,)}
CONV_SEEDS: dict[str, tuple[int, ...]] = {"sm_80": (0, 1, 2), "sm_90": (0, 1, 2)}  # the code of convolutions differs
if triton.__version__ < "3.9":  # the other version of Triton: its code is similar
    SEEDS, CONV_SEEDS = {"sm_90": (4,)}, {"sm_80": (4,), "sm_90": (4,)}
TILES = {"BLOCK", "COLUMNS", "ROWS"}  # constants that follow from shapes


def outcome(function: Callable[..., Any], case: Case) -> list[Any]:
    """The results of a call, or the error that it raises."""
    try:
        found = function(*case.arguments)
    except ValueError as error:
        return [type(error), str(error)]
    return list(found)[: case.results] if isinstance(found, tuple) else [found]


def assert_agree(actual: Any, expected: Any, tolerance: float) -> None:
    """Compare two results: bit by bit, or up to an error relative to the largest element."""
    if not isinstance(expected, Tensor):
        assert actual == expected
        return
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    if tolerance and expected.numel():
        error = (actual.double() - expected.double()).abs().max()
        assert error <= tolerance * expected.double().abs().max().clamp(min=1)
    else:
        assert torch.equal(actual, expected)


@pytest.fixture
def use_warps(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Let launchers use that many warps per program."""
    from sparsevox.kernels._launch import launch

    def switch(num_warps: int | None) -> None:
        def changed(*args: Any, **options: Any) -> None:
            launch(*args, **options | ({} if num_warps is None else {"num_warps": num_warps}))

        for module in ("bricks", "_finish", "morphology", "neighbors"):
            monkeypatch.setattr(f"sparsevox.kernels.{module}.launch", changed)

    return switch


@pytest.mark.parametrize("target", SEEDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_agree_with_the_reference(family: str, target: str, use_warps: Callable[[int | None], None]) -> None:
    modules, cases = FAMILIES[family]
    ran: list[ptx.Launch] = []
    for case in cases():
        run = getattr(import_module(f"sparsevox.kernels.{case.module}"), case.function)
        expected = outcome(getattr(import_module(f"sparsevox.reference.{case.module}"), case.function), case)
        use_warps(case.num_warps)
        for seed in SEEDS[target]:
            with ptx.emulate(target, seed) as emulation:
                actual = outcome(run, case)
            emulation.check()
            assert len(actual) == len(expected)
            for one, other in zip(actual, expected, strict=True):
                assert_agree(one, other, case.tolerance)
            ran += emulation.launches
    assert_complete(modules, ran)
    assert unvisited(modules, ran) == {}


def kernels_of(modules: tuple[str, ...]) -> set[str]:
    """The kernels that modules define."""
    source = "".join(getsource(import_module(f"sparsevox.kernels.{module}")) for module in modules)
    return set(re.findall(r"^def (\w+_kernel)\(", source, re.M))


def assert_complete(modules: tuple[str, ...], ran: list[ptx.Launch]) -> None:
    """Every kernel of the modules ran, in several warps, in every variant and dtype that is compiled ahead of time."""
    for name in kernels_of(modules):
        mine = [launch for launch in ran if launch.kernel == name]
        assert max((launch.num_warps for launch in mine), default=0) > 1, name
        types = {(argument, kind) for launch in mine for argument, kind in launch.signature.items()}
        constants = [launch.constants.items() for launch in mine]
        for launch in launches():
            for flags in flags_of(launch) if launch.kernel == name else ():
                wanted = {(word, flag) for word, flag in flags.items() if word.isupper() and word not in TILES}
                assert any(wanted <= set(items) for items in constants), (name, wanted)
                pointees = {(word, kind) for word, kind in flags.items() if word == "feats_ptr"}
                assert pointees <= types, (name, pointees)
        others = {(word, kind) for word, kinds in OTHER_POINTEES.items() for kind in kinds}
        assert {kind for kind in others if kind[0] in dict(types)} <= types, name


def unvisited(modules: tuple[str, ...], ran: list[ptx.Launch]) -> dict[str, list[str]]:
    """Source lines of the basic blocks that ran in no variant of a kernel."""
    lines: dict[str, tuple[set[str], set[str]]] = {}
    for program, name in {id(launch.program): (launch.program, launch.kernel) for launch in ran}.values():
        seen, unseen = lines.setdefault(name, (set(), set()))
        for number, (first, last) in enumerate(program.blocks):
            places = {instruction.where for instruction in program.instructions[first:last]}
            (seen if number in program.visited else unseen).update(places)
    missed = {name: sorted(unseen - seen) for name, (seen, unseen) in lines.items() if name in kernels_of(modules)}
    return {name: places for name, places in missed.items() if places}


@pytest.fixture
def precision(case: Conv) -> Iterator[None]:
    """The precision of float32 products of a case."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if case.tf32 else "ieee"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize("target", CONV_SEEDS)
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_convolutions_agree_with_sums_in_float64(case: Conv, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsevox.kernels.conv.arch", lambda device: int(target.removeprefix("sm_")))
    monkeypatch.setattr(configs, "SPLIT_PROGRAMS", 8)  # so that a program sums two blocks of pairs
    p, groups = conv_problem(case), case.groups
    exact = DOUBLE if case.dtype == DOUBLE else SINGLE
    wanted, scales = (
        [expected_conv(feats, weight, p.table, groups), expected_weight(feats, grads, p.table, groups)]
        for feats, weight, grads in ((p.feats, p.weight, p.grads), (p.feats.abs(), p.weight.abs(), p.grads.abs()))
    )
    wanted[0] = wanted[0] + (0 if p.bias is None else p.bias)
    tolerances = [2**-9, 2**-9] if case.tf32 else [TOLERANCES[case.dtype], TOLERANCES[exact]]
    bits = []
    for seed in CONV_SEEDS[target]:
        with ptx.emulate(target, seed) as emulation:
            out = conv(p.feats, p.weight, p.bias, p.plan, [], [], False, groups)
            gradient = conv_weight(p.feats, p.grads, p.plan, [], p.pairs, False, groups, exact)
        emulation.check()
        assert [launch.kernel for launch in emulation.launches] == ["conv_kernel", "conv_weight_kernel"]
        assert tuple(launch.num_warps for launch in emulation.launches) == case.num_warps
        assert (out.dtype, gradient.dtype) == (case.dtype, exact)
        for actual, expected, scale, tolerance in zip((out, gradient), wanted, scales, tolerances, strict=True):
            assert actual.shape == expected.shape
            assert (actual.double() - expected).abs().max() <= tolerance * scale.max()
        bits.append((out, gradient))
    assert all(torch.equal(a, b) for found in bits for a, b in zip(found, bits[0], strict=True))


def test_every_kernel_is_in_a_family() -> None:
    ours = [name for modules, _ in FAMILIES.values() for name in kernels_of(modules)]
    assert sorted([*ours, *CONV_KERNELS]) == kernels()
    dot = {
        (case.dtype, case.tf32) for case in CONVS if configs.uses_dot(case.c // case.groups, case.groups, case.dtype)
    }
    assert dot == {(HALF, False), (BRAIN, False), (SINGLE, False), (SINGLE, True)}
    assert {case.dtype for case in CONVS} - {dtype for dtype, _ in dot} == {DOUBLE}
    assert len({case.dtype for case in CONVS if case.groups > 1}) == 4
