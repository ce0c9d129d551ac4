"""Matrix products that Triton compiles for tensor cores, run by the interpreter of PTX, against PyTorch."""

from itertools import product

import pytest
import torch

pytestmark = pytest.mark.aot

triton = pytest.importorskip("triton", reason="kernels need Triton")
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set: this process interprets kernels", allow_module_level=True)

import triton.language as tl  # noqa: E402  (as above)

from sparsevox import ptx  # noqa: E402  (as above)

M, K, BLOCK = 64, 64, 32


@triton.jit  # type: ignore[untyped-decorator]
def product_kernel(
    a_ptr,
    b_ptr,
    out_ptr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    A_STRIDES: tl.constexpr,
    B_STRIDES: tl.constexpr,
    REGISTERS: tl.constexpr,
):
    """Multiply [M, K] by [K, N], in steps of BLOCK. REGISTERS: A is computed, so that it need not pass memory."""
    row, column = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]
    total = tl.zeros([M, N], tl.float32)
    for start in range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK)
        a = tl.load(a_ptr + row * A_STRIDES[0] + k[None, :] * A_STRIDES[1])
        b = tl.load(b_ptr + k[:, None] * B_STRIDES[0] + column * B_STRIDES[1])
        if REGISTERS:
            a = a + a
        total = tl.dot(a, b, total)
    tl.store(out_ptr + row * N + column, total)


def values(rows: int, columns: int, dtype: torch.dtype, transposed: bool) -> torch.Tensor:
    """A matrix whose elements tf32 represents, too, in either order of memory."""
    drawn = torch.randn((rows, columns), generator=torch.Generator().manual_seed(rows + columns))
    exact = (drawn.view(torch.int32) & -(1 << 13)).view(torch.float32).to(dtype)
    return exact.t().contiguous().t() if transposed else exact


CASES = [
    *product(["sm_90"], [torch.float16, torch.bfloat16, torch.float32], [64], [False, True], [False, True], [False]),
    *product(["sm_90"], [torch.float16, torch.bfloat16, torch.float32], [16], [False], [True], [True]),
    *product(["sm_80"], [torch.float16, torch.bfloat16, torch.float32], [16], [True], [False], [False]),
]


@pytest.mark.parametrize(("target", "dtype", "n", "a_transposed", "b_transposed", "registers"), CASES)
def test_products_equal_pytorch(
    target: str, dtype: torch.dtype, n: int, a_transposed: bool, b_transposed: bool, registers: bool
) -> None:
    a, b, out = values(M, K, dtype, a_transposed), values(K, n, dtype, b_transposed), torch.empty(M, n)
    with ptx.emulate(target) as emulation:
        flags = {"BLOCK": BLOCK, "A_STRIDES": a.stride(), "B_STRIDES": b.stride(), "REGISTERS": registers}
        product_kernel[(1,)](a, b, out, M=M, N=n, K=K, **flags, num_stages=2)
    assert emulation.findings == []
    assert ("wgmma.mma_async" in emulation.launches[0].text) == (target == "sm_90")
    expected = (a + a if registers else a).double() @ b.double()
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
