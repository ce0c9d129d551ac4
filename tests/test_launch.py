"""Compiled kernels are kept and launched directly, but never where Triton would run another binary."""

import itertools
import random
import re
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.aot

triton = pytest.importorskip("triton", reason="kernels need Triton")
compiler = pytest.importorskip("triton.backends.compiler", reason="kernels need Triton")
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set: this process interprets kernels", allow_module_level=True)

from triton import language as tl  # noqa: E402  (as above)
from triton.runtime.driver import driver  # noqa: E402  (as above)

from sparsevox.kernels import _launch  # noqa: E402  (only where kernels are compiled)
from sparsevox.kernels._launch import launch, launch_programs  # noqa: E402  (only where kernels are compiled)

KERNELS = Path(_launch.__file__).parent
TARGETS = {"cuda": compiler.GPUTarget("cuda", 90, 32), "hip": compiler.GPUTarget("hip", "gfx942", 64)}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64, torch.bool)
NUMBERS = (0, 1, 2, 15, 16, 17, 1024, -1, -16, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**40, 2**62 + 1, 2**63)


class Driver:
    """A driver of Triton whose launches are recorded and do nothing."""

    def __init__(self, target: Any) -> None:
        self.target = target
        self.stream = 7
        self.launches: list[tuple[int, int, tuple[Any, ...]]] = []  # programs, stream, arguments
        self.utils = SimpleNamespace(
            load_binary=lambda *args: (1, 1, 64, 0, 1024),
            unload_module=lambda *args: None,
            get_device_properties=lambda device: {"max_shared_mem": 1 << 18, "multiprocessor_count": 132},
        )

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def run(x: int, y: int, z: int, stream: int, *rest: Any) -> None:
            assert (y, z) == (1, 1)
            self.launches.append((x, stream, rest[5:]))

        return run

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return self.stream

    def get_device_interface(self) -> Any:
        return torch.cpu


@pytest.fixture
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """A GPU whose tensors are on the CPU; no kernel is kept before."""
    name = getattr(request, "param", "cuda")
    fake = Driver(TARGETS[name])
    monkeypatch.setattr(driver, "_active", fake)
    monkeypatch.setattr(_launch, "DIRECT", frozenset({"cpu"}))
    monkeypatch.setattr(_launch, "_launchers", {})
    monkeypatch.setattr(_launch, "ON_AMD", name == "hip")
    for kernel in kernels():
        monkeypatch.setattr(kernel, "device_caches", type(kernel.device_caches)(kernel.create_binder))
    return fake


@triton.jit(do_not_specialize=["n"])  # type: ignore[untyped-decorator]
def copy_kernel(in_ptr, out_ptr, n, size, BLOCK: tl.constexpr, TWICE: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(in_ptr + place, mask=place < n, other=0)
    tl.store(out_ptr + place * size, value + value if TWICE else value, mask=place < n)


def kernels() -> list[Any]:
    """Every kernel of the package, and that of this file."""
    names = [
        (path.stem, name)
        for path in sorted(KERNELS.glob("*.py"))
        for name in re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.M)
    ]
    return [copy_kernel, *(getattr(import_module(f"sparsevox.kernels.{stem}"), name) for stem, name in names)]


def ordinary_launches(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list that grows with every launch that goes the ordinary way."""
    calls: list[Any] = []
    run = triton.JITFunction.run

    def counted(*args: Any, **words: Any) -> Any:
        calls.append(args)
        return run(*args, **words)

    monkeypatch.setattr(triton.JITFunction, "run", counted)
    return calls


def pointers() -> list[torch.Tensor]:
    """Tensors of every dtype, aligned and not, and one of more than 2 GiB, whose memory is never touched."""
    tensors = [torch.zeros(64, dtype=dtype)[start:] for dtype in DTYPES for start in (0, 1, 16)]
    return [*tensors, torch.empty(0).set_(torch.UntypedStorage((1 << 31) + 64), 0, [64], [1])]


@pytest.mark.parametrize("fake", TARGETS, indirect=True)
def test_launches_of_one_kind_run_one_binary(fake: Driver) -> None:
    rng, choices = random.Random(0), pointers()
    for kernel in kernels():
        *_, binder = kernel.device_caches[0]
        seen: dict[tuple[Any, ...], str] = {}
        binaries: set[str] = set()
        launcher = _launch._Launcher(kernel)
        names = [name for name in kernel.arg_names if not name.isupper()]
        flags = [name for name in kernel.arg_names if name.isupper()]
        for _ in range(300):
            # Few of the arguments vary at a time, so that kinds meet again.
            args: list[Any] = [choices[6] if name.endswith("_ptr") else 1000 for name in names]
            for place in rng.sample(range(len(names)), 2):
                args[place] = rng.choice(choices if names[place].endswith("_ptr") else NUMBERS)
            options: dict[str, Any] = {**dict.fromkeys(flags, 16), "num_warps": rng.choice((4, 8))}
            if flags:
                options[rng.choice(flags)] = rng.choice((16, 1, True, False, 0, "sum", 1.0))
            _, specialization, bound = binder(*args, **options)
            binary = f"{specialization} {bound}"
            binaries.add(binary)
            assert seen.setdefault(launcher.kind(tuple(args), options), binary) == binary, kernel.arg_names
        assert len(binaries) > 20
        assert len(seen) == len(binaries) or kernel is not copy_kernel


def test_later_launches_go_to_the_kept_kernel(fake: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = ordinary_launches(monkeypatch)
    data, out = torch.zeros(64), torch.zeros(64)
    for step in range(3):
        fake.stream = step
        launch(copy_kernel, 40 + step, data, out, 40 + step, 2, block=16, TWICE=True)
        assert fake.launches[-1][:2] == (3, step)
        a, b, *rest = fake.launches[-1][2]
        assert a is data
        assert b is out
        assert rest == [40 + step, 2, 16, True]
    assert len(ordinary) == 1
    changed: list[tuple[Any, ...]] = [
        (data[1:], out, 40, 2),
        (data, out[1:], 40, 2),
        (data.double(), out, 40, 2),
        (data, out, 1 << 31, 2),
        (data, out, 40, 1),
        (data, out, 40, 16),
    ]
    for count, args in enumerate(changed):
        for _ in range(2):
            launch_programs(copy_kernel, 3, args, {"BLOCK": 16, "TWICE": True})
        assert len(ordinary) == 2 + count
    others: list[dict[str, Any]] = [{"num_warps": 8}, {"TWICE": False}, {"TWICE": 1}]
    for count, options in enumerate(others):
        for _ in range(2):
            launch_programs(copy_kernel, 3, changed[0], {"BLOCK": 16, "TWICE": True, **options})
        assert len(ordinary) == 2 + len(changed) + count
    launched = len(fake.launches)
    launch_programs(copy_kernel, 0, (data, out, 0, 2), {"BLOCK": 16, "TWICE": True})
    assert len(fake.launches) == launched


@pytest.mark.parametrize("what", ["enter", "exit", "function", "before", "debug", "device", "version"])
def test_unusual_launches_go_through_triton(what: str, fake: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out, runtime = torch.zeros(64), torch.zeros(64), triton.knobs.runtime

    def run() -> None:
        launch_programs(copy_kernel, 3, (data, out, 40, 2), {"BLOCK": 16, "TWICE": False})

    for _ in range(2):
        run()
    calls: list[Any] = []

    def hook(*args: Any, **words: Any) -> None:
        calls.append(args)

    if what in ("enter", "exit"):
        monkeypatch.setattr(getattr(runtime, f"launch_{what}_hook"), "calls", [hook])
    elif what == "function":
        monkeypatch.setattr(runtime, "launch_enter_hook", hook)
    elif what == "before":
        monkeypatch.setattr(copy_kernel, "pre_run_hooks", [hook])
    elif what == "debug":
        monkeypatch.setattr(runtime, "debug", True)
    else:
        monkeypatch.setattr(_launch, "DIRECT", frozenset({"cuda"}) if what == "device" else frozenset())
    ordinary = ordinary_launches(monkeypatch)
    for count in (1, 2):
        run()
        assert len(ordinary) == count
    assert len(fake.launches) == 4
    monkeypatch.undo()


def test_this_version_of_triton_is_tested() -> None:
    assert frozenset({"cuda"}) == _launch.DIRECT


def test_host_arithmetic() -> None:
    for a, b in itertools.product(range(40), range(1, 9)):
        assert _launch.cdiv(a, b) == (a + b - 1) // b
