"""Settings of the whole suite. Without a GPU, Triton kernels run in its interpreter, on CPU tensors."""

import os
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads it when the kernels are imported. "0", from outside, compiles them.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from hypothesis import HealthCheck, settings

from bench.scenes import TINY, scene
from sparsevox import _readback
from sparsevox.morton import Bricks
from sparsevox.reference.bricks import build_bricks
from sparsevox.testing import as_coords, random_batch
from tests import interpreter

if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton"):
    interpreter.install()

suppressed = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
common = settings(deadline=None, derandomize=True, suppress_health_check=suppressed, database=None)
settings.register_profile("ci", common, max_examples=40)
settings.register_profile("deep", common, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# With a GPU kernels are compiled, so they do not run on the CPU.
DEVICES = [pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else ["cpu"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Interpreter and ahead-of-time compiler do not live in one process; GPU tests need a GPU."""
    no_gpu = pytest.mark.skip(reason="needs a GPU")
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(no_gpu)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where kernels run: on a GPU if there is one, else, in the interpreter, on the CPU."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Memory from torch.empty holds NaN or the largest integer, so that a value that was never written is noticed.

    Not with a GPU, where the switch for it also refuses ops of PyTorch that tests use on the side.
    """
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)  # noqa: B010  (a module with a property)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Use one thread: small ops on two busy cores wait for each other longer than they work."""
    torch.set_num_threads(1)


def _inputs() -> dict[str, tuple[torch.Tensor, int]]:
    kinds = ("clustered", "solid", "planar", "linear", "empty", "isolated")
    batches = {f"batch of {size}": random_batch(seed, size, kinds=kinds) for seed, size in ((4, 1), (5, 6), (6, 200))}
    named = {name: (as_coords(data.voxels), data.batch_size) for name, data in batches.items()}
    scenes = {name: (scene(name, size), 64) for name, size in TINY.items()}
    return named | scenes | {"nothing": (as_coords([]), 2)}


INPUTS = _inputs()


@pytest.fixture(params=INPUTS)
def bricks(request: pytest.FixtureRequest, device: torch.device) -> Bricks:
    """Small grids of every kind, on every device: the standard scenes, batches of random clouds, nothing."""
    return Bricks(*(t.to(device) for t in build_bricks(*INPUTS[request.param])))


@pytest.fixture
def agree() -> Callable[..., Any]:
    """Run one function of `kernels` and of `reference` and compare them bit for bit; returns the kernel's result."""
    pytest.importorskip("triton", reason="kernels need Triton")

    def run(stem: str, name: str, *args: Any, read_backs: int = 1) -> Any:
        calls = _readback.calls
        actual = getattr(import_module(f"sparsevox.kernels.{stem}"), name)(*args)
        assert _readback.calls == calls + read_backs
        cpu = [a.cpu() if isinstance(a, torch.Tensor) else a for a in args]
        expected = getattr(import_module(f"sparsevox.reference.{stem}"), name)(*cpu)
        pairs = zip(actual, expected, strict=True) if isinstance(expected, tuple) else [(actual, expected)]
        for a, b in pairs:
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            assert torch.equal(a.cpu(), b)
        return actual

    return run
