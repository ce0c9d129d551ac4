"""`sv.tune`: measure how a model's own convolutions are best cut into tiles on this GPU.

Nothing is ever tuned unasked: without this call defaults by channels, dtype and architecture serve, and nothing stalls
at first touch. What tuning may choose does not change a bit of any result, and a candidate that does is refused.
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
    """What came of one convolution: "conv" or "conv_weight", its channels a group, and milliseconds."""

    op: str
    in_channels: int
    out_channels: int
    dtype: torch.dtype
    default_ms: float
    best_ms: float
    tried: int


class _Calls(TorchDispatchMode):
    """Keeps the arguments of the first convolution of each kind, and lets all of them happen."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: dict[tuple[str, int, int, torch.dtype], tuple[Callable[..., Tensor], tuple[Any, ...]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in conv_ops.TUNABLE:
            name, key = _key(func, args)
            self.seen.setdefault((name, *key), (func, args))
        return func(*args, **(kwargs or {}))


def tune(model: torch.nn.Module, *sample: Any, budget_s: float = 60.0) -> list[Tuned]:
    """Find the fastest tiles for the convolutions of a model, and use them from now on in this process.

    Runs `model(*sample)` once, and if the model is in training mode the backward of the sum of what it returns, and
    measures the convolutions that it meets. Results stay the same bits. Where no Triton kernel runs, as on a CPU, there
    is nothing to tune.

    Args:
        model: Any module.
        sample: What it takes; of the size that it will meet.
        budget_s: Seconds after which no more candidates are tried.

    Returns:
        What was measured, one entry a kind of convolution.

    Raises:
        ValueError: If the budget is negative.
    """
    if budget_s < 0:
        raise ValueError(f"budget_s must not be negative, got {budget_s}")
    calls = _Calls()
    with torch.autograd.set_multithreading_enabled(False), calls:
        output = model(*sample)
        if model.training and torch.is_grad_enabled():
            sum(t.float().sum() for t in _tensors(output) if t.requires_grad).backward()  # type: ignore[union-attr]
            model.zero_grad()
    deadline = time.monotonic() + budget_s
    results = [
        _tune_one(key, func, args, deadline)
        for key, (func, args) in calls.seen.items()
        if _library.uses_kernels(args[0])
    ]
    gain = sum(r.default_ms for r in results) / max(sum(r.best_ms for r in results), 1e-9)
    log.info("tuned %d convolutions, %.2fx as fast", len(results), gain if results else 1.0)
    return results


def _key(func: Any, args: tuple[Any, ...]) -> tuple[str, tuple[int, int, torch.dtype]]:
    """Name of the op, channels of a group and dtype of a call."""
    feats, second, groups = args[0], args[1], args[conv_ops.TUNABLE[func].groups]
    name = conv_ops.TUNABLE[func].name
    return name, (feats.shape[1] // groups, second.shape[-1] // groups, feats.dtype)


def _tune_one(
    key: tuple[str, int, int, torch.dtype], func: Callable[..., Tensor], args: tuple[Any, ...], deadline: float
) -> Tuned:
    from sparsevox.kernels import _conv_configs as configs

    known = configs.tuned.pop(key, None)
    with torch.no_grad():
        expected = func(*args)
        default = best = _milliseconds(lambda: func(*args))
        tried = 0
        for candidate in _candidates(key[0]):
            if time.monotonic() > deadline:
                break
            configs.tuned[key] = candidate
            tried += 1
            taken = _try(lambda: func(*args), expected)
            if taken is not None and taken < best:
                known, best = candidate, taken
        configs.tuned.pop(key, None)
        if known is not None and best < default:
            configs.tuned[key] = known
    return Tuned(*key, default, best, tried)


def _candidates(op: str) -> Iterator[Any]:
    from sparsevox.kernels._conv_configs import Config

    for rows, columns, warps, stages in product(ROWS[op], COLUMNS, WARPS, STAGES):
        yield Config(rows, columns, warps, stages)


def _try(run: Callable[[], Tensor], expected: Tensor) -> float | None:
    """Milliseconds of a candidate; None if it does not fit the device or gives other bits."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources

    try:
        result = run()
    except (OutOfResources, CompilationError):
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
    """Every tensor in nested containers, and in objects with features."""
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
