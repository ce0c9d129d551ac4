"""The host's part of layers with cached maps: it never waits for the GPU, and it makes few calls.

The kernels are compiled and launched on a GPU that does nothing (`bench/fake_gpu.py`).
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.aot, pytest.mark.triton36]

triton = pytest.importorskip("triton", reason="kernels need Triton")
pytest.importorskip("pytest_benchmark", reason="the benchmarks need it")
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set: this process interprets kernels", allow_module_level=True)

from bench import host  # noqa: E402  (as above)
from bench.harness import Case, HostCalls  # noqa: E402  (as above)
from bench.scenes import scene  # noqa: E402  (as above)

CASES = {case.op.removeprefix("host: "): case for case in host.cases(torch.device("cpu"), quick=True)}
# Most kernels launched, and most ops of PyTorch called, in inference, forward in training and a training step.
LIMITS = {
    "GroupNorm": ((1, 3), (1, 3), (2, 10)),
    "MaxPool3d": ((1, 2), (1, 3), (2, 5)),
    "AvgPool3d": ((1, 2), (1, 2), (2, 8)),
    "Upsample": ((1, 1), (1, 1), (2, 4)),
    "GlobalPool": ((1, 6), (1, 11), (2, 17)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_host_makes_few_calls_and_does_not_wait(name: str) -> None:
    layer, phase = name.rsplit(", ", 1)
    launches, calls = calls_of(CASES[name])
    if layer in LIMITS:
        most_launches, most_calls = LIMITS[layer][host.PHASES.index(phase)]
        assert launches <= most_launches
        assert calls <= most_calls
    assert (launches > 0) == (layer not in ("Linear", "cat", "x + x", "map(silu)"))


def calls_of(case: Case) -> HostCalls:
    """Prepare a case, which raises an AssertionError if the host waits, and return our calls."""
    with case.context():
        ours, _ = case.prepare(scene(case.scene, case.size))
    assert ours.host is not None
    return ours.host


def test_kernels_are_not_interpreted() -> None:
    code = "from bench.fake_gpu import fake_gpu\nwith fake_gpu(): pass"
    root = Path(__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert "RuntimeError: TRITON_INTERPRET must not be set" in result.stderr
