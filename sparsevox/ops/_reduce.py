"""Rows reduced to fewer rows, and back: the registered ops of `segment` and `pool`, which are each other's gradients.

There are two ways to say which input rows an output row reads. *Ranges* int32 [M + 1] are offsets into the input rows,
or into a list of them, `children`; no row is read twice. A *table* int32 [K, M] has K entries per output row, -1 for
none. The adjoint (the other direction) of ranges is a table with one tap, `parents[None]`; that of a table is a table.
N input rows, M output rows, C channels, K taps.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparsevox import kernels
from sparsevox.ops import _library
from sparsevox.reference import pool, segment

Gradients = tuple[Tensor | None, ...]


def _sum_ranges_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ranges, children, parents, divisors, ctx.longest = inputs[1:]
    ctx.save_for_backward(ranges, children, parents, divisors)


def _sum_ranges_backward(ctx: Any, grad: Tensor) -> Gradients:
    ranges, children, parents, divisors = ctx.saved_tensors
    feats = sum_table(grad, parents[None], ranges, children, divisors, True, ctx.longest)
    return feats, None, None, None, None, None


def _sum_table_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    table, adjoint, children, divisors, ctx.before, ctx.longest = inputs[1:]
    ctx.save_for_backward(table, adjoint, children, divisors)


def _sum_table_backward(ctx: Any, grad: Tensor) -> Gradients:
    table, adjoint, children, divisors = ctx.saved_tensors
    if adjoint.ndim == 2:
        feats = sum_table(grad, adjoint, table, None, divisors, not ctx.before, ctx.longest)
    else:
        feats = sum_ranges(grad, adjoint, children, table[0], divisors, ctx.longest)
    return feats, None, None, None, None, None, None


def _winners_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep the winners of `max_table` or `extreme_ranges`, and the adjoint table."""
    adjoint = inputs[2] if len(inputs) == 3 else inputs[3][None]
    ctx.inputs = len(inputs)
    ctx.save_for_backward(output[1], adjoint)


def _winners_backward(ctx: Any, grad: Tensor, _: Tensor | None) -> Gradients:
    winners, adjoint = ctx.saved_tensors
    return (place_rows(grad, winners, adjoint), *[None] * (ctx.inputs - 1))


def _rows_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _empty(feats: Tensor, rows: Any, winners: bool) -> tuple[Tensor, Tensor]:
    count = rows if winners else 0
    return feats.new_empty((rows, feats.shape[1])), feats.new_empty((count, feats.shape[1]), dtype=torch.int32)


# Sum over each range, divided by `divisors` int64 [M] if given. `longest` is the most rows of a range, 0 if unknown.
# Without `parents` the result has no gradient.
sum_ranges = _library.register(
    "sum_ranges(Tensor feats, Tensor ranges, Tensor? children, Tensor? parents, Tensor? divisors, int longest)"
    " -> Tensor",
    reference=segment.sum_ranges,
    kernels=lambda: kernels.segment.sum_ranges,
    fake=lambda feats, ranges, *rest: feats.new_empty((ranges.shape[0] - 1, feats.shape[1])),
    setup_context=_sum_ranges_context,
    backward=_sum_ranges_backward,
)
# Largest or smallest element of each range, and its input row int32 [M, C], the lowest of equal ones; 0 and -1 in an
# empty range. NaN wins. Without `parents` the input rows are not needed and are [0, C].
extreme_ranges = _library.register(
    "extreme_ranges(Tensor feats, Tensor ranges, Tensor? children, Tensor? parents, bool largest, int longest)"
    " -> (Tensor out, Tensor winners)",
    reference=segment.extreme_ranges,
    kernels=lambda: kernels.segment.extreme_ranges,
    fake=lambda feats, ranges, children, parents, *rest: _empty(feats, ranges.shape[0] - 1, parents is not None),
    setup_context=_winners_context,
    backward=_winners_backward,
)
# Sum over the taps of a table. `adjoint` is a table, or ranges with or without `children`; without it the result has no
# gradient. `divisors` int64 divide the input rows if `before`, else the output rows.
sum_table = _library.register(
    "sum_table(Tensor feats, Tensor table, Tensor? adjoint, Tensor? children, Tensor? divisors, bool before, "
    "int longest) -> Tensor",
    reference=pool.sum_table,
    kernels=lambda: kernels.pool.sum_table,
    fake=lambda feats, table, *rest: feats.new_empty((table.shape[1], feats.shape[1])),
    setup_context=_sum_table_context,
    backward=_sum_table_backward,
)
# Largest element over the taps of a table, and its input row, as `extreme_ranges` returns them.
max_table = _library.register(
    "max_table(Tensor feats, Tensor table, Tensor? adjoint) -> (Tensor out, Tensor winners)",
    reference=pool.max_table,
    kernels=lambda: kernels.pool.max_table,
    fake=lambda feats, table, adjoint: _empty(feats, table.shape[1], adjoint is not None),
    setup_context=_winners_context,
    backward=_winners_backward,
)
# Gradient of the maximum: each output row sums, over its taps in `table`, the values whose winner it is.
place_rows = _library.register(
    "place_rows(Tensor values, Tensor winners, Tensor table) -> Tensor",
    reference=pool.place_rows,
    kernels=lambda: kernels.pool.place_rows,
    fake=lambda values, winners, table: values.new_empty((table.shape[1], values.shape[1])),
    setup_context=_rows_context,
    backward=lambda ctx, grad: (take_rows(grad, *ctx.saved_tensors), None, None),
)
# Its adjoint: the elements of the winners, 0 where there is none. `table` serves the gradient.
take_rows: Callable[..., Any] = _library.register(
    "take_rows(Tensor feats, Tensor winners, Tensor table) -> Tensor",
    reference=pool.take_rows,
    kernels=None,  # one gather
    fake=lambda feats, winners, table: feats.new_empty(winners.shape),
    setup_context=_rows_context,
    backward=lambda ctx, grad: (place_rows(grad, *ctx.saved_tensors), None, None),
)


def needs_gradient(feats: Tensor) -> bool:
    """Whether a result computed from these features may be differentiated."""
    return torch.is_grad_enabled() and feats.requires_grad
