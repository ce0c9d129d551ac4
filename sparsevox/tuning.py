"""Autotuning, `sv.tune`: measure which tile shapes are fastest for the convolutions of a model on this GPU.

Autotuning runs only on request. Without it, defaults by channels, dtype and architecture apply, and the first call of a
layer does not stall. Tuning changes no bit of a result: a candidate that would is rejected.
"""

import logging
import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sparsevox.ops import _library
from sparsevox.ops import conv as conv_ops

log = logging.getLogger("sparsevox")

ROWS = {"conv": (64, 128), "conv_weight": (32, 64, 128)}
COLUMNS = (32, 64, 128)
WARPS = (4, 8)
STAGES = (2, 3, 4, 5)


class Tuned(NamedTuple):
    """Result for one kind of convolution: op "conv" or "conv_weight", channels per group, times in milliseconds."""

    op: str
    in_channels: int
    out_channels: int
    groups: int
    dtype: torch.dtype
    default_ms: float
    best_ms: float
    tried: int


Kind = tuple[str, int, int, int, torch.dtype]  # the first fields of Tuned
Call = tuple[Callable[..., Tensor], tuple[Any, ...]]


class _Calls(TorchDispatchMode):
    """Records the arguments of the first convolution of each kind, and executes all of them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: dict[Kind, Call] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in conv_ops.TUNABLE:
            self.seen.setdefault(_kind(func, args), (func, args))
        return func(*args, **(kwargs or {}))


def tune(model: torch.nn.Module, *sample: Any, budget_s: float = 60.0) -> list[Tuned]:
    """Autotune the convolutions of a model: find their fastest tiles, and use them from now on in this process.

    `model(*sample)` runs once, and in training mode also the backward of the sum of its outputs; then every kind of
    convolution that ran is measured. Parameters, gradients and buffers are left unchanged. A tile that changes a bit of
    the result on the sample is rejected. In Triton's interpreter, the CPU decides which tiles those are, because it
    multiplies with NumPy. Where no Triton kernel runs, as on a CPU, there is nothing to tune.

    Args:
        model: Module whose convolutions are tuned.
        sample: Inputs of the model, of a typical size.
        budget_s: Seconds after which no more candidates are tried.

    Returns:
        The measurements, one entry per kind of convolution.

    Raises:
        ValueError: If the budget is negative.
    """
    if budget_s < 0:
        raise ValueError(f"budget_s must not be negative, got {budget_s}")
    calls = _Calls()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.autograd.set_multithreading_enabled(False), calls:
        _run(model, sample)
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    deadline = time.monotonic() + budget_s
    seen = [item for item in calls.seen.items() if _library.uses_kernels(item[1][1][0])]
    results = [_tune_one(kind, call, deadline) for kind, call in seen]
    gain = sum(r.default_ms for r in results) / max(sum(r.best_ms for r in results), 1e-9)
    log.info("tuned %d convolutions, speed-up %.2fx", len(results), gain if results else 1.0)
    return results


def _run(model: torch.nn.Module, sample: tuple[Any, ...]) -> None:
    output = model(*sample)
    parameters = [p for p in model.parameters() if p.requires_grad]
    results = [t for t in _tensors(output) if t.requires_grad]
    if model.training and parameters and results:
        total = torch.stack([t.float().sum() for t in results]).sum()
        torch.autograd.grad(total, parameters, allow_unused=True)


def _kind(func: Any, args: tuple[Any, ...]) -> Kind:
    name, place = conv_ops.TUNABLE[func]
    feats, second, groups = args[0], args[1], args[place]
    return name, feats.shape[1] // groups, second.shape[-1] // groups, groups, feats.dtype


def _tune_one(kind: Kind, call: Call, deadline: float) -> Tuned:
    from sparsevox.kernels import _conv_configs as configs

    func, args = call
    key = configs.key(*kind, configs.arch(args[0].device))
    best = configs.tuned.pop(key, None)
    candidates = [*([best] if best else []), *_candidates(kind[0])]
    best, tried = None, 0
    with torch.no_grad():
        expected = func(*args)
        default_ms = best_ms = _milliseconds(lambda: func(*args))
        try:
            for candidate in candidates:
                if time.monotonic() > deadline:
                    break
                configs.tuned[key] = candidate
                tried += 1
                taken = _try(lambda: func(*args), expected)
                if taken is not None and taken < best_ms:
                    best, best_ms = candidate, taken
        finally:
            configs.tuned.pop(key, None)
            if best is not None:
                configs.tuned[key] = best
    return Tuned(*kind, default_ms, best_ms, tried)


def _candidates(op: str) -> Iterator[Any]:
    from sparsevox.kernels._conv_configs import Config

    for rows, columns, warps, stages in product(ROWS[op], COLUMNS, WARPS, STAGES):
        yield Config(rows, columns, warps, stages)


def _try(run: Callable[[], Tensor], expected: Tensor) -> float | None:
    """Milliseconds of a candidate; None if it does not fit on the device or changes the bits of the result."""
    from triton.errors import TritonError

    try:
        result = run()
    except (TritonError, RuntimeError):
        return None
    same = torch.equal(result.nan_to_num(), expected.nan_to_num()) and torch.equal(result.isnan(), expected.isnan())
    return _milliseconds(run) if same else None


def _milliseconds(run: Callable[[], Tensor]) -> float:
    if torch.cuda.is_available():
        from triton.testing import do_bench

        return float(do_bench(run, warmup=5, rep=20, return_mode="median"))
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def _tensors(output: Any) -> Iterator[Tensor]:
    """All tensors in nested containers and in objects with features."""
    if isinstance(output, Tensor):
        yield output
    elif hasattr(output, "feats"):
        yield output.feats
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _tensors(value)
