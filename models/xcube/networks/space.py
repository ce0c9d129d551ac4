"""Where a denoiser computes: on the voxels of a grid, or in volumes. All that differs between the two is here.

A field is a SparseTensor, or a volume [B, C, X, Y, Z]. N voxels, B grids, C channels, S tokens; `...` stands for N, or
for B, X * Y * Z.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

import sparsevox as sv
from sparsevox import SparseTensor

Field = Any  # each space has its own


@dataclass(frozen=True)
class Context:
    """What other tokens there are to attend to, as a space wants them.

    tokens: Of all items, one after the other, [S, C]; or padded, [B, S, C].
    where: Where the tokens of each item begin, integers [B + 1]; or which exist, bool [B, S].
    """

    tokens: Tensor
    where: Tensor


class Space(ABC):
    """Operations on fields."""

    @abstractmethod
    def from_sparse(self, x: SparseTensor) -> Field:
        """The field of a sparse tensor."""

    @abstractmethod
    def to_sparse(self, field: Field, like: SparseTensor) -> SparseTensor:
        """The inverse of `enter`."""

    @abstractmethod
    def conv(self, in_channels: int, out_channels: int) -> torch.nn.Module:
        """A convolution of kernel 3; weights [out, in, 3, 3, 3] in the order i, j, k."""

    @abstractmethod
    def norm(self, groups: int, channels: int, eps: float) -> torch.nn.Module:
        """GroupNorm with the statistics of each item."""

    @abstractmethod
    def map(self, field: Field, function: Callable[[Tensor], Tensor]) -> Field:
        """A function of each element."""

    @abstractmethod
    def modulate(self, field: Field, values: Tensor) -> Field:
        """`field * (1 + scale) + shift`, with values [B, 2 C] of each item: scales, then shifts."""

    @abstractmethod
    def cat(self, first: Field, second: Field) -> Field:
        """The channels of both."""

    @abstractmethod
    def down(self, field: Field) -> Field:
        """The mean over blocks of 2^3 voxels."""

    @abstractmethod
    def up(self, field: Field, like: Field) -> Field:
        """Every voxel hands its features to its children, those that `like` has."""

    @abstractmethod
    def rows(self, field: Field) -> Tensor:
        """Features [..., C]."""

    @abstractmethod
    def replace(self, field: Field, rows: Tensor) -> Field:
        """A field of these features [..., C]."""

    @abstractmethod
    def context(self, tokens: Tensor, mask: Tensor) -> Context:
        """Of padded tokens [B, S, C], those that exist, bool [B, S]."""

    @abstractmethod
    def attend(self, field: Field, q: Tensor, k: Tensor, v: Tensor, heads: int, context: Context | None) -> Tensor:
        """Attention of queries [..., C] to the keys of their item: those of a context, or of the field itself.

        An item without keys gets 0.
        """


class Sparse(Space):
    """The voxels of a grid."""

    def __init__(self, count: Literal["active", "window"]) -> None:
        self._pool, self._upsample = sv.nn.AvgPool3d(2, count=count), sv.nn.Upsample(2)

    def from_sparse(self, x: SparseTensor) -> SparseTensor:
        """As it is."""
        return x

    def to_sparse(self, field: SparseTensor, like: SparseTensor) -> SparseTensor:
        """As it is."""
        return field

    def conv(self, in_channels: int, out_channels: int) -> torch.nn.Module:
        """A sub-manifold convolution."""
        return sv.nn.Conv3d(in_channels, out_channels, 3)

    def norm(self, groups: int, channels: int, eps: float) -> torch.nn.Module:
        """Over the voxels that exist."""
        return sv.nn.GroupNorm(groups, channels, eps)

    def map(self, field: SparseTensor, function: Callable[[Tensor], Tensor]) -> SparseTensor:
        """Row by row."""
        return field.map(function)

    def modulate(self, field: SparseTensor, values: Tensor) -> SparseTensor:
        """Every row by those of its grid."""
        scale, shift = sv.ops.broadcast(values.to(field.dtype), field.grid).chunk(2, 1)
        return field.replace(torch.addcmul(shift, field.feats, scale + 1))

    def cat(self, first: SparseTensor, second: SparseTensor) -> SparseTensor:
        """On the same voxels."""
        return sv.cat([first, second])

    def down(self, field: SparseTensor) -> SparseTensor:
        """On the coarsened grid."""
        y: SparseTensor = self._pool(field)
        return y

    def up(self, field: SparseTensor, like: SparseTensor) -> SparseTensor:
        """On the grid of `like`."""
        y: SparseTensor = self._upsample(field, grid=like.grid)
        return y

    def rows(self, field: SparseTensor) -> Tensor:
        """[N, C]."""
        return field.feats

    def replace(self, field: SparseTensor, rows: Tensor) -> SparseTensor:
        """On the same voxels."""
        return field.replace(rows)

    def context(self, tokens: Tensor, mask: Tensor) -> Context:
        """Tokens that exist, one item after the other."""
        ends = mask.sum(1).cumsum(0)
        return Context(tokens[mask], functional.pad(ends, (1, 0)))

    def attend(
        self, field: SparseTensor, q: Tensor, k: Tensor, v: Tensor, heads: int, context: Context | None
    ) -> Tensor:
        """Ragged attention."""
        q, k, v = (rows.unflatten(1, (heads, -1)) for rows in (q, k, v))
        keys = None if context is None else context.where
        return sv.ops.attention(q, k, v, field.grid.offsets, keys).flatten(1)


class Dense(Space):
    """Volumes: the voxels of full boxes of one size. Blocks of 2^3 voxels begin at the lower corner."""

    def from_sparse(self, x: SparseTensor) -> Tensor:
        """A volume.

        Raises:
            ValueError: If the items of the batch are not the same full box.
        """
        lower, upper = _box(x)
        return x.dense(lower, upper)

    def to_sparse(self, field: Tensor, like: SparseTensor) -> SparseTensor:
        """The voxels of `like`."""
        return like.replace(sv.ops.from_dense(field, like.grid, _box(like)[0]))

    def conv(self, in_channels: int, out_channels: int) -> torch.nn.Module:
        """With zeros around the box."""
        return torch.nn.Conv3d(in_channels, out_channels, 3, padding=1)

    def norm(self, groups: int, channels: int, eps: float) -> torch.nn.Module:
        """Of torch."""
        return torch.nn.GroupNorm(groups, channels, eps)

    def map(self, field: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """At once."""
        return function(field)

    def modulate(self, field: Tensor, values: Tensor) -> Tensor:
        """Every volume by its own."""
        scale, shift = values.to(field.dtype)[:, :, None, None, None].chunk(2, 1)
        return torch.addcmul(shift, field, scale + 1)

    def cat(self, first: Tensor, second: Tensor) -> Tensor:
        """Of boxes of one size."""
        return torch.cat([first, second], 1)

    def down(self, field: Tensor) -> Tensor:
        """Half as many voxels along each axis."""
        return functional.avg_pool3d(field, 2)

    def up(self, field: Tensor, like: Tensor) -> Tensor:
        """Twice as many voxels along each axis, as `like` has."""
        return functional.interpolate(field, like.shape[2:], mode="nearest")

    def rows(self, field: Tensor) -> Tensor:
        """[B, X * Y * Z, C]."""
        return field.flatten(2).transpose(1, 2)

    def replace(self, field: Tensor, rows: Tensor) -> Tensor:
        """Of the same box."""
        return rows.transpose(1, 2).unflatten(2, field.shape[2:])

    def context(self, tokens: Tensor, mask: Tensor) -> Context:
        """As it is."""
        return Context(tokens, mask)

    def attend(self, field: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int, context: Context | None) -> Tensor:
        """Attention of torch."""
        q, k, v = (rows.unflatten(2, (heads, -1)).transpose(1, 2) for rows in (q, k, v))
        if context is None:
            return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        some = context.where.any(1)[:, None]
        mask = (context.where | ~some)[:, None, None]  # a softmax over nothing is not a number
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        return out * some[:, :, None]


def _box(x: SparseTensor) -> tuple[list[int], list[int]]:
    """First voxel and end of the full box that every item of a batch is, or a ValueError."""
    corners: list[list[list[int]]] = torch.stack(x.grid.bounds(), 1).tolist()
    if corners:
        lower, upper = corners[0]
        x_edge, y_edge, z_edge = (b - a for a, b in zip(lower, upper, strict=True))
        if corners.count(corners[0]) == len(corners) and x_edge * y_edge * z_edge * len(corners) == x.grid.num_voxels:
            return lower, upper
    raise ValueError(f"x of a dense network must be on full boxes, all the same, got {x.grid!r}")
