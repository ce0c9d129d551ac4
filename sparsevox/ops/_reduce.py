"""Rows reduced to fewer rows, and back: the registered ops of `segment` and `pool`, which are each other's gradients.

Which input rows an output row reads is said in one of two ways. *Ranges* int32 [M + 1] are offsets into the input rows,
or into a list of them, `children`: no row is read twice. A *table* int32 [K, M] has K entries for each output row, -1
for none. The other direction of ranges is a table of one tap, `parents` int32 [N]; that of a table is a table.

N input rows, M output rows, C channels, K taps.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparsevox.ops import _library

Gradients = tuple[Tensor | list[None] | None, ...]


def _sum_ranges_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ranges, children, parents, divisors, ctx.longest = inputs[1:]
    ctx.save_for_backward(ranges, children, parents, divisors)


def _sum_ranges_backward(ctx: Any, grad: Tensor) -> Gradients:
    ranges, children, parents, divisors = ctx.saved_tensors
    adjoint = [ranges] if children is None else [ranges, children]
    return sum_table(grad, parents[None], adjoint, divisors, True, ctx.longest), None, None, None, None, None


def _sum_table_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    table, adjoint, divisors, ctx.before, ctx.longest = inputs[1:]
    ctx.length = len(adjoint)
    ctx.save_for_backward(table, divisors, *adjoint)


def _sum_table_backward(ctx: Any, grad: Tensor) -> Gradients:
    table, divisors, *adjoint = ctx.saved_tensors
    if adjoint[0].ndim == 2:
        feats = sum_table(grad, adjoint[0], [table], divisors, not ctx.before, ctx.longest)
    else:
        children = adjoint[1] if ctx.length == 2 else None
        feats = sum_ranges(grad, adjoint[0], children, table[0], divisors, ctx.longest)
    return feats, None, [None] * ctx.length, None, None, None


def _winners_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Of `max_table` and `extreme_ranges`: the winners, and the table of the other direction."""
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


# Sum over each range, divided by `divisors` int64 [M] if there are. `longest`: the most rows of a range, 0 if unknown.
# Without `parents` the result has no gradient.
sum_ranges = _library.register(
    "sum_ranges(Tensor feats, Tensor ranges, Tensor? children, Tensor? parents, Tensor? divisors, int longest)"
    " -> Tensor",
    stem="segment",
    fake=lambda feats, ranges, *rest: feats.new_empty((ranges.shape[0] - 1, feats.shape[1])),
    setup_context=_sum_ranges_context,
    backward=_sum_ranges_backward,
)
# Largest or smallest element of each range, and its input row int32 [M, C], the lowest of equals; 0 and -1 in an empty
# range. NaN wins. Without `parents` nobody needs the rows: [0, C].
extreme_ranges = _library.register(
    "extreme_ranges(Tensor feats, Tensor ranges, Tensor? children, Tensor? parents, bool largest, int longest)"
    " -> (Tensor out, Tensor winners)",
    stem="segment",
    fake=lambda feats, ranges, children, parents, *rest: _empty(feats, ranges.shape[0] - 1, parents is not None),
    setup_context=_winners_context,
    backward=_winners_backward,
)
# Sum over taps. `adjoint` is the other direction: [table], [ranges] or [ranges, children], [] where no gradient is
# asked for. `divisors` int64 divide the input rows if `before`, else the output rows.
sum_table = _library.register(
    "sum_table(Tensor feats, Tensor table, Tensor[] adjoint, Tensor? divisors, bool before, int longest) -> Tensor",
    stem="pool",
    fake=lambda feats, table, *rest: feats.new_empty((table.shape[1], feats.shape[1])),
    setup_context=_sum_table_context,
    backward=_sum_table_backward,
)
# As `extreme_ranges`, the largest over taps.
max_table = _library.register(
    "max_table(Tensor feats, Tensor table, Tensor? adjoint) -> (Tensor out, Tensor winners)",
    stem="pool",
    fake=lambda feats, table, adjoint: _empty(feats, table.shape[1], adjoint is not None),
    setup_context=_winners_context,
    backward=_winners_backward,
)
# Gradient of the maximum: each output row sums, over its taps in `table`, the values whose winner it is.
place_rows = _library.register(
    "place_rows(Tensor values, Tensor winners, Tensor table) -> Tensor",
    stem="pool",
    fake=lambda values, winners, table: values.new_empty((table.shape[1], values.shape[1])),
    setup_context=_rows_context,
    backward=lambda ctx, grad: (take_rows(grad, *ctx.saved_tensors), None, None),
)
# The other way: the winners' elements, 0 where there is none. `table` serves the gradient.
take_rows: Callable[..., Any] = _library.register(
    "take_rows(Tensor feats, Tensor winners, Tensor table) -> Tensor",
    stem="pool",
    kernels=False,
    fake=lambda feats, winners, table: feats.new_empty(winners.shape),
    setup_context=_rows_context,
    backward=lambda ctx, grad: (place_rows(grad, *ctx.saved_tensors), None, None),
)


def needs_gradient(feats: Tensor) -> bool:
    """Whether somebody may differentiate what is made of these features."""
    return torch.is_grad_enabled() and feats.requires_grad
