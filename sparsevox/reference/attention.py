"""Attention within the items of a ragged batch: PyTorch's own attention, on a few dense pieces.

Long items are a piece each. Short items, where a call costs more than its work, are grouped by length, padded and
masked. Items without queries or keys are left out, so no row of a mask is empty.

N query rows, M key rows, B items, H heads, D and E channels of keys and values; S items of a piece, I and J their
largest numbers of query and key rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsevox._readback import read_back

Ints = NDArray[np.int64]

ALONE = 1 << 9  # on a CPU, items with more (query, key) pairs are a piece each
SCORES = 1 << 22  # scores of a block of queries in the backward pass, at most
FLASH_CHANNELS = 256  # channels that flash attention supports


class Piece(NamedTuple):
    """Query rows [S, I] and key rows [S, J] of the items of a piece, padded with N and M."""

    q_rows: Ints
    k_rows: Ints


class Plan(NamedTuple):
    """The pieces of a batch, and the concatenated rows of all pieces."""

    pieces: list[Piece]
    q_rows: Ints
    k_rows: Ints
    q_count: int  # N
    k_count: int  # M

    def queries(self, rows: Tensor) -> list[Tensor]:
        """Rows [N, H, C], piece by piece: [S, H, I, C]."""
        return _take(rows, self.q_rows, [piece.q_rows.shape for piece in self.pieces])

    def keys(self, rows: Tensor) -> list[Tensor]:
        """Rows [M, H, C], piece by piece: [S, H, J, C]."""
        return _take(rows, self.k_rows, [piece.k_rows.shape for piece in self.pieces])

    def masks(self, device: torch.device) -> list[Tensor | None]:
        """Which keys exist, bool [S, 1, 1, J], piece by piece; None if all do."""
        exist = [piece.k_rows < self.k_count for piece in self.pieces]
        return [None if e.all() else torch.from_numpy(e[:, None, None]).to(device) for e in exist]


def attend(q: Tensor, k: Tensor, v: Tensor, q_offsets: Tensor, k_offsets: Tensor, scale: float) -> Tensor:
    """`softmax(scale * q @ k.T) @ v` over the keys of each item: [N, H, E]; 0 without keys. Differentiable once."""
    edges = _edges(q_offsets, k_offsets, q.shape[0], k.shape[0])
    if _has_varlen(q, v):
        return _varlen(q, k, v, edges, scale)
    plan = _plan(edges, q, k)
    operands = (plan.queries(q), plan.keys(k), plan.keys(v), plan.masks(q.device))
    results = [_dense(*parts, scale) for parts in zip(*operands, strict=True)]
    return _place(results, plan.q_rows, q.shape[0], _zero(q, k, v))


def ragged_attention(q: Tensor, k: Tensor, v: Tensor, q_offsets: Tensor, k_offsets: Tensor, scale: float) -> Tensor:
    """Compute `attend`, with a contiguous result, as ops require."""
    return attend(q, k, v, q_offsets, k_offsets, scale).contiguous()


def ragged_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, q_offsets: Tensor, k_offsets: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, in blocks of queries that hold at most SCORES scores of all heads."""
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    plan = _plan(_edges(q_offsets, k_offsets, q.shape[0], k.shape[0]), q, k)
    operands = (plan.queries(grad), plan.queries(q), plan.keys(k), plan.keys(v))
    gradients: tuple[list[Tensor], ...] = ([], [], [])
    for g, queries, keys, values, mask in zip(*operands, plan.masks(q.device), strict=True):
        found = _dense_backward(g.to(exact), queries.to(exact), keys.to(exact), values.to(exact), mask, scale)
        for parts, part in zip(gradients, found, strict=True):
            parts.append(part.to(q.dtype))
    rows, inputs = (plan.q_rows, plan.k_rows, plan.k_rows), (q, k, v)
    zeros = [x.new_zeros((1, *x.shape[1:])) for x in inputs]
    d_q, d_k, d_v = (_place(gradients[i], rows[i], inputs[i].shape[0], zeros[i]) for i in range(3))
    return d_q, d_k, d_v


def _dense_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `_dense`, in blocks of queries that hold at most SCORES scores of all heads."""
    d_q, d_k, d_v = (torch.zeros_like(x) for x in (q, k, v))
    block = max(1, SCORES // (k.shape[0] * k.shape[1] * k.shape[2]))
    for first in range(0, q.shape[2], block):
        queries, grads = q[:, :, first : first + block], grad[:, :, first : first + block]
        scores = queries @ k.transpose(2, 3) * scale
        weights = (scores if mask is None else scores.masked_fill_(~mask, -torch.inf)).softmax(3)  # [S, H, block, J]
        d_v += weights.transpose(2, 3) @ grads
        d_weights = grads @ v.transpose(2, 3)
        d_scores = weights * (d_weights - (weights * d_weights).sum(3, keepdim=True)) * scale
        d_k += d_scores.transpose(2, 3) @ queries
        d_q[:, :, first : first + block] = d_scores @ k
    return d_q, d_k, d_v


def _edges(q_offsets: Tensor, k_offsets: Tensor, q_count: int, k_count: int) -> tuple[Ints, Ints]:
    """Copy both offsets to the host and check them."""
    numbers = np.array(read_back(q_offsets, k_offsets), dtype=np.int64)
    edges = numbers[: q_offsets.shape[0]], numbers[q_offsets.shape[0] :]
    for name, values, count in zip(("q_offsets", "k_offsets"), edges, (q_count, k_count), strict=True):
        if values[0] < 0 or values[-1] > count or (np.diff(values) < 0).any():
            raise ValueError(f"{name} must ascend between 0 and {count}, the number of rows, got {values}")
    return edges


def _plan(edges: tuple[Ints, Ints], q: Tensor, k: Tensor) -> Plan:
    """Group the items into pieces."""
    q_lengths, k_lengths = np.diff(edges[0]), np.diff(edges[1])
    live = np.flatnonzero(q_lengths * k_lengths)
    long = (q_lengths * k_lengths)[live] > (ALONE if q.device.type == "cpu" else np.inf)
    alone, short = live[long], live[~long]
    # Lengths with the same number of bits are less than a factor of two apart.
    bits = [np.frexp(lengths[short])[1].astype(np.int64) for lengths in (q_lengths, k_lengths)]
    codes, kinds = np.unique(bits[0] << 6 | bits[1], return_inverse=True)
    groups = [*alone[:, None], *(short[kinds == kind] for kind in range(codes.shape[0]))]
    pieces = [
        Piece(
            _rows(edges[0][items], q_lengths[items], q.shape[0]),
            _rows(edges[1][items], k_lengths[items], k.shape[0]),
        )
        for items in groups
    ]
    empty = np.zeros(0, np.int64)
    q_rows = np.concatenate([empty, *(piece.q_rows.ravel() for piece in pieces)])
    k_rows = np.concatenate([empty, *(piece.k_rows.ravel() for piece in pieces)])
    return Plan(pieces, q_rows, k_rows, q.shape[0], k.shape[0])


def _rows(starts: Ints, lengths: Ints, nothing: int) -> Ints:
    """The rows of each item, padded with `nothing`."""
    steps = np.arange(lengths.max())
    rows: Ints = np.where(steps < lengths[:, None], starts[:, None] + steps, nothing)
    return rows


def _take(rows: Tensor, numbers: Ints, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Gather rows [N, H, C] by number, piece by piece: [S, H, I, C]; number N is a row of 0. Gradients are ordered."""
    if not _in_order(numbers, rows.shape[0]):
        if (numbers == rows.shape[0]).any():
            rows = torch.nn.functional.pad(rows, (0, 0, 0, 0, 0, 1))
        rows = rows[torch.from_numpy(numbers).to(rows.device)]
    parts = rows.split([items * length for items, length in shapes])
    return [part.unflatten(0, shape).transpose(1, 2) for part, shape in zip(parts, shapes, strict=True)]


def _place(parts: list[Tensor], numbers: Ints, count: int, zero: Tensor) -> Tensor:
    """Invert `_take`: rows [count, H, C]; rows without a number are `zero` [1, H, C]."""
    rows = [part.transpose(1, 2).flatten(0, 1) for part in parts]
    if rows and _in_order(numbers, count):
        return torch.cat(rows)
    place = np.full(count + 1, numbers.shape[0])
    place[numbers] = np.arange(numbers.shape[0])
    return torch.cat([*rows, zero])[torch.from_numpy(place[:count]).to(zero.device)]


def _in_order(numbers: Ints, count: int) -> bool:
    """Whether the numbers are 0 to count - 1 in order."""
    return numbers.shape[0] == count and bool((numbers == np.arange(count)).all())


def _zero(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Result of a query without keys, [1, H, E]; it depends on every input, so that all of them get gradients."""
    nothing = q[:0].sum() + k[:0].sum() + v[:0].sum()
    return nothing.expand(1, q.shape[1], v.shape[2])


def _dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """PyTorch's attention on [S, H, I, D], [S, H, J, D] and [S, H, J, E]. Fused kernels need D = E: pad with 0."""
    wide = max(q.shape[3], v.shape[3])
    q, k, padded = (torch.nn.functional.pad(x, (0, wide - x.shape[3])) for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, padded, attn_mask=mask, scale=scale)
    return out[..., : v.shape[3]]


def _has_varlen(q: Tensor, v: Tensor) -> bool:
    """Whether PyTorch has ragged flash attention for these tensors."""
    half = q.dtype in (torch.float16, torch.bfloat16)
    return q.is_cuda and torch.version.hip is None and half and max(q.shape[2], v.shape[2]) <= FLASH_CHANNELS


def _varlen(q: Tensor, k: Tensor, v: Tensor, edges: Sequence[Ints], scale: float) -> Tensor:
    """Call the ragged flash attention of PyTorch: one launch."""
    from torch.nn.attention.varlen import varlen_attn

    lengths = [np.diff(e) for e in edges]
    used = (lengths[0] > 0) & (lengths[1] > 0)
    if not used.any():
        return _zero(q, k, v).expand(q.shape[0], -1, -1)
    wide = -(-max(q.shape[2], v.shape[2]) // 8) * 8
    # The default scale follows the padded width. Scaling the queries corrects that in every version of PyTorch.
    rows = [torch.nn.functional.pad(x, (0, wide - x.shape[2])) for x in (q * (scale * wide**0.5), k, v)]
    if not used.all() or any(e[0] > 0 or e[-1] < x.shape[0] for e, x in zip(edges, (q, k), strict=True)):
        # The kernel leaves rows outside of all items undefined, forward and backward.
        masks = [_part(e, used, x) for e, x in zip(edges, (q, k), strict=True)]
        rows = [torch.where(masks[i], x, 0) for i, x in zip((0, 1, 1), rows, strict=True)]
    bounds = [torch.from_numpy(e.astype(np.int32)).to(q.device) for e in edges]
    longest = [int(part.max()) for part in lengths]
    out = varlen_attn(rows[0], rows[1], rows[2], bounds[0], bounds[1], longest[0], longest[1])
    assert isinstance(out, Tensor)
    return torch.where(_part(edges[0], used, q), out[..., : v.shape[2]], 0)


def _part(edges: Ints, used: NDArray[np.bool_], rows: Tensor) -> Tensor:
    """Whether each row belongs to a used item: bool [N, 1, 1]."""
    part = np.zeros(rows.shape[0], dtype=bool)
    part[edges[0] : edges[-1]] = np.repeat(used, np.diff(edges))
    return torch.from_numpy(part[:, None, None]).to(rows.device)
