"""Triton kernels, compiled for a GPU and run by the interpreter of PTX."""

from importlib.util import find_spec

import pytest
import torch

if find_spec("triton") is None:
    pytest.skip("needs Triton", allow_module_level=True)

import triton
import triton.language as tl

from sparsevox import ptx

if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set: this process interprets kernels", allow_module_level=True)

pytestmark = [pytest.mark.aot, pytest.mark.triton36]

TARGETS = pytest.mark.parametrize("target", ["sm_80", "sm_90"])
SEEDS = pytest.mark.parametrize("seed", [None, 0, 1])


@triton.jit  # type: ignore[untyped-decorator]
def add_kernel(x_ptr, y_ptr, out_ptr, n, scale, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n)
    tl.store(out_ptr + i, x + scale * tl.load(y_ptr + i, mask=i < n), mask=i < n)


@triton.jit  # type: ignore[untyped-decorator]
def sum_kernel(x_ptr, out_ptr, columns, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    total = tl.sum(tl.load(x_ptr + tl.program_id(0) * columns + i, mask=i < columns, other=0), 0)
    tl.store(out_ptr + tl.program_id(0), total)
    tl.atomic_add(out_ptr + tl.num_programs(0), total, sem="relaxed")


@triton.jit  # type: ignore[untyped-decorator]
def dot_kernel(a_ptr, b_ptr, out_ptr, depth, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    total = tl.zeros((M, N), tl.float32)
    for start in range(0, depth, K):
        a = tl.load(a_ptr + m[:, None] * depth + start + k[None])
        b = tl.load(b_ptr + (start + k[:, None]) * N + n[None])
        total = tl.dot(a, b, total)
    tl.store(out_ptr + m[:, None] * N + n[None], total)


@TARGETS
@SEEDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.int32])
def test_elementwise(dtype: torch.dtype, seed: int | None, target: str) -> None:
    x, y = torch.arange(1000).to(dtype), torch.arange(1000, 2000).to(dtype)
    out = torch.zeros(1000, dtype=dtype)
    with ptx.emulate(target, seed) as emulation:
        add_kernel[(8,)](x, y, out, 1000, 3, BLOCK=128)
    emulation.check()
    assert torch.equal(out, x + 3 * y)


@TARGETS
@SEEDS
@pytest.mark.parametrize("num_warps", [1, 4])
def test_reductions(num_warps: int, seed: int | None, target: str) -> None:
    x = torch.arange(300, dtype=torch.int32).view(3, 100)
    out = torch.zeros(4, dtype=torch.int32)
    with ptx.emulate(target, seed) as emulation:
        sum_kernel[(3,)](x, out, 100, BLOCK=128, num_warps=num_warps)
    emulation.check()
    assert out.tolist() == [*x.sum(1).tolist(), x.sum().item()]


@TARGETS
@SEEDS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_on_tensor_cores(dtype: torch.dtype, seed: int | None, target: str) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(64, 96, generator=generator).to(dtype), torch.randn(96, 32, generator=generator).to(dtype)
    out = torch.zeros(64, 32)
    with ptx.emulate(target, seed) as emulation:
        dot_kernel[(1,)](a, b, out, 96, M=64, N=32, K=32, num_stages=3)
    emulation.check()
    (launch,) = emulation.launches
    assert {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async"}[target] in launch.text
    assert "cp.async" in launch.text
    torch.testing.assert_close(out, (a.double() @ b.double()).float(), rtol=1e-6, atol=1e-6)


def test_a_launch_is_described_and_can_be_repeated() -> None:
    x, y, out = torch.ones(100), torch.ones(100), torch.zeros(100)
    with ptx.emulate("sm_80") as emulation:
        add_kernel[lambda meta: (triton.cdiv(100, meta["BLOCK"]),)](x, y, out, 100, 1, BLOCK=64)
    (launch,) = emulation.launches
    assert (launch.kernel, launch.programs, launch.num_warps, launch.shared_bytes) == ("add_kernel", (2,), 4, 0)
    assert launch.signature == {"x_ptr": "*fp32", "y_ptr": "*fp32", "out_ptr": "*fp32", "n": "i32"}
    assert launch.constants == {"scale": 1, "BLOCK": 64}  # 1 is compiled into the kernel
    assert launch.arguments[2].eq(0).all()  # before the launch
    machine = ptx.Machine(ptx.Program(launch.text), launch.arguments, programs=launch.programs)
    machine.run()
    assert machine.findings == []
    assert torch.equal(launch.arguments[2], out)
    assert out.eq(2).all()


def test_arguments_keep_sharing_memory_and_may_have_a_history() -> None:
    x = torch.ones(64, requires_grad=True) * 2
    out = torch.zeros(128)
    with ptx.emulate("sm_80") as emulation:
        add_kernel[(1,)](x, out[:64], out[64:], 64, 2.5, BLOCK=64)
    emulation.check()
    assert out[64:].eq(2).all()
    first, second = emulation.launches[0].arguments[1:3]
    assert second.data_ptr() - first.data_ptr() == 256


def test_check_lists_findings() -> None:
    x = torch.zeros(100)
    with ptx.emulate("sm_80") as emulation:
        add_kernel[(1,)](x, x, x[:50], 100, 1, BLOCK=128)
    with pytest.raises(ptx.KernelError, match=r"add_kernel, test_emulate.py:\d+: address out of bounds .50 times"):
        emulation.check()


def test_only_chosen_programs_on_sparse_memory() -> None:
    n = 5 << 30
    with ptx.emulate("sm_80", only=lambda kernel, programs: [0, programs - 1], sparse=64 << 30) as emulation:
        assert emulation.memory is not None
        x, y, out = (emulation.memory.zeros((n,), torch.uint8) for _ in range(3))
        x[-1], y[-1], y[-2000] = 5, 7, 9
        add_kernel[(triton.cdiv(n, 1024),)](x, y, out, n, 2, BLOCK=1024)
    emulation.check()
    assert out[-1] == 19
    assert out[-2000] == 0  # of a program that did not run


def test_the_example_of_the_package_runs(tmp_path) -> None:
    assert ptx.__doc__
    code = ptx.__doc__.split("```python\n")[1].split("```")[0]
    path = tmp_path / "example.py"  # Triton reads the source of kernels
    path.write_text(code, encoding="utf-8")
    exec(compile(code, str(path), "exec"), {"__name__": "example"})


def test_kernels_that_are_interpreted_are_refused() -> None:
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = True
        with pytest.raises(RuntimeError, match="TRITON_INTERPRET=0"), ptx.emulate("sm_80"):
            pass
