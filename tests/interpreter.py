"""A matrix product for Triton's interpreter, whose bits depend neither on the CPU nor on the shape of the tile.

The interpreter multiplies with NumPy, whose BLAS chooses the order of its additions by CPU and by shape: with the
kernels of OpenBLAS for Haswell and Zen, `(a @ b)[:64]` and `a[:64] @ b` differ in the last bits. A compiled `tl.dot`
adds up over K in an order that does not depend on the number of rows and columns, and tests hold our kernels to that.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def product(a: NDArray[Any], b: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """`a @ b`, [..., M, K] times [..., K, N]: K outer products, rounded and added one after the other."""
    a, b = a.astype(dtype, copy=False), b.astype(dtype, copy=False)
    out = np.zeros((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), dtype)
    term = np.empty_like(out)
    for k in range(a.shape[-1]):
        np.multiply(a[..., :, k, None], b[..., None, k, :], out=term)
        out += term
    return out


def install() -> None:
    """Let `tl.dot` in the interpreter call `product`."""
    from triton.runtime import interpreter

    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        for operand in (a, b):
            assert not (operand.dtype.is_floating() and operand.dtype.primitive_bitwidth == 8), "no kernel has float8"
        out = product(a.data, b.data, d.data.dtype)
        return interpreter.TensorHandle(out + d.data, d.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = create_dot
