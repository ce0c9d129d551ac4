"""The product of the interpreter that tests run kernels in: its order of additions follows from K alone."""

import os

import numpy as np
import pytest
import torch

from tests.interpreter import product

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="kernels are compiled")


def operands(m: int, k: int, n: int, dtype: str = "float32"):
    generator = np.random.default_rng(0)
    return generator.standard_normal((m, k)).astype(dtype), generator.standard_normal((k, n)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_product_is_a_product(dtype: str) -> None:
    a, b = operands(48, 33, 20, dtype)
    exact = np.dtype("float64" if dtype == "float64" else "float32")
    actual = product(a, b, exact)
    assert actual.dtype == exact
    bound = 33 * np.finfo(exact).eps * (np.abs(a).astype("float64") @ np.abs(b).astype("float64"))
    assert np.all(np.abs(actual - a.astype("float64") @ b.astype("float64")) <= bound)
    assert np.array_equal(product(np.stack([a, 2 * a]), b, exact), np.stack([actual, 2 * actual]))


def test_integers_multiply_exactly() -> None:
    a, b = operands(8, 16, 8)
    a, b = (100 * a).astype("int8"), (100 * b).astype("int8")
    assert np.array_equal(product(a, b, np.dtype("int32")), a.astype("int64") @ b.astype("int64"))


def test_additions_are_in_order_and_rounded_one_by_one() -> None:
    """By Python's floats, which are float64: so the bits are those of any CPU."""
    a, b = operands(3, 50, 2, "float64")
    actual = product(a, b, np.dtype("float64"))
    for i in range(3):
        for j in range(2):
            total = 0.0
            for x, y in zip(a[i].tolist(), b[:, j].tolist(), strict=True):
                total += x * y
            assert actual[i, j] == total


@interpreted
@pytest.mark.triton36
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_interpreter_multiplies_a_tile_like_a_larger_one(dtype: torch.dtype) -> None:
    """The interpreter's own product fails it: on any CPU for one column, under OPENBLAS_CORETYPE=Haswell for 64."""
    pytest.importorskip("triton", reason="kernels need Triton")
    from triton.language import float16, float32
    from triton.runtime.interpreter import TensorHandle, interpreter_builder

    kind = float16 if dtype == torch.float16 else float32

    def dot(a, b):
        acc = TensorHandle(np.zeros((len(a), b.shape[1]), "float32"), float32)
        return interpreter_builder.create_dot(TensorHandle(a, kind), TensorHandle(b, kind), acc, None, 0).data

    a, b = operands(128, 32, 128, str(dtype).removeprefix("torch."))
    whole = dot(a, b)
    for rows in (1, 16, 32, 64):
        for columns in (1, 16, 32, 64):
            assert np.array_equal(whole[:rows, :columns], dot(a[:rows], b[:, :columns])), (rows, columns)
